"""The package's own source on the page, so that the two can never drift apart."""

import inspect
import textwrap
from pathlib import Path
from typing import Any


def show_source(*objects: Any) -> Any:
    """The source of functions or classes as Markdown, under the path of their file.

    The output is compared when a chapter is tested: editing the package without
    executing the chapter again fails.
    """
    from IPython.display import Markdown

    root = Path(__file__).parents[2]
    parts = []
    for thing in objects:
        ours = inspect.unwrap(thing)  # a decorator is the library's
        path = Path(inspect.getsourcefile(ours) or "").relative_to(root).as_posix()
        source = textwrap.dedent(inspect.getsource(ours)).rstrip()
        parts.append(f"`{path}`\n\n```python\n{source}\n```")
    return Markdown("\n\n".join(parts))
