"""What remains of a deleted video, a line without personal data; and what retention has removed."""

from alembic import op

revision = "0003"
down_revision = "0002"

ERASURES = """
CREATE TABLE capstone.erasures (
    erasure_id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT pk_erasures PRIMARY KEY,
    video_hash text NOT NULL,
    requested_by text NOT NULL,
    begun_at timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz,
    counts jsonb NOT NULL DEFAULT '{}'
);
CREATE UNIQUE INDEX uq_erasures_under_way ON capstone.erasures (video_hash) WHERE finished_at IS NULL;
CREATE INDEX ix_erasures_video_hash ON capstone.erasures (video_hash, begun_at);
ALTER TABLE capstone.videos ADD COLUMN raw_removed_at timestamptz;
ALTER TABLE capstone.analyses ADD COLUMN files_removed_at timestamptz;
"""

UNDO = """
ALTER TABLE capstone.analyses DROP COLUMN files_removed_at;
ALTER TABLE capstone.videos DROP COLUMN raw_removed_at;
DROP TABLE capstone.erasures;
"""


def upgrade() -> None:
    op.execute(ERASURES)


def downgrade() -> None:
    op.execute(UNDO)
