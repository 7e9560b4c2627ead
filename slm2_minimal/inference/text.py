"""Text from a model: ids become characters, and end at an id or before a string."""

import codecs
from collections.abc import Collection, Iterable, Iterator, Sequence

from slm2_minimal.config import DataError
from slm2_minimal.inference.generate import stream
from slm2_minimal.inference.lookup import stream_lookup
from slm2_minimal.inference.sampling import Sampling
from slm2_minimal.model.transformer import StableLM2
from slm2_minimal.text.tokenizer import Tokenizer


class Writer:
    """The text of one row, piece by piece, until it ends.

    A piece is held back as long as it may be the beginning of a stop string, or a part
    of a character. Of several stop strings, the one that is whole first ends the text,
    and of those the longest.
    """

    def __init__(
        self, tokenizer: Tokenizer, stop_ids: Collection[int], stop_strings: Collection[str] = ()
    ) -> None:
        check_stop_strings(stop_strings)
        self.tokenizer = tokenizer
        self.stop_ids = stop_ids
        self.stop_strings = stop_strings
        self.ended = False
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""

    def push(self, token_id: int) -> str:
        """What the id adds to the text that is sure."""
        if token_id in self.stop_ids:
            return self.finish()
        return self._add(self._decoder.decode(self.tokenizer.token_bytes(token_id)))

    def finish(self) -> str:
        """End the text; the rest of it."""
        text = self._add(self._decoder.decode(b"", final=True)) + self._held
        self.ended, self._held = True, ""
        return text

    def _add(self, piece: str) -> str:
        if self.ended:
            return ""
        text = self._held + piece
        found = [stop for stop in self.stop_strings if stop in text]
        if found:
            stop = min(found, key=lambda stop: (text.find(stop) + len(stop), -len(stop)))
            self.ended, self._held = True, ""
            return text[: text.find(stop)]

        # what of the end may be the beginning of a stop string
        longest = max(map(len, self.stop_strings), default=1) - 1
        for start in range(max(0, len(text) - longest), len(text)):
            if any(stop.startswith(text[start:]) for stop in self.stop_strings):
                self._held = text[start:]
                return text[:start]
        self._held = ""
        return text


def write_out(ids: Iterable[int], writer: Writer) -> Iterator[str]:
    """The pieces of text that the ids make, none of them empty, until it ends."""
    for token_id in ids:
        if piece := writer.push(token_id):
            yield piece
        if writer.ended:
            return
    if piece := writer.finish():
        yield piece


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The ids of a prompt; an empty one starts a text of its own, as after the end of
    another.
    """
    return tokenizer.encode(prompt) or [tokenizer.eos_token_id]


def stream_text(
    model: StableLM2,
    tokenizer: Tokenizer,
    prompt: str,
    max_new_tokens: int,
    sampling: Sampling,
    *,
    stop_strings: Collection[str] = (),
    lookup: bool = False,
) -> Iterator[str]:
    """The continuation of `prompt` as text, piece by piece, until the end-of-text
    token or a stop string. `lookup`: by `stream_lookup`, for greedy sampling alone.
    """
    stops = [tokenizer.eos_token_id]
    writer = Writer(tokenizer, stops, stop_strings)
    prompt_in_ids = prompt_ids(tokenizer, prompt)
    if lookup:
        check_lookup(sampling)
        ids = stream_lookup(model, prompt_in_ids, max_new_tokens, stop_ids=stops)
    else:
        steps = stream(model, [prompt_in_ids], max_new_tokens, sampling, stop_ids=stops)
        ids = (int(step[0]) for step in steps)
    return write_out(ids, writer)


def check_stop_strings(stop_strings: Collection[str]) -> None:
    """Raise DataError where one is empty."""
    if not all(stop_strings):
        raise DataError("stop = '': would end every text before it begins; give some characters")


def check_lookup(sampling: Sampling) -> None:
    """Raise DataError for options with which drafts cannot be verified."""
    if not sampling.greedy or sampling.repetition_penalty != 1:
        raise DataError(
            "lookup = true: is for greedy text alone; give temperature 0 and no repetition penalty"
        )


def write_texts(
    model: StableLM2,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    max_new_tokens: int,
    sampling: Sampling,
    *,
    samples: int = 1,
    stop_strings: Collection[str] = (),
) -> list[list[str]]:
    """The continuations of several prompts, `samples` of each, in one batch."""
    rows = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    texts = write_rows(
        model,
        tokenizer,
        rows,
        max_new_tokens,
        sampling,
        samples=samples,
        stop_ids=[tokenizer.eos_token_id],
        stop_strings=stop_strings,
    )
    return [texts[start : start + samples] for start in range(0, len(texts), samples)]


def write_rows(
    model: StableLM2,
    tokenizer: Tokenizer,
    rows: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling,
    *,
    samples: int = 1,
    stop_ids: Collection[int],
    stop_strings: Collection[str] = (),
    unwritten: Collection[int] = (),
) -> list[str]:
    """The continuations of prompts in ids: all samples of the first, then those of the
    second. Ids in `unwritten` leave no text.
    """
    writers = [Writer(tokenizer, stop_ids, stop_strings) for _ in range(len(rows) * samples)]
    texts = [""] * len(writers)
    steps = stream(model, rows, max_new_tokens, sampling, samples=samples, stop_ids=stop_ids)
    for step in steps:
        for number, token_id in enumerate(step.tolist()):
            if token_id in stop_ids or token_id not in unwritten:
                texts[number] += writers[number].push(token_id)
        if all(writer.ended for writer in writers):
            break
    return [text + writer.finish() for text, writer in zip(texts, writers, strict=True)]
