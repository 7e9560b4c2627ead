"""Conversations of every known layout, and those that cannot be used."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from slm2_minimal.text.conversations import messages_in, messages_of, said
from slm2_minimal.text.corpus import stream_corpus
from slm2_minimal.text.documents import is_hub_id
from tests.complaints import data_error

ASKED = {"role": "user", "content": "Why?"}
ANSWERED = {"role": "assistant", "content": "It \ud83e\udd89 rains."}
SYSTEM = {"role": "system", "content": "Be kind."}
TALK = [SYSTEM, ASKED, ANSWERED]


def shared_gpt(*messages: dict[str, str]) -> list[dict[str, str]]:
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    return [{"from": names[m["role"]], "value": m["content"]} for m in messages]


LAYOUTS: dict[str, tuple[dict[str, Any], list[dict[str, str]]]] = {
    "ultrachat": ({"prompt": "Why?", "messages": TALK}, TALK),
    "WizardLM": ({"idx": "x", "conversations": shared_gpt(ASKED, ANSWERED)}, TALK[1:]),
    "SlimOrca": ({"conversations": [m | {"weight": 0.5} for m in shared_gpt(*TALK)]}, TALK),
    "openchat": ({"id": "x", "items": shared_gpt(ASKED, ANSWERED)}, TALK[1:]),
    "Capybara": (
        {"conversation": [{"input": "Why?", "output": ANSWERED["content"]}] * 2, "source": "x"},
        TALK[1:] * 2,
    ),
    "deita": ({"conversations": shared_gpt(ASKED, ANSWERED), "id": "x"}, TALK[1:]),
    "MetaMathQA": ({"query": "Why?", "response": ANSWERED["content"], "type": "x"}, TALK[1:]),
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_layouts(name: str, kind: str, tmp_path: Path) -> None:
    record, expected = LAYOUTS[name]
    assert messages_in(record) == expected
    path = tmp_path / f"file.{kind}"
    if kind == "jsonl":
        path.write_text(json.dumps(record))
    else:
        whole = json.loads(json.dumps(record).replace("\\ud83e\\udd89", "owl"))
        expected = json.loads(json.dumps(expected).replace("\\ud83e\\udd89", "owl"))
        pq.write_table(pa.Table.from_pylist([whole]), path)
    [document] = stream_corpus(path, chat=True)
    as_text = json.dumps(expected).encode("utf-16", "surrogatepass").decode("utf-16")
    assert messages_of(document.text) == json.loads(as_text)
    assert document.id == ("x" if "id" in record else f"file-{int(kind == 'jsonl')}")


def test_another_split_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(path: str, name: str | None, **options: Any) -> list[dict[str, Any]]:
        asked.append((path, name, options["split"]))
        return [{"messages": TALK}]

    asked: list[Any] = []
    monkeypatch.setattr(datasets, "load_dataset", load)
    for path in ("owner/set@train_sft", "owner/set:plus.de@test", "owner/set"):
        assert is_hub_id(path)
        assert [said(d.text) for d in stream_corpus(path, chat=True)] != []
    assert asked == [
        ("owner/set", None, "train_sft"),
        ("owner/set", "plus.de", "test"),
        ("owner/set", None, "train"),
    ]


FAULTS: list[tuple[str, Any]] = [
    ("no conversation", {"text": "Why?"}),
    ("no conversation", {"messages": []}),
    ("no conversation", {"messages": ["Why?", None]}),
    ("no conversation", ["Why?"]),
    ("unknown role", {"messages": [ASKED, {"role": "tool", "content": "5"}, ANSWERED]}),
    ("unknown role", {"messages": [{"role": None, "content": "5"}, ANSWERED]}),
    ("empty turn", {"conversations": shared_gpt({**ASKED, "content": " \n"}, ANSWERED)}),
    ("empty turn", {"query": "Why?", "response": None}),
    ("no answer", {"messages": [SYSTEM, ASKED]}),
]


def test_what_cannot_be_used_is_counted(tmp_path: Path) -> None:
    path, skipped = tmp_path / "a.jsonl", Counter[str]()
    records = [record for _, record in FAULTS]
    path.write_text("\n".join(map(json.dumps, [*records, {"messages": TALK[1:2] + TALK[2:]}])))
    (tmp_path / "b.txt").write_text("No conversation.")
    documents = list(stream_corpus(tmp_path, chat=True, skipped=skipped))
    assert [document.id for document in documents] == ["a-10"]
    assert skipped == Counter(fault for fault, _ in FAULTS) + Counter(["no conversation"])


@pytest.mark.parametrize(("fault", "record"), FAULTS)
def test_what_cannot_be_used_is_refused_where_nobody_counts(
    fault: str, record: Any, tmp_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(record))
    message = data_error(lambda: list(stream_corpus(path, chat=True)))
    assert message.startswith(f"{path}:1: {fault}; mend or leave out this record")


def test_narrowing_the_instructions() -> None:
    chosen = list(stream_corpus(chat=True, languages=["pt"], domains=["animals"]))
    assert {(document.language, document.domain) for document in chosen} == {("pt", "animals")}
    assert {d.domain for d in stream_corpus(chat=True)}.isdisjoint({"music", "sea"})
