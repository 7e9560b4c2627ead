"""The script that executes chapters and the comparison under nbval, tried on small
notebooks.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from book import notebooks

ROOT = Path(notebooks.__file__).parents[1]


def store(path: Path, *cells: Any, **metadata: Any) -> Path:
    path.write_text(
        notebooks.dumps(new_notebook(cells=list(cells), metadata=metadata)), encoding="utf-8"
    )
    return path


def code(source: str, outputs: Any = (), count: int | None = None, **metadata: Any) -> Any:
    return new_code_cell(source, outputs=list(outputs), execution_count=count, metadata=metadata)


def printed(text: str) -> Any:
    return new_output("stream", name="stdout", text=text)


def test_run_executes_beside_the_file_in_the_fixed_environment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "beside.txt").write_text("found")
    source = (
        "import os,"
        " warnings\nprint(open('beside.txt').read())\nprint(os.environ['OMP_NUM_THREADS'],"
        " hash('a'))"
    )
    path = store(tmp_path / "one.ipynb", new_markdown_cell("# T"), code(source), code("1 + 1"))
    assert notebooks.main(["run", str(path)]) == 0
    cells = notebooks.read(path).cells
    expected = subprocess.run(
        [sys.executable, "-c", "print(hash('a'))"],
        env={**os.environ, "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert cells[1].outputs[0].text == f"found\n1 {expected.stdout}"
    assert cells[2].outputs[0].data["text/plain"] == "2"
    assert [cell.execution_count for cell in cells[1:]] == [1, 2]
    assert notebooks.is_normal(path)
    assert "one.ipynb" in capsys.readouterr().out


def test_a_failing_cell_is_named_in_one_line_and_the_file_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = store(
        tmp_path / "bad.ipynb", new_markdown_cell("# T"), code("x = 1\nassert x == 2, 'not two'")
    )
    before = path.read_bytes()
    assert notebooks.main(["run", str(path)]) == 1
    assert (
        capsys.readouterr().err
        == 'bad.ipynb, cell 2, line 2 (assert x == 2, "not two"): AssertionError: not two\n'
    )
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_run_formats_and_code_that_does_not_parse_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = store(tmp_path / "n.ipynb", code("x = {  'a':1}"))
    assert notebooks.main(["run", str(path)]) == 0
    assert notebooks.read(path).cells[0].source == 'x = {"a": 1}'
    path = store(tmp_path / "n.ipynb", code("x = ("))
    assert notebooks.main(["run", str(path)]) == 1
    assert re.match(r"n\.ipynb, cell 1.*: SyntaxError", capsys.readouterr().err)


def test_a_dead_kernel_is_named_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = store(tmp_path / "dead.ipynb", code("import os\nos._exit(1)"))
    assert notebooks.main(["run", str(path)]) == 1
    assert capsys.readouterr().err.startswith("dead.ipynb, cell 1: DeadKernelError")


def test_a_missing_file_is_a_users_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert notebooks.main(["check", str(tmp_path / "none.ipynb")]) == 2
    assert "no such notebook" in capsys.readouterr().err


def test_normal_form_drops_what_differs_from_run_to_run_and_keeps_what_is_said(
    tmp_path: Path,
) -> None:
    live = {notebooks.LIVE_WIDGET: {"model_id": "ab12"}}
    shown = new_output("display_data", {**live, "text/plain": "<Explore>"})
    only_live = new_output("display_data", dict(live))
    cell = code(
        "show()  ",
        [shown, only_live],
        1,
        execution={"iopub.status.busy": "now"},
        mystnb={"image": {"alt": "x"}},
        tags=[],
    )
    path = store(
        tmp_path / "n.ipynb",
        cell,
        widgets={"state": {}},
        language_info={"name": "python", "version": "3.11.7"},
    )
    assert not notebooks.is_normal(path)
    notebook = notebooks.read(path)
    notebooks.normalise(notebook)
    [kept] = notebook.cells
    assert (kept.id, kept.source, kept.execution_count) == ("cell-001", "show()", 1)
    assert kept.metadata == {"mystnb": {"image": {"alt": "x"}}}
    assert [output.data for output in kept.outputs] == [{"text/plain": "<Explore>"}]
    text = notebooks.dumps(notebook)
    assert not any(noise in text for noise in ("widget", "3.11.7", "iopub"))
    path.write_text(text, encoding="utf-8")
    assert notebooks.is_normal(path)


def test_check_names_what_is_not_normal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = store(tmp_path / "n.ipynb", new_markdown_cell("# T", id="random"))
    assert notebooks.main(["check", str(path)]) == 1
    assert "n.ipynb: not in normal form" in capsys.readouterr().err


@pytest.fixture(scope="module")
def conftest() -> Any:
    spec = importlib.util.spec_from_file_location("root_conftest", ROOT / "conftest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("loss 1.2345", "loss 1.2346", True),
        ("loss 1.2345", "loss 1.3345", False),
        ("loss 2.34", "loss 2.35", True),  # one unit in the last place: a value near 2.345
        ("loss 2.34", "loss 2.36", False),
        ("share 0.5", "share 0.6", False),  # one unit, but 20%
        ("[ 0.0, 1.00]", "[-0.0, 1.00]", True),
        ("1.00e-03", "1.01e-03", True),
        ("1.00e-03", "1.00e-04", False),
        ("step 100", "step 101", False),  # counts are exact
        ("3e5", "3.0e5", True),
        ("nan", "1.0", False),
        ("loss 1.0", "cost 1.0", False),
        ("1.0 2.0", "1.0", False),
        (None, None, False),
    ],
)
def test_numbers_are_compared_as_numbers_and_the_rest_as_text(
    conftest: Any, a: object, b: object, same: bool
) -> None:
    assert conftest.same_text(a, b) is same


CASES = {
    "same": (code("print(1.2345)", [printed("1.2345\n")], 1), True),
    "rounding": (code("print(1.2345)", [printed("1.2346\n")], 1), True),
    "rounding-result": (
        code(
            "1.2345", [new_output("execute_result", {"text/plain": "1.2346"}, execution_count=1)], 1
        ),
        True,
    ),
    "wrong-number": (code("print(1.2345)", [printed("1.3345\n")], 1), False),
    "wrong-text": (code("print('RIGHT')", [printed("WRONG\n")], 1), False),
    "missing-output": (code("print('said')", [], 1), False),
    "address": (code("print(object())", [printed("<object object at 0x7f0123456789>\n")], 1), True),
    "measured": (code("print(2.0)", [printed("1.0\n")], 1, tags=["measured"]), True),
    "measured-and-failing": (code("1 / 0", [printed("1.0\n")], 1, tags=["measured"]), False),
    "failing": (code("1 / 0", [], 1), False),
    "expected-failure": (
        code(
            "1 / 0",
            [new_output("error", ename="ZeroDivisionError", evalue="division by zero")],
            1,
            tags=["raises-exception"],
        ),
        True,
    ),
    "emptied": (code("print('RIGHT')"), False),
    "empty-cell": (code(""), True),
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bool]:
    """Which cells pass under the bare command, in a project that also holds a copy left
    behind by a build.
    """
    project = tmp_path_factory.mktemp("project")
    (project / "book" / "_build").mkdir(parents=True)
    for name in ("conftest.py", "pyproject.toml", "book/notebooks.py", "book/nbval_sanitize.cfg"):
        shutil.copy(ROOT / name, project / name)
    store(project / "book" / "chapter.ipynb", *(cell for cell, _ in CASES.values()))
    shutil.copy(project / "book" / "chapter.ipynb", project / "book" / "_build")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--nbval",
        "book/",
        "-v",
        "-p",
        "no:cacheprovider",
        "--color=no",
    ]
    report = subprocess.run(
        command, cwd=project, capture_output=True, text=True, timeout=120, check=False
    ).stdout
    assert "_build" not in report
    verdicts = re.findall(r"^book/chapter\S+::Cell \d+ (\w+)", report, re.MULTILINE)
    assert len(verdicts) == len(CASES)
    return {name: verdict == "PASSED" for name, verdict in zip(CASES, verdicts, strict=True)}


@pytest.mark.parametrize("name", CASES)
def test_the_bare_command_judges_a_cell(outcomes: dict[str, bool], name: str) -> None:
    assert outcomes[name] is CASES[name][1]
