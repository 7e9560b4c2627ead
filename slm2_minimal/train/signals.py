"""What asks a run to stop: Ctrl-C, SIGTERM (SLURM, torchrun), a closed terminal."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class StopSignals:
    """Whether a signal was received: the trainer looks once a step, saves and ends."""

    def __init__(self) -> None:
        self.received = False

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Note signals for as long as the block lasts.

        The first is noted, a Ctrl-C after it ends the process at once. SIGTERM may come
        twice for one request, since both SLURM and torchrun pass it on.
        """
        signals = (signal.SIGINT, signal.SIGTERM)
        handlers = {number: signal.signal(number, self._note) for number in signals}
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def terminal_closed(self) -> None:
        """Nobody reads the lines any more, as after `| head`: save, and end."""
        self.received = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def _note(self, number: int, frame: object) -> None:
        if not self.received:
            name = signal.Signals(number).name
            message = f"\n{name}: saving after this step; Ctrl-C to stop at once"
            print(message, file=sys.stderr, flush=True)
        self.received = True
        signal.signal(signal.SIGINT, signal.SIG_DFL)
