"""True models with their bounds, and files of sequences."""

from __future__ import annotations

from typing import Any

from nanollama.api import schemas
from nanollama.api.calls.transport import Transport, parse_replies, parse_reply, segment


class CatalogueCalls(Transport):
    """True models with their bounds, and files of sequences."""

    def gssms(self, *, limit: int = 50, cursor: str | None = None) -> schemas.GSSMPage:
        """True models, newest first."""
        return self._get("/gssms", schemas.GSSMPage, limit=limit, cursor=cursor)

    def gssm(self, content_hash: str) -> schemas.GSSMDetail:
        """One of them with its graph, its entropy by position and the newest runs on it."""
        return self._get(f"/gssms/{segment(content_hash)}", schemas.GSSMDetail)

    def gssm_graph(self, content_hash: str) -> str:
        """A picture of its graph: SVG."""
        return self._call("GET", f"/gssms/{segment(content_hash)}/graph.svg").text

    def add_gssm(self, *, yaml: str | None = None, config: dict[str, Any] | None = None) -> schemas.GSSM:
        """Enter the true model that a config of any kind describes, the first one of a grid. Repeating it is harmless.

        Raises:
            InvalidRequest: with every problem of the config.
        """
        body = schemas.SpecInput(yaml=yaml, config=config)
        return parse_reply(self._call("POST", "/gssms", body=body, idempotent=True), schemas.GSSM)

    def compute_bound(self, content_hash: str) -> schemas.GSSM:
        """Queue the job that finds the entropy, unless it is known or one is under way; one that failed is retried."""
        reply = self._call("POST", f"/gssms/{segment(content_hash)}/bound", idempotent=True)
        return parse_reply(reply, schemas.GSSM)

    def draft_graph(self, *, yaml: str | None = None, config: dict[str, Any] | None = None) -> str:
        """A picture of the graph in a config, whatever else is right or wrong in it: SVG.

        Raises:
            InvalidRequest: with every problem of the graph.
        """
        body = schemas.SpecInput(yaml=yaml, config=config)
        return self._call("POST", "/specs/graph", body=body, idempotent=True).text

    def datasets(self) -> list[schemas.Dataset]:
        """Files of sequences that runs read or workers have found, by path."""
        return parse_replies(self._call("GET", "/datasets"), schemas.Dataset)

    def report_datasets(self, worker_id: str, datasets: list[schemas.DatasetReport]) -> list[schemas.Dataset]:
        """Say which files of sequences there are for a worker's pool, in place of what was said before; its files."""
        body = schemas.DatasetReports(datasets=datasets)
        reply = self._call("PUT", f"/workers/{segment(worker_id)}/datasets", body=body, idempotent=True)
        return parse_replies(reply, schemas.Dataset)
