"""Readers of conversations, whatever a data set calls its columns.

Through reading, cleaning and the search for duplicates a conversation goes as the text
of a `Document`: its messages as JSON. `messages_of` gives them back, and
`text.chat.render` makes ids of them.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm2_minimal.text.chat import ROLES, Message
from slm2_minimal.text.documents import Document, DocumentReader

# Columns with a list of turns: of ultrachat; of WizardLM, SlimOrca and deita; of
# Capybara; of openchat's files. A record without one is a turn itself, as MetaMathQA's.
LISTS = ("messages", "conversations", "conversation", "items")
ONE_MESSAGE = (("role", "content"), ("from", "value"))  # keys of a turn: who, and what
TWO_MESSAGES = (("input", "output"), ("query", "response"))  # what a user and we say
OTHER_NAMES = {"human": "user", "gpt": "assistant"}

# What comes with the package: the topics that only tests may see are not trained on.
INSTRUCTIONS = Path(__file__).parent / "corpus" / "instructions.jsonl"
HELD_OUT_TOPICS = ("music", "sea")


@dataclass(frozen=True)
class ConversationReader(DocumentReader):
    """As `DocumentReader`. A conversation that cannot be used has no turns, an unknown
    role, an empty turn, or no answer.
    """

    @property
    def columns(self) -> tuple[str, ...]:
        return (*LISTS, *(key for keys in TWO_MESSAGES for key in keys))

    def _plain_text(self, path: Path, stem: str) -> Iterator[Document]:
        self._skip("no conversation", f"{path}: a text holds no conversation; give JSON Lines")
        yield from ()

    def _text(self, record: Mapping[str, Any], where: str) -> str | None:
        messages = messages_in(record)
        fault = fault_of(messages)
        if fault is None:
            return json.dumps(messages, ensure_ascii=False)
        remedy = "mend or leave out this record; a source of plain text has format = 'text'"
        self._skip(fault, f"{where}: {fault}; {remedy}")
        return None


def messages_in(record: Mapping[str, Any]) -> list[Message]:
    """The messages of a record in any of the known layouts; none where it has none."""
    lists = (record[name] for name in LISTS if isinstance(record.get(name), list))
    return [message for turn in next(lists, [record]) for message in _messages(turn)]


def _messages(turn: Any) -> Iterator[Message]:
    if not isinstance(turn, Mapping):
        return
    for who, what in ONE_MESSAGE:
        if {who, what} <= turn.keys():
            role = str(turn[who])
            yield {"role": OTHER_NAMES.get(role, role), "content": turn[what]}
    for asked, answered in TWO_MESSAGES:
        if {asked, answered} <= turn.keys():
            yield {"role": "user", "content": turn[asked]}
            yield {"role": "assistant", "content": turn[answered]}


def fault_of(messages: list[Message]) -> str | None:
    """Why a conversation cannot be trained on, if it cannot."""
    if not messages:
        return "no conversation"
    if not all(message["role"] in ROLES for message in messages):
        return "unknown role"
    texts = [message["content"] for message in messages]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        return "empty turn"
    if not any(message["role"] == "assistant" for message in messages):
        return "no answer"
    return None


def messages_of(text: str) -> list[Message]:
    """The messages of a `Document`'s text."""
    messages: list[Message] = json.loads(text)
    return messages


def said(text: str) -> str:
    """What is said in a `Document`'s conversation: all contents, without the roles."""
    return "\n\n".join(message["content"] for message in messages_of(text))


def embedded_instructions() -> Iterator[Document]:
    """The instructions that come with the package, a topic as the domain, without those
    held out for testing.
    """
    for line in INSTRUCTIONS.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record["topic"] not in HELD_OUT_TOPICS:
            text = json.dumps(record["messages"], ensure_ascii=False)
            yield Document(record["id"], record["language"], record["topic"], "", text)
