"""Tests that share something dear are run by one process."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.xdist_group("together")


def test_groups_are_known_to_who_hands_out_tests(request: pytest.FixtureRequest) -> None:
    if not hasattr(request.config, "workerinput") or not request.config.getoption("loadgroup", False):
        pytest.skip("tests are not handed out to several processes by groups")
    assert request.node.nodeid.endswith("@together")
