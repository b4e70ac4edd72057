"""Ranks, device, process group and parallelisation of one run.

Every rank runs the same program; torchrun tells it in the environment which one it is. Without torchrun there is one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from types import ModuleType
from typing import Any, NoReturn, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nanollama.spec.base import Problem, SpecError
from nanollama.spec.cluster import ClusterSpec

TIMEOUT = timedelta(minutes=30)  # rank 0 may have to verify a large checkpoint while the others wait

_NUM_THREADS = "OMP_NUM_THREADS"

T = TypeVar("T")


def this_rank() -> int:
    """Number of this process among all those of the run, from torchrun's environment; 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


@dataclass(frozen=True)
class Cluster:
    """This process among the ranks of a run."""

    rank: int
    world_size: int
    device: torch.device
    spec: ClusterSpec = field(default_factory=ClusterSpec)

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes files for all."""
        return self.rank == 0

    @property
    def sharded(self) -> bool:
        """Whether each rank keeps a part of the weights only."""
        return self.spec.parallel == "fsdp" and self.world_size > 1

    def mean(self, values: Tensor) -> Tensor:
        """The mean over ranks of each element, the same on every rank; `values` is overwritten."""
        if self.world_size > 1:
            dist.all_reduce(values)
            values /= self.world_size
        return values

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in their order, on every rank."""
        values: list[Any] = [value]
        if self.world_size > 1:
            values = [None] * self.world_size
            dist.all_gather_object(values, value)
        return values

    def from_first(self, function: Callable[[], T]) -> T:
        """Call `function` on rank 0 only and return its value on every rank.

        Raises:
            SpecError: on every rank, when it was raised on rank 0.
        """
        outcome: list[Any] = [_outcome(function) if self.first else None]
        if self.world_size > 1:
            dist.broadcast_object_list(outcome)
        value, problems = outcome[0]
        if problems:
            raise SpecError(problems)
        return cast(T, value)

    def together(self, function: Callable[[], T]) -> T:
        """Call `function` on every rank and return each one's own value.

        Raises:
            SpecError: on every rank, when it was raised on any: none is left waiting for one that has given up.
        """
        value, own_problems = _outcome(function)
        for problems in self.gather(own_problems):
            if problems:
                raise SpecError(problems)
        return cast(T, value)

    def parallelise(self, model: nn.Module) -> nn.Module:
        """The model as it is called in training: compiled if wanted, gradients averaged over ranks.

        It shares its weights with `model`, which stays the one to save; under FSDP these are cut in place.
        """
        if self.spec.compile_model:
            # the gathering of shards between two layers cannot be compiled into one graph with them
            for part in model.get_submodule("layers").children() if self.sharded else (model,):
                part.compile()
        if self.sharded:
            _sharding().shard(model)
        if self.sharded or self.world_size == 1:
            return model
        return DistributedDataParallel(model, device_ids=[self.device] if self.device.type == "cuda" else None)

    def whole(self, state: T) -> T:
        """A state of the model or its optimizer with whole tensors, whoever keeps the parts; for rank 0 only."""
        return cast(T, _sharding().whole(state, keep=self.first)) if self.sharded else state

    def load(self, model: nn.Module, weights: dict[str, Tensor]) -> None:
        """Load whole weights, which every rank holds, into a model that may be cut in shards."""
        if self.sharded:
            _sharding().load_weights(model, weights)
        else:
            model.load_state_dict(weights)

    def load_optimizer(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Load the whole state of an optimizer, which every rank holds, whose weights may be cut in shards."""
        if self.sharded:
            _sharding().load_optimizer(optimizer, state)
        else:
            optimizer.load_state_dict(state)

    def rng_state(self) -> dict[str, Tensor]:
        """State of torch's generators of this rank."""
        state = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self.device)
        return state

    def set_rng_state(self, state: dict[str, Tensor]) -> None:
        """Undo all draws since rng_state."""
        torch.set_rng_state(state["cpu"])
        if self.device.type == "cuda" and "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"], self.device)

    def autocast(self) -> torch.autocast:
        """A context in which matrix products are of the type that is asked for; weights stay in float32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.spec.dtype == "bfloat16")


@contextmanager
def accumulating(model: nn.Module) -> Iterator[None]:
    """Within it backward passes add up gradients without exchanging them between ranks."""
    if isinstance(model, DistributedDataParallel):
        with model.no_sync():
            yield
    elif (exchange := getattr(model, "set_requires_gradient_sync", None)) is not None:  # FSDP2's
        exchange(False)
        try:
            yield
        finally:
            exchange(True)
    else:
        yield


def leave(exit_code: int) -> NoReturn:
    """End this process; as one of several ranks, without the interpreter's farewell.

    DistributedDataParallel keeps gloo's threads alive even after the process group is destroyed. One that lets go of a
    tensor while the interpreter shuts down aborts the process, and a finished run would be reported as a crash.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        sys.exit(exit_code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


@contextmanager
def open_cluster(spec: ClusterSpec) -> Iterator[Cluster]:
    """Join the ranks of this run, and leave them however the block ends.

    Raises:
        SpecError: a device or a backend that this machine does not have.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    device = choose_device(spec, int(os.environ.get("LOCAL_RANK", "0")))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world_size > 1:
        backend = spec.backend if spec.backend != "auto" else "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=TIMEOUT, device_id=device if backend == "nccl" else None)
    try:
        with _threads(spec.cpu_threads):
            yield Cluster(rank=this_rank(), world_size=world_size, device=device, spec=spec)
    finally:
        if world_size > 1:
            dist.destroy_process_group()


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """Within it torch and the data engine, which asks OMP_NUM_THREADS, compute with so many threads."""
    if number is None:
        yield
        return
    before, variable = torch.get_num_threads(), os.environ.get(_NUM_THREADS)
    torch.set_num_threads(number)
    os.environ[_NUM_THREADS] = str(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        os.environ.pop(_NUM_THREADS)
        if variable is not None:
            os.environ[_NUM_THREADS] = variable


def choose_device(spec: ClusterSpec, local_rank: int) -> torch.device:
    """The device of the rank that is number `local_rank` on this node.

    Raises:
        SpecError: CUDA or nccl is asked for where there is none, or a node has fewer GPUs than ranks.
    """
    available = torch.cuda.is_available()
    if spec.device == "cpu" or (spec.device == "auto" and not available):
        if spec.backend == "nccl":
            message = "nccl needs CUDA, and this machine has none"
            raise SpecError([Problem(path="cluster.backend", message=message, remedy="use gloo or auto")])
        return torch.device("cpu")
    if not available:
        message = "CUDA is asked for, but torch finds no usable GPU on this machine"
        remedy = "use `device: auto` or `cpu`, or install a torch build with CUDA and check nvidia-smi"
        raise SpecError([Problem(path="cluster.device", message=message, remedy=remedy)])
    num_gpus = torch.cuda.device_count()
    if local_rank >= num_gpus:
        message = f"rank {local_rank} of this node has no GPU of its own: there are {num_gpus}"
        remedy = f"start at most {num_gpus} ranks per node, or use `device: cpu`"
        raise SpecError([Problem(path="cluster.nproc_per_node", message=message, remedy=remedy)])
    return torch.device("cuda", local_rank)


def _sharding() -> ModuleType:
    """The module, imported by those who need it only: that takes a second."""
    from nanollama.cluster import sharding  # noqa: PLC0415

    return sharding


def _outcome(function: Callable[[], T]) -> tuple[T | None, tuple[Problem, ...]]:
    """The function's value, or the problems of the SpecError that it raised: something that can be sent to others."""
    try:
        return function(), ()
    except SpecError as error:
        return None, error.problems
