from __future__ import annotations

from typing import Any

import pytest

from nanollama.spec.base import SpecError, parse
from nanollama.spec.monitor import CheckpointSpec


def test_the_old_name_of_keep_last_is_understood_but_not_beside_the_new_one() -> None:
    assert parse(CheckpointSpec, {"keep_only": 3}) == CheckpointSpec(keep_last=3)
    with pytest.raises(SpecError, match=r"^keep_only: keep_only is the old name of keep_last.* - remove keep_only$"):
        parse(CheckpointSpec, {"keep_only": 3, "keep_last": 2})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"keep_best": 2}, "^keep_best: keep_best 2 has no effect: keep_last 0 keeps every checkpoint - set keep_last"),
        ({"keep_every": 20}, "^keep_every: keep_every 20 has no effect"),
        ({"period": 20, "keep_every": 50, "keep_last": 1}, "no multiple of period 20 - use 40$"),
        ({"period": 20, "keep_every": 5, "keep_last": 1}, "no multiple of period 20 - use 20$"),
    ],
)
def test_a_rule_that_could_never_keep_anything_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse(CheckpointSpec, given)
