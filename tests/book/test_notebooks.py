"""Rules for stored chapters that can be read off the file. Each rule yields complaints,
and each is tested on a sample that breaks it.
"""

import ast
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from book import notebooks

BOOK = Path(notebooks.__file__).parent
CHAPTERS = notebooks.chapters([])
MAX_BYTES = 1_000_000
MAX_LINES = 25
TAGS = {
    "hide-input",
    "hide-output",
    "hide-cell",
    "remove-output",
    "raises-exception",
    "output_scroll",
    "measured",
}
TAGS_ONLY_MEASURED = {"nbval-skip", "nbval-ignore-output"}
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:home|root|tmp|work|Users|mnt|opt|usr|var)/|\b[A-Z]:\\")
EMBEDDED = re.compile(r"data:[\w/+-]+;base64,[\w+/=]+")
SEEDED_BY_ARGUMENT = {"default_rng", "RandomState", "Random", "SeedSequence"}
NUMPY_GENERATORS = {"Generator", "PCG64", "BitGenerator"}
MODULE_DRAWS = {
    "seed",
    "random",
    "randint",
    "randrange",
    "choice",
    "choices",
    "sample",
    "shuffle",
    "uniform",
    "gauss",
    "getrandbits",
}
TORCH_DRAWS = {
    "rand",
    "randn",
    "randint",
    "randperm",
    "normal",
    "bernoulli",
    "multinomial",
    "rand_like",
    "randn_like",
    "randint_like",
}
TENSOR_DRAWS = {
    "normal_",
    "uniform_",
    "bernoulli_",
    "random_",
    "trunc_normal_",
    "exponential_",
    "multinomial",
}

Rule = Callable[[Any], Iterator[str]]


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(cell: Any) -> Iterator[str]:
    """Every piece of text that a cell stores as output, without embedded pictures."""
    for output in cell.get("outputs", []):
        for content in (output.get("text"), *output.get("data", {}).values()):
            if isinstance(content, str) and not content.startswith("iVBOR"):
                yield EMBEDDED.sub("", content)


def nothing_on_stderr(notebook: Any) -> Iterator[str]:
    for cell in code_cells(notebook):
        yield from (
            f"{cell.id}: stderr: {o.text[:60]}" for o in cell.outputs if o.get("name") == "stderr"
        )


def executed_from_top_to_bottom(notebook: Any) -> Iterator[str]:
    """nbval compares nothing where a count is missing; counts out of order mean that a
    reader gets other results.
    """
    cells = [cell for cell in code_cells(notebook) if cell.source.strip()]
    for expected, cell in enumerate(cells, start=1):
        if cell.execution_count != expected:
            yield f"{cell.id}: execution count {cell.execution_count}, expected {expected}"


def no_trailing_semicolon(notebook: Any) -> Iterator[str]:
    for cell in code_cells(notebook):
        if cell.source.rstrip().endswith(";"):
            yield (
                f"{cell.id}: a trailing semicolon does not silence a cell under nbval; write `_ ="
                " ...`"
            )


def pictures_have_a_text_alternative(notebook: Any) -> Iterator[str]:
    for cell in code_cells(notebook):
        for output in cell.outputs:
            data = output.get("data", {})
            has_own = data.get("text/plain", "").startswith("<Explore") or "image/png" not in data
            if (
                not has_own
                and not cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "").strip()
            ):
                yield f"{cell.id}: a figure without mystnb.image.alt"


def randomness_is_seeded(notebook: Any) -> Iterator[str]:
    seeded = False
    for cell in code_cells(notebook):
        for call in sorted(calls(cell.source), key=lambda call: (call.lineno, call.col_offset)):
            name = ast.unparse(call.func)
            *owner, function = name.split(".")
            seeded = seeded or name == "torch.manual_seed"
            has_seed = bool(call.args or call.keywords)
            if function in SEEDED_BY_ARGUMENT:
                if not has_seed:
                    yield f"{cell.id}: {name}() without a seed"
            elif (
                owner in (["np", "random"], ["numpy", "random"])
                and function not in NUMPY_GENERATORS
            ):
                yield (
                    f"{cell.id}: {name} draws from numpy's global state; use"
                    " np.random.default_rng(seed)"
                )
            elif owner == ["random"] and function in MODULE_DRAWS:
                yield f"{cell.id}: {name} draws from a global state; use random.Random(seed)"
            elif seeded or any(keyword.arg == "generator" for keyword in call.keywords):
                continue
            elif (owner == ["torch"] and function in TORCH_DRAWS) or (
                owner and function in TENSOR_DRAWS
            ):
                yield (
                    f"{cell.id}: {name} without generator= and without torch.manual_seed before it"
                )


def calls(source: str) -> Iterator[ast.Call]:
    lines = [
        "pass" if line.lstrip().startswith(("%", "!")) else line for line in source.split("\n")
    ]
    yield from (
        node for node in ast.walk(ast.parse("\n".join(lines))) if isinstance(node, ast.Call)
    )


def only_known_tags(notebook: Any) -> Iterator[str]:
    for cell in notebook.cells:
        tags = set(cell.metadata.get("tags", []))
        yield from (
            f"{cell.id}: unknown tag {tag!r}" for tag in sorted(tags - TAGS - TAGS_ONLY_MEASURED)
        )
        if tags & TAGS_ONLY_MEASURED and "measured" not in tags:
            yield f"{cell.id}: {sorted(tags & TAGS_ONLY_MEASURED)} without the tag 'measured'"
        if (
            re.search(r"^\s*#\s*(NBVAL_|PYTEST_VALIDATE)", cell.source, re.MULTILINE)
            and cell.cell_type == "code"
        ):
            yield f"{cell.id}: an nbval comment; use tags"


def cells_fit_a_screen(notebook: Any) -> Iterator[str]:
    for cell in code_cells(notebook):
        if (lines := cell.source.count("\n") + 1) > MAX_LINES:
            yield f"{cell.id}: {lines} lines of code, at most {MAX_LINES}"


def headings_in_order(notebook: Any) -> Iterator[str]:
    """One title, at the very top, and no level left out on the way down."""
    level = 0
    for cell in notebook.cells:
        if cell.cell_type != "markdown":
            continue
        prose = re.sub(r"^(`{3,}|~{3,}).*?^\1", "", cell.source, flags=re.MULTILINE | re.DOTALL)
        for marks, title in re.findall(r"^(#{1,6})\s+(.+)$", prose, re.MULTILINE):
            if (len(marks) == 1) != (level == 0):
                yield f"{cell.id}: {title!r}: a chapter has one title, and it comes first"
            elif len(marks) > level + 1:
                yield f"{cell.id}: {title!r}: from level {level} to {len(marks)}"
            level = len(marks)
    if level == 0:
        yield "no title"


def no_machine_paths(notebook: Any) -> Iterator[str]:
    for cell in notebook.cells:
        for text in (cell.source, *texts(cell)):
            if found := MACHINE_PATH.search(text):
                yield (
                    f"{cell.id}: a path of one machine:"
                    f" {text[found.start() : found.start() + 40]!r}"
                )


def no_memory_addresses(notebook: Any) -> Iterator[str]:
    for cell in code_cells(notebook):
        for text in texts(cell):
            if found := re.search(r"\bat 0x[0-9a-fA-F]{6,}", text):
                yield (
                    f"{cell.id}: an address that is another one in every run: {found[0]!r}; write"
                    " `_ = ...`"
                )


RULES: list[Rule] = [
    nothing_on_stderr,
    executed_from_top_to_bottom,
    no_trailing_semicolon,
    pictures_have_a_text_alternative,
    randomness_is_seeded,
    only_known_tags,
    cells_fit_a_screen,
    headings_in_order,
    no_machine_paths,
    no_memory_addresses,
]


def code(source: str, outputs: Any = (), count: int | None = 1, **metadata: Any) -> Any:
    return new_code_cell(source, outputs=list(outputs), execution_count=count, metadata=metadata)


def notebook_of(*cells: Any) -> Any:
    return new_notebook(cells=[new_markdown_cell("# Title"), *cells])


def picture(text: str = "<Figure size 700x360 with 1 Axes>") -> Any:
    return new_output("display_data", {"image/png": "iVBORw0", "text/plain": text})


def result(text: str) -> Any:
    return new_output("execute_result", {"text/plain": text}, execution_count=1)


STDOUT = new_output("stream", name="stdout", text="1.5 s in slm2_minimal/model/loss.py, 3/4")
GOOD = notebook_of(
    new_markdown_cell("## Part\n\n```python\n# no heading\n```\n\n### Detail\n\n## Next part"),
    code(
        "import torch\nrng = np.random.default_rng(0)\nx = torch.randn(3,"
        " generator=torch.Generator().manual_seed(0))",
        count=1,
    ),
    code(
        "_ = torch.manual_seed(1)\ny = torch.rand(2)\nrng.normal();"
        " random.Random(1).random()\nrandom.keys()\n%config x = 1",
        count=2,
    ),
    code("show()", [picture()], 3, mystnb={"image": {"alt": "A line"}}),
    code("Explore(...)", [picture("<Explore n in 1, 2>")], 4, tags=["hide-input"]),
    code("print(seconds)", [STDOUT], 5, tags=["measured", "nbval-skip"]),
)

BAD: list[tuple[Rule, Any]] = [
    (
        nothing_on_stderr,
        notebook_of(code("f()", [new_output("stream", name="stderr", text="warning")])),
    ),
    (executed_from_top_to_bottom, notebook_of(code("1", [result("1")], None))),
    (executed_from_top_to_bottom, notebook_of(code("1", count=2), code("2", count=1))),
    (no_trailing_semicolon, notebook_of(code("ax.plot(x);\n"))),
    (pictures_have_a_text_alternative, notebook_of(code("show()", [picture()]))),
    (
        pictures_have_a_text_alternative,
        notebook_of(code("show()", [picture()], mystnb={"image": {"alt": " "}})),
    ),
    (randomness_is_seeded, notebook_of(code("x = np.random.rand(3)"))),
    (randomness_is_seeded, notebook_of(code("np.random.seed(0)"))),
    (randomness_is_seeded, notebook_of(code("rng = np.random.default_rng()"))),
    (randomness_is_seeded, notebook_of(code("x = random.choice([1, 2])"))),
    (randomness_is_seeded, notebook_of(code("x = torch.randn(3)\ntorch.manual_seed(0)"))),
    (
        randomness_is_seeded,
        notebook_of(code("g = torch.Generator().manual_seed(0)\nx = torch.randn(3)")),
    ),
    (randomness_is_seeded, notebook_of(code("x = torch.empty(3).normal_()"))),
    (only_known_tags, notebook_of(code("1", tags=["skip-me"]))),
    (only_known_tags, notebook_of(code("1", tags=["nbval-skip"]))),
    (only_known_tags, notebook_of(code("1", tags=["nbval-ignore-output"]))),
    (only_known_tags, notebook_of(code("# NBVAL_IGNORE_OUTPUT\n1"))),
    (cells_fit_a_screen, notebook_of(code("x = 1\n" * MAX_LINES + "x"))),
    (headings_in_order, new_notebook(cells=[new_markdown_cell("## Part")])),
    (headings_in_order, new_notebook(cells=[new_markdown_cell("Prose")])),
    (headings_in_order, notebook_of(new_markdown_cell("# Second title"))),
    (headings_in_order, notebook_of(new_markdown_cell("### Too deep"))),
    (no_machine_paths, notebook_of(code("p", [result("PosixPath('/home/someone/book')")]))),
    (no_machine_paths, notebook_of(code("open('C:\\\\data')"))),
    (no_machine_paths, notebook_of(new_markdown_cell("Look in /tmp/x."))),
    (
        no_memory_addresses,
        notebook_of(code("ax.plot(x)", [result("[<matplotlib.lines.Line2D at 0x7f1234567890>]")])),
    ),
]


@pytest.mark.parametrize(
    ("rule", "notebook"), BAD, ids=lambda value: getattr(value, "__name__", "")
)
def test_a_rule_rejects_what_it_is_for(rule: Rule, notebook: Any) -> None:
    assert list(rule(notebook))


def test_every_rule_has_a_sample_that_breaks_it() -> None:
    assert {rule for rule, _ in BAD} == set(RULES)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_rule_lets_a_good_chapter_pass(rule: Rule) -> None:
    assert list(rule(GOOD)) == []


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_stored_chapter(rule: Rule, path: Path) -> None:
    assert list(rule(notebooks.read(path))) == []


def small_and_normal(path: Path) -> Iterator[str]:
    if path.stat().st_size > MAX_BYTES:
        yield f"{path.stat().st_size:,} bytes, at most {MAX_BYTES:,}"
    if not notebooks.is_normal(path):
        yield "not in normal form: python book/notebooks.py run"


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_stored_file(path: Path) -> None:
    assert list(small_and_normal(path)) == []


def test_files_too_large_or_not_normal_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "chapter.ipynb"
    notebook = nbformat.from_dict(GOOD)
    notebooks.normalise(notebook)
    path.write_text(notebooks.dumps(notebook), encoding="utf-8")
    assert list(small_and_normal(path)) == []

    path.write_text(json.dumps(notebook), encoding="utf-8")
    assert list(small_and_normal(path)) == ["not in normal form: python book/notebooks.py run"]

    notebook.cells[1].source = "x" * MAX_BYTES
    path.write_text(notebooks.dumps(notebook), encoding="utf-8")
    [complaint] = small_and_normal(path)
    assert "bytes" in complaint


def test_the_table_of_contents_and_the_stored_chapters_agree() -> None:
    """No rule above can pass because there was nothing to read."""
    table = yaml.safe_load((BOOK / "_toc.yml").read_text())
    files = [
        table["root"],
        *(chapter["file"] for part in table["parts"] for chapter in part["chapters"]),
    ]
    assert sorted(files) == sorted(path.stem for path in (*CHAPTERS, *BOOK.glob("*.md")))
