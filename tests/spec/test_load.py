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
from nanollama.spec.load import apply_override, expand_variables, load_config, read_document
from nanollama.spec.yaml_text import MAX_BYTES, LibyamlLoader, PythonLoader, dump_yaml, load_yaml, locate
from tests.support.examples import experiment
from tests.support.service import SPEC_YAML


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
    problem = only_problem("a: [1,\nb: 2")  # what is missing is missing at the end of the text, not beyond it
    assert (problem.line, problem.column) == (2, 5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "the key 'a' appears twice"),
        ("a: &x [1]\nb: *x", "aliases"),
        ("? [1, 2]\n: 3", "plain word"),
        ("a: !!python/object/apply:os.system ['true']", "broken YAML"),
        ("a: \x00", "not YAML"),
        ("a: !!int word", "this is no int"),
        ("a: !!bool maybe", "this is no bool"),
        ("a: !!set {b}", "could not determine a constructor"),
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


# -- libyaml and PyYAML's own parser -----------------------------------------------------------------------------------


def outcome(text: str, loader: Any) -> Any:
    """What a loader makes of a text: the value, or the place of what is wrong with it."""
    try:
        return repr(yaml.load(text, Loader=loader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        assert mark is not None
        return mark.line + 1, mark.column + 1
    except (yaml.YAMLError, RecursionError) as error:
        return type(error).__name__


def test_libyaml_is_here() -> None:
    assert LibyamlLoader.__mro__[2].__name__ == "Composer"
    assert "CParser" in [base.__name__ for base in LibyamlLoader.__mro__]


@pytest.mark.parametrize(
    "text",
    [
        *(
            "1e-3",
            ".5",
            "-.inf",
            "1_000",
            "0x10",
            "0o7",
            "1:30",
            "no",
            "True",
            "~",
            "",
            "2026-11-24",
            "<<: {a: 1}\nb: 2",
        ),
        *("a: |\n  x\n  y\n", "a: >-\n  x\n  y\n", "'it''s'", '"\\u00e9\\t"', "# nothing", "--- 1\n...\n"),
        *("a: 1\nb: [1, 2\nc: 3\n", "a: 1\n b: 2", "a:\n  - 1\n - 2", "a: 'open\nb: 1", "a: b: c", "- 1\na: 2"),
        *(
            "a: 1\nb: 2\na: 3",
            "{a: {b: 1, b: 2}}",
            "a: &x [1]\nb: *x",
            "a: *nowhere",
            "&a [*a]",
            "? [1]\n: 3",
            "? {}\n: 3",
        ),
        *(
            "a: !!timestamp 2026-11-24",
            "a: !!binary x",
            "a: !!set {b}",
            "a: !!omap [b: 1]",
            "a: !!int x",
            "a: !!bool x",
        ),
        *("a: !!int ''", "a: !!python/name:os.system", "a: !mine 3", "a: 1\n---\nb: 2", "a: @b", "%x", "a: \x00"),
        *("[" * 5000, "{a: " * 5000, "- " * 5000),
    ],
    ids=lambda text: text[:20],
)
def test_both_parsers_say_the_same_of_right_and_wrong_texts(text: str) -> None:
    assert outcome(text, LibyamlLoader) == outcome(text, PythonLoader)


Plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["1e-3", "no", "on", "="])
Data = st.recursive(
    Plain, lambda some: st.lists(some) | st.dictionaries(st.text() | st.integers() | st.booleans(), some)
)


@settings(deadline=None)
@given(data=Data, flow=st.sampled_from([None, True, False]), style=st.sampled_from([None, '"', "'", "|", ">"]))
def test_both_parsers_read_the_same_values(data: Any, flow: bool | None, style: str | None) -> None:
    text = yaml.dump(data, Dumper=NoAliases, default_flow_style=flow, default_style=style, allow_unicode=True)
    assert outcome(text, LibyamlLoader) == outcome(text, PythonLoader)
    assert outcome(dump_yaml({"a": data}), LibyamlLoader) == outcome(dump_yaml({"a": data}), PythonLoader)


class NoAliases(yaml.SafeDumper):
    """PyYAML's own writer, in any style, but for aliases, which are refused."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - the base class names it
        return True


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_both_parsers_find_the_same_fault_of_a_config_on_the_same_line(data: st.DataObject) -> None:
    """Tabs apart, and colons within words of flow collections, where libyaml keeps to another letter of YAML 1.1."""
    place = data.draw(st.integers(0, len(SPEC_YAML) - 1))
    wrong = data.draw(st.sampled_from(["", " ", "\n", "-", "- ", "]", "'", "#", "&a ", "*a", "\n\n", "@"]))
    text = SPEC_YAML[:place] + wrong + SPEC_YAML[place + data.draw(st.integers(0, 1)) :]
    ours, theirs = outcome(text, LibyamlLoader), outcome(text, PythonLoader)
    assert (ours[0] if isinstance(ours, tuple) else ours) == (theirs[0] if isinstance(theirs, tuple) else theirs)
