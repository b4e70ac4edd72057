"""What follows from the files of an attempt and from Slurm's words together: pure functions."""

from __future__ import annotations

from nanollama.api.status import AttemptState
from nanollama.cluster.slurm import JobState, Stage
from nanollama.spec.rundir import Exit
from worker.executors.base import Phase, Status
from worker.executors.slurm_watch import ABSENT_LOOKS, Sighting

PATIENCE_SECONDS = 600.0
"""How long a run that has accounted for its end waits for Slurm's word on why it was ended."""

_FAILURES = {
    "OUT_OF_MEMORY": "it used more memory than the job was given",
    "DEADLINE": "the job's deadline has passed",
}
_INTERRUPTIONS = {
    "TIMEOUT": "the time limit was reached",
    "PREEMPTED": "another job took its place",
    "NODE_FAIL": "a node failed",
    "BOOT_FAIL": "a node did not boot",
}
_LAUNCH = ("JobLaunchFailure", "launch_failed_requeued_held")


def before_the_claim(sighting: Sighting, *, settled: bool) -> Status:
    """Where an attempt is whose job was to be submitted and has not begun to run.

    Args:
        sighting: what Slurm said.
        settled: whether whatever an ended job has written would be seen.
    """
    state = sighting.state
    if sighting.gone:
        reason = f"Slurm has no such job, in {ABSENT_LOOKS} looks a minute apart: it was never accepted, or lost"
        return Status(Phase.FAILED_TO_START, reason=reason, verdict=AttemptState.VOID)
    if state is None or state.stage is Stage.RUNNING:
        return Status(Phase.STARTING)
    if not state.stage.ended:
        return Status(Phase.SUBMITTED, reason=f"Slurm job {state.id} waits: {_why(state)}")
    if not settled:
        return Status(Phase.STARTING)
    if state.stage is Stage.CANCELLED:
        reason = f"Slurm job {state.id} was cancelled by hand before it started"
        return Status(Phase.FAILED_TO_START, reason=reason, verdict=AttemptState.CANCELLED)
    if state.stage is Stage.INTERRUPTED:
        reason = _interruption(state)
        return Status(Phase.FAILED_TO_START, reason=reason, verdict=AttemptState.INTERRUPTED)
    reason = f"Slurm job {state.id} ended before it could start the run ({_words(state)})"
    if state.reason in _LAUNCH:
        reason += ": often the node cannot write to the run root; check that it is shared with the nodes"
    return Status(Phase.FAILED_TO_START, reason=reason)


def after_the_claim(sighting: Sighting, *, exit_: Exit | None, clean: bool, settled: bool, silent: float) -> Status:
    """Where an attempt is whose job has taken the claim.

    Args:
        sighting: what Slurm said.
        exit_: the account of its end, if it has left one.
        clean: whether the run came to its own end and said how, so that Slurm need not be asked why.
        settled: whether whatever an ended job has written would be seen.
        silent: seconds since the account was written.
    """
    state = sighting.state
    ended = state is not None and state.stage.ended
    if exit_ is not None:
        if clean:
            return Status(Phase.ENDED, exit=exit_)
        if not ended:
            if sighting.gone or silent >= PATIENCE_SECONDS:
                return Status(Phase.ENDED, exit=exit_)
            return Status(Phase.RUNNING)
        assert state is not None
        return _accounted(state, exit_)
    if ended:
        assert state is not None
        return _unaccounted(state) if settled else Status(Phase.RUNNING)
    if sighting.gone:
        number = f"job {sighting.job_id}" if sighting.job_id is not None else "the job"
        reason = f"{number} has run, Slurm does not know it any more, and it left no account of its end"
        return Status(Phase.UNKNOWN, reason=reason)
    return Status(Phase.RUNNING)


def _accounted(state: JobState, exit_: Exit) -> Status:
    """A job that has ended, as has the run, but not by itself or not well."""
    if _word(state) == "OUT_OF_MEMORY":
        return _failed(state)
    if exit_.terminated and state.stage is Stage.CANCELLED:
        return _cancelled(state)
    if exit_.terminated and state.stage is Stage.INTERRUPTED:
        return Status(Phase.JUDGED, reason=_interruption(state), verdict=AttemptState.INTERRUPTED)
    return Status(Phase.ENDED, exit=exit_)


def _unaccounted(state: JobState) -> Status:
    """A job that has ended, and nothing but Slurm's word says how."""
    if state.stage is Stage.CANCELLED:
        return _cancelled(state)
    if state.stage is Stage.INTERRUPTED:
        return Status(Phase.JUDGED, reason=_interruption(state), verdict=AttemptState.INTERRUPTED)
    if state.stage is Stage.COMPLETED:
        reason = f"Slurm job {state.id} is COMPLETED, but the run left no account of its end"
        return Status(Phase.JUDGED, reason=reason, verdict=AttemptState.FAILED)
    return _failed(state)


def _cancelled(state: JobState) -> Status:
    reason = f"Slurm job {state.id} was cancelled by hand (scancel)"
    return Status(Phase.JUDGED, reason=reason, verdict=AttemptState.CANCELLED)


def _failed(state: JobState) -> Status:
    said = _FAILURES.get(_word(state))
    reason = f"{said} ({_words(state)}, Slurm job {state.id})" if said else f"Slurm job {state.id}: {_words(state)}"
    return Status(Phase.JUDGED, reason=reason, verdict=AttemptState.FAILED)


def _interruption(state: JobState) -> str:
    said = _INTERRUPTIONS.get(_word(state), "Slurm ended the job")
    return f"{said} ({_words(state)}, Slurm job {state.id})"


def _word(state: JobState) -> str:
    return state.word.split()[0].rstrip("+").upper()


def _words(state: JobState) -> str:
    return ", ".join(part for part in (state.word, state.reason, state.exit_code) if part)


def _why(state: JobState) -> str:
    if state.word == "PENDING":
        return state.reason or "no reason given yet"
    return f"{state.word}, {state.reason}" if state.reason else state.word
