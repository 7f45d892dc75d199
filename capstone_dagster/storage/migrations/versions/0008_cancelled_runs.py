"""Every run of an upload that an operator has cancelled: an upload can have several unfinished ones."""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE capstone.video_status ADD COLUMN cancelled_run_ids text[] NOT NULL DEFAULT '{}'")


def downgrade() -> None:
    op.execute("ALTER TABLE capstone.video_status DROP COLUMN cancelled_run_ids")
