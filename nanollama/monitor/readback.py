"""Numbers of the training steps on their way from the device to the loop, which does not wait for them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

LAG = 4
"""Steps after which the numbers of a step on a GPU are looked at. By then they have arrived, unless the loop is that
far ahead of the GPU, which still has work for as many steps while the loop waits."""


@dataclass(frozen=True)
class StepNumbers:
    """Numbers of a step, the same on every rank but for `own_loss`.

    Attributes:
        step: optimizer steps done, this one included.
        loss: mean over ranks, in nats per token.
        grad_norm: norm of the whole gradient before clipping.
        votes: above 0 where a rank has been asked to stop.
        own_loss: mean over the batch of this rank, in nats per token.
        bound: of the global batch in nats per token, where it has been computed.
    """

    step: int
    loss: float
    grad_norm: float
    votes: float
    own_loss: float
    bound: float | None = None


class Readback:
    """Reads numbers back in the order of their steps: at once from the CPU, from a GPU `LAG` steps later.

    When a step is looked at depends on its number alone, so that all ranks look at the same ones.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._lag = LAG if self._cuda else 0
        self._under_way: deque[tuple[int, Tensor, bool, torch.cuda.Event | None]] = deque()

    def push(self, step: int, numbers: Tensor, own_loss: Tensor, bound: Tensor | None) -> None:
        """Send the numbers of a step on their way: loss, norm and votes, and those of StepNumbers with these names."""
        parts = [numbers, own_loss.reshape(1)] if bound is None else [numbers, own_loss.reshape(1), bound.reshape(1)]
        values = torch.cat(parts)
        arrival = None
        if self._cuda:
            host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            values = host.copy_(values, non_blocking=True)
            arrival = torch.cuda.Event()  # type: ignore[no-untyped-call] # as torch left it
            arrival.record()
        self._under_way.append((step, values, bound is not None, arrival))

    def pull(self, *, everything: bool = False) -> list[StepNumbers]:
        """The steps whose turn has come, or all that are left, waiting for those that have not arrived."""
        found = []
        while len(self._under_way) > (0 if everything else self._lag):
            step, values, has_bound, arrival = self._under_way.popleft()
            if arrival is not None:
                arrival.synchronize()
            loss, norm, votes, own_loss, *bound = values.tolist()
            found.append(StepNumbers(step, loss, norm, votes, own_loss, bound[0] if has_bound else None))
        return found
