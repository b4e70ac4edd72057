"""What the page changes: one call of the client each, after which what was kept of it is read anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel

from dashboard import data
from nanollama.api import schemas
from nanollama.api.errors import InvalidRequest
from nanollama.spec.base import SpecError, parse

ModelT = TypeVar("ModelT", bound=BaseModel)


def change_run(run_id: str, **values: Any) -> schemas.Run:
    """Change priority, tags or notes of a run, or whether it is archived. Raises InvalidRequest naming the value."""
    changed = data.client().change_run(run_id, _request(schemas.RunPatch, values))
    _forget_runs()
    return changed


def cancel(run_id: str) -> None:
    """Ask for a run to stop."""
    data.client().cancel(run_id)
    _forget_runs()


def retry(run_id: str) -> None:
    """Open a run again that failed or was cancelled."""
    data.client().retry(run_id)
    _forget_runs()


def resolve(run_id: str, to: str) -> None:
    """Say how a run ended of which nobody knows."""
    data.client().resolve(run_id, _request(schemas.Resolve, {"to": to}))
    _forget_runs()


def clone(run_id: str, *, key: str, **values: Any) -> schemas.Experiment:
    """A new experiment from a run's config; repeating a key creates nothing new. Raises InvalidRequest."""
    made = data.client().clone(run_id, _request(schemas.Clone, values), idempotency_key=key)
    _forget_runs()
    return made


def pin(run_id: str, step: int, *, pinned: bool) -> schemas.Checkpoint:
    """Forbid, or allow again, that training removes a checkpoint."""
    changed = data.client().pin_checkpoint(run_id, step, pinned=pinned)
    data.checkpoints.clear()
    return changed


def delete_checkpoint(run_id: str, step: int) -> schemas.Checkpoint:
    """Remove a checkpoint for good."""
    changed = data.client().delete_checkpoint(run_id, step)
    data.checkpoints.clear()
    return changed


def checkpoint_archive(run_id: str, step: int) -> bytes:
    """A checkpoint as a tar file."""
    return b"".join(data.client().download_checkpoint(run_id, step))


def run_archive(run_id: str) -> bytes:
    """Everything that is kept of a run but its checkpoints, as a .tar.gz file."""
    return b"".join(data.client().export_run(run_id))


def act_on_runs(action: str, selection: dict[str, Any], **values: Any) -> schemas.RunsChanged:
    """Cancel, retry, archive, restore or tag several runs.

    Args:
        action: cancel, retry, archive, restore or tag.
        selection: `ids`, or a `filter`.
        values: of a tag: `add` and `remove`.

    Raises:
        InvalidRequest: naming the value.
    """
    client = data.client()
    if action == "cancel":
        changed = client.cancel_runs(_request(schemas.RunSelection, selection))
    elif action == "retry":
        changed = client.retry_runs(_request(schemas.RunSelection, selection))
    elif action == "tag":
        changed = client.tag_runs(_request(schemas.Retag, {**selection, **values}))
    else:
        changed = client.archive_runs(_request(schemas.Archive, {**selection, "archived": action == "archive"}))
    _forget_runs()
    return changed


def words(text: str) -> list[str]:
    """The tags in a text, separated by commas, each once."""
    return list(dict.fromkeys(word.strip().lstrip("#").strip() for word in text.split(",") if word.strip(" #")))


def _request(model: type[ModelT], values: dict[str, Any] | Sequence[Any]) -> ModelT:
    try:
        return parse(model, values)
    except SpecError as error:
        raise InvalidRequest("this can't be changed so", error.problems) from None


def _forget_runs() -> None:
    for kept in (data.run, data.runs, data.events, data.attempts):
        kept.clear()
