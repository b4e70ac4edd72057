"""From one config with a `grid` to the configs of its runs: every combination, in a stable order, with stable names.

    grid:
      model.emb_dim: [64, 128]            # every value with every other axis, the first axis slowest
      optim: {lr: [1e-3, 1e-2]}           # nested or dotted, as you like
      grid_id: range(0, 130)              # an expression that makes a list
      data.gssm.nodes:                    # a value may be a whole list of nodes, and may have a label
        - {label: one, value: [{…}, {…}]}
        - {label: two, value: [{…}, {…}, {…}]}
      zip:                                # keys that advance together
        - {data.gssm.nodes.0.alpha: [0.1, 1.0], data.gssm.nodes.1.alpha: [1.0, 0.1]}

The name of a run lists its values: `emb_dim=64,lr=0.001,grid_id=7,graph=one,Z.alpha=0.1,X.alpha=1`.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

from nanollama.spec.base import Problem, Spec, SpecError, parse
from nanollama.spec.expression import NotAList, read_list
from nanollama.spec.load import GRID_ID, Document, fill_grid_id, set_value

MAX_RUNS = 10_000
"""Most runs that a grid may describe."""

MAX_NAME = 150
"""Longest name of a run, in characters; beyond it the number of the run stands first and the end is cut."""

_MAX_PROBLEMS = 100
_ZIP = "zip"

SpecT = TypeVar("SpecT", bound=Spec)


@dataclass(frozen=True)
class Value:
    """One value of a key: what is set, how names show it, and where it stands in the config."""

    value: Any
    text: str
    place: str


@dataclass(frozen=True)
class Axis:
    """Keys that advance together; `rows[i]` has one value for each key."""

    keys: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]


@dataclass(frozen=True)
class Variant(Generic[SpecT]):
    """One run of a grid.

    Attributes:
        name: unique among the runs, of characters that a file's name may have.
        index: number of the run, from 0; the first axis is the slowest.
        values: what the grid sets, by dotted key.
    """

    name: str
    index: int
    values: Mapping[str, Any]
    _grid: Grid[SpecT]
    _row: tuple[Value, ...]

    @property
    def data(self) -> dict[str, Any]:
        """The config of the run as plain data, $GRIDID filled in."""
        return self._grid.fill(self)

    @property
    def spec(self) -> SpecT:
        """The validated config; it is validated anew each time, so that ten thousand need no memory.

        Raises:
            SpecError: every problem, at its place in the file.
        """
        try:
            return parse(self._grid.model, self.data)
        except SpecError as error:
            raise SpecError(self._grid.document.locate(self.placed(error.problems))) from None

    def placed(self, problems: Sequence[Problem]) -> list[Problem]:
        """The problems at the places of the values that the grid has set; others stay where they are."""
        return [problem.model_copy(update={"path": self._place(problem.path)}) for problem in problems]

    def _place(self, path: str) -> str:
        places = zip(self.values, self._row, strict=True)
        hits = [(key, value) for key, value in places if path == key or path.startswith(f"{key}.")]
        key, value = max(hits, key=lambda hit: len(hit[0]), default=(path, None))
        return path if value is None else value.place + path[len(key) :]


@dataclass(frozen=True)
class Grid(Generic[SpecT]):
    """A config with its axes; without any it describes one run."""

    document: Document
    model: type[SpecT]
    axes: tuple[Axis, ...]

    def __len__(self) -> int:
        return math.prod(len(axis.rows) for axis in self.axes)

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """The dotted keys of all axes, in their order."""
        return tuple(key for axis in self.axes for key in axis.keys)

    @cached_property
    def _base(self) -> dict[str, Any]:
        return {key: value for key, value in self.document.data.items() if key != "grid"}

    def variants(self) -> Iterator[Variant[SpecT]]:
        """Every run, in order; nothing is validated."""
        names = _short_keys(self.keys, self._base)
        for index, rows in enumerate(itertools.product(*(axis.rows for axis in self.axes))):
            row = tuple(value for part in rows for value in part)
            name = ",".join(f"{key}={value.text}" for key, value in zip(names, row, strict=True)) or "run"
            if len(name) > MAX_NAME:
                name = f"{index}-{name}"[:MAX_NAME].rstrip(".,= ")
            values = dict(zip(self.keys, (value.value for value in row), strict=True))
            yield Variant(name, index, values, self, row)

    def fill(self, variant: Variant[SpecT]) -> dict[str, Any]:
        """The config of a run as plain data.

        Raises:
            SpecError: a key of the grid that leads nowhere, or $GRIDID without a number.
        """
        data: dict[str, Any] = _copy(self._base)
        for key, value in sorted(variant.values.items(), key=lambda item: item[0].count(".")):
            set_value(data, key, _copy(value))
        grid_id = data.pop(GRID_ID, None)
        if grid_id is None and self._makes_sets:
            grid_id = variant.index
        data = fill_grid_id(data, grid_id)
        if self.axes and "orchestration" in self.model.model_fields:
            orchestration = data.setdefault("orchestration", {})
            if isinstance(orchestration, dict) and "orchestration.name" not in variant.values:
                orchestration["name"] = f"{orchestration.get('name', 'run')},{variant.name}"[:200]
        return data

    @property
    def _makes_sets(self) -> bool:
        return "sets" in self.model.model_fields


def expand(document: Document, model: type[SpecT], *, check: bool = True) -> list[Variant[SpecT]]:
    """The runs that a config describes; one, called `run`, when it has no grid.

    Args:
        document: the config.
        model: what each run's config is.
        check: whether every run is validated; some 0.3 ms each.

    Raises:
        SpecError: a grid that cannot be read or is too large; or what is wrong with the runs, each problem once, with
            the name of the first run that has it and the number of the others.
    """
    grid = read_grid(document, model)
    variants = list(grid.variants())
    if check:
        problems = _all_problems(grid, variants)
        if problems:
            raise SpecError(document.locate(problems[:_MAX_PROBLEMS]))
    return variants


def read_grid(document: Document, model: type[SpecT]) -> Grid[SpecT]:
    """The axes of a config, without a look at its runs.

    Raises:
        SpecError: a grid that cannot be read, or describes more than MAX_RUNS runs.
    """
    problems: list[Problem] = []
    given = document.data.get("grid", {})
    if not isinstance(given, Mapping):
        problems.append(Problem(path="grid", message="should be a section of `key: [values]` lines"))
        given = {}
    axes = list(_axes(given, "", "grid", problems))
    keys = [key for axis in axes for key in axis.keys]
    problems += [
        Problem(path="grid", message=f"'{key}' is swept twice", remedy="remove one")
        for key in sorted({key for key in keys if keys.count(key) > 1})
    ]
    grid = Grid(document, model, tuple(axes))
    if not problems and len(grid) > MAX_RUNS:
        sizes = " x ".join(str(len(axis.rows)) for axis in axes)
        message = f"the grid describes {sizes} = {len(grid):,} runs; the limit is {MAX_RUNS:,}"
        problems.append(Problem(path="grid", message=message, remedy="split it, for example by seed"))
    if problems:
        raise SpecError(document.locate(problems))
    return grid


def _axes(section: Mapping[Any, Any], prefix: str, place: str, problems: list[Problem]) -> Iterator[Axis]:
    for key, value in section.items():
        path, here = f"{prefix}{key}", f"{place}.{key}"
        if path == _ZIP:
            groups = value if isinstance(value, list) else [value]
            for i, group in enumerate(groups):
                yield from _zipped(group, f"{here}.{i}" if isinstance(value, list) else here, problems)
        elif isinstance(value, Mapping):
            yield from _axes(value, f"{path}.", here, problems)
        else:
            yield from _axis({path: (value, here)}, here, problems)


def _zipped(group: Any, place: str, problems: list[Problem]) -> Iterator[Axis]:
    if not isinstance(group, Mapping) or not group:
        problems.append(Problem(path=place, message="should be keys with lists that advance together"))
        return
    yield from _axis({str(key): (value, f"{place}.{key}") for key, value in group.items()}, place, problems)


def _axis(lists: Mapping[str, tuple[Any, str]], place: str, problems: list[Problem]) -> Iterator[Axis]:
    """One axis from the list of each of its keys, each with its place; none when something is wrong with them."""
    before = len(problems)
    columns = [_values(value, here, problems) for value, here in lists.values()]
    if len(problems) > before:
        return
    if len({len(column) for column in columns}) > 1:
        sizes = ", ".join(f"{key}: {len(column)}" for key, column in zip(lists, columns, strict=True))
        problems.append(Problem(path=place, message=f"keys that advance together have different lengths: {sizes}"))
        return
    rows = tuple(zip(*columns, strict=True))
    seen: set[tuple[str, ...]] = set()
    for i, row in enumerate(rows):
        texts = tuple(value.text for value in row)
        if texts in seen:
            message = f"value {i} repeats an earlier one: {', '.join(texts)}"
            remedy = "remove it; to repeat runs, sweep a seed"
            problems.append(Problem(path=row[0].place, message=message, remedy=remedy))
        seen.add(texts)
    if len(problems) == before:
        yield Axis(tuple(lists), rows)


def _values(given: Any, place: str, problems: list[Problem]) -> list[Value]:
    """The values of one key, in order."""
    places: list[str] | None = None
    if isinstance(given, str):
        try:
            given = read_list(given)
            places = [place] * len(given)
        except NotAList as error:
            example = "such as [8, 16, 32] or range(10)" if "(" in given or "[" in given else f"[{given}]"
            problems.append(Problem(path=place, message=f"'{given}' {error}", remedy=f"write a list: {example}"))
            return []
    if not isinstance(given, list) or not given:
        message = "has no values" if given in ([], None) else f"should be a list of values, found {given!r}"
        remedy = "list at least one" if given in ([], None) else f"write [{given}]"
        problems.append(Problem(path=place, message=message, remedy=remedy))
        return []
    if places is None:
        places = [f"{place}.{i}" for i in range(len(given))]
    return _labelled(given, places, problems)


def _labelled(items: Sequence[Any], places: Sequence[str], problems: list[Problem]) -> list[Value]:
    """Values with the texts that stand for them in names: equal values have equal texts, others have others."""
    texts: dict[str, str] = {}
    values = []
    for i, (item, place) in enumerate(zip(items, places, strict=True)):
        label, value, here = None, item, place
        if isinstance(item, Mapping) and set(item) == {"label", "value"}:
            label, value, here = item["label"], item["value"], f"{place}.value"
            if not isinstance(label, str | int | float) or label == "":
                problems.append(Problem(path=f"{place}.label", message=f"should be a short word, found {label!r}"))
        content = json.dumps(value, sort_keys=True, default=str)
        if content not in texts:
            text = _text(value, i) if label is None else _word(str(label))
            texts[content] = text if text not in texts.values() else f"{text}~{i}"
        values.append(Value(value, texts[content], here))
    return values


def _text(value: Any, index: int) -> str:
    """How a value reads in a name; a list or a section by its number."""
    if isinstance(value, list | Mapping):
        return str(index)
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return _word(value) if isinstance(value, str) else json.dumps(value)


def _word(text: str) -> str:
    """The text without what would be awkward in a file's name or ambiguous in a run's."""
    return re.sub(r"[^A-Za-z0-9_.+@%:-]+", "_", text)[:60] or "_"


def _short_keys(keys: Sequence[str], base: Mapping[str, Any]) -> list[str]:
    """For each dotted key its shortest suffix that no other key has; elements of lists go by their names."""
    readable = [_readable(key, base) for key in keys]
    if len(set(readable)) < len(readable):
        readable = [tuple(key.split(".")) for key in keys]
    short = []
    for own in readable:
        size = 1
        while size < len(own) and (
            own[-size].isdigit() or any(own != other and own[-size:] == other[-size:] for other in readable)
        ):
            size += 1
        short.append(".".join(own[-size:]))
    return short


def _readable(key: str, base: Mapping[str, Any]) -> tuple[str, ...]:
    parts: list[str] = []
    value: Any = base
    for part in key.split("."):
        value = _child(value, part)
        named = isinstance(value, Mapping) and part.isdigit() and isinstance(value.get("name"), str)
        parts.append(_word(value["name"]) if named else _word(part))
    if parts[-2:] == ["gssm", "nodes"]:
        parts[-2:] = ["graph"]
    elif parts[-1] == "gssm":
        parts[-1] = "graph"
    return tuple(parts)


def _child(value: Any, part: str) -> Any:
    if isinstance(value, Mapping):
        return value.get(part)
    if isinstance(value, list) and part.isdigit() and int(part) < len(value):
        return value[int(part)]
    return None


def _all_problems(grid: Grid[SpecT], variants: Sequence[Variant[SpecT]]) -> list[Problem]:
    """What is wrong with the runs, each problem once; where not all have it, it names the first that has."""
    found: dict[tuple[str, str], tuple[Problem, Variant[SpecT], int]] = {}
    for variant in variants:
        for problem in variant.placed(_problems(grid.model, variant)):
            first, where, count = found.get((problem.path, problem.message), (problem, variant, 0))
            found[problem.path, problem.message] = (first, where, count + 1)
    problems = [
        problem
        if count == len(variants)
        else problem.model_copy(update={"message": f"{problem.message} (in {_which(variant.name, count)})"})
        for problem, variant, count in found.values()
    ]
    return problems or _clashes(variants)


def _problems(model: type[SpecT], variant: Variant[SpecT]) -> Sequence[Problem]:
    try:
        parse(model, variant.data)
    except SpecError as error:
        return error.problems
    return ()


def _which(name: str, count: int) -> str:
    return name if count == 1 else f"{name} and {count - 1:,} more"


def _clashes(variants: Sequence[Variant[SpecT]]) -> list[Problem]:
    """Sets of different runs that would be written to one file."""
    owners: dict[str, int] = {}
    for variant in variants:
        for i, item in enumerate(variant.data.get("sets", ())):
            owner = owners.setdefault(item["path"], variant.index)
            if owner != variant.index:
                message = f"{item['path']} would be written for {variants[owner].name} and for {variant.name}"
                return [Problem(path=f"sets.{i}.path", message=message, remedy="put $GRIDID into the path")]
    return []


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value
