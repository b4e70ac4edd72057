"""Exact inference on an accelerator: the plan of plan.py as PyTorch operations on whole batches.

Shapes: B sequences, T tokens, V symbols, S joint states of the latents, P of the observed node's parents.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from nanollama.data.filter import (
    MAX_OPERATIONS,
    MEMORY_BUDGET,
    SCALES,
    ImpossibleSequence,
    affordable_batch,
    check_size,
    check_tokens,
)
from nanollama.data.gssm import Array, Kernels
from nanollama.data.plan import Plan
from nanollama.data.ways import Ints32, Sparse, Step

_COPIES = 6  # joint distributions alive within a step: before, after, scaled, permuted for the multiplication, weights

Tensor = torch.Tensor


@dataclass(frozen=True)
class _Matrix:
    """A step's matrices: `blocks` [blocks, new, old]; or `excess`, and the vectors of its rank-one term.

    The excess is a single [new, old] that holds for all parents, or one matrix over (outer index, state) that has the
    blocks of all outer indices on its diagonal. `gives` [.., old, 1] and `takes` [.., new, 1] are 1 where
    they are None.
    """

    blocks: Tensor | None = None
    excess: Tensor | None = None
    gives: Tensor | None = None
    takes: Tensor | None = None


@dataclass(frozen=True)
class _Move:
    """A step with its tables on the device; `backward` is the transposed matrix."""

    step: Step
    parents: Tensor | None
    forward: _Matrix
    backward: _Matrix
    pre: Tensor | None
    post: Tensor | None


class TorchFilter:
    """What Filter is, for tensors on a device, with the same answers; results lie on the device."""

    def __init__(
        self,
        kernels: Kernels,
        *,
        device: torch.device | str,
        dtype: torch.dtype = torch.float64,
        memory_budget: int = MEMORY_BUDGET,
        max_operations: int = MAX_OPERATIONS,
        method: str = "auto",
    ) -> None:
        """Choose the steps and compute their tables; arguments and errors are those of Filter."""
        if dtype not in (torch.float64, torch.float32):
            raise ValueError(f"probabilities can be float64 or float32, not {dtype}")
        self.device = torch.device(device)
        self.dtype = dtype
        self.vocab_size = kernels.vocab_size
        item = dtype.itemsize
        self._scale = SCALES[item]
        check_size(kernels, item, memory_budget, max_operations)
        self.plan = Plan(kernels, method=method, item=item, table_bytes=memory_budget // 2)
        self._each = item * _COPIES * self.plan.states
        self._batch = affordable_batch(self.plan, self._each, memory_budget, max_operations)
        self._budget = memory_budget
        self._moves = [self._move(step) for step in self.plan.steps]
        observation = self.plan.observation
        self._parents = None if observation.parents is None else self._index(observation.parents)
        self._factors: tuple[Tensor, Tensor, Tensor] | None = None
        if observation.factored:
            lead, trail, inverse = (torch.from_numpy(part).to(self.device) for part in self.plan.emission_factors())
            self._factors = lead, trail, inverse
        else:
            self._table = self._tensor(self.plan.emission_table())

    def explain(self) -> str:
        """The ways that were weighed for each latent with their costs, the choice, and the memory."""
        return f"{self.plan.explain()}\n{self._batch:,} sequences at a time on {self.device}, {self.dtype}"

    def log_likelihood(self, tokens: Tensor) -> Tensor:
        """Log-likelihoods log p(x_t | x_<t) of tokens [B, T]: float64 of shape [B, T - 1], as Filter."""
        checked = self._checked(tokens)
        norms = torch.ones(len(checked), checked.shape[1] - 1, dtype=torch.float64, device=self.device)
        for part in self._parts(len(checked), self._batch):
            self._forward(checked[part], norms[part], self._initial(checked[part]))
        return _logs(norms, checked)

    def predictive(self, tokens: Tensor) -> Tensor:
        """The distributions p(x_t | x_<t) of tokens [B, T]: shape [B, T - 1, V], as Filter."""
        checked = self._checked(tokens)
        norms = torch.ones(len(checked), checked.shape[1] - 1, dtype=torch.float64, device=self.device)
        result = torch.empty(*norms.shape, self.vocab_size, dtype=self.dtype, device=self.device)
        for part in self._parts(len(checked), self._batch):
            self._forward(checked[part], norms[part], self._initial(checked[part]), predictive=result[part])
        _logs(norms, checked)
        return result

    def posterior(self, tokens: Tensor, *, smoothed: bool = False) -> dict[str, Tensor]:
        """Filtered or smoothed marginals {latent: float64 [B, T, its states]}, as Filter."""
        checked = self._checked(tokens)
        norms = torch.ones(len(checked), checked.shape[1] - 1, dtype=torch.float64, device=self.device)
        shape = (*checked.shape, sum(self.plan.dims))
        marginals = torch.empty(shape, dtype=torch.float64, device=self.device)
        segment = math.isqrt(checked.shape[1]) + 1
        batch = max(1, self._batch * _COPIES // (_COPIES + 2 * segment)) if smoothed else self._batch
        for part in self._parts(len(checked), batch):
            if smoothed:
                self._smooth(checked[part], norms[part], marginals[part], segment)
            else:
                joint = self._initial(checked[part])
                self._marginals(joint, marginals[part, 0])
                self._forward(checked[part], norms[part], joint, marginals=marginals[part])
        _logs(norms, checked)
        found = marginals.isfinite().all(dim=2)
        if not bool(found.all()):
            row, t = (int(i) for i in (~found).nonzero()[0])
            raise ImpossibleSequence(row, t, int(checked[row, t]))
        sizes = [node.state_dim for node in self.plan.latents]
        names = [node.name for node in self.plan.latents]
        parts = torch.split(marginals, sizes, dim=2) if sizes else ()
        result = dict(zip(names, parts, strict=True))
        for name in self.plan.constant:
            result[name] = torch.ones(*checked.shape, 1, dtype=torch.float64, device=self.device)
        return result

    # ---- tables ----

    def _tensor(self, values: Array) -> Tensor:
        return torch.tensor(values, dtype=self.dtype, device=self.device)

    def _index(self, values: Ints32) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.device)

    def _move(self, step: Step) -> _Move:
        tables = self.plan.tables(step)
        matrix = tables.matrix
        if step.sparse and (len(matrix) == 1 or step.feedback == 1):
            forward, backward = (self._sparse(step, matrix, transposed) for transposed in (False, True))
        else:
            blocks = self._tensor(matrix.transpose(0, 2, 1).copy())
            forward, backward = _Matrix(blocks=blocks), _Matrix(blocks=blocks.transpose(1, 2))
        return _Move(
            step=step,
            parents=None if step.parents is None else self._index(step.parents),
            forward=forward,
            backward=backward,
            pre=None if tables.pre is None else self._tensor(tables.pre),
            post=None if tables.post is None else self._tensor(tables.post),
        )

    def _sparse(self, step: Step, matrix: Array, transposed: bool) -> _Matrix:
        sparse = Sparse.of(matrix)
        rows, columns = (sparse.old, sparse.new) if transposed else (sparse.new, sparse.old)
        values, size, background = sparse.value, step.states, sparse.background
        if len(matrix) > 1:  # each outer index has the block of its parents
            assert step.parents is not None
            counts = np.bincount(sparse.block, minlength=len(matrix))
            starts = np.concatenate([[0], np.cumsum(counts)])
            picked = np.concatenate([np.arange(starts[p], starts[p + 1]) for p in step.parents])
            outer = np.repeat(np.arange(step.before), counts[step.parents])
            rows, columns = outer * size + rows[picked], outer * size + columns[picked]
            values, size, background = values[picked], step.before * size, background[step.parents]
        index = torch.from_numpy(np.stack([rows, columns]))
        excess = torch.sparse_coo_tensor(
            index, torch.from_numpy(values).to(self.dtype), (size, size), device=self.device, check_invariants=False
        ).coalesce()
        vector = self._tensor(background)[..., None]
        return _Matrix(excess=excess, takes=vector) if transposed else _Matrix(excess=excess, gives=vector)

    # ---- running ----

    def _checked(self, tokens: Tensor) -> Tensor:
        checked = check_tokens(tokens.detach().cpu().numpy(), self.vocab_size)
        return torch.from_numpy(checked).to(self.device, torch.long)

    def _parts(self, count: int, batch: int) -> list[slice]:
        return [slice(start, min(start + batch, count)) for start in range(0, count, batch)]

    def _initial(self, tokens: Tensor) -> Tensor:
        joint = torch.zeros(self.plan.states, len(tokens), dtype=self.dtype, device=self.device)
        joint[0] = self._scale
        return joint

    def _scaling(self, table: Tensor, move: _Move, previous: Tensor) -> Tensor:
        """Rows of a scaling that hold for (x(t-1), parents): [before or 1, states, 1, B or 1]."""
        count = move.step.num_parents
        parents = torch.zeros(1, dtype=torch.long, device=self.device) if move.parents is None else move.parents
        if move.step.feedback == 1:
            return table[parents][:, :, None, None]
        return table[previous * count + parents[:, None]].transpose(1, 2)[:, :, None, :]

    def _apply(self, joint: Tensor, move: _Move, previous: Tensor, *, transposed: bool = False) -> Tensor:
        """Replace the states of a step's latents in the joint distribution [S, B]."""
        step, batch = move.step, joint.shape[1]
        matrix = move.backward if transposed else move.forward
        first, last = (move.post, move.pre) if transposed else (move.pre, move.post)
        view = joint.view(step.before, step.states, step.after, batch)
        if first is not None:
            view = view * self._scaling(first, move, previous)
        if matrix.excess is not None:
            view = _multiply_sparse(matrix, view)
        elif matrix.blocks is not None:
            view = self._multiply(matrix.blocks, view, move, previous)
        if last is not None:
            view = view * self._scaling(last, move, previous)
        return view.reshape(joint.shape)

    def _multiply(self, blocks: Tensor, view: Tensor, move: _Move, previous: Tensor) -> Tensor:
        before, states, after, batch = view.shape
        if len(blocks) == 1 or move.step.feedback == 1:
            chosen = blocks[0] if len(blocks) == 1 else blocks[move.parents]
            return (chosen @ view.reshape(before, states, after * batch)).view(before, states, after, batch)
        parents = 0 if move.parents is None else move.parents[:, None]
        own = blocks[(previous * move.step.num_parents + parents).reshape(-1, batch)]  # [before or 1, B, new, old]
        return (own @ view.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def _weights(self, symbols: Tensor) -> Tensor:
        """P(x | parents) for one symbol of each sequence, [S, B]."""
        if self._factors is None:
            weights = self._table[symbols].T
        else:
            lead, trail, inverse = self._factors
            weights = (lead[symbols][:, :, None] * trail[symbols][:, None, :]).flatten(1).mul_(inverse).to(self.dtype).T
        return weights if self._parents is None else weights[self._parents]

    def _predict(self, joint: Tensor) -> Tensor:
        """p(x = v | past) from the joint distribution before the token is seen, [B, V], up to its sum."""
        prior = joint
        if self._parents is not None:
            shape = (self.plan.observation.num_parents, joint.shape[1])
            prior = torch.zeros(shape, dtype=self.dtype, device=self.device).index_add_(0, self._parents, joint)
        if self._factors is None:
            return (self._table @ prior).T
        lead, trail, inverse = self._factors
        prior = (prior * inverse[:, None]).view(lead.shape[1], trail.shape[1], -1)
        return torch.einsum("va,vac->vc", lead, torch.einsum("vk,akb->vab", trail, prior).double()).T.to(self.dtype)

    @torch.no_grad()
    def _forward(
        self,
        tokens: Tensor,
        norms: Tensor,
        joint: Tensor,
        *,
        first: int = 1,
        last: int | None = None,
        predictive: Tensor | None = None,
        marginals: Tensor | None = None,
        kept: list[Tensor] | None = None,
        every: int = 1,
    ) -> None:
        """The forward recursion from the distribution after first - 1; `kept` gets those at multiples of `every`."""
        joint = joint * (self._scale / joint.sum(dim=0))
        for t in range(first, tokens.shape[1] if last is None else last):
            for move in self._moves:
                joint = self._apply(joint, move, tokens[:, t - 1])
            if predictive is not None:
                predictive[:, t - 1] = self._predict(joint) / self._scale
            joint = joint * self._weights(tokens[:, t])
            norm = joint.sum(dim=0)
            joint = joint * (self._scale / norm)
            norms[:, t - 1] = norm.double() / self._scale
            if marginals is not None:
                self._marginals(joint, marginals[:, t])
            if kept is not None and t % every == 0:
                kept.append(joint)

    def _marginals(self, joint: Tensor, out: Tensor) -> None:
        """Normalised marginals of each latent of the joint distribution [S, B], into [B, sum of sizes]."""
        place, before = 0, 1
        for size in self.plan.dims:
            sums = joint.view(before, size, -1, joint.shape[1]).double().sum(dim=(0, 2)).T
            out[:, place : place + size] = sums / sums.sum(dim=1, keepdim=True)
            place, before = place + size, before * size

    @torch.no_grad()
    def _smooth(self, tokens: Tensor, norms: Tensor, marginals: Tensor, segment: int) -> None:
        """Forward with a checkpoint at the head of each segment, then segment by segment backwards."""
        length = tokens.shape[1]
        heads = [self._initial(tokens)]
        self._forward(tokens, norms, heads[0], kept=heads, every=segment)
        message = torch.ones_like(heads[0])
        for i in range(len(heads) - 1, -1, -1):
            first, last = i * segment, min((i + 1) * segment, length)
            kept = [heads[i]]
            self._forward(tokens, norms, heads[i], first=first + 1, last=last, kept=kept)
            for t in range(last - 1, first - 1, -1):
                message = message * (self._scale / message.sum(dim=0))
                self._marginals(kept[t - first] * message, marginals[:, t])
                if t == 0:
                    break
                message = message * self._weights(tokens[:, t])
                for move in reversed(self._moves):
                    message = self._apply(message, move, tokens[:, t - 1], transposed=True)


def _multiply_sparse(matrix: _Matrix, view: Tensor) -> Tensor:
    """Excess and rank-one term times [before, states, after, B]."""
    assert matrix.excess is not None
    before, states, after, batch = view.shape
    shared = len(matrix.excess) == states
    flat = view.reshape(before, states, after * batch)
    if shared:  # all outer indices side by side
        flat = flat.transpose(0, 1).reshape(1, states, before * after * batch)
    total = (flat if matrix.gives is None else flat * matrix.gives).sum(dim=1, keepdim=True)
    rank_one = total if matrix.takes is None else total * matrix.takes
    moved: Tensor = torch.sparse.mm(matrix.excess, flat.reshape(-1, flat.shape[2])).view(flat.shape) + rank_one
    if shared:
        moved = moved.view(states, before, after * batch).transpose(0, 1)
    return moved.reshape(before, states, after, batch)


def _logs(norms: Tensor, tokens: Tensor) -> Tensor:
    """Logarithms of p(x_t | x_<t) [B, T - 1]; refuses a sequence that has probability zero."""
    possible = (norms > 0) & norms.isfinite()
    if not bool(possible.all()):
        row, column = (int(i) for i in (~possible).nonzero()[0])
        raise ImpossibleSequence(row, column + 1, int(tokens[row, column + 1]))
    return torch.log(norms).clamp_max(0)  # as there
