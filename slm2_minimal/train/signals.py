"""Signals that ask a run to stop: Ctrl-C, and the SIGTERM of a batch system or of
torchrun.
"""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class StopSignals:
    """Whether one was received; the trainer looks at it once a step, and then saves and
    ends.
    """

    def __init__(self) -> None:
        self.received = False

    @contextmanager
    def caught(self) -> Iterator[None]:
        """For as long as the block lasts. A Ctrl-C after that ends the process at once;
        SIGTERM may come twice for one request, since both SLURM and torchrun pass it
        on.
        """

        def note(number: int, frame: object) -> None:
            if not self.received:
                print(
                    f"\n{signal.Signals(number).name}: saving after this step; Ctrl-C to stop at"
                    " once",
                    file=sys.stderr,
                    flush=True,
                )
            self.received = True
            signal.signal(signal.SIGINT, signal.SIG_DFL)

        old = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
