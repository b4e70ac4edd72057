"""Print the entropy bound of a config's data, estimated from fresh sequences.

    python -m nanollama.apps.gssm.entropy config=configs/gssm/debug.yaml [num_sequences=N] [key.sub=value …]

Exit codes: 0 done, 2 bad input or a graph without an exact bound, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from nanollama.data.bounds import entropy
from nanollama.data.gssm import draw_kernels
from nanollama.data.hdf5 import DatasetReader
from nanollama.spec.base import Problem, SpecError
from nanollama.spec.command import run_command
from nanollama.spec.data import OnlineData
from nanollama.spec.experiment import ExperimentSpec
from nanollama.spec.load import load_config

NUM_SEQUENCES = 10_000
"""Default number of fresh sequences that are scored."""


def main(arguments: Sequence[str]) -> int:
    """Sample fresh sequences from the model of the config's data, score them with it, and print the mean."""
    num_sequences = NUM_SEQUENCES
    for argument in arguments:
        if argument.startswith("num_sequences="):
            num_sequences = _count(argument.partition("=")[2])
    data = load_config(ExperimentSpec, [a for a in arguments if not a.startswith("num_sequences=")]).data
    online = isinstance(data, OnlineData)
    if isinstance(data, OnlineData):
        kernels, seq_len = draw_kernels(data.gssm, data.seed), data.seq_len
    else:
        reader = DatasetReader(data.path)
        kernels, seq_len = reader.kernels(), reader.seq_len
    try:
        print(entropy(kernels, seq_len, num_sequences))
    except SpecError as error:  # its places are relative to what holds the graph: here a section, or the file
        placed = [(f"data.{problem.path}" if online else "data.path", problem) for problem in error.problems]
        raise SpecError(problem.model_copy(update={"path": path}) for path, problem in placed) from None
    return 0


def _count(text: str) -> int:
    if text.isdigit() and 2 <= int(text) <= 2**40:
        return int(text)
    message = f"'{text}' is not a number of sequences"
    raise SpecError([Problem(path="num_sequences", message=message, remedy="write a whole number of at least 2")])


if __name__ == "__main__":
    sys.exit(run_command(main, usage=__doc__))
