"""What the unit tests share: repeatable property tests, no network, and the two tokenizers, loaded once."""

import socket
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from slm2_minimal.text.tokenizer import Arcade100k, SentencePieceTokenizer, Tokenizer, load_tokenizer

# derandomize: the same examples on every run, so that a failure in CI is one that can be repeated.
settings.register_profile("slm2", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("slm2")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anything but this machine itself is out of reach; processes that talk to each other here may."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise OSError(f"a test tried to reach {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(scope="session")
def arcade() -> Arcade100k:
    tokenizer = load_tokenizer("arcade100k")
    assert isinstance(tokenizer, Arcade100k)
    return tokenizer


@pytest.fixture(scope="session")
def tiny() -> SentencePieceTokenizer:
    tokenizer = load_tokenizer("tiny")
    assert isinstance(tokenizer, SentencePieceTokenizer)
    return tokenizer


@pytest.fixture(scope="session", params=["arcade100k", "tiny"])
def tokenizer(request: pytest.FixtureRequest, arcade: Arcade100k, tiny: SentencePieceTokenizer) -> Tokenizer:
    """A test that asks for this runs with each tokenizer."""
    return arcade if request.param == "arcade100k" else tiny
