"""Compiled loops: how the engine's inner functions are compiled, cached and shared out among threads. No torch."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numba
from numba.core.event import Listener, register

Function = TypeVar("Function", bound=Callable[..., Any])


def _cache_directory() -> Path:
    """A directory of its own for each state of this room's sources.

    Numba looks only at the file of a function to tell whether its cached code is stale, not at the compiled functions
    that it calls in other files; with the content of all of them in the path, nothing stale is ever found.
    """
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return (Path(chosen) if chosen else home / "nanollama" / "jit") / digest.hexdigest()[:16]


def jit(*, fastmath: bool | set[str] = False, inline: bool = False) -> Callable[[Function], Function]:
    """Compile a function to machine code that runs without the interpreter's lock.

    The code is kept on the disk for the next process; where no directory can be written it is compiled every time.

    Args:
        fastmath: which liberties the compiler may take with floating point; none keeps IEEE 754 to the bit.
        inline: put the function into its callers, for the innermost ones.
    """
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": fastmath}
    if inline:
        options["inline"] = "always"

    def compiled(function: Function) -> Function:
        config: Any = numba.config
        before, config.CACHE_DIR = config.CACHE_DIR, str(_CACHE)
        try:
            return numba.njit(cache=True, **options)(function)  # type: ignore[no-any-return]
        except (OSError, RuntimeError):  # nowhere to keep the code: numba looked in every place that it knows
            return numba.njit(**options)(function)  # type: ignore[no-any-return]
        finally:
            config.CACHE_DIR = before

    return compiled


def default_threads() -> int:
    """Threads that a computation may use: OMP_NUM_THREADS where it is set, as for torch, else all allowed cores."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return int(wanted) if wanted.isdecimal() and int(wanted) > 0 else len(os.sched_getaffinity(0))


def share_out(work: Callable[[int, int], None], count: int, *, threads: int, grain: int = 1) -> None:
    """Call `work(start, stop)` on ranges that make up 0 .. count - 1, on several threads where that pays.

    A range is at least `grain` long but for the last, so that little work stays on the calling thread. The first
    error that a call raises is raised here, once every call that had begun has ended. The threads end before this
    returns: nothing survives to trouble a fork.

    Args:
        work: releases the interpreter's lock while it computes; calls must not disturb each other.
        count: length of the whole.
        threads: calls at a time.
        grain: shortest range.
    """
    length = max(grain, -(-count // (4 * threads)), 1)  # several ranges a thread: one that is slow delays the end less
    if threads <= 1 or count <= length:
        if count:
            work(0, count)
        return
    starts = range(0, count, length)
    with ThreadPoolExecutor(min(threads, len(starts))) as pool:
        futures = [pool.submit(work, start, min(start + length, count)) for start in starts]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


class _Notice(Listener):
    """Tells who waits at a terminal, once, what they wait for."""

    told = False

    def on_start(self, event: Any) -> None:  # noqa: ARG002 - as numba calls it
        """Something was not found on the disk and is being compiled."""
        if not self.told and sys.stderr.isatty():
            print("compiling the engine for this machine; this takes about 20 s, once", file=sys.stderr)
        self.told = True

    def on_end(self, event: Any) -> None:  # as above
        """It is compiled."""


register("numba:compile", _Notice())  # type: ignore[no-untyped-call]
_CACHE = _cache_directory()
