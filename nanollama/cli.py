"""The entry point of `n2n`: how it ends. Its commands are in nanollama.commands.root.

Nothing is imported here but what is needed to be interrupted without a traceback.
"""

from __future__ import annotations

import os
import sys

EXIT_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 1, 2, 130


def main() -> None:
    """Run the command line."""
    try:
        from nanollama.commands.root import command  # noqa: PLC0415 - so that Ctrl-C meanwhile is caught

        command()(prog_name="n2n")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader of our output has left
        sys.exit(EXIT_FAILED)
    except Exception as error:
        code = _explain(error)
        if code is None:
            raise
        sys.exit(code)


def _explain(error: Exception) -> int | None:
    """Print an error that users can cause; its exit code, or None for one that is ours."""
    from nanollama.api.errors import ApiError, InvalidRequest  # noqa: PLC0415 - as above
    from nanollama.commands.output import plain  # noqa: PLC0415
    from nanollama.spec.base import SpecError  # noqa: PLC0415
    from nanollama.stack import StackError  # noqa: PLC0415

    if isinstance(error, SpecError):
        lines, code = [str(problem) for problem in error.problems], EXIT_BAD_INPUT
    elif isinstance(error, InvalidRequest):
        lines, code = [str(error)], EXIT_BAD_INPUT
    elif isinstance(error, ApiError | StackError):
        lines, code = [str(error)], EXIT_FAILED
    else:
        return None
    for line in lines:
        print(f"error: {plain(line, keep=chr(10))}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
