"""Write the tables of docs/configs.md and docs/sweeps.md anew: `python scripts/config_docs.py`.

What stands between a line `<!-- begin NAME -->` and `<!-- end -->` is made here, from the specs and the configs.
"""

from __future__ import annotations

import json
import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from nanollama.spec.data import DatasetFile, DatasetSpec, FileData, OnlineData
from nanollama.spec.evaluation import DifficultySpec
from nanollama.spec.experiment import ExperimentSpec
from nanollama.spec.grid import Grid, read_grid
from nanollama.spec.gssm import NodeSpec
from nanollama.spec.kinds import model_of
from nanollama.spec.load import Document, read_document
from nanollama.spec.model import HawkSpec, MambaSpec, MinGRUSpec, TransformerSpec
from nanollama.spec.translation import IDLE

ROOT = Path(__file__).resolve().parents[1]
SWEEPS = ROOT / "configs" / "sweeps"
HEAD = "| key | type | default | meaning |\n| --- | --- | --- | --- |\n"

LEARNERS: dict[str, type[BaseModel]] = {
    "transformer": TransformerSpec,
    "mingru` or `minlstm": MinGRUSpec,
    "hawk": HawkSpec,
    "mamba": MambaSpec,
}


def keys() -> str:
    """A table for each section of a training config, and for the other kinds of config."""
    parts = ["### `data`, sampled while training\n", table(OnlineData, "data"), "### `data`, from a file\n"]
    parts += [table(FileData, "data"), "### `nodes` of a graph\n", table(NodeSpec, "data.gssm.nodes.<i>")]
    for name, learner in LEARNERS.items():
        parts += [f"### `model` with `implementation: {name}`\n", table(learner, "model", without={"implementation"})]
    for section in ("optim", "cluster", "orchestration", "evaluation", "launcher"):
        model = ExperimentSpec.model_fields[section].annotation
        assert isinstance(model, type)
        parts += [f"### `{section}`\n", table(model, section)]
    own = {"launcher", "gssm", "sets"}
    parts += ["### A file that generates sets\n", table(DatasetSpec, "", without=own), "Of each of its `sets`:\n"]
    parts += [table(DatasetFile, "sets.<i>"), "### A file that measures difficulty\n"]
    parts += [table(DifficultySpec, "", without={"launcher", "gssm"})]
    return "\n".join(parts)


def idle() -> str:
    """The keys of older shapes that mean nothing any more."""
    rows = [f"| `{path}` | {text.removeprefix('is idle: ')} |" for path, text in IDLE.items()]
    return "| idle key | instead |\n| --- | --- |\n" + "\n".join(rows) + "\n"


def sweeps() -> str:
    """A row for each training config under configs/sweeps."""
    rows = ["| config | question | graphs x seeds | runs |", "| --- | --- | --- | --- |"]
    paths = sorted((p for p in SWEEPS.glob("*.yaml") if not p.stem.endswith("_data")), key=lambda p: _natural(p.stem))
    for path in paths:
        question = path.read_text().splitlines()[0].removeprefix("# ")
        name = f"[{path.stem}](../configs/sweeps/{path.name})"
        rows.append(f"| {name} | {question} | {_graphs(path)} | {len(_grid(path)):,} |")
    return "\n".join(rows) + "\n"


def written(text: str) -> str:
    """The text of a document with its made parts made anew."""
    made = {"keys": keys, "idle keys": idle, "sweeps": sweeps}

    def replace(match: re.Match[str]) -> str:
        return f"{match[1]}\n{made[match[2]]()}\n<!-- end -->"

    return re.sub(r"(<!-- begin ([\w ]+) -->)\n.*?<!-- end -->", replace, text, flags=re.S)


def table(model: type[BaseModel], prefix: str, *, without: frozenset[str] | set[str] = frozenset()) -> str:
    """The keys of a section and of the sections in it."""
    return HEAD + "\n".join(_rows(model, prefix, without)) + "\n"


def _rows(model: type[BaseModel], prefix: str, without: frozenset[str] | set[str]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        path = f"{prefix}.{name}".lstrip(".")
        section = field.annotation
        if name in without or (name == "gssm" and prefix == "data"):
            continue
        if path.startswith("evaluation.") and name in ("slurm", "cluster"):
            yield f"| `{path}` | section | | {field.description}; keys as in `{_twin(name)}` |"
        elif isinstance(section, type) and issubclass(section, BaseModel):
            yield from _rows(section, path, frozenset())
        else:
            yield f"| `{path}` | {_type(field)} | {_default(field)} | {field.description} |"


def _twin(name: str) -> str:
    return "launcher.slurm" if name == "slurm" else "cluster"


def _type(field: FieldInfo) -> str:
    """The type of a field in words, with its bounds."""
    bounds = [b for b in map(_bound, _metadata(field)) if b]
    return " ".join([_words(field.annotation), *([", ".join(bounds)] if bounds else [])])


def _metadata(field: FieldInfo) -> list[Any]:
    found = list(field.metadata)
    for argument in get_args(field.annotation):
        if get_origin(argument) is Annotated:
            for item in get_args(argument)[1:]:
                found += item.metadata if isinstance(item, FieldInfo) else [item]
    return found


def _bound(item: Any) -> str:
    signs = (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))
    found = [f"{sign} {_number(getattr(item, name))}" for name, sign in signs if getattr(item, name, None) is not None]
    return ", ".join(found)


def _number(value: float) -> str:
    power = value.bit_length() - 1 if isinstance(value, int) else 0
    return (
        f"2^{power}" if power >= 10 and value == 2**power else f"{value:,}" if isinstance(value, int) else f"{value:g}"
    )


def _words(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _words(arguments[0])
    if origin is Literal:
        return " or ".join(f"`{choice}`" for choice in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(_words(a) for a in arguments if a is not type(None))
    if origin is tuple:
        return f"list of {_words(arguments[0])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return {int: "int", float: "float", str: "text", bool: "true or false"}[annotation]


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "required" if field.default_factory is None else ""
    if field.default is None:
        return "absent"
    default = field.default if isinstance(field.default, str) else json.dumps(field.default)
    return f"`{default}`"


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (10**9, part) for part in re.findall(r"\d+|\D+", name)]


def _document(path: Path) -> Document:
    return read_document([f"config={path}"], {})


def _grid(path: Path) -> Grid[Any]:
    document = _document(path)
    return read_grid(document, model_of(document.data))


def _graphs(path: Path) -> str:
    """How many graphs a sweep has, and seeds."""
    name = path.stem.split("_")[0]
    made = SWEEPS / f"{name}_data.yaml"
    grid = _grid(made if made.exists() else path)
    graphs = seeds = 1
    for axis in grid.axes:
        if axis.keys[0].endswith("seed"):
            seeds *= len(axis.rows)
        elif any(".nodes" in key for key in axis.keys):
            graphs *= len(axis.rows)
    part = re.search(r"_seeds_(\d)-(\d)", path.stem)
    return f"{graphs} x {int(part[2]) - int(part[1]) + 1 if part else seeds}"


def main() -> None:
    """Write both documents."""
    for name in ("configs.md", "sweeps.md"):
        path = ROOT / "docs" / name
        path.write_text(written(path.read_text()))


if __name__ == "__main__":
    main()
