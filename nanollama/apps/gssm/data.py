"""Generate offline sets: sequences of a GSSM in HDF5 files.

    python -m nanollama.apps.gssm.data config=configs/gssm/data.yaml [key.sub=value …]

Exit codes: 0 all sets are written, 2 bad input, 130 interrupted: the set that was being written is removed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nanollama.data.bounds import Estimate
from nanollama.data.filter import Filter
from nanollama.data.gssm import Kernels, draw_kernels
from nanollama.data.hdf5 import DatasetWriter, target_problems
from nanollama.data.sampler import Sampler
from nanollama.spec.base import Problem, SpecError
from nanollama.spec.command import run_command, stop_signals
from nanollama.spec.data import DatasetFile, DatasetSpec
from nanollama.spec.load import load_config

SCORED_SEQUENCES = 10_000
"""A set's entropy is the mean over at most this many of its sequences, the first ones."""

_PIECE_TOKENS = 2**24  # at most, of the sequences that are sampled and written at a time


def main(arguments: Sequence[str]) -> int:
    """Generate every set of the config that the arguments name."""
    spec = load_config(DatasetSpec, arguments)
    problems = target_problems([item.path for item in spec.sets], overwrite=spec.overwrite)
    if problems:
        raise SpecError(problems)
    kernels = draw_kernels(spec.gssm, spec.seed)
    try:
        scorer: Filter | str = Filter(kernels)
    except SpecError as error:
        scorer = "; ".join(problem.message for problem in error.problems)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    for i, item in enumerate(spec.sets):
        with stop_signals() as stopped, Progress(*columns, console=Console(stderr=True)) as progress:
            try:
                entropy = generate(spec, item, kernels, scorer, progress=progress, stopped=stopped)
            except OSError as error:
                message = f"cannot write {item.path}: {error.strerror or error}"
                remedy = "check the space that is left and the permissions"
                raise SpecError([Problem(path=f"sets.{i}.path", message=message, remedy=remedy)]) from None
        size = Path(item.path).stat().st_size
        print(f"wrote {item.path}: {item.n_data:,} sequences of {spec.seq_len} tokens, {size / 2**20:.2f} MiB")
        print(f"      entropy: {entropy}" if isinstance(entropy, Estimate) else f"      no entropy: {entropy}")
    return 0


def generate(
    spec: DatasetSpec,
    item: DatasetFile,
    kernels: Kernels,
    scorer: Filter | str,
    *,
    progress: Progress,
    stopped: Callable[[], bool],
) -> Estimate | str:
    """Write one set and return its entropy, or why there is none.

    Raises:
        KeyboardInterrupt: `stopped` has become true; nothing is left of the file.
    """
    sampler = Sampler(kernels, spec.seed, item.name)
    task = progress.add_task(item.name, total=item.n_data)
    scores = []
    num_scored = min(item.n_data, SCORED_SEQUENCES)
    with DatasetWriter(item.path, kernels, split=item.name, seq_len=spec.seq_len) as writer:
        piece = min(spec.chunk_size, max(1, _PIECE_TOKENS // spec.seq_len))
        for start in range(0, item.n_data, piece):
            tokens = sampler.sample(range(start, min(start + piece, item.n_data)), spec.seq_len)
            writer.append(tokens)
            if isinstance(scorer, Filter) and start < num_scored:
                scores.append(-scorer.log_likelihood(tokens[: num_scored - start]).mean(axis=1))
            progress.advance(task, len(tokens))
            if stopped():
                raise KeyboardInterrupt
        if isinstance(scorer, str):
            writer.entropy = scorer
        elif num_scored < 2:
            writer.entropy = "a standard error needs at least 2 sequences"
        else:
            writer.entropy = Estimate.of(np.concatenate(scores))
    return writer.entropy


if __name__ == "__main__":
    sys.exit(run_command(main, usage=__doc__))
