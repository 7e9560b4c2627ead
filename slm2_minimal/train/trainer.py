"""The training loop: one for the laptop and the cluster, told apart by the
configuration only.

A step is: read this rank's part of the global batch, add up gradients over
micro-batches, divide by the global count of valid tokens, clip, ask the guard, set the
schedule's rate, update. Everything that decides what happens at a step is a function of
the step and the data position, so a run can stop anywhere and go on, also on another
number of ranks.
"""

import math
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from slm2_minimal.config import ConfigError, RunConfig
from slm2_minimal.data.loader import Batch
from slm2_minimal.data.training_data import assemble, fitting_tokenizer
from slm2_minimal.distributed import checkpoint
from slm2_minimal.distributed.device import (
    peak_flops,
    peak_memory,
    pick_device,
    pick_dtype,
    synchronize,
)
from slm2_minimal.distributed.parallel import parallelize
from slm2_minimal.distributed.world import World
from slm2_minimal.evaluate.validation import ValidationSet, validation_losses
from slm2_minimal.inference.generate import generate
from slm2_minimal.model.flops import flops_per_token
from slm2_minimal.train import resume
from slm2_minimal.train.guard import Guard
from slm2_minimal.train.log import RunLog, StepTrace, progress_line
from slm2_minimal.train.optimizer import build_optimizer, clip_gradients, set_rate
from slm2_minimal.train.schedule import learning_rate
from slm2_minimal.train.signals import StopSignals
from slm2_minimal.train.step import accumulate_gradients


class TrainingError(RuntimeError):
    """A run that cannot go on, through no fault of its input's form: steps are bad
    again and again.
    """


class Trainer:
    """A run from its configuration: builds everything, resumes by itself, trains,
    validates, samples, saves. One on every rank.
    """

    def __init__(self, config: RunConfig, world: World | None = None) -> None:
        """Raises ConfigError or DataError for what cannot be right, before anything is
        written.
        """
        self.config = config
        self.world = world or World(pick_device(config.train.device))
        self.device = self.world.device
        self.dtype: torch.dtype = self.world.gather(pick_dtype(config.train.dtype, self.device))[
            0
        ]  # measured: let one decide
        self.tokenizer = fitting_tokenizer(config)
        if (
            config.train.prompts
            and not 0 < config.train.sample_tokens < config.model.max_position_embeddings
        ):
            raise ConfigError(
                f"train.sample_tokens = {config.train.sample_tokens}: must leave room for a prompt"
                " in the context, model.max_position_embeddings ="
                f" {config.model.max_position_embeddings}"
            )
        if not all(config.train.prompts):
            raise ConfigError(
                "train.prompts: one of them is empty; give it a word to go on from, or leave it out"
            )
        data = assemble(config.data, self.tokenizer)
        self.loader = data.loader
        rows = max(
            config.train.micro_batch_size, 4096 // config.data.seq_len
        )  # short rows are scored faster in batches
        self.sets = {
            language: ValidationSet.build(
                held_out, data.token_counts[language], config.data.seq_len, rows
            )
            for language, held_out in data.held_out.items()
            if language in data.token_counts
        }
        self.rows = config.train.global_batch_tokens // config.data.seq_len
        self._stages = [stage.start_tokens // config.data.seq_len for stage in config.data.stages]
        self.loader.mixture.check(config.train.steps * self.rows)
        self.replica = parallelize(config, self.world, self.dtype)
        self.model = self.replica.model
        if self.rows % (self.replica.data_size * config.train.micro_batch_size):
            raise ConfigError(
                f"train.global_batch_tokens = {config.train.global_batch_tokens}: {self.rows} rows"
                f" of {config.data.seq_len} must divide among {self.replica.data_size} ranks in"
                f" micro-batches of {config.train.micro_batch_size}; change one of the three"
            )
        self.optimizer = build_optimizer(self.model, config.optimizer)
        self.guard = Guard(config.train.spike_sigmas)
        self.run_dir = Path(config.train.output_dir)
        # The checkpoint before the cooldown stays: other ends can be put to the run
        # from there.
        spared = [] if config.schedule.cooldown_start is None else [config.schedule.cooldown_start]
        self.checkpoints = checkpoint.Checkpointer(
            self.run_dir, self.world, config.train.keep_checkpoints, spared
        )
        self._log: RunLog | None = None
        self._signals = StopSignals()
        self._batches: Iterator[Batch] | None = None
        self.step, self.position, self.saved_step = 0, 0, -1
        self.stopping = False
        self.best: dict[str, Any] = {}

    def run(self) -> None:
        """Train to `train.steps`, from the newest good checkpoint of `output_dir` where
        there is one.
        """
        train = self.config.train
        self._resume()
        if self.world.is_first:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            self._log = RunLog(self.run_dir, self.step, train.wandb)
        self._introduce()
        try:
            with self._signals.caught():
                if self.step == 0:
                    self._sample()
                self._loop()
                self.checkpoints.wait()
            if self.step < train.steps:
                self._say(f"stopped after step {self.step}; the same command goes on from there")
                return
            self._conclude()
        finally:
            if self._log is not None:
                self._log.close()
            self._batches = None  # the last reference: worker processes end with it

    def train_step(self) -> dict[str, float]:
        """One update of the model. Returns loss, rate, gradient norm. Bad batches are
        passed over, as `train.guard` says.

        Raises:
            TrainingError: there is nothing left to go back to; model and optimizer are
            as before the step.
        """
        while True:
            if any(self.position <= start < self.position + self.rows for start in self._stages):
                self.guard.restore([])  # other data has another loss
            loss, norm = self._gradients()
            objection = self.guard.objection(loss, norm)
            self.position += self.rows
            if objection is None:
                break
            self._clear_gradients()
            self._pass_over(objection, loss, norm)
        rate = learning_rate(self.step, self.config.schedule)
        set_rate(self.optimizer, rate)
        self.optimizer.step()
        self._clear_gradients()
        self.guard.accept(loss)
        self.step += 1
        return {"loss": loss, "grad_norm": norm, "rate": rate}

    def _gradients(self) -> tuple[float, float]:
        """Clipped gradients of the global batch at `position`; its loss, and the norm
        that they had. Ranks agree here on stopping.
        """
        replica, workers = self.replica, self.config.data.workers
        if self._batches is None:
            place = (replica.data_rank, replica.data_size)
            self._batches = self.loader.batches(self.position, self.rows, *place, workers=workers)
        batch = next(self._batches)
        alike = (
            self.world.size // replica.data_size
        )  # ranks of tensor parallelism read the same rows
        valid, stopping, failed = self.world.sum(
            batch.valid_tokens, self._signals.received, self.checkpoints.failed
        )
        self.stopping = stopping > 0
        if failed:
            self.checkpoints.wait()  # raises, on every rank
        loss = accumulate_gradients(
            replica.forward, batch.split(self.config.train.micro_batch_size), self.device, replica.autocast_dtype,
            round(valid) // alike, replica.micro_batch,
        )  # fmt: skip
        norm = clip_gradients(self.model.parameters(), self.config.optimizer.clip_norm)
        return self.world.sum(loss.item())[0] / alike, norm.item()

    def _clear_gradients(self) -> None:
        """DDP's lie in its buckets for good: once dropped, they would be added up
        beside them, 4 more bytes per parameter.
        """
        self.optimizer.zero_grad(set_to_none=self.replica.strategy != "ddp")

    def _pass_over(self, objection: str, loss: float, norm: float) -> None:
        """Leave a bad batch behind, or go back to the newest checkpoint as well."""
        first = self.position - self.rows
        values = {
            "loss": str(loss),
            "grad_norm": str(norm),
            "first": first,
            "rows": self.rows,
            "why": objection,
        }
        self._write("skip", values)
        self._say(
            f"step {self.step} | passed over the batch at data position {first}: {objection} (loss"
            f" {loss:.3f}, grad norm {norm:.2f})"
        )
        if not self.guard.skip():
            return
        position, step = self.position, self.step
        if not self.guard.rewind() or not self._rewind():
            raise TrainingError(
                f"loss = {loss:.3f}, gradient norm = {norm:.2f} at step {step} (data position"
                f" {first}): {objection}, again and again; nothing was updated and checkpoints are"
                " intact. Lower schedule.peak_rate, or look at those batches"
            )
        self.position, self._batches = position, None
        self._write("rewind", {"from": step, "to": self.step, "data_position": position})
        self._say(
            f"step {step} | back to the checkpoint of step {self.step}; the data goes on at"
            f" position {position}"
        )

    def _loop(self) -> None:
        train = self.config.train
        flops = flops_per_token(self.config.model, self.config.data.seq_len)
        peak = peak_flops(self.device, self.dtype) * self.world.size
        trace = StepTrace(
            self.run_dir / "profile",
            train.profile_step if self.world.is_first else None,
            self.device,
        )
        started, first, clock, since = (
            time.perf_counter(),
            self.step,
            time.perf_counter(),
            self.step,
        )
        while self.step < train.steps and not self.stopping:
            trace.before(self.step)
            values = self.train_step()
            if (path := trace.after(self.step - 1)) is not None:
                self._say(f"trace of {trace.TRACED} steps: {path}")
            if self.step % train.log_every == 0 or self.step == train.steps:
                synchronize(self.device)
                now = time.perf_counter()
                rate = (
                    max(0, self.step - since) * train.global_batch_tokens / (now - clock)
                )  # a rewind goes below `since`
                values |= {"tokens_per_second": rate, "share_of_peak": rate * flops / peak}
                self._write("train", values | self._where_we_are(rate))
                seconds_left = (
                    (now - started) / max(1, self.step - first) * (train.steps - self.step)
                )
                self._say(progress_line(self.step, train.steps, values, seconds_left))
                clock, since = time.perf_counter(), self.step
            paused = time.perf_counter()
            if self.step % train.validate_every == 0 or self.step == train.steps:
                self._validate()
            if self.step % train.save_every == 0 or self.step == train.steps or self.stopping:
                self._save()
            clock += (
                time.perf_counter() - paused
            )  # validation and saving are not training throughput

    def _where_we_are(self, rate: float) -> dict[str, float]:
        """What is logged beside loss and speed."""
        return {
            "tokens_per_second_per_rank": rate / self.world.size,
            "memory_gb": peak_memory(self.device) / 1e9,
            "tokens": self.step * self.config.train.global_batch_tokens,
            "data_position": self.position,
        }

    def _validate(self) -> None:
        """Validation loss per language; a new best is saved at once."""
        if not self.sets:
            return
        share = (self.replica.data_rank, self.replica.data_size)
        losses = validation_losses(
            self.model,
            self.sets,
            self.device,
            self.replica.autocast_dtype,
            share=share,
            world=self.world,
        )
        mean = sum(losses.values()) / len(losses)
        self._write("validation", {"loss": losses, "mean": mean})
        self._say(
            "validation | "
            + " ".join(f"{name} {loss:.3f}" for name, loss in losses.items())
            + f" | mean {mean:.3f}"
        )
        if mean < self.best.get("mean", math.inf):
            self.best = {"step": self.step, "mean": mean, "losses": losses}
            self._save()

    def _save(self) -> None:
        if self.saved_step == self.step:
            return
        state = {
            "data_position": self.position,
            "data_fingerprint": self.loader.fingerprint(),
            "dtype": str(self.dtype).removeprefix("torch."),
            "recent_losses": list(self.guard.losses),
            "best": self.best,
            "config": self.config.to_dict(),
        }
        self.replica.reshard()
        self.checkpoints.save(self.step, self.model, self.optimizer, state, self.best)
        self.saved_step = self.step

    def _resume(self) -> None:
        """Go on from the newest good checkpoint in `output_dir`, or branch from
        `train.start_from`.
        """
        found = resume.newest(self.run_dir, self.world, set_aside=True)
        if found is not None:
            resume.check_same_run(*found, self.config.to_dict())
            self._restore(found[0])
            self.best, self.saved_step = self.checkpoints.settle_best(found[1]["best"]), self.step
        elif self.config.train.start_from is not None:
            self._restore(Path(self.config.train.start_from))

    def _rewind(self) -> bool:
        """Put weights, optimizer and step back to the newest checkpoint of this run;
        false where there is none.
        """
        self.checkpoints.wait()
        found = resume.newest(self.run_dir, self.world, set_aside=True)
        if found is not None:
            self._restore(found[0])
            self.saved_step = self.step
        return found is not None

    def _restore(self, folder: Path) -> None:
        """Weights, optimizer, step, data position and the guard's memory, if the data
        is the same.
        """
        state = self._load(folder)
        resume.check_same_data(folder, state, self.loader.fingerprint())
        dtype = str(self.dtype).removeprefix("torch.")
        if state["dtype"] != dtype and self.world.is_first:
            warnings.warn(
                f"{folder} was trained in {state['dtype']}, this goes on in {dtype}: not bitwise"
                " the same run",
                stacklevel=3,
            )
        self.guard.restore(state["recent_losses"])
        self.step, self.position, self._batches = state["step"], state["data_position"], None

    def _load(self, folder: Path) -> dict[str, Any]:
        """Weights and optimizer of `folder`; what was gathered of the old weights is
        dropped.
        """
        self.replica.reshard()
        return checkpoint.load(folder, self.model, self.optimizer, self.world)

    def _introduce(self) -> None:
        train, count, ranks = self.config.train, self.config.model.num_parameters(), self.world.size
        where = (
            f"{self.device}"
            if ranks == 1
            else f"{ranks} x {self.device.type} ({self.replica.strategy})"
        )
        micro_batches = self.rows // train.micro_batch_size // self.replica.data_size
        self._say(
            f"{count:,} parameters in {str(self.dtype).removeprefix('torch.')} on {where};"
            f" {train.steps} steps of {train.global_batch_tokens:,} tokens ="
            f" {f'{self.replica.data_size} x ' if ranks > 1 else ''}{micro_batches} micro-batches"
            f" of {train.micro_batch_size} x {self.config.data.seq_len}; into {self.run_dir}"
        )
        if self.step:
            self._say(f"going on after step {self.step}")

    def _sample(self) -> None:
        """A continuation of every prompt, so that readers see what the loss means. All
        ranks compute the same one together.
        """
        for number, prompt in enumerate(self.config.train.prompts):
            ids = self.tokenizer.encode(prompt)[
                : self.config.model.max_position_embeddings - self.config.train.sample_tokens
            ]
            # Compiled blocks are for training: the cache would make them anew for every
            # layer and length.
            with torch.compiler.set_stance("force_eager"):
                out = generate(
                    self.model, torch.tensor([ids], device=self.device), self.config.train.sample_tokens,
                    temperature=0.7, top_p=0.95, seed=number, stop_ids=[self.tokenizer.eos_token_id],
                )  # fmt: skip
            text = self.tokenizer.decode(
                [i for i in out[0].tolist() if i != self.tokenizer.eos_token_id]
            )
            self._write("sample", {"text": text})
            self._say(f"sample | {text}")

    def _conclude(self) -> None:
        """Load the best checkpoint back, say how far below the unigram each language
        lies, and write.
        """
        if self.best:
            self._load(self.run_dir / f"step-{self.best['step']:08d}")
            self._say(
                f"best checkpoint: step {self.best['step']}, mean validation loss"
                f" {self.best['mean']:.3f} nats per token"
            )
            self._say("language   model  unigram   below")
            for language, loss in self.best["losses"].items():
                unigram_loss = self.sets[language].unigram_loss
                self._say(
                    f"{language:<8} {loss:>7.3f} {unigram_loss:>8.3f} {unigram_loss - loss:>7.3f}"
                )
            self._write(
                "best",
                {
                    "loss": self.best["losses"],
                    "unigram": {k: s.unigram_loss for k, s in self.sets.items()},
                },
            )
        self._sample()
        epochs = self.loader.epochs(self.position)
        self._say(
            "epochs read: " + ", ".join(f"{name} {count:.1f}" for name, count in epochs.items())
        )

    def _say(self, line: str) -> None:
        if self.world.is_first:
            print(line, flush=True)

    def _write(self, kind: str, values: dict[str, Any]) -> None:
        if self._log is not None:
            self._log.write(self.step, kind, values)
