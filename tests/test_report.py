"""Table 1: its columns against each other and against the project's facts, and what a
mix costs.
"""

import dataclasses
import math
import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm2_minimal.report import (
    STATUS,
    SUITES,
    TOTAL_TOKENS,
    Source,
    contradictions,
    cost,
    cost_table,
    shares,
    table1,
)
from slm2_minimal.text.corpus import LANGUAGES
from tests.complaints import data_error as complaint

ROWS = {source.name: source for source in table1()}


def altered(name: str, **changes: object) -> list[Source]:
    return [
        dataclasses.replace(source, **changes) if source.name == name else source
        for source in table1()
    ]  # type: ignore[arg-type]


def test_the_table_has_28_sources_and_the_printed_total() -> None:
    assert len(table1()) == len(ROWS) == 28
    assert sum(source.tokens for source in table1()) == TOTAL_TOKENS == 2_009_831_803_929


def test_weights_are_tokens_over_total_in_all_rows_but_stack_exchange() -> None:
    """In integers: rounding t / total to four decimals is floor((2 * 10,000 t + total)
    / (2 total)) where nothing lies on a half.
    """
    rounded = {
        name: (20_000 * row.tokens + TOTAL_TOKENS) // (2 * TOTAL_TOKENS)
        for name, row in ROWS.items()
    }
    printed = {name: round(10_000 * row.weight) for name, row in ROWS.items()}
    assert {name for name in ROWS if rounded[name] != printed[name]} == {"StackExchange"}
    assert (printed["StackExchange"], rounded["StackExchange"]) == (231, 230)
    assert sum(printed.values()) == 10_001
    assert sum(rounded.values()) == 10_000
    assert sum(Fraction(row.tokens, TOTAL_TOKENS) for row in ROWS.values()) == 1


def test_every_whole_number_of_epochs_divides_the_tokens() -> None:
    whole = {
        name: int(row.epochs)
        for name, row in ROWS.items()
        if row.epochs >= 2 and row.epochs == int(row.epochs)
    }
    assert len(whole) == 12
    assert {name: ROWS[name].tokens % epochs for name, epochs in whole.items()} == dict.fromkeys(
        whole, 0
    )


def test_divisibility_cannot_tell_whether_pg19_was_read_4_or_6_times() -> None:
    assert ROWS["PG-19"].epochs == 4
    assert "might be 6" in ROWS["PG-19"].note
    assert ROWS["PG-19"].tokens % 12 == 0


def test_the_table_contradicts_itself_in_two_places_only() -> None:
    assert contradictions() == [
        "StackExchange: the printed weight is 0.0231, tokens / total is 0.0230",
        "the printed weights sum to 1.0001, not 1",
    ]
    assert contradictions(altered("StackExchange", weight=0.0230)) == []


@pytest.mark.parametrize(
    ("name", "changes", "found"),
    [
        (
            "C4",
            {"weight": 0.0856},
            [
                "C4: the printed weight is 0.0856, tokens / total is 0.0855",
                "the printed weights sum to 1.0001, not 1",
            ],
        ),
        (
            "AMPS",
            {"epochs": 5},
            ["AMPS: 2,126,719,278 tokens are no whole multiple of its 5 epochs"],
        ),
        ("AMPS", {"epochs": 5.5}, []),
        (
            "PubMed",
            {"tokens": 24_126_600_625},
            ["the tokens sum to 2,009,831,803,928, not 2,009,831,803,929"],
        ),
    ],
    ids=str,
)
def test_a_wrong_figure_is_found(name: str, changes: dict[str, float], found: list[str]) -> None:
    repaired = [
        dataclasses.replace(source, weight=0.0230) if source.name == "StackExchange" else source
        for source in altered(name, **changes)
    ]
    assert contradictions(repaired) == found


def test_shares_by_category() -> None:
    assert {category: round(100 * share, 2) for category, share in shares("category").items()} == {
        "Web": 74.95,
        "Code": 7.24,
        "Academic": 5.30,
        "Wiki": 3.63,
        "Social": 2.49,
        "Math": 2.09,
        "Law": 1.74,
        "Books": 1.55,
        "Instruction": 1.02,
    }
    assert list(shares("category"))[:2] == ["Web", "Code"], "the largest first"


def test_shares_by_language() -> None:
    by_language = shares("language")
    assert (
        round(100 * sum(by_language[language] for language in LANGUAGES if language != "en"), 2)
        == 6.97
    )
    assert set(by_language) == {*LANGUAGES, "code", "mul", "und"}
    assert math.isclose(sum(by_language.values()), 1)
    assert [row.language for row in table1() if row.name.startswith("CulturaX")] == [
        "en",
        "es",
        "de",
        "fr",
        "it",
        "nl",
        "pt",
    ]


def test_shares_by_name_are_tokens_over_total() -> None:
    by_name = shares("name")
    assert max(by_name, key=by_name.__getitem__) == "RefinedWeb"
    assert all(by_name[name] == row.tokens / TOTAL_TOKENS for name, row in ROWS.items())


def test_every_source_has_a_hub_id_or_a_reason_why_not() -> None:
    for source in table1():
        assert (
            source.note if source.hub is None else re.fullmatch(r"[\w-]+/[\w-]+(:\w+)?", source.hub)
        )
    assert {source.name for source in table1() if source.hub is None} == {
        "BookCorpusOpen",
        "FanFics",
        "OpenWebText2",
        "AMPS",
        "Restruct-v1",
    }
    assert {source.name for source in table1() if "gated" in source.note} == {
        "Starcoder",
        *(name for name in ROWS if name.startswith("CulturaX")),
    }
    assert set(STATUS) == {field.name for field in dataclasses.fields(Source)} - {"note"}


def test_cost_of_one_pass_is_the_table() -> None:
    assert [(row.name, row.tokens, row.epochs) for row in cost(TOTAL_TOKENS)] == [
        (s.name, s.tokens, s.epochs) for s in table1()
    ]
    assert [row.name for row in cost(TOTAL_TOKENS) if row.warning] == ["BookCorpusOpen", "AMPS"]


def test_cost_of_the_whole_run() -> None:
    """500,000 steps of 8,388,608 tokens are 2.0869 passes."""
    rows = {row.name: row for row in cost(500_000 * 8_388_608)}
    assert math.isclose(rows["AMPS"].epochs, 6 * 4_194_304_000_000 / TOTAL_TOKENS)
    assert round(rows["AMPS"].epochs, 1) == 12.5
    assert rows["AMPS"].warning == "more than 4 epochs"
    assert rows["C4"].warning == ""
    assert sum(row.tokens for row in rows.values()) == 4_194_304_000_000


@given(tokens=st.integers(1, 10**14), chosen=st.sets(st.sampled_from(sorted(ROWS)), min_size=1))
def test_cost_is_linear_and_sums_to_the_budget(tokens: int, chosen: set[str]) -> None:
    sources = [source for source in table1() if source.name in chosen]
    rows = cost(tokens, sources)
    assert sum(row.tokens for row in rows) == tokens
    for row, source in zip(rows, sources, strict=True):
        share = Fraction(source.tokens, sum(s.tokens for s in sources))
        assert abs(row.tokens - share * tokens) < 1
        assert math.isclose(
            row.epochs, share * tokens / Fraction(source.tokens) * Fraction(str(source.epochs))
        )
        assert math.isclose(row.epochs, float(share * tokens) / source.size)
        assert bool(row.warning) == (row.epochs > 4)


def test_the_warning_starts_above_the_limit() -> None:
    books = [ROWS["PG-19"]]
    assert cost(books[0].tokens, books, max_epochs=4)[0].warning == ""
    assert cost(books[0].tokens + 1, books, max_epochs=4)[0].warning == "more than 4 epochs"
    assert cost(10**15, books, max_epochs=math.inf)[0].warning == ""


def test_size_is_what_one_reading_of_the_source_has() -> None:
    assert ROWS["AMPS"].size == 354_453_213
    assert ROWS["StackExchange"].size == 18_521_197_528


def test_the_cost_table_is_aligned_text() -> None:
    sources = [ROWS["C4"], ROWS["PG-19"]]
    assert cost_table(cost(400_000_000_000, sources)).splitlines() == [
        "source    share           tokens  epochs",
        "C4       90.38%  361,503,222,347    2.10",
        "PG-19     9.62%   38,496,777,653    8.42  more than 4 epochs",
        "sum     100.00%  400,000,000,000",
    ]


def test_numpy_tokens() -> None:
    assert cost(np.int64(TOTAL_TOKENS)) == cost(float(TOTAL_TOKENS)) == cost(TOTAL_TOKENS)  # type: ignore[arg-type]


@pytest.mark.parametrize("tokens", [0, -5, 0.5, math.nan, math.inf, "2T", None], ids=str)
def test_wrong_tokens(tokens: float) -> None:
    assert complaint(lambda: cost(tokens)).startswith(
        f"tokens = {tokens!r}: must be a number of tokens"
    )


@pytest.mark.parametrize("limit", [0, -1, math.nan, "4"], ids=str)
def test_wrong_limit(limit: float) -> None:
    assert complaint(lambda: cost(1, max_epochs=limit)).startswith(
        f"max_epochs = {limit!r}: must be a positive number"
    )


def test_no_sources_and_impossible_sources() -> None:
    assert complaint(lambda: cost(1, [])).startswith("sources = (): nothing to read")
    assert complaint(lambda: altered("C4", epochs=0)).startswith(
        "sources.C4.epochs = 0: must be positive"
    )
    assert complaint(lambda: altered("C4", tokens=-1)).startswith(
        "sources.C4.tokens = -1: must be positive"
    )


def test_the_means_of_the_suites_follow_from_their_columns() -> None:
    """To the digits that are given; Dutch and Portuguese have four tasks of five."""
    own = SUITES["report_leaderboard"].rows["stablelm-2-1_6b"]
    assert own[0] == pytest.approx(sum(own[1:]) / 6, abs=0.005)
    for mean, *languages in SUITES["report_multilingual"].rows.values():
        cells = sum(n * value for n, value in zip((5, 5, 5, 5, 5, 4, 4), languages, strict=True))
        assert mean == pytest.approx(cells / 33, abs=0.1)
    for suite in SUITES.values():
        assert {len(row) for row in suite.rows.values()} <= {1, len(suite.columns)}
