"""torchrun that ends with the exit code of its ranks, where that code is a message, and passes requests to stop on.

`python -m nanollama.cluster.torchrun ARGUMENTS` takes the arguments of torchrun. SIGINT, SIGTERM and SIGUSR1 go to
every rank here, and it is for the ranks to end: torchrun itself would kill them half a minute later, forget their exit
codes, and die of SIGUSR1. Where a rank ended deliberately (bad input, interrupted) it ends with the same code and says
no more, the rank has said why; after a signal that ended a rank with 128 + its number; after any other failure with 1,
as torchrun does.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from nanollama.cluster.threads import let_threads_sleep
from nanollama.spec.rundir import EXIT_BAD_INPUT, EXIT_CLAIM_LOST, EXIT_INTERRUPTED

DELIBERATE = (EXIT_BAD_INPUT, EXIT_INTERRUPTED, EXIT_CLAIM_LOST)
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def main(arguments: Sequence[str]) -> int:
    """Run torchrun in this process and return the exit code."""
    let_threads_sleep()
    # torchrun tells that it gives each of several ranks one thread, and repeats at length what a failed rank has said
    logging.getLogger("torch.distributed.run").setLevel(logging.ERROR)
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
    options = run.parse_args(list(arguments))  # type: ignore[no-untyped-call] # as torch left it
    options.signals_to_handle = "SIGHUP,SIGQUIT"  # the others are ours
    last_signal = 0

    def pass_on(number: int, _frame: FrameType | None) -> None:
        nonlocal last_signal
        last_signal = number
        ranks = children()
        if not ranks:  # nobody has started yet, or this system does not tell
            raise SignalException(f"got signal {number}", sigval=signal.Signals(number))
        for rank in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(rank, number)

    for number in PASSED_ON:
        signal.signal(number, pass_on)
    try:
        run.run(options)  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        codes = {process.exitcode for process in error.failures.values()}
        deliberate = next((code for code in DELIBERATE if code in codes), None)
        if deliberate is not None:
            return deliberate
        if last_signal and codes & {-last_signal, 128 + last_signal}:
            return 128 + last_signal
        ending = f"signal {-failure.exitcode}" if failure.exitcode < 0 else f"exit code {failure.exitcode}"
        print(f"rank {rank} ended with {ending}; the other ranks were stopped", file=sys.stderr)
        return 1
    except SignalException as error:
        return 128 + int(error.sigval)
    finally:
        for number in PASSED_ON:
            signal.signal(number, signal.SIG_IGN)  # the exit code is known, a late signal must not change it
    return 0


def children() -> list[int]:
    """Process ids of the children of this process, the ranks; none where the system does not tell."""
    pids: list[int] = []
    for task in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            pids += map(int, task.read_text().split())
    return pids


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
