"""Checkpoints that are whole or absent.

Every rank writes its part at once and in the background; any strategy on any number of
ranks reads them back. A checkpoint is a folder `step-00000300` with a safetensors file
a rank (torch.distributed.checkpoint's shards of weights and optimizer; nothing is
pickled) and state.json, which holds everything else and the files' digests. It is
written under another name, on a file system that all see, and renamed when it is whole.

torch.distributed.checkpoint is imported where it is called: that takes longer than a
small model needs for a sentence, and `read_whole` does without.
"""

import contextlib
import json
import os
import re
import shutil
import threading
import time
import warnings
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pydantic
import safetensors
import torch
import torch.distributed as dist
from torch import Tensor

from slm2_minimal.config import CheckpointError, ConfigError, ModelConfig, RunConfig
from slm2_minimal.config.run import first_difference
from slm2_minimal.distributed.world import World
from slm2_minimal.files import digest, flush, read_json, sha256, write_json
from slm2_minimal.model.transformer import StableLM2

warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)

STATE, BEST, FAILED = "state.json", "best.json", "failed"
MODEL = "model/"  # before the name of a weight; see `named_tensors`
# The folders that we write, and remove: what a user has beside them is none of ours.
CHECKPOINT = re.compile(r"step-\d{8}")
LEFTOVER = re.compile(r"\.step-\d{8}\.part|\.old-step-\d{8}")
REMOVE = "remove this folder to go on from the one before"
NOT_SIGNED = "another rank could not write its part"


def folder_name(step: int) -> str:
    return f"step-{step:08d}"


class DamagedCheckpoint(CheckpointError):
    """A checkpoint that is not as it was written."""


class Checkpointer:
    """Writes a run's checkpoints. All ranks call the same methods in the same order."""

    def __init__(
        self, run_dir: Path, world: World, keep: int, keep_steps: Iterable[int] = ()
    ) -> None:
        """The newest `keep` are kept, the best, and those of `keep_steps`."""
        self.run_dir = run_dir
        self.world = world
        self.keep = keep
        self.keep_steps = set(keep_steps)
        # The thread that writes has a group of its own: messages of two threads on one
        # group would be taken for each other's. Its timeout stays long, for slow disks.
        group = None if world.group is None else dist.new_group(backend="gloo")
        self._writers = replace(world, group=group)
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
        """Copy the tensors and return; the rest goes on in the background.

        `best` is what BEST will hold once the checkpoint is published.
        """
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
        from torch.distributed.checkpoint.state_dict_saver import async_save

        self.wait()
        part = self.run_dir / f".{folder_name(step)}.part"
        if self.world.is_first:
            part.parent.mkdir(parents=True, exist_ok=True)
            for leftover in _folders(self.run_dir, LEFTOVER):  # of a crash
                shutil.rmtree(leftover, ignore_errors=True)
            part.mkdir()
        self.world.barrier()

        writer = HuggingFaceStorageWriter(str(part), save_distributed=True)
        tensors = named_tensors(model, optimizer)
        written = async_save(tensors, storage_writer=writer, **_ranks(self._writers.group))
        arguments = (part, cast(Future[Any], written), {"step": step, **state}, best)
        self._thread = threading.Thread(target=self._finish, args=arguments, daemon=True)
        self._thread.start()

    def _finish(
        self, part: Path, written: Future[Any], state: dict[str, Any], best: dict[str, Any]
    ) -> None:
        """The background thread's work; `wait` raises its error later."""
        try:
            written.result()
            self.sign(part)
            if self.world.is_first:
                self.publish(part, state, best)
        except BaseException as error:
            self._error = error
            with contextlib.suppress(OSError):
                (part / FAILED).touch()  # for the first rank, which waits for every digest

    @property
    def failed(self) -> bool:
        """Whether this rank failed in the background; `wait` says how."""
        return self._error is not None

    def wait(self) -> None:
        """Until the save is published. Raises OSError, on all ranks, if it is not."""
        if self._thread is None:
            return
        self._thread.join()
        reason = None if self._error is None else _reason(self._error)
        self._thread = self._error = None
        for rank, other in enumerate(self._writers.gather(reason)):
            if other not in (None, NOT_SIGNED):
                where = f"into {str(self.run_dir)!r} failed on rank {rank}"
                raise OSError(f"writing a checkpoint {where}: {other}; the ones before are intact")

    def settle_best(self, best: dict[str, Any]) -> dict[str, Any]:
        """`best`, if its checkpoint is still there, else {}; BEST will say the same."""
        exists = bool(best) and (self.run_dir / folder_name(best["step"]) / STATE).exists()
        if not self.world.gather(exists)[0]:
            return {}
        if self.world.is_first:
            write_json(self.run_dir / BEST, best)
        return best

    def sign(self, part: Path) -> None:
        """Flush this rank's file, and leave its digest for the first rank."""
        digests = {}
        for file in part.glob(f"shard-{self.world.rank + 1:05d}-*.safetensors"):
            flush(file)
            digests[file.name] = sha256(file)
        write_json(part / f"rank-{self.world.rank:05d}.json", digests)

    def publish(self, part: Path, state: dict[str, Any], best: dict[str, Any]) -> None:
        """Make a checkpoint of `part` once every rank has signed; remove old ones."""
        signed = [part / f"rank-{rank:05d}.json" for rank in range(self.world.size)]
        while not all(file.exists() for file in signed):
            if (part / FAILED).exists():
                raise OSError(NOT_SIGNED)
            time.sleep(0.05)

        # The state holds all digests
        digests: dict[str, str] = {}
        for file in signed:
            digests |= read_json(file)
            file.unlink()
        content = {**state, "sha256": digests}
        write_json(part / STATE, content | {"digest": digest(content)})
        flush(part)

        # From here on, it counts
        final = self.run_dir / folder_name(state["step"])
        shutil.rmtree(final, ignore_errors=True)
        os.replace(part, final)
        flush(self.run_dir)
        kept = set(self.keep_steps)
        if best:
            write_json(self.run_dir / BEST, best)
            kept.add(best["step"])
        prune(self.run_dir, self.keep, kept)


def steps(run_dir: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return [path for path in _folders(run_dir, CHECKPOINT) if (path / STATE).exists()]


def _folders(run_dir: Path, name: re.Pattern[str]) -> list[Path]:
    """The folders in `run_dir` that have such a name, sorted."""
    if not run_dir.is_dir():
        return []
    return sorted(path for path in run_dir.iterdir() if name.fullmatch(path.name))


def prune(run_dir: Path, keep: int, keep_steps: Iterable[int] = ()) -> None:
    """Remove all but the newest `keep` checkpoints and those of `keep_steps`."""
    names = {folder_name(step) for step in keep_steps}
    for old in steps(run_dir)[:-keep]:
        if old.name not in names:
            # Renamed at once, so that none is ever seen half removed.
            hidden = old.rename(run_dir / f".old-{old.name}")
            shutil.rmtree(hidden, ignore_errors=True)


def read_state(folder: Path, world: World | None = None) -> dict[str, Any]:
    """The state of a checkpoint, once the ranks have checked every file's digest.

    Raises CheckpointError, on all ranks, if there is none or a file is not as written.
    """
    world = world or World(torch.device("cpu"))
    state: dict[str, Any] = {}
    error = None
    try:
        state = _checked_state(folder, world.rank, world.size)
    except CheckpointError as caught:
        error = caught
    for each in world.gather(error):
        if each is not None:
            raise each
    return state


def _checked_state(folder: Path, rank: int, size: int) -> dict[str, Any]:
    """The state, with the digests of every `size`-th file checked.

    Raises DamagedCheckpoint for what is not as it was written. What cannot be read, or
    was put there since, is a CheckpointError: nothing is wrong with the checkpoint.
    """
    where = f"checkpoint = {str(folder)!r}"
    try:
        state = read_json(folder / STATE)
        digests = pydantic.TypeAdapter(dict[str, str]).validate_python(state["sha256"])
        if state.pop("digest", None) not in (None, digest(state)):  # older ones have none
            raise ValueError("altered")
    except OSError as error:
        message = f"{where}: {error.strerror}; give a folder that holds {STATE}"
        raise CheckpointError(message) from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DamagedCheckpoint(f"{where}: {STATE} is damaged; {REMOVE}") from None

    # Tensors are read from every such file in the folder, listed or not.
    for file in sorted(folder.glob("*.safetensors")):
        if file.name not in digests:
            raise CheckpointError(f"{where}: {file.name} does not belong to it; move it away")
    for name in sorted(digests)[rank::size]:
        try:
            intact = sha256(folder / Path(name).name) == digests[name]
        except FileNotFoundError:
            intact = False
        except OSError as error:
            message = f"{where}: {name} cannot be read ({error.strerror}); mend that"
            raise CheckpointError(message) from None
        if not intact:
            raise DamagedCheckpoint(f"{where}: {name} is missing or altered; {REMOVE}")
    return state


def saved_config(folder: Path, state: dict[str, Any]) -> RunConfig:
    """The configuration in a checkpoint; keys newer than it have their defaults."""
    try:
        return RunConfig.from_dict(state["config"])
    except (ConfigError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"checkpoint = {str(folder)!r}: its configuration cannot be read ({error}); "
            "use the version that wrote it"
        ) from None


def load(
    folder: Path, model: StableLM2, optimizer: torch.optim.Optimizer, world: World | None = None
) -> dict[str, Any]:
    """Put weights and optimizer state back, each rank its own parts; return the state.

    Raises CheckpointError as `read_state` does, and for another architecture.
    """
    state = read_state(folder, world)
    check_architecture(folder, saved_config(folder, state).model, model.config)
    _prepare_state(optimizer)
    read_tensors(folder, named_tensors(model, optimizer), world)
    return state


def named_tensors(model: StableLM2, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What is saved: every weight and moment by name, as they lie on this rank.

    For example model/lm_head.weight, optimizer/lm_head.weight/exp_avg.
    """
    tensors = weights_of(model, MODEL)
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer/{name}/{key}"] = value
    return tensors


def weights_of(model: StableLM2, prefix: str) -> dict[str, Tensor]:
    return {prefix + name: parameter.detach() for name, parameter in model.named_parameters()}


def check_architecture(folder: Path, theirs: ModelConfig, ours: ModelConfig) -> None:
    field, saved, here = first_difference(vars(theirs), vars(ours))
    if field:
        where = f"the checkpoint {str(folder)!r} has {saved!r}"
        raise CheckpointError(f"model.{field} = {here!r}: {where}; use the same model")


def _prepare_state(optimizer: torch.optim.Optimizer) -> None:
    """Make AdamW's state, as its first step would: what is read needs a place."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter not in optimizer.state:
                optimizer.state[parameter] = {
                    "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }


def read_tensors(folder: Path, tensors: dict[str, Tensor], world: World | None) -> None:
    """Fill `tensors` in place, each rank its own parts."""
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load as read_shards

    group = None if world is None else world.group
    reader = HuggingFaceStorageReader(str(folder))
    try:
        read_shards(tensors, storage_reader=reader, **_ranks(group))
    except (CheckpointException, OSError, ValueError, RuntimeError) as error:
        raise _unreadable(folder, _reason(error)) from None


def read_whole(folder: Path, model: StableLM2) -> None:
    """Give a model on the meta device its whole weights from the parts of all ranks."""
    weights = {name: torch.empty(weight.shape) for name, weight in weights_of(model, "").items()}
    missing = {name: weight.numel() for name, weight in weights.items()}
    try:
        for path in folder.glob("*.safetensors"):
            with safetensors.safe_open(path, "pt") as file:
                places = json.loads(file.metadata()["DCP_SHARDING_INFO"])
                for name in weights:
                    if MODEL + name not in places:
                        continue
                    part = file.get_tensor(MODEL + name)
                    place = weights[name]
                    for dim, start in enumerate(places[MODEL + name]["saved_offsets"]):
                        place = place.narrow(dim, start, part.shape[dim])
                    place.copy_(part)
                    missing[name] -= part.numel()
    except (OSError, safetensors.SafetensorError) as error:
        raise _unreadable(folder, str(error)) from None
    for name, elements in missing.items():
        if elements:
            raise _unreadable(folder, f"{name} is not whole")

    model.load_state_dict(weights, strict=False, assign=True)  # a tied table has one name here
    if model.config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight


def _unreadable(folder: Path, reason: str) -> CheckpointError:
    message = f"checkpoint = {str(folder)!r}: cannot be read ({reason})"
    return CheckpointError(f"{message}; remove this folder")


def _ranks(group: dist.ProcessGroup | None) -> dict[str, Any]:
    """Who takes part, as torch's checkpointing wants to be told."""
    return {"no_dist": True} if group is None else {"process_group": group}


def _reason(error: BaseException) -> str:
    """The innermost cause in one line; torch wraps what every rank says."""
    from torch.distributed.checkpoint.api import CheckpointException

    if isinstance(error, CheckpointException):
        return _reason(next(iter(error.failures.values()))[0])
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
