"""What all chapters have in common: how they name their parts, what a slider and a
table need, and that they show no private name of the package. Each rule yields
complaints, and each is tested on a sample that breaks it.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from book import notebooks

CHAPTERS = [path for path in notebooks.chapters([]) if path.stem[:1].isdigit()]
PARTS = ["Exercises", "Recap"]  # the last two of a chapter, in this order
BOXES = {
    "Predict before you go on": "tip",
    "Rule": "important",
    "How were your predictions?": "dropdown",
    "Planned, not measured": "warning",
}
EXERCISE = re.compile(r".+, (easy|medium|hard)")
BOX = re.compile(r"^:::+\{(admonition|dropdown)\} *(.*)\n(?::class: (.*)\n)?", re.MULTILINE)
# A private function that is called; torch has public ones of that form.
PRIVATE = re.compile(r"(?:(?<=self\.)|(?<=[^\w.]))_[a-zA-Z]\w*(?=\()")

Rule = Callable[[Any], Iterator[str]]


def prose(notebook: Any) -> Iterator[str]:
    yield from (cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def ends_alike(notebook: Any) -> Iterator[str]:
    parts = [title for text in prose(notebook) for title in re.findall(r"^## (.+)$", text, re.M)]
    if parts[-2:] != PARTS:
        yield f"ends with {parts[-2:]}, not with {PARTS}"


def boxes_have_one_name(notebook: Any) -> Iterator[str]:
    for text in prose(notebook):
        for kind, title, style in BOX.findall(text):
            if kind != "admonition" or BOXES.get(title) != style:
                yield f"{kind} {title!r} of class {style!r}"


def exercises_have_a_title_and_a_difficulty(notebook: Any) -> Iterator[str]:
    for text in prose(notebook):
        for title in re.findall(r"^`{3,}\{exercise-start\} *(.*)$", text, re.M):
            if not EXERCISE.fullmatch(title):
                yield f"exercise {title!r}"


def tables_name_their_columns(notebook: Any) -> Iterator[str]:
    for text in prose(notebook):
        for head in re.findall(r"^(\|.*\|)\n\|[-:| ]+\|$", text, re.M):
            if not all(cell.strip() for cell in head.strip("|").split("|")):
                yield f"a column without a name: {head}"


def sliders_have_a_caption(notebook: Any) -> Iterator[str]:
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.get("data", {}).get("text/plain", "").startswith("<Explore"):
                figure = cell.metadata.get("mystnb", {}).get("figure", {})
                if not figure.get("caption") or not figure.get("name"):
                    yield f"{cell.id}: a slider without caption or name"


def nothing_private_is_shown(notebook: Any) -> Iterator[str]:
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        listings = [output.get("data", {}).get("text/markdown", "") for output in cell.outputs]
        for text in (cell.source, *listings):
            yield from (f"{cell.id}: {name}" for name in PRIVATE.findall(text))
        own = re.sub(r"^from torch.*$", "", cell.source, flags=re.M)
        if found := re.search(r"import .*\b_[a-zA-Z]|\w\._[a-zA-Z]\w*(?!\w*\()", own):
            yield f"{cell.id}: {found[0]}"


RULES: list[Rule] = [
    ends_alike,
    boxes_have_one_name,
    exercises_have_a_title_and_a_difficulty,
    tables_name_their_columns,
    sliders_have_a_caption,
    nothing_private_is_shown,
]


def code(source: str, text: str = "", **metadata: Any) -> Any:
    kind = "text/plain" if text.startswith("<Explore") else "text/markdown"
    shown = [new_output("display_data", {kind: text})] if text else []
    return new_code_cell(source, outputs=shown, metadata=metadata)


def chapter(*cells: Any) -> Any:
    cells = tuple(new_markdown_cell(cell) if isinstance(cell, str) else cell for cell in cells)
    return new_notebook(cells=[*cells, new_markdown_cell("## Exercises\n\n## Recap")])


CAPTION = {"figure": {"caption": "What it sets.", "name": "fig-slider"}}
GOOD = chapter(
    ":::{admonition} Rule\n:class: important\nOne.\n:::\n\n| a | b |\n|---|---|\n| | 1 |",
    "```{exercise-start} Count the rows, easy\n:label: ex\n```",
    code("Explore(draw)", "<Explore n in 1, 2>", mystnb=CAPTION),
    code(
        "from torch._a import B\n_ = ax.plot(x)\nf(*_)",
        "def f():\n    torch._foreach_mul_(x, 2)\n    self.g(x)",
    ),
)
BAD: list[tuple[Rule, Any]] = [
    (ends_alike, new_notebook(cells=[new_markdown_cell("## Exercises\n\n## What we learned")])),
    (boxes_have_one_name, chapter(":::{admonition} Rule\nOne.\n:::")),
    (boxes_have_one_name, chapter(":::{admonition} Answers\n:class: dropdown\nOne.\n:::")),
    (boxes_have_one_name, chapter(":::{dropdown} Rule\nOne.\n:::")),
    (exercises_have_a_title_and_a_difficulty, chapter("```{exercise-start}\n:label: e\n```")),
    (exercises_have_a_title_and_a_difficulty, chapter("````{exercise-start} Count (easy)\n````")),
    (tables_name_their_columns, chapter("| | b |\n|---|---|\n| a | 1 |")),
    (sliders_have_a_caption, chapter(code("Explore(draw)", "<Explore n in 1, 2>"))),
    (nothing_private_is_shown, chapter(code("from x import a, _b"))),
    (nothing_private_is_shown, chapter(code("show_source(x._b)"))),
    (nothing_private_is_shown, chapter(code("f()", "def f():\n    return _g(1)"))),
    (nothing_private_is_shown, chapter(code("f()", "def f(self):\n    return self._g(1)"))),
]


@pytest.mark.parametrize(("rule", "sample"), BAD, ids=lambda value: getattr(value, "__name__", ""))
def test_a_rule_rejects_what_it_is_for(rule: Rule, sample: Any) -> None:
    assert list(rule(sample))


def test_every_rule_has_a_sample_that_breaks_it() -> None:
    assert {rule for rule, _ in BAD} == set(RULES)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_rule_lets_a_good_chapter_pass(rule: Rule) -> None:
    assert list(rule(GOOD)) == []


def test_there_are_chapters() -> None:
    assert len(CHAPTERS) >= 9


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_stored_chapter(rule: Rule, path: Any) -> None:
    assert list(rule(notebooks.read(path))) == []
