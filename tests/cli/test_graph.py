from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from nanollama.spec.drawing import draw_graph
from nanollama.spec.gssm import GSSMSpec
from tests.support.examples import experiment

GRAPH = experiment()["data"]["gssm"]
PICTURE = draw_graph(GSSMSpec.model_validate(GRAPH))


def written(folder: Path, content: object) -> Path:
    path = folder / "config.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


@pytest.mark.parametrize(
    "content",
    [experiment(), GRAPH, {"gssm": GRAPH, "seq_len": 9, "sets": []}, experiment() | {"optim": "wrong elsewhere"}],
)
def test_any_config_with_a_graph_is_drawn(n2n, tmp_path, capsys, content):
    path = written(tmp_path, content)
    assert n2n("graph", path) == 0
    assert capsys.readouterr().out == PICTURE
    assert n2n("graph", path, "-o", "-") == 0
    assert capsys.readouterr().out == PICTURE


def test_a_file_is_written_and_replaced_whole(n2n, tmp_path, capsys):
    path = written(tmp_path, experiment())
    target = tmp_path / "graph.svg"
    target.write_text("old")
    assert n2n("graph", path, "-o", target) == 0
    assert capsys.readouterr().out == ""
    assert target.read_text() == PICTURE
    assert {p.name for p in tmp_path.iterdir()} == {"config.yaml", "graph.svg"}


def test_overrides_change_the_picture(n2n, tmp_path, capsys):
    assert n2n("graph", written(tmp_path, experiment()), "data.gssm.nodes.0.mode=slow") == 0
    assert ElementTree.fromstring(capsys.readouterr().out).find('.//*[@class="node latent slow"]') is not None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: 1", "config: there is no graph in this file - it should stand under `nodes`, `gssm.nodes` or"),
        ({"data": {"path": "some.h5"}}, "data.path: the graph of this config is in its data file, some.h5"),
        ("data:\n  gssm:\n    nodes:\n    - {name: X, state_dim: 2, alpha: 1}\n", "data.gssm.nodes (line 3, column 5)"),
        ("gssm:\n  nodes:\n  - {name: X, state_dim: 0, alpha: 1, observed: true}\n", "gssm.nodes.0.state_dim (line 3"),
        ("gssm: 3", "there is no graph in this file"),
        ("[1]", "expected a mapping"),
    ],
)
def test_what_is_wrong_is_named(n2n, tmp_path, capsys, content, message):
    assert n2n("graph", written(tmp_path, content), "-o", tmp_path / "graph.svg") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "graph.svg").exists()


def test_a_missing_config_and_an_impossible_target_are_named(n2n, tmp_path, capsys):
    assert n2n("graph", tmp_path / "none.yaml") == 2
    assert "cannot read" in capsys.readouterr().err
    assert n2n("graph", written(tmp_path, GRAPH), "-o", tmp_path / "none" / "graph.svg") == 2
    assert "output: cannot write" in capsys.readouterr().err
    assert n2n("graph", written(tmp_path, GRAPH), "-o", tmp_path) == 2
    assert "output: cannot write" in capsys.readouterr().err
