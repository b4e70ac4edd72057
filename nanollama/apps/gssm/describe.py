"""Say what files of sequences there are below some folders, one JSON object a line.

    python -m nanollama.apps.gssm.describe FOLDER […]

Files are those that nanollama.apps.gssm.data wrote and that end in .h5 or .hdf5; others are passed over. A line has the
path, the number of sequences, their length, the symbols, the size, the split, the hashes of the graph with its seed and
of the kernels, the entropy in nats per token where it is known, and the time of the last change. The first set of a
graph has the graph and the seed too.

Exit codes: 0 done, 2 a folder that is none.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from nanollama.data.hdf5 import DatasetReader
from nanollama.spec.base import Problem, SpecError
from nanollama.spec.command import run_command
from nanollama.spec.identity import gssm_hash

ENDINGS = (".h5", ".hdf5")


def main(arguments: Sequence[str]) -> int:
    """Print what is found."""
    problems = [
        Problem(path="folder", message=f"{name} is not a folder", remedy="name folders of sets")
        for name in arguments
        if not Path(name).is_dir()
    ]
    if problems:
        raise SpecError(problems)
    told: set[str] = set()  # hashes of the graphs that have been printed
    for path in sorted({path for name in arguments for path in find_files(Path(name).absolute())}):
        try:
            described = describe(path)
        except (SpecError, OSError):  # another program's, being removed, or damaged
            continue
        if described["gssm_hash"] in told:
            del described["graph"], described["seed"]
        told.add(described["gssm_hash"])
        print(json.dumps(described, allow_nan=False))
    return 0


def find_files(folder: Path) -> Iterator[Path]:
    """Files below a folder whose names end as those of sets; folders that cannot be read are passed over."""
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in names:
            if name.endswith(ENDINGS) and not name.startswith("."):
                yield Path(parent) / name


def describe(path: Path) -> dict[str, Any]:
    """What a set says of itself.

    Raises:
        SpecError: it is none.
        OSError: it cannot be looked at.
    """
    found = path.stat()
    reader = DatasetReader(path)
    try:
        entropy, graph = reader.entropy, reader.spec.model_dump(mode="json")
        return {
            "path": str(path),
            "num_sequences": len(reader),
            "seq_len": reader.seq_len,
            "vocab": reader.vocab_size,
            "size_bytes": found.st_size,
            "split": reader.split,
            "gssm_hash": gssm_hash(graph, reader.seed),
            "graph": graph,
            "seed": reader.seed,
            "kernels_hash": reader.kernels_hash,
            "entropy": None if entropy is None else entropy.mean,
            "entropy_stderr": None if entropy is None else entropy.stderr,
            "created_at": datetime.fromtimestamp(found.st_mtime, timezone.utc).isoformat(),
        }
    finally:
        reader.close()


if __name__ == "__main__":
    sys.exit(run_command(main, usage=__doc__))
