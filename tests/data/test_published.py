from __future__ import annotations

import re
from pathlib import Path

import pytest

from nanollama.data.calibration import mean_entropy
from nanollama.spec.experiment import ExperimentSpec
from nanollama.spec.load import load_config

PUBLISHED = sorted((Path(__file__).parents[2] / "configs" / "gssm" / "published").glob("*.yaml"))
CLAIMS = {"low": (1.2, 0.1), "high": (2.05, 0.15)}
ALPHA_X = {"low": 1e-2, "high": 5e-2}
ALPHA_Z = {"1x1024": 7e-4, "1x512": 1.5e-3, "1x256": 3e-3, "2x64": 6e-3, "4x8": 2e-2}


def loaded(path: Path) -> ExperimentSpec:
    return load_config(ExperimentSpec, [f"config={path}"])


def mean(path: Path, *, num_sequences: int) -> float:
    data = loaded(path).data
    return mean_entropy(data.gssm, data.seq_len, seeds=10, num_sequences=num_sequences).mean


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_every_file_holds_the_published_graph_under_its_question(path):
    spec = loaded(path)
    graph, level = path.stem.rsplit("_", 1)
    size, _, kernel_type = graph.partition("_")
    count, states = (int(n) for n in size.split("x"))
    *latents, observed = spec.data.gssm.nodes
    assert [(node.state_dim, node.alpha, node.parents) for node in latents] == [(states, ALPHA_Z[size], ())] * count
    assert (observed.state_dim, observed.alpha, observed.kernel_type) == (32, ALPHA_X[level], kernel_type or "product")
    assert observed.parents == tuple(node.name for node in latents)
    assert spec.data.seq_len == 256
    first = path.read_text().splitlines()[0]
    assert re.fullmatch(r"# [A-Z].*\?", first)


def test_there_is_a_file_for_each_graph_and_level():
    graphs = ["1x1024", "1x256", "1x512", "2x64_fullrank", "2x64_product", "4x8_fullrank", "4x8_product"]
    assert [path.stem for path in PUBLISHED] == [f"{graph}_{level}" for graph in graphs for level in ("high", "low")]


@pytest.mark.parametrize("level", CLAIMS)
def test_the_smallest_single_latent_has_the_published_entropy(level):
    path = next(path for path in PUBLISHED if path.stem == f"1x256_{level}")
    claim, margin = CLAIMS[level]
    assert abs(mean(path, num_sequences=8) - claim) < margin


@pytest.mark.slow
@pytest.mark.parametrize("path", [p for p in PUBLISHED if p.stem.startswith("1x")], ids=lambda path: path.stem)
def test_single_latents_have_the_published_entropy(path):
    claim, margin = CLAIMS[path.stem.rsplit("_", 1)[1]]
    assert abs(mean(path, num_sequences=64) - claim) < margin
