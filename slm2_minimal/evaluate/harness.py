"""A model of this package as lm-evaluation-harness wants it: `SLM2`.

The harness makes texts of tasks, and metrics of what comes back; how a text becomes ids
and scores is here. The pairs of context and continuation are encoded by the harness's
own `TemplateLM`: spaces at the end of a context move to the continuation, and an empty
context is the end of text.
"""

import json
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from slm2_minimal.config import DataError, MissingExtraError
from slm2_minimal.evaluate.score import TOKENS_PER_BATCH, Request, Score, score, windows
from slm2_minimal.inference.sampling import Sampling
from slm2_minimal.inference.text import write_rows
from slm2_minimal.model.transformer import StableLM2
from slm2_minimal.text.chat import STOP_STRINGS, TEMPLATES, Format, check_format, render, stop_ids
from slm2_minimal.text.documents import nfc
from slm2_minimal.text.interface import Tokenizer

try:
    from lm_eval.api.model import TemplateLM
except ImportError:
    raise MissingExtraError("lm-eval", "evaluate", "evaluating by tasks") from None

ROWS = 16  # texts that are written at once; each is what it would be alone
NEW_TOKENS = 256  # of a text, at most, where a task does not say: the harness's own
# What a task may ask of a text; the second row are other names of the first.
SETTINGS = (
    "until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p", "min_p",
    "max_new_tokens", "max_tokens", "max_completion_tokens",
)  # fmt: skip

logger = logging.getLogger(__name__)


class SLM2(TemplateLM):  # type: ignore[misc]
    """An `lm_eval.api.model.LM`, for `lm_eval.simple_evaluate(model=SLM2(...))`.

    Texts are normalised to NFC, and the name of a special token in them is that token,
    as in the harness's `hf`. With a chat `format` tasks may be asked as conversations
    (`apply_chat_template=True`).

    Raises:
        DataError: a format that the tokenizer has no ids for. The methods raise it for
        what cannot be scored or written.
    """

    def __init__(
        self,
        model: StableLM2,
        tokenizer: Tokenizer,
        *,
        max_length: int | None = None,
        format: Format | None = None,
        tokens_per_batch: int = TOKENS_PER_BATCH,
    ) -> None:
        super().__init__()
        if format is not None:
            check_format(format, tokenizer)
        self.model, self.tokenizer, self.format = model, tokenizer, format
        self.max_length = max_length or model.config.max_position_embeddings
        self.tokens_per_batch = tokens_per_batch
        self.stop_ids = {tokenizer.eos_token_id}
        self.stop_strings: tuple[str, ...] = ()
        if format is not None:
            self.stop_ids, self.stop_strings = stop_ids(format, tokenizer), STOP_STRINGS[format]
        self._device = model.model.embed_tokens.weight.device

    # Text and ids

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def tokenizer_name(self) -> str:
        return self.tokenizer.name

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **options: Any
    ) -> list[int]:
        return self.tokenizer.encode(string, allow_special=True)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return TEMPLATES[self.format] if self.format and chat_template else None

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The text of `render`. Without the beginning of an answer behind it, it ends
        with the last message's text, which is to be continued.
        """
        if self.format is None:
            raise DataError("format = None: no chat format; name the one the model was tuned for")
        ids, _ = render(
            chat_history,
            self.format,
            tokenizer=self.tokenizer,
            generation_prompt=add_generation_prompt,
        )
        names = {token_id: name for name, token_id in self.tokenizer.special_tokens.items()}
        parts = [names[i].encode() if i in names else self.tokenizer.token_bytes(i) for i in ids]
        text = b"".join(parts).decode()
        if add_generation_prompt:
            return text
        last = nfc(chat_history[-1]["content"])
        return text[: text.rindex(last) + len(last)]

    # Scores

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[Score]:
        for request in requests:
            if not request.args[1]:
                raise DataError(
                    f"task = {request.task_name!r}: item {request.doc_id} has an empty"
                    " continuation; every choice needs some text"
                )
        return super().loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = True,
    ) -> list[Score]:
        return self._score([Request(context, ids) for _, context, ids in requests])

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        texts = [self.tok_encode(request.args[0]) for request in requests]
        parts = [list(windows(ids, self.prefix_token_id, self.max_length)) for ids in texts]
        found = iter(self._score([part for own in parts for part in own]))
        return [sum(next(found).log_prob for _ in own) for own in parts]

    def _score(self, requests: Sequence[Request]) -> list[Score]:
        return score(
            self.model, requests, max_length=self.max_length, tokens_per_batch=self.tokens_per_batch
        )

    # Texts

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        # what is asked in the same way is written together, the longest first
        alike: dict[str, list[int]] = defaultdict(list)
        prompts = [self.tok_encode(request.args[0]) for request in requests]
        for number in sorted(range(len(prompts)), key=lambda i: -len(prompts[i])):
            alike[json.dumps(requests[number].args[1], sort_keys=True)].append(number)

        texts = [""] * len(requests)
        for asked, numbers in alike.items():
            for begin in range(0, len(numbers), ROWS):
                some = numbers[begin : begin + ROWS]
                written = self._write([prompts[i] for i in some], json.loads(asked))
                for number, text in zip(some, written, strict=True):
                    texts[number] = text
        return texts

    def _write(self, prompts: Sequence[list[int]], settings: Mapping[str, Any]) -> list[str]:
        """The continuations of some prompts, which are cut on the left where they leave
        no room for them.
        """
        until, tokens, sampling = generation(settings, self.max_length)

        # what leaves no room is cut, and said
        room = self.max_length - tokens
        cut = sum(len(ids) > room for ids in prompts)
        if cut:
            logger.info(
                "writing | %d of %d prompts are cut to fit %d tokens", cut, len(prompts), room
            )

        return write_rows(
            self.model,
            self.tokenizer,
            [(ids or [self.eot_token_id])[-room:] for ids in prompts],
            tokens,
            sampling,
            stop_ids=self.stop_ids,
            stop_strings=[*until, *self.stop_strings],
            unwritten=set(self.tokenizer.special_tokens.values()),
        )


def generation(settings: Mapping[str, Any], context: int) -> tuple[list[str], int, Sampling]:
    """Where a text ends, how many tokens it has at most, and how they are drawn, from a
    task's `generation_kwargs`. Random numbers are those of torch's generator, which the
    harness seeds.

    Raises:
        DataError: a setting that is unknown or out of range.
    """
    unknown = sorted(settings.keys() - set(SETTINGS))
    if unknown:
        raise DataError(
            f"generation_kwargs.{unknown[0]} = {settings[unknown[0]]!r}: unknown here; known are"
            f" {', '.join(SETTINGS[:7])}"
        )
    asked = settings.get("until") or []
    until = [asked] if isinstance(asked, str) else list(asked)

    # how many
    given = [settings[name] for name in SETTINGS if name.startswith("max_") and name in settings]
    tokens = int(given[0]) if given else min(NEW_TOKENS, context // 2)
    if not 0 < tokens < context:
        raise DataError(
            f"generation_kwargs.max_gen_toks = {tokens}: must be at least 1, and leave room for the"
            f" prompt in the context of {context}"
        )

    # how
    temperature = float(settings.get("temperature", 1.0 if settings.get("do_sample") else 0.0))
    if not settings.get("do_sample", True):
        temperature = 0.0
    sampling = Sampling(
        temperature,
        settings.get("top_k"),
        settings.get("top_p"),
        settings.get("min_p"),
        seed=int(torch.randint(2**62, ())),
    )
    return [stop for stop in until if stop], tokens, sampling
