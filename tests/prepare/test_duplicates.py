"""Duplicates through files of keys, against a plain union-find; planted ones are found,
the corpus has none, damage is noticed.
"""

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from slm2_minimal.config import ConfigError, DataError
from slm2_minimal.prepare.duplicates import (
    BANDS,
    BYTES,
    EXAMPLES,
    ID,
    Duplicates,
    exact_keys,
    find_duplicates,
    link,
    write_keys,
)
from slm2_minimal.prepare.minhash import LSH, band_keys, candidate_pairs, signatures
from slm2_minimal.text.corpus import load_corpus
from tests.prepare.preparing import through_json

SMALL = LSH(bands=3, rows=2, shingle=2)


def union_find(n: int, pairs: Sequence[tuple[int, int]]) -> list[int]:
    """Of each of n things, the first of its component."""
    parent = list(range(n))

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    for i, j in pairs:
        low, high = sorted((root(i), root(j)))
        parent[high] = low
    return [root(i) for i in range(n)]


def plain_removed(texts: list[str], lsh: LSH, keep: str) -> list[bool]:
    """Exact and candidate pairs, joined, one survivor each."""
    plain = [" ".join(unicodedata.normalize("NFC", text).split()) for text in texts]
    pairs = [(i, j) for i in range(len(texts)) for j in range(i) if plain[i] == plain[j]]
    pairs += [(i, j) for i, j in candidate_pairs(band_keys(signatures(texts, lsh), lsh)).tolist()]
    component = union_find(len(texts), pairs)
    lengths = [len(text.encode()) if keep == "longest" else 0 for text in texts]
    kept = {
        first: min((-lengths[i], i) for i in range(len(texts)) if component[i] == first)[1]
        for first in component
    }
    return [kept[component[i]] != i for i in range(len(texts))]


def write_units(folder: Path, units: Sequence[Sequence[str]], lsh: LSH) -> list[Path]:
    paths = [folder / f"{number}.npy" for number in range(len(units))]
    for number, (path, texts) in enumerate(zip(paths, units, strict=True)):
        write_keys(path, ((f"{number}-{row}", text) for row, text in enumerate(texts)), lsh)
    return paths


def find(
    folder: Path, units: Sequence[Sequence[str]], lsh: LSH = SMALL, keep: str = "first"
) -> Duplicates:
    return find_duplicates(write_units(folder, units, lsh), lsh, keep, sources=["web"] * len(units))


def write_by_hand(
    path: Path,
    texts: Sequence[int],
    bands: Sequence[Sequence[int]],
    *,
    lengths: Sequence[int] = (),
    ids: Sequence[int] = (),
) -> Path:
    """A file of keys with chosen numbers in it."""
    n = len(texts)
    keys = np.zeros((BANDS + len(bands), n), dtype=np.uint64)
    keys[0], keys[1] = texts, np.asarray(texts) + 1000
    keys[ID], keys[BYTES] = ids or range(n), lengths or [1] * n
    keys[BANDS:] = bands
    np.save(path, keys)
    return path


def removed(duplicates: Duplicates) -> list[list[bool]]:
    return [unit.tolist() for unit in duplicates.removed]


def test_exact_keys_are_the_digest_of_the_plain_text() -> None:
    keys = exact_keys(
        [
            "  Les   idées\n\tclaires ",
            "Les id\u0065\u0301es claires",
            "les idées claires",
            "Les idées claires.",
            "",
            " \u3000\n",
        ]
    )
    assert (keys.dtype, keys.shape) == (np.uint64, (6, 2))
    digest = hashlib.blake2b("Les idées claires".encode(), digest_size=16).digest()
    assert keys[0].tolist() == [
        int.from_bytes(digest[:8], "little"),
        int.from_bytes(digest[8:], "little"),
    ]
    assert keys[0].tolist() == keys[1].tolist()
    assert keys[4].tolist() == keys[5].tolist()
    assert len({tuple(key) for key in keys.tolist()}) == 4
    assert exact_keys([]).shape == (0, 2)
    assert exact_keys(["\ud800"]).shape == (1, 2)


@given(data=st.data(), n=st.integers(0, 40))
@settings(max_examples=200)
def test_components_are_those_of_a_plain_union_find(data: st.DataObject, n: int) -> None:
    node = st.integers(0, max(n - 1, 0))
    rounds = data.draw(
        st.lists(st.lists(st.tuples(node, node), max_size=40 if n else 0), max_size=3)
    )
    label = np.arange(n)
    for pairs in rounds:
        ends = np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
        link(label, ends[:, 0], ends[:, 1])
    assert label.tolist() == union_find(n, [pair for pairs in rounds for pair in pairs])


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_path_of_a_hundred_thousand_is_one_component(shuffled: bool) -> None:
    n = 100_000
    order = np.random.default_rng(0).permutation(n) if shuffled else np.arange(n)[::-1]
    label = np.arange(n)
    link(label, order[:-1], order[1:])
    assert not label.any()


words = st.lists(st.sampled_from(["a", "b", "c", "d", "Ä", "…"]), max_size=6).map(" ".join)


@given(
    units=st.lists(st.lists(words, max_size=6), min_size=1, max_size=4),
    keep=st.sampled_from(["first", "longest"]),
)
@example(units=[[], [""], [], [" ", "..", "a", "A"]], keep="longest")
@settings(
    max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
def test_what_is_removed_is_what_a_plain_search_removes_in_any_division_into_units(
    tmp_path: Path, units: list[list[str]], keep: str
) -> None:
    texts = [text for unit in units for text in unit]
    expected = plain_removed(texts, SMALL, keep)
    parts, whole = find(tmp_path, units, keep=keep), find(tmp_path, [texts], keep=keep)
    assert [len(unit) for unit in parts.removed] == [len(unit) for unit in units]
    assert [gone for unit in removed(parts) for gone in unit] == removed(whole)[0] == expected
    for name in (
        "documents",
        "exact_removed",
        "near_removed",
        "cluster_sizes",
        "removed_by_source",
    ):
        assert getattr(parts.report, name) == getattr(whole.report, name)
    assert whole.report.exact_removed == len(texts) - len(
        {tuple(key) for key in exact_keys(texts).tolist()}
    )
    assert whole.report.exact_removed + whole.report.near_removed == sum(expected)


def test_empty_texts_are_exact_duplicates_only(tmp_path: Path) -> None:
    duplicates = find(tmp_path, [["", "...", "!", " \n "], ["***", "", "..."]])
    assert removed(duplicates) == [[False, False, False, True], [False, True, True]]
    assert (duplicates.report.exact_removed, duplicates.report.near_removed) == (3, 0)


def test_a_chain_is_one_cluster(tmp_path: Path) -> None:
    """A and B share one band, B and C another; A and C share nothing. D is alone."""
    path = write_by_hand(tmp_path / "a.npy", [1, 2, 3, 4], [[7, 7, 5, 6], [1, 2, 2, 3]])
    duplicates = find_duplicates([path], LSH(2, 1), sources=["web"])
    assert removed(duplicates) == [[False, True, True, False]]
    assert duplicates.report.cluster_sizes == {3: 1}


def test_which_document_stays(tmp_path: Path) -> None:
    """One cluster of five in two units: the first, or the longest, or of the equally
    long the first.
    """
    lsh = LSH(1, 1)
    one = write_by_hand(tmp_path / "1.npy", [1, 2, 3], [[9, 8, 9]], lengths=[5, 100, 70])
    two = write_by_hand(tmp_path / "2.npy", [4, 5, 6], [[9, 9, 9]], lengths=[6, 70, 2])
    both, sources = [one, two], ["a", "b"]
    assert removed(find_duplicates(both, lsh, "first", sources=sources)) == [
        [False, False, True],
        [True, True, True],
    ]
    assert removed(find_duplicates(both, lsh, "longest", sources=sources)) == [
        [True, False, False],
        [True, True, True],
    ]
    assert removed(find_duplicates(both[::-1], lsh, "longest", sources=sources)) == [
        [True, False, True],
        [True, False, True],
    ]


@pytest.mark.parametrize("rest", [[1, 1], [1, 2]])
def test_half_of_the_digest_is_not_enough_to_be_the_same_text(
    tmp_path: Path, rest: list[int]
) -> None:
    path = write_by_hand(tmp_path / "a.npy", [1, 1], [[5, 6]])
    keys = np.load(path)
    keys[1] = rest
    np.save(path, keys)
    assert removed(find_duplicates([path], LSH(1, 1), sources=["web"])) == [
        [False, rest[0] == rest[1]]
    ]


def test_the_report_by_hand(tmp_path: Path) -> None:
    """web: A A' A B; wiki: B~ C; books: nothing; wiki again: C C. A' is near A, B~ is
    near B.
    """
    lsh = LSH(2, 1)
    paths = [
        write_by_hand(
            tmp_path / "0.npy", [1, 2, 1, 3], [[1, 1, 1, 3], [4, 5, 4, 6]], ids=[1, 2, 3, 4]
        ),
        write_by_hand(tmp_path / "1.npy", [4, 5], [[7, 8], [6, 9]], ids=[5, 1]),
        write_by_hand(tmp_path / "2.npy", [], [[], []]),
        write_by_hand(tmp_path / "3.npy", [5, 5], [[8, 8], [9, 9]], ids=[1, 6]),
    ]
    duplicates = find_duplicates(paths, lsh, sources=["web", "wiki", "books", "wiki"])
    assert removed(duplicates) == [[False, True, True, False], [True, False], [], [True, True]]
    report = duplicates.report
    assert (report.documents, report.exact_removed, report.near_removed) == (8, 3, 2)
    assert report.cluster_sizes == {2: 1, 3: 2}
    assert duplicates.largest == [
        [(0, 0), (0, 1), (0, 2)],
        [(1, 1), (3, 0), (3, 1)],
        [(0, 3), (1, 0)],
    ]
    assert report.removed_by_source == {"web": 0.5, "wiki": 0.75, "books": 0}
    assert report.repeated_ids == 2
    assert through_json(report) == report


def test_examples_are_the_largest_clusters_the_survivor_first(tmp_path: Path) -> None:
    group = [number for number in range(1, 9) for _ in range(number * 2)]
    path = write_by_hand(
        tmp_path / "a.npy", list(range(len(group))), [group], lengths=list(range(1, len(group) + 1))
    )
    found = find_duplicates([path], LSH(1, 1), "longest", sources=["web"])
    assert found.report.cluster_sizes == {size: 1 for size in range(2, 17, 2)}
    assert [len(cluster) for cluster in found.largest] == [10, 10, 10, 10, 8]
    assert len(found.largest) == EXAMPLES
    assert found.largest[0][:2] == [(0, len(group) - 1), (0, len(group) - 2)]


def test_a_file_of_keys_says_what_it_should(tmp_path: Path) -> None:
    texts = ["Grüße aus Köln", "a b c d", ""]
    write_keys(tmp_path / "a.npy", zip(["x", "ÿ", "x"], texts, strict=True), SMALL)
    keys = np.load(tmp_path / "a.npy")
    assert (keys.dtype, keys.shape, keys.flags.c_contiguous) == (np.uint64, (BANDS + 3, 3), True)
    assert keys[:2].T.tolist() == exact_keys(texts).tolist()
    assert keys[2].tolist() == [
        int.from_bytes(hashlib.blake2b(i.encode(), digest_size=8).digest(), "little")
        for i in ("x", "ÿ", "x")
    ]
    assert keys[3].tolist() == [14 + 3, 7, 0]
    assert keys[4:].tolist() == band_keys(signatures(texts, SMALL), SMALL).tolist()
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]


def test_what_goes_wrong_while_keys_are_made_leaves_the_old_file(tmp_path: Path) -> None:
    path = write_units(tmp_path, [["a b c"]], SMALL)[0]
    before = path.read_bytes()

    def breaks() -> Iterator[tuple[str, str]]:
        yield "0", "d e f"
        raise OSError("the source went away")

    with pytest.raises(OSError, match="went away"):
        write_keys(path, breaks(), SMALL)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "damage", ["missing", "empty", "cut", "other", "header", "dtype", "shape", "bands", "folder"]
)
def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path, damage: str) -> None:
    good, bad = write_units(tmp_path, [["a b c"] * 3, ["d e f"] * 3], SMALL)
    keys, content = np.load(bad), bad.read_bytes()
    bad.unlink()
    if damage == "folder":
        bad.mkdir()
    elif damage in ("empty", "cut", "other", "header"):
        changed = {
            "empty": b"",
            "cut": content[:-8],
            "other": b"{}" * 100,
            "header": content.replace(b"}", b"(", 1),
        }
        bad.write_bytes(changed[damage])
    elif damage != "missing":
        np.save(bad, {"dtype": keys.astype(np.int64), "shape": keys[0], "bands": keys[:-1]}[damage])
    with pytest.raises(
        DataError, match=r"^keys = .*1\.npy'.*; write them again with write_keys"
    ) as caught:
        find_duplicates([good, bad], SMALL, sources=["web", "web"])
    assert "\n" not in str(caught.value)


def test_what_find_duplicates_cannot_do_is_refused(tmp_path: Path) -> None:
    paths = write_units(tmp_path, [["a b"]], SMALL)
    with pytest.raises(ConfigError, match="keep = 'last': must be 'first' or 'longest'"):
        find_duplicates(paths, SMALL, "last", sources=["web"])  # type: ignore[arg-type]
    with pytest.raises(
        ConfigError, match="sources = 2 of them: must be one for each of the 1 units"
    ):
        find_duplicates(paths, SMALL, sources=["web", "wiki"])


def test_nothing_at_all_gives_an_empty_report() -> None:
    duplicates = find_duplicates([], SMALL, sources=[])
    assert (duplicates.removed, duplicates.report.documents, duplicates.report.cluster_sizes) == (
        [],
        0,
        {},
    )


def test_the_corpus_has_no_duplicates_and_planted_ones_are_found(tmp_path: Path) -> None:
    lsh = LSH.for_similarity(0.7)
    corpus = [document.text for document in load_corpus()]
    assert not any(map(any, find(tmp_path, [corpus], lsh).removed))
    long = [i for i, text in enumerate(corpus) if len(text.split()) > 100][:20]
    changed = [
        " ".join(["Changed", *corpus[i].split()[1:-1]]).upper() for i in long
    ]  # two words and all white space are new
    spaced = [corpus[i].replace(" ", "  ") for i in range(20)]
    duplicates = find(tmp_path, [corpus, changed, spaced], lsh)
    assert [sum(unit) for unit in removed(duplicates)] == [0, 20, 20]
    assert (duplicates.report.exact_removed, duplicates.report.near_removed) == (20, 20)
    sizes = Counter(Counter([*range(len(corpus)), *long, *range(20)]).values())
    assert duplicates.report.cluster_sizes == {
        size: count for size, count in sorted(sizes.items()) if size > 1
    }
