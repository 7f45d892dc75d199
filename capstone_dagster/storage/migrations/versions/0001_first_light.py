"""Videos, analyses, events, status, outbox; the consumers' views and their read-only role."""

from alembic import op

revision = "0001"
down_revision = None

TABLES = """
CREATE SCHEMA capstone;

CREATE TABLE capstone.videos (
    video_id text CONSTRAINT pk_videos PRIMARY KEY,
    external_id text,
    external_id_source text,
    bucket text NOT NULL,
    key text NOT NULL,
    camera text NOT NULL,
    camera_source text,
    version_id text,
    etag text NOT NULL,
    size_bytes bigint NOT NULL,
    duration_ms bigint,
    width integer,
    height integer,
    fps double precision,
    codec text,
    recorded_at timestamptz,
    recorded_at_source text,
    uploaded_at timestamptz NOT NULL,
    first_seen_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX ix_videos_external_id ON capstone.videos (external_id);

CREATE TABLE capstone.analyses (
    analysis_id text CONSTRAINT pk_analyses PRIMARY KEY,
    detection_id text NOT NULL,
    video_id text NOT NULL
        CONSTRAINT fk_analyses_video_id REFERENCES capstone.videos ON DELETE CASCADE,
    upload_id text NOT NULL,
    model text NOT NULL,
    model_sha256 text NOT NULL,
    settings jsonb NOT NULL,
    detection_version integer NOT NULL,
    events_version integer NOT NULL,
    run_id text NOT NULL,
    frames_decoded bigint NOT NULL,
    frames_analyzed bigint NOT NULL,
    detections bigint NOT NULL,
    tracks integer NOT NULL,
    events integer NOT NULL,
    device text NOT NULL,
    backend text NOT NULL,
    gpu_seconds double precision NOT NULL,
    seconds double precision NOT NULL,
    objects_prefix text NOT NULL,
    uploaded_at timestamptz NOT NULL,
    requested_at timestamptz NOT NULL,
    published_at timestamptz NOT NULL DEFAULT now(),
    is_current boolean NOT NULL
);
CREATE UNIQUE INDEX uq_analyses_current ON capstone.analyses (video_id) WHERE is_current;
CREATE INDEX ix_analyses_video_id ON capstone.analyses (video_id, published_at);
CREATE INDEX ix_analyses_detection_id ON capstone.analyses (detection_id);

CREATE TABLE capstone.events (
    event_id text CONSTRAINT pk_events PRIMARY KEY,
    analysis_id text NOT NULL
        CONSTRAINT fk_events_analysis_id REFERENCES capstone.analyses ON DELETE CASCADE,
    video_id text NOT NULL,
    camera text NOT NULL,
    track_id integer NOT NULL,
    label text NOT NULL,
    start_ms bigint NOT NULL,
    end_ms bigint NOT NULL,
    started_at timestamptz,
    ended_at timestamptz,
    first_frame integer NOT NULL,
    last_frame integer NOT NULL,
    sample_interval_ms double precision NOT NULL,
    detections integer NOT NULL,
    best_score double precision NOT NULL,
    mean_score double precision NOT NULL,
    best_ms bigint NOT NULL,
    best_box double precision[] NOT NULL,
    face_score double precision,
    face_box double precision[],
    truncated_start boolean NOT NULL,
    truncated_end boolean NOT NULL,
    thumbnail_key text,
    CONSTRAINT ck_events_times CHECK (start_ms >= 0 AND start_ms <= best_ms AND best_ms <= end_ms),
    CONSTRAINT ck_events_best_box CHECK (cardinality(best_box) = 4),
    CONSTRAINT ck_events_face_box CHECK (face_box IS NULL OR cardinality(face_box) = 4)
);
CREATE INDEX ix_events_analysis_id ON capstone.events (analysis_id);
CREATE INDEX ix_events_video_start ON capstone.events (video_id, start_ms);
CREATE INDEX ix_events_camera_started ON capstone.events (camera, started_at);

CREATE TABLE capstone.video_status (
    upload_id text CONSTRAINT pk_video_status PRIMARY KEY,
    video_id text NOT NULL
        CONSTRAINT fk_video_status_video_id REFERENCES capstone.videos ON DELETE CASCADE,
    state text NOT NULL CONSTRAINT ck_video_status_state CHECK (state IN (
        'received', 'queued', 'waiting-for-compute', 'running', 'done', 'failed', 'superseded', 'cancelled'
    )),
    progress double precision NOT NULL DEFAULT 0
        CONSTRAINT ck_video_status_progress CHECK (progress >= 0 AND progress <= 1),
    failure_class text,
    message text,
    run_id text,
    version_id text,
    etag text NOT NULL,
    size_bytes bigint NOT NULL,
    uploaded_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now(),
    recorded_order bigint GENERATED ALWAYS AS IDENTITY
);
CREATE INDEX ix_video_status_video_id ON capstone.video_status (video_id, uploaded_at);
CREATE INDEX ix_video_status_unfinished ON capstone.video_status (recorded_order)
    WHERE state IN ('queued', 'waiting-for-compute', 'running');

CREATE TABLE capstone.outbox (
    notice_id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT pk_outbox PRIMARY KEY,
    kind text NOT NULL,
    video_id text NOT NULL,
    upload_id text NOT NULL,
    payload jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    sent_at timestamptz
);
CREATE INDEX ix_outbox_unsent ON capstone.outbox (notice_id) WHERE sent_at IS NULL;
"""

VIEWS = """
CREATE VIEW capstone.current_events AS
SELECT
    e.event_id, e.analysis_id, e.video_id, v.external_id, e.camera, e.track_id, e.label,
    e.start_ms, e.end_ms, e.started_at, e.ended_at, e.first_frame, e.last_frame, e.sample_interval_ms,
    e.detections, e.best_score, e.mean_score, e.best_ms, e.best_box, e.face_score, e.face_box,
    e.truncated_start, e.truncated_end, e.thumbnail_key
FROM capstone.events AS e
JOIN capstone.analyses AS a ON a.analysis_id = e.analysis_id AND a.is_current
JOIN capstone.videos AS v ON v.video_id = e.video_id;

CREATE VIEW capstone.current_status AS
SELECT DISTINCT ON (s.video_id)
    s.video_id, v.external_id, s.upload_id, v.bucket, v.key, v.camera, s.state, s.progress,
    s.failure_class, s.message, s.run_id, s.uploaded_at, s.updated_at
FROM capstone.video_status AS s
JOIN capstone.videos AS v ON v.video_id = s.video_id
ORDER BY s.video_id, s.uploaded_at DESC, s.recorded_order DESC;
"""

# Roles belong to the whole server: another database of it may have made this one already (or be making it
# now, in parallel), an administrator may have made it for a user who may not create roles, and a managed
# server may forbid making roles: none of that keeps the tables from existing, and who owns them may grant.
READER = """
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'capstone_reader') THEN
        BEGIN
            CREATE ROLE capstone_reader NOLOGIN;
        EXCEPTION
            WHEN duplicate_object OR unique_violation THEN NULL;
            WHEN insufficient_privilege THEN
                RAISE WARNING 'role capstone_reader was not made: this user may not create roles';
                RETURN;
        END;
    END IF;
    GRANT USAGE ON SCHEMA capstone TO capstone_reader;
    GRANT SELECT ON capstone.current_events, capstone.current_status TO capstone_reader;
END
$$;
"""


def upgrade() -> None:
    for script in (TABLES, VIEWS, READER):
        op.execute(script)


def downgrade() -> None:
    op.execute("DROP SCHEMA capstone CASCADE")
