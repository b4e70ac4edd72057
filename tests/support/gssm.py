"""Graphs, and an oracle that sums over every path of their latents; it shares nothing with the production code."""

from __future__ import annotations

import itertools
import math

import numpy as np
from hypothesis import strategies as st

from nanollama.data.gssm import Kernels
from nanollama.spec.gssm import GSSMSpec, NodeSpec

MAX_PATHS = 4096


def two_nodes(symbols: int = 6, mode: str = "default") -> GSSMSpec:
    """A latent of three states and its symbols."""
    return GSSMSpec(
        nodes=(
            NodeSpec(name="Z", state_dim=3, alpha=0.3, mode=mode),
            NodeSpec(name="X", state_dim=symbols, alpha=0.3, parents=("Z",), observed=True),
        )
    )


@st.composite
def graphs(draw, *, max_latents: int = 3, max_states: int = 3, modes: tuple[str, ...] = ("default", "slow", "dead")):
    """A GSSM with up to `max_latents` latents, any parents, feedback, both kernel types, listed in any order."""
    names = [f"Z{i}" for i in range(draw(st.integers(0, max_latents)))]
    alpha = st.sampled_from([0.05, 0.3, 1.0, 5.0])
    kernel_type = st.sampled_from(["product", "fullrank"])
    nodes = []
    for i, name in enumerate(names):
        parents = draw(st.lists(st.sampled_from([*names[:i], "X"]), unique=True))
        nodes.append(
            NodeSpec(
                name=name,
                state_dim=draw(st.integers(1, max_states)),
                alpha=draw(alpha),
                parents=tuple(parents),
                mode=draw(st.sampled_from(modes)),
                kernel_type=draw(kernel_type),
            )
        )
    parents = draw(st.lists(st.sampled_from(names), unique=True)) if names else []
    observed_modes = [mode for mode in modes if mode in ("default", "context")]
    nodes.append(
        NodeSpec(
            name="X",
            state_dim=draw(st.integers(1, 4)),
            alpha=draw(alpha),
            parents=tuple(parents),
            mode=draw(st.sampled_from(observed_modes)),
            kernel_type=draw(kernel_type),
            observed=True,
        )
    )
    return GSSMSpec(nodes=tuple(draw(st.permutations(nodes))))


class Oracle:
    """Sums over all paths of all latents that have kernels."""

    def __init__(self, kernels: Kernels) -> None:
        self.kernels = kernels
        self.x = kernels.spec.observed
        self.latents = [node for node in kernels.spec.nodes if node.name in kernels.tables and not node.observed]
        self.num_states = math.prod(node.state_dim for node in self.latents)

    def max_len(self, limit: int = 5) -> int:
        """Longest sequence whose paths can be enumerated, at most `limit` tokens."""
        length = 2
        while length < limit and self.num_states**length <= MAX_PATHS:
            length += 1
        return length

    def paths(self, steps: int) -> np.ndarray:
        """All paths of the latents, int [paths, 1 + steps, latents], each from state 0 at t = 0."""
        states = np.array(list(itertools.product(*(range(node.state_dim) for node in self.latents))), dtype=int)
        states = states.reshape(self.num_states, len(self.latents))
        choices = np.array(list(itertools.product(range(self.num_states), repeat=steps)), dtype=int)
        choices = choices.reshape(self.num_states**steps, steps)
        start = np.zeros((len(choices), 1, len(self.latents)), dtype=int)
        return np.concatenate([start, states[choices]], axis=1)

    def path_probabilities(self, tokens: tuple[int, ...]) -> np.ndarray:
        """p(path, x_1 .. x_{T-1}) for each of `paths(T - 1)`."""
        paths = self.paths(len(tokens) - 1)
        total = np.ones(len(paths))
        names = [node.name for node in self.latents]
        for t in range(1, len(tokens)):
            for node in [*self.latents, self.x]:
                inputs = []
                if not node.observed:
                    inputs.append(paths[:, t - 1, names.index(node.name)])
                for parent in node.parents:
                    if parent == self.x.name:
                        inputs.append(np.full(len(paths), tokens[t - 1]))
                    else:
                        inputs.append(paths[:, t, names.index(parent)])
                law = self.conditional(node, inputs, len(paths))
                state = np.full(len(paths), tokens[t]) if node.observed else paths[:, t, names.index(node.name)]
                total = total * law[np.arange(len(paths)), state]
        return total

    def conditional(self, node: NodeSpec, inputs: list[np.ndarray], count: int) -> np.ndarray:
        tables = self.kernels.tables[node.name]
        if node.kernel_type == "product":
            log = sum(
                (np.log(table)[rows] for table, rows in zip(tables, inputs, strict=True)), np.zeros(node.state_dim)
            )
            weights = np.exp(np.broadcast_to(log, (count, node.state_dim)))
        else:
            sizes = [self.kernels.spec.node(name).state_dim for name in ([] if node.observed else [node.name])]
            sizes += [self.kernels.spec.node(name).state_dim for name in node.parents]
            cell = tables[0].reshape(*sizes, node.state_dim)[tuple(inputs)]
            weights = np.broadcast_to(cell, (count, node.state_dim))
        return weights / weights.sum(axis=1, keepdims=True)

    def probability(self, tokens: tuple[int, ...]) -> float:
        """p(x_1 .. x_{T-1})."""
        return float(self.path_probabilities(tokens).sum())

    def predictive(self, tokens: tuple[int, ...], t: int) -> np.ndarray:
        """p(x_t | x_<t) for every symbol."""
        joint = np.array([self.probability((*tokens[:t], v)) for v in range(self.x.state_dim)])
        return joint / self.probability(tokens[:t])

    def sequences(self, length: int) -> list[tuple[int, ...]]:
        """Every token sequence of a length."""
        return [(0, *rest) for rest in itertools.product(range(self.x.state_dim), repeat=length - 1)]
