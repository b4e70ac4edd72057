"""Which alphas give a graph a wanted entropy, averaged over draws of its kernels; and what compressors make of it.

The mean over a fixed set of seeds is a function of alpha alone (common random numbers), but only piecewise continuous:
where the sampler of the kernels rejects one number more, all that are drawn after it change. It is searched for the
target by bracketing and false position (the Illinois variant, Dowell and Jarratt 1971), which needs a change of sign
and neither monotony nor a derivative; at a jump over the target, the neighbourhood is searched too.
"""

from __future__ import annotations

import gzip
import lzma
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nanollama.data.bounds import entropy
from nanollama.data.gssm import draw_kernels, relevant_latents
from nanollama.data.sampler import Sampler
from nanollama.spec.base import Problem, SpecError, did_you_mean
from nanollama.spec.gssm import GSSMSpec

ALPHAS = (1e-6, 1e3)
"""Where alphas are looked for."""

SPLIT = "calibration"
"""Of the sequences that are scored and compressed."""

_FIRST_STEP = math.log(4)
_NARROW = 1e-4  # a bracket of alphas this close together, as a ratio: the entropy jumps within it
_SECANTS = 8  # steps of false position, before the bracket is halved
_AROUND = [sign * 0.01 * k for k in range(1, 13) for sign in (1, -1)]  # positions tried beside a jump


@dataclass(frozen=True)
class SeedMean:
    """Mean over kernels that were drawn from different seeds, in nats per token.

    Attributes:
        mean: over the seeds.
        stderr: of that mean, from the spread between seeds: the noise of the sequences is part of it.
        values: of each seed.
    """

    mean: float
    stderr: float
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> SeedMean:
        """Mean and standard error of one value per seed, of at least two seeds."""
        if len(values) < 2:
            raise ValueError(f"an error over seeds needs at least 2 seeds, found {len(values)}")
        spread = float(np.std(values, ddof=1))
        return cls(mean=float(np.mean(values)), stderr=spread / math.sqrt(len(values)), values=tuple(values))

    def __str__(self) -> str:
        return f"{self.mean:.4f} ± {self.stderr:.4f} nats/token over {len(self.values)} seeds"


@dataclass(frozen=True)
class Evaluation:
    """The entropy at one factor on the alphas."""

    factor: float
    entropy: SeedMean


@dataclass(frozen=True)
class Calibration:
    """Outcome of a search.

    Attributes:
        best: the evaluation nearest to the target.
        evaluations: all of them, in the order in which they were made.
        reached: whether the best one is within the tolerance; otherwise the entropy jumps over the target.
    """

    best: Evaluation
    evaluations: tuple[Evaluation, ...]
    reached: bool

    @property
    def rising(self) -> bool:
        """Whether no evaluation lies below one at a smaller factor by more than three standard errors."""
        ordered = [e.entropy for e in sorted(self.evaluations, key=lambda e: e.factor)]
        return all(
            b.mean > a.mean - 3 * math.hypot(a.stderr, b.stderr) for i, a in enumerate(ordered) for b in ordered[i:]
        )


class OutOfReach(ValueError):
    """No factor gives the target; `lowest` and `highest` are the evaluations with the extreme entropies."""

    def __init__(self, target: float, evaluations: Sequence[Evaluation]) -> None:
        self.target = target
        self.lowest = min(evaluations, key=lambda e: e.entropy.mean)
        self.highest = max(evaluations, key=lambda e: e.entropy.mean)
        ends = " to ".join(
            f"{e.entropy.mean:.4f} ± {e.entropy.stderr:.4f} (alphas times {e.factor:.3g})"
            for e in (self.lowest, self.highest)
        )
        super().__init__(f"no alphas give {target:g} nats/token: all that were tried give {ends}")


def mean_entropy(spec: GSSMSpec, seq_len: int, *, seeds: int, num_sequences: int) -> SeedMean:
    """Entropy in nats per token, averaged over the kernels of the seeds 0 .. seeds - 1.

    Args:
        spec: the graph.
        seq_len: tokens per sequence, the start token included.
        seeds: number of draws of the kernels, at least 2; each has sequences of its own.
        num_sequences: sequences scored for each draw, at least 2.

    Raises:
        SpecError: a graph that cannot be scored exactly.
    """
    found = (entropy(draw_kernels(spec, k), seq_len, num_sequences, seed=k, split=SPLIT) for k in range(seeds))
    return SeedMean.of([estimate.mean for estimate in found])


def compressed(spec: GSSMSpec, seq_len: int, *, seeds: int, num_sequences: int) -> dict[str, SeedMean]:
    """What gzip and xz need for the sequences that `mean_entropy` scores, in nats per predicted token.

    Each seed's sequences make one text, without the start tokens, in the smallest integer type that fits.
    """
    texts = [
        Sampler(draw_kernels(spec, k), k, SPLIT).sample(range(num_sequences), seq_len)[:, 1:] for k in range(seeds)
    ]
    sizes = [_compressed_bytes(tokens) for tokens in texts]
    nats = math.log(256) / (num_sequences * (seq_len - 1))
    return {name: SeedMean.of([size[name] * nats for size in sizes]) for name in sizes[0]}


def _compressed_bytes(tokens: NDArray[np.generic]) -> dict[str, int]:
    text = tokens.tobytes()
    return {
        "gzip": len(gzip.compress(text, compresslevel=9, mtime=0)),
        "xz": len(lzma.compress(text, preset=6 | lzma.PRESET_EXTREME)),
    }


def moving_nodes(spec: GSSMSpec, which: str) -> tuple[str, ...]:
    """Names of the nodes whose alphas move: `latents`, `observed`, `all`, or names with commas between them.

    Raises:
        SpecError: a name that no node has, or a node on which no token depends.
    """
    useful = [node.name for node in (*relevant_latents(spec), spec.observed)]
    groups = {"latents": useful[:-1], "observed": useful[-1:], "all": useful}
    names = groups[which] if which in groups else [name.strip() for name in which.split(",")]
    problems = []
    for name in names:
        if name not in useful:
            message, remedy = f"no node is named '{name}'", did_you_mean(name, [*groups, *useful])
            if any(node.name == name for node in spec.nodes):
                message, remedy = f"no token depends on '{name}'", f"choose among {', '.join(useful)}"
            problems.append(Problem(path="nodes", message=message, remedy=remedy))
    if not names:
        problems.append(Problem(path="nodes", message="the graph has no latent", remedy="write nodes=observed"))
    if problems:
        raise SpecError(problems)
    return tuple(dict.fromkeys(names))


def scaled(spec: GSSMSpec, names: Sequence[str], factor: float) -> GSSMSpec:
    """The graph with the alphas of some nodes multiplied, and rounded to six digits, so that they can be quoted."""
    nodes = [
        node.model_copy(update={"alpha": float(f"{node.alpha * factor:.6g}")}) if node.name in names else node
        for node in spec.nodes
    ]
    return GSSMSpec(nodes=tuple(nodes))


def factor_limits(spec: GSSMSpec, names: Sequence[str]) -> tuple[float, float]:
    """Smallest and largest factor that leave the alphas within ALPHAS; 1 is always between them."""
    alphas = [spec.node(name).alpha for name in names]
    return min(1.0, ALPHAS[0] / min(alphas)), max(1.0, ALPHAS[1] / max(alphas))


def calibrate(
    measure: Callable[[float], SeedMean], target: float, *, tolerance: float, limits: tuple[float, float]
) -> Calibration:
    """Find the factor on the alphas at which the entropy is `target`.

    Args:
        measure: the entropy at a factor, the same each time it is asked.
        target: wanted entropy, nats per token.
        tolerance: distance from the target that is near enough.
        limits: smallest and largest factor to try.

    Raises:
        OutOfReach: the target lies outside of all that was found within the limits.
    """
    search = _Search(measure, target, tolerance, (math.log(limits[0]), math.log(limits[1])))
    bracket = search.bracket()
    if bracket is not None:
        search.narrow(*bracket)
    best = min(search.evaluations, key=lambda e: abs(e.entropy.mean - target))
    reached = abs(best.entropy.mean - target) <= tolerance
    if bracket is None and not reached:
        raise OutOfReach(target, search.evaluations)
    return Calibration(best=best, evaluations=tuple(search.evaluations), reached=reached)


class _Search:
    """A search on the logarithm of the factor."""

    def __init__(
        self, measure: Callable[[float], SeedMean], target: float, tolerance: float, limits: tuple[float, float]
    ) -> None:
        self._measure, self._target, self._tolerance, self._limits = measure, target, tolerance, limits
        self.evaluations: list[Evaluation] = []

    def above(self, position: float) -> float:
        """How far the entropy lies above the target."""
        factor = math.exp(position)
        found = Evaluation(factor, self._measure(factor))
        self.evaluations.append(found)
        return found.entropy.mean - self._target

    def bracket(self) -> tuple[float, float, float, float] | None:
        """Two positions with the entropy above and below the target, and how far; None where one is near enough.

        Entropies mostly rise with alpha, so that way is tried first. Where peaked kernels that disagree make a node
        almost uniform they fall, hence the other.
        """
        low, high = self._limits
        start = self.above(0.0)
        if abs(start) <= self._tolerance:
            return None
        for sign in (-1.0, 1.0) if start > 0 else (1.0, -1.0):
            near, value, step = 0.0, start, _FIRST_STEP
            end = low if sign < 0 else high
            while near != end:
                far = max(low, near - step) if sign < 0 else min(high, near + step)
                found = self.above(far)
                if abs(found) <= self._tolerance:
                    return None
                if (found > 0) != (start > 0):
                    return near, value, far, found
                near, value, step = far, found, 2 * step
        return None

    def narrow(self, a: float, above_a: float, b: float, above_b: float) -> None:
        """Evaluate nearer and nearer to the target, until it is reached or the bracket has no width left."""
        weight_a, weight_b = above_a, above_b
        side = steps = 0
        while abs(b - a) > _NARROW:
            inner = 0.05 * (b - a)
            middle = (a * weight_b - b * weight_a) / (weight_b - weight_a) if steps < _SECANTS else (a + b) / 2
            middle = min(max(middle, min(a + inner, b - inner)), max(a + inner, b - inner))
            steps += 1
            found = self.above(middle)
            if abs(found) <= self._tolerance:
                return
            if (found > 0) == (above_a > 0):
                a, above_a, weight_a = middle, found, found
                weight_b = weight_b / 2 if side == 1 else above_b
                side = 1
            else:
                b, above_b, weight_b = middle, found, found
                weight_a = weight_a / 2 if side == 2 else above_a
                side = 2
        self._around((a + b) / 2)

    def _around(self, jump: float) -> None:
        """Beside a jump over the target other kernels may jump as well, onto it."""
        low, high = self._limits
        for shift in _AROUND:
            if low <= jump + shift <= high and abs(self.above(jump + shift)) <= self._tolerance:
                return
