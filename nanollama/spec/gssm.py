"""Graph Structured Sequential Model: nodes, the checks that make them a graph, and their order."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from nanollama.spec.base import Problem, Problems, Spec, did_you_mean

MAX_TABLE_ENTRIES = 2**27  # 1 GiB of float64: beyond it a kernel is refused before anything is drawn


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


Mode = Annotated[Literal["default", "slow", "dead", "context"], BeforeValidator(_lower)]
KernelType = Annotated[Literal["product", "fullrank"], BeforeValidator(_lower)]


class NodeSpec(Spec):
    """One discrete variable of a GSSM."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$", description="unique name of the node")
    state_dim: int = Field(ge=1, le=2**16, description="number of states")
    alpha: float = Field(gt=0, le=1e6, description="symmetric Dirichlet concentration of the node's kernels")
    parents: tuple[str, ...] = Field(default=(), strict=False, description="names of the parents, in input order")
    mode: Mode = Field(default="default", description="how the kernel's rows are arranged or redrawn")
    kernel_type: KernelType = Field(default="product", description="one table per input, or one joint table")
    observed: bool = Field(default=False, description="whether this node emits the tokens")


class GSSMSpec(Spec):
    """The nodes of a GSSM, in the listed order. Exactly one is observed; latents form a directed acyclic graph."""

    nodes: tuple[NodeSpec, ...] = Field(max_length=256, strict=False)

    @model_validator(mode="after")
    def _check_graph(self) -> GSSMSpec:
        problems = _name_problems(self.nodes)
        if not problems:
            problems = _edge_problems(self.nodes) + _observed_problems(self.nodes)
        if not problems:
            problems = _cycle_problems(self) or _size_problems(self)
        if problems:
            raise Problems(problems)
        return self

    @property
    def observed(self) -> NodeSpec:
        """The node that emits tokens; its `state_dim` is the vocabulary size."""
        return next(node for node in self.nodes if node.observed)

    def node(self, name: str) -> NodeSpec:
        """The node of that name; KeyError if there is none."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)

    def inputs(self, node: NodeSpec) -> tuple[str, ...]:
        """Names of the inputs of a node in table order: itself at t-1 unless it is observed, then its parents."""
        return node.parents if node.observed else (node.name, *node.parents)

    def build_order(self) -> tuple[NodeSpec, ...]:
        """Nodes in the order in which kernels are drawn and states are sampled; it ends with the observed node.

        The list is passed over repeatedly, a node is taken once its latent parents are taken. Nodes that are not
        reached before the observed one influence no token and are left out.
        """
        taken: dict[str, NodeSpec] = {}
        observed = self.observed
        while True:
            before = len(taken)
            for node in self.nodes:
                if node.name in taken or any(p not in taken for p in node.parents if p != observed.name):
                    continue
                taken[node.name] = node
                if node is observed:
                    return tuple(taken.values())
            if len(taken) == before:
                raise ValueError("the latents form a cycle")


def _name_problems(nodes: tuple[NodeSpec, ...]) -> list[Problem]:
    counts = Counter(node.name for node in nodes)
    return [
        Problem(path=f"nodes.{i}.name", message=f"the name '{n.name}' is taken by another node", remedy="rename one")
        for i, n in enumerate(nodes)
        if counts[n.name] > 1 and any(m.name == n.name for m in nodes[:i])
    ]


def _edge_problems(nodes: tuple[NodeSpec, ...]) -> list[Problem]:
    names = [node.name for node in nodes]
    problems = []
    for i, node in enumerate(nodes):
        for j, parent in enumerate(node.parents):
            path = f"nodes.{i}.parents.{j}"
            if parent not in names:
                remedy = did_you_mean(parent, names)
                problems.append(Problem(path=path, message=f"no node is named '{parent}'", remedy=remedy))
            elif parent == node.name:
                own = (
                    "a token does not depend on the one before" if node.observed else "its own past is always an input"
                )
                problems.append(Problem(path=path, message=f"'{parent}' lists itself; {own}", remedy="remove it"))
            elif parent in node.parents[:j]:
                problems.append(Problem(path=path, message=f"'{parent}' is listed twice", remedy="remove one"))
    return problems


def _observed_problems(nodes: tuple[NodeSpec, ...]) -> list[Problem]:
    observed = [(i, node) for i, node in enumerate(nodes) if node.observed]
    if not observed:
        return [Problem(path="nodes", message="no node is observed", remedy="set `observed: true` on one node")]
    if len(observed) > 1:
        names = ", ".join(f"'{node.name}'" for _, node in observed)
        return [
            Problem(
                path=f"nodes.{observed[1][0]}.observed",
                message=f"{len(observed)} nodes are observed: {names}",
                remedy="exactly one node may be observed; set `observed: false` on the others",
            )
        ]
    i, node = observed[0]
    if node.mode in ("slow", "dead"):
        message = f"the observed node '{node.name}' cannot be '{node.mode}'"
        return [Problem(path=f"nodes.{i}.mode", message=message, remedy="use 'default' or 'context'")]
    return []


def _cycle_problems(spec: GSSMSpec) -> list[Problem]:
    """Report each cycle among the latents once; an edge from the observed node carries x(t-1) and closes none."""
    index = {node.name: i for i, node in enumerate(spec.nodes)}
    feedback = spec.observed.name
    done: set[str] = set()
    problems = []
    for start in index:
        trail: list[str] = []
        stack = [(start, iter(spec.node(start).parents))] if start not in done else []
        trail += [start] if stack else []
        while stack:
            name, parents = stack[-1]
            parent = next(parents, None)
            if parent is None:
                done.add(name)
                stack.pop()
                trail.pop()
            elif parent == feedback:
                continue
            elif parent in trail:
                cycle = " <- ".join([*trail[trail.index(parent) :], parent])
                where = f"nodes.{index[name]}.parents.{spec.node(name).parents.index(parent)}"
                remedy = "remove one of these edges"
                problems.append(Problem(path=where, message=f"the parents form a cycle: {cycle}", remedy=remedy))
            elif parent not in done:
                stack.append((parent, iter(spec.node(parent).parents)))
                trail.append(parent)
    return problems


def _size_problems(spec: GSSMSpec) -> list[Problem]:
    problems = []
    for i, node in enumerate(spec.nodes):
        sizes = [spec.node(name).state_dim for name in spec.inputs(node)]
        entries = node.state_dim
        if node.kernel_type == "fullrank":
            for size in sizes:
                entries *= size
        else:
            entries *= max(sizes, default=1)
        if entries > MAX_TABLE_ENTRIES:
            message = (
                f"the {node.kernel_type} kernel of '{node.name}' has {entries:,} entries, over {MAX_TABLE_ENTRIES:,}"
            )
            remedy = "use `kernel_type: product`, fewer parents or fewer states"
            problems.append(Problem(path=f"nodes.{i}.kernel_type", message=message, remedy=remedy))
    return problems
