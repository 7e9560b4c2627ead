"""Conversations prepared: what is written is what training would have made itself, and
what could not be used is counted.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from slm2_minimal.config import RunConfig
from slm2_minimal.data.loader import Batch
from slm2_minimal.data.packing import Stream, TokenStream
from slm2_minimal.data.training_data import open_training_data
from slm2_minimal.prepare.run import prepare
from slm2_minimal.text.conversations import embedded_instructions, messages_of
from slm2_minimal.text.sentence_piece import SentencePieceTokenizer
from tests.complaints import config_error, data_error
from tests.prepare.preparing import contents

LENGTH = 128
TALKS = [(d.id, d.language, messages_of(d.text)) for d in embedded_instructions()][:60]


def record(number: int) -> dict[str, Any]:
    name, language, messages = TALKS[number]
    return {"id": name, "language": language, "messages": messages}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Conversations, one twice, one that is too long, and some that are none."""
    says = [{"role": role, "content": f"{role} " * 9} for role in ("user", "assistant") * 6]
    long = [{"role": "user", "content": "word " * 300}, {"role": "assistant", "content": "Yes."}]
    records = [record(number) for number in range(len(TALKS))]
    records += [record(3) | {"id": "again"}, {"id": "says", "messages": says}, {"messages": long}]
    records += [{"text": "Why?"}, {"messages": [{"role": "user", "content": "Why?"}]}]
    path = tmp_path / "talks.jsonl"
    path.write_text("\n".join(json.dumps(r) for r in records))
    return path


@pytest.fixture
def make(tmp_path: Path, source: Path) -> Any:
    def make(out: str = "out", **changes: Any) -> RunConfig:
        base = {
            "data.sources": {"talks": {"path": str(source), "format": "chat"}, "own": CHAT},
            "data.prepared": str(tmp_path / out),
            "data.seq_len": LENGTH,
            "prepare.workers": 1,
        }
        return RunConfig.load("tiny", base | changes)

    return make


CHAT = {"format": "chat", "languages": ["de", "fr"], "domains": ["animals", "food"]}


def report(config: RunConfig) -> Any:
    return json.loads((Path(config.data.prepared or "") / "report.json").read_text())


def sequences(stream: Stream) -> list[list[list[int]]]:
    count = stream.num_sequences(LENGTH)
    return [[a.tolist() for a in stream.sequence(i, LENGTH)] for i in range(count)]


def test_prepared_is_on_the_spot(make: Any, tiny: SentencePieceTokenizer) -> None:
    """The same sequences, held-out text and counts, to the byte."""
    run = make(**{"prepare.duplicates": "keep"})
    prepare(run)
    ours = open_training_data(run.data, tiny)
    theirs = open_training_data(run.data.replace(prepared=None), tiny)
    for a, b in zip(ours.loader.streams, theirs.loader.streams, strict=True):
        assert sequences(a) == sequences(b)
    assert ours.held_out.keys() == theirs.held_out.keys()
    for language, stream in theirs.held_out.items():
        assert isinstance(stream, TokenStream)
        assert ours.held_out[language].digest() == stream.digest()
        assert ours.token_counts[language].tolist() == theirs.token_counts[language].tolist()
    a, b = (Batch.stack([d.loader.streams[0].sequence(0, LENGTH)]) for d in (ours, theirs))
    assert a.valid_tokens == b.valid_tokens > 0


def test_what_is_counted(make: Any, tiny: SentencePieceTokenizer) -> None:
    run = make()
    lines = [line for line in _said(lambda: prepare(run)) if "talks" in line]
    talks = report(run)["sources"]["talks"]
    assert talks["read"] == len(TALKS) + 5
    assert talks["skipped"] == {"no conversation": 1, "no answer": 1}
    assert talks["duplicates"] == 1
    assert talks["documents"] + talks["held_out"] == len(TALKS) + 1
    told = talks["conversations"]
    assert (told["shortened"], told["left out"]) == (1, 1)
    assert told["tokens"] == talks["tokens"]
    data = open_training_data(run.data, tiny)
    [stream, _] = data.loader.streams
    batch = Batch.stack([stream.sequence(i, LENGTH) for i in range(stream.num_sequences(LENGTH))])
    assert told["learned"] == batch.valid_tokens
    assert 0 < told["padding"] < 0.2 * told["tokens"]
    assert any("1 no answer, 1 no conversation" in line for line in lines)
    assert any(line.startswith("conversations of talks: of the tokens") for line in lines)

    # the counts of ids are of what is learned
    counts = load_file(Path(run.data.prepared or "") / "token_counts.safetensors")
    every = sum(row["conversations"]["learned"] for row in report(run)["sources"].values())
    assert sum(int(each.sum()) for each in counts.values()) == every


def _said(call: Any) -> list[str]:
    from tests.prepare.preparing import listening

    said: list[str] = []
    with listening(said.append):
        call()
    return said


def test_units_change_how_it_is_cut_and_not_what_is_kept(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(make("one"))
    prepare(make("two", **{"prepare.workers": 2}))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    monkeypatch.setattr("slm2_minimal.prepare.units.MEGABYTE", 3_000)
    cut = make("cut", **{"prepare.shard_megabytes": 1})
    prepare(cut)
    assert len(list(Path(cut.data.prepared or "").glob("talks-*.tokens.npy"))) > 2
    for name in ("documents", "held_out", "skipped"):
        assert (
            report(cut)["sources"]["talks"][name] == report(make("one"))["sources"]["talks"][name]
        )


def test_what_is_said_is_held_against_evaluation_sets(make: Any, tmp_path: Path) -> None:
    """The words of a turn, not the names of the roles around them."""
    quiz = tmp_path / "quiz.jsonl"
    quiz.write_text(json.dumps({"text": TALKS[5][2][3]["content"]}))
    run = make(**{"prepare.benchmarks": {"quiz": str(quiz)}, "prepare.ngram_words": 4})
    prepare(run)
    assert report(run)["sources"]["talks"]["contaminated"]["dropped"] >= 1
    quiz.write_text(json.dumps({"text": "role user content role assistant content role"}))
    run = make("b", **{"prepare.benchmarks": {"quiz": str(quiz)}, "prepare.ngram_words": 2})
    prepare(run)
    assert report(run)["sources"]["talks"]["contaminated"]["dropped"] == 0


def test_the_length_and_the_format_are_those_of_the_folder(
    make: Any, tiny: SentencePieceTokenizer
) -> None:
    prepare(make())
    for change in ({"data.seq_len": 64}, {"data.chat": "plain"}):
        message = data_error(lambda c=change: open_training_data(make(**c).data, tiny))
        assert message.startswith("data.sources.talks = {")
        assert message.endswith("prepare another folder")
        assert str(next(iter(change.values()))) in message
    message = data_error(lambda: prepare(make(**{"data.seq_len": 64})))
    assert "sources.talks.chat.seq_len: 128, now 64" in message


def test_refused_before_any_work(make: Any, tmp_path: Path) -> None:
    message = data_error(lambda: prepare(make(**{"data.chat": "chatml"})))
    assert message.startswith("data.chat = 'chatml': the tokenizer 'tiny' has no ids")
    assert not (tmp_path / "out").exists()
    message = config_error(lambda: make(**{"prepare.contaminated": "cut"}))
    assert message.startswith("prepare.contaminated = 'cut'")
