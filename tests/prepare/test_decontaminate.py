"""Decontamination: a slow search with sets of word tuples finds the same, plants are
found at every place, and nothing else is.
"""

import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from slm2_minimal.prepare.decontaminate import Benchmark, BenchmarkIndex, Contamination, Hit, clean
from slm2_minimal.prepare.publish import ContaminationReport
from tests.complaints import config_error, data_error
from tests.prepare.slow_decontamination import (
    QUESTION,
    SAME_WORDS,
    Span,
    plain_cut,
    plain_hits,
    plain_ngrams,
    plain_words,
    run,
)

FILLER = [f"filler{i}" for i in range(30)]

# Words and separators of a tiny alphabet, so that long runs repeat by chance: cases,
# composed and decomposed, one ideograph.
loose = st.lists(
    st.sampled_from(["a", "b", "A", "B", "e\u0301", "É", "京", " ", " ", ", ", "\n", "_", "."]),
    max_size=24,
).map("".join)
some_benchmarks = st.lists(st.lists(loose, min_size=1, max_size=3), min_size=1, max_size=3)


def spans(hits: list[Hit]) -> list[Span]:
    return [(hit.begin, hit.end, hit.benchmarks, len(set(hit.ngrams))) for hit in hits]


@pytest.fixture(scope="module")
def index() -> BenchmarkIndex:
    return BenchmarkIndex.build({"rivers": [QUESTION]})


@given(benchmarks=some_benchmarks, texts=st.lists(loose, max_size=5), n=st.integers(1, 4))
@example(benchmarks=[["a b"], ["A, b"]], texts=["x a.B y", "", "a", "b"], n=2)
@example(benchmarks=[["京京"]], texts=["京京京京 京", "a京京京京b"], n=2)
@settings(max_examples=400)
def test_hits_are_those_of_a_slow_search(
    benchmarks: list[list[str]], texts: list[str], n: int
) -> None:
    named = {f"set {b}": one for b, one in enumerate(benchmarks)}
    index = BenchmarkIndex.build(named, n)
    assert np.all(index.hashes[1:] > index.hashes[:-1])
    assert len(index.hashes) == len(
        {gram for one in benchmarks for text in one for gram, _, _ in plain_ngrams(text, n)}
    )
    short = [sum(len(plain_words(text)) < n for text in one) for one in benchmarks]
    assert index.benchmarks == tuple(
        Benchmark(name, len(named[name]), k) for name, k in zip(named, short, strict=True)
    )
    found = index.hits(texts)
    assert [spans(hits) for hits in found] == [plain_hits(text, named, n) for text in texts]
    assert found == [index.hits([text])[0] for text in texts]


@given(
    benchmarks=some_benchmarks,
    texts=st.lists(loose, max_size=5),
    n=st.integers(1, 4),
    window=st.integers(0, 4),
)
@example(
    benchmarks=[["a b"]],
    texts=["b a b a", "aaa a b bb", "xa b", "a\na b\nb", "京a b京 京"],
    n=2,
    window=1,
)
@settings(max_examples=400)
def test_cut_removes_what_it_says_and_leaves_no_hit(
    benchmarks: list[list[str]], texts: list[str], n: int, window: int
) -> None:
    named = {f"set {b}": one for b, one in enumerate(benchmarks)}
    index = BenchmarkIndex.build(named, n)
    left, report = run(texts, index, window=window, min_piece=1, max_pieces=100)
    for text, pieces in zip(texts, left, strict=True):
        found = plain_hits(text, named, n)
        assert pieces == (
            plain_cut(unicodedata.normalize("NFC", text), found, window) if found else [text]
        )
    assert not any(
        hit for hits in index.hits([piece for pieces in left for piece in pieces]) for hit in hits
    )
    assert report.documents == len(texts)
    assert report.characters == sum(map(len, texts))
    assert report.hit == sum(bool(plain_hits(text, named, n)) for text in texts)


def test_a_plant_is_found_at_every_word_of_a_document(index: BenchmarkIndex) -> None:
    assert len(plain_words(QUESTION)) == 13
    for plant in (QUESTION, SAME_WORDS):
        for at in range(len(FILLER) + 1):
            text = " ".join([*FILLER[:at], plant, *FILLER[at:]])
            words = plain_words(text)
            expected = [(words[at][1], words[at + 12][2], ("rivers",), 1)]
            # as the only, the last and the first document of a batch
            for batch in ([text], [*FILLER, text], [text, *FILLER]):
                found = index.hits(batch)
                assert [spans(hits) for hits in found] == [
                    expected if one is text else [] for one in batch
                ]


def test_one_word_less_is_no_hit(index: BenchmarkIndex) -> None:
    words = [word for word, _, _ in plain_words(QUESTION)]
    nearly = [
        words[1:],
        words[:-1],
        *([*words[:i], "other", *words[i:]] for i in range(1, 13)),
        [*words[:5], *words[6:]],
        words[::-1],
    ]
    for plant in nearly:
        for at in range(len(FILLER) + 1):
            assert index.hits([" ".join([*FILLER[:at], *plant, *FILLER[at:]])]) == [[]]
    assert index.hits([" ".join(words)]) != [[]]


def test_no_ngram_reaches_into_the_next_document(index: BenchmarkIndex) -> None:
    words = QUESTION.split()
    for at in range(1, len(words)):
        left, right = " ".join([*FILLER, *words[:at]]), " ".join([*words[at:], *FILLER])
        assert index.hits([left, right]) == [[], []]
        assert index.hits([left, "", right]) == [[], [], []]
        assert len(index.hits([f"{left} {right}"])[0]) == 1


def test_one_ngram_in_several_benchmarks_names_them_all() -> None:
    many = {
        f"set {b}": [QUESTION if b % 23 == 3 else f"{b} is another {QUESTION}"] for b in range(70)
    }
    many["none"] = ["x " * 20]
    index = BenchmarkIndex.build(many)
    # 67 sets of four n-grams, of which all share all but the first; sets 3, 26 and 49
    # of one of the shared; "none" of its own
    assert index.members.shape == (2, 67 + 3 + 1)
    ((hit,),) = index.hits([f"see {QUESTION} there"])
    assert hit.benchmarks == tuple(f"set {b}" for b in range(70))
    assert index.hits(["69 is another which"]) == [[]]
    ((hit,),) = index.hits([f"68 is another {' '.join(QUESTION.split()[:-3])}"])
    assert hit.benchmarks == ("set 68",)
    assert [index.of(b).sum() for b in (0, 49, 69, 70)] == [4, 1, 4, 1]


def test_evaluation_texts_shorter_than_n_words_are_counted() -> None:
    index = BenchmarkIndex.build(
        {"short": iter(["two words", "", QUESTION, " ".join(QUESTION.split()[1:])]), "empty": [""]}
    )
    assert index.benchmarks == (Benchmark("short", 4, 3), Benchmark("empty", 1, 1))
    _, report = run([QUESTION, "two words"], index)
    assert {
        name: (one.texts, one.too_short, one.ngrams)
        for name, one in ContaminationReport.of(report, index).benchmarks.items()
    } == {"short": (4, 3, 1), "empty": (1, 1, 0)}


def test_an_index_without_any_ngram_hits_nothing(tmp_path: Path) -> None:
    index = BenchmarkIndex.build({"short": ["two words"]})
    index.save(tmp_path / "index")
    for one in (index, BenchmarkIndex.load(tmp_path / "index")):
        assert one.hits(["two words", QUESTION, ""]) == [[], [], []]
        assert one.benchmarks == (Benchmark("short", 1, 1),)


@pytest.mark.parametrize(("before", "after"), [("", ""), ("ab ", ";;"), ("a. ", "; w")])
def test_cut_takes_200_characters_on_either_side_and_no_part_of_a_word(
    before: str, after: str, index: BenchmarkIndex
) -> None:
    """Words of four characters and a blank: 200 characters are 40 of them; shifted by
    some, the cut goes on to the word's edge.
    """
    word = "x\u03011d"  # a letter, a mark that stays by itself, a digit, a letter
    text = f"{word} " * 100 + before + QUESTION[:-1] + after + f" {word}" * 100
    left, report = run([text], index)
    assert left == [[f"{word} " * 60, f" {word}" * 60]]
    assert report.removed_characters == 400 + len(before) + len(QUESTION) - 1 + len(after)
    assert (report.cut, report.dropped) == (1, 0)


def test_cut_at_the_ends_of_a_document(index: BenchmarkIndex) -> None:
    left, _ = run(
        [
            QUESTION[:-1] + " wxyz" * 100,
            "abcd " * 100 + QUESTION,
            "abcd " * 20 + QUESTION + " wxyz" * 20,
        ],
        index,
    )
    assert left == [[" wxyz" * 60], ["abcd " * 60], []]


def test_pieces_of_less_than_200_characters_are_left_out(index: BenchmarkIndex) -> None:
    for length, stays in ((199, False), (200, True)):
        text = "." * (length + 200) + QUESTION + "!" * 199  # the question mark is the 200th
        left, report = run([text], index)
        assert left == [["." * length] if stays else []]
        assert (report.cut, report.dropped) == (stays, not stays)


def test_more_than_ten_pieces_drop_the_document(index: BenchmarkIndex) -> None:
    between = "." * 700
    for plants in (9, 10):
        text = between + (QUESTION + between) * plants
        left, report = run([text], index)
        assert len(left[0]) == (10 if plants == 9 else 0)
        assert (report.cut, report.dropped) == ((1, 0) if plants == 9 else (0, 1))
    # nothing stands before the first plant, and nothing is no piece
    left, _ = run([(QUESTION + between) * 10], index)
    assert len(left[0]) == 10
    # short pieces count, although they would be left out
    left, _ = run([between + (QUESTION + "." * 450) * 10 + between], index)
    assert left == [[]]


def test_drop_leaves_the_whole_document_out_and_others_as_they_came(index: BenchmarkIndex) -> None:
    decomposed = "cafe\u0301 " * 10
    texts = ["", f"x {QUESTION} " + "y " * 500, decomposed, "plain"]
    for policy in ("drop", "cut"):
        left, report = run(texts, index, policy)
        assert [len(pieces) for pieces in left] == [1, policy == "cut", 1, 1]
        assert all(left[i][0] is texts[i] for i in (0, 2, 3))
        assert (report.documents, report.hit, report.characters) == (4, 1, sum(map(len, texts)))
    left, report = run(texts, index, "drop")
    assert (report.dropped, report.cut, report.removed_characters) == (1, 0, len(texts[1]))


def test_spans_count_characters_of_the_composed_text(index: BenchmarkIndex) -> None:
    text = "e\u0301" * 300 + " . " + QUESTION + "." * 500
    ((hit,),) = index.hits([text])
    assert (hit.begin, hit.end) == (303, 303 + len(QUESTION) - 1)
    left, report = run([text], index, window=2)
    assert left == [["é" * 300 + " ", "." * 499]]
    assert report.removed_characters == 2 + len(QUESTION) - 1 + 2


@pytest.mark.parametrize("size", [1, 50, 1000])
def test_results_do_not_depend_on_the_size_of_batches(
    size: int, index: BenchmarkIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [
        " ".join([*FILLER[: i % 7], QUESTION if i % 3 == 0 else "x", *FILLER]) for i in range(20)
    ]
    whole = run(texts, index, window=10, min_piece=1)
    monkeypatch.setattr("slm2_minimal.data.reading.BATCH", size)
    assert run(texts, index, window=10, min_piece=1) == whole
    again = BenchmarkIndex.build({"rivers": [*texts, QUESTION]})
    monkeypatch.undo()
    assert np.array_equal(again.hashes, BenchmarkIndex.build({"rivers": [*texts, QUESTION]}).hashes)


def test_a_batch_without_texts(index: BenchmarkIndex) -> None:
    assert clean([], index, "cut") == ([], Contamination())


def test_a_saved_index_is_the_same_and_mapped(index: BenchmarkIndex, tmp_path: Path) -> None:
    built = BenchmarkIndex.build({f"set ü {b}": [f"{b} {QUESTION}", "short"] for b in range(70)})
    path = tmp_path / "index"
    index.save(path)
    built.save(path)  # over another one
    assert list(tmp_path.iterdir()) == [path]
    loaded = BenchmarkIndex.load(path)
    assert (loaded.n, loaded.benchmarks) == (13, built.benchmarks)
    assert np.array_equal(loaded.hashes, built.hashes)
    assert np.array_equal(loaded.members, built.members)
    assert loaded.hits(["5 " + SAME_WORDS]) == built.hits(["5 " + SAME_WORDS]) != [[]]
    owner: Any = loaded.hashes
    while not isinstance(owner, np.memmap):
        owner = owner.base
    with pytest.raises(ValueError, match="read-only"):
        loaded.hashes[0] = 0


def test_a_damaged_file_is_refused(index: BenchmarkIndex, tmp_path: Path) -> None:
    path = tmp_path / "index"
    index.save(path)
    sound = path.read_bytes()
    for at in range(len(sound)):
        path.write_bytes(sound[:at] + bytes([sound[at] ^ 1 << at % 8]) + sound[at + 1 :])
        assert "build and save it again" in data_error(lambda: BenchmarkIndex.load(path))
    for length in range(len(sound)):
        path.write_bytes(sound[:length])
        data_error(lambda: BenchmarkIndex.load(path))
    path.write_bytes(bytes(100))
    data_error(lambda: BenchmarkIndex.load(path))
    assert "No such file" in data_error(lambda: BenchmarkIndex.load(tmp_path / "none"))
    data_error(lambda: BenchmarkIndex.load(tmp_path))


def test_a_save_that_fails_leaves_the_old_index(
    index: BenchmarkIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "index"
    index.save(path)

    def full(*_: object) -> None:
        raise OSError("no space left")

    other = BenchmarkIndex.build({"other": ["k " * 20]})
    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match="no space"):
        other.save(path)
    monkeypatch.undo()
    assert BenchmarkIndex.load(path).benchmarks == index.benchmarks


@pytest.mark.parametrize(
    ("benchmarks", "n", "place", "remedy"),
    [
        ({"rivers": [QUESTION]}, 0, "n = 0", "13 is usual"),
        ({"rivers": [QUESTION]}, -1, "n = -1", "positive"),
        ({"rivers": [QUESTION]}, 2.5, "n = 2.5", "positive"),
        ({}, 13, "benchmarks = {}", "name at least one"),
        ({"rivers": [QUESTION], "none": []}, 13, "benchmarks.none = 0 texts", "leave it out"),
        ({"rivers": QUESTION}, 13, "benchmarks.rivers = 'Which of these river'", "write [text]"),
    ],
    ids=str,
)
def test_wrong_benchmarks(benchmarks: Any, n: Any, place: str, remedy: str) -> None:
    message = data_error(lambda: BenchmarkIndex.build(benchmarks, n))
    assert message.startswith(place)
    assert remedy in message


def test_wrong_policies_are_refused_before_anything_is_read(index: BenchmarkIndex) -> None:
    wrong: Any = "keep"
    assert (
        config_error(lambda: clean([], index, wrong)) == "policy = 'keep': must be 'drop' or 'cut'"
    )
    assert config_error(lambda: clean([], index, "cut", window=-1)).startswith(
        "window = -1: must be 0 or more"
    )
