"""Queries on true models and files of sequences."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import and_, delete, func, or_, select, update
from sqlalchemy.orm import Session

from backend.catalogue.models import TrueModel
from backend.database import upsert
from backend.tables import GSSM, Dataset, Experiment, Run
from nanollama.spec.identity import path_hash

BOUNDS = "e" + "0" * 14
"""Id of the experiment that all bound jobs belong to; lists of experiments leave it out."""

AT_ONCE = 500  # values in one statement


class CatalogueRepository:
    """True models and files of sequences."""

    def __init__(self, session: Session) -> None:
        self._session = session

    # -- true models ---------------------------------------------------------------------------------------------------

    def register(self, models: Iterable[TrueModel], now: datetime) -> None:
        """Enter true models; of those that are known already, the greatest length is kept."""
        found: dict[str, TrueModel] = {}
        for model in models:
            known = found.get(model.hash)
            if known is None or known.seq_len < model.seq_len:
                found[model.hash] = model
        rows = [
            {
                "hash": model.hash,
                "name": model.name,
                "graph": model.graph,
                "seed": model.seed,
                "seq_len": model.seq_len,
                "created_at": now,
            }
            for _, model in sorted(found.items())  # in one order, so that two submissions never wait for each other
        ]
        for start in range(0, len(rows), AT_ONCE):
            statement = upsert(self._session, GSSM).values(rows[start : start + AT_ONCE])
            longer = statement.excluded.seq_len
            self._session.execute(
                statement.on_conflict_do_update(
                    index_elements=[GSSM.hash], set_={"seq_len": longer}, where=GSSM.seq_len < longer
                )
            )

    def get(self, content_hash: str, *, lock: bool = False) -> GSSM | None:
        """One true model, perhaps to be changed."""
        query = select(GSSM).where(GSSM.hash == content_hash)
        if lock:
            query = query.with_for_update().execution_options(populate_existing=True)
        return self._session.scalars(query).one_or_none()

    def page(self, *, limit: int, after: GSSM | None) -> list[GSSM]:
        """Up to `limit` true models, newest first, behind one of them."""
        query = select(GSSM).order_by(GSSM.created_at.desc(), GSSM.hash.desc()).limit(limit)
        if after is not None:
            same_time = and_(GSSM.created_at == after.created_at, GSSM.hash < after.hash)
            query = query.where(or_(GSSM.created_at < after.created_at, same_time))
        return list(self._session.scalars(query))

    def num_runs(self, hashes: Collection[str]) -> dict[str, int]:
        """By hash, how many runs are trained on a true model."""
        query = select(Run.gssm_hash, func.count()).where(Run.gssm_hash.in_(hashes)).group_by(Run.gssm_hash)
        return {content_hash: count for content_hash, count in self._session.execute(query) if content_hash}

    def newest_runs(self, content_hash: str, limit: int) -> list[Run]:
        """The newest runs on a true model."""
        query = select(Run).where(Run.gssm_hash == content_hash).order_by(Run.id.desc()).limit(limit)
        return list(self._session.scalars(query))

    def runs(self, run_ids: Collection[str]) -> dict[str, Run]:
        """Jobs by id."""
        return {run.id: run for run in self._session.scalars(select(Run).where(Run.id.in_(run_ids)))}

    def keep_bound(self, run_id: str, bound: dict[str, Any], kernels_hash: str | None, now: datetime) -> None:
        """Store what a job has found with the true model that it was started for."""
        values = {"bound": bound, "kernels_hash": kernels_hash, "bound_at": now}
        self._session.execute(update(GSSM).where(GSSM.bound_run_id == run_id).values(**values))

    def next_job(self, now: datetime) -> int:
        """Position of the next bound job in the experiment of all of them, which is made for the first one."""
        values = {"id": BOUNDS, "name": "bounds", "notes": "", "tags": [], "created_at": now}
        values |= {"priority": 0, "resources": {}, "source": None, "num_runs": 0}
        self._session.execute(upsert(self._session, Experiment).values(**values).on_conflict_do_nothing())
        counted = update(Experiment).where(Experiment.id == BOUNDS).values(num_runs=Experiment.num_runs + 1)
        return self._session.scalars(counted.returning(Experiment.num_runs)).one() - 1

    # -- files of sequences --------------------------------------------------------------------------------------------

    def register_paths(self, paths: Iterable[str], now: datetime) -> None:
        """Enter files that runs read, of which nobody has said anything yet."""
        rows: list[dict[str, Any]] = [
            {"id": digest, "path_hash": digest, "path": path, "pool": None, "content": {}, "seen_at": now}
            for digest, path in sorted({path_hash(path): path for path in paths}.items())
        ]
        for start in range(0, len(rows), AT_ONCE):
            statement = upsert(self._session, Dataset).values(rows[start : start + AT_ONCE])
            self._session.execute(statement.on_conflict_do_nothing())

    def report(self, pool: str, found: Sequence[tuple[str, dict[str, Any]]], now: datetime) -> None:
        """Enter what a pool has found, by path; what it found before and does not now is absent."""
        gone = update(Dataset).where(Dataset.pool == pool).values(present=False)
        self._session.execute(gone)
        rows = [
            {
                "id": path_hash(f"{pool}\n{path}"),
                "path_hash": path_hash(path),
                "path": path,
                "pool": pool,
                "content": content,
                "present": True,
                "seen_at": now,
            }
            for path, content in sorted(dict(found).items())
        ]
        for start in range(0, len(rows), AT_ONCE):
            statement = upsert(self._session, Dataset).values(rows[start : start + AT_ONCE])
            renewed = {name: statement.excluded[name] for name in ("content", "present", "seen_at")}
            self._session.execute(statement.on_conflict_do_update(index_elements=[Dataset.id], set_=renewed))
        unread = ~select(Run.id).where(Run.dataset_hash == Dataset.path_hash).exists()
        self._session.execute(delete(Dataset).where(Dataset.pool == pool, Dataset.present.is_(False), unread))

    def datasets(self, pool: str | None = None) -> list[Dataset]:
        """Every file, by path; or those of a pool."""
        query = select(Dataset).order_by(Dataset.path, Dataset.pool)
        return list(self._session.scalars(query if pool is None else query.where(Dataset.pool == pool)))

    def found_at(self, path: str) -> Dataset | None:
        """A file that a pool has found and that is still there."""
        query = select(Dataset).where(Dataset.path_hash == path_hash(path), Dataset.present.is_(True))
        return self._session.scalars(query.order_by(Dataset.seen_at.desc()).limit(1)).one_or_none()

    def readers(self) -> dict[str, int]:
        """By hash of the path, how many runs read a file."""
        query = select(Run.dataset_hash, func.count()).where(Run.dataset_hash.is_not(None)).group_by(Run.dataset_hash)
        return {digest: count for digest, count in self._session.execute(query) if digest}
