"""What sending notices needs: how often one was refused, and the first of each video found quickly."""

from alembic import op

revision = "0002"
down_revision = "0001"

OUTBOX = """
ALTER TABLE capstone.outbox ADD COLUMN refusals integer NOT NULL DEFAULT 0;
ALTER TABLE capstone.outbox ADD COLUMN refusal text;
ALTER TABLE capstone.outbox ADD COLUMN try_at timestamptz;
CREATE INDEX ix_outbox_unsent_video ON capstone.outbox (video_id, notice_id) WHERE sent_at IS NULL;
CREATE INDEX ix_outbox_sent_at ON capstone.outbox (sent_at) WHERE sent_at IS NOT NULL;
"""

UNDO = """
DROP INDEX capstone.ix_outbox_sent_at;
DROP INDEX capstone.ix_outbox_unsent_video;
ALTER TABLE capstone.outbox DROP COLUMN try_at, DROP COLUMN refusal, DROP COLUMN refusals;
"""


def upgrade() -> None:
    op.execute(OUTBOX)


def downgrade() -> None:
    op.execute(UNDO)
