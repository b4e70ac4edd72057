"""`n2n` as people call it, in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from nanollama import cli
from tests.support.examples import experiment
from tests.support.service import serve_new_sqlite

N2n = Callable[..., int]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service with a new database, for the tests of a file."""
    with serve_new_sqlite(tmp_path_factory.mktemp("cli")) as address:
        yield address


@pytest.fixture
def n2n(monkeypatch: pytest.MonkeyPatch) -> N2n:
    """Call it with arguments; its exit code."""

    def call(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["n2n", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        code = ended.value.code
        assert isinstance(code, int) or code is None
        return code or 0

    return call


@pytest.fixture
def n2n_there(n2n: N2n, url: str, monkeypatch: pytest.MonkeyPatch) -> N2n:
    """The same, with that service as its own."""
    monkeypatch.setenv("N2N_URL", url)
    return n2n


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A training config, with a name that is hostile to markup."""
    path = tmp_path / "config.yaml"
    path.write_text("# what?\n" + yaml.safe_dump(experiment() | {"orchestration": {"name": "tiny [red]"}}))
    return path
