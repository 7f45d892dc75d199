"""What people browse: two views beside the consumers' first two, and the indexes of their orders."""

from alembic import op

revision = "0004"
down_revision = "0003"

BROWSING = """
CREATE VIEW capstone.published_analyses AS
SELECT
    a.analysis_id, a.detection_id, a.video_id, v.external_id, a.upload_id, v.bucket, v.key, s.version_id,
    v.camera, v.duration_ms, v.width, v.height, v.recorded_at, v.recorded_at_source, v.raw_removed_at,
    a.model, a.model_sha256, a.settings, a.run_id, a.frames_analyzed, a.detections, a.tracks, a.events,
    a.seconds, a.published_at, a.is_current, a.files_removed_at
FROM capstone.analyses AS a
JOIN capstone.videos AS v ON v.video_id = a.video_id
LEFT JOIN capstone.video_status AS s ON s.upload_id = a.upload_id;

CREATE VIEW capstone.uploads AS
SELECT
    s.upload_id, s.video_id, v.external_id, v.bucket, v.key, v.camera, s.state, s.progress,
    s.failure_class, s.message, s.run_id, s.uploaded_at, s.updated_at, s.recorded_order
FROM capstone.video_status AS s
JOIN capstone.videos AS v ON v.video_id = s.video_id;

CREATE INDEX ix_events_started ON capstone.events (started_at, event_id) WHERE started_at IS NOT NULL;
CREATE INDEX ix_events_undated ON capstone.events (video_id, start_ms, event_id) WHERE started_at IS NULL;
CREATE INDEX ix_video_status_failed ON capstone.video_status (updated_at) WHERE state = 'failed';
"""

# Where the role could not be made, 0001 has warned; an administrator makes it and grants all four views.
READER = """
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'capstone_reader') THEN
        GRANT SELECT ON capstone.published_analyses, capstone.uploads TO capstone_reader;
    END IF;
END
$$;
"""

UNDO = """
DROP INDEX capstone.ix_video_status_failed;
DROP INDEX capstone.ix_events_undated;
DROP INDEX capstone.ix_events_started;
DROP VIEW capstone.uploads;
DROP VIEW capstone.published_analyses;
"""


def upgrade() -> None:
    for script in (BROWSING, READER):
        op.execute(script)


def downgrade() -> None:
    op.execute(UNDO)
