"""Dirichlet rows integrated out: Polya urns, how little the floor changes them, and the exact closed form."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nanollama.data.filter import ImpossibleSequence, check_tokens
from nanollama.data.gssm import FLOOR, Array, IntArray, Kernels, joint_table, relevant_latents, table_shapes
from nanollama.spec.base import Problem, SpecError
from nanollama.spec.gssm import GSSMSpec, NodeSpec

MAX_FLOOR_ERROR = 1e-3
"""Nats a sequence by which the floor may move what the closed form calls exact."""

CLOSED_FORM = "closed form: the symbols of a sequence are draws of a Polya urn"


def context_nodes(spec: GSSMSpec) -> tuple[NodeSpec, ...]:
    """The nodes in context mode that the tokens depend on, in build order."""
    return tuple(node for node in (*relevant_latents(spec), spec.observed) if node.mode == "context")


def is_urn(spec: GSSMSpec, node: NodeSpec) -> bool:
    """Whether the node's draws given its inputs are those of Polya urns, one urn a row, once its rows are integrated.

    So they are where a draw has a single row as its law: fullrank kernels, and product kernels with one input. The
    normalised product of several Dirichlet rows is not conjugate.
    """
    return len(table_shapes(spec, node)) == 1


def closed_form_applies(spec: GSSMSpec) -> bool:
    """Whether kernels are redrawn for every sequence and the likelihood is a formula nevertheless.

    An urn needs to see which row each symbol came from. An observed node has latents as its inputs and no edge from
    x(t-1), and a latent with several states is never a function of the visible past: every entry of its rows is
    positive, at least the floor. So the tokens are urn draws given the visible history exactly if each latent that
    they depend on has a single state, and then all of them come from one row. If that is the product of several
    Dirichlet rows there is no formula. A single symbol needs none.
    """
    observed = spec.observed
    if not context_nodes(spec):
        return False
    if observed.state_dim == 1:
        return True
    single = all(node.state_dim == 1 for node in relevant_latents(spec))
    return single and (observed.mode != "context" or len(table_shapes(spec, observed)) <= 1)


def checked_tokens(tokens: ArrayLike, vocab_size: int) -> IntArray:
    """Tokens as int64 [B, T].

    Raises:
        ValueError: not a matrix of integers, or a symbol outside the alphabet, with its place.
        ImpossibleSequence: a sequence that does not begin with 0.
    """
    return check_tokens(tokens, vocab_size).astype(np.int64)


def floor_gap(spec: GSSMSpec, steps: int) -> tuple[float, float]:
    """How far log p(x) with the floor may lie below and above log p(x) of its urns without the floor, in nats.

    Below: a floored entry is at least q / (1 + s FLOOR). Above: it is at most q + FLOOR, and for a row of s entries
    with counts n of total N, with a = min(1, alpha) and c = FLOOR (s alpha + N - 1),

        E prod_v (q_v + FLOOR)^n_v <= E prod_v q_v^n_v * prod_{v: n_v > 0} exp(c / a) ,

    by expanding the powers: each q_v that gives way to FLOOR costs at most a factor s alpha + N - 1 from the total
    and saves factors alpha + j >= a (1 + j), so that the sum over how many give way is an exponential series. The
    inequalities hold for each path of the latents and hence for the sums over paths.
    """
    below = above = 0.0
    for node in context_nodes(spec):
        if not is_urn(spec, node):
            continue
        size, rows = node.state_dim, table_shapes(spec, node)[0][0]
        below += steps * math.log1p(size * FLOOR)
        # sum over rows of (entries that are used) * (size * alpha + N_row)
        used = min(size, steps) * (min(rows, steps) * size * node.alpha + steps)
        above += used * FLOOR / min(1.0, node.alpha)
    return below, above


class ClosedForm:
    """Exact p(x_t | x_<t) where the kernels of each sequence can be integrated out by a formula.

    The symbols of a sequence are draws of one Polya urn: p(x_t = v | x_<t) = (alpha + n_v) / (V alpha + t - 1), with
    n_v the number of v among x_1 .. x_{t-1} (Johnson, Kotz 1977; MacKay, Peto 1995). The floor of the kernels is
    left out; `floor_error` bounds what that means.
    """

    def __init__(self, kernels: Kernels) -> None:
        """Prepare the urn.

        Raises:
            SpecError: a graph to which it does not apply, see closed_form_applies.
        """
        if not closed_form_applies(kernels.spec):
            raise SpecError([_no_closed_form()])
        self.kernels = kernels
        self.vocab_size = kernels.vocab_size
        observed = kernels.spec.observed
        self._alpha = observed.alpha
        self._fixed: Array | None = None
        if self.vocab_size == 1 or not table_shapes(kernels.spec, observed):
            self._fixed = np.full(self.vocab_size, 1 / self.vocab_size)
        elif observed.mode != "context":
            self._fixed = joint_table(kernels, observed.name).reshape(-1, self.vocab_size)[0]

    def log_likelihood(self, tokens: ArrayLike) -> Array:
        """Conditional log p(x_t | x_<t) in nats of tokens [B, T] for t = 1 .. T-1: float64 of shape [B, T - 1].

        Raises:
            ValueError: tokens that the model cannot have produced, or whose floor_error is over MAX_FLOOR_ERROR.
        """
        checked = self._checked(tokens)
        with np.errstate(divide="ignore"):
            logs: Array = np.log(np.take_along_axis(self._predictive(checked), checked[:, 1:, None], axis=2)[..., 0])
        if np.isneginf(logs).any():
            row, column = (int(i) for i in np.argwhere(np.isneginf(logs))[0])
            raise ImpossibleSequence(row, column + 1, int(checked[row, column + 1]))
        return logs

    def predictive(self, tokens: ArrayLike) -> Array:
        """p(x_t | x_<t) of tokens [B, T] for t = 1 .. T-1: float64 of shape [B, T - 1, V].

        Raises:
            ValueError: as log_likelihood.
        """
        return self._predictive(self._checked(tokens))

    def floor_error(self, tokens: ArrayLike) -> Array:
        """Nats within which log p(x_1 .. x_{T-1}) of each sequence holds for kernels with the floor, [B].

        As floor_gap, with the counts that are known here: an entry that is used once costs log(1 + c / a), one that
        is used more often at most 2 c + c^2 / a.
        """
        checked = checked_tokens(tokens, self.vocab_size)
        steps = checked.shape[1] - 1
        if self._fixed is not None:
            return np.zeros(len(checked))
        counts = _one_hot(checked, self.vocab_size).sum(axis=1)
        c = FLOOR * (self.vocab_size * self._alpha + max(steps - 1, 0))
        least = min(1.0, self._alpha)
        above = (counts == 1).sum(axis=1) * math.log1p(c / least) + (counts > 1).sum(axis=1) * (2 * c + c * c / least)
        error: Array = np.maximum(above, steps * math.log1p(self.vocab_size * FLOOR))
        return error

    def require(self, seq_len: int) -> None:
        """Refuse what log_likelihood may refuse for some sequences of that length.

        Raises:
            SpecError: an alpha so near the floor that the formula may not hold.
        """
        worst = self.worst_floor_error(seq_len)
        if worst > MAX_FLOOR_ERROR:
            message = (
                f"alpha = {self._alpha:g}: the floor of the kernels may change the log-likelihood of a sequence by "
                f"{worst:.1g} nats, over {MAX_FLOOR_ERROR:g}, so that the closed form need not hold"
            )
            raise SpecError([Problem(path="gssm.nodes", message=message, remedy="use a larger alpha")])

    def worst_floor_error(self, seq_len: int) -> float:
        """The largest floor_error that a sequence of that length can have."""
        steps = seq_len - 1
        c, least = FLOOR * (self.vocab_size * self._alpha + max(steps - 1, 0)), min(1.0, self._alpha)
        once, more = math.log1p(c / least), 2 * c + c * c / least
        used = min(self.vocab_size, steps)
        return (
            0.0 if self._fixed is not None else max(used * max(once, more), steps * math.log1p(self.vocab_size * FLOOR))
        )

    def _checked(self, tokens: ArrayLike) -> IntArray:
        checked = checked_tokens(tokens, self.vocab_size)
        errors = self.floor_error(checked)
        if len(errors) and errors.max() > MAX_FLOOR_ERROR:
            row = int(errors.argmax())
            raise ValueError(
                f"sequence {row}: the floor of the kernels may change its log-likelihood by {errors[row]:.1g} nats, "
                f"over {MAX_FLOOR_ERROR:g}; alpha = {self._alpha:g} is too small for the closed form, use a larger one"
            )
        return checked

    def _predictive(self, tokens: IntArray) -> Array:
        shape = (len(tokens), tokens.shape[1] - 1, self.vocab_size)
        if self._fixed is not None:
            fixed: Array = np.broadcast_to(self._fixed, shape).copy()
            return fixed
        seen = np.zeros(shape)
        np.cumsum(_one_hot(tokens, self.vocab_size)[:, :-1], axis=1, out=seen[:, 1:])
        totals = self.vocab_size * self._alpha + np.arange(shape[1])
        predictive: Array = (self._alpha + seen) / totals[:, None]
        return predictive


def _one_hot(tokens: IntArray, vocab_size: int) -> NDArray[np.float64]:
    """Indicators of x_1 .. x_{T-1}, [B, T - 1, V]."""
    hot: NDArray[np.float64] = (tokens[:, 1:, None] == np.arange(vocab_size)).astype(np.float64)
    return hot


def _no_closed_form() -> Problem:
    message = "no closed form: it needs context mode and a single row that all symbols are drawn from"
    return Problem(path="gssm.nodes", message=message, remedy="use context.two_sided, or Filter without context mode")
