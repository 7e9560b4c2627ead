"""The ledger of what the report contains points at chapters, modules and tests that
exist, at chapters that use the module, and leaves no chapter out.
"""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
BOOK = ROOT / "book"
STATUS = {"exact", "scaled down", "quoted", "added", "later"}


def rows(text: str) -> Iterator[list[str]]:
    """The cells of every table row below a table's head."""
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and cells[0] != "What":
            yield cells


def public_names(module: Path) -> set[str]:
    """The functions and classes that a module offers."""
    return {
        node.name
        for node in ast.parse(module.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    }


def names_used(code: str) -> set[str]:
    """Every name, attribute and import in a cell of code."""
    lines = ["pass" if line.lstrip().startswith(("%", "!")) else line for line in code.split("\n")]
    found = set()
    for node in ast.walk(ast.parse("\n".join(lines))):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.alias):
            found.add(node.name)
    return found


def shows(chapter: Path, module: Path) -> bool:
    """Whether a chapter has the module in it: by its path in any cell, or by one of its
    public names in the code.
    """
    path = module.as_posix().partition("slm2_minimal/")[2]
    dotted = path.removesuffix(".py").replace("/", ".")
    wanted = public_names(module)
    for cell in json.loads(chapter.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        if path in text or f"slm2_minimal.{dotted} " in text:
            return True
        if cell["cell_type"] == "code" and wanted & names_used(text):
            return True
    return False


def gaps(text: str, chapters: set[str], root: Path = ROOT, book: Path = BOOK) -> list[str]:
    """What is wrong with a ledger, a line each."""
    found, named = [], set()
    for what, chapter, code, test, status in rows(text):
        if status not in STATUS:
            found.append(f"{what}: status {status!r}")
        if (status == "later") != (not chapter and not code and not test):
            found.append(
                f"{what}: {status}, so it has"
                f" {'nothing' if status == 'later' else 'chapter, code and test'} to show"
            )
            continue
        if status == "later":
            continue
        link = re.fullmatch(r"\[\]\((\w+)\)", chapter)
        if not link or link[1] not in chapters:
            found.append(f"{what}: chapter {chapter!r}")
        else:
            named.add(link[1])
        module = root / "slm2_minimal" / code.strip("`")
        missing = [path for path in (module, root / test.strip("`")) if not path.is_file()]
        found += [f"{what}: no file {path.relative_to(root)}" for path in missing]
        page = book / f"{link[1]}.ipynb" if link else book
        if module not in missing and page.is_file() and not shows(page, module):
            found.append(f"{what}: nothing of {code} in {chapter}")
    return found + [f"no row for {chapter}" for chapter in sorted(chapters - named)]


def numbered_chapters() -> set[str]:
    table = yaml.safe_load((BOOK / "_toc.yml").read_text())
    return {
        chapter["file"]
        for part in table["parts"]
        if part.get("numbered", True)
        for chapter in part["chapters"]
    }


def test_the_ledger_has_no_gaps() -> None:
    assert gaps((BOOK / "coverage.md").read_text(), numbered_chapters()) == []


def test_each_kind_of_gap_is_found() -> None:
    good = "| Blending | [](06_mixture) | `data/mixture.py` | `tests/book/test_ledger.py` | exact |"
    chapters = {"06_mixture"}
    assert gaps(good, chapters) == []
    for change in (
        ("exact", "perhaps"),
        ("exact", "later"),
        ("[](06_mixture)", ""),
        ("06_mixture", "08_gone"),
        ("mixture.py", "gone.py"),
        ("data/mixture.py", "train/guard.py"),  # which that chapter does not use
        ("test_ledger.py", "test_gone.py"),
    ):
        assert gaps(good.replace(*change), chapters), change
    assert gaps(good, chapters | {"07_training"}) == ["no row for 07_training"]


def test_a_chapter_shows_a_module_by_its_path_or_by_a_name_in_its_code(tmp_path: Path) -> None:
    module = ROOT / "slm2_minimal" / "inference" / "generate.py"
    assert "generate" in public_names(module)
    chapter = tmp_path / "chapter.ipynb"
    for kind, source, shown in (
        ("markdown", "The model can generate text.", False),
        ("markdown", "Read `inference/generate.py`.", True),
        ("code", "print('generate')", False),
        ("code", "%time\ngenerate(model, ids, 20)", True),
        ("code", "from slm2_minimal import generate", True),
        ("code", "import slm2_minimal.inference.generate as g", True),
    ):
        cell = {"cell_type": kind, "source": source.splitlines(keepends=True)}
        chapter.write_text(json.dumps({"cells": [cell]}), encoding="utf-8")
        assert shows(chapter, module) == shown, source
