"""Execute the chapters and store them in one form, so that a change in the book is a
change in what it says.

    python book/notebooks.py run [FILE ...]      format, execute, normalise, store; a
    chapter that fails is left as it was python book/notebooks.py check [FILE ...]
    exit 1 where a stored chapter is not in normal form

Without files, all chapters beside this script are meant. Outputs and execution counts
are kept: they are what the site shows and what `pytest --nbval book/` compares.
Everything that differs from run to run without saying anything is dropped.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nbformat

BOOK = Path(__file__).resolve().parent

# What a kernel sees, here and under nbval. One thread and a fixed hash seed make
# outputs repeat; nothing may be fetched or animated.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
}
CELL_SECONDS = 900
KEPT_CELL_METADATA = ("mystnb", "tags")
KEPT_METADATA = {
    "kernelspec": {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    },
    "language_info": {
        "file_extension": ".py",
        "mimetype": "text/x-python",
        "name": "python",
        "pygments_lexer": "ipython3",
    },
}
LIVE_WIDGET = "application/vnd.jupyter.widget-view+json"


class ChapterError(Exception):
    """A cell failed; the message is one line that names chapter, cell, line and error,
    `details` the whole traceback.
    """

    def __init__(self, message: str, details: str) -> None:
        super().__init__(message)
        self.details = details


def chapters(files: list[Path]) -> list[Path]:
    """The notebooks meant: those given, else all that stand beside this script, in
    order.
    """
    return files or sorted(BOOK.glob("*.ipynb"))


def execute(notebook: Any, name: str, directory: Path = BOOK) -> None:
    """Run all cells in place with `directory` as the working directory. Raises
    ChapterError at the first cell that fails.
    """
    from nbclient import NotebookClient
    from nbclient.exceptions import CellControlSignal, DeadKernelError

    current = 0

    def note(cell: Any, cell_index: int) -> None:
        nonlocal current
        current = cell_index

    client = NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(directory)}},
        coalesce_streams=True,
        store_widget_state=False,
        on_cell_start=note,
        extra_arguments=["--log-level=ERROR"],
    )
    # ipykernel reads the last one: with it, output written below Python goes to the
    # terminal, as it does when pytest starts the kernel.
    environment = {**os.environ, **ENVIRONMENT, "PYTEST_CURRENT_TEST": name}
    try:
        client.execute(env=environment)
    except (CellControlSignal, DeadKernelError) as error:
        raise ChapterError(
            f"{name}, cell {current + 1}{_what_failed(error)}",
            _plain(str(error)),
        ) from None


def _what_failed(error: Exception) -> str:
    """`, line 3 (assert a == b): AssertionError`, as far as it is known."""
    kind = getattr(error, "ename", type(error).__name__)
    message = str(getattr(error, "evalue", error)).strip().split("\n")[0]
    at = re.search(
        r"^-+>\s*(\d+)\s(.*)$",
        _plain(str(getattr(error, "traceback", ""))),
        re.MULTILINE,
    )
    place = f", line {at[1]} ({at[2].strip()})" if at else ""
    return f"{place}: {kind}" + (f": {message}" if message else "")


def _plain(text: str) -> str:
    """Without terminal colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def normalise(notebook: Any) -> None:
    """Bring a notebook into the one stored form, in place: what carries no meaning is
    dropped, cell ids follow the order.
    """
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    notebook.metadata.clear()
    notebook.metadata.update(KEPT_METADATA)
    for number, cell in enumerate(notebook.cells, start=1):
        cell.id = f"cell-{number:03d}"
        cell.source = "\n".join(
            line.rstrip() for line in cell.source.rstrip().split("\n")
        )
        for key in [
            key
            for key in cell.metadata
            if key not in KEPT_CELL_METADATA or not cell.metadata[key]
        ]:
            del cell.metadata[key]
        if cell.cell_type == "code":
            cell.outputs = [
                output
                for output in map(_without_live_widget, cell.outputs)
                if output is not None
            ]


def _without_live_widget(output: Any) -> Any:
    """The output without the reference to a widget of a kernel that is gone; None where
    nothing else was in it.
    """
    if "data" not in output:
        return output
    output.data.pop(LIVE_WIDGET, None)
    return output if output.data else None


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def dumps(notebook: Any) -> str:
    """A notebook as it is stored. Raises nbformat's ValidationError where it is not a
    valid one.
    """
    nbformat.validate(notebook)
    split = nbformat.v4.rwbase.split_lines(nbformat.from_dict(notebook))
    return (
        json.dumps(split, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    )


def formatted(notebook: Any, path: Path) -> Any:
    """The notebook with its code laid out by the project's formatter; code that does
    not parse stays as it is and fails when it runs.
    """
    command = [
        sys.executable,
        "-m",
        "ruff",
        "format",
        "--quiet",
        "--stdin-filename",
        str(path.resolve()),
        "-",
    ]
    done = subprocess.run(
        command,
        input=nbformat.writes(notebook),
        capture_output=True,
        text=True,
        check=False,
    )
    return (
        notebook
        if done.returncode
        else nbformat.reads(done.stdout, as_version=4)
    )


def run(path: Path) -> float:
    """Format, execute and store one chapter; the seconds that took. Raises ChapterError
    and leaves the file alone where a cell fails.
    """
    notebook = formatted(read(path), path)
    began = time.perf_counter()
    execute(notebook, path.name, path.resolve().parent)
    seconds = time.perf_counter() - began
    normalise(notebook)
    part = path.with_suffix(".part")
    part.write_text(dumps(notebook), encoding="utf-8")
    part.replace(path)
    return seconds


def is_normal(path: Path) -> bool:
    """Whether the file is, byte for byte, what `run` would store with the same
    outputs.
    """
    notebook = read(path)
    normalise(notebook)
    return path.read_text(encoding="utf-8") == dumps(notebook)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="notebooks.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("action", choices=["run", "check"])
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE")
    parser.add_argument(
        "--traceback",
        action="store_true",
        help="show the whole traceback of a cell that fails",
    )
    options = parser.parse_args(arguments)
    missing = [path for path in options.files if not path.is_file()]
    if missing:
        print(f"{missing[0]}: no such notebook", file=sys.stderr)
        return 2
    failed = 0
    for path in chapters(options.files):
        if options.action == "check":
            if not is_normal(path):
                failed += 1
                print(
                    f"{path.name}: not in normal form; python book/notebooks.py"
                    f" run {path}",
                    file=sys.stderr,
                )
            continue
        try:
            print(f"{path.name:30} {run(path):7.1f} s", flush=True)
        except ChapterError as error:
            failed += 1
            if options.traceback:
                print(error.details, file=sys.stderr)
            print(error, file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
