"""An endpoint's answers and failures, from a server on this machine."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from slm2_minimal.evaluate.endpoint import Endpoint
from slm2_minimal.evaluate.retrieval import Outcome, Probe
from tests.complaints import config_error, data_error

Reply = Callable[[dict[str, Any]], tuple[int, bytes]]
PROBE = Probe(0.5, " The secret number is 123. The secret number is", [" 123", " 456"])


def completion(text: object) -> bytes:
    return json.dumps({"choices": [{"text": text}]}).encode()


@pytest.fixture
def serve() -> Iterator[Callable[[Reply], Endpoint]]:
    """`serve(reply)`: an endpoint that answers a request's content by `reply`, and
    notes what it got in `serve.seen`.
    """
    servers = []

    def start(reply: Reply) -> Endpoint:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                code, answer = reply(content | {"path": self.path, "headers": self.headers})
                self.send_response(code)
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return Endpoint(f"http://127.0.0.1:{server.server_port}/v1/", "toy", timeout=0.5)

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_what_is_asked_and_what_counts(
    serve: Callable[[Reply], Endpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    seen = []

    def reply(content: dict[str, Any]) -> tuple[int, bytes]:
        seen.append(content)
        return 200, completion([" 123. Then", "123", " 124", " 12"][len(seen) - 1])

    outcomes = serve(reply).outcomes([PROBE] * 4)
    assert outcomes == [Outcome(each, None) for each in (True, True, False, False)]
    headers = seen[0].pop("headers")
    assert headers["Authorization"] == "Bearer secret"
    assert headers["Content-Type"] == "application/json"
    assert seen[0] == {
        "path": "/v1/completions", "model": "toy", "prompt": PROBE.prompt, "max_tokens": 4,
        "temperature": 0,
        "repeat_penalty": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("code", "answer", "part"),
    [
        (400, b"the context\nis 512 tokens", "says 400 Bad Request: the context"),
        (500, b"", "says 500 Internal Server Error"),
        (200, b"<html>", "no completion in OpenAI's form"),
        (200, b"[]", "no completion in OpenAI's form"),
        (200, b'{"choices": []}', "no completion in OpenAI's form"),
        (200, completion(None), "no completion in OpenAI's form"),
    ],
)
def test_failures(code: int, answer: bytes, part: str, serve: Callable[[Reply], Endpoint]) -> None:
    endpoint = serve(lambda _: (code, answer))
    message = data_error(lambda: endpoint.outcomes([PROBE]))
    assert part in message
    assert repr(endpoint.url) in message


def test_a_server_that_says_nothing(serve: Callable[[Reply], Endpoint]) -> None:
    def reply(_: dict[str, Any]) -> tuple[int, bytes]:
        time.sleep(1)
        return 200, completion("")

    assert "no answer in 0.5 s" in data_error(lambda: serve(reply).outcomes([PROBE]))


def test_no_server() -> None:
    endpoint = Endpoint("http://127.0.0.1:1/v1", "toy")
    assert "cannot be reached" in data_error(lambda: endpoint.outcomes([PROBE]))
    for url in ("localhost:8000/v1", "file:///etc", ""):
        assert "must be like http" in config_error(lambda url=url: Endpoint(url, "toy"))
    for url in ("http://", "http://a:b/v1"):
        assert "cannot be reached" in data_error(lambda url=url: Endpoint(url, "x").complete("", 1))
