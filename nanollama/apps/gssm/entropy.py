"""Estimate the entropy of a config's data, exactly scored, or score sequences with the kernels of another program.

    python -m nanollama.apps.gssm.entropy config=configs/gssm/debug.yaml [num_sequences=N] [output=OUT.json] […]
    python -m nanollama.apps.gssm.entropy kernels=K.npz sequences=S.npz [output=OUT.json]

The config is one of training, with data made on the fly or read from a file, or one that makes sets: graph, seed and
length are those of its data. Fresh sequences are sampled from that model.

    num_sequences=10000   how many; 100 where a sequence takes seconds, in context mode
    dtype=float64         of the probabilities: float64 or float32
    particles=N           effort of the bounds in context mode; chosen by a pilot run when absent
    explain=true          print first what was weighed to score this graph, what it costs, and what was chosen
    bits=true             print bits as well; files hold nats only
    output=OUT.json       write the result; a file that exists is replaced
    save=K.npz            write the config's kernels, in the format that kernels= reads; likewise
    attempt_dir=DIR       how a worker calls it, with config= alone: progress as metrics and a result.json go there

K.npz holds `spec`, the graph as JSON text (a 0-d array), and `kernel.<node>.<j>`, float64 [rows, states], one for each
input j of a node: its own past unless it is observed, then its parents as listed; a fullrank node has one table over
all its inputs in C order. Entries below 1e-10, zeros too, are raised to it and the rows normalised again: that law is
scored.
S.npz holds `tokens`, integers [N, T], each sequence from the start token 0; the result then has `nll`, one a sequence,
in nats over positions 1 .. T-1.

In context mode the entropy lies between two bounds, of which the middle is reported, with both of them and their gap in
nats a sequence; for sequences of a file there is the upper one only. Where a formula holds they are exact.

Exit codes: 0 done, 2 bad input or a graph without an exact bound, 75 stopped on request (with attempt_dir=), 130
interrupted.
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
from numpy.typing import NDArray
from pydantic import Field
from rich.console import Console
from rich.table import Table

from nanollama.apps.gssm.entropy_job import run_job
from nanollama.apps.gssm.estimate import estimate_entropy
from nanollama.apps.gssm.options import Source, check_targets, read_source, split_options, write_json, writing
from nanollama.data.filter import Filter
from nanollama.data.gssm import Array, Kernels, load_kernels, save_kernels
from nanollama.data.polya import ClosedForm, closed_form_applies, context_nodes
from nanollama.spec.base import Problem, Spec, SpecError
from nanollama.spec.command import run_command

ATTEMPT_DIR = "attempt_dir="

_SHOWN = 7  # positions in the printed table


class Options(Spec):
    """What is asked for, beside the config."""

    num_sequences: int | None = Field(default=None, ge=2, le=2**40, description="fresh sequences that are scored")
    kernels: str | None = Field(default=None, description="kernels of another program")
    sequences: str | None = Field(default=None, description="sequences to score with them")
    dtype: Literal["float64", "float32"] = Field(default="float64", description="of the probabilities")
    particles: int | None = Field(default=None, ge=2, le=2**30, description="effort of the bounds in context mode")
    explain: bool = Field(default=False, description="whether the choice of the method is printed")
    bits: bool = Field(default=False, description="whether bits are printed beside nats")
    output: str | None = Field(default=None, description="JSON file for the result")
    save: str | None = Field(default=None, description="file for the config's kernels")


def main(arguments: Sequence[str]) -> int:
    """Score, print a table, and write what is wanted."""
    attempt_dirs = [argument for argument in arguments if argument.startswith(ATTEMPT_DIR)]
    if attempt_dirs:
        directory = Path(attempt_dirs[-1].removeprefix(ATTEMPT_DIR))
        return run_job(directory, [argument for argument in arguments if not argument.startswith(ATTEMPT_DIR)])
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
    in_context = _in_context(options, kernels)
    with source.placing():
        if options.explain:
            _explain(kernels, options, in_context=in_context)
        return estimate_entropy(
            kernels,
            source,
            num_sequences=options.num_sequences,
            dtype=options.dtype,
            particles=options.particles,
        )


def _score_file(options: Options) -> dict[str, Any]:
    """What the kernels of a file pay for the sequences of a file."""
    assert options.kernels is not None
    assert options.sequences is not None
    kernels = load_kernels(options.kernels)
    tokens = load_tokens(options.sequences)
    try:
        return _score(options, kernels, tokens)
    except _OptionError:
        raise
    except SpecError as error:
        here = [problem.model_copy(update={"path": "kernels"}) for problem in error.problems]
        raise SpecError(here) from None
    except ValueError as error:
        raise SpecError([_sequences_problem(f"{options.sequences}: {error}")]) from None


def _score(options: Options, kernels: Kernels, tokens: NDArray[np.integer[Any]]) -> dict[str, Any]:
    start = time.monotonic()
    in_context = _in_context(options, kernels)
    if options.explain:
        _explain(kernels, options, in_context=in_context)
    if closed_form_applies(kernels.spec):
        scores = -ClosedForm(kernels).log_likelihood(tokens)
        return _scored(kernels, scores, "closed form", time.monotonic() - start) | {"nll": _sums(scores)}
    if not in_context:
        scores = -Filter(kernels, dtype=np.dtype(options.dtype)).log_likelihood(tokens)
        return _scored(kernels, scores, "forward filter", time.monotonic() - start) | {"nll": _sums(scores)}
    from nanollama.data import context  # noqa: PLC0415 - as above

    found = context.two_sided(kernels, tokens, None, particles=options.particles or context.PARTICLES)
    count, length = tokens.shape
    upper = -found.lower / (length - 1)
    stderr = None if count < 2 else float(upper.std(ddof=1)) / math.sqrt(count)
    return {
        "nats_per_token": float(upper.mean()),
        "stderr": stderr,
        "lower": None,
        "upper": float(upper.mean()),
        "upper_stderr": stderr,
        "gap": None,
        "num_sequences": count,
        "seq_len": length,
        "by_position": None,
        "method": f"sequential Monte Carlo, {found.particles:,} particles: an upper bound",
        "seconds": found.seconds,
        "kernels_hash": kernels.content_hash(),
        "nll": (-found.lower).tolist(),
    }


def _in_context(options: Options, kernels: Kernels) -> bool:
    """Whether the tokens depend on kernels that are drawn for each sequence.

    Raises:
        SpecError: an option that means nothing for such a graph, or for others.
    """
    found = bool(context_nodes(kernels.spec))
    if not found and options.particles is not None:
        message = "no node that the tokens depend on is in context mode, and without it nothing is estimated"
        raise _OptionError([Problem(path="particles", message=message, remedy="remove it")])
    if found and options.dtype != "float64":
        message = "in context mode everything is computed in float64"
        raise _OptionError([Problem(path="dtype", message=message, remedy="remove it")])
    return found


class _OptionError(SpecError):
    """An option that means nothing for the graph: its place is its own, not that of the graph."""


def _explain(kernels: Kernels, options: Options, *, in_context: bool) -> None:
    """Print how the sequences are scored and what that costs."""
    if not in_context:
        print(Filter(kernels, dtype=np.dtype(options.dtype)).explain())
        return
    from nanollama.data import context  # noqa: PLC0415 - as above

    print(context.explain(kernels, options.particles or context.PARTICLES))


def _sums(scores: Array) -> list[float]:
    sums: list[float] = scores.sum(axis=1).tolist()
    return sums


def load_tokens(path: str | Path) -> NDArray[np.integer[Any]]:
    """The `tokens` of an .npz file, integers [N, T] with N >= 1 and T >= 2.

    Raises:
        SpecError: a file that is missing or unreadable, or holds something else.
    """
    remedy = "write `tokens`, integers of shape [sequences, positions], each sequence from the start token 0"
    try:
        with Path(path).open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            tokens: NDArray[np.integer[Any]] | None = file["tokens"] if "tokens" in file.files else None
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
    return tokens


def _sequences_problem(message: str, remedy: str | None = None) -> Problem:
    return Problem(path="sequences", message=message, remedy=remedy)


def _scored(kernels: Kernels, scores: Array, method: str, seconds: float) -> dict[str, Any]:
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
        "method": method,
        "seconds": seconds,
        "kernels_hash": kernels.content_hash(),
    }


def _print(result: dict[str, Any], *, bits: bool) -> None:
    """The mean on a line of its own, then the bounds or a table with some positions."""
    units = {"nats": 1.0, "bits": math.log(2)} if bits else {"nats": 1.0}
    console = Console(highlight=False, soft_wrap=True)
    for unit, size in units.items():
        mean, error = _number(result["nats_per_token"], size), _number(result["stderr"], size)
        console.print(f"{mean} ± {error} {unit}/token over {result['num_sequences']:,} sequences")
        for side in ("lower", "upper"):
            if result.get(side) is not None:
                mean, error = _number(result[side], size), _number(result[f"{side}_stderr"], size)
                console.print(f"{side} bound {mean} ± {error} {unit}/token")
    if result.get("gap") is not None:
        console.print(f"gap {result['gap']:.3f} ± {result['gap_stderr']:.3f} nats a sequence")
    if result["by_position"] is not None:
        console.print(_position_table(result["by_position"], units, fresh="seed" in result))
    console.print(f"{result['method']}, {result['seconds']:.2f} s", style="dim")


def _position_table(by_position: dict[str, Any], units: dict[str, float], *, fresh: bool) -> Table:
    """Some positions; the last of fresh sequences is named as the estimate that it is."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("position")
    for unit in units:
        table.add_column(f"{unit}/token", justify="right")
        table.add_column("error", justify="right")
    table.add_column("")
    means, errors = by_position["mean"], by_position["stderr"]
    last = len(means)
    for t in shown_positions(last):
        cells = [_number(value, size) for size in units.values() for value in (means[t - 1], errors[t - 1])]
        table.add_row(str(t), *cells, "estimate of the entropy rate" if fresh and t == last else "")
    return table


def _number(value: float | None, unit: float) -> str:
    return "–" if value is None else f"{value / unit:.4f}"


def shown_positions(last: int) -> list[int]:
    """A few positions of 1 .. last: the first, each about twice the one before, and the last."""
    steps = [round(last ** (k / (_SHOWN - 1))) for k in range(_SHOWN)]
    return sorted({1, *steps, last})


if __name__ == "__main__":
    sys.exit(run_command(main, usage=__doc__))
