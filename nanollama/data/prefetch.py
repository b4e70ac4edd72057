"""Batches in order, drawn by a thread while the learner computes."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import torch
from torch import Tensor

from nanollama.data.loader import Loader


class Batches:
    """The batches of the steps first, first + 1, … last - 1 on a device. Use as a context manager.

    The loader is a pure function of the step, so that drawing ahead changes nothing but the time.

    Args:
        loader: whose `batch` is called by one thread at a time.
        first: the first step, which counts from 0.
        last: the step before which they end.
        depth: batches that are drawn ahead; 0 draws each when it is asked for.
        device: where the batches are wanted. The copy to a GPU takes its turn among the GPU's work, without waiting.
    """

    def __init__(self, loader: Loader, first: int, last: int, *, depth: int, device: torch.device) -> None:
        self._loader = loader
        self._next, self._last = first, last
        self._depth = depth
        self._device = device
        self._drawn: deque[Future[Tensor]] = deque()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="batches") if depth else None

    def __enter__(self) -> Batches:
        self._draw_ahead()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def next(self) -> Tensor:
        """Tokens of the next step: int64 of shape [B, T], on the device.

        Raises:
            SpecError: as Loader.batch, at the step that it concerns.
        """
        if self._pool is None:
            batch_BT = self._draw(self._next)
            self._next += 1
        else:
            batch_BT = self._drawn.popleft().result()
            self._draw_ahead()
        return batch_BT.to(self._device, non_blocking=True)

    def _draw_ahead(self) -> None:
        while self._pool is not None and len(self._drawn) < self._depth and self._next < self._last:
            self._drawn.append(self._pool.submit(self._draw, self._next))
            self._next += 1

    def _draw(self, step: int) -> Tensor:
        batch_BT = self._loader.batch(step)
        return batch_BT.pin_memory() if self._device.type == "cuda" and not batch_BT.is_cuda else batch_BT
