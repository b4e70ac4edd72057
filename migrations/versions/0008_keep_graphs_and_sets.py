"""Keep the graphs of runs, their bounds, and the sets of sequences that runs read."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

from nanollama.spec.identity import gssm_hash, path_hash

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

AT_ONCE = 500

runs = sa.table(
    "runs",
    sa.column("id"),
    sa.column("name"),
    sa.column("config", sa.JSON()),
    sa.column("created_at", sa.DateTime(timezone=True)),
    sa.column("gssm_hash"),
    sa.column("dataset_hash"),
)


def upgrade() -> None:
    gssms = op.create_table(
        "gssms",
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("graph", sa.JSON(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("seq_len", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("bound_run_id", sa.String(32), nullable=True),
        sa.Column("bound_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("bound", sa.JSON(), nullable=True),
        sa.Column("kernels_hash", sa.String(64), nullable=True),
        sa.ForeignKeyConstraint(["bound_run_id"], ["runs.id"], name="fk_gssms_bound_run_id"),
        sa.PrimaryKeyConstraint("hash", name="pk_gssms"),
    )
    op.create_index("ix_gssms_created_at_hash", "gssms", ["created_at", "hash"])
    op.create_index("ix_gssms_bound_run_id", "gssms", ["bound_run_id"])
    datasets = op.create_table(
        "datasets",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("path_hash", sa.String(64), nullable=False),
        sa.Column("path", sa.String(4096), nullable=False),
        sa.Column("pool", sa.String(500), nullable=True),
        sa.Column("content", sa.JSON(), nullable=False),
        sa.Column("present", sa.Boolean(), nullable=True),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_datasets"),
    )
    op.create_index("ix_datasets_path_hash", "datasets", ["path_hash"])
    for name in ("gssm_hash", "dataset_hash"):
        op.add_column("runs", sa.Column(name, sa.String(64), nullable=True))
        op.create_index(f"ix_runs_{name}", "runs", [name])
    _fill(gssms, datasets)


def _fill(gssms: sa.Table, datasets: sa.Table) -> None:
    """Enter what the runs that are there are trained on."""
    connection = op.get_bind()
    known: dict[str, dict[str, Any]] = {}
    files: dict[str, dict[str, Any]] = {}
    last = ""
    while True:
        query = sa.select(runs).where(runs.c.id > last).order_by(runs.c.id).limit(AT_ONCE)
        found = connection.execute(query).all()
        if not found:
            break
        last = found[-1].id
        for row in found:
            data = row.config.get("data") if isinstance(row.config, dict) else None
            if not isinstance(data, dict):
                continue
            if isinstance(data.get("gssm"), dict) and isinstance(data.get("seed"), int):
                name = gssm_hash(data["gssm"], data["seed"])
                connection.execute(sa.update(runs).where(runs.c.id == row.id).values(gssm_hash=name))
                values = {"hash": name, "name": row.name, "graph": data["gssm"], "seed": data["seed"]}
                entry = known.setdefault(name, {**values, "seq_len": 2, "created_at": row.created_at})
                entry["seq_len"] = max(entry["seq_len"], data.get("seq_len", 2))
            elif isinstance(data.get("path"), str):
                name = path_hash(data["path"])
                connection.execute(sa.update(runs).where(runs.c.id == row.id).values(dataset_hash=name))
                files.setdefault(name, {"path": data["path"][:4096], "seen_at": row.created_at})
    rows = [
        {"id": name, "path_hash": name, "pool": None, "content": {}, "present": None, **values}
        for name, values in files.items()
    ]
    for table, entries in ((gssms, list(known.values())), (datasets, rows)):
        for start in range(0, len(entries), AT_ONCE):
            connection.execute(sa.insert(table), entries[start : start + AT_ONCE])


def downgrade() -> None:
    for name in ("dataset_hash", "gssm_hash"):
        op.drop_index(f"ix_runs_{name}", "runs")
        op.drop_column("runs", name)
    op.drop_index("ix_datasets_path_hash", "datasets")
    op.drop_table("datasets")
    op.drop_index("ix_gssms_bound_run_id", "gssms")
    op.drop_index("ix_gssms_created_at_hash", "gssms")
    op.drop_table("gssms")
