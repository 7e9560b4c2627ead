"""Reports of decontamination: what they count, and that parts add up to the whole."""

import json
import unicodedata
from dataclasses import asdict

from hypothesis import given
from hypothesis import strategies as st

from slm2_minimal.prepare.decontaminate import EXAMPLES, BenchmarkIndex, Contamination
from slm2_minimal.prepare.publish import ContaminationReport
from tests.prepare.preparing import through_json
from tests.prepare.slow_decontamination import QUESTION, SAME_WORDS, run


def test_a_report_counts_what_was_hit_by_which_benchmark() -> None:
    index = BenchmarkIndex.build(
        {"rivers": [QUESTION + " Or Volga?"], "lakes": [QUESTION, "no"], "seas": ["k " * 13]}
    )
    texts = [
        "clean",
        f"{QUESTION} twice {QUESTION}",
        f"a {QUESTION} or volga",
        f"{QUESTION[6:]} Or. Volga.",
    ]
    _, report = run(texts, index, "drop")
    as_json = json.loads(json.dumps(asdict(ContaminationReport.of(report, index))))
    shared = QUESTION[:-1]
    assert as_json["benchmarks"]["rivers"] == {
        "texts": 1,
        "too_short": 0,
        "ngrams": 3,
        "hit_ngrams": 3,
        "hit_documents": 3,
        "examples": [
            {"document": 1, "words": shared},
            {"document": 1, "words": shared},
            {"document": 2, "words": f"{QUESTION} or volga"},
            {"document": 3, "words": f"{QUESTION[6:]} Or. Volga"},
        ],
    }
    assert as_json["benchmarks"]["lakes"] | {"examples": None} == {
        "texts": 2,
        "too_short": 1,
        "ngrams": 1,
        "hit_ngrams": 1,
        "hit_documents": 2,
        "examples": None,
    }
    assert as_json["benchmarks"]["seas"] == dict(
        texts=1, too_short=0, ngrams=1, hit_ngrams=0, hit_documents=0, examples=[]
    )
    assert (
        as_json["n"],
        as_json["documents"],
        as_json["hit"],
        as_json["dropped"],
        as_json["cut"],
    ) == (13, 4, 3, 3, 0)


@given(
    kinds=st.lists(st.integers(0, 4), max_size=30), edges=st.lists(st.integers(0, 30), max_size=4)
)
def test_merged_reports_are_the_report_of_one_run(kinds: list[int], edges: list[int]) -> None:
    index = BenchmarkIndex.build(
        {"rivers": [QUESTION], "more": [f"{QUESTION} Or Volga?", "k " * 13]}
    )
    forms = [
        "clean",
        QUESTION,
        "x. " * 200 + SAME_WORDS + " or Volga",
        "k " * 14 + "y " * 300,
        "z " * 300,
    ]
    texts = [forms[kind] for kind in kinds]
    _, whole = run(texts, index)
    total, cuts = Contamination(), [0, *sorted(min(edge, len(texts)) for edge in edges), len(texts)]
    for i, begin in enumerate(cuts[:-1]):
        total.merge(run(texts[begin : cuts[i + 1]], index)[1])
    assert total == whole
    assert ContaminationReport.of(total, index) == ContaminationReport.of(whole, index)
    assert through_json(whole) == whole
    assert all(len(shown) <= EXAMPLES for shown in whole.examples.values())
    assert whole.hit_documents["rivers"] == sum(kind in (1, 2) for kind in kinds)
    assert all(
        words in unicodedata.normalize("NFC", texts[at])
        for shown in whole.examples.values()
        for at, words in shown
    )
