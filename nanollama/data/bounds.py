"""The entropy bound: what the true model itself pays for its sequences, in nats.

PyTorch is imported by a Scorer, not by this module, so that commands that only want a figure start at once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nanollama.data.filter import MAX_OPERATIONS, MEMORY_BUDGET, Filter, FloatType
from nanollama.data.gssm import Array, Kernels, context_problem
from nanollama.data.polya import CLOSED_FORM, ClosedForm, closed_form_applies, context_nodes
from nanollama.data.sampler import Sampler
from nanollama.spec.base import SpecError

if TYPE_CHECKING:
    import torch

    from nanollama.data.torch_filter import TorchFilter


@dataclass(frozen=True)
class Estimate:
    """A Monte-Carlo mean over independent sequences, with its standard error."""

    mean: float
    stderr: float
    num_sequences: int

    @classmethod
    def of(cls, values: ArrayLike) -> Estimate:
        """Mean and standard error of one value per sequence, shape [N] with N >= 2."""
        numbers = np.asarray(values, dtype=np.float64)
        count = len(numbers)
        if count < 2:
            raise ValueError(f"a standard error needs at least 2 sequences, found {count}")
        stderr = float(numbers.std(ddof=1)) / math.sqrt(count)
        return cls(mean=float(numbers.mean()), stderr=stderr, num_sequences=count)

    def __str__(self) -> str:
        return f"{self.mean:.4f} ± {self.stderr:.4f} nats/token over {self.num_sequences:,} sequences"


@dataclass(frozen=True, eq=False)
class ByPosition:
    """-log p(x_t | x_<t) averaged over sequences, for t = 1 .. T-1, and the standard errors; float64 [T - 1]."""

    mean: Array
    stderr: Array


@dataclass(frozen=True, eq=False)
class Entropy:
    """The entropy of a model's sequences.

    Attributes:
        estimate: in nats per token, over whole sequences.
        by_position: entropy of each token given those before it; the last is the estimate of the entropy rate.
        method: how the sequences were scored.
        seconds: that sampling and scoring took.
    """

    estimate: Estimate
    by_position: ByPosition
    method: str
    seconds: float

    @property
    def mean(self) -> float:
        """Nats per token."""
        return self.estimate.mean

    @property
    def stderr(self) -> float:
        """Standard error of the mean."""
        return self.estimate.stderr

    @property
    def num_sequences(self) -> int:
        """Sequences that were scored."""
        return self.estimate.num_sequences

    def __str__(self) -> str:
        return str(self.estimate)


def entropy(
    kernels: Kernels,
    seq_len: int,
    num_sequences: int,
    *,
    seed: int = 0,
    split: str = "entropy",
    batch_size: int = 1024,
    dtype: FloatType = np.float64,
    memory_budget: int = MEMORY_BUDGET,
    max_operations: int = MAX_OPERATIONS,
    threads: int | None = None,
    after_batch: Callable[[Estimate], bool] | None = None,
) -> Entropy:
    """Entropy in nats per token of sequences of `seq_len` tokens, the first of which is given.

    Args:
        kernels: the true model.
        seq_len: tokens per sequence, the start token included; at least 2.
        num_sequences: sequences that are sampled and scored; at least 2.
        seed: of the sequences.
        split: of the sequences; different splits are independent.
        batch_size: sequences sampled at a time; it changes no result beyond rounding.
        dtype: of the scores' probabilities, float64 or float32.
        memory_budget: of the filter, in bytes.
        max_operations: of the filter.
        threads: of the filter; None for as many as the process may use.
        after_batch: is told the estimate so far once at least two sequences are scored; True ends it there.

    Raises:
        SpecError: a graph that cannot be scored exactly.
        ValueError: too few tokens or sequences, or a closed form that does not hold for so small an alpha.
    """
    if seq_len < 2:
        raise ValueError(f"seq_len is {seq_len}, but a sequence needs 2 tokens for one to be predicted")
    began = time.monotonic()
    closed = closed_form_applies(kernels.spec)
    model: ClosedForm | Filter
    if closed:
        model = ClosedForm(kernels)
    else:
        model = Filter(
            kernels, dtype=dtype, memory_budget=memory_budget, max_operations=max_operations, threads=threads
        )
    sampler = Sampler(kernels, seed, split)
    means, total, squares = np.empty(0), np.zeros(seq_len - 1), np.zeros(seq_len - 1)
    shift = np.zeros(seq_len - 1)  # the first batch's means: squares of what is left do not cancel
    for start in range(0, num_sequences, batch_size):
        tokens = sampler.sample(range(start, min(start + batch_size, num_sequences)), seq_len)
        scores = 0 - model.log_likelihood(tokens)  # what is certain costs 0, not -0
        if start == 0:
            shift = scores.mean(axis=0)
        means = np.concatenate([means, scores.mean(axis=1)])
        total += (scores - shift).sum(axis=0)
        squares += ((scores - shift) ** 2).sum(axis=0)
        if after_batch is not None and len(means) >= 2 and after_batch(Estimate.of(means)):
            break
    estimate, count = Estimate.of(means), len(means)
    variance = np.maximum(squares - total**2 / count, 0) / (count - 1)
    by_position = ByPosition(mean=shift + total / count, stderr=np.sqrt(variance / count))
    method = "closed form" if closed else "forward filter"
    return Entropy(estimate, by_position, method=method, seconds=time.monotonic() - began)


class Scorer:
    """Scores tokens with the true model, exactly. Tensors in and out; results lie on the scorer's device.

    On the CPU it is the compiled Filter, on an accelerator the same plan in PyTorch. Where kernels are redrawn for
    every sequence and a formula gives the likelihood, it is that formula, on the CPU.
    """

    def __init__(
        self,
        kernels: Kernels,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        memory_budget: int = MEMORY_BUDGET,
        max_operations: int = MAX_OPERATIONS,
    ) -> None:
        """Precompute the tables.

        Args:
            kernels: the true model.
            device: where to compute.
            dtype: torch.float64 (the default) or torch.float32, of the probabilities.
            memory_budget: as Filter.
            max_operations: as Filter.

        Raises:
            SpecError: a graph that cannot be scored exactly, as Filter.
        """
        import torch  # noqa: PLC0415 - see the module's docstring

        from nanollama.data.torch_filter import TorchFilter  # noqa: PLC0415

        self._torch = torch
        self._device = torch.device(device)
        wanted = torch.float64 if dtype is None else dtype
        self._kernels = kernels
        self._filter: ClosedForm | Filter | None = None
        self._device_filter: TorchFilter | None = None
        if closed_form_applies(kernels.spec):
            self._filter = ClosedForm(kernels)
        elif self._device.type == "cpu":
            if wanted not in (torch.float64, torch.float32):
                raise ValueError(f"probabilities can be float64 or float32, not {wanted}")
            self._filter = Filter(
                kernels,
                dtype=np.float64 if wanted == torch.float64 else np.float32,
                memory_budget=memory_budget,
                max_operations=max_operations,
            )
        else:
            self._device_filter = TorchFilter(
                kernels, device=self._device, dtype=wanted, memory_budget=memory_budget, max_operations=max_operations
            )

    @property
    def device(self) -> torch.device:
        """Where the scores are computed."""
        return self._device

    def explain(self) -> str:
        """How the scores are computed, and what that costs."""
        if isinstance(self._filter, ClosedForm):
            return CLOSED_FORM
        return (self._filter or self._on_device()).explain()

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
        if self._filter is None:
            return -self._on_device().log_likelihood(tokens)
        return self._torch.from_numpy(-self._filter.log_likelihood(_numpy(tokens))).to(self._device)

    def predictive(self, tokens: torch.Tensor) -> torch.Tensor:
        """The true p(x_t | x_<t) of tokens [B, T] for t = 1 .. T-1, shape [B, T - 1, V].

        Raises:
            ValueError: tokens that the model cannot have produced.
        """
        if self._filter is None:
            return self._on_device().predictive(tokens)
        return self._torch.from_numpy(self._filter.predictive(_numpy(tokens))).to(self._device)

    def posterior(self, tokens: torch.Tensor, *, smoothed: bool = False) -> dict[str, torch.Tensor]:
        """p(z_t | x_<=t) of each latent that tokens [B, T] depend on, or given all of x: float64 [B, T, its states].

        Raises:
            ValueError: tokens that the model cannot have produced.
            SpecError: nodes in context mode.
        """
        if isinstance(self._filter, ClosedForm):
            raise SpecError([context_problem([node.name for node in context_nodes(self._kernels.spec)])])
        if self._filter is None:
            return self._on_device().posterior(tokens, smoothed=smoothed)
        found = self._filter.posterior(_numpy(tokens), smoothed=smoothed)
        return {name: self._torch.from_numpy(marginal) for name, marginal in found.items()}

    def kl(self, tokens: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """KL( p(x_t | x_<t) || softmax(logits) ) in nats, exact, of tokens [B, T]: float64 of shape [B, T - 1].

        Args:
            tokens: sequences of the model.
            logits: a learner's, [B, T - 1, W]; those at t - 1 predict x_t. W may exceed the model's V symbols: what the
                learner spends on the others it lacks on these.

        Raises:
            ValueError: tokens that the model cannot have produced, or logits of another shape or not finite.
        """
        p = self.predictive(tokens).double()
        count, predicted, symbols = p.shape
        if logits.ndim != 3 or logits.shape[:2] != p.shape[:2] or logits.shape[2] < symbols:
            wanted = f"[{count}, {predicted}, {symbols} or more]"
            raise ValueError(
                f"expected logits of shape {wanted} for tokens {list(tokens.shape)}, found {list(logits.shape)}"
            )
        wrong = ~logits.isfinite().all(dim=2)
        if bool(wrong.any()):
            row, t = (int(i) for i in wrong.nonzero()[0])
            raise ValueError(f"the logits of sequence {row} at position {t} are not finite; the learner has diverged")
        log_q = logits.detach().to(self._device, self._torch.float64).log_softmax(dim=2)
        seen = log_q[:, :, :symbols]
        # p log(p/q) - p + q: its sum is the divergence, and no term is negative, so that rounding cannot make it so
        terms = self._torch.special.xlogy(p, p) - p * seen - p + seen.exp()
        divergence: torch.Tensor = terms.sum(dim=2) + log_q[:, :, symbols:].exp().sum(dim=2)
        return divergence.clamp_min(0)

    def _on_device(self) -> TorchFilter:
        assert self._device_filter is not None
        return self._device_filter


def _numpy(tokens: torch.Tensor) -> NDArray[Any]:
    """The tokens' memory as an array where they lie on the CPU."""
    array: NDArray[Any] = tokens.detach().cpu().numpy()
    return array
