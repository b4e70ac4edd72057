"""What the service says of a draft: problems, or what it would run and cost."""

from __future__ import annotations

from dataclasses import dataclass

from dashboard.components.drawing import drawing
from dashboard.components.editor import Draft
from dashboard.components.facts import facts
from dashboard.components.page import error_note, note, section
from dashboard.components.table import Cell, Column, Row, table
from dashboard.data import catalogue
from dashboard.data import launch as service
from dashboard.planning import bound_facts
from dashboard.planning import facts as plan_facts
from dashboard.wording import plural
from nanollama.api.errors import ApiError, NotFound, Unavailable
from nanollama.api.schemas import Bound, Estimate, Validation
from nanollama.spec.base import Problem

NAME_COLUMNS = (Column("number", "#"), Column("name", "run", "mono"))


@dataclass(frozen=True)
class Check:
    """What the service says of a draft: a plan, or problems; or why it could not be asked."""

    validation: Validation | None = None
    problems: tuple[Problem, ...] = ()
    away: Unavailable | None = None

    @property
    def valid(self) -> bool:
        """Whether the draft could be submitted."""
        return self.validation is not None and self.validation.valid

    @property
    def status(self) -> tuple[str, str]:
        """One line, and its tone."""
        if self.away is not None:
            return "Not checked: the service does not answer. What you type is kept.", "bad"
        if self.problems:
            return f"{plural(len(self.problems), 'problem')} · nothing was created", "bad"
        if self.validation is None:
            return "", ""
        digest = (self.validation.config_hash or "")[:12]
        return f"Valid · {plural(max(1, self.validation.num_runs), 'run')} · hash {digest}", "good"


def check(draft: Draft) -> Check:
    """Ask the service for every problem of a draft."""
    if not draft.text.strip():
        return Check()
    try:
        validation = service.check(draft.text)
    except Unavailable as error:
        return Check(away=error)
    except ApiError as error:
        return Check(problems=error.problems or (Problem(path="", message=str(error)),))
    return Check(validation, tuple(validation.problems))


def known_bound(estimate: Estimate | None) -> Bound | None:
    """The entropy of the draft's graph, when it has been computed before."""
    if estimate is None or estimate.gssm_hash is None:
        return None
    try:
        return catalogue.gssm(estimate.gssm_hash).bound
    except (NotFound, Unavailable):
        return None


def show_plan(validation: Validation) -> None:
    """What a valid draft would run and cost."""
    found = plan_facts(validation)
    found += bound_facts(validation, known_bound(validation.estimate))
    section("Plan", "before anything is spent")
    facts(found)
    for remark in validation.notes[:20]:
        note(remark.text, title=remark.path, tone="warn")


def show_graph(draft: Draft, num_runs: int) -> None:
    """The graph that the draft samples from, as soon as it can be read."""
    try:
        svg = service.draft_graph(draft.text) if draft.text.strip() else None
    except ApiError as error:
        error_note(error, "Drawing the graph")
        return
    if svg is not None:
        section("Graph", "of the first run" if num_runs > 1 else "")
        drawing(svg, label="Graph of the draft", key="draft graph")


def show_names(validation: Validation) -> None:
    """The names of a sweep's runs: the first ones, and the last."""
    names, count = validation.names, validation.num_runs
    if count < 2 or not names:
        return
    section(
        "Runs of the sweep", f"the first {len(names)} of {count:,}, and the last" if len(names) < count else "in order"
    )
    listed = list(enumerate(names, 1))
    if len(names) < count and validation.last_run:
        listed.append((count, validation.last_run))
    rows = [Row(str(i), {"number": Cell(f"{i:,}"), "name": Cell(name, title=name)}) for i, name in listed]
    table(NAME_COLUMNS, rows, label="Runs of the sweep", key="names", height=240)
