"""Zones and lines of cameras, and which of them each event touched."""

from alembic import op

revision = "0006"
down_revision = "0005"

EVENTS = """
CREATE OR REPLACE VIEW capstone.current_events AS
SELECT
    e.event_id, e.analysis_id, e.video_id, v.external_id, e.camera, e.track_id, e.label,
    e.start_ms, e.end_ms, e.started_at, e.ended_at, e.first_frame, e.last_frame, e.sample_interval_ms,
    e.detections, e.best_score, e.mean_score, e.best_ms, e.best_box, e.face_score, e.face_box,
    e.truncated_start, e.truncated_end, e.thumbnail_key{added}
FROM capstone.events AS e
JOIN capstone.analyses AS a ON a.analysis_id = e.analysis_id AND a.is_current
JOIN capstone.videos AS v ON v.video_id = e.video_id;
"""

# A default that is constant is no rewrite of the table. The view's new columns come last: consumers may read
# by position.
CHANGE = """
CREATE TABLE capstone.zones (
    camera text NOT NULL,
    name text NOT NULL,
    kind text NOT NULL CONSTRAINT ck_zones_kind CHECK (kind IN ('polygon', 'line')),
    points jsonb NOT NULL,
    anchor text NOT NULL,
    set_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT pk_zones PRIMARY KEY (camera, name)
);

ALTER TABLE capstone.events
    ADD COLUMN zones jsonb NOT NULL DEFAULT '[]',
    ADD COLUMN crossings jsonb NOT NULL DEFAULT '[]';
"""

VIEWS = """
CREATE VIEW capstone.zone_events AS
SELECT
    e.event_id, e.video_id, e.external_id, e.camera, e.label, z ->> 'zone' AS zone, 'polygon' AS kind,
    NULL AS direction, (z ->> 'entered_ms')::bigint AS at_ms, (z ->> 'dwell_ms')::bigint AS dwell_ms,
    e.started_at + ((z ->> 'entered_ms')::bigint - e.start_ms) * interval '1 millisecond' AS at
FROM capstone.current_events AS e, jsonb_array_elements(e.zones) AS z
UNION ALL
SELECT
    e.event_id, e.video_id, e.external_id, e.camera, e.label, c ->> 'line', 'line',
    c ->> 'direction', (c ->> 'at_ms')::bigint, NULL,
    e.started_at + ((c ->> 'at_ms')::bigint - e.start_ms) * interval '1 millisecond'
FROM capstone.current_events AS e, jsonb_array_elements(e.crossings) AS c;

CREATE VIEW capstone.camera_zones AS
SELECT camera, name, kind, points, anchor, set_at FROM capstone.zones;
"""

READER = """
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'capstone_reader') THEN
        GRANT SELECT ON {} TO capstone_reader;
    END IF;
END
$$;
"""

UNDO = """
DROP VIEW capstone.camera_zones, capstone.zone_events, capstone.current_events;
ALTER TABLE capstone.events DROP COLUMN zones, DROP COLUMN crossings;
DROP TABLE capstone.zones;
"""


def upgrade() -> None:
    op.execute(CHANGE)
    op.execute(EVENTS.format(added=", e.zones, e.crossings"))
    op.execute(VIEWS)
    op.execute(READER.format("capstone.zone_events, capstone.camera_zones"))


def downgrade() -> None:
    op.execute(UNDO)
    op.execute(EVENTS.format(added=""))
    op.execute(READER.format("capstone.current_events"))
