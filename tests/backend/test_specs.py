"""Validation and templates."""

from __future__ import annotations

from pathlib import Path

import pytest

from backend.specs.service import read_sweep, validate_spec
from backend.specs.templates import templates
from nanollama.api.schemas import SpecInput
from nanollama.spec.base import Problem, SpecError
from nanollama.spec.yaml_text import MAX_BYTES, load_yaml
from tests.support.service import SPEC_YAML


def problems(yaml: str | None = None, config: object = None) -> dict[str, Problem]:
    given = SpecInput.model_validate({"yaml": yaml} if config is None else {"config": config})
    found = validate_spec(given)
    assert found.valid == (not found.problems)
    return {problem.path: problem for problem in found.problems}


def line_of(text: str) -> int:
    return next(i for i, line in enumerate(SPEC_YAML.splitlines(), 1) if text in line)


def test_a_valid_spec_is_resolved_in_full() -> None:
    found = validate_spec(SpecInput(yaml=SPEC_YAML))
    assert found.valid
    assert found.config is not None
    assert found.config["optim"]["lr"] == 3e-4
    assert found.config_hash == validate_spec(SpecInput(config=load_yaml(SPEC_YAML))).config_hash
    assert found.config_hash == validate_spec(SpecInput(config=found.config)).config_hash


def test_every_problem_at_once_with_its_place() -> None:
    text = (
        SPEC_YAML.replace("emb_dim: 16", "emb_dim: 15")
        .replace("steps: 100", "steps: many")
        .replace("warmup", "warm_up")
        .replace("parents: [z]", "parents: [zz]")
        .replace("seq_len: 16", "seq_len: 1")
    )
    found = problems(text)
    assert set(found) == {
        "data.seq_len",
        "data.gssm.nodes.1.parents.0",
        "model.emb_dim",
        "optim.steps",
        "optim.warm_up",
    }
    assert found["optim.warm_up"].remedy == "did you mean 'warmup'?"
    assert found["data.gssm.nodes.1.parents.0"].line == line_of("name: x")
    assert found["optim.steps"].line == line_of("steps")
    assert found["optim.steps"].column == 3


def test_problems_across_sections() -> None:
    assert set(problems(SPEC_YAML.replace("batch_size: 8", "batch_size: 7") + "cluster: {nproc_per_node: 2}\n")) == {
        "data.batch_size"
    }
    assert set(problems(SPEC_YAML.replace("warmup: 10", "warmup: 101"))) == {"optim.warmup"}


def test_broken_yaml_has_line_and_column() -> None:
    found = problems("data:\n  seq_len: [1\nmodel: x\n")
    assert (found[""].line, found[""].column) == (3, 6)
    twice = problems(SPEC_YAML + "optim: {}\n")[""]
    assert "'optim' appears twice" in twice.message
    assert twice.line == len(SPEC_YAML.splitlines()) + 1


@pytest.mark.parametrize("text", ["", "- 1\n", "just text", "null", "42"])
def test_documents_that_are_no_mapping(text: str) -> None:
    assert "expected a mapping" in problems(text)[""].message


def test_too_large() -> None:
    assert f"{MAX_BYTES:,}" in problems("# " + "x" * 5_000_000)[""].message
    found = problems(config={"notes": "x" * MAX_BYTES})
    assert f"{MAX_BYTES:,}" in found[""].message


def test_too_many_problems_to_read() -> None:
    found = validate_spec(SpecInput(yaml="".join(f"key{i}: 1\n" for i in range(1000))))
    assert len(found.problems) == 201
    assert found.problems[-1].message == "803 more problems are not listed"  # 1000 keys, and 3 sections are missing
    assert found.problems[150].line is not None


def test_too_deep() -> None:
    nested: object = 1
    for _ in range(20_000):
        nested = [nested]
    with pytest.raises(SpecError, match="nested too deeply"):
        read_sweep(SpecInput.model_construct(yaml=None, config={"data": nested}))
    assert "nested too deeply" in problems("[" * 1500)[""].message


def test_variables_are_not_expanded_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "value-of-the-server")
    text = SPEC_YAML + "  log_dir: $SECRET/${OTHER}\n"
    found = problems(text)
    assert set(found) == {"orchestration.log_dir"}
    problem = found["orchestration.log_dir"]
    assert "$SECRET" in problem.message
    assert "n2n submit" in (problem.remedy or "")
    assert problem.line == len(text.splitlines())
    assert "value-of-the-server" not in str(problem)
    config = load_yaml(text)
    config["optim"]["stepz"] = 1
    assert set(problems(config=config)) == {"orchestration.log_dir", "optim.stepz"}


def test_odd_text_is_shown_in_a_form_that_can_be_sent() -> None:
    found = validate_spec(
        SpecInput(yaml='"\\ud800": "\\ud800"\nmodel: "\\0"\noptim: !!binary aGk=\ndata: !!set {a, b}\n')
    )
    assert not found.valid
    found.model_dump_json()
    odd = validate_spec(SpecInput.model_construct(yaml=None, config={"\ud800": float("nan"), "data": "\ud800"}))
    odd.model_dump_json()


def test_templates_are_training_configs_by_name_then_sweeps(tmp_path: Path) -> None:
    for folder in ("gssm", "sweeps"):
        (tmp_path / folder).mkdir()
    (tmp_path / "gssm" / "b.yaml").write_text("#\n#  Which question?  \n# more\n" + SPEC_YAML.replace("# Can", "# can"))
    (tmp_path / "gssm" / "a.yaml").write_text(SPEC_YAML)
    (tmp_path / "gssm" / "data.yaml").write_text("seq_len: 3\n")
    (tmp_path / "gssm" / "broken.yaml").write_text("a: [")
    (tmp_path / "gssm" / "notes.txt").write_text(SPEC_YAML)
    (tmp_path / "sweeps" / "wide.yaml").write_text(SPEC_YAML + "grid: {model.emb_dim: [16, 32]}\n")
    (tmp_path / "sweeps" / "sets.yaml").write_text("seq_len: 3\ngrid: {seq_len: [3, 4]}\n")
    (tmp_path / "sweeps" / "broken.yaml").write_text(SPEC_YAML + "grid: {model.emb_dim: 16}\n")
    found = templates(tmp_path)
    assert [(t.name, t.summary) for t in found] == [
        ("a", "Can two layers learn a chain of two nodes?"),
        ("b", "Which question?"),
        ("sweeps/wide", "Can two layers learn a chain of two nodes?"),
    ]
    assert found[0].yaml == SPEC_YAML


def test_the_projects_own_templates_are_valid_and_say_what_they_are_for() -> None:
    found = {template.name: template for template in templates()}
    assert "debug" in found
    assert "data" not in found
    assert "sweeps/exp15" in found
    assert "sweeps/exp2_data" not in found
    for template in found.values():
        assert template.summary
        if "/" not in template.name:
            assert validate_spec(SpecInput(yaml=template.yaml)).valid
