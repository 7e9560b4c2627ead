"""What only the book needs: a plot style, widgets that also work on a static page,
source display, recorded runs.
"""

from slm2_minimal.teach.explore import Explore
from slm2_minimal.teach.recorded import load_record, provenance, save_record
from slm2_minimal.teach.source import show_source
from slm2_minimal.teach.style import COLORS, LINE_STYLES, use_style

__all__ = [
    "COLORS",
    "LINE_STYLES",
    "Explore",
    "load_record",
    "provenance",
    "save_record",
    "show_source",
    "use_style",
]
