"""The training loop: one for the laptop and the cluster, told apart by the configuration only.

A step is: read the global batch, add up gradients over micro-batches, divide by the global count of valid tokens,
refuse what is not finite, clip, set the schedule's rate, update. Everything that decides what happens at a step is a
function of the step, so a run can stop anywhere and go on.
"""

import json
import math
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slm2_minimal.config import CheckpointError, ConfigError, RunConfig
from slm2_minimal.data.assemble import assemble
from slm2_minimal.data.loader import Batch
from slm2_minimal.inference.generate import generate
from slm2_minimal.model.transformer import StableLM2
from slm2_minimal.text.tokenizer import load_tokenizer
from slm2_minimal.train import checkpoint
from slm2_minimal.train.device import autocast, peak_rate, pick_device, pick_dtype, synchronize
from slm2_minimal.train.loss import summed_cross_entropy
from slm2_minimal.train.metrics import RunLog, flops_per_token, progress_line
from slm2_minimal.train.optimizer import build_optimizer, clip_gradients, set_rate
from slm2_minimal.train.schedule import learning_rate
from slm2_minimal.train.validation import ValidationSet, validation_losses


class TrainingError(RuntimeError):
    """A run that cannot go on, through no fault of its input's form: the loss is no longer a number."""


def accumulate_gradients(model: StableLM2, batches: list[Batch], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Backpropagate the mean loss over all valid tokens of all micro-batches; return that mean (0 where no token is valid).

    The divisor is the count over the whole list, known before the first micro-batch, so loss and gradient do not depend on how it is cut.
    """
    valid = max(1, sum(batch.valid_tokens for batch in batches))
    total = torch.zeros((), device=device)
    for batch in batches:
        document_ids = batch.attention_ids  # asked before the move: the answer lies on the host
        batch, document_ids = batch.to(device), None if document_ids is None else document_ids.to(device)
        with autocast(device, dtype):
            head = partial(summed_cross_entropy, labels=batch.labels)
            loss = model(batch.input_ids, batch.position_ids, document_ids, head=head) / valid
        loss.backward()
        total += loss.detach()
    return total


class Trainer:
    """A run from its configuration: builds everything, resumes by itself, trains, validates, samples, saves."""

    def __init__(self, config: RunConfig) -> None:
        """Raises ConfigError or DataError for what cannot be right, before anything is written."""
        self.config = config
        self.device = pick_device(config.train.device)
        self.dtype = pick_dtype(config.train.dtype, self.device)
        self.tokenizer = load_tokenizer(config.data.tokenizer)
        if self.tokenizer.vocab_size > config.model.vocab_size:
            raise ConfigError(
                f"model.vocab_size = {config.model.vocab_size}: the tokenizer {config.data.tokenizer!r} has "
                f"{self.tokenizer.vocab_size} ids; use at least as many"
            )
        data = assemble(config.data, self.tokenizer)
        self.loader = data.loader
        self.sets = {
            language: ValidationSet.build(held_out, data.token_counts[language], config.data.seq_len, rows=16)
            for language, held_out in data.held_out.items()
            if language in data.token_counts
        }
        generator = torch.Generator().manual_seed(config.train.seed)
        self.model = StableLM2(config.model)
        self.model.init_weights(generator)
        self.model.to(self.device)
        self.optimizer = build_optimizer(self.model, config.optimizer)
        self.run_dir = Path(config.train.output_dir)
        self.rows = config.train.global_batch_tokens // config.data.seq_len
        self.loader.mixture.check(config.train.steps * self.rows)
        self._batches: Iterator[Batch] | None = None
        self.step, self.position, self.saved_step = 0, 0, -1
        self.stop_requested = False
        self.best: dict[str, Any] = {}

    def run(self) -> None:
        """Train to `train.steps`, from the newest good checkpoint of `output_dir` where there is one."""
        train = self.config.train
        self._resume()
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self._introduce()
        log = RunLog(self.run_dir, self.step)
        try:
            with self._stopping_on_signals():
                if self.step == 0:
                    self._sample(log)
                self._loop(log)
            if self.step < train.steps:
                print(f"stopped after step {self.step}; the same command goes on from there", flush=True)
                return
            self._conclude(log)
        finally:
            log.close()
            self._batches = None  # the last reference: worker processes end with it

    def train_step(self) -> dict[str, float]:
        """One update of the model. Returns loss, rate, gradient norm.

        Raises:
            TrainingError: loss or gradient is not finite; model and optimizer are as before the step.
        """
        if self._batches is None:
            self._batches = self.loader.batches(self.position, self.rows, workers=self.config.data.workers)
        batch = next(self._batches)
        loss = accumulate_gradients(self.model, batch.split(self.config.train.micro_batch_size), self.device, self.dtype)
        norm = clip_gradients(self.model.parameters(), self.config.optimizer.clip_norm)
        values = {"loss": loss.item(), "grad_norm": norm.item(), "rate": learning_rate(self.step, self.config.schedule)}
        if not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
            self.optimizer.zero_grad()
            raise TrainingError(
                f"loss = {values['loss']}, gradient norm = {values['grad_norm']} at step {self.step} (data position "
                f"{self.position}): not finite, nothing was updated; the last good checkpoint is intact. "
                "Lower schedule.peak_rate, or look at that batch"
            )
        set_rate(self.optimizer, values["rate"])
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.position += self.rows
        return values

    def _loop(self, log: RunLog) -> None:
        train = self.config.train
        flops, peak = flops_per_token(self.config.model, self.config.data.seq_len), peak_rate(self.device, self.dtype)
        started, first, clock, since = time.perf_counter(), self.step, time.perf_counter(), self.step
        while self.step < train.steps and not self.stop_requested:
            values = self.train_step()
            if self.step % train.log_every == 0 or self.step == train.steps:
                synchronize(self.device)
                now = time.perf_counter()
                rate = (self.step - since) * train.global_batch_tokens / (now - clock)
                values |= {"tokens_per_second": rate, "share_of_peak": rate * flops / peak}
                log.write(self.step, "train", values | {"tokens": self.step * train.global_batch_tokens})
                seconds_left = (now - started) / (self.step - first) * (train.steps - self.step)
                print(progress_line(self.step, train.steps, values, seconds_left), flush=True)
                clock, since = time.perf_counter(), self.step
            paused = time.perf_counter()
            if self.step % train.validate_every == 0 or self.step == train.steps:
                self._validate(log)
            if self.step % train.save_every == 0 or self.step == train.steps or self.stop_requested:
                self._save()
            clock += time.perf_counter() - paused  # validation and saving are not training throughput

    def _validate(self, log: RunLog) -> None:
        """Validation loss per language; a new best is saved at once."""
        if not self.sets:
            return
        losses = validation_losses(self.model, self.sets, self.device, self.dtype)
        mean = sum(losses.values()) / len(losses)
        log.write(self.step, "validation", {"loss": losses, "mean": mean})
        print("validation | " + " ".join(f"{name} {loss:.3f}" for name, loss in losses.items()) + f" | mean {mean:.3f}", flush=True)
        if mean < self.best.get("mean", math.inf):
            self.best = {"step": self.step, "mean": mean, "losses": losses}
            self._save()
            checkpoint.write_best(self.run_dir, self.best)

    def _save(self) -> None:
        state = {
            "data_position": self.position,
            "data_fingerprint": self.loader.fingerprint(),
            "dtype": str(self.dtype).removeprefix("torch."),
            "best": self.best,
            "config": self.config.to_dict(),
        }
        if self.saved_step != self.step:
            checkpoint.save(self.run_dir, self.step, self.model, self.optimizer, state)
            self.saved_step = self.step
        always = [self.run_dir / f"step-{self.best['step']:08d}"] if self.best else []
        checkpoint.prune(self.run_dir, self.config.train.keep_checkpoints, always)

    def _resume(self) -> None:
        """Go on from the newest good checkpoint here, or branch from `train.start_from`; a damaged one is passed over with a warning."""
        found = checkpoint.steps(self.run_dir)
        for folder in reversed(found):
            try:
                state = checkpoint.read_state(folder)
            except CheckpointError as error:
                warnings.warn(f"{error}; trying the one before", stacklevel=2)
                continue
            self._check_same_run(folder, state)
            self._restore(folder)
            self.best = state["best"]
            return
        if found:
            raise CheckpointError(
                f"train.output_dir = {str(self.run_dir)!r}: every checkpoint is damaged; remove the folder to start again"
            )
        if self.config.train.start_from is not None:
            self._restore(Path(self.config.train.start_from))

    def _restore(self, folder: Path) -> None:
        state = checkpoint.load(folder, self.model, self.optimizer)
        if state["data_fingerprint"] != self.loader.fingerprint():
            raise CheckpointError(
                f"data = {self.loader.fingerprint()}: not the data that {str(folder)!r} was trained on ({state['data_fingerprint']}); "
                "use the same sources, weights, tokenizer, seq_len and seed"
            )
        if state["dtype"] != str(self.dtype).removeprefix("torch."):
            warnings.warn(
                f"{folder} was trained in {state['dtype']}, this machine goes on in {self.dtype}: not bitwise the same run", stacklevel=3
            )
        self.step, self.position, self._batches = state["step"], state["data_position"], None

    def _check_same_run(self, folder: Path, state: dict[str, Any]) -> None:
        """Everything that changes what the run computes must be as it was; how often it logs, and its length, may change."""
        free = (
            "steps",
            "output_dir",
            "device",
            "log_every",
            "validate_every",
            "save_every",
            "keep_checkpoints",
            "prompts",
            "sample_tokens",
        )
        theirs, ours = (json.loads(json.dumps(config)) for config in (state["config"], self.config.to_dict()))
        for config in (theirs, ours):
            config["train"] = {key: value for key, value in config["train"].items() if key not in free}
            config["data"] = {key: value for key, value in config["data"].items() if key not in ("prepared", "verify", "workers")}
            config.pop("prepare", None)  # what the data holds is in its fingerprint
        field, saved, here = checkpoint.first_difference(theirs, ours)
        if field:
            raise CheckpointError(
                f"{field} = {here!r}: the run in {str(folder.parent)!r} has {saved!r}; choose another --train.output_dir, or the same value"
            )

    def _introduce(self) -> None:
        train, count = self.config.train, self.config.model.num_parameters()
        print(
            f"{count:,} parameters in {str(self.dtype).removeprefix('torch.')} on {self.device}; {train.steps} steps of "
            f"{train.global_batch_tokens:,} tokens = {self.rows // train.micro_batch_size} micro-batches of {train.micro_batch_size} x "
            f"{self.config.data.seq_len}; into {self.run_dir}",
            flush=True,
        )
        if self.step:
            print(f"going on after step {self.step}", flush=True)

    def _sample(self, log: RunLog) -> None:
        """A continuation of every prompt, so that readers see what the loss means."""
        for number, prompt in enumerate(self.config.train.prompts):
            ids = self.tokenizer.encode(prompt)[: self.config.model.max_position_embeddings - self.config.train.sample_tokens]
            out = generate(
                self.model, torch.tensor([ids], device=self.device), self.config.train.sample_tokens,
                temperature=0.7, top_p=0.95, seed=number, stop_ids=[self.tokenizer.eos_token_id],
            )  # fmt: skip
            text = self.tokenizer.decode([i for i in out[0].tolist() if i != self.tokenizer.eos_token_id])
            log.write(self.step, "sample", {"text": text})
            print(f"sample | {text}", flush=True)

    def _conclude(self, log: RunLog) -> None:
        """Load the best checkpoint back, say how far below the unigram each language lies, and write."""
        if self.best:
            checkpoint.load(self.run_dir / f"step-{self.best['step']:08d}", self.model, self.optimizer)
            print(f"best checkpoint: step {self.best['step']}, mean validation loss {self.best['mean']:.3f} nats per token")
            print("language   model  unigram   below")
            for language, loss in self.best["losses"].items():
                unigram_loss = self.sets[language].unigram_loss
                print(f"{language:<8} {loss:>7.3f} {unigram_loss:>8.3f} {unigram_loss - loss:>7.3f}")
            log.write(self.step, "best", {"loss": self.best["losses"], "unigram": {k: s.unigram_loss for k, s in self.sets.items()}})
        self._sample(log)
        epochs = self.loader.epochs(self.position)
        print("epochs read: " + ", ".join(f"{name} {count:.1f}" for name, count in epochs.items()), flush=True)

    @contextmanager
    def _stopping_on_signals(self) -> Iterator[None]:
        """Ctrl-C or SIGTERM ends the run after the current step, with a checkpoint; a second one ends it at once."""

        def request(number: int, frame: object) -> None:
            self.stop_requested = True
            signal.signal(number, signal.SIG_DFL)
            print(f"\n{signal.Signals(number).name}: saving after this step; again to stop at once", file=sys.stderr, flush=True)

        old = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
