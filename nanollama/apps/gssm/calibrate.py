"""Find the alphas that give the graph of a config a wanted entropy, and compare it with what compressors need.

    python -m nanollama.apps.gssm.calibrate config=configs/gssm/debug.yaml target=1.2 [nodes=latents] [key.sub=value …]

The alphas of some nodes are multiplied by a common factor until the entropy, averaged over the kernels of the seeds
0 .. seeds-1, is the target. The config is one of training or one that makes sets: its graph and length are used, not
its seed.

    target=NATS         wanted entropy, nats per token
    nodes=latents       whose alphas move: latents, observed, all, or names with commas between them
    seeds=10            draws of the kernels
    num_sequences=100   sequences scored for each draw
    tolerance=0.01      nats per token that the result may be off
    save=FILE.yaml      write the graph that was found; a file that exists is replaced
    output=FILE.json    write the result; likewise

Exit codes: 0 done, 2 bad input, a graph without an exact bound or a target out of reach, 130 interrupted.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field
from rich.console import Console
from rich.table import Table

from nanollama.apps.gssm.options import check_targets, read_source, split_options, write_json, writing
from nanollama.data.calibration import (
    ALPHAS,
    Calibration,
    OutOfReach,
    SeedMean,
    calibrate,
    compressed,
    factor_limits,
    mean_entropy,
    moving_nodes,
    scaled,
)
from nanollama.spec.base import Problem, Spec, SpecError
from nanollama.spec.command import run_command
from nanollama.spec.gssm import GSSMSpec
from nanollama.spec.rundir import write_atomic


class Options(Spec):
    """What is asked for, beside the config."""

    target: float = Field(gt=0, description="wanted entropy, nats per token")
    nodes: str = Field(default="latents", description="whose alphas move")
    seeds: int = Field(default=10, ge=2, le=10_000, description="draws of the kernels")
    num_sequences: int = Field(default=100, ge=2, le=2**40, description="sequences scored for each draw")
    tolerance: float = Field(default=0.01, gt=0, description="nats per token that the result may be off")
    save: str | None = Field(default=None, description="YAML file for the graph that was found")
    output: str | None = Field(default=None, description="JSON file for the result")


def main(arguments: Sequence[str]) -> int:
    """Search, print what was found, and write it where that is wanted."""
    start = time.monotonic()
    options, rest = split_options(Options, arguments)
    configs = [argument.partition("=")[2] for argument in rest if argument.startswith("config=")]
    check_targets({"save": options.save, "output": options.output}, inputs=configs)
    source = read_source(rest)
    names = moving_nodes(source.spec, options.nodes)
    console = Console(highlight=False, soft_wrap=True)

    def measure(factor: float) -> SeedMean:
        graph = scaled(source.spec, names, factor)
        with source.placing():
            found = mean_entropy(graph, source.seq_len, seeds=options.seeds, num_sequences=options.num_sequences)
        console.print(f"alphas x {factor:<10.4g} {found.mean:.4f} ± {found.stderr:.4f}", style="dim")
        return found

    calibration = _search(measure, options, source.spec, names)
    graph = scaled(source.spec, names, calibration.best.factor)
    text = compressed(graph, source.seq_len, seeds=options.seeds, num_sequences=options.num_sequences)
    result = _result(options, calibration, graph, names, text)
    result |= {"seq_len": source.seq_len, "seconds": time.monotonic() - start}
    console.print(_table(result))
    if options.save is not None:
        with writing("save", options.save):
            write_atomic(Path(options.save), graph_yaml(graph, str(calibration.best.entropy)).encode())
    if options.output is not None:
        write_json("output", options.output, result)
    return 0


def _search(
    measure: Callable[[float], SeedMean], options: Options, spec: GSSMSpec, names: Sequence[str]
) -> Calibration:
    try:
        return calibrate(measure, options.target, tolerance=options.tolerance, limits=factor_limits(spec, names))
    except OutOfReach as error:
        remedy = f"alphas of {', '.join(names)} were tried from {ALPHAS[0]:g} to {ALPHAS[1]:g}; "
        remedy += "move other nodes (nodes=all), or change the number of states or symbols"
        raise SpecError([Problem(path="target", message=str(error), remedy=remedy)]) from None


def _result(
    options: Options, calibration: Calibration, graph: GSSMSpec, names: Sequence[str], text: dict[str, SeedMean]
) -> dict[str, Any]:
    best = calibration.best
    notes = []
    if not calibration.reached:
        notes.append("the mean over these seeds jumps over the target; this is the nearest, more seeds jump less")
    if not calibration.rising:
        notes.append("the entropy does not rise with alpha everywhere: other alphas may give the target too")
    return {
        "target": options.target,
        "reached": calibration.reached,
        "nats_per_token": best.entropy.mean,
        "stderr": best.entropy.stderr,
        "factor": best.factor,
        "alphas": {name: graph.node(name).alpha for name in names},
        "seeds": options.seeds,
        "num_sequences": options.num_sequences,
        "tolerance": options.tolerance,
        **{name: {"nats_per_token": found.mean, "stderr": found.stderr} for name, found in text.items()},
        "evaluations": [
            {"factor": e.factor, "nats_per_token": e.entropy.mean, "stderr": e.entropy.stderr}
            for e in calibration.evaluations
        ],
        "notes": notes,
    }


def _table(result: dict[str, Any]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, alpha in result["alphas"].items():
        table.add_row(f"alpha of {name}", f"{alpha:g}")
    table.add_row("factor", f"{result['factor']:.6g}, after {len(result['evaluations'])} evaluations")
    table.add_row("entropy", _nats(result) + f" over {result['seeds']} seeds, target {result['target']:g}")
    text = f" for {result['num_sequences']:,} sequences of {result['seq_len']} tokens a seed"
    for name in ("gzip", "xz"):
        table.add_row(name, _nats(result[name]) + text)
    for note in result["notes"]:
        table.add_row("note", note)
    table.add_row("seconds", f"{result['seconds']:.1f}")
    return table


def _nats(found: dict[str, Any]) -> str:
    return f"{found['nats_per_token']:.4f} ± {found['stderr']:.4f} nats/token"


def graph_yaml(graph: GSSMSpec, entropy: str) -> str:
    """The graph as the `gssm` section of a config, one line a node, under a comment that states its entropy."""
    lines = [f"# entropy: {entropy}", "gssm:", "  nodes:"]
    for node in graph.nodes:
        told = node.model_dump(mode="json", exclude_defaults=True)
        values = ", ".join(f"{key}: {json.dumps(value)}" for key, value in told.items())
        lines.append(f"    - {{{values}}}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(run_command(main, usage=__doc__))
