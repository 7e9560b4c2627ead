"""Show the package's own source in a chapter, so that the page can never drift from the
code.
"""

import inspect
import textwrap
from pathlib import Path
from typing import Any


def show_source(*objects: Any) -> Any:
    """The source of functions or classes as highlighted Markdown, under the path of
    their file.

    The output is compared when a chapter is tested: editing the package without
    executing the chapter again fails.
    """
    from IPython.display import Markdown

    package = Path(__file__).parents[1]
    parts = []
    for thing in objects:
        thing = inspect.unwrap(
            thing
        )  # a decorated function is the library's, what it wraps is ours
        path = Path(inspect.getsourcefile(thing) or "").relative_to(package.parent).as_posix()
        parts.append(
            f"`{path}`\n\n```python\n{textwrap.dedent(inspect.getsource(thing)).rstrip()}\n```"
        )
    return Markdown("\n\n".join(parts))
