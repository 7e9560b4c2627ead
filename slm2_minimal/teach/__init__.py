"""What only the book needs, and nothing in the package uses.

In: figures, functions and results of a chapter. Out: what a reader sees, in live
Jupyter and on the built site. Read style (one look for every figure), source (the
package's own code on the page), explore (a slider over figures), recorded (results of
experiments too long for a page), ranks (a function of the page in several processes,
chapter 8).
"""

from slm2_minimal.teach.explore import Explore
from slm2_minimal.teach.recorded import load_record, provenance, released_weights, save_record
from slm2_minimal.teach.source import show_source
from slm2_minimal.teach.style import COLORS, LINE_STYLES, use_style

__all__ = ["COLORS", "LINE_STYLES", "Explore", "load_record", "provenance", "save_record"]
__all__ += ["released_weights", "show_source", "use_style"]
