"""`n2n graph`: find the graph in a config and write its picture."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanollama.spec.base import Problem, SpecError, parse
from nanollama.spec.drawing import draw_graph
from nanollama.spec.gssm import GSSMSpec
from nanollama.spec.load import Document, read_document
from nanollama.spec.rundir import write_atomic

_PLACES = ((), ("gssm",), ("data", "gssm"))  # a bare graph, a config that generates sets, a training config


def load_graph(arguments: Sequence[str]) -> GSSMSpec:
    """The graph of `config=FILE key.sub=value …`, whatever else is right or wrong in the file.

    Raises:
        SpecError: a file that cannot be read, holds no graph, or holds one with problems, each at its line.
    """
    return graph_of(read_document(arguments))


def graph_of(document: Document) -> GSSMSpec:
    """The graph in a config, whatever else is right or wrong in it.

    Raises:
        SpecError: there is none, or one with problems, each at its line.
    """
    data = document.data
    for place in _PLACES:
        section: Any = data
        for key in place:
            section = section.get(key) if isinstance(section, dict) else None
        if isinstance(section, dict) and (place or "nodes" in section):
            break
    else:
        raise SpecError([_no_graph(data)])
    try:
        return parse(GSSMSpec, section)
    except SpecError as error:
        paths = (".".join(filter(None, [*place, problem.path])) for problem in error.problems)
        placed = [p.model_copy(update={"path": path}) for p, path in zip(error.problems, paths, strict=True)]
        raise SpecError(document.locate(placed)) from None


def _no_graph(data: dict[str, Any]) -> Problem:
    source = data.get("data")
    if isinstance(source, dict) and "path" in source:
        message = f"the graph of this config is in its data file, {source['path']}"
        return Problem(path="data.path", message=message, remedy="draw the config that generated the file")
    remedy = "it should stand under `nodes`, `gssm.nodes` or `data.gssm.nodes`"
    return Problem(path="config", message="there is no graph in this file", remedy=remedy)


def write_graph(arguments: Sequence[str], output: str | None) -> None:
    """Draw the graph of a config into an SVG file, which is replaced if it exists, or to standard output.

    Args:
        arguments: `config=FILE key.sub=value …`.
        output: the file; standard output for None and `-`.

    Raises:
        SpecError: as load_graph, or a file that cannot be written.
    """
    picture = draw_graph(load_graph(arguments))
    if output in (None, "-"):
        sys.stdout.write(picture)
        sys.stdout.flush()
        return
    try:
        write_atomic(Path(output), picture.encode())
    except OSError as error:
        message = f"cannot write {output}: {error.strerror}"
        remedy = "name a file in a directory that exists and may be written to"
        raise SpecError([Problem(path="output", message=message, remedy=remedy)]) from None
