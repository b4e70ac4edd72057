from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from nanollama.cluster.cluster import Cluster, accumulating, choose_device, leave, open_cluster
from nanollama.spec.base import Problem, SpecError
from nanollama.spec.cluster import ClusterSpec
from tests.support.ports import free_ports

WITHOUT_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")


def test_without_torchrun_there_is_one_rank_and_no_process_group() -> None:
    with open_cluster(ClusterSpec(device="cpu")) as cluster:
        assert (cluster.rank, cluster.world_size, cluster.device, cluster.first) == (0, 1, torch.device("cpu"), True)
        assert not dist.is_initialized()
        assert cluster.mean(torch.tensor([3.0])).tolist() == [3.0]
        assert cluster.gather("a") == ["a"]
        model = nn.Linear(2, 2)
        assert cluster.parallelise(model, compile_model=False) is model
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
    parallel = cluster.parallelise(model, compile_model=False)
    own = torch.full((1, 1), float(cluster.rank + 1))
    with accumulating(parallel):
        parallel(own).sum().backward()
    assert model.weight.grad is not None
    assert model.weight.grad.item() == cluster.rank + 1  # not exchanged yet
    parallel(own).sum().backward()
    assert model.weight.grad.item() == pytest.approx(3.0)  # the mean of 2 and 4
    assert parallel.module is model


def test_two_ranks_agree(tmp_path: Path) -> None:
    environment = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_ports(1)[0])}
    mp.spawn(_rank, args=(tmp_path, environment), nprocs=2, join=True)  # type: ignore[no-untyped-call]
    assert {path.name for path in tmp_path.iterdir()} == {"done0", "done1"}
