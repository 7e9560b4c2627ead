"""What torchrun.sh runs: PyTorch's torchrun, which also knows what a user's error is.

A process that ends with 2 has said what is to be mended (cli.py), and no other start
would do better. A signal ends torchrun without a traceback; Ctrl-C given twice ends it
at once.
"""

import logging
import signal
import sys
from collections.abc import Sequence
from typing import Any

USER_ERROR = 2


def main(arguments: Sequence[str]) -> int:
    """Run torchrun. Returns 2 where a process did, 1 for another failure, 128 and its
    number for a signal.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until torchrun has handlers of its own
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher import api

    logging.disable(logging.ERROR)  # the processes, and `_monitor_workers`, have said it
    api.LocalElasticAgent = agent(api.LocalElasticAgent)  # type: ignore[attr-defined, misc]
    try:
        run.main(arguments)
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        return USER_ERROR if USER_ERROR in codes else 1
    except SignalException as error:
        return 128 + error.sigval
    except (RendezvousError, RuntimeError, OSError) as error:  # the nodes did not meet
        print(f"slm2: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def agent(torchs: Any) -> Any:
    """Torch's class of what starts and watches a node's processes, made ours."""
    from torch.distributed.elastic.multiprocessing.api import SignalException

    class Agent(torchs):  # type: ignore[misc]
        def _monitor_workers(self, group: Any) -> Any:
            """Say who failed, and make no other start after a user's error."""
            result = super()._monitor_workers(group)
            failures = result.failures
            if any(failure.exitcode == USER_ERROR for failure in failures.values()):
                self._remaining_restarts = 0
                return result

            for rank, failure in failures.items():
                how = failure.signal_name() if failure.exitcode < 0 else failure.exitcode
                print(f"slm2: rank {rank} ended with {how}", file=sys.stderr)
            if failures and self._remaining_restarts:
                print("slm2: starting again from the newest checkpoint", file=sys.stderr)
            return result

        def _shutdown(self, death_sig: Any = signal.SIGTERM, timeout: int = 30) -> None:
            """Pass a signal on and wait, but no longer than until a Ctrl-C."""
            try:
                super()._shutdown(death_sig, timeout)
            except SignalException as second:
                if second.sigval == signal.SIGINT:
                    super()._shutdown(signal.SIGKILL, timeout)
                raise

    return Agent


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
