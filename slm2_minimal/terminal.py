"""What a terminal is shown: log lines, warnings, and errors of one line."""

import io
import logging
import os
import sys

from slm2_minimal.config.errors import one_line


class _Terminal(logging.Handler):
    """Lines to standard output, or beside a command's text to standard error, where
    warnings go.

    Unlike logging's own handlers it lets through what `print` raises: a closed pipe
    ends the command.
    """

    beside_text = False

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            print(f"slm2: warning: {one_line(self.format(record))}", file=sys.stderr, flush=True)
        else:
            print(self.format(record), file=sys.stderr if self.beside_text else None, flush=True)


_terminal = _Terminal()


def log_to_terminal(*, beside_text: bool = False) -> None:
    """Show what the package logs, from INFO on; once, however often it is called.

    `beside_text`: standard output is for the text that a model writes, and no lines.
    """
    _terminal.beside_text = beside_text
    logger = logging.getLogger("slm2_minimal")
    logger.setLevel(logging.INFO)
    logger.addHandler(_terminal)


def show_any_text() -> None:
    """Where a terminal cannot show a character, show its escape in place of it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def complain(message: str, code: int) -> int:
    """Say what is wrong in one line, and return the exit code.

    Of the processes that torchrun starts on a machine, which all meet a user's error,
    the first says so.
    """
    if code != 2 or os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"slm2: {one_line(message)}", file=sys.stderr)
    return code
