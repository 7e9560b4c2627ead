import re
import shutil
import subprocess
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest
from bs4 import BeautifulSoup

from slm2_minimal.teach import Explore

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
    assert control.find_parent("label").get_text(" ", strip=True) == "slope <m> 0.5"
    assert [image["alt"] for image in page.find_all("img")] == [
        f'a line "rising" by {v}' for v in (0.5, 1, 2)
    ]
    assert [image.has_attr("hidden") for image in page.find_all("img")] == [False, True, True]
    assert len({image["src"] for image in page.find_all("img")}) == 3
    assert page.find("script") is None
    assert not re.search(r"https?://", slider.html())


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
    page.write_text(
        f"""<!doctype html><meta charset="utf-8"><body>{slider.html()}{slider.html()}<pre id="seen"></pre><script>
        const [first, second] = document.querySelectorAll('.explore');
        const seen = e => [...e.querySelectorAll('img')].map(m => m.getClientRects().length).join('');
        const notes = [seen(first)];
        const control = first.querySelector('input');
        control.value = 2;
        control.dispatchEvent(new Event('input'));
        notes.push(seen(first), first.querySelector('output').textContent, control.getAttribute('aria-valuetext'), seen(second));
        document.getElementById('seen').textContent = notes.join(' ');
        </script>""",
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
    assert BeautifulSoup(shown, "html.parser").find(id="seen").text == "100 001 2.0 2.0 100"
