"""Sampling and offline sets: alias tables in compiled loops, beside vectorised NumPy over cumulative tables."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import h5py
import numpy as np

from nanollama.data.gssm import Kernels, draw_kernels, joint_table
from nanollama.data.hdf5 import DatasetReader, DatasetWriter
from nanollama.data.sampler import Sampler
from nanollama.spec.gssm import GSSMSpec
from tests.bench.timing import Row, interleaved

ROOT = Path(__file__).resolve().parents[2]
LENGTH, SEQUENCES, NAIVE_SEQUENCES = 256, 16_384, 32
SET_SEQUENCES, PLAIN_SEQUENCES, PIECE, READS = 2**17, 2**13, 4096, 1000

FIRST_CALL = """
import time
start = time.perf_counter()
from nanollama.data.gssm import draw_kernels
from nanollama.data.sampler import Sampler
from nanollama.spec.gssm import GSSMSpec
latents = [{"name": f"Z{i}", "state_dim": 8, "alpha": 2e-2} for i in range(4)]
observed = {"name": "X", "state_dim": 32, "alpha": 1e-2, "parents": ["Z0", "Z1", "Z2", "Z3"], "observed": True}
spec = GSSMSpec.model_validate({"nodes": [*latents, observed]})
Sampler(draw_kernels(spec, 0), 0, "bench").sample(range(64), 256)
print(time.perf_counter() - start)
"""


def independent(*latents: tuple[int, float], symbols: int, alpha: float) -> GSSMSpec:
    """Latents (states, alpha) without parents, all parents of the observed node."""
    nodes = [{"name": f"Z{i}", "state_dim": states, "alpha": a} for i, (states, a) in enumerate(latents)]
    parents = tuple(f"Z{i}" for i in range(len(latents)))
    observed = {"name": "X", "state_dim": symbols, "alpha": alpha, "parents": parents, "observed": True}
    return GSSMSpec.model_validate({"nodes": (*nodes, observed)})


GRAPHS = {
    "4096 -> 32": independent((4096, 1.7e-4), symbols=32, alpha=1e-2),
    "8^4 -> 32": independent(*[(8, 2e-2)] * 4, symbols=32, alpha=1e-2),
    "64x64 -> 32": independent((64, 6e-3), (64, 6e-3), symbols=32, alpha=1e-2),
    "256 + 512 -> 256, alpha 0.01": independent((256, 1e-2), (512, 1e-2), symbols=256, alpha=1e-2),
}
GOALS = {"4096 -> 32": 10, "8^4 -> 32": 50, "64x64 -> 32": 50, "256 + 512 -> 256, alpha 0.01": 20}


def bench_sampling() -> list[Row]:
    """Tokens per second on all threads, and what the first call of a process takes."""
    rows = []
    for name, spec in GRAPHS.items():
        kernels = draw_kernels(spec, seed=0)
        sampler = Sampler(kernels, 0, "bench")
        sampler.sample(range(SEQUENCES), 2)
        search = CumulativeSearch(kernels)
        ours, naive = interleaved([partial(sampler.sample, range(SEQUENCES), LENGTH), search.sample], repeat=3)
        rate, beside = SEQUENCES * LENGTH / ours, NAIVE_SEQUENCES * LENGTH / naive
        work = f"sampling {name}, {SEQUENCES:,} x {LENGTH}"
        rows.append(_row(work, rate, f"cumulative search {_million(beside)}", beside, goal=f">= {GOALS[name]} M/s"))
    work = "import and first call of the sampler, 8^4 -> 32, 64 x 256, JIT cached"
    return [*rows, Row(work, f"{_first_call():.2f} s", goal="<= 1 s")]


def bench_hdf5() -> list[Row]:
    """Generate and write a set, and read single sequences of it at random."""
    kernels = draw_kernels(GRAPHS["8^4 -> 32"], seed=0)
    sampler = Sampler(kernels, 0, "bench")
    wanted = np.random.default_rng(0).permutation(PLAIN_SEQUENCES)[:READS]
    with tempfile.TemporaryDirectory() as folder:
        path, plain = Path(folder, "ours.h5"), Path(folder, "plain.h5")
        ours, naive = interleaved(
            [partial(_write, path, kernels, sampler), partial(_write_plainly, plain, sampler)], repeat=3
        )
        rate, beside = SET_SEQUENCES * LENGTH / ours, PLAIN_SEQUENCES * LENGTH / naive
        size = path.stat().st_size / (SET_SEQUENCES * LENGTH)
        plain_size = plain.stat().st_size / (PLAIN_SEQUENCES * LENGTH)
        reader = DatasetReader(path)
        spread = wanted * (SET_SEQUENCES // PLAIN_SEQUENCES)
        with h5py.File(plain) as file:
            read, read_plain = interleaved(
                [
                    lambda: [reader.read(spread[i : i + 1]) for i in range(READS)],
                    lambda: [file["tokens"][i] for i in wanted],
                ],
                repeat=3,
            )
        reader.close()
    work = f"HDF5 set of 8^4 -> 32 generated and written, {SET_SEQUENCES:,} x {LENGTH}"
    each, each_plain = (f"{seconds / READS * 1e6:.0f} us each" for seconds in (read, read_plain))
    return [
        _row(work, rate, f"int64, gzip, one thread {_million(beside)}", beside, goal=">= 10 M/s"),
        Row("its size", f"{size:.2f} B/token", f"{plain_size:.2f} B/token", f"{plain_size / size:.1f} x", "<= 1.5 B"),
        Row(f"{READS:,} of its sequences read at random", each, each_plain, f"{read_plain / read:.1f} x"),
    ]


def _row(work: str, rate: float, beside: str, other: float, *, goal: str) -> Row:
    return Row(work, _million(rate), beside, f"{rate / other:.0f} x", goal)


def _million(rate: float) -> str:
    return f"{rate / 1e6:.1f} M tokens/s" if rate >= 1e5 else f"{rate / 1e6:.3f} M tokens/s"


class CumulativeSearch:
    """Today's practice: step by step and node by node, uniforms against rows of a full cumulative table."""

    def __init__(self, kernels: Kernels) -> None:
        self._spec = kernels.spec
        self._cumulative = {}
        for node in kernels.spec.build_order():
            self._cumulative[node.name] = np.cumsum(joint_table(kernels, node.name), axis=-1)

    def sample(self) -> np.ndarray:
        """int64 tokens [NAIVE_SEQUENCES, LENGTH]."""
        rng = np.random.default_rng(0)
        states = {name: np.zeros(NAIVE_SEQUENCES, dtype=np.int64) for name in self._cumulative}
        tokens = np.zeros((NAIVE_SEQUENCES, LENGTH), dtype=np.int64)
        for t in range(1, LENGTH):
            for node in self._spec.build_order():
                rows = self._cumulative[node.name][tuple(states[name] for name in self._spec.inputs(node))]
                uniforms = rng.random((NAIVE_SEQUENCES, 1))
                states[node.name] = np.minimum((rows <= uniforms).sum(axis=1), node.state_dim - 1)
            tokens[:, t] = states[self._spec.observed.name]
        return tokens


def _write(path: Path, kernels: Kernels, sampler: Sampler) -> None:
    with DatasetWriter(path, kernels, split="bench", seq_len=LENGTH) as writer:
        for start in range(0, SET_SEQUENCES, PIECE):
            writer.append(sampler.sample(range(start, start + PIECE), LENGTH))


def _write_plainly(path: Path, sampler: Sampler) -> None:
    """What h5py does by itself, piece by piece."""
    with h5py.File(path, "w") as file:
        tokens = file.create_dataset("tokens", (PLAIN_SEQUENCES, LENGTH), dtype="i8", compression="gzip")
        for start in range(0, PLAIN_SEQUENCES, PIECE):
            tokens[start : start + PIECE] = sampler.sample(range(start, start + PIECE), LENGTH).astype(np.int64)


def _first_call() -> float:
    """Median seconds in fresh processes that find the compiled code of one before them."""
    command = [sys.executable, "-c", FIRST_CALL]
    return statistics.median([float(subprocess.check_output(command, cwd=ROOT)) for _ in range(4)][1:])
