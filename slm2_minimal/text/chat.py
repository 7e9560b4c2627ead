"""Conversations as ids: the formats of the report's chat models, and which ids are
learned.

- zephyr, of stablelm-2-zephyr-1_6b: a role marker as ordinary text, a newline, the text
  and the end of text. A user can write such a marker, and open a turn with it.
- chatml, of stablelm-2-1_6b-chat: special ids around each turn, which no text can
  write.
- plain: lines as "User: ..." for models that were never tuned for any format.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

from slm2_minimal.config import DataError
from slm2_minimal.files import read_json
from slm2_minimal.text.documents import nfc
from slm2_minimal.text.interface import Tokenizer

Message: TypeAlias = Mapping[str, str]  # {"role": ..., "content": ...}
Format: TypeAlias = Literal["zephyr", "chatml", "plain"]
Part: TypeAlias = str | int  # text, or a special id

ROLES = ("system", "user", "assistant")
IM_START, IM_END = "<|im_start|>", "<|im_end|>"

# What transformers' `apply_chat_template` takes. The first two are the published ones.
TEMPLATES: dict[Format, str] = {
    "zephyr": (
        "{% for message in messages %}\n"
        "{% if message['role'] == 'user' %}\n"
        "{{ '<|user|>\n' + message['content'] + eos_token }}\n"
        "{% elif message['role'] == 'system' %}\n"
        "{{ '<|system|>\n' + message['content'] + eos_token }}\n"
        "{% elif message['role'] == 'assistant' %}\n"
        "{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n"
        "{% endif %}\n"
        "{% if loop.last and add_generation_prompt %}\n"
        "{{ '<|assistant|>' }}\n"
        "{% endif %}\n"
        "{% endfor %}"
    ),
    "chatml": (
        "{% for message in messages %}"
        r"{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
        "{% endfor %}"
        r"{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "plain": (
        "{% for message in messages %}"
        r"{{ message['role'] | capitalize + ': ' + message['content'] + '\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
    ),
}
FORMATS: tuple[Format, ...] = tuple(TEMPLATES)
# What ends an answer beside the ids of `stop_ids`.
STOP_STRINGS: dict[Format, tuple[str, ...]] = {"zephyr": (), "chatml": (), "plain": ("\nUser:",)}


def render(
    messages: Sequence[Message],
    format: Format = "zephyr",
    *,
    tokenizer: Tokenizer,
    generation_prompt: bool = False,
) -> tuple[list[int], list[bool]]:
    """The ids of a conversation, and which of them are learned: the assistant's text
    and its end, nothing else. Two lists of equal length.

    The ids are those of transformers' `apply_chat_template`, except that a special
    token's name in a message stays plain text here. With `generation_prompt` they end
    where the assistant's next text begins.

    Raises:
        DataError: a message that is none, an unknown role, an empty text, or a format
        that the tokenizer has no ids for.
    """
    check_format(format, tokenizer)
    check_messages(messages)
    parts: list[tuple[Part, bool]] = []
    for message in messages:
        role, learned = message["role"], message["role"] == "assistant"
        end, *rest = _closing(format, tokenizer)
        parts += [(part, False) for part in _opening(format, role, tokenizer)]
        parts += [(_text(format, message["content"]), learned), (end, learned)]
        parts += [(part, False) for part in rest]
    if generation_prompt:
        parts += [(part, False) for part in _opening(format, "assistant", tokenizer)]
    return _encode(parts, tokenizer)


def check_format(format: str, tokenizer: Tokenizer, field: str = "format") -> None:
    """Raise DataError, which calls it `field`, for a format that is unknown, or that
    has no ids here.
    """
    if format not in FORMATS:
        raise DataError(f"{field} = {format!r}: unknown; one of {', '.join(FORMATS)}")
    if format == "chatml" and not {IM_START, IM_END} <= tokenizer.special_tokens.keys():
        raise DataError(
            f"{field} = 'chatml': the tokenizer {tokenizer.name!r} has no ids for {IM_START} and"
            f" {IM_END}; use zephyr or plain"
        )


def check_messages(messages: Sequence[Message]) -> None:
    """Raise DataError where they are no conversation."""
    if not messages:
        raise DataError("messages = []: an empty conversation; give at least one message")
    for number, message in enumerate(messages):
        name = f"messages[{number}]"
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise DataError(f"{name} = {message!r}: must have the keys role and content")
        role, content = message["role"], message["content"]
        if role not in ROLES:
            raise DataError(f"{name}.role = {role!r}: unknown; one of {', '.join(ROLES)}")
        if not isinstance(content, str) or not content.strip():
            raise DataError(f"{name}.content = {content!r}: an empty turn; give text, or drop it")


def stop_ids(format: Format, tokenizer: Tokenizer) -> set[int]:
    """The ids that end an answer."""
    closing = _closing(format, tokenizer)
    return {tokenizer.eos_token_id, *(part for part in closing if isinstance(part, int))}


def drop_oldest(
    messages: Sequence[Message], room: int, format: Format, tokenizer: Tokenizer
) -> tuple[list[Message], int]:
    """The conversation without its oldest whole turns, so that it and the beginning of
    an answer take at most `room` ids, and how many turns that dropped.

    A turn is a user's message and all up to the next one's. A system message before the
    first stays.

    Raises:
        DataError: the last turn alone takes more.
    """
    begins = [i for i, message in enumerate(messages) if message["role"] == "user"]
    system = list(messages[: begins[0]]) if begins else []
    for dropped, begin in enumerate(begins or [0]):
        kept = system + list(messages[begin:])
        ids, _ = render(kept, format, tokenizer=tokenizer, generation_prompt=True)
        if len(ids) <= room:
            return kept, dropped
    raise DataError(
        f"message = {len(ids)} tokens: more than the {room} there is room for; shorten it"
    )


def format_of(folder: Path) -> Format | None:
    """Which format a Hugging Face folder's chat template is; None for no template.

    Raises:
        DataError: a template that is none of ours and none of the published ones.
    """
    path = folder / "chat_template.jinja"  # the newer of two places
    if not path.is_file():
        path = folder / "tokenizer_config.json"
    if not path.is_file():
        return None

    # the template, if it has one
    try:
        if path.suffix == ".jinja":
            template: object = path.read_text(encoding="utf-8")
        else:
            content = read_json(path)
            template = content.get("chat_template") if isinstance(content, dict) else None
    except (OSError, ValueError) as error:
        raise DataError(
            f"chat_template = {str(path)!r}: cannot be read ({error}); give --format"
        ) from None
    if template is None:
        return None

    # ours, whatever its white space
    for format, ours in TEMPLATES.items():
        if _spelling(template) == _spelling(ours):
            return format
    raise DataError(
        f"chat_template = {str(path)!r}: its template is none of {', '.join(FORMATS)}; say by"
        " --format which of them the model was tuned for"
    )


def _spelling(template: object) -> str:
    """A template without what means nothing in it: blanks inside of a tag's braces, and
    whether a newline in a string is written as an escape.
    """
    text = str(template).strip().replace("\\n", "\n")
    for brace in ("{{", "}}", "{%", "%}"):
        text = text.replace(f"{brace} ", brace).replace(f" {brace}", brace)
    return text.replace("<|im_end|>\n", "<|im_end|>' + '\n").replace('"', "'")


def _opening(format: Format, role: str, tokenizer: Tokenizer) -> list[Part]:
    """What stands before a message's text."""
    if format == "zephyr":
        return [f"<|{role}|>\n"]
    if format == "chatml":
        return [tokenizer.special_tokens[IM_START], f"{role}\n"]
    return [f"{role.capitalize()}:"]


def _closing(format: Format, tokenizer: Tokenizer) -> list[Part]:
    """What stands behind a message's text; the first of it ends an answer."""
    if format == "zephyr":
        return [tokenizer.eos_token_id, "\n"]
    if format == "chatml":
        return [tokenizer.special_tokens[IM_END], "\n"]
    return ["\n"]


def _text(format: Format, content: str) -> str:
    return f" {nfc(content)}" if format == "plain" else nfc(content)


def _encode(
    parts: Sequence[tuple[Part, bool]], tokenizer: Tokenizer
) -> tuple[list[int], list[bool]]:
    """The ids of all parts. Text between two special ids is encoded as one; an id of it
    is learned where it begins in a part that is.
    """
    ids: list[int] = []
    learned: list[bool] = []
    text, marks = "", bytearray()  # one mark for each byte of the text
    for part, mark in [*parts, (None, False)]:
        if isinstance(part, str):
            text += part
            marks += bytes([mark]) * len(part.encode())
            continue

        # the text so far, each id by the mark of its first byte
        place = 0
        for token_id in tokenizer.encode(text):
            ids.append(token_id)
            learned.append(bool(marks[place]))
            place += len(tokenizer.token_bytes(token_id))
        text, marks = "", bytearray()

        # then the special id that ended it
        if part is not None:
            ids.append(part)
            learned.append(mark)
    return ids, learned
