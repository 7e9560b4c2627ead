"""A conversation with a model, which reads only what is new in each turn."""

import contextlib
import sys
from collections.abc import Collection, Generator, Iterator
from dataclasses import replace

from slm2_minimal.config import DataError
from slm2_minimal.inference.generate import new_cache, stream
from slm2_minimal.inference.sampling import Sampling
from slm2_minimal.inference.text import Writer, write_out
from slm2_minimal.model.transformer import StableLM2
from slm2_minimal.text.chat import (
    STOP_STRINGS,
    Format,
    Message,
    check_format,
    drop_oldest,
    render,
    stop_ids,
)
from slm2_minimal.text.tokenizer import Tokenizer

COMMANDS = "/reset begins anew, /quit ends, Ctrl-C stops an answer"


class Chat:
    """The messages so far, and a cache of what the model has read of them.

    Raises:
        DataError: a format that the tokenizer has no ids for, or a system message that
        leaves no room for an answer.
    """

    def __init__(
        self,
        model: StableLM2,
        tokenizer: Tokenizer,
        format: Format,
        sampling: Sampling,
        max_new_tokens: int,
        system: str | None = None,
    ) -> None:
        self.context = model.config.max_position_embeddings
        if not 0 < max_new_tokens < self.context:
            raise DataError(
                f"max_new_tokens = {max_new_tokens}: must be at least 1, and leave room for a"
                f" message in the context of {self.context}"
            )
        check_format(format, tokenizer)
        self.model, self.tokenizer, self.format = model, tokenizer, format
        self.sampling, self.max_new_tokens = sampling, max_new_tokens
        self.system: list[Message] = []
        if system is not None:
            self.system = [{"role": "system", "content": system}]
            drop_oldest(self.system, self._room(), format, tokenizer)
        self.cache = new_cache(model, 1, self.context)
        self.reset()

    def reset(self) -> None:
        """Forget all but the system message."""
        self.messages = list(self.system)
        self.read: list[int] = []  # the ids whose keys and values the cache holds
        self.turns = 0

    def ask(self, text: str) -> Generator[str, None, None]:
        """The pieces of the answer to `text`. Before the first, the oldest turns that
        no longer fit are dropped; `dropped` says how many.

        However far the answer is taken, both belong to the conversation then.

        Raises:
            DataError: the message is empty, or does not fit even alone.
        """
        asked = [*self.messages, {"role": "user", "content": text}]
        kept, self.dropped = drop_oldest(asked, self._room(), self.format, self.tokenizer)
        self.messages = kept
        self.turns += 1
        return self._answer()

    def _room(self) -> int:
        """For what is read before an answer."""
        return self.context - self.max_new_tokens

    def _answer(self) -> Generator[str, None, None]:
        ids, _ = render(
            self.messages, self.format, tokenizer=self.tokenizer, generation_prompt=True
        )
        same = 0
        while same < min(len(self.read), len(ids) - 1) and self.read[same] == ids[same]:
            same += 1
        self.cache.truncate(same)
        self.read = ids[:same]

        stops = stop_ids(self.format, self.tokenizer)
        writer = Writer(self.tokenizer, stops, STOP_STRINGS[self.format])
        answer = ""
        try:
            for piece in write_out(self._ids(ids, stops), writer):
                if self.format == "plain" and not answer:
                    piece = piece.removeprefix(" ")  # which stands before every text
                answer += piece
                yield piece
        finally:  # however it ends
            if answer.strip():
                self.messages.append({"role": "assistant", "content": answer})
            else:
                self.messages.pop()  # no turn is empty

    def _ids(self, ids: list[int], stops: Collection[int]) -> Iterator[int]:
        """The ids of the answer; `read` follows what the cache holds."""
        sampling = self.sampling
        if sampling.seed is not None:  # other numbers in each turn
            sampling = replace(sampling, seed=(sampling.seed + self.turns) % 2**64)
        new = ids[len(self.read) :]
        for step in stream(
            self.model, [ids], self.max_new_tokens, sampling, stop_ids=stops, cache=self.cache
        ):
            self.read += new
            new = [int(step[0])]
            yield new[0]


def talk(chat: Chat) -> None:
    """A chat in the terminal: one line of standard input is one message. It ends with
    the input, at /quit, or at a Ctrl-C while no answer is being written.
    """
    prompt = ""
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  for editing the line
        prompt = "> "
        print(f"({COMMANDS})")
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while (line := input(prompt).strip()) != "/quit":
            if line == "/reset":
                chat.reset()
            elif line:
                _show_answer(chat, line)


def _show_answer(chat: Chat, text: str) -> None:
    """Print the answer as it is written; what cannot be answered, and why."""
    try:
        pieces = chat.ask(text)
    except DataError as error:
        print(f"({error})", flush=True)
        return
    if chat.dropped:
        print(f"(the context of {chat.context} is full: {chat.dropped} oldest turns dropped)")
    empty = True
    with contextlib.closing(pieces):
        try:
            for piece in pieces:
                empty = False
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            print("\n(stopped)", end="")
    print("(no answer: the message is forgotten)" if empty else "", flush=True)
