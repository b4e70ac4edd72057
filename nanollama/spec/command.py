"""How every script of the library ends: on bad input with messages and exit code 2, and on signals."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

from nanollama.spec.base import Problem, SpecError
from nanollama.spec.rundir import EXIT_BAD_INPUT


def run_command(
    main: Callable[[Sequence[str]], int], arguments: Sequence[str] | None = None, *, usage: str | None = None
) -> int:
    """Run `main` on the command line's arguments and return its exit code; a SpecError becomes a message and 2.

    Args:
        main: takes the arguments.
        arguments: those of the command line when absent.
        usage: what --help and -h print. Its first indented line is how the command is called; with it a call without
            any argument is refused.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if usage is not None and not {"--help", "-h"}.isdisjoint(arguments):
        print(usage.strip())
        return 0
    try:
        if usage is not None and not arguments:
            call = next(line.strip() for line in usage.splitlines() if line.startswith("    "))
            raise SpecError([Problem(path="config", message="config=FILE is missing", remedy=f"write {call}")])
        return main(arguments)
    except SpecError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Within it, SIGINT and SIGTERM only set a flag; yields a function that tells whether one has come.

    For programs that have something to undo: an exception raised by a signal is lost when it comes while the
    interpreter runs a callback of the garbage collector, and SIGTERM raises none at all.
    """
    seen: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        seen.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(seen)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
