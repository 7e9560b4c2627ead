"""Batches read ahead by processes of their own: the same, and errors as they are."""

import errno
import os
import signal
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest

from slm2_minimal.config import DataError
from slm2_minimal.data.loader import Loader
from slm2_minimal.data.packing import PackedSequence, TokenStream
from tests.complaints import data_error
from tests.data.conftest import make, same


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_in_a_row_whoever_reads_them(workers: int) -> None:
    loader = make()
    ahead = loader.batches(16, 4, 1, 2, workers=workers)
    for step in range(12):
        assert same(next(ahead), loader.batch(16 + 4 * step, 4, 1, 2))


class Signals(TokenStream):
    """Two numbers in place of tokens: whether the process that reads them ignores
    SIGINT, and SIGTERM.
    """

    def sequence(self, index: int, seq_len: int) -> PackedSequence:
        answers = [
            signal.getsignal(signal.SIGINT) is signal.SIG_IGN,
            signal.getsignal(signal.SIGTERM) is signal.SIG_IGN,
        ]
        return PackedSequence(*(np.asarray(answers, dtype=np.int64) for _ in range(4)))


def test_worker_processes_do_not_answer_signals_as_the_trainer_does() -> None:
    loader = Loader({"a": Signals.from_documents([[1] * 9], 0)}, {"a": 1}, 2, 0)
    old = {
        number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        answers = [
            next(loader.batches(0, 1, workers=workers)).input_ids.tolist() for workers in (1, 0)
        ]
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
    assert answers == [[[1, 1]], [[0, 0]]]


class Damaged(TokenStream):
    """What cannot be read after all."""

    def sequence(self, index: int, seq_len: int) -> PackedSequence:
        raise DataError(f"sequence {index % 1}: cannot be read; copy it again")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_users_error_comes_as_it_is_from_a_worker(workers: int) -> None:
    loader = Loader({"a": Damaged.from_documents([[1] * 9], 0)}, {"a": 1}, 2, 0)
    message = data_error(lambda: next(loader.batches(0, 1, workers=workers)))
    assert message == "sequence 0: cannot be read; copy it again"


def test_a_batch_goes_to_another_process_whole() -> None:
    """Through a pipe: a tensor would lie in /dev/shm, which may be small."""
    batch = make().batch(0, 64)
    pickled = bytes(ForkingPickler.dumps(batch))
    assert len(pickled) > 4 * 8 * batch.input_ids.numel()
    assert same(ForkingPickler.loads(pickled), batch)


def test_workers_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where /dev/shm, in which their locks lie, is full."""

    def full(loader: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("slm2_minimal.data.loader.DataLoader.__iter__", full)
    message = data_error(lambda: next(make().batches(0, 4, workers=2)))
    assert message.startswith("data.workers = 2: cannot be started (No space left on device); ")
