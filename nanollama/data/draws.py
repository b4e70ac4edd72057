"""What is drawn together and from which tables: the program that the samplers run, and with it the stream.

The stream, version 2. Nodes of one state are never drawn. The other nodes of the build order are drawn one after the
other, or several at once where their joint table is small. The latents that the tokens depend on and the observed node
make D draws a step; draw d of step t >= 1 uses number (t - 1) * D + d of the purpose STATES (`philox`). The other
latents are drawn aside, counted in the same way with the purpose ASIDE. A uniform state where a table says `background`
takes the number of the same place of the purpose BACKGROUND or ASIDE_BACKGROUND. Everything here depends on the kernels
and the constants below and on nothing else; who changes any of it changes VERSION.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nanollama.data.alias import Factors, read_only
from nanollama.data.gssm import Array, IntArray, Kernels, relevant_latents, table_shapes
from nanollama.data.philox import round_keys
from nanollama.spec.gssm import GSSMSpec, NodeSpec

VERSION = 2
STATES, KERNELS, BACKGROUND, ASIDE, ASIDE_BACKGROUND = range(5)
"""Last word of the counter: what the random numbers are for."""

JOINED_ENTRIES = 2**13
"""Nodes are drawn together where their joint table has at most this many entries: it stays in the first caches."""

JOINT_WORK = 2**27
"""Alias tables are made of joint tables of at most this many entries, most of which need not be stored."""

JOINT_ENTRIES = 2**25
"""Most entries that are stored of a node's alias table: 512 MiB. Beyond it, a row is multiplied out at each draw."""

FACTOR_ENTRIES = 2**20
"""Inputs of a node whose rows are multiplied out at each draw are merged into tables of at most this many entries."""

_MERGED_INPUTS = 8  # at most, so that no entry of a merged table is below 1e-80

ALIAS, PRODUCT, OWN = range(3)
"""How a draw is made: by an alias table; by a row multiplied out; the same, from tables of the sequence itself."""

Source = tuple[str, int]
"""A node, and whether its state is that of this step (0) or that of the step before (1)."""


@dataclass(frozen=True)
class Draw:
    """Nodes that are drawn at once. The outcome counts their states in C order."""

    nodes: tuple[NodeSpec, ...]
    inputs: tuple[Source, ...]

    @property
    def outcomes(self) -> int:
        """Number of outcomes."""
        return math.prod(node.state_dim for node in self.nodes)

    def states(self, name: str) -> IntArray:
        """State of one of the nodes for each outcome."""
        position = next(i for i, node in enumerate(self.nodes) if node.name == name)
        behind = math.prod(node.state_dim for node in self.nodes[position + 1 :])
        return np.arange(self.outcomes) // behind % self.nodes[position].state_dim


def key_of(seed: int, split: str) -> NDArray[np.uint64]:
    """Key of the random numbers of a split, two words."""
    text = f"nanollama sequences, version {VERSION}, seed {seed}, split {split}"
    return np.frombuffer(hashlib.sha256(text.encode()).digest()[:16], dtype="<u8").astype(np.uint64)


def plan(spec: GSSMSpec) -> tuple[list[Draw], list[Draw]]:
    """The draws of a step in order: those that the tokens depend on, and those of the other latents."""
    relevant = [*relevant_latents(spec), spec.observed]
    others = [node for node in spec.build_order() if node not in relevant]
    main: list[Draw] = []
    aside: list[Draw] = []
    for draws, nodes in ((main, relevant), (aside, others)):
        for node in nodes:
            if node.state_dim > 1:
                _place(spec, draws, node)
    return main, aside


def _place(spec: GSSMSpec, draws: list[Draw], node: NodeSpec) -> None:
    """Join a node with the latest draw that stays small with it, or append a draw of its own."""
    first = 0  # the earliest draw that has all parents before or in it
    for i, draw in enumerate(draws):
        if any((member.name, 0) in _sources(spec, node) for member in draw.nodes):
            first = i
    for i in range(len(draws) - 1, first - 1, -1):
        joined = _draw(spec, (*draws[i].nodes, node))
        rows = math.prod(spec.node(name).state_dim for name, _ in joined.inputs)
        if all(member.mode != "context" for member in joined.nodes) and rows * joined.outcomes <= JOINED_ENTRIES:
            draws[i] = joined
            return
    draws.append(_draw(spec, (node,)))


def _draw(spec: GSSMSpec, nodes: tuple[NodeSpec, ...]) -> Draw:
    inside = {(node.name, 0) for node in nodes}
    inputs = dict.fromkeys(source for node in nodes for source in _sources(spec, node) if source not in inside)
    return Draw(nodes, tuple(inputs))


def _sources(spec: GSSMSpec, node: NodeSpec) -> list[Source]:
    """Inputs of a node that have more than one state."""
    return [source for source in _all_sources(spec, node) if spec.node(source[0]).state_dim > 1]


def _all_sources(spec: GSSMSpec, node: NodeSpec) -> list[Source]:
    before = (node.name, spec.observed.name)  # the own state is that of the step before, and so is feedback
    return [(name, int(name in before)) for name in spec.inputs(node)]


@dataclass
class Program:
    """The tables of all draws as arrays, for compiled loops and tensor code.

    Attributes:
        keys: of the rounds of the random numbers.
        num_main: draws per step that the tokens depend on; the other draws come after them.
        draws: int64 [D, 4]: kind, outcomes, first slot, slot after the last.
        slots: int64 [F, 3]: one per row that a draw looks up: base, first input, input after the last. An alias
            table's row is a number into `starts`, a factor's row a place in `flat` or in the sequence's own tables.
        inputs: int64 [I, 4]: what is added to a slot's base: draw of the source, steps back, factor of its outcome,
            or, where that is 0, where its outcomes' contributions begin in `contributions`.
        contributions: int64.
        starts: int64: row r of an alias table has the entries starts[r] .. starts[r + 1] - 1.
        entries: uint64 [n, 2]: threshold, own outcome << 32 | alias.
        flat: float64, the tables of the rows that are multiplied out at each draw.
        own_nodes: nodes in context mode among the draws; a sequence's own tables lie in this order, one behind the
            other.
        own_entries: their entries.
    """

    keys: NDArray[np.uint64]
    num_main: int
    draws: IntArray
    slots: IntArray
    inputs: IntArray
    contributions: IntArray
    starts: IntArray
    entries: NDArray[np.uint64]
    flat: Array
    own_nodes: tuple[NodeSpec, ...]
    own_entries: int
    plan: tuple[Draw, ...]

    def outputs(self, nodes: Sequence[NodeSpec]) -> tuple[IntArray, NDArray[np.uint16]]:
        """How states follow from outcomes: int64 [O, 2], the draw (-1: none) and where its decoder begins; decoders."""
        places, decoders, begin = [], [np.zeros(0, dtype=np.uint16)], 0
        for node in nodes:
            place = next((i for i, draw in enumerate(self.plan) if node in draw.nodes), -1)
            places.append((place, begin))
            if place >= 0:
                decoders.append(self.plan[place].states(node.name).astype(np.uint16))
                begin += len(decoders[-1])
        return np.array(places, dtype=np.int64).reshape(-1, 2), np.concatenate(decoders)


def build_program(kernels: Kernels, key: NDArray[np.uint64], *, aside: bool, threads: int) -> Program:
    """The program for a model.

    Args:
        kernels: the model.
        key: of the random numbers.
        aside: whether the latents that no token depends on are drawn too.
        threads: that may work on the tables.
    """
    main, others = plan(kernels.spec)
    builder = _Builder(kernels, [*main, *others] if aside else main, threads)
    return builder.program(round_keys(key), len(main))


class _Builder:
    """Collects the arrays of a program draw by draw."""

    def __init__(self, kernels: Kernels, draws: Sequence[Draw], threads: int) -> None:
        self._kernels, self._spec, self._plan, self._threads = kernels, kernels.spec, draws, threads
        self._place = {node.name: i for i, draw in enumerate(draws) for node in draw.nodes}
        self._draws: list[tuple[int, int, int, int]] = []
        self._slots: list[tuple[int, int, int]] = []
        self._inputs: list[tuple[int, int, int, int]] = []
        self._contributions: list[IntArray] = [np.zeros(0, dtype=np.int64)]
        self._columns: list[IntArray] = []
        self._alias: list[Factors] = []
        self._flat: list[Array] = [np.zeros(0)]
        self._own: list[NodeSpec] = []
        self._rows = self._own_entries = 0
        for draw in draws:
            first = len(self._slots)
            kind = self._add(draw)
            self._draws.append((kind, draw.outcomes, first, len(self._slots)))

    def program(self, keys: NDArray[np.uint64], num_main: int) -> Program:
        starts = np.concatenate([[0], *self._columns]).astype(np.int64)
        np.cumsum(starts, out=starts)
        entries = np.empty((int(starts[-1]), 2), dtype=np.uint64)
        row = 0
        for factors in self._alias:
            factors.fill(starts[row : row + factors.rows + 1], entries, threads=self._threads)
            row += factors.rows
        return Program(
            keys=keys,
            num_main=num_main,
            draws=np.array(self._draws, dtype=np.int64).reshape(-1, 4),
            slots=np.array(self._slots, dtype=np.int64).reshape(-1, 3),
            inputs=np.array(self._inputs, dtype=np.int64).reshape(-1, 4),
            contributions=np.concatenate(self._contributions),
            starts=starts,
            entries=entries,
            flat=read_only(np.concatenate(self._flat)),
            own_nodes=tuple(self._own),
            own_entries=self._own_entries,
            plan=tuple(self._plan),
        )

    def _add(self, draw: Draw) -> int:
        """Add one draw's tables; returns its kind."""
        if len(draw.nodes) > 1:
            law = Factors.of([_joined_law(self._kernels, draw, self._threads)], draw.outcomes)
            self._add_alias(draw, law, law.columns(threads=self._threads))
            return ALIAS
        (node,) = draw.nodes
        if node.mode == "context":
            self._add_own(node)
            return OWN
        factors = Factors.of(self._kernels.tables[node.name], node.state_dim)
        if factors.rows * factors.states <= JOINT_WORK:
            columns = factors.columns(threads=self._threads)
            if columns.sum() <= JOINT_ENTRIES:
                self._add_alias(draw, factors, columns)
                return ALIAS
        self._add_product(node)
        return PRODUCT

    def _add_alias(self, draw: Draw, factors: Factors, columns: IntArray) -> None:
        self._add_slot(self._rows, draw.inputs, 1)
        self._alias.append(factors)
        self._columns.append(columns)
        self._rows += factors.rows

    def _add_own(self, node: NodeSpec) -> None:
        sources = _all_sources(self._spec, node)
        groups = [sources] if node.kernel_type == "fullrank" else [[source] for source in sources]
        for group, (rows, states) in zip(groups, table_shapes(self._spec, node), strict=True):
            self._add_slot(self._own_entries, group, states)
            self._own_entries += rows * states
        self._own.append(node)

    def _add_product(self, node: NodeSpec) -> None:
        """Merge the inputs into few tables: each joins the first one that stays within FACTOR_ENTRIES."""
        tables, sources = self._kernels.tables[node.name], _all_sources(self._spec, node)
        if node.kernel_type == "fullrank":
            self._add_factor(tables[0], sources)
            return
        merged: list[list[int]] = []
        for j, table in enumerate(tables):
            fitting = (
                group
                for group in merged
                if len(group) < _MERGED_INPUTS
                and math.prod(len(tables[i]) for i in group) * table.size <= FACTOR_ENTRIES
            )
            group = next(fitting, None)
            if group is None:
                merged.append([j])
            else:
                group.append(j)
        for group in merged:
            product = tables[group[0]]
            if len(group) > 1:
                product = Factors.of([tables[j] for j in group], node.state_dim).table(threads=self._threads)
            self._add_factor(product, [sources[j] for j in group])

    def _add_factor(self, table: Array, sources: Sequence[Source]) -> None:
        base = sum(part.size for part in self._flat)
        self._flat.append(table.reshape(-1))
        self._add_slot(base, sources, table.shape[1])

    def _add_slot(self, base: int, sources: Sequence[Source], unit: int) -> None:
        """A row of `unit` entries, chosen by sources in C order; what comes from one outcome is added up before."""
        places: dict[tuple[int, int], IntArray] = {}
        for name, lag in reversed(sources):
            size = self._spec.node(name).state_dim
            if size > 1:
                place = self._place[name]
                states = self._plan[place].states(name) * unit
                places[place, lag] = places.get((place, lag), 0) + states
                unit *= size
        first = len(self._inputs)
        for (place, lag), contribution in places.items():
            factor, begin = int(contribution[1]), 0
            if factor == 0 or not np.array_equal(contribution, np.arange(len(contribution)) * factor):
                factor, begin = 0, sum(len(part) for part in self._contributions)
                self._contributions.append(contribution)
            self._inputs.append((place, lag, factor, begin))
        self._slots.append((base, first, len(self._inputs)))


def _joined_law(kernels: Kernels, draw: Draw, threads: int) -> Array:
    """P(nodes | inputs) of a draw of several nodes, float64 [rows, outcomes]."""
    spec = kernels.spec
    axes: Mapping[Source, int] = {
        source: i for i, source in enumerate((*draw.inputs, *((node.name, 0) for node in draw.nodes)))
    }
    sizes = [spec.node(name).state_dim for name, _ in axes]
    law = np.ones(sizes)
    for node in draw.nodes:
        table = Factors.of(kernels.tables[node.name], node.state_dim).table(threads=threads)
        table = table / table.sum(axis=1, keepdims=True)
        used = [axes[source] for source in (*_sources(spec, node), (node.name, 0))]
        table = table.reshape([sizes[axis] for axis in used]).transpose(np.argsort(used))
        law = law * table.reshape([size if axis in used else 1 for axis, size in enumerate(sizes)])
    return law.reshape(-1, draw.outcomes)
