"""Bad input to `slm2 prepare`: one line, and what was written stays."""

import gzip
import shutil
from pathlib import Path
from typing import Any

import pytest

from slm2_minimal.config import ConfigError, DataError
from slm2_minimal.prepare import run as module
from slm2_minimal.prepare.run import prepare
from tests.prepare.preparing import Make, contents, english, lines


def test_a_truncated_gzip_is_an_error_until_it_is_mended(config: Make, tmp_path: Path) -> None:
    prepare(config("whole"))
    path = tmp_path / "web" / "a.jsonl.gz"
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2] + bytes(len(good) - len(good) // 2))
    with pytest.raises(
        DataError, match=r"a\.jsonl\.gz: cannot be read after line \d+ .*; check or copy it again$"
    ):
        prepare(config("broken"))
    path.write_bytes(good)
    prepare(config("broken"))
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


def test_a_gzip_that_is_damaged_at_its_end_leaves_no_text_behind(
    config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its check sum comes last, when units have been written already."""
    prepare(config("whole"))
    path = tmp_path / "web" / "a.jsonl.gz"
    good = path.read_bytes()
    damaged = gzip.compress(gzip.decompress(good).replace(b"the", b"teh"), mtime=0)
    path.write_bytes(damaged[:-8] + bytes(8))
    monkeypatch.setattr("slm2_minimal.prepare.units.MEGABYTE", 2_000)
    with pytest.raises(DataError, match=r"a\.jsonl\.gz: cannot be read after line 25 "):
        prepare(config("broken"))
    assert list((tmp_path / "broken" / "work" / "text").glob("web-*.json")) == []
    path.write_bytes(damaged)  # mended, and of the same size
    settings = tmp_path / "broken" / "settings.json"
    assert str(len(damaged)) in settings.read_text(), "of the same size"
    prepare(config("broken"))
    monkeypatch.undo()
    monkeypatch.setattr("slm2_minimal.prepare.units.MEGABYTE", 2_000)
    prepare(config("mended"))
    assert contents(tmp_path / "broken") == contents(tmp_path / "mended")


def test_a_file_that_changes_between_two_calls(
    config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiz = tmp_path / "quiz.jsonl"
    quiz.write_bytes(lines([{"text": english(50)[45].text}]))

    def stop(*arguments: Any) -> None:
        raise DataError("stopped here")

    for changed in (tmp_path / "web" / "b.jsonl", quiz):
        run = config(changed.stem, **{"prepare.benchmarks": {"quiz": str(quiz)}})
        with monkeypatch.context() as patch:
            patch.setattr(module, "mark_duplicates", stop)
            with pytest.raises(DataError, match="stopped here"):
                prepare(run)
        changed.write_bytes(changed.read_bytes().replace(b"the", b"tex"))
        with pytest.raises(DataError, match=r"changed since .* was written; remove the fol"):
            prepare(run)
        shutil.rmtree(tmp_path / changed.stem / "work")
        assert prepare(run).sources["web"].read == 40


@pytest.mark.parametrize(
    ("content", "changes", "message"),
    [
        (b"", {}, r"^data\.sources\.x: has no document to train on \(it is empty\); check"),
        (
            b'{"body": "a text of some length"}\n',
            {},
            r"x: has no document to train on \(1 no text\)",
        ),
        (b'{"text": "short"}\n' * 3, {}, r"x: has no document to train on \(3 too short\)"),
        (
            lines([{"id": "d0", "text": english(50)[49].text}]),
            {"data.sources": {"x": {"path": "x.jsonl"}}, "data.validation_percent": 99},
            r"^data\.sources: no text is left to train on \(x: .*held_out=1,",
        ),
    ],
)
def test_nothing_is_published_where_nothing_is_left(
    config: Make,
    tmp_path: Path,
    content: bytes,
    changes: dict[str, Any],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.jsonl").write_bytes(content)
    sources = {"web": {"path": "web"}, "x": {"path": "x.jsonl"}}
    run = config(**{"data.sources": sources} | changes)
    for _ in range(2):
        # the reader's own words where no record of a source has the field
        with pytest.raises(DataError, match=f"{message}|no record has a field 'text' that"):
            prepare(run)
        assert not (tmp_path / "out" / "manifest.json").exists()


def test_only_what_we_made_is_removed(
    config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = "settings.json.17.part", "web-000000.tokens.npy.3.part", "held_out.000.starts.npy.9.part"
    theirs = "movie.part", "thesis.3.part", "work/notes.txt", "logs/mine.txt"
    prepare(config())
    (tmp_path / "out" / "manifest.json").unlink()
    for name in (*ours, *theirs):
        path = tmp_path / "out" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    for _ in range(2):
        prepare(config())
        left = contents(tmp_path / "out")
        assert {name: left.get(name) for name in theirs} == {n: n.encode() for n in theirs}
        assert not left.keys() & set(ours)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "movie.part").write_text("half a film")
    with pytest.raises(DataError, match=r"holds files that slm2 prepare did not write"):
        prepare(config("new"))
    assert contents(tmp_path / "new") == {"movie.part": b"half a film"}


def test_benchmarks_are_looked_at_before_the_sources(config: Make, tmp_path: Path) -> None:
    (tmp_path / "quiz.jsonl").write_bytes(lines([{"question": "nobody asks"}]))
    with pytest.raises(DataError, match=r"quiz\.jsonl"):
        prepare(config(**{"prepare.benchmarks": {"quiz": str(tmp_path / "quiz.jsonl")}}))
    assert not (tmp_path / "out" / "work" / "text").exists()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"data.prepared": None}, ConfigError, r"^data\.prepared = None: name the folder to write"),
        ({"data.sources": {}}, ConfigError, r"^data\.sources = \{\}: nothing to read"),
        (
            {"data.sources": {"a/b": {}}},
            ConfigError,
            r"^data\.sources\.a/b: becomes the name of files",
        ),
        (
            {"data.sources": {"web": {"path": "nowhere.jsonl"}}},
            DataError,
            r"^path = 'nowhere\.jsonl': no such file or folder",
        ),
        (
            {"data.prepared": "{web}/out"},
            ConfigError,
            r"^data\.prepared = '.*web/out': lies inside .*web, which would then be read with it",
        ),
        (
            {"prepare.benchmarks": {"quiz": "nowhere.jsonl"}},
            DataError,
            r"^path = 'nowhere\.jsonl': no such file or folder",
        ),
    ],
)
def test_wrong_settings(
    config: Make, tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    if changes.get("data.prepared"):
        changes = {"data.prepared": changes["data.prepared"].format(web=tmp_path / "web")}
    with pytest.raises(error, match=message):
        prepare(config(**changes))


def test_a_source_that_was_missing_may_come(config: Make, tmp_path: Path) -> None:
    path = tmp_path / "web" / "b.jsonl"
    changes = {
        "data.sources": {
            "late": {"path": str(tmp_path / "late.jsonl")},
            "de": {"languages": ["de"], "domains": ["recipes"]},
        }
    }
    with pytest.raises(DataError, match=r"late\.jsonl': no such file or folder"):
        prepare(config("late", **changes))
    (tmp_path / "late.jsonl").write_bytes(path.read_bytes())
    assert prepare(config("late", **changes)).sources["late"].read == 15


def test_a_folder_holds_one_preparation_only(config: Make, tmp_path: Path) -> None:
    prepare(config())
    before = contents(tmp_path / "out")
    with pytest.raises(
        DataError,
        match=(
            r"was begun with other 'prepare' \(similarity: 0\.8, now 0\.7\); use those, or name"
            r" another folder$"
        ),
    ):
        prepare(config(**{"prepare.similarity": 0.7}))
    (tmp_path / "web" / "b.jsonl").write_bytes(lines([{"text": english(50)[45].text}]))
    with pytest.raises(DataError, match=r"was begun with other 'inputs' \(web: "):
        prepare(config())
    assert contents(tmp_path / "out") == before
    (tmp_path / "quiz.jsonl").write_bytes(lines([{"text": "one"}]))
    quiz = {"prepare.benchmarks": {"quiz": str(tmp_path / "quiz.jsonl")}}
    prepare(config("quizzed", **quiz))
    (tmp_path / "quiz.jsonl").write_bytes(lines([{"text": "another"}]))
    with pytest.raises(DataError, match=r"was begun with other 'inputs' \(benchmark quiz: "):
        prepare(config("quizzed", **quiz))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(
        DataError,
        match=r"holds files that slm2 prepare did not write; name an empty or new folder$",
    ):
        prepare(config("mine"))
    assert contents(tmp_path / "mine") == {"thesis.txt": b"years of work"}
