"""Kernels of a GSSM: drawn from a seed, kept in .npz files, turned into conditional distributions. NumPy only."""

from __future__ import annotations

import hashlib
import json
import math
import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanollama.spec.base import Problem, SpecError, canonical_json, did_you_mean, parse
from nanollama.spec.gssm import GSSMSpec, NodeSpec
from nanollama.spec.rundir import sync_directory

Array = NDArray[np.float64]
IntArray = NDArray[np.int64]

FLOOR = 1e-10
"""Smallest entry of a kernel's table, before the row is normalised again."""

MAX_JOINT_ENTRIES = 2**26
"""Default limit of a joint table: 512 MiB of float64."""

_SUM_TOLERANCE = 1e-5  # of a row in a file: other programs write float32, or clip without normalising again

_RESCALE_EVERY = 16  # factors of at least about 1e-10 each: their product stays far above the smallest float64


@dataclass(frozen=True, eq=False)
class Kernels:
    """The transition tables of a GSSM: together with its spec, the true model.

    Attributes:
        spec: the graph.
        seed: what the tables were drawn from; None for tables that were read from a file.
        tables: per node of the build order that is not in context mode, its float64 tables of shape
            [rows, state_dim] in input order (one per input for a product kernel, a single one for a fullrank
            kernel). Rows are distributions, floored and normalised. Read-only.
    """

    spec: GSSMSpec
    seed: int | None
    tables: Mapping[str, tuple[Array, ...]]

    def __post_init__(self) -> None:
        """Check the tables.

        Raises:
            ValueError: a table that is missing, has another shape, or a row that is no distribution.
        """
        for node in self.spec.build_order():
            if node.mode == "context":
                continue
            shapes, given = table_shapes(self.spec, node), self.tables.get(node.name, ())
            if len(given) != len(shapes):
                raise ValueError(f"node '{node.name}' has {len(given)} tables, but its inputs ask for {len(shapes)}")
            for j, (table, shape) in enumerate(zip(given, shapes, strict=True)):
                if fault := _fault(table, shape):
                    raise ValueError(f"node '{node.name}', table {j} {fault[0]}; {fault[1]}")

    @property
    def vocab_size(self) -> int:
        """Number of symbols of the observed node."""
        return self.spec.observed.state_dim

    def content_hash(self) -> str:
        """SHA-256, as 64 hexadecimal digits, of the law of the sequences: the graph and every bit of the tables."""
        digest = hashlib.sha256()
        for node in self.spec.build_order():
            tables = self.tables.get(node.name, ())
            law = {
                "name": node.name,
                "observed": node.observed,
                "inputs": self.spec.inputs(node),
                "kernel_type": node.kernel_type,
                "state_dim": node.state_dim,
                "context_alpha": node.alpha if node.mode == "context" else None,
                "shapes": [table.shape for table in tables],
            }
            digest.update(json.dumps(law, sort_keys=True).encode())
            for table in tables:
                digest.update(np.ascontiguousarray(table, dtype="<f8").tobytes())
        return digest.hexdigest()


def draw_kernels(spec: GSSMSpec, seed: int) -> Kernels:
    """The kernels of a graph for a seed: the same on every machine, rank and restart.

    Nodes are visited in build order, and a node in context mode uses up its draws like any other, so that changing
    a node's mode leaves the kernels of all other nodes as they are.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed).spawn(1)[0])
    tables = {}
    for node in spec.build_order():
        drawn = draw_tables(spec, node, rng)
        if node.mode != "context":
            tables[node.name] = drawn
    return Kernels(spec=spec, seed=seed, tables=tables)


def draw_tables(spec: GSSMSpec, node: NodeSpec, rng: np.random.Generator) -> tuple[Array, ...]:
    """One draw of a node's tables in input order, arranged by its mode, floored and normalised; read-only."""
    concentration = np.full(node.state_dim, node.alpha)
    tables = []
    for j, (rows, _) in enumerate(table_shapes(spec, node)):
        table = rng.dirichlet(concentration, size=rows)
        if node.mode == "slow" and j == 0:  # the input that comes first is the node's own previous state
            _swap_largest(table, np.arange(rows) // (rows // node.state_dim))
        elif node.mode == "dead":
            _swap_largest(table, np.zeros(rows, dtype=np.int64))
        tables.append(_read_only(floored(table)))
    return tuple(tables)


def _swap_largest(table: Array, columns: IntArray) -> None:
    """In each row, in place, the largest entry and the entry of the given column trade places."""
    rows = np.arange(len(table))
    largest = table.argmax(axis=1)
    table[rows, largest], table[rows, columns] = table[rows, columns], table[rows, largest]


def floored(table: Array) -> Array:
    """The table with entries of at least FLOOR, its rows normalised again."""
    clipped = np.maximum(table, FLOOR)
    clipped /= clipped.sum(axis=-1, keepdims=True)
    return clipped


def _read_only(table: Array) -> Array:
    table.flags.writeable = False
    return table


def input_sizes(spec: GSSMSpec, node: NodeSpec) -> tuple[int, ...]:
    """Number of states of each input of a node, in table order."""
    return tuple(spec.node(name).state_dim for name in spec.inputs(node))


def table_shapes(spec: GSSMSpec, node: NodeSpec) -> tuple[tuple[int, int], ...]:
    """Shape [rows, state_dim] of each table of a node; a product kernel without inputs has none and is uniform."""
    sizes = input_sizes(spec, node)
    rows = (math.prod(sizes),) if node.kernel_type == "fullrank" else sizes
    return tuple((count, node.state_dim) for count in rows)


def relevant_latents(spec: GSSMSpec) -> tuple[NodeSpec, ...]:
    """The latents that the tokens depend on, parents before children."""
    wanted = set(spec.observed.parents)
    for node in reversed(spec.build_order()):
        if node.name in wanted and not node.observed:
            wanted.update(node.parents)
    return tuple(node for node in spec.build_order() if node.name in wanted and not node.observed)


def product_weights(factors: Sequence[Array]) -> Array:
    """Product of broadcastable factors, up to a power of two; however many they are, nothing underflows on the way.

    It uses multiplication alone, whose rounding IEEE 754 fixes, so that samplers agree to the last bit everywhere.
    """
    weights = np.ones(1)
    exponents = np.zeros(1, dtype=np.int64)
    for j, factor in enumerate(factors, start=1):
        weights = weights * factor
        if j % _RESCALE_EVERY == 0:
            weights, shift = np.frexp(weights)
            exponents = exponents + shift
    if len(factors) < _RESCALE_EVERY:
        return weights
    scaled: Array = np.ldexp(weights, np.maximum(exponents - exponents.max(axis=-1, keepdims=True), -2000))
    return scaled


def joint_weights(spec: GSSMSpec, node: NodeSpec, tables: Sequence[Array]) -> Array:
    """Unnormalised P(node | inputs) of shape [*input sizes, state_dim]."""
    shape = (*input_sizes(spec, node), node.state_dim)
    if node.kernel_type == "fullrank":
        return tables[0].reshape(shape)
    axes = len(shape) - 1
    factors = []
    for j, table in enumerate(tables):
        view = [1] * axes + [node.state_dim]
        view[j] = len(table)
        factors.append(table.reshape(view))
    return np.broadcast_to(product_weights(factors), shape)


def joint_table(kernels: Kernels, name: str, *, max_entries: int = MAX_JOINT_ENTRIES) -> Array:
    """P(node | inputs), float64 of shape [*input sizes, state_dim]: the distribution that is sampled and scored.

    Raises:
        SpecError: a node in context mode, which has no fixed kernel, or a table of more than `max_entries`.
    """
    spec, node = kernels.spec, kernels.spec.node(name)
    if node.mode == "context":
        raise SpecError([context_problem([name])])
    entries = math.prod((*input_sizes(spec, node), node.state_dim))
    if entries > max_entries:
        message = f"the table of '{name}' over all its inputs has {entries:,} entries, over {max_entries:,}"
        remedy = "give it fewer parents or fewer states"
        raise SpecError([Problem(path="gssm.nodes", message=message, remedy=remedy)])
    weights = joint_weights(spec, node, kernels.tables[name])
    table: Array = weights / weights.sum(axis=-1, keepdims=True)
    return table


def context_problem(names: Sequence[str]) -> Problem:
    """Why sequences of a graph with nodes in context mode are not scored exactly."""
    listed = ", ".join(f"'{name}'" for name in names)
    message = f"context mode ({listed}): the likelihood is an integral over the kernels of each sequence"
    remedy = (
        "nanollama.apps.gssm.entropy bounds the entropy from both sides; use another mode where every batch is scored"
    )
    return Problem(path="gssm.nodes", message=message, remedy=remedy)


def save_kernels(kernels: Kernels, path: str | Path) -> None:
    """Write the kernels to an .npz file: `spec` (JSON text) and `kernel.<node>.<input>`. It appears whole or not.

    Raises:
        OSError: the file cannot be written; nothing is left behind.
    """
    path = Path(path)
    arrays: dict[str, Any] = {
        f"kernel.{name}.{j}": t for name, tables in kernels.tables.items() for j, t in enumerate(tables)
    }
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            np.savez(file, spec=np.array(canonical_json(kernels.spec)), **arrays)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_directory(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def load_kernels(path: str | Path) -> Kernels:
    """Read kernels that save_kernels or another program wrote; tables that are not floored yet are floored.

    The law that is scored is always the floored one: an entry below FLOOR, zero included, counts as FLOOR, and its row
    is normalised again.

    Raises:
        SpecError: a file that is missing or unreadable, or tables that do not belong to the spec in the file; every
            table with a fault is named, with the first row that is wrong.
    """
    try:
        with Path(path).open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            content = {key: file[key] for key in file.files}
    except FileNotFoundError:
        raise SpecError([_problem(f"there is no file {path}", "check the path")]) from None
    except (OSError, EOFError, ValueError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise SpecError([_problem(f"{path} is not a readable .npz file: {error}")]) from None
    spec = _read_spec(content, path)
    return Kernels(spec=spec, seed=None, tables=_checked_tables(spec, content, path))


def _read_spec(content: dict[str, NDArray[np.generic]], path: str | Path) -> GSSMSpec:
    remedy = "write the graph's JSON text under that key, as a 0-d array"
    if "spec" not in content:
        raise SpecError([_problem(f"{path} has no `spec`", remedy)])
    value = content.pop("spec")
    if value.dtype.kind not in "US" or value.ndim:
        raise SpecError([_problem(f"{path}: spec holds {value.dtype} {list(value.shape)}, not one text", remedy)])
    try:
        text = value.item()
        return parse(GSSMSpec, json.loads(text))
    except SpecError as error:
        raise SpecError(_problem(f"{path}: spec: {problem}") for problem in error.problems) from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise SpecError([_problem(f"{path}: spec is not JSON: {error.msg} at {place}", remedy)]) from None
    except (UnicodeDecodeError, RecursionError) as error:
        raise SpecError([_problem(f"{path}: spec is not JSON: {error}", remedy)]) from None


def _checked_tables(
    spec: GSSMSpec, content: dict[str, NDArray[np.generic]], path: str | Path
) -> dict[str, tuple[Array, ...]]:
    problems = []
    tables = {}
    expected = []
    for node in spec.build_order():
        if node.mode == "context":
            continue
        own = []
        for j, shape in enumerate(table_shapes(spec, node)):
            key = f"kernel.{node.name}.{j}"
            expected.append(key)
            table = content.pop(key, None)
            place = f"{path}: {key} (node '{node.name}', table {j})"
            if table is None:
                remedy = f"write float64 of shape {list(shape)} under that key, a distribution in each row"
                problems.append(_problem(f"{place} is missing", remedy))
            elif fault := _fault(table, shape):
                problems.append(_problem(f"{place} {fault[0]}", fault[1]))
            else:
                own.append(_accepted(table.astype(np.float64)))
        tables[node.name] = tuple(own)
    problems += [_unknown_table(spec, key, expected, path) for key in content]
    if problems:
        raise SpecError(problems)
    return tables


def _fault(table: NDArray[np.generic], shape: tuple[int, int]) -> tuple[str, str] | None:
    """What is wrong with a table that was read, and the remedy."""
    if table.shape != shape:
        return f"has shape {list(table.shape)}, but the spec asks for {list(shape)}", "one row for each input state"
    if table.dtype.kind != "f":
        return f"holds {table.dtype}, not floating-point numbers", "write float64"
    values = np.asarray(table, dtype=np.float64)
    if values.size and not (values.min() >= 0 and values.max() < np.inf):  # NaN is neither
        row, column = (int(i) for i in np.argwhere(~(np.isfinite(values) & (values >= 0)))[0])
        return f"holds {values[row, column]:g} in row {row}, column {column}", "probabilities are numbers from 0 to 1"
    sums = values.sum(axis=-1)
    unequal = np.flatnonzero(np.abs(sums - 1) > _SUM_TOLERANCE)
    if len(unequal):
        row = int(unequal[0])
        others = f"; {len(unequal):,} rows do not" if len(unequal) > 1 else ""
        return f"has row {row} which sums to {sums[row]:.9g}, not to 1{others}", "divide each row by its sum"
    return None


def _unknown_table(spec: GSSMSpec, key: str, expected: Sequence[str], path: str | Path) -> Problem:
    name = key.removeprefix("kernel.").rpartition(".")[0]
    if any(node.name == name and node.mode == "context" for node in spec.nodes):
        message = f"{path}: {key} belongs to a node in context mode, whose kernels each sequence draws anew"
        return _problem(message, "remove it")
    return _problem(f"{path}: {key} belongs to no table of the spec", did_you_mean(key, expected))


def _accepted(table: Array) -> Array:
    """The table as it is when it was floored and normalised before, so that saving and loading changes no bit."""
    lowest = FLOOR / (1 + table.shape[1] * FLOOR) * (1 - 1e-9)
    done = table.min() >= lowest and bool((np.abs(table.sum(axis=-1) - 1) < 1e-12).all())
    return _read_only(table if done else floored(table))


def _problem(message: str, remedy: str | None = None) -> Problem:
    return Problem(path="kernels", message=message, remedy=remedy)
