"""Checkpoints that are whole or absent, written by every rank at once and in the
background, and read back under any strategy.

A checkpoint is a folder `step-00000300`: torch.distributed.checkpoint's shards of
weights and optimizer in safetensors files (nothing is pickled), one a rank, and
state.json, which holds the step, the data position, the run's configuration and the
digests of the other files. Every tensor is named as in the model, so that ranks of
another number or strategy find their parts. It is written under another name on a file
system that all ranks see, and renamed when all of it is there; a crash leaves the ones
before untouched.
"""

import contextlib
import hashlib
import json
import os
import shutil
import threading
import time
import warnings
from collections.abc import Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.state_dict_loader import load as read_shards
from torch.distributed.checkpoint.state_dict_saver import async_save

from slm2_minimal.config import CheckpointError, ModelConfig
from slm2_minimal.distributed.world import World
from slm2_minimal.files import whole_file
from slm2_minimal.model.transformer import StableLM2

# One process is no oversight here.
warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)

STATE, BEST, FAILED = "state.json", "best.json", "failed"
NOT_SIGNED = "another rank could not write its part"
MODEL, OPTIMIZER = (
    "model/",
    "optimizer/",
)  # before a tensor's name: model/lm_head.weight, optimizer/lm_head.weight/exp_avg


class Checkpointer:
    """Writes the checkpoints of one run. Every rank has one and calls the same methods
    in the same order.
    """

    def __init__(self, run: Path, world: World, keep: int, spared: Iterable[int] = ()) -> None:
        """Of the checkpoints in the folder `run`, the newest `keep` are kept, the best,
        and those of the steps `spared`.
        """
        self.run, self.world, self.keep, self.spared = run, world, keep, set(spared)
        # The writing thread has a group of its own: messages of two threads on one
        # group would be taken for each other's.
        self._group = None if world.group is None else dist.new_group(backend="gloo")
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(
        self,
        step: int,
        model: StableLM2,
        optimizer: torch.optim.Optimizer,
        state: dict[str, Any],
        best: dict[str, Any],
    ) -> None:
        """Copy the tensors and return; the rest goes on in the background. `best` is
        what BEST will hold once the checkpoint is there.
        """
        self.wait()
        part = self.run / f".step-{step:08d}.part"
        if self.world.is_first:
            for left in (*self.run.glob(".step-*.part"), *self.run.glob(".old-*")):
                shutil.rmtree(left, ignore_errors=True)
            part.mkdir(parents=True)
        self.world.wait()
        writer = HuggingFaceStorageWriter(str(part), save_distributed=True)
        single = {"no_dist": True} if self._group is None else {"process_group": self._group}
        written = cast(
            Future[Any],
            async_save(named_tensors(model, optimizer), storage_writer=writer, **single),
        )

        def finish() -> None:
            try:
                written.result()
                self._sign(part)
                if self.world.is_first:
                    self._publish(part, {"step": step, **state}, best)
            except BaseException as error:  # told by `wait` in the thread that trains
                self._error = error
                with contextlib.suppress(OSError):
                    (part / FAILED).touch()  # for the first rank, which waits for every digest

        self._thread = threading.Thread(target=finish, daemon=True)
        self._thread.start()

    @property
    def failed(self) -> bool:
        """Whether something went wrong in the background on this rank; `wait`, called
        by all of them, tells.
        """
        return self._error is not None

    def wait(self) -> None:
        """Until the last save is published, on every rank.

        Raises:
            OSError: it was not, on every rank alike; the checkpoints before are intact.
        """
        if self._thread is None:
            return
        self._thread.join()
        self._thread, error, self._error = None, self._error, None
        reasons = self.world.gather(None if error is None else _reason(error))
        for rank, reason in enumerate(reasons):
            if reason is not None and reason != NOT_SIGNED:
                raise OSError(
                    f"writing a checkpoint into {str(self.run)!r} failed on rank {rank}: {reason};"
                    " the ones before are intact"
                )

    def settle_best(self, best: dict[str, Any]) -> dict[str, Any]:
        """`best` as a resumed run has it, if its checkpoint is still there; BEST is
        made to say the same.
        """
        there = self.world.gather(
            bool(best) and (self.run / f"step-{best['step']:08d}" / STATE).exists()
        )[0]
        if there and self.world.is_first:
            _write_json(self.run / BEST, best)
        return best if there else {}

    def _sign(self, part: Path) -> None:
        """Have the disk hold this rank's file, and leave its digest for the first
        rank.
        """
        own = sorted(part.glob(f"shard-{self.world.rank + 1:05d}-*.safetensors"))
        digests = {}
        for file in own:
            _flush(file)
            digests[file.name] = _sha256(file)
        _write_json(part / f"rank-{self.world.rank:05d}.json", digests)

    def _publish(self, part: Path, state: dict[str, Any], best: dict[str, Any]) -> None:
        """Wait for every rank's digests, write STATE, give the folder its name, and
        remove what is not kept.
        """
        signed = [part / f"rank-{rank:05d}.json" for rank in range(self.world.size)]
        while not all(file.exists() for file in signed):
            if (part / FAILED).exists():
                raise OSError(NOT_SIGNED)
            time.sleep(0.05)
        digests = {
            name: digest
            for file in signed
            for name, digest in json.loads(file.read_text(encoding="utf-8")).items()
        }
        for file in signed:
            file.unlink()
        _write_json(part / STATE, {**state, "sha256": digests})
        _flush(part)
        final = self.run / part.name.removeprefix(".").removesuffix(".part")
        shutil.rmtree(final, ignore_errors=True)
        os.replace(part, final)
        _flush(self.run)
        if best:
            _write_json(self.run / BEST, best)
        prune(self.run, self.keep, self.spared | ({best["step"]} if best else set()))


def steps(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return sorted(path for path in run.glob("step-*") if (path / STATE).exists())


def prune(run: Path, keep: int, always: Iterable[int] = ()) -> None:
    """Remove all but the newest `keep` checkpoints and those of the steps `always`."""
    spared = {f"step-{step:08d}" for step in always}
    for old in steps(run)[:-keep]:
        if old.name not in spared:
            hidden = old.rename(
                run / f".old-{old.name}"
            )  # at once, so that none is ever seen half removed
            shutil.rmtree(
                hidden, ignore_errors=True
            )  # a file that somebody reads may have to stay for now


def read_state(folder: Path, world: World | None = None) -> dict[str, Any]:
    """The state of a checkpoint, after every file's digest has been checked; the ranks
    of `world` share that work.

    Raises:
        CheckpointError: no checkpoint there, or a file is missing or altered; on every
        rank alike.
    """
    world = world or World(torch.device("cpu"))
    found: dict[str, Any] | CheckpointError
    try:
        found = _read_state(folder, world.rank, world.size)
    except CheckpointError as error:
        found = error
    errors = [
        error
        for error in world.gather(found if isinstance(found, CheckpointError) else None)
        if error is not None
    ]
    if errors:
        raise errors[0]
    assert isinstance(found, dict)
    return found


def _read_state(folder: Path, rank: int, size: int) -> dict[str, Any]:
    """With the digests of every `size`-th file checked."""
    try:
        state: dict[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
        digests = dict(state["sha256"])
    except OSError as error:
        raise CheckpointError(
            f"checkpoint = {str(folder)!r}: {error.strerror}; give a folder that holds {STATE}"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(
            f"checkpoint = {str(folder)!r}: {STATE} is damaged; remove this folder to go on from"
            " the one before"
        ) from None
    for name in sorted(digests)[rank::size]:
        try:
            intact = _sha256(folder / name) == digests[name]
        except OSError:
            intact = False
        if not intact:
            raise CheckpointError(
                f"checkpoint = {str(folder)!r}: {name} is missing or altered; remove this folder to"
                " go on from the one before"
            )
    return state


def load(
    folder: Path, model: StableLM2, optimizer: torch.optim.Optimizer, world: World | None = None
) -> dict[str, Any]:
    """Put weights and optimizer state back in place, each rank its own parts, and
    return the state.

    Raises:
        CheckpointError: as `read_state`, or the checkpoint is of another architecture.
    """
    state = read_state(folder, world)
    _same_architecture(folder, state, model.config)
    _prepare_state(optimizer)
    _read_tensors(folder, named_tensors(model, optimizer), None if world is None else world.group)
    return state


def load_model(path: str) -> tuple[StableLM2, str | None]:
    """(a model on the CPU in fp32, the tokenizer it was trained with if known) of a
    run's folder, a checkpoint, a folder in Hugging Face's format, or a Hub id. Of a
    run, the best checkpoint is taken, or the newest where nothing was validated.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    folder = Path(path)
    if not (folder / STATE).exists() and (found := steps(folder)):
        folder = found[-1]
        if (folder.parent / BEST).exists():
            best = (
                folder.parent / f"step-{json.loads((folder.parent / BEST).read_text())['step']:08d}"
            )
            folder = best if (best / STATE).exists() else folder
    if not (folder / STATE).exists():
        return StableLM2.from_pretrained(path), None
    state = read_state(folder)
    model = StableLM2(ModelConfig(**state["config"]["model"]))
    _read_tensors(
        folder,
        {MODEL + name: parameter.detach() for name, parameter in model.named_parameters()},
        None,
    )
    return model, state["config"]["data"]["tokenizer"]


def named_tensors(model: StableLM2, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Every weight and every moment by name, as they lie on this rank; under single and
    ddp that is all of them.
    """
    named = dict(model.named_parameters())
    moments = {
        f"{OPTIMIZER}{name}/{key}": value
        for name, parameter in named.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }
    return {MODEL + name: parameter.detach() for name, parameter in named.items()} | moments


def first_difference(
    theirs: dict[str, Any], ours: dict[str, Any], prefix: str = ""
) -> tuple[str, Any, Any]:
    """(dotted field, their value, our value) of the first place where two nested
    dictionaries differ; ("", None, None) if nowhere.
    """
    for key in ours | theirs:
        a, b = theirs.get(key), ours.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            field, a, b = first_difference(a, b, f"{prefix}{key}.")
            if field:
                return field, a, b
        elif a != b:
            return f"{prefix}{key}", a, b
    return "", None, None


def _same_architecture(folder: Path, state: dict[str, Any], config: ModelConfig) -> None:
    field, theirs, ours = first_difference(state["config"]["model"], vars(config))
    if field:
        raise CheckpointError(
            f"model.{field} = {ours!r}: the checkpoint {str(folder)!r} has {theirs!r}; use the same"
            " model"
        )


def _prepare_state(optimizer: torch.optim.Optimizer) -> None:
    """AdamW makes its state in its first step; what is read needs a place before
    that.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter not in optimizer.state:
                step = torch.zeros((), dtype=torch.float32, device=parameter.device)
                moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                optimizer.state[parameter] = {"step": step, **moments}


def _read_tensors(
    folder: Path, tensors: dict[str, Tensor], group: dist.ProcessGroup | None
) -> None:
    """Fill `tensors` in place."""
    single: dict[str, Any] = {"no_dist": True} if group is None else {"process_group": group}
    try:
        read_shards(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), **single)
    except (CheckpointException, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"checkpoint = {str(folder)!r}: cannot be read ({_reason(error)}); remove this folder"
        ) from None


def _reason(error: BaseException) -> str:
    """The innermost cause in one line; torch's checkpointing wraps what every rank
    says.
    """
    if isinstance(error, CheckpointException):
        inner = next(iter(error.failures.values()))[0]
        return _reason(inner)
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with whole_file(path) as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Have the disk hold what was written, also across a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
