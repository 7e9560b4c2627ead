"""The training loop: one for the laptop and the cluster.

A step reads this rank's part of the global batch, adds up gradients over micro-batches,
clips them, asks the guard, and updates. Everything that decides what happens at a step
is a function of the step and the data position, so a run can stop anywhere and go on,
also on another number of processes.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from slm2_minimal.config import RunConfig
from slm2_minimal.data.loader import Batch
from slm2_minimal.data.training_data import TrainingData
from slm2_minimal.distributed import checkpoint
from slm2_minimal.distributed.device import pick_device, pick_dtype
from slm2_minimal.distributed.parallel import parallelize
from slm2_minimal.distributed.world import World
from slm2_minimal.evaluate.validation import validation_losses, validation_sets
from slm2_minimal.text.tokenizer import Tokenizer
from slm2_minimal.train import log, resume
from slm2_minimal.train.folder import alone, write_note
from slm2_minimal.train.garbage import COLLECT_EVERY, collecting_by_hand
from slm2_minimal.train.guard import Action, Guard, TrainingError, Verdict
from slm2_minimal.train.objective import NextToken, Objective
from slm2_minimal.train.optimizer import build_optimizer, clip_gradients
from slm2_minimal.train.profile import traced
from slm2_minimal.train.rules import check_run, open_inputs
from slm2_minimal.train.samples import sample_texts
from slm2_minimal.train.schedule import learning_rate
from slm2_minimal.train.signals import StopSignals
from slm2_minimal.train.state import Best, RunState
from slm2_minimal.train.step import accumulate_gradients, update

logger = logging.getLogger(__name__)


class Trainer:
    """One process's part of a run: the model, where the run stands, and the loop."""

    def __init__(
        self,
        config: RunConfig,
        data: TrainingData,
        tokenizer: Tokenizer,
        *,
        world: World | None = None,
        objective: Objective | None = None,
    ) -> None:
        """Builds model and optimizer; nothing is read from the run's folder or written.

        `world` left out is this process alone; `objective` left out, next tokens.
        """
        self.config = config
        self.loader = data.loader
        self.tokenizer = tokenizer
        self.world = world or World(pick_device(config.train.device))
        self.objective = objective or NextToken()
        self.device = self.world.device
        self.batch_rows = config.train.global_batch_tokens // config.data.seq_len

        # Ranks may measure differently, so that one decides for all.
        dtype = pick_dtype(config.train.dtype, self.device)
        self.dtype: torch.dtype = self.world.gather(dtype)[0]
        self.replica = parallelize(config, self.world, self.dtype)
        self.model = self.replica.model
        self.optimizer = build_optimizer(self.model, config.optimizer)

        self.validation = validation_sets(
            data.held_out, data.token_counts, config.data.seq_len, config.train.micro_batch_size
        )
        self.state = RunState(
            config=config.to_dict(),
            data_fingerprint=self.loader.fingerprint(),
            dtype=str(self.dtype).removeprefix("torch."),
            tokenizer_fingerprint=tokenizer.fingerprint,
        )
        self.guard = Guard(config.train.spike_sigmas)
        self.run_dir = Path(config.train.output_dir)
        # The checkpoint before the cooldown stays: other cooldowns can begin there.
        cooldown = config.schedule.cooldown_start
        keep, keep_steps = config.train.keep_checkpoints, [] if cooldown is None else [cooldown]
        self.checkpoints = checkpoint.Checkpointer(self.run_dir, self.world, keep, keep_steps)
        self.log = log.RunLog()
        self.signals = StopSignals()
        self.stopping = False  # all ranks know that one was asked to stop
        self._saved_step = 0  # nothing is lost at step 0
        self._batches: Iterator[Batch] | None = None

    @classmethod
    def from_config(cls, config: RunConfig, world: World | None = None) -> "Trainer":
        """A run as its configuration says, after all rules and with its text opened.

        Raises ConfigError or DataError for what cannot be right, before anything is
        written.
        """
        world = world or World(pick_device(config.train.device))
        launched = world.group is not None
        check_run(config, world.size, world.local_size, launched=launched, device=world.device)
        tokenizer, data = open_inputs(config)
        return cls(config, data, tokenizer, world=world)

    # The run

    def run(self) -> None:
        """Train to the last step from where the run stands; then let the best write."""
        with alone(self.run_dir, self.world):
            self.resume()
            write_note(self.run_dir, self.config, self.world)
            with self._opened():
                self._say(log.introduction(self.config, self.replica, self.state, self.world))
                with self.signals.caught():
                    if self.state.step == 0:
                        self._sample()
                    self.train()
                    self.checkpoints.wait()
                if self.stopping:
                    step = self.state.step
                    self._say(f"stopped after step {step}; the same command goes on from there")
                else:
                    self._conclude()

    def train(self) -> None:
        """Make steps until the last one, or until a signal asks to stop."""
        train = self.config.train
        progress = log.Progress(self.config, self.state.step, self.world.size, self.dtype)
        profile_step = train.profile_step if self.world.is_first else None
        trace = traced(self.run_dir, profile_step, self.state.step, self.device)
        with trace as count_for_trace, collecting_by_hand() as collect:
            while self.state.step < train.steps and not self.stopping:
                values = self.step()
                count_for_trace()
                self._report(progress, values)
                with progress.paused():
                    self._every(train.validate_every, self.validate)
                    self._every(train.save_every, self.save)
                    self._every(COLLECT_EVERY, collect)
        if self.stopping:
            self.save()

    def step(self) -> dict[str, float]:
        """Make one update. Returns loss (nats per token), lr and grad_norm.

        A bad batch is passed over, or the run goes back to a checkpoint: `guard.py`.

        Raises:
            TrainingError: there is nothing to go back to; the weights are as before.
        """
        while True:
            self.forget_losses_of_other_data()
            batch = self.next_batch()
            divisor = self.agree(batch)
            loss, grad_norm = self.gradients(batch, divisor)
            verdict = self.guard.judge(loss, grad_norm, self.state.recent_losses)
            self.state.data_position += self.batch_rows
            if verdict.action is Action.ACCEPT:
                break
            self.pass_over(verdict, loss, grad_norm)

        lr = learning_rate(self.state.step, self.config.schedule)
        update(self.optimizer, lr, keep_gradient_memory=self.replica.strategy == "ddp")
        self.state.advance(loss)
        self.world.shorten_timeouts()
        return {"loss": loss, "lr": lr, "grad_norm": grad_norm}

    # The parts of a step

    def next_batch(self) -> Batch:
        """This rank's rows of the global batch at the data position."""
        if self._batches is None:
            self._batches = self.loader.batches(
                self.state.data_position,
                self.batch_rows,
                self.replica.data_rank,
                self.replica.data_size,
                workers=self.config.data.workers,
            )
        return next(self._batches)

    def agree(self, batch: Batch) -> int:
        """What the loss is divided by, over all ranks; and whether one is to stop.

        Raises OSError, on all, where one could not write its part of a checkpoint.
        """
        weight, asked_to_stop, failed = self.world.sum(
            self.objective.weight(batch), self.signals.received, self.checkpoints.failed
        )
        self.stopping = self.stopping or asked_to_stop > 0
        if failed:
            self.checkpoints.wait()
        return round(weight) // self.replica.copies

    def gradients(self, batch: Batch, divisor: int) -> tuple[float, float]:
        """Make the clipped gradients; returns the loss, and the norm they had."""
        part = accumulate_gradients(
            self.replica.forward,
            batch.split(self.config.train.micro_batch_size),
            self.objective,
            divisor=divisor,
            dtype=self.replica.autocast_dtype,
            context=self.replica.micro_batch,
        )
        grad_norm = clip_gradients(self.model.parameters(), self.config.optimizer.clip_norm)
        [loss] = self.world.sum(part.item())
        return loss / self.replica.copies, grad_norm.item()

    def forget_losses_of_other_data(self) -> None:
        """Where the mixture changes, the loss does, and that is no spike."""
        begin, end = self.state.data_position, self.state.data_position + self.batch_rows
        for stage in self.config.data.stages:
            if begin <= stage.start_tokens // self.config.data.seq_len < end:
                self.state.recent_losses = []
                self.guard.forget()

    def pass_over(self, verdict: Verdict, loss: float, grad_norm: float) -> None:
        """Leave a bad batch behind, or go back to a checkpoint as well."""
        self.optimizer.zero_grad(set_to_none=self.replica.strategy != "ddp")
        step, position = self.state.step, self.state.data_position
        first = position - self.batch_rows
        objection = {"first": first, "rows": self.batch_rows, "why": verdict.reason}
        self._write("skip", {"loss": str(loss), "grad_norm": str(grad_norm), **objection})
        self._say(
            f"step {step} | passed over the batch at data position {first}: {verdict.reason} "
            f"(loss {loss:.3f}, grad norm {grad_norm:.2f})"
        )
        if verdict.action is Action.SKIP:
            return

        if verdict.action is Action.GIVE_UP or not self.rewind():
            raise TrainingError(
                f"loss = {loss:.3f}, gradient norm = {grad_norm:.2f} at step {step} (data "
                f"position {first}): {verdict.reason}, again and again; nothing was updated and "
                "checkpoints are intact. Lower schedule.peak_rate, or look at those batches"
            )
        self.state.data_position = position
        self._write("rewind", {"from": step, "to": self.state.step, "data_position": position})
        self._say(
            f"step {step} | back to the checkpoint of step {self.state.step}; "
            f"the data goes on at position {position}"
        )

    # Checkpoints

    def resume(self) -> None:
        """Go on from the newest good checkpoint of the run, or begin as configured.

        Raises CheckpointError for one of another run, model, tokenizer or data.
        """
        start = resume.find_start(
            self.config, self.state.data_fingerprint, self.world, set_aside=True
        )
        if start is not None:
            self._restore(start.folder)
            if start.is_own:
                self._saved_step = self.state.step
                # The best one may be gone
                best = start.state.to_dict()["best"] or {}
                self.state.best = start.state.best if self.checkpoints.settle_best(best) else None
        elif self.config.train.init_from is not None:
            resume.load_initial_weights(self.config, self.model, self.tokenizer, self.world)

    def rewind(self) -> bool:
        """Put the run back to its newest checkpoint; false where there is none."""
        self.checkpoints.wait()
        found = resume.newest(self.run_dir, self.world, set_aside=True)
        if found is None:
            return False
        self._restore(found[0])
        self._saved_step = self.state.step
        return True

    def _restore(self, folder: Path) -> None:
        """Put weights, optimizer and progress where `folder` has them."""
        saved = self._load(folder)
        if saved.dtype != self.state.dtype:
            logger.warning(
                "%s was trained in %s, this goes on in %s: not bitwise the same run",
                folder, saved.dtype, self.state.dtype,
            )  # fmt: skip
        self.state = self.state.at(saved)
        self.guard.forget()
        self._batches = None

    def _load(self, folder: Path) -> RunState:
        """Weights and optimizer of `folder`, without what was gathered of the old."""
        self.replica.reshard()
        state = checkpoint.load(folder, self.model, self.optimizer, self.world)
        return RunState.from_dict(state, f"checkpoint = {str(folder)!r}")

    def save(self) -> None:
        """Write a checkpoint of this step, in the background; at most one a step."""
        if self._saved_step == self.state.step:
            return
        self.replica.reshard()
        state = self.state.to_dict()
        best = state["best"] or {}
        self.checkpoints.save(self.state.step, self.model, self.optimizer, state, best)
        self._saved_step = self.state.step

    # What a user sees

    def validate(self) -> None:
        """Write the validation loss of each language; a new best is saved at once."""
        if not self.validation:
            return
        losses = validation_losses(
            self.model,
            self.validation,
            self.device,
            self.replica.autocast_dtype,
            rank=self.replica.data_rank,
            size=self.replica.data_size,
            world=self.world,
            should_stop=self._asked_to_stop,
        )
        if losses is None:
            return
        mean = sum(losses.values()) / len(losses)
        self._write("validation", {"loss": losses, "mean": mean})
        self._say(log.validation_line(losses, mean))

        if self.state.best is None or mean < self.state.best.mean:
            self.state.best = Best(step=self.state.step, mean=mean, losses=losses)
            self.save()

    def _sample(self) -> None:
        """Continue every prompt, so that a reader sees what the loss means."""
        for text in sample_texts(self.model, self.tokenizer, self.config, self._asked_to_stop):
            self._write("sample", {"text": text})
            self._say(f"sample | {text}")

    def _report(self, progress: log.Progress, values: dict[str, float]) -> None:
        """Every `log_every` steps a line for the terminal and for the records.

        The first steps have one on the terminal too: one sees at once that it works.
        """
        progress.count(values["loss"])
        due = self._is_due(self.config.train.log_every)
        if not due and progress.steps > log.FIRST_LINES:
            return
        values = values | progress.measure(self.state.step, self.device)
        self._say(progress.line(self.state.step, values))
        if due:
            self._write("train", {**values, "data_position": self.state.data_position})

    def _conclude(self) -> None:
        """Load the best checkpoint, hold it against the unigram model, and sample."""
        best = self.state.best
        if best is not None:
            self._load(self.run_dir / f"step-{best.step:08d}")
            unigram = {name: held_out.unigram_loss for name, held_out in self.validation.items()}
            self._say(log.best_table(best, unigram))
            self._write("best", {"loss": best.losses, "unigram": unigram})
        self._sample()
        epochs = self.loader.epochs(self.state.data_position)
        self._say("epochs read: " + ", ".join(f"{k} {count:.1f}" for k, count in epochs.items()))

    def _every(self, steps: int, act: Callable[[], object]) -> None:
        if self._is_due(steps):
            act()

    def _is_due(self, every: int) -> bool:
        """Whether it is time: every so many steps, and after the last."""
        return self.state.step % every == 0 or self.state.step == self.config.train.steps

    def _say(self, line: str) -> None:
        """A line for the terminal; where it was closed, the run saves and ends."""
        try:
            logger.info(line)
        except BrokenPipeError:
            self.signals.terminal_closed()

    def _asked_to_stop(self) -> bool:
        """Whether any rank was; all must ask together."""
        [asked] = self.world.sum(self.signals.received)
        self.stopping = self.stopping or asked > 0
        return self.stopping

    def _write(self, kind: str, values: dict[str, Any]) -> None:
        self.log.write(self.state.step, kind, values)

    @contextmanager
    def _opened(self) -> Iterator[None]:
        """Records are open, and workers read ahead, inside the block."""
        project, silent = self.config.train.wandb, not self.world.is_first
        with log.RunLog.opened(self.run_dir, self.state.step, project, silent=silent) as self.log:
            try:
                yield
            finally:
                self._batches = None  # the last reference ends the workers
                self.log = log.RunLog()
