"""The slider over figures: its static form, its live form, and the two in a browser."""

import base64
import io
import re
import shutil
import subprocess
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest
from bs4 import BeautifulSoup
from PIL import Image

from slm2_minimal.teach import Explore
from slm2_minimal.teach.explore import COLORS, DPI

matplotlib.use("agg")
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


def draw(slope: float):
    figure, axes = plt.subplots()
    axes.plot([0, slope])
    return figure


@pytest.fixture(scope="module")
def slider() -> Explore:
    return Explore(
        draw,
        "slope <m>",
        [0.5, 1, 2],
        alt=lambda v: f'a line "rising" by {v}',
        label=lambda v: f"{v:.1f}",
    )


def test_static_form_has_a_native_slider_over_its_frames(slider: Explore) -> None:
    page = BeautifulSoup(slider.html(), "html.parser")
    control = page.find("input", type="range")
    assert (control["min"], control["max"], control["step"]) == ("0", "2", "1")
    assert control["oninput"]
    assert control["autocomplete"] == "off", "after Back, thumb and frame agree"
    assert control["aria-valuetext"] == 'a line "rising" by 0.5'
    assert control.find_parent("label").get_text(" ", strip=True) == "slope <m>"
    assert page.find("output").get_text() == "0.5"
    assert [image["alt"] for image in page.find_all("img")] == [
        f'a line "rising" by {v}' for v in (0.5, 1, 2)
    ]
    assert [image.has_attr("hidden") for image in page.find_all("img")] == [False, True, True]
    assert len({image["src"] for image in page.find_all("img")}) == 3
    assert page.find("script") is None
    assert not re.search(r"https?://", slider.html())


def test_a_slider_that_starts_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """In every form: the static page, the picture for LaTeX, the live widget."""
    import ipywidgets

    slider = Explore(draw, "m", [1, 2, 3], alt=lambda v: f"rising by {v}", start=2)
    page = BeautifulSoup(slider.html(), "html.parser")
    control = page.find("input", type="range")
    assert (control["value"], control["aria-valuetext"]) == ("1", "rising by 2")
    assert page.find("output").get_text() == "2"
    assert [image.has_attr("hidden") for image in page.find_all("img")] == [True, False, True]

    made = []
    monkeypatch.setattr(
        ipywidgets, "VBox", lambda children: made.append(children) or ipywidgets.Box(children)
    )
    bundle = slider._repr_mimebundle_()
    assert base64.b64decode(bundle["image/png"]) == slider.frames[1]
    [(control, image)] = made
    assert (control.value, image.value) == (1, slider.frames[1])
    with pytest.raises(ValueError, match="not in list"):
        Explore(draw, "m", [1, 2], alt=str, start=3)


def test_frames_are_sharp_and_small(slider: Explore) -> None:
    """Many pixels and few colours; on the page they are as large as other figures."""
    with matplotlib.rc_context():
        figure = draw(1)
        plt.close(figure)
    for frame in slider.frames:
        image = Image.open(io.BytesIO(frame))
        assert image.width == round(figure.get_figwidth() * DPI)
        assert image.mode == "P"
        assert len(image.getcolors()) <= COLORS
        assert image.convert("RGB").getpixel((1, 1)) == (255, 255, 255)
        assert len(frame) < 20_000
    [first, *_] = BeautifulSoup(slider.html(), "html.parser").find_all("img")
    assert int(first["width"]) == round(figure.get_figwidth() * figure.dpi)


def test_every_front_end_finds_its_form(slider: Explore) -> None:
    bundle = slider._repr_mimebundle_()
    assert bundle["text/plain"] == "<Explore slope <m> in 0.5, 1.0, 2.0>"
    assert bundle["text/html"] == slider.html()
    assert bundle["image/png"].startswith("iVBOR")
    assert "application/vnd.jupyter.widget-view+json" in bundle


def test_the_text_that_tests_compare_is_the_same_every_time(slider: Explore) -> None:
    again = Explore(draw, "slope <m>", [0.5, 1, 2], alt=str, label=lambda v: f"{v:.1f}")
    assert repr(again) == repr(slider)
    assert again.frames == slider.frames


def test_no_figure_stays_open() -> None:
    before = plt.get_fignums()
    Explore(draw, "m", [1, 2], alt=str)
    assert plt.get_fignums() == before


def test_a_moved_live_slider_changes_the_picture(
    slider: Explore, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ipywidgets

    boxes = []
    monkeypatch.setattr(
        ipywidgets, "VBox", lambda children: boxes.append(children) or ipywidgets.Box(children)
    )
    slider._repr_mimebundle_()
    [(control, image)] = boxes
    assert image.value == slider.frames[0]
    control.value = 2
    assert image.value == slider.frames[2]


@pytest.mark.parametrize("values", [[1], list(range(16))])
def test_one_frame_or_too_many_are_refused(values: list[int]) -> None:
    with pytest.raises(AssertionError, match="2 to 15"):
        Explore(draw, "m", values, alt=str)


@pytest.mark.skipif(BROWSER is None, reason="no browser on this machine")
def test_the_static_slider_works_in_a_browser(slider: Explore, tmp_path: Path) -> None:
    """A script in the page moves the first of two sliders to its last value and writes
    down which frames can be seen.
    """
    page = tmp_path / "page.html"
    script = """
        const [first, second] = document.querySelectorAll('.explore');
        const seen = e => [...e.querySelectorAll('img')].map(m => m.getClientRects().length);
        const notes = [seen(first)];
        const control = first.querySelector('input');
        control.value = 2;
        control.dispatchEvent(new Event('input'));
        notes.push(seen(first), first.querySelector('output').textContent);
        notes.push(control.getAttribute('aria-valuetext'), seen(second));
        document.getElementById('seen').textContent = notes.join(' ');
    """
    page.write_text(
        '<!doctype html><meta charset="utf-8"><body>'
        f'{slider.html()}{slider.html()}<pre id="seen"></pre><script>{script}</script>',
        encoding="utf-8",
    )
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom",
    ]
    shown = subprocess.run(
        [BROWSER, *options, page.as_uri()], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    seen = BeautifulSoup(shown, "html.parser").find(id="seen").text
    assert seen == '1,0,0 0,0,1 2.0 a line "rising" by 2 1,0,0'
