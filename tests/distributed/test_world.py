"""One process by itself, and what a process of several is told by its environment.
Several are in tests/distributed.
"""

import os
import signal

import pytest
import torch

from slm2_minimal.config import ConfigError
from slm2_minimal.distributed.world import World
from slm2_minimal.train.signals import StopSignals


def launched(monkeypatch: pytest.MonkeyPatch, **changes: str) -> None:
    """The environment of a launcher."""
    environment = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for name, value in (environment | changes).items():
        monkeypatch.setenv(name, value)


def test_one_process_starts_nothing() -> None:
    with World.joined("cpu") as world:
        assert (world.rank, world.size, world.is_first, world.group) == (0, 1, True, None)
        assert world.sum(1.5, 2) == [1.5, 2.0]
        assert world.gather("x") == ["x"]
        world.barrier()
        assert not torch.distributed.is_initialized()


def test_a_world_of_one_under_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same answers over gloo, and nothing is left behind."""
    environment = {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with World.joined("cpu") as world:
        assert (world.rank, world.size, world.local_size) == (0, 1, 1)
        assert world.sum(1.5, 2) == [1.5, 2.0]
        assert world.gather({"a": 1}) == [{"a": 1}]
        assert torch.distributed.is_initialized()
    assert not torch.distributed.is_initialized()


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    launched(monkeypatch, RANK="3", WORLD_SIZE="4", LOCAL_RANK="3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with (
        pytest.raises(
            ConfigError,
            match=(
                r"train\.device = 'cuda': local rank 3 has no GPU of its own among 2; start at most"
            ),
        ),
        World.joined("cuda"),
    ):
        pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_noted_and_handlers_put_back(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGTERM may come twice: SLURM and torchrun both pass it on. A Ctrl-C after the
    first signal is the usual one again.
    """
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    signals = StopSignals()
    with signals.caught():
        assert not signals.received
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    assert {each: signal.getsignal(each) for each in before} == before
    assert capsys.readouterr().err.count("saving after this step") == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"WORLD_SIZE": ""}, "WORLD_SIZE = '': must be a whole number where RANK is set"),
        ({"LOCAL_RANK": "x"}, "LOCAL_RANK = 'x': must be a whole number where RANK is set"),
        ({"RANK": "-1"}, "RANK = '-1': must be a whole number"),
        ({"RANK": "4", "WORLD_SIZE": "4"}, "RANK = 4: must lie below WORLD_SIZE = 4"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR is not set where RANK is"),
    ],
)
def test_half_of_a_launcher(
    changes: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched(monkeypatch, **changes)
    with pytest.raises(ConfigError) as caught, World.joined("cpu"):
        pass
    assert str(caught.value).startswith(message)


def test_a_process_of_a_jobs_own_script(monkeypatch: pytest.MonkeyPatch) -> None:
    """SLURM tells it of all tasks of the job; it is alone all the same."""
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_PROCID", "0")
    with World.joined("cpu") as world:
        assert world.size == 1


def test_srun_without_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    with pytest.raises(ConfigError, match="srun started several processes"), World.joined("cpu"):
        pass
