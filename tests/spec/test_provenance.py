"""Where an attempt runs and with which code."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

import nanollama
from nanollama.spec import provenance
from nanollama.spec.provenance import find_provenance, write_provenance
from nanollama.spec.rundir import PROVENANCE, Provenance


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=n", "-c", "user.email=e@x", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package in a repository with one commit, as if it were ours."""
    folder = tmp_path / "repository" / "package"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("x = 1\n")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    monkeypatch.setattr(provenance.nanollama, "__file__", str(folder / "__init__.py"))
    return folder


def test_commit_and_uncommitted_changes_are_told_apart(package: Path) -> None:
    found = find_provenance()
    assert (found.git_sha, found.git_diff_sha256) == (git(package, "rev-parse", "HEAD"), None)
    (package / "__init__.py").write_text("x = 2\n")
    changed = find_provenance()
    assert changed.git_sha == found.git_sha
    assert changed.git_diff_sha256 is not None
    (package / "__init__.py").write_text("x = 3\n")
    assert find_provenance().git_diff_sha256 not in (None, changed.git_diff_sha256)


def test_a_repository_that_does_not_track_the_package_is_not_its_own(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = package.parent / "site-packages"
    installed.mkdir()
    (installed / "__init__.py").write_text("")
    monkeypatch.setattr(provenance.nanollama, "__file__", str(installed / "__init__.py"))
    assert find_provenance().git_sha is None


def test_without_git_the_rest_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    write_provenance(tmp_path)
    found = Provenance.model_validate_json((tmp_path / PROVENANCE).read_bytes())
    assert (found.version, found.git_sha) == (nanollama.__version__, None)
    assert found.packages["numpy"] == np.__version__
    assert found.host
