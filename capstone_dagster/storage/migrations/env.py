"""Alembic's entry: migrate the connection it is handed. Its own table stays outside the schema."""

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    version_table="capstone_alembic_version",
    version_table_schema="public",
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
