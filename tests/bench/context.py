"""Bounds of log p(x) in context mode, beside plain sampling of kernels from the prior in the same time.

`python -m tests.bench.context FIGURE.svg` draws the figure of docs/context.md and prints its table.
"""

from __future__ import annotations

import math
import os
import sys
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nanollama.data.context import true_draws, two_sided
from nanollama.data.gssm import Kernels, draw_kernels
from nanollama.data.sampler import Sampler
from nanollama.spec.gssm import GSSMSpec
from tests.bench.timing import Row

STATES, SYMBOLS, LENGTH, SEQUENCES = 4, 8, 129, 16
ALPHAS = (0.05, 0.3, 1.0)
PARTICLES = (300, 1_000, 3_000, 10_000)
DRAWS = (300, 3_000, 10_000)
_DRAWS_AT_ONCE = 1_000


@dataclass(frozen=True)
class Point:
    """Means over sequences: nats between the sides (or below the best upper bound), their error, seconds a sequence."""

    alpha: float
    effort: int
    gap: float
    stderr: float
    seconds: float


def bench_context() -> list[Row]:
    """One row an alpha, at the largest effort."""
    rows = []
    for alpha in ALPHAS:
        ours, naive = measure(alpha, PARTICLES[-1:], DRAWS[:2])
        best, same = ours[-1], naive[-1]
        work = (
            f"context mode, {STATES} states, {SYMBOLS} symbols, alpha {alpha:g}, T = {LENGTH}, {SEQUENCES} sequences: "
            f"gap of the bounds with {best.effort:,} particles"
        )
        rows.append(
            Row(
                work,
                f"{best.gap:.2f} ± {best.stderr:.2f} nats a sequence, {best.seconds:.2f} s",
                f"{same.effort:,} kernels from the prior {same.gap:.1f} ± {same.stderr:.1f} nats, {same.seconds:.2f} s",
                f"{same.gap / max(best.gap, best.stderr):.0f} x",
                "<= 0.2 nats in <= 2 s of a core",
            )
        )
    return rows


def measure(
    alpha: float, particles: tuple[int, ...] = PARTICLES, draws: tuple[int, ...] = DRAWS
) -> tuple[list[Point], list[Point]]:
    """Gap between the two sides by effort, and how far plain prior sampling stays below the upper side."""
    kernels = draw_kernels(_graph(alpha), 0)
    sampler = Sampler(kernels, 0, "bench")
    tokens = sampler.sample(range(SEQUENCES), LENGTH)
    truths = true_draws(sampler, range(SEQUENCES), LENGTH)
    two_sided(kernels, tokens[:1], truths[:1], particles=2)  # compiled
    ours = []
    for count in particles:
        start = time.process_time()  # cores are shared: what the work takes of one
        found = two_sided(kernels, tokens, truths, particles=count, threads=1)
        seconds = (time.process_time() - start) / SEQUENCES
        assert found.upper is not None
        upper = found.upper
        ours.append(_point(alpha, count, found.upper - found.lower, seconds))
    beside = []
    for count in draws:
        start = time.process_time()
        estimates = np.array([naive(kernels, row, count, seed) for seed, row in enumerate(tokens)])
        seconds = (time.process_time() - start) / SEQUENCES
        beside.append(_point(alpha, count, upper - estimates, seconds))
    return ours, beside


def naive(kernels: Kernels, tokens: NDArray[np.integer], draws: int, seed: int) -> float:
    """Logarithm of a sequence's mean likelihood over kernels from the prior: chain Z -> X, both in context mode."""
    z, x = kernels.spec.nodes
    rng = np.random.default_rng(seed)
    logs = []
    for start in range(0, draws, _DRAWS_AT_ONCE):
        count = min(_DRAWS_AT_ONCE, draws - start)
        move, emit = (
            _floored(rng.dirichlet(np.full(size, alpha), size=(count, z.state_dim)))
            for size, alpha in ((z.state_dim, z.alpha), (x.state_dim, x.alpha))
        )
        state = np.zeros((count, 1, z.state_dim))
        state[:, 0, 0] = 1
        log_p = np.zeros(count)
        for token in tokens[1:]:
            state = state @ move * emit[:, None, :, token]
            norm = state.sum(axis=2)
            log_p += np.log(norm[:, 0])
            state /= norm[:, :, None]
        logs.append(log_p)
    values = np.concatenate(logs)
    highest = float(values.max())
    return highest + math.log(np.exp(values - highest).mean())


def draw_figure(path: str, points: list[tuple[list[Point], list[Point]]]) -> None:
    """Gap against seconds of one core a sequence, an SVG that is the same for the same points."""
    import matplotlib as mpl  # noqa: PLC0415 - of the extra `visu`; only the figure needs it
    from matplotlib import pyplot as plt  # noqa: PLC0415

    mpl.use("svg")
    mpl.rcParams.update(
        {"svg.hashsalt": "context", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    )
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for (ours, beside), color in zip(points, ("C0", "C1", "C2"), strict=True):
        for line, style, label in ((ours, "o-", "both bounds"), (beside, "s--", "prior sampling")):
            axes.errorbar(
                [p.seconds for p in line],
                [p.gap for p in line],
                [p.stderr for p in line],
                fmt=style,
                color=color,
                markersize=4,
                capsize=2,
                label=f"alpha {line[0].alpha:g}, {label}",
            )
    axes.axhline(0.2, color="0.6", linewidth=0.8, linestyle=":")
    axes.set(xscale="log", xlabel="seconds of one core a sequence", ylabel="nats a sequence")
    axes.set_yscale("symlog", linthresh=0.1)
    axes.legend(frameon=False, ncols=2, fontsize=8)
    figure.savefig(path, metadata={"Date": None})


def main(path: str) -> None:
    """Measure all, draw the figure and print the table in Markdown."""
    points = [measure(alpha) for alpha in ALPHAS]
    print("| alpha | method | effort | nats a sequence | seconds of one core |\n| --- | --- | --- | --- | --- |")
    for ours, beside in points:
        for line, method in ((ours, "both bounds: their gap"), (beside, "prior sampling: below the upper bound")):
            for p in line:
                print(f"| {p.alpha:g} | {method} | {p.effort:,} | {p.gap:.2f} ± {p.stderr:.2f} | {p.seconds:.3f} |")
    draw_figure(path, points)


def _graph(alpha: float) -> GSSMSpec:
    latent = {"name": "Z", "state_dim": STATES, "alpha": alpha, "mode": "context"}
    observed = {
        "name": "X",
        "state_dim": SYMBOLS,
        "alpha": alpha,
        "mode": "context",
        "parents": ("Z",),
        "observed": True,
    }
    return GSSMSpec.model_validate({"nodes": (latent, observed)})


def _floored(table: NDArray[np.float64]) -> NDArray[np.float64]:
    table = np.maximum(table, 1e-10)
    return table / table.sum(axis=-1, keepdims=True)


def _point(alpha: float, effort: int, differences: NDArray[np.float64], seconds: float) -> Point:
    stderr = float(differences.std(ddof=1) / math.sqrt(len(differences)))
    return Point(alpha, effort, float(differences.mean()), stderr, seconds)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(sys.argv[1])
