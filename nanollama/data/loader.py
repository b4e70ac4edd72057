"""Batches as a pure function of the step, so that a restart continues exactly where a run stopped."""

from __future__ import annotations

import hashlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nanollama.data.bounds import Scorer
from nanollama.data.device_sampler import DeviceSampler
from nanollama.data.gssm import IntArray, Kernels, draw_kernels
from nanollama.data.hdf5 import DatasetReader
from nanollama.data.polya import ClosedForm, closed_form_applies
from nanollama.data.sampler import Sampler, Tokens
from nanollama.spec.base import Problem, SpecError
from nanollama.spec.data import FileData, OnlineData

_RESIDENT_BYTES = 2**30  # a set up to this size is held in memory, a larger one is read batch by batch

_TIMED_TOKENS = 65  # of each sequence, when two samplers are compared


class Loader(ABC):
    """Gives a rank its share of each step's batch.

    Attributes:
        seq_len: T, tokens per sequence, the start token included.
        vocab_size: number of symbols.
        scorer: scores tokens with the true model; None when there is no exact score.
        scorer_note: why there is no scorer; empty when there is one.
    """

    def __init__(
        self, kernels: Kernels, *, seq_len: int, batch_size: int, rank: int, world_size: int, device: torch.device | str
    ) -> None:
        assert 0 <= rank < world_size, (rank, world_size)
        if batch_size % world_size:
            message = f"batch_size {batch_size} is not divisible by {world_size} ranks"
            raise SpecError(
                [Problem(path="data.batch_size", message=message, remedy=f"use a multiple of {world_size}")]
            )
        self.seq_len = seq_len
        self.vocab_size = kernels.vocab_size
        self.scorer: Scorer | None = None
        self.scorer_note = ""
        try:
            if closed_form_applies(kernels.spec):
                ClosedForm(kernels).require(seq_len)
            self.scorer = Scorer(kernels, device=device)
        except SpecError as error:
            self.scorer_note = "; ".join(f"{p.message} - {p.remedy}" for p in error.problems)
        self._batch_size = batch_size
        self._share = range(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)

    def batch(self, step: int) -> torch.LongTensor:
        """Tokens of this rank at a step, which counts from 0: int64 of shape [batch_size / world_size, T].

        The shares of the ranks in order make up the batch of the step, whatever their number.

        Raises:
            SpecError: a file that turns out to be damaged.
        """
        return torch.from_numpy(self._tokens(self._positions(step)).astype(np.int64))  # type: ignore[return-value] # int64 is what LongTensor means

    def _positions(self, step: int) -> IntArray:
        """Where this rank's sequences of a step stand in the endless stream."""
        assert step >= 0, step
        first = step * self._batch_size
        return np.arange(first + self._share.start, first + self._share.stop, dtype=np.int64)

    @abstractmethod
    def _tokens(self, positions: IntArray) -> Tokens:
        """Tokens [N, T] at positions of the endless stream of sequences."""


class OnlineLoader(Loader):
    """Step k trains on the sequences k * batch_size .. (k + 1) * batch_size - 1 of the split `train`."""

    def __init__(self, data: OnlineData, *, rank: int, world_size: int, device: torch.device | str) -> None:
        kernels = draw_kernels(data.gssm, data.seed)
        super().__init__(
            kernels,
            seq_len=data.seq_len,
            batch_size=data.batch_size,
            rank=rank,
            world_size=world_size,
            device=device,
        )
        self._sampler = Sampler(kernels, data.seed, "train")
        self._device_sampler = None
        # a thread that draws ahead costs the device nothing
        if torch.device(device).type != "cpu" and data.prefetch == 0:
            self._device_sampler = faster_on_device(self._sampler, device, len(self._share), self.seq_len)

    def batch(self, step: int) -> torch.LongTensor:
        """As Loader; drawn on the device, and left there, where that is faster. The tokens are the same."""
        if self._device_sampler is None:
            return super().batch(step)
        return self._device_sampler.sample(self._positions(step), self.seq_len)  # type: ignore[return-value]

    def _tokens(self, positions: IntArray) -> Tokens:
        return self._sampler.sample(positions, self.seq_len)


def faster_on_device(
    sampler: Sampler, device: torch.device | str, num_sequences: int, seq_len: int
) -> DeviceSampler | None:
    """A sampler on the device where it draws such batches faster than this one does, else None.

    Both draw the first tokens of a batch, to the CPU's memory and to the device's, once to get ready and once to be
    timed. Which one is chosen changes no token, so ranks and restarts need not agree.
    """
    length = min(seq_len, _TIMED_TOKENS)

    def draw_here() -> torch.Tensor:
        return torch.from_numpy(sampler.sample(range(num_sequences), length).astype(np.int64)).to(device)

    try:
        other = DeviceSampler(sampler.kernels, sampler.seed, sampler.split, device=device)
        there = _seconds(lambda: other.sample(range(num_sequences), length))
    except torch.OutOfMemoryError:  # the tables do not fit beside the learner
        return None
    return other if there < _seconds(draw_here) else None


def _seconds(draw: Callable[[], torch.Tensor]) -> float:
    """Time of the second call; a number is fetched, which waits for all that was asked of the device."""
    draw()[-1, -1].item()
    began = time.perf_counter()
    draw()[-1, -1].item()
    return time.perf_counter() - began


class FileLoader(Loader):
    """Walks through a file again and again, in a new order each epoch; a batch may span two epochs."""

    def __init__(self, data: FileData, *, rank: int, world_size: int, device: torch.device | str) -> None:
        self._reader = DatasetReader(data.path)
        present = len(self._reader)
        self._count = present if data.n_data is None else data.n_data
        problems = []
        if self._count > present:
            message = f"n_data {self._count:,} is more than the {present:,} sequences of {data.path}"
            problems.append(Problem(path="data.n_data", message=message, remedy=f"use at most {present}"))
        elif data.batch_size > self._count:
            message = f"batch_size {data.batch_size:,} is more than the {self._count:,} sequences that are used"
            remedy = f"use at most {self._count}, or a larger file"
            problems.append(Problem(path="data.batch_size", message=message, remedy=remedy))
        made_of = self._reader.kernels_hash
        if data.kernels_hash is not None and not made_of.startswith(data.kernels_hash):
            message = f"{data.path} is made of the kernels {made_of}, not of {data.kernels_hash}"
            remedy = "choose the file that goes with this config, or correct the hash"
            problems.append(Problem(path="data.kernels_hash", message=message, remedy=remedy))
        if problems:
            raise SpecError(problems)
        super().__init__(
            self._reader.kernels(),
            seq_len=self._reader.seq_len,
            batch_size=data.batch_size,
            rank=rank,
            world_size=world_size,
            device=device,
        )
        self._seed = data.seed
        self._epoch = -1
        self._order: IntArray = np.zeros(0, dtype=np.int64)
        self._resident: NDArray[np.unsignedinteger[Any]] | None = None
        if self._count * self.seq_len * (1 if self.vocab_size <= 2**8 else 2) <= _RESIDENT_BYTES:
            self._resident = self._reader.read(slice(0, self._count))

    def _tokens(self, positions: IntArray) -> Tokens:
        indices = np.empty_like(positions)
        epochs = positions // self._count
        for epoch in np.unique(epochs):
            here = epochs == epoch
            indices[here] = self._permutation(int(epoch))[positions[here] % self._count]
        return self._reader.read(indices) if self._resident is None else self._resident[indices]

    def _permutation(self, epoch: int) -> IntArray:
        """Order of an epoch, keyed by (seed, epoch)."""
        if epoch != self._epoch:
            digest = hashlib.sha256(f"nanollama epochs, seed {self._seed}, epoch {epoch}".encode()).digest()
            key = np.frombuffer(digest[:16], dtype="<u8").astype(np.uint64)
            self._order = np.random.Generator(np.random.Philox(key=key)).permutation(self._count)
            self._epoch = epoch
        return self._order


def build_loader(
    data: OnlineData | FileData, *, rank: int, world_size: int, device: torch.device | str = "cpu"
) -> Loader:
    """The loader of a data section for one of `world_size` ranks; `device` is where its scorer computes.

    Raises:
        SpecError: a file that cannot be used, or a batch that cannot be shared out, at its key under `data`.
    """
    if isinstance(data, OnlineData):
        return OnlineLoader(data, rank=rank, world_size=world_size, device=device)
    return FileLoader(data, rank=rank, world_size=world_size, device=device)
