"""Run by Alembic: migrates over the connection the catalog hands it, inside the catalog's transaction."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], transactional_ddl=True)
context.run_migrations()
