"""The book's own Sphinx extension, settings and style sheet: what they make of a
page, and that every listing fits its column.
"""

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from bs4 import BeautifulSoup
from docutils import nodes

from book import notebooks

BOOK = Path(notebooks.__file__).parent
CONFIG = yaml.safe_load((BOOK / "_config.yml").read_text(encoding="utf-8"))
STYLE = (BOOK / "_static" / "book.css").read_text(encoding="utf-8")


def extension() -> Any:
    """The book's own Sphinx extension, found as Sphinx finds it: by its folder."""
    ((name, folder),) = CONFIG["sphinx"]["local_extensions"].items()
    spec = importlib.util.spec_from_file_location(name, BOOK / folder / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SITE = extension()


def test_settings_that_pages_depend_on() -> None:
    settings = CONFIG["sphinx"]["config"]
    assert settings["html_context"]["default_mode"] == "auto"
    assert settings["html_domain_indices"] is False
    assert settings["mathjax3_config"]["options"]["enableMenu"] is False
    assert 50 < len(settings["site_description"]) <= SITE.DESCRIPTION_LENGTH
    assert (BOOK / CONFIG["html"]["favicon"]).is_file()


def test_a_script_is_loaded_once_and_thebe_never() -> None:
    def script(name: str, body: str = "") -> SimpleNamespace:
        return SimpleNamespace(filename=name, attributes={"body": body})

    files = [
        script("a.js?v=1"),
        script("", "let x = 1"),
        script("a.js?v=2"),
        script("", "let x = 1"),
        script("", "let x = 2"),
        script("_static/sphinx-thebe.js"),
        script("", "const THEBE_JS_URL = 1; const thebe_selector = 2"),
    ]
    assert SITE.once(files) == [files[0], files[1], files[4]]


def test_a_page_says_its_name_once() -> None:
    def titled(title: str) -> str:
        return f"<title>{title}</title>"

    assert SITE.finished(titled("Book &#8212; Book")) == titled("Book")
    assert SITE.finished(titled("One &#8212; Book")) == titled("One &#8212; Book")


def test_a_page_keeps_what_it_needs() -> None:
    viewport = '<meta name="viewport" content="width=device-width" />'
    page = (
        f"{viewport}\n{viewport}<!-- So that users can add custom icons -->\n"
        '<script defer src="_static/scripts/fontawesome.js?digest=1"></script>'
        '<script defer src="_static/scripts/bootstrap.js"></script>'
        '<details><summary aria-label="Toggle hidden content"><p>Show code</p></summary>'
    )
    assert SITE.finished(page) == (
        f'{viewport}<script defer src="_static/scripts/bootstrap.js"></script>'
        "<details><summary><p>Show code</p></summary>"
    )


def test_what_no_page_loads_is_unused(tmp_path: Path) -> None:
    names = {
        "_static/scripts/fontawesome.js": True,
        "_static/scripts/bootstrap.js": False,
        "_static/scripts/bootstrap.js.map": True,
        "_static/mathjax/tex-chtml.js": False,
        "_static/mathjax/tex-svg.js": True,
        "_static/mathjax/output/chtml/fonts/tex.js": False,
        "_static/mathjax/input/tex/extensions/cancel.js": False,
        "_static/mathjax/sre/mathmaps/de.json": True,
        "_static/locales/de/togglebutton.mo": True,
        "intro.html": False,
    }
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert {path.relative_to(tmp_path).as_posix() for path in SITE.unused(tmp_path)} == {
        name for name, is_unused in names.items() if is_unused
    }


@pytest.mark.parametrize(
    ("columns", "mark"), [(83, None), (84, "wide"), (100, "wide"), (101, "wrapped")]
)
def test_a_wide_output_is_marked(columns: int, mark: str | None) -> None:
    text = f"short\n{'x' * columns}\nshort"
    output = nodes.literal_block(text, text, classes=["output", "stream"])
    code = nodes.literal_block(text, text)
    SITE.mark_wide_outputs(None, nodes.container("", output, code), "page")
    assert output["classes"][2:] == ([mark] if mark else [])
    assert code["classes"] == []


def test_a_description_is_the_first_paragraph_cut_at_a_word() -> None:
    def page(text: str) -> nodes.section:
        note = nodes.note("", nodes.paragraph(text="not this"))
        return nodes.section("", nodes.title(text="T"), note, nodes.paragraph(text=text))

    assert SITE.description(page("A short one.")) == "A short one."
    cut = SITE.description(page("word, " * 100))
    assert len(cut) <= SITE.DESCRIPTION_LENGTH + 2
    assert cut.endswith("word …")
    assert SITE.description(nodes.section("", nodes.title(text="T"))) == ""


def test_meta_tags_are_escaped_and_never_empty() -> None:
    tags = SITE.metatags({"description": 'a "b" <c>', "og:title": "T", "og:empty": ""})
    found = BeautifulSoup(tags, "html.parser").find_all("meta")
    assert [dict(tag.attrs) for tag in found] == [
        {"name": "description", "content": 'a "b" <c>'},
        {"property": "og:title", "content": "T"},
    ]


@pytest.mark.parametrize(
    ("selector", "declaration"),
    [
        ("span.math", "overflow-x: auto"),
        (".explore", "overflow-x: auto"),
        (".cell_input pre", "white-space: pre-wrap"),
        (".output.wrapped pre", "white-space: pre-wrap"),
        (".explore input:focus-visible", "outline: 3px solid"),
        (".bd-main .sidebar-toggle:focus-visible", "outline: 3px solid"),
        (".article-header-buttons .btn:focus-visible", "outline: 3px solid"),
        (".explore input", "display: none !important"),
        ("details.hide > summary", "display: none !important"),
    ],
)
def test_the_style_sheet_keeps_its_promises(selector: str, declaration: str) -> None:
    rules = re.findall(r"([^{}]+)\{([^{}]*)\}", re.sub(r"/\*.*?\*/", "", STYLE, flags=re.DOTALL))
    assert any(
        selector in [name.strip() for name in selectors.split(",")] and declaration in body
        for selectors, body in rules
    )


def listings(chapter: Path) -> Iterator[str]:
    """Source that a stored chapter shows: Python in its Markdown outputs."""
    for cell in notebooks.read(chapter).cells:
        for output in cell.get("outputs", []):
            text = output.get("data", {}).get("text/markdown", "")
            yield from re.findall(r"```python\n(.*?)\n```", text, re.DOTALL)


@pytest.mark.parametrize("chapter", notebooks.chapters([]), ids=lambda path: path.stem)
def test_a_listing_fits_its_column(chapter: Path) -> None:
    """No wider than what book.css can set in 11 pixels without a break."""
    too_long = [
        line
        for listing in listings(chapter)
        for line in listing.split("\n")
        if len(line) > SITE.WIDE_COLUMNS
    ]
    assert too_long == []
