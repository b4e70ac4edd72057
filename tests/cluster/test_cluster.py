from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from nanollama.cluster.cluster import Cluster, accumulating, choose_device, leave, open_cluster
from nanollama.data.jit import default_threads
from nanollama.optim import build_optimizer, clip_gradient, update
from nanollama.spec.base import Problem, SpecError
from nanollama.spec.cluster import ClusterSpec
from nanollama.spec.optim import OptimSpec
from tests.support.ports import free_ports

WITHOUT_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")


def test_without_torchrun_there_is_one_rank_and_no_process_group() -> None:
    with open_cluster(ClusterSpec(device="cpu")) as cluster:
        assert (cluster.rank, cluster.world_size, cluster.device, cluster.first) == (0, 1, torch.device("cpu"), True)
        assert not dist.is_initialized()
        assert cluster.mean(torch.tensor([3.0])).tolist() == [3.0]
        assert cluster.gather("a") == ["a"]
        model = nn.Linear(2, 2)
        assert cluster.parallelise(model) is model
        with accumulating(model):
            pass


@WITHOUT_CUDA
@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (ClusterSpec(device="cuda"), "cluster.device: CUDA is asked for.*device: auto"),
        (ClusterSpec(backend="nccl"), "cluster.backend: nccl needs CUDA.*gloo"),
    ],
)
def test_what_the_machine_does_not_have_is_named(spec: ClusterSpec, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        choose_device(spec, 0)


def test_a_node_with_fewer_gpus_than_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device(ClusterSpec(), 1) == torch.device("cuda", 1)
    with pytest.raises(SpecError, match=r"nproc_per_node: rank 2 .* there are 2 - start at most 2"):
        choose_device(ClusterSpec(), 2)


def _fail_on(rank: int, cluster: Cluster) -> int:
    if cluster.rank == rank:
        raise SpecError([Problem(path="data.path", message=f"rank {rank} has no such file")])
    return cluster.rank * 10


def _rank(rank: int, directory: Path, monkey: dict[str, str]) -> None:
    """Body of one of two ranks; the parent sees a failed assertion as an exception."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**monkey, "RANK": str(rank), "LOCAL_RANK": str(rank)}.items():
            patch.setenv(name, value)
        with open_cluster(ClusterSpec(device="cpu")) as cluster:
            assert cluster.mean(torch.tensor([float(rank), 4.0])).tolist() == [0.5, 4.0]
            assert cluster.gather(rank) == [0, 1]
            assert cluster.from_first(lambda: f"of {rank}") == "of 0"
            assert cluster.together(lambda: _fail_on(7, cluster)) == rank * 10
            for function in (cluster.together, cluster.from_first):
                with pytest.raises(SpecError, match="rank 0 has no such file"):
                    function(lambda: _fail_on(0, cluster))
            with pytest.raises(SpecError, match="rank 1 has no such file"):
                cluster.together(lambda: _fail_on(1, cluster))
            _check_gradients(cluster)
        assert not dist.is_initialized()
        (directory / f"done{rank}").touch()
        leave(0)


def _check_gradients(cluster: Cluster) -> None:
    model = nn.Linear(1, 1, bias=False)
    parallel = cluster.parallelise(model)
    own = torch.full((1, 1), float(cluster.rank + 1))
    with accumulating(parallel):
        parallel(own).sum().backward()
    assert model.weight.grad is not None
    assert model.weight.grad.item() == cluster.rank + 1  # not exchanged yet
    parallel(own).sum().backward()
    assert model.weight.grad.item() == pytest.approx(3.0)  # the mean of 2 and 4
    assert parallel.module is model


class Stack(nn.Module):
    """As a learner is built: weights of its own around layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 5)
        self.layers = nn.ModuleList(nn.Linear(5, 5) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.hidden_states(x)[-1]

    def hidden_states(self, x: Tensor) -> list[Tensor]:
        states = [self.first(x)]
        for layer in self.layers:
            states.append(states[-1] + layer(states[-1]).relu())
        return states


def _train(cluster: Cluster, model: nn.Module, inputs: Tensor) -> tuple[list[float], torch.optim.AdamW]:
    """Norms of three steps, each of two micro-batches; the second step is lost."""
    parallel, norms = cluster.parallelise(model), []
    optimizer = build_optimizer(OptimSpec(steps=3, weight_decay=0.5), model)
    for step in range(3):
        with accumulating(parallel):
            parallel(inputs + step).square().mean().backward()
        parallel(inputs - step).square().mean().backward()
        norms.append(float(clip_gradient(model, 0.5)))
        update(optimizer, 0.01, torch.tensor(float(step == 1)))
    return norms, optimizer


def _shards(rank: int, directory: Path, monkey: dict[str, str]) -> None:
    """Two ranks with shards against one with all: updates, norms, a state saved whole, and loaded into shards."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**monkey, "RANK": str(rank), "LOCAL_RANK": str(rank)}.items():
            patch.setenv(name, value)
        torch.manual_seed(3)
        inputs, alone = torch.randn(4, 3), Stack()
        model, copy = deepcopy(alone), deepcopy(alone)
        expected, alone_optimizer = _train(Cluster(0, 1, torch.device("cpu")), alone, inputs)
        with open_cluster(ClusterSpec(device="cpu", parallel="fsdp")) as cluster:
            norms, optimizer = _train(cluster, model, inputs[rank * 2 : rank * 2 + 2])
            assert norms == pytest.approx(expected, rel=1e-5)
            assert model.first.weight.to_local().shape == (3 - rank, 3)  # type: ignore[operator]
            weights, state = cluster.whole(model.state_dict()), cluster.whole(optimizer.state_dict())
            if cluster.first:
                torch.testing.assert_close(weights, alone.state_dict())
                torch.testing.assert_close(state, alone_optimizer.state_dict())
                torch.save((weights, state), directory / "state.pt")
            cluster.from_first(lambda: None)
            weights, state = torch.load(directory / "state.pt", weights_only=True)
            cluster.parallelise(copy)
            copied = build_optimizer(OptimSpec(steps=3, weight_decay=0.5), copy)
            cluster.load(copy, weights)
            cluster.load_optimizer(copied, state)
            again = cluster.whole(copy.state_dict()), cluster.whole(copied.state_dict())
            if cluster.first:
                torch.testing.assert_close(again, (weights, state), rtol=0, atol=0)
        (directory / f"done{rank}").touch()
        leave(0)


def test_shards_train_as_one_and_are_saved_whole(tmp_path: Path) -> None:
    environment = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_ports(1)[0])}
    mp.spawn(_shards, args=(tmp_path, environment), nprocs=2, join=True)  # type: ignore[no-untyped-call]
    assert {path.name for path in tmp_path.iterdir()} == {"done0", "done1", "state.pt"}


def test_a_number_of_threads_is_obeyed_by_torch_and_the_engine_and_given_back() -> None:
    before = torch.get_num_threads(), default_threads()
    with open_cluster(ClusterSpec(device="cpu", cpu_threads=3)):
        assert (torch.get_num_threads(), default_threads()) == (3, 3)
    assert (torch.get_num_threads(), default_threads()) == before


def test_bfloat16_is_of_the_arithmetic_and_not_of_the_weights() -> None:
    model = nn.Linear(2, 2)
    for dtype in (torch.float32, torch.bfloat16):
        with open_cluster(ClusterSpec(device="cpu", dtype=str(dtype).removeprefix("torch."))) as cluster:
            with cluster.autocast():
                assert model(torch.ones(1, 2)).dtype == dtype
            assert model.weight.dtype == torch.float32


def test_two_ranks_agree(tmp_path: Path) -> None:
    environment = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_ports(1)[0])}
    mp.spawn(_rank, args=(tmp_path, environment), nprocs=2, join=True)  # type: ignore[no-untyped-call]
    assert {path.name for path in tmp_path.iterdir()} == {"done0", "done1"}
