"""Graphs in context mode that are small enough to be summed over by hand, and their probabilities that way."""

from __future__ import annotations

import itertools
import math
from functools import cache

import numpy as np

from nanollama.data.gssm import Kernels, draw_kernels, draw_tables
from nanollama.spec.gssm import GSSMSpec, NodeSpec
from tests.support.gssm import Oracle

LENGTH = 5


def graph(*nodes: tuple, alpha: float = 0.5) -> GSSMSpec:
    """Nodes as (name, states, parents, mode, kernel type); the one that is called X is observed."""
    return GSSMSpec(
        nodes=tuple(
            NodeSpec(name=n, state_dim=s, alpha=alpha, parents=p, mode=m, kernel_type=k, observed=n == "X")
            for n, s, p, m, k in nodes
        )
    )


URNS = {
    "latent": graph(("Z", 3, (), "context", "product"), ("X", 2, ("Z",), "default", "product")),
    "observed": graph(("Z", 3, (), "slow", "product"), ("X", 2, ("Z",), "context", "product")),
    "both": graph(("Z", 2, (), "context", "product"), ("X", 3, ("Z",), "context", "product")),
    "fullrank chain": graph(
        ("Z0", 2, (), "context", "product"),
        ("Z1", 2, ("Z0",), "context", "fullrank"),
        ("X", 2, ("Z0", "Z1"), "context", "fullrank"),
    ),
    "feedback": graph(("Z", 2, ("X",), "context", "fullrank"), ("X", 2, ("Z",), "context", "product")),
    "a latent no token depends on": graph(
        ("A", 2, (), "context", "product"), ("Z", 2, (), "default", "product"), ("X", 2, ("Z",), "context", "product")
    ),
}


PRODUCTS = {
    "product of a parent": graph(
        ("Z0", 2, (), "default", "product"),
        ("Z1", 2, ("Z0",), "context", "product"),
        ("X", 2, ("Z1",), "default", "product"),
    ),
    "product feedback": graph(("Z", 2, ("X",), "context", "product"), ("X", 2, ("Z",), "context", "product")),
    "product observed": graph(
        ("Z0", 2, (), "default", "product"),
        ("Z1", 2, (), "context", "product"),
        ("X", 3, ("Z0", "Z1"), "context", "product"),
    ),
}


GRAPHS = URNS | PRODUCTS


def urn_probability(kernels: Kernels, tokens: tuple[int, ...]) -> float:
    """p(x) as a sum over all paths, each the product of the urns' Dirichlet integrals; without the floor."""
    spec = kernels.spec
    nodes = spec.build_order()
    latents = [node for node in nodes if not node.observed]
    total = 0.0
    steps = len(tokens) - 1
    states = list(itertools.product(*(range(node.state_dim) for node in latents)))
    for path in itertools.product(states, repeat=steps):
        log_p = 0.0
        urns: dict[tuple, np.ndarray] = {}
        for t in range(1, steps + 1):
            now = dict(zip((n.name for n in latents), path[t - 1], strict=True))
            before = dict(zip((n.name for n in latents), path[t - 2] if t > 1 else (0,) * len(latents), strict=True))
            for node in nodes:
                inputs = [] if node.observed else [before[node.name]]
                inputs += [tokens[t - 1] if parent == "X" else now[parent] for parent in node.parents]
                value = tokens[t] if node.observed else now[node.name]
                if node.mode == "context":
                    counts = urns.setdefault((node.name, *inputs), np.zeros(node.state_dim))
                    log_p += math.log((node.alpha + counts[value]) / (node.alpha * node.state_dim + counts.sum()))
                    counts[value] += 1
                else:
                    law = Oracle(kernels).conditional(node, [np.array([i]) for i in inputs], 1)
                    log_p += math.log(law[0, value])
        total += math.exp(log_p)
    return total


def prior_probabilities(kernels: Kernels, length: int, draws: int) -> dict[tuple[int, ...], float]:
    """p(x) of all sequences as means over kernels that are drawn from the prior, with the floor."""
    spec, rng = kernels.spec, np.random.default_rng(0)
    nodes = spec.build_order()
    latents = [node for node in nodes if not node.observed]
    tables = {name: tuple(table[None] for table in own) for name, own in kernels.tables.items()}
    for node in nodes:
        if node.mode == "context":
            drawn = [draw_tables(spec, node, rng) for _ in range(draws)]
            tables[node.name] = tuple(np.stack(own) for own in zip(*drawn, strict=True))

    @cache
    def law(name: str, inputs: tuple[int, ...]) -> np.ndarray:
        node, own = spec.node(name), tables[name]
        assert node.kernel_type == "product"
        weights = math.prod(table[:, i] for table, i in zip(own, inputs, strict=True))
        return weights / weights.sum(axis=1, keepdims=True)

    def probability(tokens: tuple[int, ...]) -> float:
        total = np.zeros(draws)
        states = list(itertools.product(*(range(node.state_dim) for node in latents)))
        for path in itertools.product(states, repeat=length - 1):
            p = np.ones(draws)
            joint = [dict(zip((n.name for n in latents), z, strict=True)) for z in ((0,) * len(latents), *path)]
            for t in range(1, length):
                for node in nodes:
                    inputs = [] if node.observed else [joint[t - 1][node.name]]
                    inputs += [tokens[t - 1] if parent == "X" else joint[t][parent] for parent in node.parents]
                    p *= law(node.name, tuple(inputs))[:, tokens[t] if node.observed else joint[t][node.name]]
            total += p
        return float(total.mean())

    return {tokens: probability(tokens) for tokens in Oracle(kernels).sequences(length)}


@cache
def probabilities(name: str, length: int = LENGTH) -> dict[tuple[int, ...], float]:
    kernels = draw_kernels(GRAPHS[name], 1)
    if name in PRODUCTS:
        return prior_probabilities(kernels, length, 4000)
    return {tokens: urn_probability(kernels, tokens) for tokens in Oracle(kernels).sequences(length)}


def length_of(name: str) -> int:
    return 4 if name in PRODUCTS or name == "fullrank chain" else LENGTH
