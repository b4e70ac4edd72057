from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nanollama.spec.rundir import PROVENANCE
from worker.executors import snapshot
from worker.executors.base import Refused
from worker.executors.snapshot import CODE, MAX_FILE_BYTES, find_code, provenance_of, snapshot_of, take_snapshot


class Package:
    """Stands for an imported one."""

    def __init__(self, folder: Path) -> None:
        self.__file__ = str(folder / "__init__.py")


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with both packages, tracked."""
    top = tmp_path / "checkout"
    for name in ("nanollama", "worker"):
        (top / name).mkdir(parents=True)
        (top / name / "__init__.py").write_text(f"'''{name}'''\n")
    (top / ".gitignore").write_text("ignored.py\n")
    for command in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", *command], cwd=top, check=True)
    use(monkeypatch, top)
    return top


def use(monkeypatch: pytest.MonkeyPatch, top: Path) -> None:
    monkeypatch.setattr(snapshot, "_PACKAGES", (Package(top / "nanollama"), Package(top / "worker")))


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {PROVENANCE}


def test_it_holds_what_is_tracked_and_what_is_changed_without_data(checkout: Path, tmp_path: Path) -> None:
    (checkout / "nanollama" / "__init__.py").write_text("changed = True\n")
    (checkout / "nanollama" / "new.py").write_text("new = True\n")
    (checkout / "nanollama" / "ignored.py").write_text("")
    (checkout / "set.h5").write_bytes(b"0")
    (checkout / "large.py").write_bytes(b"#" * (MAX_FILE_BYTES + 1))
    (checkout / "link.py").symlink_to(checkout / "nanollama" / "new.py")
    folder = tmp_path / CODE / take_snapshot(tmp_path / CODE)
    assert names(folder) == {".gitignore", "nanollama/__init__.py", "nanollama/new.py", "worker/__init__.py"}
    assert (folder / "nanollama" / "__init__.py").read_text() == "changed = True\n"
    assert provenance_of(folder).snapshot == folder.name


def test_installed_packages_are_copied_without_what_python_has_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    top = tmp_path / "site"
    for name in ("nanollama", "worker"):
        (top / name / "__pycache__").mkdir(parents=True)
        (top / name / "__init__.py").touch()
        (top / name / "__pycache__" / "x.pyc").touch()
    use(monkeypatch, top)
    assert {name for name, _ in find_code()} == {"nanollama/__init__.py", "worker/__init__.py"}


def test_later_attempts_get_the_code_of_the_first_whatever_is_edited(checkout: Path, tmp_path: Path) -> None:
    first = snapshot_of("e1", tmp_path)
    assert snapshot_of("e2", tmp_path) == first  # the same content is kept once
    (checkout / "worker" / "__init__.py").write_text("edited = True\n")
    assert snapshot_of("e1", tmp_path) == first
    assert (first / "worker" / "__init__.py").read_text() == "'''worker'''\n"
    other = snapshot_of("e3", tmp_path)
    assert other != first
    assert (other / "worker" / "__init__.py").read_text() == "edited = True\n"
    assert not list((tmp_path / CODE).glob(".growing-*"))


def test_code_that_is_gone_is_not_replaced_by_todays(checkout: Path, tmp_path: Path) -> None:
    folder = snapshot_of("e1", tmp_path)
    folder.rename(tmp_path / "away")
    with pytest.raises(Refused, match="clone the run"):
        snapshot_of("e1", tmp_path)


@pytest.mark.parametrize("name", ["../e1", "a/b", "", ".", "x" * 101])
def test_a_name_that_would_lead_elsewhere_is_refused(checkout: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(Refused, match="cannot name a file"):
        snapshot_of(name, tmp_path)


def test_the_interpreter_takes_the_code_of_the_snapshot(tmp_path: Path) -> None:
    folder = snapshot_of("e1", tmp_path)
    program = "import nanollama, worker; print(nanollama.__file__, worker.__file__)"
    said = subprocess.run(
        [sys.executable, "-c", program],
        cwd="/",
        env={"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.split() == [f"{folder}/nanollama/__init__.py", f"{folder}/worker/__init__.py"]
