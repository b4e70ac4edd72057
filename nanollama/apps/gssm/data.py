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

from nanollama.data import context
from nanollama.data.bounds import Estimate
from nanollama.data.filter import Filter
from nanollama.data.gssm import Kernels, draw_kernels
from nanollama.data.hdf5 import DatasetWriter, target_problems
from nanollama.data.polya import ClosedForm, closed_form_applies, context_nodes
from nanollama.data.sampler import Sampler
from nanollama.spec.base import Problem, SpecError
from nanollama.spec.command import run_command, stop_signals
from nanollama.spec.data import DatasetFile, DatasetSpec
from nanollama.spec.load import load_config

SCORED_SEQUENCES = 10_000
"""A set's entropy is the mean over at most this many of its sequences, the first ones."""

BOUNDED_SEQUENCES = 32
"""So it is in context mode, where a sequence takes long and its entropy is bounded from both sides."""

_BOUND_SECONDS = 0.5  # of one core for each of these

TOO_FEW = "a standard error needs at least 2 sequences"

_PIECE_TOKENS = 2**24  # at most, of the sequences that are sampled and written at a time


def main(arguments: Sequence[str]) -> int:
    """Generate every set of the config that the arguments name."""
    spec = load_config(DatasetSpec, arguments)
    problems = target_problems([item.path for item in spec.sets], overwrite=spec.overwrite)
    if problems:
        raise SpecError(problems)
    kernels = draw_kernels(spec.gssm, spec.seed)
    scorer = _scorer(kernels)
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
        print(f"      kernels: {kernels.content_hash()[:16]}")
        print(f"      no entropy: {entropy}" if isinstance(entropy, str) else f"      entropy: {entropy}")
    return 0


def _scorer(kernels: Kernels) -> Filter | ClosedForm | str | None:
    """What scores the sequences exactly; or why nothing does; or None where kernels are redrawn for each of them."""
    if closed_form_applies(kernels.spec):
        return ClosedForm(kernels)
    if context_nodes(kernels.spec):
        return None
    try:
        return Filter(kernels)
    except SpecError as error:
        return _reason(error)


def _reason(error: SpecError) -> str:
    return "; ".join(problem.message for problem in error.problems)


def _bounds(kernels: Kernels, spec: DatasetSpec, item: DatasetFile) -> context.ContextEntropy | str:
    """Bounds of the entropy over the first sequences of a set; or why there are none."""
    count = min(item.n_data, BOUNDED_SEQUENCES)
    if count < 2:
        return TOO_FEW
    try:
        return context.entropy(
            kernels, spec.seq_len, count, seed=spec.seed, split=item.name, max_seconds=_BOUND_SECONDS
        )
    except (SpecError, ValueError) as error:
        return _reason(error) if isinstance(error, SpecError) else str(error)


def generate(
    spec: DatasetSpec,
    item: DatasetFile,
    kernels: Kernels,
    scorer: Filter | ClosedForm | str | None,
    *,
    progress: Progress,
    stopped: Callable[[], bool],
) -> Estimate | context.ContextEntropy | str:
    """Write one set and return its entropy, its bounds, or why there is none.

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
            if isinstance(scorer, Filter | ClosedForm) and start < num_scored:
                try:
                    scores.append(-scorer.log_likelihood(tokens[: num_scored - start]).mean(axis=1))
                except ValueError as error:  # the formula does not hold for alphas near the floor
                    scorer = str(error)
            progress.advance(task, len(tokens))
            if stopped():
                raise KeyboardInterrupt
        if isinstance(scorer, str):
            writer.entropy = scorer
        elif scorer is None:
            writer.entropy = _bounds(kernels, spec, item)
        elif num_scored < 2:
            writer.entropy = TOO_FEW
        else:
            writer.entropy = Estimate.of(np.concatenate(scores))
    return writer.entropy


if __name__ == "__main__":
    sys.exit(run_command(main, usage=__doc__))
