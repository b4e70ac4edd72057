"""What the stack refuses before it starts anything."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import make_url

from nanollama.spec.base import SpecError
from nanollama.stack import Stack, home_database
from tests.support.ports import free_ports


def stack(home: Path) -> Stack:
    api_port, page_port = free_ports(2)
    return Stack(home, api_port=api_port, page_port=page_port)


@pytest.mark.parametrize("folder", ["runs", "logs"])
def test_a_file_where_a_folder_should_be(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).touch()
    with pytest.raises(SpecError, match=f"--home: cannot write {tmp_path / folder}"):
        stack(tmp_path).start()


def test_one_port_for_both(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with pytest.raises(SpecError, match="cannot share a port"):
        Stack(tmp_path / "home", api_port=port, page_port=port).start()
    assert not (tmp_path / "home").exists()


def test_a_home_has_one_stack(tmp_path: Path) -> None:
    first = stack(tmp_path)
    first._lock_home()
    try:
        with pytest.raises(SpecError, match=f"in use by process .*{first.page_url}"):
            stack(tmp_path).start()
    finally:
        first.stop()


@pytest.mark.parametrize("name", ["plain", "a %41 ?x#y", "ü & =", "a:b@c"])
def test_the_database_lies_in_the_home_whatever_its_name(tmp_path: Path, name: str) -> None:
    assert make_url(home_database(tmp_path / name)).database == str(tmp_path / name / "n2n.sqlite")
