"""Curves, newest and best values."""

from __future__ import annotations

from nanollama.api import schemas
from nanollama.api.calls.transport import Transport, parse_replies, parse_reply, segment


class MetricCalls(Transport):
    """Curves, newest and best values."""

    def metrics(
        self,
        run_id: str,
        keys: list[str] | None = None,
        *,
        max_points: int = 1000,
        log_x: bool = False,
        x: str = "step",
        x_min: float | None = None,
        x_max: float | None = None,
        rank: int = 0,
    ) -> schemas.Metrics:
        """Series of a run: those of `keys`, or all; of the points from `x_min` to `x_max`, buckets even in x or log x.

        Args:
            run_id: which run.
            keys: which metrics; all when absent.
            max_points: of each series; every spike is kept.
            log_x: buckets are even in log x.
            x: step, tokens, flops, time, or relative_time: seconds since the run's first line.
            x_min: first x; the run's when absent.
            x_max: last x; the run's when absent.
            rank: whose lines.
        """
        return self._get(
            f"/runs/{segment(run_id)}/metrics",
            schemas.Metrics,
            key=keys,
            max_points=max_points,
            spacing="log" if log_x else "linear",
            x=x,
            x_min=x_min,
            x_max=x_max,
            rank=rank,
        )

    def curves(self, query: schemas.MetricsQuery) -> schemas.MetricsReply:
        """Series of several runs in one call."""
        return parse_reply(self._call("POST", "/metrics", body=query, idempotent=True), schemas.MetricsReply)

    def curves_arrow(self, query: schemas.MetricsQuery) -> bytes:
        """The same for `pyarrow.ipc.open_stream`, with columns run, key, step, tokens, time, value and x."""
        headers = {"Accept": "application/vnd.apache.arrow.stream"}
        return self._call("POST", "/metrics", body=query, headers=headers, idempotent=True).content

    def values(self, run_ids: list[str]) -> list[schemas.RunValues]:
        """Newest, smallest and largest value of each metric of runs."""
        return parse_replies(self._call("GET", "/metrics/values", params={"run": run_ids}), schemas.RunValues)
