"""States of runs and attempts, and the transitions that are legal between them."""

from __future__ import annotations

from enum import Enum
from typing import Final


class RunState(str, Enum):
    """State of a run. Terminal states are absorbing."""

    QUEUED = "QUEUED"
    LEASED = "LEASED"
    SUBMITTED = "SUBMITTED"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    __str__ = str.__str__

    @property
    def terminal(self) -> bool:
        """Whether nothing executes for this run, now or later."""
        return self in (RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED)


class AttemptState(str, Enum):
    """State of an attempt. INTERRUPTED and VOID end an attempt but not its run: the next attempt continues."""

    QUEUED = "QUEUED"
    LEASED = "LEASED"
    SUBMITTED = "SUBMITTED"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    INTERRUPTED = "INTERRUPTED"
    VOID = "VOID"

    __str__ = str.__str__

    @property
    def terminal(self) -> bool:
        """Whether the attempt has ended, by evidence or because its start was forbidden."""
        return not ATTEMPT_TRANSITIONS[self]


_ENDS = frozenset(
    {
        AttemptState.SUCCEEDED,
        AttemptState.FAILED,
        AttemptState.CANCELLED,
        AttemptState.INTERRUPTED,
        AttemptState.VOID,
    }
)

ATTEMPT_TRANSITIONS: Final[dict[AttemptState, frozenset[AttemptState]]] = {
    AttemptState.QUEUED: frozenset({AttemptState.LEASED, AttemptState.CANCELLED}),
    AttemptState.LEASED: frozenset({AttemptState.SUBMITTED, AttemptState.RUNNING}) | _ENDS,
    AttemptState.SUBMITTED: frozenset({AttemptState.SUBMITTED, AttemptState.RUNNING}) | _ENDS,
    AttemptState.RUNNING: _ENDS,
    **{state: frozenset() for state in _ENDS},
}
"""From each state of an attempt, the states that may follow; SUBMITTED again tells another reason for its wait.

SUCCEEDED needs exit code 0 and a result besides.
"""
