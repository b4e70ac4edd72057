"""The sequences that a config's learner is evaluated on, and the model that made them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nanollama.cluster.cluster import Cluster
from nanollama.data.bounds import Scorer
from nanollama.data.gssm import Kernels, draw_kernels
from nanollama.data.hdf5 import DatasetReader
from nanollama.data.polya import context_nodes
from nanollama.data.sampler import Sampler, Tokens
from nanollama.monitor.evaluation import Evaluator
from nanollama.spec.base import Problem, SpecError
from nanollama.spec.data import FileData, OnlineData
from nanollama.spec.experiment import ExperimentSpec

NUM_SEQUENCES = 1024
"""Sequences that are sampled where a config does not say how many."""


class HeldOutSequences:
    """Sequences by number, of a file or sampled.

    Attributes:
        num_sequences: how many there are.
        seq_len: T, the start token included.
        vocab_size: number of symbols.
        scorer: scores tokens with the true model; None when there is no exact score.
        scorer_note: why there is no scorer; empty when there is one.
        belief_note: why there is no exact belief state, though there may be a scorer; empty when there is one.
        origin_note: what is to be said when these are sequences of another model than the learner is trained on.
    """

    def __init__(
        self,
        kernels: Kernels,
        read: Callable[[int, int], Tokens],
        *,
        num_sequences: int,
        seq_len: int,
        device: torch.device | str,
    ) -> None:
        self.num_sequences = num_sequences
        self.seq_len = seq_len
        self.vocab_size = kernels.vocab_size
        self.scorer: Scorer | None = None
        self.scorer_note = self.origin_note = ""
        self._read = read
        try:
            self.scorer = Scorer(kernels, device=device)
        except SpecError as error:
            self.scorer_note = "; ".join(f"{p.message} - {p.remedy}" for p in error.problems)
        redrawn = ", ".join(node.name for node in context_nodes(kernels.spec))
        self.belief_note = self.scorer_note or (f"the kernels of {redrawn} differ between sequences" if redrawn else "")

    def tokens(self, start: int, stop: int) -> Tensor:
        """Tokens of the sequences start .. stop - 1: int64 [stop - start, T].

        Raises:
            SpecError: a file that turns out to be damaged.
        """
        return torch.from_numpy(self._read(start, stop).astype(np.int64))


def held_out_sequences(spec: ExperimentSpec, *, device: torch.device | str = "cpu") -> HeldOutSequences:
    """What `evaluation` names: sequences of its file, or fresh ones of the model that the training data come from.

    Raises:
        SpecError: a file that cannot be used, or sequences that the learner is trained on, at their key.
    """
    wanted = spec.evaluation.data
    if wanted.path is not None:
        return _of_file(spec, wanted.path, device)
    kernels, seed, seq_len, split = _training_model(spec.data)
    if split == wanted.split:
        message = f"the learner is trained on the split '{split}' itself"
        remedy = "name another, for example held_out"
        raise SpecError([Problem(path="evaluation.data.split", message=message, remedy=remedy)])
    sampler = Sampler(kernels, seed, wanted.split)
    count = spec.evaluation.num_sequences or NUM_SEQUENCES
    return HeldOutSequences(
        kernels,
        lambda start, stop: sampler.sample(range(start, stop), seq_len),
        num_sequences=count,
        seq_len=seq_len,
        device=device,
    )


def build_evaluator(spec: ExperimentSpec, cluster: Cluster, *, vocab_size: int) -> Evaluator:
    """What evaluates learners over `vocab_size` symbols as the config asks for.

    Raises:
        SpecError: as `held_out_sequences`; symbols that the learner does not have; or a probe where there is no exact
            belief state.
    """
    held_out = held_out_sequences(spec, device=cluster.device)
    problems = []
    if held_out.vocab_size > vocab_size:
        path = "evaluation.data.path" if spec.evaluation.data.path else "data"
        message = f"these sequences have {held_out.vocab_size} symbols, the learner knows {vocab_size}"
        problems.append(Problem(path=path, message=message, remedy=f"use data of at most {vocab_size} symbols"))
    if spec.evaluation.probe and held_out.belief_note:
        message = f"there is no exact belief state to look for: {held_out.belief_note}"
        problems.append(Problem(path="evaluation.probe", message=message, remedy="use evaluation.probe=false"))
    if problems:
        raise SpecError(problems)
    batch_size = spec.evaluation.data.batch_size or max(1, spec.data.batch_size // spec.optim.grad_acc_steps)
    return Evaluator(held_out, cluster, batch_size=batch_size, probe=spec.evaluation.probe, arithmetic=cluster.autocast)


def evaluation_notes(spec: ExperimentSpec, evaluator: Evaluator | None) -> list[str]:
    """What the user should know about the evaluations of a run when it starts."""
    if spec.evaluation.period and spec.evaluation.asynchronous:
        command = "python -m nanollama.apps.gssm.evaluate run_dir=DIR follow=true"
        return [f"evaluation.asynchronous: this run does not evaluate itself; `{command}` evaluates its checkpoints"]
    if evaluator is None or not isinstance(evaluator.held_out, HeldOutSequences):
        return []
    held_out = evaluator.held_out
    no_bound = f"evaluations have a loss only: {held_out.scorer_note}" if held_out.scorer_note else ""
    return [note for note in (held_out.origin_note, no_bound) if note]


def _of_file(spec: ExperimentSpec, path: str, device: torch.device | str) -> HeldOutSequences:
    if isinstance(spec.data, FileData) and Path(spec.data.path).resolve() == Path(path).resolve():
        message = f"{path} is what the learner is trained on"
        raise SpecError([Problem(path="evaluation.data.path", message=message, remedy="name a file of another split")])
    try:
        reader = DatasetReader(path)
        kernels = reader.kernels()
    except SpecError as error:
        placed = (problem.model_copy(update={"path": "evaluation.data.path"}) for problem in error.problems)
        raise SpecError(placed) from None
    present, n_data = len(reader), spec.evaluation.data.n_data
    count = present if n_data is None else n_data
    if count > present or count < 2:
        message = f"{path} has {present:,} sequences, and {n_data or 'at least 2'} are wanted"
        raise SpecError(
            [Problem(path="evaluation.data.n_data", message=message, remedy="use a larger file, or fewer of them")]
        )
    sequences = HeldOutSequences(
        kernels,
        lambda start, stop: reader.read(slice(start, stop)),
        num_sequences=count,
        seq_len=reader.seq_len,
        device=device,
    )
    try:
        trained, seed, _, split = _training_model(spec.data)
    except SpecError:
        return sequences  # a checkpoint may be evaluated where its training data are not
    if kernels.content_hash() != trained.content_hash():
        sequences.origin_note = f"{path} comes from another model than the training data: it measures transfer"
    elif (reader.seed, reader.split) == (seed, split):
        message = f"{path} holds the split '{split}' of the same model and seed, which the learner is trained on"
        raise SpecError([Problem(path="evaluation.data.path", message=message, remedy="name a file of another split")])
    return sequences


def _training_model(data: OnlineData | FileData) -> tuple[Kernels, int, int, str]:
    """Kernels, seed and length of the sequences of training, and their split."""
    if not isinstance(data, FileData):
        return draw_kernels(data.gssm, data.seed), data.seed, data.seq_len, "train"
    reader = DatasetReader(data.path)
    try:
        return reader.kernels(), reader.seed, reader.seq_len, reader.split
    finally:
        reader.close()
