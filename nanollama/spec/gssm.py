"""Graph Structured Sequential Model: nodes, the checks that make them a graph, and their order."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_core import ErrorDetails, InitErrorDetails

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

    @model_validator(mode="wrap")
    @classmethod
    def _check_graph(cls, data: Any, handler: ModelWrapValidatorHandler[GSSMSpec]) -> GSSMSpec:
        """Check the graph even where a node is invalid by itself, so that all problems are told at once."""
        try:
            spec = handler(data)
        except ValidationError as error:
            sketch = _sketch(data)
            problems = _graph_problems(sketch) if sketch is not None else []
            if not problems:
                raise
            found = [_line_error(item) for item in error.errors(include_url=False)]
            found.append({"type": "value_error", "loc": (), "input": data, "ctx": {"error": Problems(problems)}})
            raise ValidationError.from_exception_data(cls.__name__, found) from None
        problems = _graph_problems(spec) or _size_problems(spec)
        if problems:
            raise Problems(problems)
        return spec

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


def _sketch(data: Any) -> GSSMSpec | None:
    """Names, edges and the observed node of a graph whose nodes are not all valid; None where even these are not."""
    nodes = data.get("nodes") if isinstance(data, dict) else None
    if not isinstance(nodes, list):
        return None
    sketches = []
    for node in nodes:
        known = node if isinstance(node, dict) else {}
        name, parents, observed = known.get("name"), known.get("parents", []), known.get("observed", False)
        if not (isinstance(name, str) and isinstance(parents, list) and isinstance(observed, bool)):
            return None
        if not all(isinstance(parent, str) for parent in parents):
            return None
        sketches.append(
            NodeSpec.model_construct(name=name, state_dim=1, alpha=1.0, parents=tuple(parents), observed=observed)
        )
    return GSSMSpec.model_construct(nodes=tuple(sketches))


def _line_error(item: ErrorDetails) -> InitErrorDetails:
    details: InitErrorDetails = {"type": item["type"], "loc": item["loc"], "input": item["input"]}
    if "ctx" in item:
        details["ctx"] = item["ctx"]
    return details


def _graph_problems(spec: GSSMSpec) -> list[Problem]:
    problems = _name_problems(spec.nodes)
    if not problems:
        problems = _edge_problems(spec.nodes) + _observed_problems(spec.nodes)
    return problems or _cycle_problems(spec)


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
            key, remedy = "kernel_type", "use `kernel_type: product`, fewer parents or fewer states"
            if node.kernel_type == "product":
                key, remedy = "state_dim", "use fewer states, here or in the largest parent"
            problems.append(Problem(path=f"nodes.{i}.{key}", message=message, remedy=remedy))
    return problems
