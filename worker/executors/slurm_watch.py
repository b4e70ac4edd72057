"""What Slurm says of this worker's jobs, found out for all of them together, and cancels that must reach it.

One squeue in a round tells of every job. For those that it does not show a second program is asked, because an empty
answer may be a lie; a job counts as gone only after several successful looks, a minute apart. A round that fails says
nothing. Jobs are known by name and number: Slurm may give a number again after a crash.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from nanollama.cluster.slurm import JobState, Stage
from worker.executors.slurm_query import Slurm, SlurmSilent

log = logging.getLogger(__name__)

ABSENT_LOOKS = 3
ABSENT_SECONDS = 60.0
"""A job is gone when so many successful looks, so far apart, have not found it."""

SPACING_SECONDS = 1.0
"""Between two rounds, however urgent the second one is."""

LONGEST_PAUSE = 300.0


@dataclass(frozen=True)
class Sighting:
    """What is known of the jobs with a marker.

    Attributes:
        job_id: the job that is followed.
        state: what Slurm said last of it; None as long as it has said nothing.
        ended_at: when the end was first heard of.
        looks: successful looks that have not found it since it was last seen.
    """

    job_id: int | None = None
    state: JobState | None = None
    ended_at: float | None = None
    looks: int = 0

    @property
    def gone(self) -> bool:
        """Whether Slurm has, beyond doubt, no such job."""
        return self.looks >= ABSENT_LOOKS


@dataclass
class _Followed:
    sighting: Sighting
    looked_at: float | None = None  # when an absence was last counted


class Watch:
    """Follows jobs by their markers, in a thread of its own that starts with the first one.

    Args:
        slurm: Slurm's programs.
        poll_seconds: between two rounds.
        clock: tells the time in seconds, from any origin.
        background: whether rounds are made by the thread; otherwise by whoever calls `poll`.
    """

    def __init__(
        self,
        slurm: Slurm,
        *,
        poll_seconds: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
        background: bool = True,
    ) -> None:
        self._slurm = slurm
        self._poll_seconds = poll_seconds
        self._clock = clock
        self._background = background
        self._followed: dict[str, _Followed] = {}
        self._cancels: dict[str, bool] = {}  # markers of jobs to be cancelled, and whether to kill
        self._lock = threading.Lock()
        self._due = threading.Event()
        self._thread: threading.Thread | None = None
        self._failures = 0
        self._active = 0  # counted where it changes: it is asked for at every step of every attempt
        self.rounds = 0
        """How many rounds have succeeded."""

    # -- what others may call ----------------------------------------------------------------------------------------

    def follow(self, marker: str, job_id: int | None, *, claimed: bool) -> Sighting:
        """Follow the jobs with a marker; what is known of them.

        Args:
            marker: their name.
            job_id: the number of one of them, if it is known.
            claimed: whether that one holds the claim, so that it is the one that counts.
        """
        with self._lock:
            followed = self._followed.get(marker)
            if followed is None:
                followed = self._followed[marker] = _Followed(Sighting(job_id))
                self._count()
                self._poke()
            elif claimed and job_id is not None and followed.sighting.job_id != job_id:
                followed.sighting = Sighting(job_id)  # another one than was thought: what was heard is not about it
                followed.looked_at = None
                self._count()
                self._poke()
            return followed.sighting

    def forget(self, marker: str) -> None:
        """Follow the jobs with a marker no more."""
        with self._lock:
            self._followed.pop(marker, None)
            self._count()

    def cancel(self, marker: str, *, kill: bool = False) -> None:
        """Cancel the jobs with a marker, now or as soon as Slurm can be reached."""
        with self._lock:
            self._cancels[marker] = kill or self._cancels.get(marker, False)
            self._poke()

    def hurry(self) -> None:
        """Ask for a round soon: something has happened of which Slurm should know more."""
        with self._lock:
            self._poke()

    def count_active(self) -> int:
        """How many jobs are followed that have not ended, for all that is known."""
        return self._active

    @property
    def silent(self) -> bool:
        """Whether Slurm did not answer in the last round."""
        return self._failures > 0

    # -- rounds ------------------------------------------------------------------------------------------------------

    def poll(self) -> float:
        """Make one round; the seconds until the next."""
        try:
            try:
                self._send_cancels()
            finally:
                self._look()
        except SlurmSilent as error:
            if not self._failures:
                log.warning("Slurm: %s; nothing follows from it for any job, trying again", error)
            self._failures += 1
            return min(LONGEST_PAUSE, self._poll_seconds * 2.0 ** min(self._failures - 1, 10))
        if self._failures:
            log.info("Slurm answers again")
        self._failures = 0
        self.rounds += 1
        return self._poll_seconds

    def _send_cancels(self) -> None:
        with self._lock:
            cancels = dict(self._cancels)
        for marker, kill in cancels.items():
            self._slurm.cancel(marker)
            if kill:
                self._slurm.cancel(marker, kill=True)
            with self._lock:
                if self._cancels.get(marker) == kill:
                    del self._cancels[marker]

    def _look(self) -> None:
        with self._lock:
            # the round says nothing of what is followed, or found out to have another number, after it has begun
            before = {marker: followed.sighting for marker, followed in self._followed.items()}
        if all(sighting.ended_at is not None for sighting in before.values()):
            return
        found: dict[str, list[JobState]] = {}
        for state in self._slurm.queue():
            if state.name in before:
                found.setdefault(state.name, []).append(state)
        missing: dict[str, Sighting] = {}
        for marker, sighting in before.items():
            chosen = self._choose(marker, sighting.job_id, found.get(marker, []))
            if chosen is not None:
                self._saw(marker, sighting, chosen)
            elif sighting.ended_at is None and not sighting.gone:
                missing[marker] = sighting
        self._ask_again(missing)

    def _choose(self, marker: str, job_id: int | None, states: Iterable[JobState]) -> JobState | None:
        """Of the jobs with one marker the one that counts; others that wait are cancelled.

        One that runs already is left alone: it holds the claim, which is known here a little later, or ends by itself.
        """
        ordered = sorted(states, key=lambda state: (state.id != job_id, state.stage.ended, state.id))
        for other in ordered[1:]:
            if other.stage is Stage.WAITING:
                log.warning("Slurm: job %d is a second one for %s; it is cancelled", other.id, marker)
                self._slurm.cancel(marker, job_id=other.id)
        return ordered[0] if ordered else None

    def _ask_again(self, missing: dict[str, Sighting]) -> None:
        """Ask a second program about jobs that the queue does not show."""
        numbered = {s.job_id: marker for marker, s in missing.items() if s.job_id is not None}
        for marker, sighting in missing.items():
            if sighting.job_id is None:  # sbatch gave no number: there is nothing to ask for but the name
                self._missed(marker, sighting)
        if not numbered:
            return
        with self._lock:
            order = sorted(numbered, key=lambda i: self._looked_at(numbered[i]))
        for job_id, state in self._slurm.witness(order).items():
            marker = numbered[job_id]
            if state is None or state.name != marker:
                self._missed(marker, missing[marker])
            else:
                self._saw(marker, missing[marker], state)

    def _looked_at(self, marker: str) -> float:
        followed = self._followed.get(marker)
        return float("-inf") if followed is None or followed.looked_at is None else followed.looked_at

    def _saw(self, marker: str, before: Sighting, state: JobState) -> None:
        ended_at = None
        if state.stage.ended:
            ended_at = self._clock() if before.ended_at is None else before.ended_at
        self._update(marker, before, Sighting(state.id, state, ended_at))

    def _missed(self, marker: str, before: Sighting) -> None:
        with self._lock:
            followed = self._followed.get(marker)
            now = self._clock()
            if followed is None or (followed.looked_at is not None and now - followed.looked_at < ABSENT_SECONDS):
                return
            followed.looked_at = now
        self._update(marker, before, replace(before, looks=before.looks + 1))

    def _update(self, marker: str, before: Sighting, sighting: Sighting) -> None:
        with self._lock:
            followed = self._followed.get(marker)
            if followed is not None and followed.sighting == before:
                followed.sighting = sighting
                if sighting.ended_at is not None or sighting.gone:
                    self._count()

    def _count(self) -> None:
        """To be called with the lock."""
        self._active = sum(f.sighting.ended_at is None and not f.sighting.gone for f in self._followed.values())

    # -- the thread --------------------------------------------------------------------------------------------------

    def _poke(self) -> None:
        """To be called with the lock."""
        self._due.set()
        if self._background and self._thread is None:
            self._thread = threading.Thread(target=self._run, name="slurm", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            self._due.clear()
            try:
                pause = self.poll()
            except Exception:
                log.exception("a bug in the worker; trying again")
                pause = self._poll_seconds
            time.sleep(SPACING_SECONDS)
            if self._failures:
                time.sleep(pause - SPACING_SECONDS)
            else:
                self._due.wait(pause - SPACING_SECONDS)
