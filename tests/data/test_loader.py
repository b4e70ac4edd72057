from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanollama.data import loader as module
from nanollama.data.bounds import Scorer
from nanollama.data.device_sampler import DeviceSampler
from nanollama.data.gssm import draw_kernels
from nanollama.data.hdf5 import DatasetReader, DatasetWriter
from nanollama.data.loader import build_loader, faster_on_device
from nanollama.data.sampler import Sampler
from nanollama.spec.base import SpecError
from nanollama.spec.data import FileData, OnlineData
from nanollama.spec.gssm import GSSMSpec, NodeSpec

SPEC = GSSMSpec(
    nodes=(
        NodeSpec(name="Z", state_dim=3, alpha=0.3),
        NodeSpec(name="X", state_dim=6, alpha=0.3, parents=("Z",), observed=True),
    )
)
ONLINE = OnlineData(seq_len=9, batch_size=12, seed=5, gssm=SPEC)


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("sets") / "train.h5"
    kernels = draw_kernels(SPEC, 5)
    with DatasetWriter(path, kernels, split="train", seq_len=9) as writer:
        writer.append(Sampler(kernels, 5, "train").sample(range(50), 9))
    return path


@pytest.fixture(params=["online", "file", "large file"])
def data(request, path, monkeypatch) -> OnlineData | FileData:
    if request.param == "large file":
        monkeypatch.setattr(module, "_RESIDENT_BYTES", 0)
    return ONLINE if request.param == "online" else FileData(path=str(path), batch_size=12, seed=1)


def test_a_batch_has_the_documented_form(data):
    loader = build_loader(data, rank=1, world_size=3)
    batch = loader.batch(0)
    assert batch.shape == (4, 9)
    assert batch.dtype == torch.long
    assert (batch[:, 0] == 0).all()
    assert (loader.seq_len, loader.vocab_size, loader.scorer_note) == (9, 6, "")
    assert loader.scorer is not None
    expected = Scorer(draw_kernels(SPEC, 5)).nll(batch)
    assert torch.equal(loader.scorer.nll(batch), expected)


@pytest.mark.parametrize("world_size", [2, 3, 12])
def test_the_ranks_share_the_same_global_batch(data, world_size):
    alone = build_loader(data, rank=0, world_size=1)
    ranks = [build_loader(data, rank=rank, world_size=world_size) for rank in range(world_size)]
    for step in (0, 1, 7, 23):
        assert torch.equal(torch.cat([loader.batch(step) for loader in ranks]), alone.batch(step))


def test_a_restart_continues_exactly(data):
    first = build_loader(data, rank=0, world_size=2)
    batches = [first.batch(step) for step in range(12)]
    again = build_loader(data, rank=0, world_size=2)
    for step in (11, 5, 6, 0):
        assert torch.equal(again.batch(step), batches[step])


def test_online_step_k_has_the_kth_sequences_of_the_training_split():
    loader = build_loader(ONLINE, rank=0, world_size=1)
    sampler = Sampler(draw_kernels(SPEC, 5), 5, "train")
    assert np.array_equal(loader.batch(3).numpy(), sampler.sample(range(36, 48), 9))


@settings(deadline=None, max_examples=30)
@given(batch_size=st.integers(1, 20), n_data=st.integers(20, 50), seed=st.integers(0, 2**63 - 1))
def test_each_epoch_of_a_file_visits_each_sequence_once(path, batch_size, n_data, seed):
    data = FileData(path=str(path), n_data=n_data, batch_size=batch_size, seed=seed)
    loader = build_loader(data, rank=0, world_size=1)
    steps = -(-3 * n_data // batch_size)
    stream = torch.cat([loader.batch(step) for step in range(steps)])[: 3 * n_data].reshape(3, n_data, 9)
    expected = np.sort(DatasetReader(path).read(slice(0, n_data)).astype(np.int64), axis=0)
    whole = sorted(map(tuple, DatasetReader(path).read(slice(0, n_data)).tolist()))
    assert expected.shape == (n_data, 9)
    epochs = [list(map(tuple, epoch.tolist())) for epoch in stream]
    for epoch in epochs:
        assert sorted(epoch) == whole
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_order_depends_on_the_seed(path):
    orders = [
        build_loader(FileData(path=str(path), batch_size=50, seed=seed), rank=0, world_size=1).batch(0)
        for seed in (0, 1)
    ]
    assert not torch.equal(orders[0], orders[1])


def problem(data: OnlineData | FileData, world_size: int = 1):
    with pytest.raises(SpecError) as caught:
        build_loader(data, rank=0, world_size=world_size)
    (found,) = caught.value.problems
    return found


def test_what_a_file_cannot_give_is_refused_at_its_key(path, tmp_path):
    file = str(path)
    found = problem(FileData(path=file, n_data=51, batch_size=4))
    assert (found.path, found.remedy) == ("data.n_data", "use at most 50")
    assert "n_data 51 is more than the 50 sequences" in found.message
    found = problem(FileData(path=file, batch_size=51))
    assert (found.path, found.remedy) == ("data.batch_size", "use at most 50, or a larger file")
    found = problem(FileData(path=file, n_data=10, batch_size=11))
    assert (found.path, found.remedy) == ("data.batch_size", "use at most 10, or a larger file")
    made_of = DatasetReader(file).kernels_hash
    other = ("0" if made_of[0] != "0" else "1") + made_of[1:8]
    found = problem(FileData(path=file, batch_size=4, kernels_hash=other))
    assert (found.path, found.message) == (
        "data.kernels_hash",
        f"{file} is made of the kernels {made_of}, not of {other}",
    )
    build_loader(FileData(path=file, batch_size=4, kernels_hash=made_of[:8]), rank=0, world_size=1)
    found = problem(FileData(path=str(tmp_path / "none.h5"), batch_size=4))
    assert found.path == "data.path"
    assert "there is no file" in found.message


def test_a_batch_that_cannot_be_shared_out_is_refused(data):
    found = problem(data, world_size=5)
    assert (found.path, found.remedy) == ("data.batch_size", "use a multiple of 5")


def test_graphs_without_an_exact_score_train_without_a_scorer():
    context = GSSMSpec(nodes=(SPEC.nodes[0].model_copy(update={"mode": "context"}), SPEC.nodes[1]))
    loader = build_loader(ONLINE.model_copy(update={"gssm": context}), rank=0, world_size=1)
    assert loader.scorer is None
    assert "context mode ('Z')" in loader.scorer_note
    names = [f"Z{i}" for i in range(9)]
    latents = [NodeSpec(name=n, state_dim=8, alpha=0.3) for n in names]
    huge = GSSMSpec(nodes=(*latents, SPEC.nodes[1].model_copy(update={"parents": ("Z0", "Z1")})))
    loader = build_loader(ONLINE.model_copy(update={"gssm": huge}), rank=0, world_size=1)
    assert loader.scorer is not None, "latents that do not reach the tokens cost nothing"
    huge = GSSMSpec(nodes=(*latents, SPEC.nodes[1].model_copy(update={"parents": tuple(names)})))
    loader = build_loader(ONLINE.model_copy(update={"gssm": huge}), rank=0, world_size=1)
    assert loader.scorer is None
    assert loader.scorer_note.count("the exact bound is out of reach: 8 x 8") == 1
    assert " multiplications a token, over " in loader.scorer_note
    assert " bytes for a single sequence, over " in loader.scorer_note
    assert loader.scorer_note.endswith(" - use fewer or smaller latents, or fewer parents")
    assert loader.batch(0).shape == (12, 9)


def test_of_two_samplers_the_faster_one_draws_and_the_tokens_are_the_same(monkeypatch):
    sampler = Sampler(draw_kernels(SPEC, 5), 5, "train")
    alone = build_loader(ONLINE, rank=1, world_size=2)
    expected = [alone.batch(step) for step in range(3)]
    times = iter([2.0, 1.0, 1.0, 2.0])
    monkeypatch.setattr(module, "_seconds", lambda _: next(times))
    assert faster_on_device(sampler, "cpu", 6, 9) is None
    alone._device_sampler = faster_on_device(sampler, "cpu", 6, 9)
    assert isinstance(alone._device_sampler, DeviceSampler)
    for step, batch in enumerate(expected):
        assert torch.equal(alone.batch(step), batch)


def test_samplers_are_compared_by_what_they_draw():
    sampler = Sampler(draw_kernels(SPEC, 5), 5, "train")
    assert faster_on_device(sampler, "cpu", 2, 70) is None, "on the CPU compiled loops win by far"


def test_a_sampler_that_finds_no_memory_on_the_device_leaves_the_cpu_to_draw(monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(module, "DeviceSampler", full)
    assert faster_on_device(Sampler(draw_kernels(SPEC, 5), 5, "train"), "cpu", 6, 9) is None


def test_a_formula_that_may_not_hold_is_no_scorer():
    nodes = (NodeSpec(name="X", state_dim=9, alpha=1e-6, kernel_type="fullrank", mode="context", observed=True),)
    data = ONLINE.model_copy(update={"gssm": GSSMSpec(nodes=nodes), "seq_len": 100})
    loader = build_loader(data, rank=0, world_size=1)
    assert loader.scorer is None
    assert loader.scorer_note.startswith("alpha = 1e-06: the floor of the kernels")
    nodes = (nodes[0].model_copy(update={"alpha": 0.1}),)
    loader = build_loader(data.model_copy(update={"gssm": GSSMSpec(nodes=nodes)}), rank=0, world_size=1)
    assert loader.scorer is not None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_for_a_gpu_are_those_of_the_cpu():
    data = ONLINE.model_copy(update={"batch_size": 2**15})
    assert torch.equal(
        build_loader(data, rank=0, world_size=1, device="cuda").batch(1).cpu(),
        build_loader(data, rank=0, world_size=1).batch(1),
    )


def test_the_device_is_tried_only_where_nothing_draws_ahead(monkeypatch):
    tried = []
    monkeypatch.setattr(module, "Scorer", lambda *_, **__: None)
    monkeypatch.setattr(module, "faster_on_device", lambda _, *wanted: tried.append(wanted))
    for prefetch, device in ((0, "cpu"), (2, "cuda"), (0, "cuda")):
        build_loader(ONLINE.model_copy(update={"prefetch": prefetch}), rank=0, world_size=2, device=device)
    assert tried == [("cuda", 6, 9)]
