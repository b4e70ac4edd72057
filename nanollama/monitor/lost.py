"""Training steps that are lost because their loss or gradient is not a number."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nanollama.monitor.readback import StepNumbers

MAX_SKIPPED = 10
"""Steps in a row, with the last of which skipping gives up."""


class Diverged(Exception):
    """The loss or its gradient is not a number any more; the message names the step and the batch.

    `step` is the last one that was taken before.
    """

    def __init__(self, step: int, message: str) -> None:
        super().__init__(message)
        self.step = step


class LostSteps:
    """Decides on the device which steps are lost, and tells afterwards what that means for the run.

    Attributes:
        count: lost steps of the run so far, as far as they have been looked at.
        in_a_row: the newest of them without another step between.

    Args:
        skip: whether the run goes on without such steps. If not, no step after the first of them is taken either: the
            weights stay as they were until the loop, which may look later, ends.
        batch_size: sequences per step.
        device: of the numbers.
    """

    def __init__(self, *, skip: bool, batch_size: int, device: torch.device) -> None:
        self.count = self.in_a_row = 0
        self._skip = skip
        self._batch_size = batch_size
        self._lost = torch.zeros((), device=device)

    def judge(self, loss: Tensor, grad_norm: Tensor) -> Tensor:
        """1 on the device if this step must not be taken, else 0; float32 scalars."""
        lost = (~(loss.isfinite() & grad_norm.isfinite())).float()
        self._lost = lost if self._skip else torch.maximum(self._lost, lost)
        return self._lost

    def look(self, numbers: StepNumbers) -> str | None:
        """What to warn of after a step that has been judged; None after one that was taken.

        Raises:
            Diverged: the run cannot go on.
        """
        if is_finite(numbers):
            self.in_a_row = 0
            return None
        step, before = numbers.step, numbers.step - 1
        first, last = before * self._batch_size, step * self._batch_size - 1
        what = f"the loss is {numbers.loss:.6g} and the norm of its gradient {numbers.grad_norm:.6g}"
        batch = f"with batch {before} (sequences {first} to {last} of the run's order)"
        remedy = "try a lower optim.lr, a longer optim.warmup or a lower optim.clip"
        if not self._skip:
            remedy += ", or go on without such steps by orchestration.utils.on_nonfinite=skip"
            where = f"{batch} on the weights after step {before}"
            raise Diverged(before, f"training diverged at step {step}: {what}, {where}; {remedy}")
        self.count += 1
        self.in_a_row += 1
        if self.in_a_row == MAX_SKIPPED:
            skipped = f"after {MAX_SKIPPED - 1} skipped ones in a row"
            raise Diverged(before, f"training diverged at step {step}, {skipped}: {what}, {batch}; {remedy}")
        return f"step {step} is skipped, the {self.count}. of this run: {what}, {batch}"


def is_finite(numbers: StepNumbers) -> bool:
    """Whether the step could be taken."""
    return math.isfinite(numbers.loss) and math.isfinite(numbers.grad_norm)
