"""What the machine itself can do, the best of five: the limits that the other figures are to be read against."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import numpy as np

from nanollama.data.jit import default_threads, jit, share_out
from tests.bench.timing import Row, interleaved

_TRIAD = 2**24  # numbers in each of three arrays: 384 MiB, more than any cache holds
_MATRIX = 1536
_NUMBERS = 2**22


def bench_machine() -> list[Row]:
    """Memory bandwidth with all threads, matrix products of BLAS, random numbers of NumPy on one core."""
    threads = default_threads()
    a, b, c = (np.full(_TRIAD, value) for value in (0.0, 1.0, 2.0))
    one, all_threads = interleaved([lambda: _triad(a, b, c, 1), lambda: _triad(a, b, c, threads)], pick=min)
    bandwidth = [3 * a.nbytes / seconds / 2**30 for seconds in (all_threads, one)]
    rows = [
        Row(
            f"memory bandwidth, triad of 3 x {a.nbytes >> 20} MiB, {threads} threads",
            f"{bandwidth[0]:.1f} GiB/s",
            f"one thread {bandwidth[1]:.1f} GiB/s",
            f"{bandwidth[0] / bandwidth[1]:.1f} x",
        )
    ]
    double = np.random.default_rng(0).random((_MATRIX, _MATRIX))
    single = double.astype(np.float32)
    rates = [
        2 * _MATRIX**3 / s / 1e9 for s in interleaved([lambda: double @ double, lambda: single @ single], pick=min)
    ]
    work = f"BLAS, product of {_MATRIX} x {_MATRIX} matrices"
    rows.append(Row(work, f"{rates[0]:.0f} GFLOP/s", f"float32 {rates[1]:.0f} GFLOP/s", f"{rates[1] / rates[0]:.1f} x"))
    philox, pcg = (np.random.Generator(kind(0)) for kind in (np.random.Philox, np.random.PCG64))
    buffer = np.empty(_NUMBERS)
    each = interleaved([lambda: philox.random(out=buffer), lambda: pcg.random(out=buffer)], pick=min)
    per_second = [_NUMBERS / seconds / 1e6 for seconds in each]
    work = "uniform numbers of numpy.random.Philox, one thread"
    rows.append(Row(work, f"{per_second[0]:.0f} M/s", f"PCG64 {per_second[1]:.0f} M/s", f"{each[1] / each[0]:.1f} x"))
    return rows


def describe_machine() -> str:
    """Processor, cores that may be used, caches as far as they can be read, and the system."""
    parts = [_processor(), f"{len(os.sched_getaffinity(0))} cores", *_caches(), platform.platform()]
    return ", ".join(parts)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _caches() -> list[str]:
    found = []
    for entry in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind, size = ((entry / name).read_text().strip() for name in ("level", "type", "size"))
        except OSError:
            continue
        if kind != "Instruction":
            found.append(f"L{level} {size.removesuffix('K')} KiB" if size.endswith("K") else f"L{level} {size}")
    return found


def _triad(a: np.ndarray, b: np.ndarray, c: np.ndarray, threads: int) -> None:
    share_out(lambda start, stop: _triad_part(a, b, c, start, stop), len(a), threads=threads)


@jit()
def _triad_part(a, b, c, start, stop):  # type: ignore[no-untyped-def] # numba infers
    for i in range(start, stop):
        a[i] = b[i] + 3.0 * c[i]
