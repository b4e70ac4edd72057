"""Train a learner on the sequences of a GSSM and compare its loss with the entropy bound on the same tokens.

    python -m nanollama.apps.gssm.train config=configs/gssm/debug.yaml [key.sub=value …] [attempt_dir=PATH]
    torchrun --nproc-per-node 2 -m nanollama.apps.gssm.train config=…

Shapes: B sequences of this rank, T tokens of a sequence, V vocabulary.

Exit codes: 0 finished, 2 bad input, 75 stopped on request (start again to continue), 128 + n ended at once by the
second of two signals n, 1 anything else.

SIGINT, SIGTERM or SIGUSR1 to any rank, or a file stop_requested in the attempt's directory, is a request to stop: all
ranks finish the step, a checkpoint is saved, and the exit code is 75. A second SIGINT or SIGTERM ends the run at once.
torchrun hides the codes of its ranks, `python -m nanollama.cluster.torchrun` does not; stopped.json has them always.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from nanollama.apps.gssm.held_out import build_evaluator, evaluation_notes
from nanollama.cluster.cluster import Cluster, accumulating, leave, open_cluster, this_rank
from nanollama.data.loader import Loader, build_loader
from nanollama.data.prefetch import Batches
from nanollama.model.build import build_model, num_parameters
from nanollama.model.learner import Learner
from nanollama.monitor.attempt import (
    claim_attempt,
    create_attempt,
    finished_result,
    only_run,
    origin_problems,
    placed_by,
    run_directory,
    write_stopped,
)
from nanollama.monitor.checkpoint import tensor_problems
from nanollama.monitor.evaluation import Evaluator
from nanollama.monitor.hardware import device_peak
from nanollama.monitor.lost import Diverged, LostSteps, is_finite
from nanollama.monitor.memory import Work, is_out_of_memory, out_of_memory
from nanollama.monitor.mirrors import check_mirrors
from nanollama.monitor.monitor import Monitor
from nanollama.monitor.origin import find_origin
from nanollama.monitor.preemption import StopSignals
from nanollama.monitor.profiler import Load
from nanollama.monitor.readback import Readback, StepNumbers
from nanollama.monitor.summary import FinalWindow, describe, in_final_window
from nanollama.optim import build_optimizer, clip_gradient, learning_rate, update
from nanollama.spec.base import Problem, SpecError
from nanollama.spec.command import run_command
from nanollama.spec.experiment import ExperimentSpec
from nanollama.spec.load import read_config
from nanollama.spec.rundir import EXIT_BAD_INPUT, EXIT_INTERRUPTED, Stopped
from nanollama.spec.yaml_text import dump_yaml

log = logging.getLogger("nanollama.apps.gssm.train")  # by name: run as a program, the module is called __main__

ATTEMPT_DIR = "attempt_dir="
MODEL, TRAINER = "model.pt", "trainer.pt"  # files of a checkpoint: the weights, and all else that training needs


class Trainer:
    """What one rank trains with. After `step` optimizer steps it has trained on `tokens` predicted tokens.

    `signalled` tells by which signal, if any, this process has been asked to stop. `origin` is the checkpoint of
    another run that it starts from as long as it has none of its own.
    """

    def __init__(
        self,
        spec: ExperimentSpec,
        cluster: Cluster,
        loader: Loader,
        model: Learner,
        signalled: Callable[[], str | None],
        *,
        evaluator: Evaluator | None = None,
        origin: Path | None = None,
    ) -> None:
        self.spec = spec
        self.signalled = signalled
        self.origin = origin
        self.cluster = cluster
        self.loader = loader
        self.model = model
        self.flops_per_token = model.flops_per_token(loader.seq_len - 1).total
        self.num_parameters = num_parameters(model)
        self.parallel_model = cluster.parallelise(model)
        self.optimizer = build_optimizer(spec.optim, model)
        self.step = 0
        self.seconds = 0.0
        skip = spec.orchestration.utils.on_nonfinite == "skip"
        self.lost = LostSteps(skip=skip, batch_size=spec.data.batch_size, device=cluster.device)
        self.asked: str | None = None  # who has asked this rank to save and stop
        self.evaluator = evaluator
        self.evaluated = 0  # step of the last evaluation
        self.window = FinalWindow()
        self.readback = Readback(cluster.device)

    @property
    def tokens(self) -> int:
        """Tokens predicted so far; the first of each sequence is given."""
        return self.step * self.step_tokens

    @property
    def step_tokens(self) -> int:
        """Tokens predicted in each step, by all ranks."""
        return self.spec.data.batch_size * (self.loader.seq_len - 1)

    def train(self, monitor: Monitor) -> int:
        """Train from the newest checkpoint to the last step, or until asked to stop; returns the exit code.

        Every way out is one that all ranks take together, but for bad data and want of memory, which may strike one.
        """
        checkpoint = self.cluster.from_first(monitor.newest_checkpoint)
        origin = None if checkpoint else self.origin
        start = checkpoint or origin
        if start is not None:
            self.load(start, other=checkpoint is None)
        peak = device_peak(self.cluster.device, bfloat16=self.spec.cluster.dtype == "bfloat16")
        load = Load(self.step_tokens / self.cluster.world_size, self.flops_per_token, peak)
        monitor.started(self.step, self.tokens, checkpoint, load, origin=origin)
        if self.loader.scorer is None:
            monitor.warn(self.loader.scorer_note or "these sequences have no bound", self.step)
        for note in evaluation_notes(self.spec, self.evaluator):
            monitor.warn(note, self.step)
        try:
            self.train_steps(monitor)
        except Diverged as error:
            return self.cluster.from_first(partial(monitor.diverged, error.step, str(error)))
        except SpecError as error:
            return monitor.failed(self.step, str(error), EXIT_BAD_INPUT)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return monitor.failed(self.step, out_of_memory(self.work(), self.cluster.device))
        if self.step < self.spec.optim.steps:
            asked = next(reason for reason in self.cluster.gather(self.asked) if reason)
            return self.cluster.from_first(lambda: monitor.preempted(self.step, asked))
        result = self.window.result(step=self.step, tokens=self.tokens, seconds=self.seconds)
        return self.cluster.from_first(lambda: monitor.finished(result))

    def train_steps(self, monitor: Monitor) -> None:
        """Train, saving now and then, until the last step or the one after which the ranks have agreed to stop."""
        data, steps, period = self.spec.data, self.spec.optim.steps, self.spec.orchestration.checkpoint.period
        started = time.monotonic() - self.seconds
        stopping = False
        self.evaluate_when_due(monitor)  # the attempt before may have stopped without it
        device = self.cluster.device
        with Batches(self.loader, self.step, steps, depth=data.prefetch, device=device) as self.batches:
            while self.step < steps and not stopping:
                stopping = self.train_step(monitor)
                saving = stopping or self.step == steps or (period > 0 and self.step % period == 0)
                if saving:  # nothing is saved that has not been looked at
                    stopping |= self.look(monitor, everything=True)
                if not stopping:  # who asks for a stop may not wait for long
                    self.evaluate_when_due(monitor)
                self.seconds = time.monotonic() - started
                if saving:
                    monitor.save(self.step, self.state())
        if self.step == steps:
            self.evaluate_when_due(monitor)

    def evaluate_when_due(self, monitor: Monitor) -> None:
        """Evaluate the learner, once, every `evaluation.period` steps and after the last; training is not touched."""
        if self.evaluator is None or self.step == self.evaluated:
            return
        if self.step % self.spec.evaluation.period == 0 or self.step == self.spec.optim.steps:
            monitor.evaluated(self.step, self.tokens, self.evaluator.evaluate(self.model))
            self.evaluated = self.step

    def train_step(self, monitor: Monitor) -> bool:
        """One optimizer step on the next global batch; returns whether the ranks agree to stop.

        The loop does not wait for the device: a step whose numbers are not finite is lost there.

        Raises:
            Diverged: the weights have not been touched since the step that the message names.
        """
        optim, step = self.spec.optim, self.step + 1
        monitor.begin_step()
        batch_BT = self.batches.next()
        monitor.lap("data")
        loss = self.backward(batch_BT)
        monitor.lap("model")
        grad_norm = clip_gradient(self.model, optim.clip)
        self.asked = self.asked or self.signalled() or monitor.stop_requested()
        votes = torch.full_like(loss, self.asked is not None)
        numbers = self.cluster.mean(torch.stack([loss, grad_norm.double(), votes]))  # the same on every rank
        update(self.optimizer, learning_rate(optim, step), self.lost.judge(numbers[0], numbers[1]))
        self.step = step
        monitor.end_update(step)

        self.readback.push(step, numbers, loss, self.bound(batch_BT) if self.is_logged(step) else None)
        return self.look(monitor)

    def is_logged(self, step: int) -> bool:
        """Whether this step has a metric line."""
        return step in (1, self.spec.optim.steps) or step % self.spec.orchestration.logging.period == 0

    def bound(self, batch_BT: Tensor) -> Tensor | None:
        """The true model's score of the global batch in nats per token, where it has one."""
        if self.loader.scorer is None:
            return None
        nll_B = self.loader.scorer.nll(batch_BT)
        return self.cluster.mean(nll_B.double().mean().to(self.cluster.device) / (self.loader.seq_len - 1))

    def look(self, monitor: Monitor, *, everything: bool = False) -> bool:
        """Write down the steps whose numbers have come back from the device; returns whether the ranks agree to stop.

        Raises:
            Diverged: a step was not finite, and that ends the run.
        """
        stopping = False
        for numbers in self.readback.pull(everything=everything):
            if self.is_logged(numbers.step) or not is_finite(numbers):
                self.log_metrics(monitor, numbers)
            skipped = self.lost.look(numbers)
            if skipped is not None:
                monitor.warn(skipped, numbers.step)
            stopping |= numbers.votes > 0
        return stopping

    def backward(self, batch_BT: Tensor) -> Tensor:
        """Add the gradient of the mean loss of this rank's batch to the weights; returns that loss, in nats per token.

        Gradients are averaged over ranks with the last micro-batch.
        """
        loss = torch.zeros((), dtype=torch.float64, device=batch_BT.device)
        parts = batch_BT.chunk(self.spec.optim.grad_acc_steps)
        for part_BT in parts[:-1]:
            with accumulating(self.parallel_model):
                loss += self.backward_part(part_BT, len(parts))
        return loss + self.backward_part(parts[-1], len(parts))

    def backward_part(self, part_BT: Tensor, num_parts: int) -> Tensor:
        """Add the gradient of one micro-batch; returns its share of the loss."""
        with self.cluster.autocast():
            logits_BTV = self.parallel_model(part_BT[:, :-1])
        targets = part_BT[:, 1:].flatten()
        loss: Tensor = functional.cross_entropy(logits_BTV.float().flatten(0, 1), targets) / num_parts
        loss.backward()  # type: ignore[no-untyped-call] # as torch left it
        return loss.detach().double()

    def log_metrics(self, monitor: Monitor, numbers: StepNumbers) -> None:
        """Write down a step, with the true model's score of the very same global batch."""
        values = {"loss": numbers.loss}
        if numbers.bound is not None:
            values |= {"bound": numbers.bound, "excess": numbers.loss - numbers.bound}
        if in_final_window(numbers.step, self.spec.optim.steps) and math.isfinite(numbers.loss):
            self.window.add(numbers.loss, numbers.bound)
        values |= {"lr": learning_rate(self.spec.optim, numbers.step), "grad_norm": numbers.grad_norm}
        monitor.metrics(numbers.step, numbers.step * self.step_tokens, values, numbers.own_loss)

    def work(self) -> Work:
        """How much this rank computes at a time."""
        data, acc = self.spec.data, self.spec.optim.grad_acc_steps
        return Work(data.batch_size, self.cluster.world_size, acc, self.loader.seq_len, self.num_parameters)

    def state(self) -> dict[str, Any]:
        """Files of a checkpoint, whatever the number of ranks. Every rank must ask for it, rank 0 writes it."""
        trainer = {
            "optimizer": self.cluster.whole(self.optimizer.state_dict()),
            "step": self.step,
            "seconds": self.seconds,
            "skipped": (self.lost.count, self.lost.in_a_row),
            "window": self.window.state(),
            "evaluated": self.evaluated,
            "rng": self.cluster.gather(self.cluster.rng_state()),
        }
        return {MODEL: self.cluster.whole(self.model.state_dict()), TRAINER: trainer}

    def load(self, checkpoint: Path, *, other: bool = False) -> None:
        """Continue from a checkpoint: to the last bit, if the number of ranks is that of the run that saved it.

        Of an `other` run weights, optimizer, position and random state are taken; what counts this run is not, and the
        optimizer's settings are those of this config.

        Raises:
            SpecError: it is of another architecture or, as one of this run, of another config; nothing has been loaded.
        """
        device = self.cluster.device
        weights = torch.load(checkpoint / MODEL, map_location=device, weights_only=True)
        problems = tensor_problems(self.model.state_dict(), weights, checkpoint)
        problems += [] if other else origin_problems(checkpoint, self.spec)
        if problems:
            raise SpecError(problems)
        self.cluster.load(self.model, weights)
        trainer = torch.load(checkpoint / TRAINER, map_location="cpu", weights_only=True)
        settings = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        self.cluster.load_optimizer(self.optimizer, trainer["optimizer"])
        self.step = trainer["step"]
        if self.cluster.rank < len(trainer["rng"]):
            self.cluster.set_rng_state(trainer["rng"][self.cluster.rank])
        if other:
            for group, own in zip(self.optimizer.param_groups, settings, strict=True):
                group.update(own)
            return
        self.seconds = trainer["seconds"]
        self.lost.count, self.lost.in_a_row = trainer["skipped"]
        self.window = FinalWindow(**trainer["window"])
        self.evaluated = trainer["evaluated"]


def build(spec: ExperimentSpec, cluster: Cluster) -> tuple[Loader, Learner]:
    """The sequences of this rank and a fresh learner, the same on every rank. No file is written.

    Raises:
        SpecError: the data cannot be read or do not fit the learner or the ranks.
    """
    batch, ranks, acc = spec.data.batch_size, cluster.world_size, spec.optim.grad_acc_steps
    if batch % (ranks * acc):
        message = f"batch_size {batch} is not divisible by {ranks} ranks x {acc} accumulation steps"
        remedy = f"use a multiple of {ranks * acc}"
        raise SpecError([Problem(path="data.batch_size", message=message, remedy=remedy)])
    loader = build_loader(spec.data, rank=cluster.rank, world_size=ranks, device=cluster.device)
    torch.manual_seed(spec.orchestration.utils.seed)
    model = build_model(spec.model, loader.vocab_size)
    return loader, model.to(cluster.device)


def run(spec: ExperimentSpec, attempt_dir: Path | None, cluster: Cluster, signalled: Callable[[], str | None]) -> int:
    """Find or make the attempt's directory and train in it, until the end or a stop; returns the exit code.

    Raises:
        SpecError: with nothing created, but for a checkpoint that cannot be continued.
    """
    run_dir = attempt_dir.parent if attempt_dir else run_directory(spec.launcher, spec.orchestration)
    if attempt_dir is None:
        result = cluster.from_first(lambda: finished_result(run_dir, spec))
        if result is not None:
            if cluster.first:
                print(f"{run_dir} is finished: {describe(result)}")
            return 0
    cluster.from_first(lambda: check_mirrors(spec))
    loader, model = cluster.together(lambda: build(spec, cluster))
    origin = cluster.from_first(lambda: find_origin(spec, run_dir))
    evaluator = None
    if spec.evaluation.period and not spec.evaluation.asynchronous:
        evaluator = cluster.together(lambda: build_evaluator(spec, cluster, vocab_size=loader.vocab_size))
    with ExitStack() as held:
        directory = attempt_dir or cluster.from_first(lambda: _begin_attempt(spec, run_dir, held))
        monitor = held.enter_context(Monitor(spec, directory, cluster.rank, cluster.device))
        log.info("%d parameters, %d x %s", num_parameters(model), cluster.world_size, cluster.device.type)
        code = Trainer(spec, cluster, loader, model, signalled, evaluator=evaluator, origin=origin).train(monitor)
    if code == EXIT_INTERRUPTED and attempt_dir is None and cluster.first:
        print("start it again by the same command", file=sys.stderr)
    return code


def _begin_attempt(spec: ExperimentSpec, run_dir: Path, held: ExitStack) -> Path:
    """The next attempt's directory, in a run directory that is kept from others until `held` is closed."""
    place = placed_by(spec.launcher)
    held.enter_context(only_run(run_dir, placed_by=place))
    return create_attempt(run_dir, dump_yaml(spec), placed_by=place)


def main(arguments: Sequence[str]) -> int:
    """Run the app on `config=FILE key.sub=value …`, and `attempt_dir=PATH` when the caller has chosen the directory.

    Raises:
        SpecError: bad input, on rank 0; it is also recorded in the attempt directory.
    """
    given = [Path(a.removeprefix(ATTEMPT_DIR)) for a in arguments if a.startswith(ATTEMPT_DIR)]
    attempt_dir = given[-1] if given else None
    first = this_rank() == 0
    if attempt_dir is not None and first:
        claim_attempt(attempt_dir)
    with StopSignals() as signals:
        try:
            loaded = read_config(ExperimentSpec, [a for a in arguments if not a.startswith(ATTEMPT_DIR)])
            for note in loaded.notes if first else ():
                print(f"note: {note}", file=sys.stderr)
            spec = loaded.spec
            with open_cluster(spec.cluster) as cluster:
                return run(spec, attempt_dir, cluster, signals.received)
        except SpecError as error:
            if not first:
                return EXIT_BAD_INPUT  # rank 0 says why
            if attempt_dir is not None:
                write_stopped(attempt_dir, Stopped(exit_code=EXIT_BAD_INPUT, step=0, message=str(error)))
            raise


if __name__ == "__main__":
    leave(run_command(main, usage=__doc__))
