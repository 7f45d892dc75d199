"""What people want to hear of: events of a camera, in a zone, at hours."""

from alembic import op

revision = "0007"
down_revision = "0006"

CHANGE = """
CREATE TABLE capstone.watches (
    name text CONSTRAINT pk_watches PRIMARY KEY,
    camera text,
    zone text,
    label text,
    from_time time,
    to_time time,
    timezone text NOT NULL,
    CONSTRAINT ck_watches_hours CHECK ((from_time IS NULL) = (to_time IS NULL))
);
"""


def upgrade() -> None:
    op.execute(CHANGE)


def downgrade() -> None:
    op.execute("DROP TABLE capstone.watches")
