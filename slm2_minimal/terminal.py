"""What a user sees of the command line: the package's log, and errors of one line."""

import io
import logging
import sys

from slm2_minimal.config.errors import one_line


def complain(message: str, code: int) -> int:
    """Say what is wrong in one line, and return the exit code."""
    print(f"slm2: {one_line(message)}", file=sys.stderr)
    return code


class _Terminal(logging.Handler):
    """Lines to standard output, warnings to standard error.

    Unlike logging's own handlers it lets through what `print` raises: a closed pipe
    ends the command.
    """

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            print(f"slm2: warning: {one_line(self.format(record))}", file=sys.stderr, flush=True)
        else:
            print(self.format(record), flush=True)


def log_to_terminal() -> None:
    """Show what the package logs, from INFO on; once, however often it is called. Where
    the terminal cannot show a character it shows its escape.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    logger = logging.getLogger("slm2_minimal")
    logger.setLevel(logging.INFO)
    if not any(isinstance(handler, _Terminal) for handler in logger.handlers):
        logger.addHandler(_Terminal())
