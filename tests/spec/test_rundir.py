"""Records of a run directory."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanollama.spec.rundir import MetricLine, checkpoint_name, decode_number, encode_line, encode_number


@given(st.floats())
def test_numbers_survive_json(value: float) -> None:
    text = json.dumps(encode_number(value), allow_nan=False)
    back = decode_number(json.loads(text))
    assert back == value or (math.isnan(back) and math.isnan(value))


@pytest.mark.parametrize("value", ["nan", "1.0", True, None, [1]])
def test_anything_else_is_no_number(value: object) -> None:
    with pytest.raises(ValueError, match="not a number"):
        decode_number(value)


def test_a_metric_line_keeps_unknown_keys_as_metrics() -> None:
    line = encode_line({"seq": 0, "step": 1, "tokens": 64, "time": 0.5, "loss": math.nan, "bound": 2.0})
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    values = MetricLine.model_validate_json(line).values
    assert math.isnan(values["loss"])
    assert values["bound"] == 2.0


def test_checkpoint_names_sort_by_step() -> None:
    assert checkpoint_name(9) < checkpoint_name(10) < checkpoint_name(10**9)
