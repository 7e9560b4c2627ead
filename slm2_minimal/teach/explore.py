"""A slider over figures that works wherever the chapter is read.

Live Jupyter shows an ipywidgets slider. The built site shows the same frames under a
plain HTML range input with one inline handler: no kernel, no script from elsewhere,
usable by keyboard, with a text alternative per frame. LaTeX takes the first frame, and
tests compare a line of text.
"""

import base64
import html
import io
from collections.abc import Callable, Iterable
from typing import Any

DPI = 160  # of the frames; they are shown at the size of the page's other figures
COLORS = 64
HANDLER = (
    "var e=this.closest('.explore'),f=e.querySelectorAll('img');"
    "f.forEach((m,i)=>{m.hidden=i!=this.value});"
    "e.querySelector('output').textContent=f[this.value].dataset.label;"
    "this.setAttribute('aria-valuetext',f[this.value].alt)"
)


class Explore:
    """Frames of `draw(value)` for every value, behind a slider.

    `draw` returns a matplotlib figure; it is called once per value, when the object is
    made. `name` is what the slider sets, `values` are 2 to 15, in its order. `alt`
    gives the text alternative of a frame: what a reader should see in it. `label` says
    how a value is printed; `start` is what is shown before anybody moves the slider.
    """

    def __init__(
        self,
        draw: Callable[[Any], Any],
        name: str,
        values: Iterable[Any],
        alt: Callable[[Any], str],
        label: Callable[[Any], str] = str,
        start: Any = None,
    ) -> None:
        self.name, self.values = name, list(values)
        assert 2 <= len(self.values) <= 15, "a slider needs 2 to 15 values"
        self.start = 0 if start is None else self.values.index(start)
        self.labels = [label(value) for value in self.values]
        self.alts = [alt(value) for value in self.values]
        self.width = 0  # in pixels of the page, set by the frames
        self.frames = [self._frame(draw(value)) for value in self.values]

    def __repr__(self) -> str:
        return f"<Explore {self.name} in {', '.join(self.labels)}>"

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        return {
            **self._live(),
            "text/html": self.html(),
            "image/png": base64.b64encode(self.frames[self.start]).decode(),
            "text/plain": repr(self),
        }

    def html(self) -> str:
        """The static form: all frames, one of them shown, under a range input."""
        images = ""
        for i, frame in enumerate(self.frames):
            hidden = "" if i == self.start else " hidden"
            images += (
                f'<img src="data:image/png;base64,{base64.b64encode(frame).decode()}"'
                f' alt="{html.escape(self.alts[i])}" data-label="{html.escape(self.labels[i])}"'
                f' width="{self.width}" style="max-width:100%;height:auto"{hidden}>'
            )

        # After Back, a browser would put the thumb where it was, but not the frame.
        name, label = html.escape(self.name), html.escape(self.labels[self.start])
        slider = (
            f'<input type="range" min="0" max="{len(self.values) - 1}" step="1"'
            f' value="{self.start}" autocomplete="off"'
            f' aria-valuetext="{html.escape(self.alts[self.start])}"'
            f' oninput="{html.escape(HANDLER)}" style="flex:1;max-width:24em">'
        )
        row = "display:flex;gap:.6em;align-items:center"
        return (
            f'<div class="explore"><div style="{row}">'
            f'<label style="{row};flex:1;max-width:36em">{name} {slider}</label>'
            f' <output aria-live="off">{label}</output></div>{images}</div>'
        )

    def _live(self) -> dict[str, Any]:
        """The widget's own MIME types; empty where ipywidgets is not installed."""
        try:
            import ipywidgets
        except ImportError:
            return {}
        image = ipywidgets.Image(value=self.frames[self.start], format="png", width=self.width)
        slider = ipywidgets.SelectionSlider(
            options=[(label, i) for i, label in enumerate(self.labels)],
            value=self.start,
            description=self.name,
            style={"description_width": "initial"},
        )
        slider.observe(lambda change: setattr(image, "value", self.frames[change["new"]]), "value")
        bundle: dict[str, Any] = ipywidgets.VBox([slider, image])._repr_mimebundle_()
        return {kind: content for kind, content in bundle.items() if "widget" in kind}

    def _frame(self, figure: Any) -> bytes:
        """A figure as a PNG of few colours, so that the page stays small."""
        import matplotlib.pyplot as plt
        from PIL import Image

        self.width = round(figure.get_figwidth() * figure.dpi)
        drawn, packed = io.BytesIO(), io.BytesIO()
        figure.savefig(drawn, format="png", dpi=DPI)
        plt.close(figure)
        image = Image.open(drawn).convert("RGB")
        few = image.quantize(COLORS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        few.save(packed, format="png", optimize=True)
        return packed.getvalue()
