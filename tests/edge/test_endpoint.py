"""llama.cpp's server writes what our own greedy decoding does, and so finds the same.

`make test-edge` installs it; without it these tests are skipped.
"""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from slm2_minimal.config import DataError
from slm2_minimal.evaluate.endpoint import Endpoint
from slm2_minimal.evaluate.retrieval import Outcome, Probe, Settings, make_probe, score_probes
from slm2_minimal.export import gguf
from slm2_minimal.inference.sampling import Sampling
from slm2_minimal.inference.text import stream_text
from slm2_minimal.model.transformer import StableLM2
from slm2_minimal.text.interface import UNKNOWN
from slm2_minimal.text.sentence_piece import SentencePieceTokenizer
from tests.models import TINY, randomised

pytest.importorskip("llama_cpp", reason="llama-cpp-python")
pytest.importorskip("starlette_context", reason="the extra server of llama-cpp-python")

CONTEXT, NEW = 256, 8
F32 = "0"  # ggml's number; llama.cpp's own cache is f16
SECONDS = 120  # in which the server must have started


@pytest.fixture(scope="module")
def model() -> StableLM2:
    return randomised(TINY.replace(max_position_embeddings=CONTEXT, num_hidden_layers=2))


@pytest.fixture(scope="module")
def endpoint(
    model: StableLM2, tiny: SentencePieceTokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Endpoint]:
    """The exported model in a server."""
    path = tmp_path_factory.mktemp("server") / "toy.gguf"
    gguf.write(path, "toy", model, tiny, "f32")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "llama_cpp.server", "--model", path, "--host", "127.0.0.1"]
    words += ["--port", port, "--n_ctx", CONTEXT, "--type_k", F32, "--type_v", F32]
    server = subprocess.Popen(
        [str(word) for word in words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        found = Endpoint(f"http://127.0.0.1:{port}/v1", "toy")
        started = time.monotonic()
        while time.monotonic() - started < SECONDS and server.poll() is None:
            try:
                found.complete("a", 1)
                break
            except DataError:
                time.sleep(0.5)
        yield found
    finally:
        server.terminate()
        server.wait()


def greedy(model: StableLM2, tokenizer: SentencePieceTokenizer, prompt: str) -> str:
    return "".join(stream_text(model, tokenizer, prompt, NEW, Sampling(0.0)))


def test_completions_are_our_greedy_text(
    endpoint: Endpoint, model: StableLM2, tiny: SentencePieceTokenizer
) -> None:
    """Where that is text: a byte that is none is left out there."""
    settings = Settings()
    compared = 0
    for number in range(30):
        probe = make_probe(tiny, settings, "key-value", "en", 60 + 5 * number, 0.5, number)
        ours = greedy(model, tiny, probe.prompt)
        if UNKNOWN.decode() not in ours:
            assert endpoint.complete(probe.prompt, NEW) == ours, probe.prompt
            compared += 1
    assert compared >= 10


def test_outcomes_are_ours(
    endpoint: Endpoint, model: StableLM2, tiny: SentencePieceTokenizer
) -> None:
    """Of probes whose value the model writes, and of true ones."""
    settings = Settings(digits=1)
    probes = [make_probe(tiny, settings, "passkey", "fr", 100, 0.5, n) for n in range(8)]
    for number in range(40):
        prompt = f" Number {number} is"
        text = greedy(model, tiny, prompt)
        if text.startswith(" ") and len(tiny.encode(text)) == NEW:
            probes.append(Probe(0.5, prompt, [text, " 1"]))
    theirs = endpoint.outcomes(probes)
    ours = score_probes(model, tiny, probes)
    assert [each.exact for each in theirs] == [each.exact for each in ours]
    assert Outcome(True, None) in theirs
    assert Outcome(False, None) in theirs


def test_a_prompt_that_is_too_long_is_refused(
    endpoint: Endpoint, tiny: SentencePieceTokenizer
) -> None:
    probe = make_probe(tiny, Settings(), "passkey", "en", 2 * CONTEXT, 0.5)
    with pytest.raises(DataError, match=r"says 400.*context"):
        endpoint.outcomes([probe])
