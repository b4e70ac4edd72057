"""The entropy bound: what the true model itself pays for its sequences, in nats."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from nanollama.data.filter import MEMORY_BUDGET, Filter
from nanollama.data.gssm import Kernels
from nanollama.data.sampler import Sampler


@dataclass(frozen=True)
class Estimate:
    """A Monte-Carlo mean over independent sequences, with its standard error."""

    mean: float
    stderr: float
    num_sequences: int

    @classmethod
    def of(cls, values: torch.Tensor) -> Estimate:
        """Mean and standard error of one value per sequence, shape [N] with N >= 2."""
        count = len(values)
        if count < 2:
            raise ValueError(f"a standard error needs at least 2 sequences, found {count}")
        values = values.double()
        return cls(mean=values.mean().item(), stderr=values.std().item() / math.sqrt(count), num_sequences=count)

    def __str__(self) -> str:
        return f"{self.mean:.4f} ± {self.stderr:.4f} nats/token over {self.num_sequences:,} sequences"


class Scorer:
    """Scores tokens with the true model, exactly; results lie on the scorer's device."""

    def __init__(
        self,
        kernels: Kernels,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float64,
        memory_budget: int = MEMORY_BUDGET,
    ) -> None:
        """Precompute the filter's tables.

        Raises:
            SpecError: a graph that cannot be scored exactly, as Filter.
        """
        self._filter = Filter(kernels, device=device, dtype=dtype, memory_budget=memory_budget)

    @property
    def device(self) -> torch.device:
        """Where the scores are computed."""
        return self._filter.device

    def nll(self, tokens: torch.Tensor) -> torch.Tensor:
        """-log p(x_1 .. x_{T-1}) in nats of each of the tokens [B, T]: float64 of shape [B].

        Divided by T - 1 and averaged over sequences it is the bound of these tokens in nats per token.

        Raises:
            ValueError: tokens that the model cannot have produced.
        """
        return self.nll_by_position(tokens).sum(dim=1)

    def nll_by_position(self, tokens: torch.Tensor) -> torch.Tensor:
        """-log p(x_t | x_<t) in nats of tokens [B, T] for t = 1 .. T-1: float64 of shape [B, T - 1].

        Raises:
            ValueError: tokens that the model cannot have produced.
        """
        return -self._filter.log_likelihood(tokens)

    def predictive(self, tokens: torch.Tensor) -> torch.Tensor:
        """The true p(x_t | x_<t) of tokens [B, T] for t = 1 .. T-1, shape [B, T - 1, V].

        Raises:
            ValueError: tokens that the model cannot have produced.
        """
        return self._filter.predictive(tokens)


def entropy(
    kernels: Kernels,
    seq_len: int,
    num_sequences: int,
    *,
    seed: int = 0,
    split: str = "entropy",
    batch_size: int = 1024,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float64,
) -> Estimate:
    """Entropy in nats per token of sequences of `seq_len` tokens, the first of which is given.

    Args:
        kernels: the true model.
        seq_len: tokens per sequence, the start token included; at least 2.
        num_sequences: sequences that are sampled and scored; at least 2.
        seed: of the sequences.
        split: of the sequences; different splits are independent.
        batch_size: sequences sampled at a time; it changes no result beyond rounding.
        device: where to score.
        dtype: of the scores' probabilities.

    Raises:
        SpecError: a graph that cannot be scored exactly.
    """
    assert seq_len >= 2, seq_len
    scorer = Scorer(kernels, device=device, dtype=dtype)
    sampler = Sampler(kernels, seed, split)
    parts = []
    for start in range(0, num_sequences, batch_size):
        tokens = sampler.sample(range(start, min(start + batch_size, num_sequences)), seq_len)
        parts.append(scorer.nll(torch.from_numpy(tokens).long()).cpu() / (seq_len - 1))
    return Estimate.of(torch.cat(parts))
