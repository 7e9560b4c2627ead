"""The embedded corpus as it is promised, the held-out split, and one reader for files,
folders and the Hub.
"""

import re
import unicodedata
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm2_minimal.text.corpus import LANGUAGES, arithmetic, load_corpus
from slm2_minimal.text.documents import Document, is_validation
from tests.complaints import data_error as complaint

ALL = ("en", "de", "es", "fr", "it", "nl", "pt", "code", "math")
PROSE_DOMAINS = {"stories", "explanations", "dialogues", "letters", "recipes", "history", "science"}


@pytest.fixture(scope="module")
def corpus() -> list[Document]:
    return load_corpus()


def of(corpus: list[Document], language: str) -> list[Document]:
    return [document for document in corpus if document.language == language]


# The embedded corpus


def test_languages(corpus: list[Document]) -> None:
    assert ALL[:7] == LANGUAGES
    assert list(dict.fromkeys(document.language for document in corpus)) == list(ALL)


@pytest.mark.parametrize("language", LANGUAGES)
def test_size_of_a_language(corpus: list[Document], language: str) -> None:
    documents = of(corpus, language)
    assert len(documents) >= 100
    assert sum(len(document.text.encode()) for document in documents) >= 60_000


def test_size_of_code_and_math(corpus: list[Document]) -> None:
    assert len(of(corpus, "code")) >= 40
    assert len(of(corpus, "math")) == 100


@pytest.mark.parametrize("language", LANGUAGES[1:])
def test_translations_are_parallel(corpus: list[Document], language: str) -> None:
    english, other = of(corpus, "en"), of(corpus, language)
    assert [document.id for document in other] == [document.id for document in english]
    assert [document.domain for document in other] == [document.domain for document in english]
    paragraphs = [
        [len(document.text.split("\n\n")) for document in documents]
        for documents in (english, other)
    ]
    assert paragraphs[0] == paragraphs[1]


@pytest.mark.parametrize("language", LANGUAGES[1:])
def test_translations_are_translations(corpus: list[Document], language: str) -> None:
    """Not the English text again, and about as long. Names and numbers are what three
    words in a row may have in common.
    """
    for english, other in zip(of(corpus, "en"), of(corpus, language), strict=True):
        common, own = shingles(english.text, 3) & shingles(other.text, 3), shingles(other.text, 3)
        assert len(common) < 0.1 * len(own), other.id
        assert 0.7 < len(other.text) / len(english.text) < 1.5, other.id


def test_ids_and_domains(corpus: list[Document]) -> None:
    keys = [(document.language, document.id) for document in corpus]
    assert len(set(keys)) == len(keys)
    for document in corpus:
        expected = {"code": {"code"}, "math": {"arithmetic"}}.get(document.language, PROSE_DOMAINS)
        assert document.domain in expected, document.id
        assert document.id.rpartition("-")[0] == document.domain
        assert document.title.strip() == document.title != ""
    assert {document.domain for document in of(corpus, "en")} == PROSE_DOMAINS


def test_text_is_clean_unicode(corpus: list[Document]) -> None:
    for document in corpus:
        where = f"{document.language} {document.id}"
        for text in (document.text, document.title):
            assert unicodedata.is_normalized("NFC", text), where
            allowed = {"\n", "\t"} if document.language == "code" else {"\n"}
            assert {
                c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn")
            } <= allowed, where
            assert "\ufffd" not in text, where
        body = document.text.removesuffix("\n") if document.language == "code" else document.text
        assert body == body.strip(), where
        assert len(document.text) > 100, where


@pytest.mark.parametrize("language", LANGUAGES)
def test_prose_is_paragraphs(corpus: list[Document], language: str) -> None:
    """One paragraph a line, one empty line between two, no blanks at the ends, nothing
    twice.
    """
    paragraphs = [
        paragraph for document in of(corpus, language) for paragraph in document.text.split("\n\n")
    ]
    assert [p for p in paragraphs if p != p.strip() or "\n" in p or "  " in p or not p] == []
    long = [p for p in paragraphs if len(p) > 60]
    assert len(set(long)) == len(long)


def shingles(text: str, size: int = 5) -> set[tuple[str, ...]]:
    """The word n-grams of a text."""
    words = text.split()
    return {tuple(words[i : i + size]) for i in range(len(words) - size + 1)}


@pytest.mark.parametrize("language", ALL)
def test_no_near_duplicates(corpus: list[Document], language: str) -> None:
    grams = [(document.id, shingles(document.text)) for document in of(corpus, language)]
    alike = [
        (a, b)
        for i, (a, first) in enumerate(grams)
        for b, second in grams[:i]
        if len(first & second) >= 0.3 * max(1, len(first | second))
    ]
    assert alike == []


def test_the_duplicate_measure_finds_duplicates() -> None:
    text = "one two three four five six seven eight nine ten"
    assert shingles(text) & shingles("zero " + text) == shingles(text)
    assert len(shingles(text)) == 6


@pytest.mark.parametrize("language", LANGUAGES)
def test_each_language_uses_its_own_letters(corpus: list[Document], language: str) -> None:
    """A rough guard against a file that holds another language: its commonest little
    words, and letters that it needs.
    """
    words = {
        "en": "the",
        "de": "und",
        "es": "los",
        "fr": "les",
        "it": "che",
        "nl": "het",
        "pt": "não",
    }
    letters = {"en": "w", "de": "ß", "es": "ñ", "fr": "ê", "it": "ù", "nl": "ij", "pt": "ã"}
    text = " ".join(document.text for document in of(corpus, language))
    counts = {other: len(re.findall(rf"\b{word}\b", text)) for other, word in words.items()}
    assert max(counts, key=lambda key: counts[key]) == language
    assert letters[language] in text


# Arithmetic


def test_arithmetic_is_right(corpus: list[Document]) -> None:
    operations: dict[str, Callable[[int, int], int]] = {
        "+": int.__add__,
        "-": int.__sub__,
        "*": int.__mul__,
    }
    seen = set()
    for document in of(corpus, "math"):
        lines = document.text.split("\n")
        assert len(lines) == 24
        for line in lines:
            match = re.fullmatch(r"(\d+) ([-+*/]) (\d+) = (-?\d+)", line)
            assert match, line
            a, b, result = int(match[1]), int(match[3]), int(match[4])
            if match[2] == "/":
                assert divmod(a, b) == (result, 0), line
            else:
                assert operations[match[2]](a, b) == result, line
            seen.add(match[2])
    assert seen == set("+-*/")


def test_arithmetic_is_the_same_on_every_machine() -> None:
    first, *_, last = arithmetic(100)
    assert (first.id, first.language, first.domain, first.title) == (
        "arithmetic-001",
        "math",
        "arithmetic",
        "Numbers below 100",
    )
    assert (last.id, last.title) == ("arithmetic-100", "Numbers below 10,000")
    assert first.text.split("\n")[:3] == ["2666 / 62 = 43", "2600 / 52 = 50", "78 - 2 = 76"]
    assert list(arithmetic(100)) == list(arithmetic(100))
    assert next(arithmetic(100, seed=1)).text != first.text


# The held-out split


@pytest.mark.parametrize(
    ("document_id", "held_out_from"),
    [
        ("stories-001", 36),
        ("stories-002", 56),
        ("science-007", 67),
        ("code-001", 84),
        ("arithmetic-001", 4),
        ("arithmetic-042", 12),
        ("café", 50),
        ("", 53),
    ],
)
def test_is_validation_never_changes(document_id: str, held_out_from: int) -> None:
    """The literal values make a change of the rule visible: it would move documents
    between training and validation of old runs.
    """
    assert not is_validation(document_id, held_out_from - 1)
    assert is_validation(document_id, held_out_from)


@given(document_id=st.text(max_size=20), percent=st.integers(0, 99))
def test_is_validation_grows_with_the_percentage(document_id: str, percent: int) -> None:
    assert not is_validation(document_id, 0)
    assert is_validation(document_id, 100)
    assert is_validation(document_id, percent + 1) or not is_validation(document_id, percent)


def test_is_validation_takes_its_share() -> None:
    share = sum(is_validation(f"document-{i}", 10) for i in range(20_000)) / 20_000
    assert abs(share - 0.1) < 0.01  # 5 sigma = 0.0106


def test_half_a_surrogate_pair_in_an_id_is_u_fffd() -> None:
    for percent in range(0, 101, 5):
        assert is_validation("a\ud83d", percent) == is_validation("a\ufffd", percent)


def test_every_part_has_something_held_out(corpus: list[Document]) -> None:
    for language in ALL:
        held_out = [document for document in of(corpus, language) if is_validation(document.id, 10)]
        assert 0.03 < len(held_out) / len(of(corpus, language)) < 0.25, language


def test_no_held_out_id_is_trained_on_in_any_language(corpus: list[Document]) -> None:
    held_out = {document.id for document in corpus if is_validation(document.id, 10)}
    trained = {document.id for document in corpus if not is_validation(document.id, 10)}
    assert held_out
    assert not held_out & trained
    assert held_out | trained == {document.id for document in corpus}


# Narrowing


def test_narrowing(corpus: list[Document]) -> None:
    assert load_corpus(languages=["de", "math"]) == of(corpus, "de") + of(corpus, "math")
    assert load_corpus(domains=("recipes",)) == [d for d in corpus if d.domain == "recipes"]
    assert {(d.language, d.domain) for d in load_corpus(languages={"it"}, domains={"letters"})} == {
        ("it", "letters")
    }
    assert load_corpus(limit=3) == corpus[:3]
    assert load_corpus(languages=["fr"], limit=2) == of(corpus, "fr")[:2]


def test_nothing_left() -> None:
    message = complaint(lambda: load_corpus(languages=["xx"]))
    assert message.startswith(
        "corpus = 'embedded': no document with languages = ['xx'], domains = all"
    )
    assert "domains = ['recipes']" in complaint(
        lambda: load_corpus(languages=["code"], domains=["recipes"])
    )


def test_a_string_is_not_a_list_of_languages() -> None:
    """ "code" holds the letters of "de": it would give the German texts."""
    assert (
        complaint(lambda: load_corpus(languages="code"))
        == "languages = 'code': must be a list of names; write ['code']"
    )
    assert complaint(lambda: load_corpus(domains="recipes")).startswith("domains = 'recipes'")
