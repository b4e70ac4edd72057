"""How every script of the library ends on bad input: each problem on standard error, exit code 2, no traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from nanollama.spec.base import SpecError
from nanollama.spec.rundir import EXIT_BAD_INPUT


def run_command(main: Callable[[Sequence[str]], int], arguments: Sequence[str] | None = None) -> int:
    """Run `main` on the command line's arguments and return its exit code; a SpecError becomes a message and 2."""
    try:
        return main(sys.argv[1:] if arguments is None else arguments)
    except SpecError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
