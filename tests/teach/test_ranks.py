"""Functions of a page on several ranks: what comes back, what a failing rank says, and
that nothing is left running.
"""

import os
import subprocess
import time

import pytest
import torch
import torch.distributed as dist

from slm2_minimal import ModelConfig
from slm2_minimal.teach.ranks import RankError, run_ranks

OFFSET = 10
TABLE = {"rows": torch.arange(4.0)}


class Holder:
    """A class of the page."""

    def __init__(self, value: float) -> None:
        self.value = value


def with_offset(value: float) -> float:
    return Holder(value + OFFSET).value


def sums(rank: int, size: int) -> tuple[float, torch.Tensor, int]:
    """Uses a module by two names, a function and a class of the page, values of the
    page, and a class from the package.
    """
    mine = TABLE["rows"].chunk(size)[rank].sum()
    dist.all_reduce(mine)
    print(f"rank {rank} of {size}")
    return (
        with_offset(mine.item()),
        torch.full((2,), rank),
        ModelConfig.preset("tiny").num_parameters(),
    )


def fails_on_rank_1(rank: int, size: int) -> None:
    if rank == 1:
        raise ValueError("no luck\nhere")
    dist.barrier()


def dies(rank: int, size: int) -> None:
    if rank == 0:
        os._exit(3)
    dist.barrier()


def never_ends(rank: int, size: int) -> None:
    time.sleep(600)


def left_running() -> list[str]:
    listed = subprocess.run(
        ["ps", "-eo", "ppid,stat,args"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return [
        line
        for line in listed
        if line.split()[0] == str(os.getpid()) and "teach.ranks" in line and " Z" not in line
    ]


def test_results_and_prints_come_in_rank_order(capfd: pytest.CaptureFixture[str]) -> None:
    first, second = run_ranks(sums)
    assert first[0] == second[0] == 0 + 1 + 2 + 3 + OFFSET
    assert first[1].tolist() == [0, 0]
    assert second[1].tolist() == [1, 1]
    assert first[2] == ModelConfig.preset("tiny").num_parameters()
    out, err = capfd.readouterr()
    assert out == "rank 0 of 2\nrank 1 of 2\n"
    assert err == ""
    assert left_running() == []


def test_other_numbers_of_ranks_and_no_address_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a surrounding torchrun left in the environment does not matter."""
    for name, value in {
        "RANK": "7",
        "WORLD_SIZE": "9",
        "MASTER_ADDR": "nowhere.example",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    assert [answer[0] for answer in run_ranks(sums, 1)] == [6 + OFFSET]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (fails_on_rank_1, r"^rank 1 at 'raise ValueError\(\"no luck.*\)': ValueError: no luck\n"),
        (dies, r"^rank 0: ended with exit code 3$"),
    ],
)
def test_the_rank_that_failed_first_is_named_with_its_line(function, message: str) -> None:  # type: ignore[no-untyped-def]
    started = time.monotonic()
    with pytest.raises(RankError, match=message) as caught:
        run_ranks(function)
    assert "\n" not in str(caught.value)
    if function is fails_on_rank_1:
        [details] = caught.value.__notes__
        assert "in fails_on_rank_1" in details, "the whole traceback"
        assert details.count("raise ValueError") == 1, "with the line of the page"
    assert time.monotonic() - started < 100, "the other rank is not waited for"
    assert left_running() == []


def test_ranks_that_are_not_done_in_time_are_ended() -> None:
    with pytest.raises(
        RankError,
        match=r"^rank 0, 1: not done after 1 s; does every rank make the same collective calls\?$",
    ):
        run_ranks(never_ends, seconds=1)
    assert left_running() == []
