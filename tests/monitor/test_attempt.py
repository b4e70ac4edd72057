from __future__ import annotations

import errno
import fcntl
from pathlib import Path
from typing import Any

import pytest

from nanollama.monitor import attempt
from nanollama.monitor.attempt import (
    claim_attempt,
    create_attempt,
    discard_attempt,
    finished_result,
    only_run,
    read_result,
    read_stopped,
    run_directory,
    write_result,
    write_stopped,
)
from nanollama.spec.base import SpecError, parse
from nanollama.spec.experiment import ExperimentSpec
from nanollama.spec.identity import training_hash
from nanollama.spec.rundir import CONFIG, Result, Stopped
from nanollama.spec.yaml_text import dump_yaml
from tests.support.examples import experiment


def spec(**changes: Any) -> ExperimentSpec:
    """The example config with sections replaced or, where both are sections, updated."""
    data = experiment()
    for key, value in changes.items():
        data[key] = {**data.get(key, {}), **value}
    return parse(ExperimentSpec, data)


RESULT = Result(step=10, tokens=1200, seconds=2.0, loss=1.5, bound=1.25, excess=0.25, num_points=1)


def test_the_run_directory_is_the_most_specific_one_given() -> None:
    places = [
        spec(orchestration={"name": "a b"}),
        spec(orchestration={"log_dir": "/data/x"}),
        spec(orchestration={"log_dir": "/data/x"}, launcher={"log_dir": "/data/y"}),
    ]
    found = [str(run_directory(place.launcher, place.orchestration)) for place in places]
    assert found == ["runs/a b", "/data/x", "/data/y"]


def test_attempts_are_numbered_and_hold_the_config(tmp_path: Path) -> None:
    run_dir = tmp_path / "deep" / "run"
    first = create_attempt(run_dir, dump_yaml(spec()))
    (run_dir / "checkpoints").mkdir()
    (run_dir / "10").mkdir()
    second = create_attempt(run_dir, dump_yaml(spec()))
    assert [path.relative_to(run_dir) for path in (first, second)] == [Path("1"), Path("11")]
    assert (first / CONFIG).read_text() == dump_yaml(spec())


def test_an_unwritable_run_directory_is_named_and_nothing_is_created(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SpecError, match=f"cannot write to the run directory {tmp_path}/file/run: Not a directory"):
        create_attempt(tmp_path / "file" / "run", "")
    with pytest.raises(SpecError, match=r"^launcher\.log_dir: cannot write"):
        create_attempt(tmp_path / "file" / "run", "", placed_by="launcher.log_dir")
    with pytest.raises(SpecError, match="attempt_dir: cannot write to"):
        claim_attempt(tmp_path / "file" / "1")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_attempt_that_cannot_be_written_whole_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = create_attempt(tmp_path / "run", "")

    def full(_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(attempt, "write_provenance", full)
    with pytest.raises(SpecError, match=r"cannot write to the run directory .*: No space left on device"):
        create_attempt(tmp_path / "run", "")
    assert list((tmp_path / "run").iterdir()) == [first]


def test_a_discarded_attempt_leaves_no_trace_of_itself_but_spares_its_siblings(tmp_path: Path) -> None:
    first, second = (create_attempt(tmp_path / "run", "") for _ in range(2))
    discard_attempt(second)
    assert first.is_dir()
    discard_attempt(first)
    assert list(tmp_path.iterdir()) == []


def test_an_attempt_directory_is_used_once(tmp_path: Path) -> None:
    assert claim_attempt(tmp_path / "1") == tmp_path / "1"
    with pytest.raises(SpecError, match="has been started before - give every attempt a new directory"):
        claim_attempt(tmp_path / "1")


def test_a_finished_run_is_known_by_its_newest_attempt(tmp_path: Path) -> None:
    assert finished_result(tmp_path / "absent", spec()) is None
    write_result(create_attempt(tmp_path, dump_yaml(spec())), RESULT)
    assert finished_result(tmp_path, spec()) == RESULT
    create_attempt(tmp_path, dump_yaml(spec()))
    assert finished_result(tmp_path, spec()) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"orchestration": {"name": "other", "logging": {"period": 3}, "checkpoint": {"period": 2}}},
        {"cluster": {"device": "cpu", "nproc_per_node": 2}},
        {"launcher": {"kind": "slurm", "slurm": {"partition": "gpu"}}},
    ],
)
def test_where_and_how_a_run_runs_may_change_between_attempts(tmp_path: Path, changes: dict[str, Any]) -> None:
    write_result(create_attempt(tmp_path, dump_yaml(spec())), RESULT)
    assert training_hash(spec(**changes)) == training_hash(spec())
    assert finished_result(tmp_path, spec(**changes)) == RESULT


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim": {"lr": 0.5}}, r"^optim.lr: is 0.5, but .* holds a run with 0.0003 - .*name or .*log_dir"),
        ({"model": {"block": {"nb_heads": 4}}}, "^model.block.nb_heads: is 4, but .* with 2"),
        ({"orchestration": {"utils": {"seed": 1}}}, "^orchestration.utils.seed: is 1, but .* with 42"),
        ({"data": {"path": "a.h5"}}, "^data.path"),
    ],
)
def test_what_a_run_learns_may_not(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    create_attempt(tmp_path, dump_yaml(spec()))
    if "data" in changes:
        other = parse(ExperimentSpec, {**experiment(), "data": {"path": "a.h5", "batch_size": 8}})
    else:
        other = spec(**changes)
    assert training_hash(other) != training_hash(spec())
    with pytest.raises(SpecError, match=message):
        finished_result(tmp_path, other)


def test_a_run_directory_is_held_by_one_process_at_a_time(tmp_path: Path) -> None:
    run_dir = tmp_path / "deep" / "run"
    for _ in range(2):  # it is let go of at the end
        with (
            only_run(run_dir),
            pytest.raises(SpecError, match=f"^launcher.log_dir: a run is under way in {run_dir} - "),
            only_run(run_dir, placed_by="launcher.log_dir"),
        ):
            pytest.fail("two hold it")


def test_a_file_system_without_locks_keeps_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(_handle: int, _operation: int) -> None:
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with only_run(tmp_path), only_run(tmp_path):
        pass


def test_another_place_is_proposed_by_the_key_that_has_chosen_this_one(tmp_path: Path) -> None:
    create_attempt(tmp_path, dump_yaml(spec()))
    here = {"log_dir": str(tmp_path)}
    for place in ("launcher", "orchestration"):
        with pytest.raises(SpecError, match=rf"choose another {place}\.log_dir, or restore the key"):
            finished_result(tmp_path, spec(optim={"lr": 0.5}, **{place: here}))


def test_the_difference_inside_a_graph_is_pointed_at(tmp_path: Path) -> None:
    create_attempt(tmp_path, dump_yaml(spec()))
    data = experiment()
    data["data"]["gssm"]["nodes"][1]["alpha"] = 2.0
    with pytest.raises(SpecError, match=r"^data.gssm.nodes.1.alpha: is 2.0, but .* with 0.5"):
        finished_result(tmp_path, parse(ExperimentSpec, data))


def test_results_and_stops_are_read_back(tmp_path: Path) -> None:
    assert read_result(tmp_path) is None
    assert read_stopped(tmp_path) is None
    stopped = Stopped(exit_code=75, step=4, message="as requested")
    write_result(tmp_path, RESULT)
    write_stopped(tmp_path, stopped)
    assert read_result(tmp_path) == RESULT
    assert read_stopped(tmp_path) == stopped
