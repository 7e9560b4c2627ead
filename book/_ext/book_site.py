"""What the site leaves out and adds: the last step of a build, for HTML only.

The theme and its extensions carry scripts that this book never runs (Thebe, an
icon font as a script, MathJax in eight variants), and some of them twice, which
browsers report as errors. They are dropped here. Pages get a description, and
outputs that are wider than the page are marked, so that the style sheet can set
them smaller or wrap them.
"""

import html
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from docutils import nodes

# In a window of 1280 pixels, of which a scroll bar may take 15, a line holds 83
# columns at 13 pixels a letter and 100 at 11; book.css has the sizes.
COLUMNS, WIDE_COLUMNS = 83, 100
DESCRIPTION_LENGTH = 200

# Of MathJax, pages load one file; it fetches fonts, and extensions by name.
MATHJAX_KEPT = ("tex-chtml.js", "output/chtml/fonts/", "input/tex/extensions/")
UNUSED = (
    "_static/**/*.map",
    "_static/locales/**/*",
    "_static/scripts/fontawesome.js*",
    "_static/sphinx-thebe.*",
    "_static/**/*webpack-macros.html",
)

_FONT_SCRIPT = re.compile(
    r"\s*(?:<!-- So that users can add custom icons -->\s*)?"
    r"<script[^>]*scripts/fontawesome\.js[^>]*></script>"
)
_TITLE = re.compile(r"<title>(.*?) &#8212; (.*?)</title>", re.DOTALL)
_VIEWPORT = re.compile(r'\s*<meta name="viewport"[^>]*>')

# What assistive technology reads: roles and labels that hide the words beside
# them, and identifiers that several exercises share.
_NAMES = {
    '<summary aria-label="Toggle hidden content">': "<summary>",
    ' title="Search" aria-label="Search"': "",
    ' role="doc-biblioentry"': ' role="listitem"',
    '<section id="exercise-content">': "<section>",
    '<section id="solution-content">': "<section>",
    '<div id="pst-primary-sidebar" class': (
        '<div id="pst-primary-sidebar" role="region" aria-label="Book" class'
    ),
}


def without_thebe(app: Any) -> None:
    """Thebe asks another server for a kernel; this book is offline."""
    for listeners in app.events.listeners.values():
        listeners[:] = [
            listener
            for listener in listeners
            if listener.handler.__module__.split(".")[0] != "sphinx_thebe"
        ]


def once(files: Iterable[Any]) -> list[Any]:
    """Scripts or style sheets without those of Thebe and without repetitions: a
    script that declares a constant fails when it runs again.
    """
    kept: dict[tuple[str, str], Any] = {}
    for file in files:
        name = str(getattr(file, "filename", file) or "")
        body = str(getattr(file, "attributes", {}).get("body") or "")
        if "thebe" not in name + body:
            kept.setdefault((name.split("?")[0], body), file)
    return list(kept.values())


def description(doctree: Any) -> str:
    """The first paragraph of a page's text, cut at a word."""
    for paragraph in doctree.findall(nodes.paragraph):
        if isinstance(paragraph.parent, nodes.section):
            text = " ".join(paragraph.astext().split())
            if len(text) <= DESCRIPTION_LENGTH:
                return text
            return (
                text[:DESCRIPTION_LENGTH].rsplit(" ", 1)[0].rstrip(",;:.")
                + " …"
            )
    return ""


def metatags(values: dict[str, str]) -> str:
    """One `<meta>` per value that is there; Open Graph's are properties."""
    return "".join(
        f'\n<meta {"property" if name.startswith("og:") else "name"}="{name}"'
        f' content="{html.escape(value)}" />'
        for name, value in values.items()
        if value
    )


def on_page(
    app: Any, name: str, template: str, context: dict[str, Any], doctree: Any
) -> None:
    context["script_files"] = once(context["script_files"])
    context["css_files"] = once(context["css_files"])
    title = html.unescape(re.sub(r"<[^>]+>", "", context.get("title") or ""))
    text = (
        description(doctree) if doctree else ""
    ) or app.config.site_description
    context["metatags"] = context.get("metatags", "") + metatags(
        {
            "description": text,
            "og:title": title or app.config.html_title,
            "og:description": text,
            "og:type": "website" if name == app.config.root_doc else "article",
            "og:site_name": app.config.html_title,
        }
    )


def longest_line(text: str) -> int:
    return max(map(len, text.split("\n")))


def mark_wide_outputs(app: Any, doctree: Any, name: str) -> None:
    """A printed table may be set smaller to fit, but never broken; what no size
    can fit is prose or a command, and wraps.
    """
    for block in doctree.findall(nodes.literal_block):
        if "output" in block["classes"]:
            columns = longest_line(block.astext())
            if columns > COLUMNS:
                block["classes"].append(
                    "wide" if columns <= WIDE_COLUMNS else "wrapped"
                )


def finished(page: str) -> str:
    """A page without the script that draws icons a second time, with the book's
    name once in its title, one viewport, and names that can be read out.
    """
    page = _FONT_SCRIPT.sub("", page)
    page = _TITLE.sub(
        lambda found: (
            f"<title>{found[1]}</title>" if found[1] == found[2] else found[0]
        ),
        page,
    )
    first = _VIEWPORT.search(page)
    if first:
        page = page[: first.end()] + _VIEWPORT.sub("", page[first.end() :])
    for before, after in _NAMES.items():
        page = page.replace(before, after)
    return page


def unused(site: Path) -> list[Path]:
    """Files of the site that no page loads."""
    mathjax = site / "_static" / "mathjax"
    found = {
        path
        for pattern in UNUSED
        for path in site.glob(pattern)
        if path.is_file()
    }
    found |= {
        path
        for path in mathjax.rglob("*")
        if path.is_file()
        and not path.relative_to(mathjax).as_posix().startswith(MATHJAX_KEPT)
    }
    return sorted(found)


def finish(app: Any, error: Exception | None) -> None:
    if error or app.builder.name != "html":
        return
    site = Path(app.outdir)
    for path in unused(site):
        path.unlink()
    for folder, _, _ in os.walk(site / "_static", topdown=False):
        if not os.listdir(folder):
            os.rmdir(folder)
    for path in site.rglob("*.html"):
        before = path.read_text(encoding="utf-8")
        after = finished(before)
        if after != before:
            path.write_text(after, encoding="utf-8")


def setup(app: Any) -> dict[str, Any]:
    app.add_config_value("site_description", "", "html", str)
    without_thebe(app)
    app.connect("html-page-context", on_page, priority=900)
    app.connect("doctree-resolved", mark_wide_outputs, priority=900)
    # last, when MathJax has been copied
    app.connect("build-finished", finish, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
