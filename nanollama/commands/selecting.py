"""Which runs a command is about: those that are named, or those that a filter or an experiment describes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nanollama.api import schemas
from nanollama.api.client import Client
from nanollama.commands.options import ask, option_error
from nanollama.spec.base import parse

PAGE = 500
PART = 10_000  # runs that one request may name


@dataclass(frozen=True)
class Selected:
    """Runs, and whether each was named by its id."""

    runs: list[schemas.Run]
    named: bool

    @property
    def ids(self) -> list[str]:
        """Their ids."""
        return [run.id for run in self.runs]

    def confirm(self, verb: str, *, yes: bool) -> None:
        """Ask before runs are changed that nobody has named. Raises Exit with 1 when the answer is no."""
        if not self.named and self.runs:
            ask(f"{verb} {len(self.runs):,} run{'s' if len(self.runs) != 1 else ''}?", yes=yes)


def select(
    client: Client,
    ids: list[str] | None,
    filter: str | None,  # noqa: A002 - the name on the wire
    experiment: str | None,
    wanted: Callable[[schemas.Run], bool] = lambda _: True,
    *,
    archived: bool = False,
) -> Selected:
    """The runs with these ids, each of which there is, or else those of a filter and an experiment.

    What is changed later are the runs that are counted here, whatever matches the filter by then.

    Args:
        client: the service.
        ids: of runs, or none.
        filter: in the filter language.
        experiment: its id.
        wanted: which of the runs that match it is about.
        archived: match archived runs instead of the others.

    Raises:
        SpecError: neither or both are given.
        NotFound: there is no run with one of the ids, or no such experiment.
    """
    narrowed = filter is not None or experiment is not None
    if bool(ids) == narrowed:
        said = "both runs and a filter are given" if ids else "no run is given"
        raise option_error("RUN", said, "name runs by their ids, or give --filter, --experiment or both")
    if ids:
        return Selected([client.run(each) for each in dict.fromkeys(ids)], named=True)
    if experiment is not None:
        client.experiment(experiment)
    text = f"{filter or ''} archived:true".strip() if archived else filter
    return Selected([run for run in _matching(client, text, experiment) if wanted(run)], named=False)


def _matching(client: Client, filter: str | None, experiment: str | None) -> list[schemas.Run]:  # noqa: A002
    found: list[schemas.Run] = []
    cursor: str | None = None
    while True:
        page = client.runs(filter=filter, experiment=experiment, limit=PAGE, cursor=cursor)
        found += page.items
        cursor = page.next_cursor
        if cursor is None:
            return found


def change_in_parts(
    chosen: Selected,
    change: Callable[[Any], schemas.RunsChanged],
    body: type[schemas.RunSelection] = schemas.RunSelection,
    **fields: Any,
) -> list[str]:
    """Have a request change runs, as many at a time as one may name; the ids of those that it made a difference to.

    Raises:
        SpecError: fields that the request does not take.
    """
    ids = chosen.ids
    changed: list[str] = []
    for start in range(0, len(ids), PART):
        changed += change(parse(body, {"ids": ids[start : start + PART], **fields})).changed
    return changed
