"""Keep notes on runs, and which of them are archived."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

BEFORE, AFTER = "ix_runs_state_experiment_id_id", "ix_runs_state_experiment_id_id_archived_app"


def upgrade() -> None:
    op.add_column("runs", sa.Column("notes", sa.String(10_000), nullable=False, server_default=""))
    op.add_column("runs", sa.Column("archived", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.drop_index(BEFORE, "runs")
    op.create_index(AFTER, "runs", ["state", "experiment_id", "id", "archived", "app"])


def downgrade() -> None:
    op.drop_index(AFTER, "runs")
    op.create_index(BEFORE, "runs", ["state", "experiment_id", "id"])
    op.drop_column("runs", "archived")
    op.drop_column("runs", "notes")
