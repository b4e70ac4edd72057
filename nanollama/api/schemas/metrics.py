"""Curves, newest and best values."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from nanollama.api.schemas.base import Number, Numbers, Request, Response


class Summary(Response):
    """Statistics over every stored point in the window, whatever was sent. `stderr` treats points as independent."""

    count: int
    mean: Number
    stderr: Number | None
    min: Number
    max: Number
    last: Number


class Series(Response):
    """One metric, as columns of equal length in order of step."""

    model_config = ConfigDict(ser_json_inf_nan="strings")

    step: list[int]
    tokens: list[int]
    time: list[float]
    value: Numbers
    x: Numbers | None = Field(default=None, description="the chosen axis, where it is none of the other columns")
    summary: Summary | None = None


class Metrics(Response):
    """Series by key. At most `max_points` a series; minimum and maximum of each bucket are kept."""

    run_id: str
    keys: list[str] = Field(description="every key that the run has")
    series: dict[str, Series]


MAX_RUNS, MAX_POINTS = 500, 100_000


class MetricsQuery(Request):
    """Which series of which runs, and how they are thinned out."""

    runs: list[str] = Field(min_length=1, max_length=MAX_RUNS, description="ids of the runs")
    keys: list[str] = Field(default=[], max_length=200, description="only these series; all when empty")
    x: Literal["step", "tokens", "flops", "time", "relative_time"] = "step"
    x_min: float | None = None
    x_max: float | None = None
    max_points: int = Field(default=1000, ge=5, le=MAX_POINTS, description="of each series")
    spacing: Literal["linear", "log"] = "linear"
    rank: int = Field(default=0, ge=0, le=99_999)


class MetricsReply(Response):
    """Series of several runs on one axis."""

    x: str
    runs: list[Metrics]


class MetricValues(Response):
    """Newest and best values of a metric; minimum and maximum are over numbers, and absent without any."""

    last: Number
    last_step: int
    min: Number | None
    min_step: int | None
    max: Number | None
    max_step: int | None


class RunValues(Response):
    """Newest and best values of a run, by key."""

    run_id: str
    values: dict[str, MetricValues]
