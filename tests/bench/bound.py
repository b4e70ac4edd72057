"""The exact bound of whole batches, beside a dense S x S step in log space, and what it costs where it is used."""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from nanollama.data.filter import Filter
from nanollama.data.gssm import Kernels, draw_kernels, joint_table
from nanollama.data.loader import build_loader
from nanollama.data.sampler import Sampler
from nanollama.model.build import build_model
from nanollama.optim import build_optimizer, clip_gradient
from nanollama.spec.experiment import ExperimentSpec
from nanollama.spec.gssm import GSSMSpec
from nanollama.spec.load import load_config
from tests.bench.timing import Row, interleaved

ROOT = Path(__file__).resolve().parents[2]
SYMBOLS, LENGTH = 32, 256
DENSE_LENGTH = 3  # positions of the single sequence that the dense way scores, from which its time is scaled


def bench_bound() -> list[Row]:
    """Graphs of 4,096 and of 2^20 joint states, the debug config's step, and a process from its start."""
    graphs = [("one latent of 4,096 states", [4096], 1.7e-4, "0.7 s"), ("64 x 64 states", [64] * 2, 6e-3, "0.4 s")]
    graphs.append(("8^4 states", [8] * 4, 2e-2, "0.4 s"))
    rows = [_graph(name, sizes, alpha, goal) for name, sizes, alpha, goal in graphs]
    return [*rows, _million(), _training_step(), _first_call()]


def _graph(name: str, sizes: list[int], alpha: float, goal: str) -> Row:
    kernels = draw_kernels(_independent(sizes, alpha), seed=0)
    tokens = Sampler(kernels, 0, "bench").sample(range(64), LENGTH)
    model = Filter(kernels)
    dense = _dense(kernels)
    few = torch.from_numpy(tokens[:1, :DENSE_LENGTH].astype(np.int64))
    ours, part = interleaved([lambda: model.log_likelihood(tokens), lambda: _dense_nll(*dense, few)], repeat=3)
    difference = abs(model.log_likelihood(tokens[:1, :DENSE_LENGTH]).sum() + float(_dense_nll(*dense, few)[0]))
    assert difference < 1e-8, difference
    scaled = part * 64 * (LENGTH - 1) / (DENSE_LENGTH - 1)
    work = f"exact bound, {name}, 64 x {LENGTH} tokens"
    beside = f"dense in log space {scaled:,.0f} s, scaled from 1 x {DENSE_LENGTH}"
    return Row(work, f"{ours:.2f} s", beside, f"{scaled / ours:,.0f} x", f"{goal}")


def _million() -> Row:
    """In a process of its own, whose largest memory is asked for at the end."""
    program = (
        "import json, resource, time; from tests.bench.bound import million_tokens; "
        "kernels, tokens = million_tokens(); from nanollama.data.filter import Filter; start = time.perf_counter(); "
        "nll = -Filter(kernels).log_likelihood(tokens).mean(); seconds = time.perf_counter() - start; "
        "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024; print(json.dumps([seconds, peak, nll]))"
    )
    seconds, peak, nll = json.loads(_python(program))
    assert math.isfinite(nll)
    work = f"exact bound, 16^5 = 1,048,576 states, 16 x {LENGTH} tokens"
    beside = f"dense: {2**40 * 8 / 2**40:.0f} TiB for its transitions"
    return Row(work, f"{seconds:.1f} s, {peak / 2**30:.2f} GiB at most", beside, "", "60 s, 3 GB")


def million_tokens() -> tuple[Kernels, NDArray[np.integer]]:  # type: ignore[type-arg]
    """Kernels of five latents of 16 states, and sequences from them."""
    kernels = draw_kernels(_independent([16] * 5, 0.1), seed=0)
    return kernels, Sampler(kernels, 0, "bench").sample(range(16), LENGTH)


def _training_step() -> Row:
    """The bound of a batch beside the step that trains on it, in turns."""
    spec = load_config(ExperimentSpec, [f"config={ROOT / 'configs/gssm/debug.yaml'}"])
    loader = build_loader(spec.data, rank=0, world_size=1)
    torch.manual_seed(0)
    model = build_model(spec.model, loader.vocab_size)
    optimizer = build_optimizer(spec.optim, model)
    tokens = loader.batch(0)
    scorer = loader.scorer
    assert scorer is not None

    def step() -> None:
        logits = model(tokens[:, :-1])
        functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()  # type: ignore[no-untyped-call]
        clip_gradient(model, spec.optim.clip)
        optimizer.step()
        optimizer.zero_grad()

    ours, training = interleaved([lambda: scorer.nll(tokens), step], repeat=21)
    beside = f"bare training step {training * 1e3:.1f} ms"
    work = f"exact bound of the debug config's batch, {len(tokens)} x {loader.seq_len} tokens"
    return Row(work, f"{ours * 1e3:.2f} ms", beside, f"{ours / training:.1%} of it", "5 %")


def _first_call() -> Row:
    """From the start of the interpreter to the first score, compiled before."""
    scored = (
        "from nanollama.data.filter import Filter; from nanollama.data.gssm import draw_kernels; "
        "from nanollama.spec.gssm import GSSMSpec; "
        "nodes = [dict(name='Z', state_dim=8, alpha=0.1), "
        "dict(name='X', state_dim=16, alpha=0.1, parents=['Z'], observed=True)]; "
        "kernels = draw_kernels(GSSMSpec.model_validate(dict(nodes=nodes)), 0); "
        "print(Filter(kernels).log_likelihood([[0, 1, 2]]))"
    )
    _python(scored)
    ours, beside = _seconds(scored), _seconds("import torch")
    return Row("import and first bound in a new process", f"{ours:.2f} s", f"import torch {beside:.2f} s", "", "1 s")


def _seconds(program: str) -> float:
    times = []
    for _ in range(5):
        start = time.perf_counter()
        _python(program)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _python(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout


def _independent(sizes: list[int], alpha: float) -> GSSMSpec:
    names = [f"Z{i}" for i in range(len(sizes))]
    latents = [{"name": n, "state_dim": size, "alpha": alpha} for n, size in zip(names, sizes, strict=True)]
    observed = {"name": "X", "state_dim": SYMBOLS, "alpha": 1e-2, "parents": names, "observed": True}
    return GSSMSpec.model_validate({"nodes": [*latents, observed]})


def _dense(kernels: Kernels) -> tuple[torch.Tensor, torch.Tensor]:
    """log P(z_t | z_t-1) of shape [S, S] and log P(x | z) of shape [S, V], of independent latents."""
    dense = np.ones((1, 1))
    for node in kernels.spec.nodes[:-1]:
        dense = np.kron(dense, kernels.tables[node.name][0])
    emission = joint_table(kernels, "X").reshape(len(dense), -1)
    return torch.from_numpy(dense).log(), torch.from_numpy(emission).log()


def _dense_nll(transition: torch.Tensor, emission: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    log_joint = torch.full((len(tokens), len(transition)), -math.inf, dtype=torch.float64)
    log_joint[:, 0] = 0
    for t in range(1, tokens.shape[1]):
        log_joint = torch.logsumexp(log_joint[:, :, None] + transition[None], dim=1) + emission[:, tokens[:, t]].T
    return -torch.logsumexp(log_joint, dim=1)
