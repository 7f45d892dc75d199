"""Let nobody but the owner make temporary tables: a reader could fill the server's disk with them."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

# The owner keeps the right by owning the database. Where another user migrates, PostgreSQL warns and goes on.
CHANGE = """
DO $$
BEGIN
    EXECUTE format('{} TEMPORARY ON DATABASE %I {} PUBLIC', current_database());
END
$$;
"""


def upgrade() -> None:
    op.execute(CHANGE.format("REVOKE", "FROM"))


def downgrade() -> None:
    op.execute(CHANGE.format("GRANT", "TO"))
