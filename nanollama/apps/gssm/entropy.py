"""Estimate the entropy of a config's data, exactly scored, or score sequences with the kernels of another program.

    python -m nanollama.apps.gssm.entropy config=FILE [num_sequences=N] [key.sub=value …] [output=OUT.json]
    python -m nanollama.apps.gssm.entropy kernels=K.npz sequences=S.npz [output=OUT.json]

FILE is a training config, with data made on the fly or read from a file, or a config that makes sets: graph, seed and
length are those of its data. Fresh sequences are sampled from that model.

    num_sequences=10000   how many
    dtype=float64         of the probabilities: float64 or float32
    bits=true             print bits as well; files hold nats only
    output=OUT.json       write the result; a file that exists is replaced
    save=K.npz            write the config's kernels, in the format that kernels= reads; likewise

K.npz holds `spec`, the graph as JSON text (a 0-d array), and `kernel.<node>.<j>`, float64 [rows, states], one for each
input j of a node: its own past unless it is observed, then its parents as listed; a fullrank node has one table over
all its inputs in C order. Entries below 1e-10, zeros too, are raised to it and the rows normalised again: that law is
scored.
S.npz holds `tokens`, integers [N, T], each sequence from the start token 0; the result then has `nll`, one a sequence,
in nats over positions 1 .. T-1.

Exit codes: 0 done, 2 bad input or a graph without an exact bound, 130 interrupted.
"""

from __future__ import annotations

import math
import sys
import time
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from rich.console import Console
from rich.table import Table

from nanollama.apps.gssm.options import Source, check_targets, read_source, split_options, write_json, writing
from nanollama.data.bounds import Scorer
from nanollama.data.gssm import Array, Kernels, load_kernels, save_kernels
from nanollama.data.sampler import Sampler
from nanollama.spec.base import Problem, Spec, SpecError
from nanollama.spec.command import run_command

NUM_SEQUENCES = 10_000
"""Default number of fresh sequences that are scored."""

_SHOWN = 7  # positions in the printed table


class Options(Spec):
    """What is asked for, beside the config."""

    num_sequences: int | None = Field(default=None, ge=2, le=2**40, description="fresh sequences that are scored")
    kernels: str | None = Field(default=None, description="kernels of another program")
    sequences: str | None = Field(default=None, description="sequences to score with them")
    dtype: Literal["float64", "float32"] = Field(default="float64", description="of the probabilities")
    bits: bool = Field(default=False, description="whether bits are printed beside nats")
    output: str | None = Field(default=None, description="JSON file for the result")
    save: str | None = Field(default=None, description="file for the config's kernels")


def main(arguments: Sequence[str]) -> int:
    """Score, print a table, and write what is wanted."""
    options, rest = split_options(Options, arguments)
    configs = [argument.partition("=")[2] for argument in rest if argument.startswith("config=")]
    _check(options, rest, has_config=bool(configs))
    check_targets(
        {"output": options.output, "save": options.save}, inputs=[*configs, options.kernels, options.sequences]
    )
    result = _score_file(options) if options.kernels else _estimate(options, read_source(rest))
    _print(result, bits=options.bits)
    if options.output is not None:
        write_json("output", options.output, result)
    return 0


def _check(options: Options, rest: Sequence[str], *, has_config: bool) -> None:
    """Refuse options that contradict each other."""
    problems = []
    foreign = options.kernels is not None or options.sequences is not None
    if foreign and rest:
        message = f"{rest[0]} and {'kernels' if options.kernels is not None else 'sequences'}= are given together"
        problems.append(Problem(path="config", message=message, remedy="score a config or kernels of a file, not both"))
    elif foreign:
        for name, other in (("kernels", "sequences"), ("sequences", "kernels")):
            if not getattr(options, name):
                message = f"{other}= is given without {name}="
                problems.append(Problem(path=name, message=message, remedy=f"add {name}=FILE.npz"))
        for name in ("num_sequences", "save"):
            if getattr(options, name) is not None:
                message = "belongs to a config, not to kernels and sequences of files"
                problems.append(Problem(path=name, message=message, remedy="remove it"))
    elif not has_config:
        remedy = "write config=FILE, or kernels=K.npz sequences=S.npz"
        problems.append(Problem(path="config", message="config=FILE is missing", remedy=remedy))
    if problems:
        raise SpecError(problems)


def _estimate(options: Options, source: Source) -> dict[str, Any]:
    """Entropy of fresh sequences."""
    kernels = source.kernels()
    if options.save is not None:
        with writing("save", options.save):
            save_kernels(kernels, options.save)
    start = time.monotonic()
    count = options.num_sequences or NUM_SEQUENCES
    with source.placing():
        scorer = Scorer(kernels, dtype=getattr(torch, options.dtype))
        sampler = Sampler(kernels, 0, "entropy")
        parts = []
        for first in range(0, count, 1024):
            tokens = sampler.sample(range(first, min(first + 1024, count)), source.seq_len)
            parts.append(scorer.nll_by_position(torch.from_numpy(tokens.astype(np.int64))).numpy())
    return _result(kernels, np.concatenate(parts), seconds=time.monotonic() - start) | {"seed": source.seed}


def _score_file(options: Options) -> dict[str, Any]:
    """What the kernels of a file pay for the sequences of a file."""
    assert options.kernels is not None
    assert options.sequences is not None
    kernels = load_kernels(options.kernels)
    tokens = load_tokens(options.sequences)
    start = time.monotonic()
    try:
        scorer = Scorer(kernels, dtype=getattr(torch, options.dtype))
    except SpecError as error:
        here = [problem.model_copy(update={"path": "kernels"}) for problem in error.problems]
        raise SpecError(here) from None
    try:
        scores = scorer.nll_by_position(torch.from_numpy(tokens)).numpy()
    except SpecError:
        raise
    except ValueError as error:
        raise SpecError([_sequences_problem(f"{options.sequences}: {error}")]) from None
    result = _result(kernels, scores, seconds=time.monotonic() - start)
    return result | {"nll": scores.sum(axis=1).tolist()}


def load_tokens(path: str | Path) -> NDArray[np.int64]:
    """The `tokens` of an .npz file, integers [N, T] with N >= 1 and T >= 2.

    Raises:
        SpecError: a file that is missing or unreadable, or holds something else.
    """
    remedy = "write `tokens`, integers of shape [sequences, positions], each sequence from the start token 0"
    try:
        with Path(path).open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            tokens = file["tokens"] if "tokens" in file.files else None
    except FileNotFoundError:
        raise SpecError([_sequences_problem(f"there is no file {path}", "check the path")]) from None
    except (OSError, EOFError, ValueError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise SpecError([_sequences_problem(f"{path} is not a readable .npz file: {error}")]) from None
    if tokens is None:
        raise SpecError([_sequences_problem(f"{path} has no `tokens`", remedy)])
    if tokens.dtype.kind not in "iu" or tokens.ndim != 2:
        raise SpecError([_sequences_problem(f"{path}: tokens are {tokens.dtype} {list(tokens.shape)}", remedy)])
    if not len(tokens) or tokens.shape[1] < 2:
        message = f"{path}: tokens of shape {list(tokens.shape)} leave nothing to predict"
        raise SpecError([_sequences_problem(message, "give at least one sequence of at least two tokens")])
    beyond = np.argwhere(tokens > np.iinfo(np.int64).max)
    if len(beyond):
        row, t = (int(i) for i in beyond[0])
        raise SpecError([_sequences_problem(f"{path}: sequence {row} holds {tokens[row, t]} at position {t}", remedy)])
    checked: NDArray[np.int64] = tokens.astype(np.int64)
    return checked


def _sequences_problem(message: str, remedy: str | None = None) -> Problem:
    return Problem(path="sequences", message=message, remedy=remedy)


def _result(kernels: Kernels, scores: Array, *, seconds: float) -> dict[str, Any]:
    """What is printed and written, from -log p(x_t | x_<t) in nats of shape [N, T - 1]."""
    count, predicted = scores.shape
    means = scores.mean(axis=1)
    errors = [None] * predicted if count < 2 else (scores.std(axis=0, ddof=1) / math.sqrt(count)).tolist()
    return {
        "nats_per_token": float(means.mean()),
        "stderr": None if count < 2 else float(means.std(ddof=1)) / math.sqrt(count),
        "num_sequences": count,
        "seq_len": predicted + 1,
        "by_position": {"mean": scores.mean(axis=0).tolist(), "stderr": errors},
        "method": "forward filter",
        "seconds": seconds,
        "kernels_hash": kernels.content_hash(),
    }


def _print(result: dict[str, Any], *, bits: bool) -> None:
    """The mean on a line of its own, then a table with some positions."""
    units = {"nats": 1.0, "bits": math.log(2)} if bits else {"nats": 1.0}
    over = f"over {result['num_sequences']:,} sequences"
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("position")
    for unit in units:
        table.add_column(f"{unit}/token", justify="right")
        table.add_column("error", justify="right")
    table.add_column("")
    means, errors = result["by_position"]["mean"], result["by_position"]["stderr"]
    fresh, last = "seed" in result, len(means)
    for t in shown_positions(last):
        cells = [_number(value, size) for size in units.values() for value in (means[t - 1], errors[t - 1])]
        table.add_row(str(t), *cells, "estimate of the entropy rate" if fresh and t == last else "")
    console = Console(highlight=False, soft_wrap=True)
    for unit, size in units.items():
        mean, error = _number(result["nats_per_token"], size), _number(result["stderr"], size)
        console.print(f"{mean} ± {error} {unit}/token {over}")
    console.print(table)
    console.print(f"{result['method']}, {result['seconds']:.2f} s", style="dim")


def _number(value: float | None, unit: float) -> str:
    return "–" if value is None else f"{value / unit:.4f}"


def shown_positions(last: int) -> list[int]:
    """A few positions of 1 .. last: the first, each about twice the one before, and the last."""
    steps = [round(last ** (k / (_SHOWN - 1))) for k in range(_SHOWN)]
    return sorted({1, *steps, last})


if __name__ == "__main__":
    sys.exit(run_command(main, usage=__doc__))
