"""Reading configs: numbers, duplicates, lines and columns, overrides, variables, limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from nanollama.spec.base import Problem, SpecError, parse
from nanollama.spec.experiment import ExperimentSpec
from nanollama.spec.load import (
    MAX_BYTES,
    apply_override,
    dump_yaml,
    expand_variables,
    load_config,
    load_yaml,
    locate,
    read_document,
)
from tests.support.examples import experiment


def only_problem(text: str | bytes) -> Problem:
    with pytest.raises(SpecError) as caught:
        load_yaml(text)
    (problem,) = caught.value.problems
    return problem


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E3", 1000.0),
        ("+1.5e+3", 1500.0),
        (".5", 0.5),
        ("1_000", 1000),
        ("1_000.5", 1000.5),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("2026-11-24", "2026-11-24"),
        ("1.2.3", "1.2.3"),
        ("e3", "e3"),
    ],
)
def test_plain_words(text: str, value: object) -> None:
    loaded = load_yaml(text)
    assert loaded == value
    assert type(loaded) is type(value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_survive(value: float) -> None:
    loaded = load_yaml(repr(value))
    assert loaded == value
    assert isinstance(loaded, float)


def test_broken_yaml_has_line_and_column() -> None:
    problem = only_problem("a: 1\nb: [1, 2\nc: 3\n")
    assert (problem.line, problem.column) == (3, 2)
    assert "broken YAML" in problem.message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "the key 'a' appears twice"),
        ("a: &x [1]\nb: *x", "aliases"),
        ("? [1, 2]\n: 3", "plain word"),
        ("a: !!python/object/apply:os.system ['true']", "broken YAML"),
        ("a: \x00", "not YAML"),
        ("[" * 5000, "nested too deeply"),
    ],
)
def test_refused_yaml(text: str, message: str) -> None:
    assert message in only_problem(text).message


def test_text_that_is_not_utf8() -> None:
    assert "not UTF-8" in only_problem(b"a: \xff\xfe").message


def test_a_config_of_five_megabytes_is_refused_with_the_limit(tmp_path: Path) -> None:
    problem = only_problem("a: " + "x" * 5_000_000)
    assert f"{MAX_BYTES:,}" in problem.message
    path = tmp_path / "big.yaml"
    path.write_text("a: " + "x" * 5_000_000)
    with pytest.raises(SpecError, match="1,048,576"):
        read_document([f"config={path}"])


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"nowhere\.yaml: No such file"):
        read_document([f"config={tmp_path / 'nowhere.yaml'}"])


def test_a_directory_is_no_config(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="Is a directory"):
        read_document([f"config={tmp_path}"])


def test_problems_are_located_in_the_text() -> None:
    text = "data:\n  seq_len: 1\nmodel: {emb_dim: 64}\noptm: 3\n"
    with pytest.raises(SpecError) as caught:
        parse(ExperimentSpec, load_yaml(text))
    found = {p.path: (p.line, p.column) for p in locate(text, caught.value.problems)}
    assert found["data.seq_len"] == (2, 3)
    assert found["data.batch_size"] == (1, 1)
    assert found["model.nb_layers"] == (3, 1)
    assert found["optm"] == (4, 1)
    assert found["optim"] == (None, None)


def test_overrides() -> None:
    data: dict[str, Any] = {"a": {"b": 1}, "nodes": [{"alpha": 1}, {"alpha": 2}]}
    for argument in ("a.b=1e-3", "a.c.d=[1, 2]", "nodes.1.alpha=7", "new=text", "empty="):
        apply_override(data, argument)
    assert data == {
        "a": {"b": 1e-3, "c": {"d": [1, 2]}},
        "nodes": [{"alpha": 1}, {"alpha": 7}],
        "new": "text",
        "empty": None,
    }


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("steps", "cannot read the argument"),
        ("=3", "cannot read the argument"),
        ("nodes.2.alpha=1", "not an index into a list of 1"),
        ("nodes.x.alpha=1", "not an index"),
        ("a.b=1", "a is a plain value"),
        ("none.b=1", "none is empty"),
        ("a=[1", "^a: broken YAML"),
    ],
)
def test_bad_overrides(argument: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        apply_override({"a": 1, "nodes": [{}], "none": None}, argument)


def test_variables() -> None:
    data = {"path": "/data/$USER/${SET}.h5", "n": 3, "list": ["$USER"]}
    expanded = expand_variables(data, {"USER": "ada", "SET": "train"})
    assert expanded == {"path": "/data/ada/train.h5", "n": 3, "list": ["ada"]}
    with pytest.raises(SpecError) as caught:
        expand_variables(data, {})
    assert [p.path for p in caught.value.problems] == ["path", "path", "list.0"]


def test_load_config_names_lines_of_the_file_but_not_of_arguments(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    data = experiment()
    data["model"]["emb_dim"] = 0
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(SpecError) as caught:
        load_config(ExperimentSpec, [f"config={path}", "optim.steps=0", "data.gssm.nodes.1={name: Y}"])
    lines = {p.path: p.line for p in caught.value.problems}
    assert lines["optim.steps"] is None
    assert lines["data.gssm.nodes.1.alpha"] is None
    assert lines["model.emb_dim"] is not None


def test_two_config_files_are_refused() -> None:
    with pytest.raises(SpecError, match="more than once"):
        read_document(["config=a", "config=b"])


def test_dump_and_load_round_trip() -> None:
    spec = parse(ExperimentSpec, experiment())
    assert parse(ExperimentSpec, load_yaml(dump_yaml(spec))) == spec


@settings(deadline=None)
@given(
    text=st.one_of(
        st.text(),
        st.from_regex(r"[-+.0-9eE_]{1,6}", fullmatch=True),
        st.sampled_from(["no", "1e5", "~", "\x85", "\u2028"]),
    )
)
def test_any_string_is_dumped_so_that_it_is_read_back_as_that_string(text: str) -> None:
    data = {"name": text, "list": [text, text]}
    assert load_yaml(dump_yaml(data)) == data
