"""Arcade100k as a released folder holds it: a tokenizer.json, read as plain JSON.

Only what gives our ids is accepted. The merges are not read: they follow from the
ranks, which are held against cl100k_base's digest.
"""

import base64
import itertools
import json
import logging
from pathlib import Path
from typing import Any, NoReturn

import pydantic

from slm2_minimal.config import DataError
from slm2_minimal.files import read_json
from slm2_minimal.text.arcade import ARCADE_PATTERN, ARCADE_SPECIAL, UNUSED_ID, Arcade100k
from slm2_minimal.text.merges import from_chars

logger = logging.getLogger(__name__)

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
# The pattern's matches are the pieces, which is said in either of two ways; what is
# trimmed of offsets does not change the ids.
_CUTS = (("Isolated", False), ("Removed", True))
PRE_TOKENIZERS = [
    {
        "type": "Sequence",
        "pretokenizers": [
            {
                "type": "Split",
                "pattern": {"Regex": ARCADE_PATTERN},
                "behavior": behavior,
                "invert": invert,
            },
            {**BYTE_LEVEL, "trim_offsets": trim_offsets},
        ],
    }
    for (behavior, invert), trim_offsets in itertools.product(_CUTS, (False, True))
]


@pydantic.dataclasses.dataclass
class AddedToken:
    """A token that is found in the text before it is cut."""

    id: int
    content: str


@pydantic.dataclasses.dataclass
class Model:
    """The vocabulary, and what may change how it is applied."""

    type: str
    vocab: dict[str, int]
    dropout: float | None = None
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None
    byte_fallback: bool = False


@pydantic.dataclasses.dataclass
class TokenizerJson:
    """What of a tokenizer.json decides the ids of a text."""

    model: Model
    added_tokens: list[AddedToken]
    pre_tokenizer: dict[str, Any] | None = None
    normalizer: dict[str, Any] | None = None
    post_processor: dict[str, Any] | None = None


def read_arcade(path: Path, name: str) -> Arcade100k:
    """The tokenizer of a tokenizer.json, which messages call `name`.

    Raises:
        DataError: it cannot be read, or gives other ids than Arcade100k.
    """
    try:
        content = pydantic.TypeAdapter(TokenizerJson).validate_python(read_json(path))
    except OSError as error:
        reason = f"{error.strerror}; give a file that can be read"
        raise DataError(f"tokenizer = {name!r}: {reason}") from None
    except pydantic.ValidationError as error:
        field = ".".join(map(str, error.errors()[0]["loc"]))
        _refuse(name, field or "its content", "is not what a tokenizer.json has there")
    except ValueError:
        _refuse(name, "its content", "is not valid JSON")

    _check_pipeline(content, name)
    _check_special(content, name)
    return _from_vocabulary(content.model.vocab, name)


def _check_pipeline(content: TokenizerJson, name: str) -> None:
    """That text is normalised, cut and merged as ours, and nothing put around it."""
    model, post = content.model, content.post_processor
    affixes = model.continuing_subword_prefix or model.end_of_word_suffix
    if model.type != "BPE" or affixes or model.byte_fallback or model.dropout:
        _refuse(name, f"model, a {model.type},", "is not plain byte-level BPE")
    if content.normalizer is None:
        logger.warning("tokenizer = %r: its file leaves text as it is; here it is put in NFC", name)
    elif content.normalizer != {"type": "NFC"}:
        _refuse(name, "normalizer", "is not NFC")
    if _canonical(content.pre_tokenizer) not in map(_canonical, PRE_TOKENIZERS):
        _refuse(name, "pre_tokenizer", "does not cut text by Arcade100k's pattern")
    if post is not None and post.get("type") != "ByteLevel":
        _refuse(name, "post_processor", "may add tokens to a text")


def _canonical(pre_tokenizer: Any) -> str:
    """One text for equal ones. Some files have the newline itself in the pattern where
    ours has a backslash and n, and the carriage return too.
    """
    text = json.dumps(pre_tokenizer, sort_keys=True)
    return text.replace(r"\\r", r"\r").replace(r"\\n", r"\n")


def _check_special(content: TokenizerJson, name: str) -> None:
    """That the special tokens are ours; the unused id may have any name."""
    added = {token.content: token.id for token in content.added_tokens}
    for token, token_id in sorted(ARCADE_SPECIAL.items() | added.items()):
        if added.get(token) != ARCADE_SPECIAL.get(token) and token_id != UNUSED_ID:
            _refuse(
                name,
                "added_tokens",
                f"{token!r} has id {added.get(token)}, Arcade100k's {ARCADE_SPECIAL.get(token)}",
            )


def _from_vocabulary(vocab: dict[str, int], name: str) -> Arcade100k:
    """Arcade100k from the part of a vocabulary that merges make."""
    try:
        ranks = {
            from_chars(token): token_id
            for token, token_id in sorted(vocab.items(), key=lambda item: item[1])
            if token_id < UNUSED_ID
        }
        lines = [base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()]
        return Arcade100k.from_ranks_file(b"".join(lines), name)
    except (KeyError, DataError):
        _refuse(name, "model.vocab", "holds other tokens than cl100k_base")


def _refuse(name: str, field: str, reason: str) -> NoReturn:
    raise DataError(
        f"tokenizer = {name!r}: {field} of tokenizer.json {reason}; of such files only"
        " Arcade100k's is read, name another tokenizer"
    )
