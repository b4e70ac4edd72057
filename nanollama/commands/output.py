"""What commands print: tables and lines for people, JSON for programs. What the service sends is only ever shown."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from nanollama.commands.options import option_error
from nanollama.spec.base import Note

_BESIDE_TERMINALS = 100_000  # columns: no line of a file or a pipe is cut or broken

out = Console(highlight=False, markup=False)
err = Console(highlight=False, markup=False, stderr=True)


def plain(text: object, keep: str = "") -> str:
    """Text with everything spelled out that a terminal would obey: escape sequences, line ends, reversals."""
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in str(text))


def say(text: object, *, style: str | None = None) -> None:
    """Print a line, however long."""
    out.print(plain(text), style=style, soft_wrap=True)


def say_aside(text: object) -> None:
    """Print a line to standard error."""
    err.print(plain(text), soft_wrap=True)


def print_notes(notes: Sequence[Note]) -> None:
    """Print what was found in a config to standard error."""
    for note in notes:
        say_aside(f"note: {note}")


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[str] = (), shrink: Sequence[str] = ()
) -> None:
    """Print a table: fitted to a terminal, in full elsewhere. None and an empty cell are a dash.

    Args:
        columns: their heads.
        rows: their cells.
        right: columns of numbers.
        shrink: columns that are cut first where a terminal is too narrow.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        justify: JustifyMethod = "right" if column in right else "left"
        table.add_column(column, justify=justify, no_wrap=column not in shrink)
    for row in rows:
        table.add_row(*(_cell(cell, overflow="ellipsis", no_wrap=True) for cell in row))
    _print(table)


def print_fields(fields: Mapping[str, object]) -> None:
    """Print names and values, a pair a line."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in fields.items():
        table.add_row(name, _cell(value))
    _print(table)


def _cell(value: object, **style: Any) -> Text:
    return Text("–" if value in (None, "") else plain(value), **style)


def _print(table: Table) -> None:
    (out if out.is_terminal else Console(width=_BESIDE_TERMINALS, highlight=False)).print(table)


def print_json(data: BaseModel | Mapping[str, Any] | Sequence[BaseModel | Mapping[str, Any]]) -> None:
    """Print JSON; numbers that JSON lacks are the words of the API."""
    value = _plain_data(data) if isinstance(data, BaseModel | Mapping) else [_plain_data(item) for item in data]
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    sys.stdout.write("".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text) + "\n")
    sys.stdout.flush()


def _plain_data(item: BaseModel | Mapping[str, Any]) -> Any:
    return item.model_dump(mode="json") if isinstance(item, BaseModel) else item


@contextlib.contextmanager
def replacing(path: Path, option: str = "--output") -> Iterator[Path]:
    """The path of a new file that takes a file's place once all of it is written; of one that is not nothing stays.

    Raises:
        SpecError: it cannot be written.
    """
    temporary = None
    try:
        if path.is_dir():
            raise option_error(option, f"{path} is a folder", "name a file")
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        yield Path(temporary)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
        temporary = None
    except OSError as error:
        said = f"cannot write {path}: {error.strerror}"
        raise option_error(option, said, "name a file in a folder that exists and may be written to") from None
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def save(pieces: Iterable[bytes], path: Path | None) -> int:
    """Write pieces to a file, or for None to standard output; how many bytes they are.

    Raises:
        SpecError: the file cannot be written.
    """
    size = 0
    with contextlib.ExitStack() as stack:
        if path is None:
            file = sys.stdout.buffer
        else:
            file = stack.enter_context(open(stack.enter_context(replacing(path)), "wb"))
        for piece in pieces:
            file.write(piece)
            size += len(piece)
        file.flush()
    return size


def size(num_bytes: int) -> str:
    """A number of bytes in words."""
    value = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
