"""torchrun that ends with the exit code of its ranks, where that code is a message.

`python -m nanollama.cluster.torchrun ARGUMENTS` takes the arguments of torchrun. Where a rank ended deliberately (bad
input, interrupted) it ends with the same code and says no more, the rank has said why; after any other failure it ends
with 1, as torchrun does.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from nanollama.cluster.threads import let_threads_sleep
from nanollama.spec.rundir import EXIT_BAD_INPUT, EXIT_CLAIM_LOST, EXIT_INTERRUPTED

DELIBERATE = (EXIT_BAD_INPUT, EXIT_INTERRUPTED, EXIT_CLAIM_LOST)


def main(arguments: Sequence[str]) -> int:
    """Run torchrun in this process and return the exit code."""
    let_threads_sleep()
    # torchrun tells that it gives each of several ranks one thread, and repeats at length what a failed rank has said
    logging.getLogger("torch.distributed.run").setLevel(logging.ERROR)
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
    try:
        run.run(run.parse_args(list(arguments)))  # type: ignore[no-untyped-call] # as torch left them
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        codes = {process.exitcode for process in error.failures.values()}
        deliberate = next((code for code in DELIBERATE if code in codes), None)
        if deliberate is None:
            ending = f"signal {-failure.exitcode}" if failure.exitcode < 0 else f"exit code {failure.exitcode}"
            print(f"rank {rank} ended with {ending}; the other ranks were stopped", file=sys.stderr)
        return 1 if deliberate is None else deliberate
    except SignalException as error:
        return 128 + error.sigval
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
