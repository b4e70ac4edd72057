"""Keep the scalars of configs as rows, so that runs are found by them."""

from __future__ import annotations

from itertools import groupby

import sqlalchemy as sa
from alembic import op

from backend.runs.params import INSERTED, rows_of

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

runs = sa.table("runs", sa.column("id"), sa.column("experiment_id"), sa.column("config", sa.JSON()))


def upgrade() -> None:
    params = op.create_table(
        "params",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("experiment_id", sa.String(32), nullable=False),
        sa.Column("run_id", sa.String(32), nullable=True),
        sa.Column("key", sa.String(200), nullable=False),
        sa.Column("number", sa.Float(precision=53), nullable=True),
        sa.Column("text", sa.String(200), nullable=False),
        sa.ForeignKeyConstraint(["experiment_id"], ["experiments.id"], name="fk_params_experiment_id"),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_params_run_id"),
        sa.PrimaryKeyConstraint("id", name="pk_params"),
    )
    op.create_index("ix_params_key_number", "params", ["key", "number"])
    op.create_index("ix_params_key_text", "params", ["key", "text"])
    op.drop_index("ix_runs_state", "runs")
    op.create_index("ix_runs_state_experiment_id_id", "runs", ["state", "experiment_id", "id"])
    connection = op.get_bind()
    found = connection.execute(sa.select(runs).order_by(runs.c.experiment_id, runs.c.id)).all()
    for experiment_id, some in groupby(found, key=lambda row: row.experiment_id):
        rows = [
            {**row, "key": row["key"][:200], "text": row["text"][:200]}
            for row in rows_of(experiment_id, [(row.id, row.config) for row in some])
        ]
        for start in range(0, len(rows), INSERTED):
            connection.execute(sa.insert(params), rows[start : start + INSERTED])


def downgrade() -> None:
    op.drop_index("ix_runs_state_experiment_id_id", "runs")
    op.create_index("ix_runs_state", "runs", ["state"])
    op.drop_index("ix_params_key_text", "params")
    op.drop_index("ix_params_key_number", "params")
    op.drop_table("params")
