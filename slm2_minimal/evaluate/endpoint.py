"""Text from a server that speaks OpenAI's protocol: llama.cpp's, vLLM's and others."""

import json
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any

from slm2_minimal.config import ConfigError, DataError
from slm2_minimal.evaluate.retrieval import Outcome, Probe

# Greedy, of what is there: llama.cpp's Python server would make the tokens of the
# prompt, and so the value, less likely.
GREEDY = {"temperature": 0, "repeat_penalty": 1.0}
REASON = 200  # characters of what a server says about a refusal


@dataclass(frozen=True)
class Endpoint:
    """A server's address up to `/v1`, and the name that it has for a model.

    The key of OPENAI_API_KEY is sent where it is set. Raises ConfigError for another
    protocol than HTTP.
    """

    url: str
    model: str
    timeout: float = 300.0  # seconds for one answer

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ConfigError(f"endpoint = {self.url!r}: must be like http://localhost:8000/v1")

    def outcomes(self, probes: Sequence[Probe]) -> list[Outcome]:
        """Whether the greedy completion of each probe is its value."""
        found = []
        for probe in probes:
            value = probe.values[0].strip()
            text = self.complete(probe.prompt, len(probe.values[0]))
            found.append(Outcome(text.lstrip().startswith(value), None))
        return found

    def complete(self, prompt: str, max_tokens: int) -> str:
        """The greedy continuation. Raises DataError for a server that gives none."""
        question = {"model": self.model, "prompt": prompt, "max_tokens": max_tokens}
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(
            self.url.rstrip("/") + "/completions", json.dumps(question | GREEDY).encode(), headers
        )

        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                answer: Any = json.load(response)
            text = answer["choices"][0]["text"]
        except urllib.error.HTTPError as error:
            reason = error.read().decode(errors="replace")[:REASON]
            raise self._failed(f"says {error.code} {error.reason}: {reason}") from None
        except TimeoutError:
            raise self._failed(f"gave no answer in {self.timeout:g} s") from None
        except (OSError, HTTPException) as error:  # urllib's own among them
            raise self._failed(f"cannot be reached ({getattr(error, 'reason', error)})") from None
        except (ValueError, LookupError, TypeError):
            text = None
        if not isinstance(text, str):
            raise self._failed("gave no completion in OpenAI's form")
        return text

    def _failed(self, what: str) -> DataError:
        return DataError(
            f"endpoint = {self.url!r}: {what}; check the address, --model-name and the server"
        )
