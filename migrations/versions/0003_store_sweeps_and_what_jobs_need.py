"""Store sweeps, what runs have in common, what jobs need and workers have, pauses, budgets and where code came from."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

from nanollama.spec.base import hash_data
from nanollama.spec.identity import LEARNT, essence

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

runs = sa.table(
    "runs",
    *(sa.column(name) for name in ("id", "training_hash")),
    sa.column("config", sa.JSON()),
)


def upgrade() -> None:
    for table, columns in _columns().items():
        for column in columns:
            op.add_column(table, column)
    op.create_table(
        "needs",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("content", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_needs"),
    )
    op.create_table(
        "pauses",
        sa.Column("scope", sa.String(16), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("scope", name="pk_pauses"),
    )
    op.create_table(
        "reused_runs",
        sa.Column("experiment_id", sa.String(32), nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("run_id", sa.String(32), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.ForeignKeyConstraint(["experiment_id"], ["experiments.id"], name="fk_reused_runs_experiment_id"),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_reused_runs_run_id"),
        sa.PrimaryKeyConstraint("experiment_id", "position", name="pk_reused_runs"),
    )
    _identify(op.get_bind())
    op.drop_index("ix_runs_experiment_id", "runs")
    op.create_index("ix_runs_experiment_id_position", "runs", ["experiment_id", "position"])
    op.create_index("ix_runs_experiment_id_state", "runs", ["experiment_id", "state"])
    op.create_index("ix_runs_training_hash_state", "runs", ["training_hash", "state"])


def downgrade() -> None:
    op.drop_index("ix_runs_training_hash_state", "runs")
    op.drop_index("ix_runs_experiment_id_state", "runs")
    op.drop_index("ix_runs_experiment_id_position", "runs")
    op.create_index("ix_runs_experiment_id", "runs", ["experiment_id"])
    op.drop_table("reused_runs")
    op.drop_table("pauses")
    op.drop_table("needs")
    for table, columns in _columns().items():
        for column in columns:
            op.drop_column(table, column.name)


def _columns() -> dict[str, tuple[sa.Column[Any], ...]]:
    return {
        "experiments": (
            sa.Column("priority", sa.Integer(), nullable=False, server_default="0"),
            sa.Column("resources", sa.JSON(), nullable=False, server_default="{}"),
            sa.Column("source", sa.JSON(), nullable=True),
            sa.Column("num_runs", sa.Integer(), nullable=False, server_default="1"),
            sa.Column("paused_since", sa.DateTime(timezone=True), nullable=True),
        ),
        "runs": (
            sa.Column("position", sa.Integer(), nullable=False, server_default="0"),
            sa.Column("params", sa.JSON(), nullable=False, server_default="{}"),
            sa.Column("training_hash", sa.String(64), nullable=False, server_default=""),
            sa.Column("needs", sa.String(64), nullable=True),
            sa.Column("retries", sa.Integer(), nullable=False, server_default="0"),
            sa.Column("max_interruptions", sa.Integer(), nullable=True),
            sa.Column("counted_from", sa.Integer(), nullable=False, server_default="1"),
        ),
        "attempts": (
            sa.Column("needs", sa.String(64), nullable=True),
            sa.Column("provenance", sa.JSON(), nullable=True),
        ),
        "workers": (
            sa.Column("accelerators", sa.Integer(), nullable=True),
            sa.Column("cpus", sa.Integer(), nullable=True),
            sa.Column("memory_gb", sa.Float(precision=53), nullable=True),
            sa.Column("labels", sa.JSON(), nullable=False, server_default="[]"),
            sa.Column("drain_requested", sa.Boolean(), nullable=False, server_default=sa.false()),
        ),
    }


def _identify(connection: sa.Connection) -> None:
    """Give each run the hash of what it learns; one whose config an older version wrote differently has none."""
    for run_id, config in connection.execute(sa.select(runs.c.id, runs.c.config)).all():
        if all(name in config for name in LEARNT) and "utils" in config.get("orchestration", {}):
            value = hash_data(essence(config))
            connection.execute(sa.update(runs).where(runs.c.id == run_id).values(training_hash=value))
