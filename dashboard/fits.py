"""Power laws y = A x^(-alpha) through points on log-log axes. Their floor is zero: excesses are above a known bound.

Everything is fitted to logarithms by weighted least squares. A point that comes with a standard error has the variance
(error / y)^2 in log y; what the points scatter beyond that enlarges the interval, never shrinks it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

LEAST = 4
"""Points of a curve that are enough for a fit with an interval."""
BINS = 24
"""Even in log x, to which the batches of a curve are averaged."""
LEVEL = 0.95

# Student's t at 97.5 % for 1, 2, ... degrees of freedom
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True)
class Point:
    """A value that is fitted; `error` is its standard error, where there is one."""

    x: float
    y: float
    error: float | None = None


@dataclass(frozen=True)
class PowerLaw:
    """y = exp(intercept) x^(-exponent), from `start` to `end`.

    Attributes:
        exponent: how fast it falls: ten times the x divide y by 10^exponent.
        low: of the 95 % interval of the exponent; minus infinity where too little is known.
        high: of it.
        intercept: log y at x = 1.
        start: x of the first point that was fitted.
        end: x of the last one.
        num_points: that were fitted.
        num_runs: whose exponents were averaged; the interval is over them where there are three or more.
        left_out: points in that range whose value is not above zero, which have no logarithm.
        center: log x where the law is known best; NaN for a mean over runs.
        reach: half the width of the 95 % interval of log y there.
    """

    exponent: float
    low: float
    high: float
    intercept: float
    start: float
    end: float
    num_points: int
    num_runs: int = 1
    left_out: int = 0
    center: float = math.nan
    reach: float = math.nan

    def at(self, x: float) -> float:
        """Its value."""
        return math.exp(self.intercept - self.exponent * math.log(x))

    def interval(self, x: float) -> tuple[float, float] | None:
        """The 95 % interval of its value, the scatter of single points left out; None where it is not known."""
        reach = math.hypot(self.reach, (self.high - self.exponent) * (math.log(x) - self.center))
        return (self.at(x) * math.exp(-reach), self.at(x) * math.exp(reach)) if reach < 100 else None


def fit(points: Sequence[Point], *, least: int = LEAST) -> PowerLaw | None:
    """The law through points; None with fewer than `least` different x above zero that have a y above zero.

    The 95 % interval is Student's, with the scatter of the points around the line or with their own errors, whichever
    is larger.
    """
    usable = [p for p in points if p.x > 0 and math.isfinite(p.x) and math.isfinite(p.y)]
    kept = [p for p in usable if p.y > 0]
    if len({p.x for p in kept}) < max(2, least):
        return None
    us = [math.log(p.x) for p in kept]
    vs = [math.log(p.y) for p in kept]
    variances = _variances(kept)
    weights = [1 / v for v in variances]
    total = sum(weights)
    mean_u = sum(w * u for w, u in zip(weights, us, strict=True)) / total
    mean_v = sum(w * v for w, v in zip(weights, vs, strict=True)) / total
    spread = sum(w * (u - mean_u) ** 2 for w, u in zip(weights, us, strict=True))
    if not spread > 0:
        return None
    slope = sum(w * (u - mean_u) * (v - mean_v) for w, u, v in zip(weights, us, vs, strict=True)) / spread
    intercept = mean_v - slope * mean_u
    free = len(kept) - 2
    reach = level = math.inf
    if free > 0:
        chi2 = sum(w * (v - intercept - slope * u) ** 2 for w, u, v in zip(weights, us, vs, strict=True)) / free
        scale = max(chi2, 1.0) if all(p.error for p in kept) else chi2
        reach, level = (student(free) * math.sqrt(scale / each) for each in (spread, total))
    xs = [p.x for p in kept]
    low, high = -slope - reach, -slope + reach
    left_out = len(usable) - len(kept)
    return PowerLaw(
        -slope, low, high, intercept, min(xs), max(xs), len(kept), left_out=left_out, center=mean_u, reach=level
    )


def late(points: Sequence[Point]) -> list[Point]:
    """Those in the second half of the logarithm of x, where the curve has left its start behind."""
    xs = [p.x for p in points if p.x > 0]
    if not xs:
        return []
    middle = math.sqrt(min(xs)) * math.sqrt(max(xs)) * (1 - 1e-9)
    return [p for p in points if p.x >= middle]


def binned(points: Sequence[Point], bins: int = BINS) -> list[Point]:
    """Means of points over bins that are even in log x, with their errors.

    Values at or below zero count in the mean of their bin: leaving them out would bend the end of a noisy curve up.
    """
    kept = [p for p in points if p.x > 0 and math.isfinite(p.x) and math.isfinite(p.y)]
    if len(kept) <= bins:
        return kept
    low, high = math.log(min(p.x for p in kept)), math.log(max(p.x for p in kept))
    if not high > low:
        return kept
    groups: dict[int, list[Point]] = {}
    for p in kept:
        groups.setdefault(min(bins - 1, int((math.log(p.x) - low) / (high - low) * bins)), []).append(p)
    means = []
    for _, group in sorted(groups.items()):
        ys = [p.y for p in group]
        mean = math.fsum(ys) / len(ys)
        # not statistics.stdev, whose fractions take a tenth of a second for a dozen curves, at every tick
        squares = math.fsum((y - mean) ** 2 for y in ys)
        error = math.sqrt(squares / (len(ys) - 1) / len(ys)) if len(ys) > 2 else None
        means.append(Point(math.exp(fmean(math.log(p.x) for p in group)), mean, error or None))
    return means


def joint(laws: Sequence[PowerLaw]) -> PowerLaw | None:
    """One law for runs that differ in their seed alone: the mean of their exponents and of their logarithms.

    With three runs or more the interval is Student's over the runs, which holds whatever correlates the points of one
    of them; with fewer it reaches as far as any of theirs.
    """
    if len(laws) < 2:
        return laws[0] if laws else None
    exponents = [law.exponent for law in laws]
    exponent = fmean(exponents)
    if len(laws) > 2:
        reach = student(len(laws) - 1) * stdev(exponents) / math.sqrt(len(laws))
        low, high = exponent - reach, exponent + reach
    else:
        low, high = min(law.low for law in laws), max(law.high for law in laws)
    return PowerLaw(
        exponent,
        low,
        high,
        fmean(law.intercept for law in laws),
        min(law.start for law in laws),
        max(law.end for law in laws),
        sum(law.num_points for law in laws),
        len(laws),
        sum(law.left_out for law in laws),
    )


def student(free: int) -> float:
    """Student's t at 97.5 % with `free` degrees of freedom."""
    if free <= len(_T):
        return _T[free - 1]
    z = 1.959964
    return z + (z**3 + z) / (4 * free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)


def _variances(points: Sequence[Point]) -> list[float]:
    """Of log y. Points count alike unless every one of them has an error."""
    if not all(p.error for p in points):
        return [1.0] * len(points)
    return [max((p.error or 0.0) / p.y, 1e-9) ** 2 for p in points]
