"""Evaluate saved learners on held-out sequences: loss, bound, excess and exact KL, on the whole and by position.

    python -m nanollama.apps.gssm.evaluate checkpoint=DIR [num_sequences=N] [key.sub=value …] [output=OUT.json]
    python -m nanollama.apps.gssm.evaluate run_dir=DIR [follow=true] [num_sequences=N] [key.sub=value …]

The first evaluates one checkpoint, RUN/checkpoints/<step>, on the sequences that its config.yaml names; overrides
change that config. The model that made the training data is used, or another one, to measure transfer:

    data.seed=7                        kernels and sequences of another seed
    data.seq_len=512                   longer sequences
    data.gssm.nodes='[…]'              another graph, of at most as many symbols
    evaluation.data.path=test.h5       sequences of a file, with the model that made them
    evaluation.cluster.device=cpu      where to compute

    num_sequences=1024                 sequences that are sampled, or read of a file
    probe=true                         R^2 of a regression from the residual stream to the belief state, by layer
    output=OUT.json                    write all of it; a file that exists is replaced

The second evaluates every checkpoint of a run that has not been, into RUN/evaluations/<step>.json, and leaves its score
with the checkpoint. With follow=true it goes on with each new one until the run has finished or failed; a run that was
stopped is waited for. It is for runs with evaluation.asynchronous.

Exit codes: 0 done, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from time import sleep
from typing import Any

import torch
from pydantic import Field
from rich.console import Console
from rich.table import Table

from nanollama.apps.gssm.held_out import HeldOutSequences, build_evaluator
from nanollama.apps.gssm.options import check_targets, split_options, write_json
from nanollama.cluster.cluster import Cluster, leave, open_cluster
from nanollama.model.build import build_model
from nanollama.monitor.attempt import read_result, read_stopped
from nanollama.monitor.checkpoint import Checkpoints, InvalidCheckpoint, tensor_problems, verified, verify, visible
from nanollama.monitor.evaluation import Evaluation, write_evaluation
from nanollama.spec.base import Problem, Spec, SpecError
from nanollama.spec.command import run_command
from nanollama.spec.experiment import ExperimentSpec
from nanollama.spec.load import load_config
from nanollama.spec.rundir import CHECKPOINTS, CONFIG, EVALUATIONS, EXIT_INTERRUPTED, evaluation_name

POLL_SECONDS = 5.0
_SHOWN = 7  # positions in the printed table


class Options(Spec):
    """What is asked for, beside overrides of the config."""

    checkpoint: str | None = Field(default=None, description="directory of a checkpoint")
    run_dir: str | None = Field(default=None, description="directory of a run, all of whose checkpoints are evaluated")
    follow: bool = Field(default=False, description="whether checkpoints to come are waited for")
    num_sequences: int | None = Field(default=None, ge=2, le=2**32, description="sequences to evaluate on")
    probe: bool | None = Field(default=None, description="whether the belief state is regressed on the stream")
    output: str | None = Field(default=None, description="JSON file for the result")


def main(arguments: Sequence[str]) -> int:
    """Evaluate, print, and write what is wanted."""
    options, overrides = split_options(Options, arguments)
    _check(options, overrides)
    check_targets({"output": options.output})
    if options.run_dir is not None:
        return follow_run(Path(options.run_dir), options, overrides)
    assert options.checkpoint is not None
    checkpoint = Path(options.checkpoint)
    step = verified(checkpoint, "checkpoint").step
    spec = checkpoint_config(checkpoint, options, overrides)
    with open_cluster(spec.evaluation.cluster) as cluster:
        found = evaluate_checkpoint(checkpoint, spec, cluster)
        if cluster.first:
            print(f"{checkpoint}, step {step}")
            _print(found)
            if options.output is not None:
                write_json("output", options.output, {"checkpoint": str(checkpoint), "step": step, **found.record()})
    return 0


def _check(options: Options, overrides: Sequence[str]) -> None:
    problems = []
    if (options.checkpoint is None) == (options.run_dir is None):
        message = "neither or both of checkpoint=DIR and run_dir=DIR are given"
        problems.append(Problem(path="checkpoint", message=message, remedy="give one, RUN/checkpoints/<step> or RUN"))
    for name in ("follow",) if options.run_dir is None else ("output",):
        if getattr(options, name):
            other = "run_dir" if options.run_dir is None else "checkpoint"
            problems.append(Problem(path=name, message=f"belongs to {other}=", remedy="remove it"))
    if any(argument.startswith("config=") for argument in overrides):
        message = "a checkpoint brings its config"
        problems.append(Problem(path="config", message=message, remedy="remove it, and override single keys"))
    if problems:
        raise SpecError(problems)


def checkpoint_config(checkpoint: Path, options: Options, overrides: Sequence[str]) -> ExperimentSpec:
    """The config of a checkpoint with what is asked for on top.

    A file of held-out sequences belongs to the data that it was named with: with other data, these are sampled.

    Raises:
        SpecError: a config that is missing or not valid.
    """
    implied: list[str] = []
    if any(argument.startswith("evaluation.data.path=") for argument in overrides):
        implied = ["evaluation.num_sequences=null", "evaluation.data.n_data=null"]  # they belong to other sequences
    elif any(argument.startswith("data.") for argument in overrides):
        implied = ["evaluation.data.path=null", "evaluation.data.n_data=null"]
    spec = load_config(ExperimentSpec, [f"config={checkpoint / CONFIG}", *implied, *overrides])
    wanted: dict[str, Any] = {}
    if options.probe is not None:
        wanted["probe"] = options.probe
    if spec.evaluation.data.path is None:
        wanted["num_sequences"] = options.num_sequences or spec.evaluation.num_sequences
    elif options.num_sequences is not None:
        wanted["data"] = spec.evaluation.data.model_copy(update={"n_data": options.num_sequences})
    return spec.model_copy(update={"evaluation": spec.evaluation.model_copy(update=wanted)})


def evaluate_checkpoint(checkpoint: Path, spec: ExperimentSpec, cluster: Cluster) -> Evaluation:
    """Evaluate the learner that a whole checkpoint holds, as `spec.evaluation` says.

    Raises:
        SpecError: weights of another architecture, or data that cannot be used.
    """
    weights = torch.load(checkpoint / "model.pt", map_location="cpu", weights_only=True)
    embedding = weights.get("embedding.weight")
    vocab_size = len(embedding) if embedding is not None else spec.model.vocab_size or 1
    evaluator = cluster.together(lambda: build_evaluator(spec, cluster, vocab_size=vocab_size))
    if cluster.first and isinstance(evaluator.held_out, HeldOutSequences):
        for note in (evaluator.held_out.origin_note, evaluator.held_out.scorer_note):
            if note:
                print(f"note: {note}", file=sys.stderr)
    with torch.random.fork_rng():
        model = build_model(spec.model.model_copy(update={"vocab_size": vocab_size}), vocab_size)
    problems = tensor_problems(model.state_dict(), weights, checkpoint)
    if problems:
        raise SpecError(problems)
    model.load_state_dict(weights)
    return evaluator.evaluate(model.to(cluster.device))


def follow_run(run_dir: Path, options: Options, overrides: Sequence[str]) -> int:
    """Evaluate the checkpoints of a run, oldest first, and perhaps those to come; returns the exit code.

    Raises:
        SpecError: no run, or a config or data that cannot be used.
    """
    if not run_dir.is_dir():
        message = f"there is no directory {run_dir}"
        raise SpecError([Problem(path="run_dir", message=message, remedy="name the directory of a run")])
    while True:
        ended = _ended(run_dir)  # before looking: what a run saves before it ends is seen
        for checkpoint in visible(run_dir / CHECKPOINTS):
            step = int(checkpoint.name)
            if not (run_dir / EVALUATIONS / evaluation_name(step)).exists():
                _evaluate_of_run(run_dir, checkpoint, options, overrides)
        if ended or not options.follow:
            return 0
        sleep(POLL_SECONDS)


def _evaluate_of_run(run_dir: Path, checkpoint: Path, options: Options, overrides: Sequence[str]) -> None:
    """Evaluate one checkpoint of a run, which may be removed at any time; one that is damaged is passed over."""
    try:
        manifest = verify(checkpoint.resolve())
        spec = checkpoint_config(checkpoint, options, overrides)
        with open_cluster(spec.evaluation.cluster) as cluster:
            found = evaluate_checkpoint(checkpoint, spec, cluster)
    except (InvalidCheckpoint, FileNotFoundError) as error:
        print(f"note: {checkpoint} is passed over: {error}", file=sys.stderr)
        return
    except SpecError:
        if checkpoint.is_dir():
            raise
        return
    write_evaluation(run_dir, manifest.step, found.record())
    Checkpoints(run_dir, config_hash=manifest.config_hash).note_score(manifest.step, found.score)
    print(f"step {manifest.step}: {found}")


def _ended(run_dir: Path) -> bool:
    """Whether the newest attempt of a run has finished or failed for good."""
    attempts = [path for path in run_dir.iterdir() if path.name.isdecimal() and path.is_dir()]
    newest = max(attempts, key=lambda path: int(path.name), default=None)
    if newest is None:
        return False
    stopped = read_stopped(newest)
    return read_result(newest) is not None or (stopped is not None and stopped.exit_code != EXIT_INTERRUPTED)


def _print(found: Evaluation) -> None:
    """Means with their errors, some positions, and R^2 by layer."""
    console = Console(highlight=False, soft_wrap=True)
    for name, mean in found.means.items():
        console.print(f"{name:<6} {mean:.5f} ± {found.stderrs[name]:.5f} nats/token")
    console.print(f"over {found.num_sequences:,} held-out sequences, in {found.seconds:.1f} s")
    table = Table("position", *found.means)
    count = len(found.by_position["loss"])
    for t in sorted({round(count ** (i / (_SHOWN - 1))) for i in range(_SHOWN)}):
        table.add_row(str(t), *(f"{found.by_position[name][t - 1]:.4f}" for name in found.means))
    console.print(table)
    if found.probe:
        latents = list(dict.fromkeys(name for r2 in found.probe.values() for name in r2))
        probes = Table("R² of beliefs", *latents)
        for layer, r2 in found.probe.items():
            row = (f"{r2.get(name, math.nan):.4f}" for name in latents)
            probes.add_row(f"layer {layer}" if layer else "embedding", *row)
        console.print(probes)


if __name__ == "__main__":
    leave(run_command(main, usage=__doc__))
