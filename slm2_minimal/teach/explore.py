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

_HANDLER = (
    "var f=this.closest('.explore');"
    "f.querySelectorAll('img').forEach((m,i)=>{m.hidden=i!=this.value});"
    "f.querySelector('output').textContent=f.querySelectorAll('img')[this.value].dataset.label;"
    "this.setAttribute('aria-valuetext',f.querySelector('output').textContent)"
)


class Explore:
    """Frames of `draw(value)` for every value, behind a slider.

    Args:
        draw: takes a value and returns a matplotlib figure; called once per value, when
        the object is made.
        name: what the slider sets, shown beside it.
        values: at most 15, each drawn at 80 dpi so that the page stays small.
        alt: takes a value and returns the text alternative of its frame: what a reader
        should see in it.
        label: how a value is printed beside the slider.
    """

    def __init__(
        self,
        draw: Callable[[Any], Any],
        name: str,
        values: Iterable[Any],
        alt: Callable[[Any], str],
        label: Callable[[Any], str] = str,
    ) -> None:
        self.name, self.values = name, list(values)
        assert 2 <= len(self.values) <= 15, "a slider needs 2 to 15 values"
        self.labels = [label(value) for value in self.values]
        self.alts = [alt(value) for value in self.values]
        self.frames = [_png(draw(value)) for value in self.values]

    def __repr__(self) -> str:
        return f"<Explore {self.name} in {', '.join(self.labels)}>"

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        return {
            **self._live(),
            "text/html": self.html(),
            "image/png": base64.b64encode(self.frames[0]).decode(),
            "text/plain": repr(self),
        }

    def html(self) -> str:
        """The static form: all frames, of which one is shown, under a native range
        input.
        """
        images = "".join(
            f'<img src="data:image/png;base64,{base64.b64encode(frame).decode()}"'
            f' alt="{html.escape(alt)}"'
            f' data-label="{html.escape(label)}"{"" if i == 0 else " hidden"}'
            ' style="max-width:100%">'
            for i, (frame, alt, label) in enumerate(
                zip(self.frames, self.alts, self.labels, strict=True)
            )
        )
        name, first = html.escape(self.name), html.escape(self.labels[0])
        slider = (
            f'<label style="display:flex;gap:.6em;align-items:center">{name} <input type="range"'
            f' min="0" max="{len(self.values) - 1}" value="0" step="1" aria-valuetext="{first}"'
            f' oninput="{html.escape(_HANDLER)}" style="flex:1;max-width:24em">'
            f" <output>{first}</output></label>"
        )
        return f'<div class="explore">{slider}{images}</div>'

    def _live(self) -> dict[str, Any]:
        """The widget's own MIME types; empty where ipywidgets is not installed."""
        try:
            import ipywidgets
        except ImportError:
            return {}
        image = ipywidgets.Image(value=self.frames[0], format="png")
        slider = ipywidgets.SelectionSlider(
            options=[(label, i) for i, label in enumerate(self.labels)],
            description=self.name,
            style={"description_width": "initial"},
        )
        slider.observe(lambda change: setattr(image, "value", self.frames[change["new"]]), "value")
        bundle: dict[str, Any] = ipywidgets.VBox([slider, image])._repr_mimebundle_()
        return {kind: content for kind, content in bundle.items() if "widget" in kind}


def _png(figure: Any) -> bytes:
    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80, metadata={"Software": None})
    plt.close(figure)
    return buffer.getvalue()
