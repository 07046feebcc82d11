"""Open the ledger: SQLite in WAL mode, every acknowledged commit synced.

Every process of the node opens the one file by itself; SQLite's own locks order the writers. What
the driver raises becomes :class:`~dicom_node.errors.DatabaseUnavailable` here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DatabaseError, OperationalError
from sqlalchemy.pool import ConnectionPoolEntry

from dicom_node.errors import DatabaseUnavailable, StoreError

_MIGRATIONS = Path(__file__).parent / "migrations"
#: how long a writer waits for another one
_TIMEOUT_S = 30.0


class Database:
    """One process's way to the ledger; its connections may be used from any of its threads.

    Parameters
    ----------
    path
        Of the SQLite file, made by :func:`migrate`.
    timeout_s
        How long a writer waits for another one; transactions here last milliseconds.
    """

    def __init__(self, path: Path, timeout_s: float = _TIMEOUT_S) -> None:
        self._engine = _engine(path, timeout_s)

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """Run one write transaction: committed at the end of the block, rolled back if it raises.

        It takes the only write lock at its beginning, so what is read inside cannot change before
        what is written. Keep the block short: no file or network work in it.

        Raises
        ------
        DatabaseUnavailable
            Another writer held the lock too long, the disk is full, or the file is damaged.
        """
        with _answering(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Run one read transaction: one moment of the ledger, however long the block takes.

        It never waits for a writer and holds none up. Raises DatabaseUnavailable.
        """
        reading = self._engine.execution_options(read_only=True)
        with _answering(), reading.connect() as connection:
            yield connection

    def close(self) -> None:
        """Close the connections that lie idle; the last process to do so folds the log away."""
        self._engine.dispose()


@contextmanager
def _answering() -> Iterator[None]:
    """Turn what SQLite raises into DatabaseUnavailable; faults of our statements pass."""
    try:
        yield
    except DatabaseError as error:
        # a damaged file raises the base class itself; its other children blame the statement
        if isinstance(error, OperationalError) or type(error) is DatabaseError:
            raise DatabaseUnavailable(f"the ledger does not answer: {error.orig}") from error
        raise


def _engine(path: Path, timeout_s: float, *, foreign_keys: bool = True) -> Engine:
    """Return an engine whose every connection is set as the ledger needs it."""
    checked = f"foreign_keys={'ON' if foreign_keys else 'OFF'}"
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": timeout_s})

    @event.listens_for(engine, "connect")
    def _configure(connection: object, _record: ConnectionPoolEntry) -> None:
        cursor = connection.cursor()  # type: ignore[attr-defined]
        # FULL: a commit that was answered survives a power cut (WAL alone syncs only checkpoints)
        for pragma in ("journal_mode=WAL", "synchronous=FULL", checked):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()
        # the driver's own implicit BEGIN is deferred: two writers could then dead-lock on upgrade
        connection.isolation_level = None  # type: ignore[attr-defined]

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        read_only = connection.get_execution_options().get("read_only", False)
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    return engine


def _check_references(connection: Connection) -> None:
    """Raise StoreError, so that nothing of the upgrade stays, where a row refers to nothing."""
    broken = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
    if broken:
        tables = ", ".join(sorted({str(row[0]) for row in broken}))
        raise StoreError(f"rows of {tables} in the ledger refer to rows that are not there")


def migrate(path: Path) -> None:
    """Create or upgrade the ledger at `path` to this version's tables, in one transaction.

    Two processes may call it at once. The ledger names patients' studies: only the node's user may
    read it (SQLite gives its log files the mode of the ledger itself) and enter a folder made here.

    Raises
    ------
    StoreError
        The ledger was made by a newer version: there is no way back but that version. Or its
        rows do not fit together.
    DatabaseUnavailable
        It cannot be opened, or another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # a step that copies a table drops the old one, to which others refer meanwhile
    engine = _engine(path, _TIMEOUT_S, foreign_keys=False)
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    try:
        with _answering(), engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            _check_references(connection)
    except CommandError as error:
        raise StoreError(
            f"the ledger {path} was made by a newer version of this node ({error}); install that "
            "version again, or name another node.data_dir"
        ) from error
    finally:
        engine.dispose()
    path.chmod(0o600)


def revisions(path: Path) -> tuple[str | None, str]:
    """Return the revision of the ledger at `path`, which exists, and that of this version's tables.

    The first is None of a file that no migration has made. Raises DatabaseUnavailable.
    """
    engine = _engine(path, 5.0)
    reading = engine.execution_options(read_only=True)
    try:
        with _answering(), reading.connect() as connection:
            found = MigrationContext.configure(connection).get_current_revision()
    finally:
        engine.dispose()
    head = ScriptDirectory(str(_MIGRATIONS)).get_current_head()
    return found, head or ""
