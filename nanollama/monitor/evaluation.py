"""What a learner is worth on held-out sequences: loss, bound, excess and exact KL, on the whole and by position.

Shapes: B sequences, T tokens of a sequence, V symbols, P = T - 1 predicted positions, Q quantities.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from nanollama.monitor.probe import Probe
from nanollama.spec.rundir import EVALUATIONS, evaluation_name, write_atomic

WORKING_BYTES = 2**28
"""Of distributions over symbols that an evaluation holds at a time."""
MAX_SHIPPED = 256
"""Positions of which an event tells; the file of the evaluation has all."""

T = TypeVar("T")


class Truth(Protocol):
    """The model that made the sequences, as `nanollama.data.bounds.Scorer`."""

    def nll_by_position(self, tokens: Tensor, /) -> Tensor:
        """-log p(x_t | x_<t) in nats of tokens [B, T]: float64 [B, P]."""

    def kl(self, tokens: Tensor, logits: Tensor, /) -> Tensor:
        """KL( p(x_t | x_<t) || softmax(logits) ) in nats: float64 [B, P]."""

    def posterior(self, tokens: Tensor, /) -> dict[str, Tensor]:
        """p(z_t | x_<=t) of each latent: [B, T, its states]."""


class HeldOut(Protocol):
    """Sequences that no learner is trained on."""

    @property
    def num_sequences(self) -> int:
        """How many."""

    @property
    def seq_len(self) -> int:
        """T, the start token included."""

    @property
    def vocab_size(self) -> int:
        """V."""

    @property
    def scorer(self) -> Truth | None:
        """What has made them; None when it has no exact score."""

    def tokens(self, start: int, stop: int) -> Tensor:
        """Tokens of the sequences start .. stop - 1: int64 [stop - start, T] on the CPU."""


class Ranks(Protocol):
    """The processes that share an evaluation, as `nanollama.cluster.cluster.Cluster`."""

    @property
    def rank(self) -> int:
        """Number of this one."""

    @property
    def world_size(self) -> int:
        """How many there are."""

    @property
    def device(self) -> torch.device:
        """Where the learner is."""

    def gather(self, value: T) -> list[T]:
        """The values of all of them, in their order."""


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations of some numbers over sequences; float64, any shape."""

    count: int
    mean: Tensor
    squares: Tensor

    @classmethod
    def of(cls, values: Tensor) -> Moments:
        """Of values [B, ...]."""
        mean = values.mean(dim=0)
        return cls(len(values), mean, ((values - mean) ** 2).sum(dim=0))

    def __add__(self, other: Moments) -> Moments:
        """Of both groups of sequences together (Chan et al. 1979)."""
        count = self.count + other.count
        apart = other.mean - self.mean
        mean = self.mean + apart * (other.count / count)
        return Moments(count, mean, self.squares + other.squares + apart**2 * (self.count * other.count / count))

    @property
    def stderr(self) -> Tensor:
        """Standard error of the mean; NaN for a single sequence."""
        return (self.squares / (self.count - 1) / self.count).sqrt() if self.count > 1 else self.mean * math.nan


@dataclass(frozen=True)
class Evaluation:
    """Means over held-out sequences, in nats per token, and their standard errors over sequences.

    Attributes:
        num_sequences: how many there were.
        means: `loss`; where the true model can be scored also `bound`, `excess` (paired, loss - bound of the same
            tokens) and `kl` (of truth to learner, over full distributions).
        stderrs: by the same names.
        by_position: means at positions 1 .. T-1 and, under `<name>_stderr`, their standard errors.
        probe: R^2 of the belief state of each latent, {layer: {latent: R^2}}; layer 0 is the embedding.
        seconds: that it took.
    """

    num_sequences: int
    means: dict[str, float]
    stderrs: dict[str, float]
    by_position: dict[str, list[float]]
    probe: dict[int, dict[str, float]] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def score(self) -> float:
        """What ranks learners, lower is better: the excess, or the loss where there is no bound."""
        return self.means.get("excess", self.means["loss"])

    def metrics(self) -> dict[str, float]:
        """The metrics of an evaluation's line: `eval/loss`, `eval/loss_stderr`, ..., `probe/layer2/Z`."""
        values = {}
        for name, mean in self.means.items():
            values[f"eval/{name}"] = mean
            values[f"eval/{name}_stderr"] = self.stderrs[name]
        for layer, found in self.probe.items():
            values |= {f"probe/layer{layer}/{latent}": r2 for latent, r2 in found.items()}
        return values

    def record(self) -> dict[str, Any]:
        """All of it for JSON; a number that is none is null."""
        record: dict[str, Any] = {"num_sequences": self.num_sequences}
        for name, mean in self.means.items():
            record |= {name: _finite(mean), f"{name}_stderr": _finite(self.stderrs[name])}
        by_position = {name: [_finite(v) for v in values] for name, values in self.by_position.items()}
        probe = {f"layer{i}": {latent: _finite(r2) for latent, r2 in r2s.items()} for i, r2s in self.probe.items()}
        return {**record, "by_position": by_position, "probe": probe or None, "seconds": self.seconds}

    def shipped_curves(self) -> dict[str, list[float | None]]:
        """`by_position` with six digits, at up to MAX_SHIPPED `positions`, which are closer to each other early on."""
        predicted = len(self.by_position["loss"])
        positions = list(range(1, predicted + 1))
        if predicted > MAX_SHIPPED:
            spread = [round(predicted ** (i / (MAX_SHIPPED - 1))) for i in range(MAX_SHIPPED)]
            positions = sorted(set(spread))
        curves: dict[str, list[float | None]] = {"positions": [float(t) for t in positions]}
        for name, values in self.by_position.items():
            curves[name] = [None if (v := _finite(values[t - 1])) is None else float(f"{v:.6g}") for t in positions]
        return curves

    def __str__(self) -> str:
        parts = [f"{name} {mean:.4f} ± {self.stderrs[name]:.4f}" for name, mean in self.means.items()]
        return f"{', '.join(parts)} nats/token over {self.num_sequences:,} held-out sequences"


class Evaluator:
    """Evaluates learners on the same held-out sequences again and again.

    The sequences go to the ranks batch by batch and the results are added up in the order of the batches, so that they
    do not depend on the number of ranks. No random number is drawn and nothing of training changes.
    """

    def __init__(
        self,
        held_out: HeldOut,
        ranks: Ranks,
        *,
        batch_size: int,
        probe: bool = False,
        arithmetic: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        """Nothing is computed yet.

        Args:
            held_out: the sequences, and what has made them.
            ranks: that share the work; each must call `evaluate` at the same time.
            batch_size: sequences at a time; fewer where their distributions would not fit into WORKING_BYTES.
            probe: whether the belief state is regressed on the residual stream; it needs `Learner.hidden_states`.
            arithmetic: makes the context in which the learner computes, for example autocast.
        """
        assert held_out.num_sequences >= 2, "a standard error needs two sequences"
        assert not probe or held_out.scorer is not None, "a probe needs the exact belief state"
        self.held_out = held_out
        self._ranks = ranks
        self._batch_size = batch_size
        self._probe = probe
        self._arithmetic = arithmetic

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> Evaluation:
        """Evaluate a learner: tokens [B, T] to logits [B, T, V]; the same result on every rank."""
        began = time.monotonic()
        total: Moments | None = None
        probe = Probe(self.held_out.num_sequences) if self._probe else None
        with _evaluating(model):
            for start, stop, own in self._shares():
                tokens_BT = self.held_out.tokens(start, stop)
                part = Moments.of(self._quantities(model, tokens_BT))
                if probe is not None:
                    states = self._hidden_states(model, tokens_BT)
                    if own:
                        probe.add(start, states, self._beliefs(tokens_BT))
                for other in self._ranks.gather(part if own else None):
                    if other is not None:
                        total = other if total is None else total + other
        assert total is not None
        r2 = probe.result(self._ranks.gather) if probe is not None else {}
        return self._evaluation(total, r2, time.monotonic() - began)

    def _shares(self) -> Iterator[tuple[int, int, bool]]:
        """Start and stop of the batches of this rank, and whether it has one in this round.

        A rank without one computes a batch that is not its own: where a learner is cut in shards, all must take part in
        each forward pass.
        """
        count = self.held_out.num_sequences
        affordable = WORKING_BYTES // (48 * (self.held_out.seq_len - 1) * self.held_out.vocab_size)  # bytes a symbol
        size = max(1, min(self._batch_size, count, affordable))
        starts = range(0, count, size)
        for first in range(0, len(starts), self._ranks.world_size):
            number = first + self._ranks.rank
            own = number < len(starts)
            start = starts[number] if own else 0
            yield start, min(start + size, count), own

    def _quantities(self, model: nn.Module, tokens_BT: Tensor) -> Tensor:
        """Loss, and with a scorer bound, excess and KL of each sequence: float64 [B, Q, P + 1], their means last."""
        there_BT = tokens_BT.to(self._ranks.device)
        with self._arithmetic():
            logits_BPV = model(there_BT[:, :-1]).float()
        loss_BP = functional.cross_entropy(logits_BPV.transpose(1, 2), there_BT[:, 1:], reduction="none").double().cpu()
        rows = [loss_BP]
        scorer = self.held_out.scorer
        if scorer is not None:
            nll_BP = scorer.nll_by_position(tokens_BT).cpu()
            finite = bool(logits_BPV.isfinite().all())  # a learner that has diverged has no distribution
            kl_BP = scorer.kl(tokens_BT, logits_BPV).cpu() if finite else loss_BP * math.nan
            rows += [nll_BP, loss_BP - nll_BP, kl_BP]
        values_BQP = torch.stack(rows, dim=1)
        return torch.cat([values_BQP, values_BQP.mean(dim=2, keepdim=True)], dim=2)

    def _hidden_states(self, model: nn.Module, tokens_BT: Tensor) -> list[Tensor]:
        with self._arithmetic():
            states: Sequence[Tensor] = model.hidden_states(tokens_BT.to(self._ranks.device))  # type: ignore[operator] # a Learner's
        return [state.double().cpu() for state in states]

    def _beliefs(self, tokens_BT: Tensor) -> dict[str, Tensor]:
        assert self.held_out.scorer is not None
        found = self.held_out.scorer.posterior(tokens_BT)
        return {name: belief.double().cpu() for name, belief in found.items()}

    def _evaluation(self, total: Moments, r2: dict[int, dict[str, float]], seconds: float) -> Evaluation:
        means, stderrs = total.mean.tolist(), total.stderr.tolist()
        names = ("loss", "bound", "excess", "kl")[: len(means)]
        curves = {}
        for i, name in enumerate(names):
            curves[name], curves[f"{name}_stderr"] = means[i][:-1], stderrs[i][:-1]
        return Evaluation(
            num_sequences=total.count,
            means={name: means[i][-1] for i, name in enumerate(names)},
            stderrs={name: stderrs[i][-1] for i, name in enumerate(names)},
            by_position=curves,
            probe=r2,
            seconds=seconds,
        )


def write_evaluation(run_dir: Path, step: int, record: dict[str, Any]) -> Path:
    """Write `evaluations/<step>.json`, whole or not at all; returns its path.

    Raises:
        OSError: the disk is full or gone.
    """
    path = run_dir / EVALUATIONS / evaluation_name(step)
    path.parent.mkdir(exist_ok=True)
    write_atomic(path, json.dumps({"step": step, **record}, indent=1, allow_nan=False).encode() + b"\n")
    return path


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, and uncompiled: batches of other shapes would have it compiled again."""
    before = model.training
    model.eval()
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        model.train(before)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
