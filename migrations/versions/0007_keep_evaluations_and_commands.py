"""Keep evaluations of checkpoints, and what workers are to do with checkpoints."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "evaluations",
        sa.Column("run_id", sa.String(32), nullable=False),
        sa.Column("step", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("values", sa.JSON(), nullable=False),
        sa.Column("by_position", sa.JSON(), nullable=True),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_evaluations_run_id"),
        sa.PrimaryKeyConstraint("run_id", "step", name="pk_evaluations"),
    )
    for column in _columns():
        op.add_column("checkpoints", column)
    op.create_index("ix_checkpoints_pending", "checkpoints", ["pending"])


def downgrade() -> None:
    op.drop_index("ix_checkpoints_pending", "checkpoints")
    for column in _columns():
        op.drop_column("checkpoints", column.name)
    op.drop_table("evaluations")


def _columns() -> tuple[sa.Column[str], ...]:
    return (
        sa.Column("pinned", sa.Boolean(), nullable=True),
        sa.Column("pending", sa.String(8), nullable=True),
        sa.Column("command_id", sa.String(32), nullable=True),
        sa.Column("command_by", sa.String(200), nullable=True),
    )
