"""Do learners carry the posterior? Linear regression from the residual stream to the exact belief state.

Shapes: B sequences, T tokens of a sequence, D width of the residual stream, S states of all latents together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

RIDGE = 1e-6
"""Penalty on the weights, in units of the mean variance of a channel: it decides only where channels are collinear."""
LEAST_VARIANCE = 1e-12
"""Per state; a belief that varies less is constant, and has no R^2."""


@dataclass
class _Sums:
    """Sums over positions of products of features h and targets y, each with a constant 1: float64 on the CPU."""

    hh: Tensor  # [1 + D, 1 + D]
    hy: Tensor  # [1 + D, S]
    yy: Tensor  # [S]

    @classmethod
    def of(cls, h_ND: Tensor, y_NS: Tensor) -> _Sums:
        h = torch.cat([h_ND.new_ones(len(h_ND), 1), h_ND], dim=1)
        return cls(h.T @ h, h.T @ y_NS, (y_NS**2).sum(dim=0))

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(self.hh + other.hh, self.hy + other.hy, self.yy + other.yy)

    @property
    def count(self) -> float:
        return float(self.hh[0, 0])


_Part = tuple[dict[tuple[int, bool], _Sums], list[tuple[str, int]]]
"""The sums of a rank by layer, and whether of the fit; names and numbers of states of the latents."""


class Probe:
    """Fits on the first half of the held-out sequences and scores on the second; no activation is kept."""

    def __init__(self, num_sequences: int) -> None:
        """Of `num_sequences` >= 2 the first half is for the fit."""
        self._border = num_sequences // 2
        self._sums: dict[tuple[int, bool], _Sums] = {}  # by layer, and whether of the fit
        self._names: list[tuple[str, int]] = []

    def add(self, start: int, states: Sequence[Tensor], beliefs: Mapping[str, Tensor]) -> None:
        """Take in the sequences start .. start + B - 1.

        Args:
            start: number of the first one.
            states: the residual stream [B, T, D] after the embedding and after each layer, float64.
            beliefs: p(z_t | x_1 .. x_t) of each latent, float64 [B, T, its states].
        """
        self._names = [(name, belief.shape[2]) for name, belief in beliefs.items()]
        if not beliefs:
            return
        y_BTS = torch.cat(list(beliefs.values()), dim=2)[:, 1:]  # at t = 0 every latent is in state 0
        fitted = min(max(self._border - start, 0), len(y_BTS))
        for layer, h_BTD in enumerate(states):
            for fit, part in ((True, slice(0, fitted)), (False, slice(fitted, None))):
                h_ND, y_NS = h_BTD[part, 1:].flatten(0, 1), y_BTS[part].flatten(0, 1)
                if len(h_ND):
                    new = _Sums.of(h_ND, y_NS)
                    old = self._sums.get((layer, fit))
                    self._sums[layer, fit] = new if old is None else old + new

    def result(self, gather: Callable[[_Part], Sequence[_Part]] = lambda own: [own]) -> dict[int, dict[str, float]]:
        """R^2 by layer, 0 for the embedding, and latent; a latent whose belief is constant is left out.

        It is that of all states of a latent together: 1 - squared errors / squared deviations from their means, so that
        states count by their variance.

        Args:
            gather: gives the sums of all ranks.
        """
        sums: dict[tuple[int, bool], _Sums] = {}
        names: list[tuple[str, int]] = []
        for other_sums, other_names in gather((self._sums, self._names)):
            names = names or other_names
            for key, value in other_sums.items():
                sums[key] = sums[key] + value if key in sums else value
        layers = sorted({layer for layer, fit in sums if not fit and (layer, True) in sums})
        return {layer: _r2(sums[layer, True], sums[layer, False], names) for layer in layers}


def _r2(fit: _Sums, test: _Sums, names: Sequence[tuple[str, int]]) -> dict[str, float]:
    weights = _ridge(fit)
    errors = test.yy - 2 * (weights * test.hy).sum(dim=0) + (weights * (test.hh @ weights)).sum(dim=0)
    deviations = test.yy - test.hy[0] ** 2 / test.count
    found, first = {}, 0
    for name, size in names:
        states = slice(first, first + size)
        spread = float(deviations[states].sum())
        if spread > LEAST_VARIANCE * size * test.count:
            found[name] = 1 - float(errors[states].sum()) / spread
        first += size
    return found


def _ridge(sums: _Sums) -> Tensor:
    """Weights [1 + D, S], the intercept first, which is not penalised."""
    mean_D, mean_S = sums.hh[0, 1:] / sums.count, sums.hy[0] / sums.count
    covariance = sums.hh[1:, 1:] / sums.count - torch.outer(mean_D, mean_D)
    products = sums.hy[1:] / sums.count - torch.outer(mean_D, mean_S)
    penalty = RIDGE * covariance.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    weights = torch.linalg.solve(covariance + penalty * torch.eye(len(mean_D), dtype=covariance.dtype), products)
    return torch.cat([(mean_S - mean_D @ weights)[None], weights])
