"""The configs that ship with the project, to start from."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import nanollama
from nanollama.api import schemas
from nanollama.spec.base import SpecError, parse
from nanollama.spec.experiment import ExperimentSpec
from nanollama.spec.grid import read_grid
from nanollama.spec.load import Document
from nanollama.spec.yaml_text import load_yaml

FOLDERS = {"gssm": "", "sweeps": "sweeps/"}
"""Folders of the configs, and what the names of their templates begin with."""


def templates(root: Path | None = None) -> list[schemas.Template]:
    """The training configs under a folder, then the sweeps, by name; other files are passed over.

    Args:
        root: has the folders of FOLDERS; the project's own configs when absent.
    """
    root = root or config_root()
    found = []
    for folder, prefix in FOLDERS.items():
        for path in sorted((root / folder).glob("*.yaml")):
            template = _read(path, path.stat().st_mtime_ns)
            if template is not None:
                found.append(template.model_copy(update={"name": prefix + template.name}))
    return found


def config_root() -> Path:
    """Where the configs lie: in the installed package, or in the checkout."""
    package = Path(nanollama.__file__).parent
    return next((place for place in (package / "configs", package.parent / "configs") if place.is_dir()), package)


@lru_cache(maxsize=1000)
def _read(path: Path, mtime_ns: int) -> schemas.Template | None:  # noqa: ARG001 - a file that changes is read anew
    """A file as a template; None when it is no training config. Of a sweep the first run is looked at."""
    text = path.read_text(encoding="utf-8")
    try:
        data = load_yaml(text)
        if isinstance(data, dict) and "grid" in data:
            data = next(iter(read_grid(Document(data, text, (), {}, frozenset()), ExperimentSpec).variants())).data
        parse(ExperimentSpec, data)
    except SpecError:
        return None
    return schemas.Template(name=path.stem, summary=_summary(text), yaml=text)


def _summary(text: str) -> str:
    comments = (line.lstrip("# ").strip() for line in text.splitlines() if line.startswith("#"))
    return next(filter(None, comments), "")
