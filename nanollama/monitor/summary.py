"""What a run amounts to: means over its last stretch."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from nanollama.spec.rundir import Result

SHARE = 0.1
"""Share of a run's steps, at its end, over which its result is averaged."""


@dataclass
class FinalWindow:
    """Running means over the metric lines of the last tenth of a run, in nats per token.

    The sums, not the lines, are kept, so they can be stored in a checkpoint: a run that was interrupted within its last
    tenth ends with the same result as one that was not.
    """

    num_points: int = 0
    loss: float = 0.0
    bound: float = 0.0
    excess: float = 0.0
    squares: float = 0.0  # sum of squared deviations of the excess from its mean (Welford)
    has_bound: bool = True

    def add(self, loss: float, bound: float | None) -> None:
        """Include one metric line; `bound` is None where the true model cannot be scored."""
        self.num_points += 1
        self.loss += (loss - self.loss) / self.num_points
        if bound is None:
            self.has_bound = False
            return
        self.bound += (bound - self.bound) / self.num_points
        deviation = loss - bound - self.excess
        self.excess += deviation / self.num_points
        self.squares += deviation * (loss - bound - self.excess)

    def state(self) -> dict[str, float]:
        """Plain numbers from which `FinalWindow(**state)` is the same window."""
        return asdict(self)

    def result(self, *, step: int, tokens: int, seconds: float) -> Result:
        """The result of a run that ends here.

        Its standard error is that of the mean of `num_points` excesses of different batches, the only noise in it that
        the run can see: the seed's is not included.
        """
        if self.num_points == 0:
            return Result(step=step, tokens=tokens, seconds=seconds)
        variance = self.squares / (self.num_points - 1) if self.num_points > 1 else None
        return Result(
            step=step,
            tokens=tokens,
            seconds=seconds,
            loss=self.loss,
            bound=self.bound if self.has_bound else None,
            excess=self.excess if self.has_bound else None,
            excess_stderr=math.sqrt(variance / self.num_points) if self.has_bound and variance is not None else None,
            num_points=self.num_points,
        )


def in_final_window(step: int, steps: int) -> bool:
    """Whether a step (1, 2, …) belongs to the last tenth of a run of `steps`; the last one always does."""
    return step > steps - max(1, math.floor(SHARE * steps))


def describe(result: Result) -> str:
    """The result in a line for people."""
    if result.loss is None:
        return f"step {result.step}"
    if result.bound is None or result.excess is None:
        return f"step {result.step}, loss {result.loss:.4f} nats/token (no bound for this graph)"
    error = f" ± {result.excess_stderr:.4f}" if result.excess_stderr is not None else ""
    numbers = f"loss {result.loss:.4f}, bound {result.bound:.4f}, excess {result.excess:.4f}{error}"
    return f"step {result.step}, {numbers} nats/token"
