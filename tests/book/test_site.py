"""The built site: no warnings, nothing fetched from elsewhere, a text alternative for
every picture, formulas without a network.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from book import notebooks
from slm2_minimal.teach import Explore
from tests.book.test_extension import BOOK, SITE

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
LOADED_LINKS = {"stylesheet", "preload", "modulepreload", "icon", "shortcut", "manifest"}
REMOTE = re.compile(r"(?:https?:)?//", re.IGNORECASE)
REMOTE_IN_CSS = re.compile(
    r"""(?:url\(\s*|@import\s+)['"]?(?:https?:)?//[^)'"\s]+""", re.IGNORECASE
)


def loaded(html: str) -> Iterator[str]:
    """What a browser fetches to show a page: scripts, style sheets, pictures, frames,
    media.
    """
    page = BeautifulSoup(html, "html.parser")
    for tag in page.find_all(
        [
            "script",
            "img",
            "iframe",
            "embed",
            "audio",
            "video",
            "source",
            "track",
            "object",
            "link",
            "input",
        ]
    ):
        if tag.name == "link" and not LOADED_LINKS & set(tag.get("rel", [])):
            continue
        yield from (tag[key] for key in ("src", "href", "data", "poster") if tag.get(key))
        yield from (part.split()[0] for part in tag.get("srcset", "").split(",") if part.strip())


def remote_resources(html: str) -> list[str]:
    """What the page would fetch from elsewhere, from tags, from styles, or by an import
    in a script of its own.
    """
    scripts = re.findall(r"""import\(?\s*['"](?:https?:)?//[^'"]+""", html)
    return (
        [address for address in loaded(html) if REMOTE.match(address)]
        + REMOTE_IN_CSS.findall(html)
        + scripts
    )


def missing_files(page: Path) -> list[str]:
    """What the page refers to and the site does not hold."""
    local = (
        re.split(r"[?#]", address)[0]
        for address in loaded(page.read_text(encoding="utf-8"))
        if not re.match(r"data:|\w+:|//", address)
    )
    return [name for name in local if name and not (page.parent / name).exists()]


def pictures_without_text(html: str) -> list[str]:
    return [
        str(image)[:80]
        for image in BeautifulSoup(html, "html.parser").find_all("img")
        if not image.get("alt", "").strip()
    ]


@pytest.mark.parametrize(
    "html",
    [
        '<script src="https://cdn.example/x.js"></script>',
        '<script src="//cdn.example/x.js"></script>',
        '<link rel="stylesheet" href="https://fonts.example/f.css">',
        '<img src="http://elsewhere.example/p.png" alt="p">',
        '<img srcset="a.png 1x, https://elsewhere.example/p.png 2x" alt="p">',
        "<style>@import 'https://fonts.example/f.css';</style>",
        '<div style="background: url(https://elsewhere.example/p.png)"></div>',
        '<script type="module">import("https://cdn.example/m.js")</script>',
        '<script type="module">import "https://cdn.example/m.js"</script>',
        '<iframe src="https://elsewhere.example"></iframe>',
    ],
)
def test_a_resource_from_elsewhere_is_found(html: str) -> None:
    assert remote_resources(html)


def test_links_to_follow_and_local_files_are_no_remote_resources() -> None:
    html = (
        '<a href="https://arxiv.org">x</a><script src="_static/x.js"></script><link rel="next"'
        ' href="https://x.example"><img src="data:,x">'
    )
    assert remote_resources(html) == []


def test_a_missing_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "there.js").touch()
    page = tmp_path / "page.html"
    page.write_text(
        '<script src="there.js?v=1"></script><img src="gone.png" alt="x"><img'
        ' src="data:image/png;base64,x" alt="y">'
    )
    assert missing_files(page) == ["gone.png"]


@pytest.mark.parametrize("html", ['<img src="x.png">', '<img src="x.png" alt=" ">'])
def test_a_picture_without_text_is_found(html: str) -> None:
    assert pictures_without_text(html)
    assert not pictures_without_text('<img src="x.png" alt="A line">')


def copy_book(target: Path) -> Path:
    """The book without what a build has left in it, its settings as a file of their
    own.
    """
    shutil.copytree(
        BOOK, target, symlinks=False, ignore=shutil.ignore_patterns("_build", ".*", "__pycache__")
    )
    return target


def build(book: Path) -> subprocess.CompletedProcess[str]:
    command = [
        str(Path(sys.executable).with_name("jupyter-book")),
        "build",
        str(book),
        "-W",
        "-n",
        "--keep-going",
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


def sample(*extra: str) -> str:
    """A chapter with a formula, a figure and a slider, as it would be stored."""
    import matplotlib.pyplot as plt

    slider = Explore(lambda v: plt.figure(figsize=(1, 1)), "n", [1, 2], alt=lambda v: f"frame {v}")
    bundle = {
        kind: content
        for kind, content in slider._repr_mimebundle_().items()
        if kind != notebooks.LIVE_WIDGET
    }
    figure = new_output(
        "display_data", {"image/png": bundle["image/png"], "text/plain": "<Figure>"}
    )
    shown = {
        "mystnb": {
            "figure": {"caption": "A figure.", "name": "fig-sample"},
            "image": {"alt": "An empty square"},
        }
    }
    cells = [
        new_markdown_cell(
            "# Sample\n\n{term}`RoPE`, {cite:t}`bellagente2024stable`,"
            " {numref}`fig-sample`.\n\n$$\na^2\n$$"
        ),
        new_code_cell("show()", outputs=[figure], execution_count=1, metadata=shown),
        new_code_cell(
            "slider",
            outputs=[new_output("execute_result", bundle, execution_count=2)],
            execution_count=2,
        ),
        *(new_markdown_cell(text) for text in extra),
    ]
    notebook = new_notebook(cells=cells)
    notebooks.normalise(notebook)
    return notebooks.dumps(notebook)


def small_book(folder: Path, *extra: str) -> Path:
    """The book's own settings around one sample chapter."""
    book = copy_book(folder / "book")
    for chapter in (*book.glob("*.ipynb"), book / "coverage.md"):
        chapter.unlink()
    (book / "intro.ipynb").write_text(sample(*extra), encoding="utf-8")
    (book / "_toc.yml").write_text(
        "format: jb-book\nroot: intro\nchapters:\n- file: glossary\n- file: bibliography\n",
        encoding="utf-8",
    )
    return book


@pytest.fixture(scope="module", params=["small", "whole"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    book = small_book(folder) if request.param == "small" else copy_book(folder / "book")
    done = build(book)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return book / "_build" / "html"


def pages(site: Path) -> list[Path]:
    """All pages but index.html, which only leads to the first one."""
    found = sorted(set(site.glob("*.html")) - {site / "index.html"})
    assert site / "intro.html" in found
    return found


@pytest.mark.slow
def test_pages_fetch_nothing_from_elsewhere(site: Path) -> None:
    assert {
        page.name: remote_resources(page.read_text(encoding="utf-8")) for page in pages(site)
    } == {page.name: [] for page in pages(site)}
    sheets = list(site.rglob("*.css"))
    assert sheets
    assert [
        sheet.name for sheet in sheets if REMOTE_IN_CSS.search(sheet.read_text(encoding="utf-8"))
    ] == []


@pytest.mark.slow
def test_pages_hold_all_they_refer_to(site: Path) -> None:
    assert {page.name: missing_files(page) for page in pages(site)} == {
        page.name: [] for page in pages(site)
    }


@pytest.mark.slow
def test_pages_hold_nothing_that_this_book_never_runs(site: Path) -> None:
    assert SITE.unused(site) == []
    assert not (site / "prf-prf.html").exists()
    for page in pages(site):
        text = page.read_text(encoding="utf-8")
        assert "thebe" not in text.lower()
        assert "fontawesome.js" not in text
        scripts = [str(tag) for tag in BeautifulSoup(text, "html.parser").head.find_all("script")]
        assert len(scripts) == len(set(scripts))


@pytest.mark.slow
def test_pages_introduce_themselves(site: Path) -> None:
    for page in pages(site):
        head = BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser").head
        name, _, book = head.title.get_text().partition(" — ")
        assert name != book
        assert len(head.select("meta[name=viewport]")) == 1
        assert head.select_one("link[rel=icon]")
        for kind in ("meta[name=description]", 'meta[property="og:title"]'):
            assert head.select_one(kind)["content"].strip()


@pytest.mark.slow
def test_an_identifier_stands_for_one_element(site: Path) -> None:
    for page in pages(site):
        elements = BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser").select("[id]")
        names = [element["id"] for element in elements]
        assert sorted(names) == sorted(set(names))


@pytest.mark.slow
def test_every_picture_has_a_text_alternative(site: Path) -> None:
    assert [
        bad
        for page in pages(site)
        for bad in pictures_without_text(page.read_text(encoding="utf-8"))
    ] == []


@pytest.mark.slow
def test_sliders_are_there_without_a_kernel(site: Path) -> None:
    texts = [page.read_text(encoding="utf-8") for page in pages(site)]
    sliders = [
        slider for text in texts for slider in BeautifulSoup(text, "html.parser").select(".explore")
    ]
    assert sliders
    assert all(
        len(slider.select("input[type=range]")) == 1 and len(slider.select("img")) >= 2
        for slider in sliders
    )
    assert not any(notebooks.LIVE_WIDGET in text for text in texts)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no browser on this machine")
def test_formulas_are_set_without_a_network_or_an_error(site: Path, tmp_path: Path) -> None:
    page = next(page for page in pages(site) if 'class="math' in page.read_text(encoding="utf-8"))
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path}",
        "--virtual-time-budget=10000",
        "--dump-dom",
        "--enable-logging=stderr",
    ]
    offline = ["--host-resolver-rules=MAP * ~NOTFOUND", "--proxy-server=127.0.0.1:9"]
    done = subprocess.run(
        [BROWSER, *options, *offline, page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    drawn = BeautifulSoup(done.stdout, "html.parser")
    assert drawn.select(".math mjx-container")
    assert not drawn.select("mjx-merror")
    assert not drawn.select("mjx-container[tabindex]")
    assert not drawn.select('[aria-label="Toggle hidden content"]')
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert [line for line in console if re.search("uncaught|error|invalid", line, re.I)] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "extra",
    ["{term}`no such term`", "{cite:t}`nobody2000`", "[gone](no-such-page)", "{numref}`fig-none`"],
)
def test_a_build_with_a_broken_reference_fails(tmp_path: Path, extra: str) -> None:
    done = build(small_book(tmp_path, extra))
    assert done.returncode != 0
    assert "WARNING" in done.stdout + done.stderr
