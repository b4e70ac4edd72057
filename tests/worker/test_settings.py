"""The worker's settings: a file, the command line over it, and what the machine has."""

from __future__ import annotations

from pathlib import Path

import pytest

from nanollama.spec.base import SpecError
from tests.support.examples import experiment
from worker import settings as module
from worker.executors.base import Attempt, Refused
from worker.settings import Settings, read_settings

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "runs").mkdir()


def read(text: str, *arguments: str) -> Settings:
    Path("worker.yaml").write_text(text)
    return read_settings(["--config", "worker.yaml", *arguments])


def refused(text: str, *arguments: str) -> str:
    with pytest.raises(SpecError) as caught:
        read(text, *arguments)
    return str(caught.value)


BOTH = "run_root: ~/runs\nhome: ~/home\n"


def test_every_option_can_stand_in_the_file(tmp_path: Path) -> None:
    Path("token").write_text("n2n_secret\n")
    settings = read(
        """
url: http://somewhere:1
token_file: ~/token
run_root: $HOME/runs
home: ${HOME}/home
executor: local
slots: 3
name: bench
pool: ours
grace: 7
stop_jobs_on_exit: true
accelerators: 2
cpus: 12
memory_gb: 64
labels: [a100, a100, fast]
data_roots: [~/sets]
allow: {apps: [gssm.train], roots: [~/sets]}
"""
    )
    assert (settings.url, settings.token_file) == ("http://somewhere:1", tmp_path / "token")
    assert (settings.run_root, settings.home) == (tmp_path / "runs", tmp_path / "home")
    assert (settings.executor, settings.slots, settings.name, settings.pool) == ("local", 3, "bench", "ours")
    assert (settings.grace, settings.stop_jobs_on_exit) == (7.0, True)
    assert (settings.accelerators, settings.devices) == (2, ("0", "1"))
    assert (settings.cpus, settings.memory_gb, settings.labels) == (12, 64.0, ("a100", "fast"))
    assert settings.data_roots == (tmp_path / "sets",)
    keys = {key for key in module.WorkerSpec.model_fields if key not in ("allow", "slurm")}
    options = {action.dest for action in module._parser()._actions}
    assert keys | {"allow_apps", "allow_roots"} <= options


def test_the_command_line_wins() -> None:
    settings = read(BOTH + "slots: 3\nname: file\nlabels: [a]\n", "--slots", "2", "--name", "line", "--label", "b")
    assert (settings.slots, settings.name, settings.labels) == (2, "line", ("b",))


@pytest.mark.parametrize(
    ("text", "arguments", "words"),
    [
        (BOTH + "slotz: 1\n", [], "worker.yaml: slotz (line 3, column 1): unknown key - did you mean 'slots'?"),
        (BOTH + "slots: 0\n", [], "worker.yaml: slots (line 3, column 1): should be a number from 1"),
        (BOTH + "allow:\n  appz: []\n", [], "worker.yaml: allow.appz (line 4, column 3): unknown key"),
        (BOTH + "labels: ['']\n", [], "worker.yaml: labels.0 (line 3, column 10)"),
        ("home: x\n", [], "worker.yaml: run_root: this key is required - add `run_root:`"),
        ("home: x\nrun_root: nowhere\n", [], "run_root (line 2, column 1)"),
        (BOTH, ["--run-root", "nowhere"], "--run-root: "),
        (BOTH + "name: $NOT_SET\n", [], "name (line 3, column 1): the variable $NOT_SET is not set"),
        (BOTH + "name: [\n", [], "broken YAML"),
        ("- a\n", [], "expected a mapping"),
        (BOTH + "token_file: nowhere\n", [], "token_file (line 3, column 1): cannot read nowhere"),
    ],
)
def test_what_is_wrong_is_named_by_its_place(text: str, arguments: list[str], words: str) -> None:
    assert words in refused(text, *arguments)


@pytest.mark.parametrize(("content", "words"), [("", "is empty"), ("two words\n", "more than one word")])
def test_a_token_file_holds_a_token(content: str, words: str) -> None:
    Path("token").write_text(content)
    assert words in refused(BOTH, "--token-file", "token")


def test_a_missing_file_is_named() -> None:
    with pytest.raises(SpecError, match=r"cannot read nowhere\.yaml: No such file"):
        read_settings(["--config", "nowhere.yaml"])


@pytest.mark.parametrize(
    ("cpus", "memory", "accelerators", "slots"),
    [(64, 256.0, 4, 4), (64, 256.0, 0, 16), (64, 40.0, 0, 5), (2, 4.0, 0, 1), (64, 256.0, 1, 1)],
)
def test_slots_follow_from_what_is_there(cpus: int, memory: float, accelerators: int, slots: int) -> None:
    text = BOTH + f"cpus: {cpus}\nmemory_gb: {memory}\naccelerators: {accelerators}\n"
    assert read(text).slots == slots


def test_an_outer_choice_of_accelerators_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,7")
    assert read(BOTH).devices == ("3", "5", "7")
    assert read(BOTH, "--accelerators", "2").devices == ("3", "5")
    words = "--accelerators: 4 are more than $CUDA_VISIBLE_DEVICES lists ('3,5,7') - use at most 3"
    assert words in refused(BOTH, "--accelerators", "4")


def test_the_example_can_be_used(tmp_path: Path) -> None:
    (tmp_path / "n2n/runs").mkdir(parents=True)
    settings = read_settings(["--config", str(ROOT / "configs/worker/local.yaml")])
    assert settings.run_root == tmp_path / "n2n/runs"


# -- the allow-list ----------------------------------------------------------------------------------------------------


def attempt(app: str = "gssm.train", **config: object) -> Attempt:
    return Attempt("a", Path("runs/r/1").absolute(), app, experiment() | config)


def test_without_limits_every_registered_app_may_run() -> None:
    read(BOTH).allowed.check(attempt(data={"path": "/anywhere"}))


def test_an_app_that_is_not_allowed_is_refused() -> None:
    allowed = read(BOTH, "--allow-app", "gssm.entropy").allowed
    with pytest.raises(Refused, match=r"does not run the app 'gssm\.train'; its allow\.apps are: gssm\.entropy"):
        allowed.check(attempt())


@pytest.mark.parametrize("place", ["sets/a.h5", "sets/b/../a.h5", "runs/other/1/x"])
def test_paths_below_the_roots_are_allowed(place: str, tmp_path: Path) -> None:
    (tmp_path / "sets").mkdir()
    read(BOTH + "allow: {roots: [sets]}\n").allowed.check(attempt(data={"path": str(tmp_path / place)}))


@pytest.mark.parametrize(
    "config",
    [
        {"orchestration": {"checkpoint": {"start_from": "elsewhere/other/checkpoints/3"}}},
        {"orchestration": {"checkpoint": {"start_from": "sets/../../x"}}},
        {"anything": {"else": "sets/../../x"}},
        {"data": {"path": "sets/../sets/a.h5"}},
    ],
)
def test_relative_paths_are_looked_at_too_and_none_may_lead_up(config: dict[str, object], tmp_path: Path) -> None:
    """A job of Slurm starts in a folder that is not the worker's: there a .. leads elsewhere than here."""
    (tmp_path / "sets").mkdir()
    allowed = read(BOTH + "allow: {roots: [~/sets]}\n").allowed
    with pytest.raises(Refused, match=r"is not below one of the worker's allow\.roots: "):
        allowed.check(attempt(**config))


@pytest.mark.parametrize("place", ["/etc/passwd", "sets/../secret", "sets/link/secret", "~/secret", "setsandmore/a"])
def test_paths_that_lead_elsewhere_are_refused(place: str, tmp_path: Path) -> None:
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets/link").symlink_to(tmp_path)
    allowed = read(BOTH + "allow: {roots: [~/sets]}\n").allowed
    for config in ({"data": {"path": place}}, {"evaluation": {"data": {"path": place}}}, {"x": [place]}):
        if place.startswith("sets") and "x" in config:
            continue
        with pytest.raises(Refused, match=r"is not below one of the worker's allow\.roots: "):
            allowed.check(attempt(**config))
