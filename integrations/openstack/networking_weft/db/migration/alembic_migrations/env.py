"""How alembic reaches Neutron's database for the tables of this package."""

from logging import config as logging_config

from alembic import context
from neutron_lib.db import model_base
from oslo_db.sqlalchemy import session

from networking_weft.db import models  # noqa: F401

VERSION_TABLE = "alembic_version_weft"
OURS = "weft_"

config = context.config
neutron_config = config.neutron_config
logging_config.fileConfig(config.config_file_name)
metadata = model_base.BASEV2.metadata


def is_ours(item: object, name: str, kind: str, reflected: bool, compared: object) -> bool:
    """Whether a table is this package's."""
    return kind != "table" or name.startswith(OURS)


def configure(**more: object) -> None:
    context.configure(
        target_metadata=metadata,
        include_object=is_ours,
        version_table=VERSION_TABLE,
        **more,
    )
    with context.begin_transaction():
        context.run_migrations()


def run_offline() -> None:
    """Writes the statements, and runs none."""
    url = neutron_config.database.connection
    configure(**({"url": url} if url else {"dialect_name": neutron_config.database.engine}))


def run_online() -> None:
    """Runs the statements."""
    engine = session.create_engine(neutron_config.database.connection)
    try:
        with engine.connect() as connection, connection.begin():
            configure(connection=connection)
    finally:
        engine.dispose()


if context.is_offline_mode():
    run_offline()
else:
    run_online()
