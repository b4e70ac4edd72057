"""`n2n import-config`: show what a config of any shape becomes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from nanollama.spec.base import Problem, SpecError
from nanollama.spec.grid import expand
from nanollama.spec.kinds import KINDS, model_of
from nanollama.spec.load import Document, read_document
from nanollama.spec.rundir import write_atomic
from nanollama.spec.yaml_text import dump_yaml


def import_config(arguments: Sequence[str], output: str | None) -> None:
    """Write the config of `config=FILE key.sub=value …` in today's shape, notes first; say on stderr what it describes.

    Args:
        arguments: the file and overrides; $VARIABLES stay as they are written.
        output: the file to write, which must not exist; standard output for None and `-`.

    Raises:
        SpecError: everything that is wrong with the config, or a file that cannot be written; nothing is written then.
    """
    summary = describe(read_document(arguments))
    document = read_document(arguments, keep_variables=True)
    notes = "".join(f"# note: {note}\n" for note in document.notes)
    text = notes + dump_yaml(document.data)
    if output is None or output == "-":
        sys.stdout.write(text)
    else:
        _write(Path(output), text)
    print(summary, file=sys.stderr)


def describe(document: Document) -> str:
    """What a config is and how many runs it describes, in one line; every run is validated.

    Raises:
        SpecError: with every problem, at its line in the file.
    """
    model = model_of(document.data)
    variants = expand(document, model)
    if "grid" not in document.data:
        return f"a {KINDS[model]}"
    first, last = variants[0].name, variants[-1].name
    return f"a {KINDS[model]} with a grid of {len(variants):,} runs, from {first} to {last}"


def _write(path: Path, text: str) -> None:
    try:
        if path.exists():
            message, remedy = f"{path} exists", "choose another file, or remove it"
            raise SpecError([Problem(path="output", message=message, remedy=remedy)])
        write_atomic(path, text.encode())
    except OSError as error:
        message = f"cannot write {path}: {error.strerror}"
        raise SpecError([Problem(path="output", message=message, remedy="choose another file")]) from None
