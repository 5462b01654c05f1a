"""`meta.storage` in any database that SQLAlchemy 2 speaks: one table, made if it is missing."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects.mysql import LONGTEXT

from posthog_jobs.errors import ConfigurationError, StoreUnavailableError
from posthog_jobs.jobs.execution import after_fork
from posthog_jobs.meta.storage import add_whole

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

TABLE: Final = "posthog_jobs_storage"

_WAIT: Final = 5  # seconds, for a connection and for SQLite's lock


class SQLStorage:
    """A `StorageBackend` in a database, with one pool of connections per process.

    A row is found by the SHA-256 of app id and key: databases differ in how they compare text,
    and some ignore case or spaces at the end. Each statement is a transaction of its own, and
    portable SQL: what has to be atomic is a compare-and-set, tried again if another was first.
    """

    __slots__ = ("__weakref__", "_engine", "_table", "_url")

    def __init__(self, url: str) -> None:
        """Check the URL; the database is connected to by the first call.

        Args:
            url: SQLAlchemy's, such as `postgresql+psycopg://user:password@host/database`.

        Raises:
            ConfigurationError: the URL cannot work.
        """
        self._url: Final = _checked(url)
        # MySQL's own TEXT ends at 64 KiB
        long_text = sa.Text().with_variant(LONGTEXT(), "mysql", "mariadb")
        self._table: Final = sa.Table(
            TABLE,
            sa.MetaData(),
            sa.Column("id", sa.String(64), primary_key=True),
            # these two are for people and for `purge`; the key as JSON writes it, without quotes
            sa.Column("app_id", sa.String(100), nullable=False, index=True),
            sa.Column("key", long_text, nullable=False),
            sa.Column("value", long_text, nullable=False),
        )
        self._engine: sa.Engine | None = None
        after_fork(self._forget_parent)

    def get(self, app_id: str, key: str) -> str | None:
        """Return the text of a key, or None if it has none."""
        select = sa.select(self._table.c.value).where(self._is(app_id, key))
        return self._call(lambda connection: connection.execute(select).scalar())

    def set(self, app_id: str, key: str, text: str) -> None:
        """Keep a text in place of what was there."""
        update = sa.update(self._table).where(self._is(app_id, key)).values(value=text)
        while not self._changes(update):
            if self._insert(app_id, key, text):
                return

    def add(self, app_id: str, key: str, text: str) -> bool:
        """Keep a text unless the key has one; return whether it was kept."""
        return self.get(app_id, key) is None and self._insert(app_id, key, text)

    def delete(self, app_id: str, key: str) -> bool:
        """Delete a key; return whether it was there."""
        return self._changes(sa.delete(self._table).where(self._is(app_id, key)))

    def increment(self, app_id: str, key: str, by: int) -> int:
        """Add to a whole number, 0 if there is none; return the sum."""
        while True:
            text = self.get(app_id, key)
            total = add_whole(text, by)
            if text is None:
                done = self._insert(app_id, key, str(total))
            else:
                is_still = sa.and_(self._is(app_id, key), self._table.c.value == text)
                done = self._changes(
                    sa.update(self._table).where(is_still).values(value=str(total))
                )
            if done:
                return total

    def purge(self, app_id: str) -> int:
        """Delete all that an installation has kept; return how many keys there were."""
        columns = self._table.c
        select = sa.select(columns.id, columns.app_id).where(columns.app_id == app_id)
        rows = self._call(lambda connection: connection.execute(select).all())
        # to some databases Teapot is teapot
        ids = [row.id for row in rows if row.app_id == app_id]
        return sum(self._changes(sa.delete(self._table).where(columns.id == one)) for one in ids)

    def _is(self, app_id: str, key: str) -> sa.ColumnElement[bool]:
        return self._table.c.id == _row_id(app_id, key)

    def _insert(self, app_id: str, key: str, text: str) -> bool:
        readable = json.dumps(key)[1:-1]  # no NUL, which PostgreSQL's text cannot hold
        row = {"id": _row_id(app_id, key), "app_id": app_id, "key": readable, "value": text}
        insert = sa.insert(self._table).values(row)
        try:
            self._call(lambda connection: connection.execute(insert))
        except sa.exc.IntegrityError:  # another process was first
            return False
        return True

    def _changes(self, statement: sa.Executable) -> bool:
        """Tell whether there was a row that the statement applied to."""

        def execute(connection: sa.Connection) -> bool:
            result: Any = connection.execute(statement)
            return bool(result.rowcount)

        return self._call(execute)

    def _call(self, function: Callable[[sa.Connection], T]) -> T:
        try:
            with self._connected().begin() as connection:
                return function(connection)
        except sa.exc.IntegrityError:
            raise
        except (sa.exc.SQLAlchemyError, OSError) as error:
            url = self._url.set(query={}).render_as_string()  # with its password masked
            raise StoreUnavailableError(
                f"the database of posthog_jobs_storage_url ({url}) failed: {self._reason(error)}"
            ) from None

    def _connected(self) -> sa.Engine:
        """Return this process' engine, with the table made."""
        if self._engine is None:
            engine = _engine(self._url)
            self._make_table(engine)
            self._engine = engine
        return self._engine

    def _forget_parent(self) -> None:
        if self._engine is not None:
            self._engine.dispose(close=False)  # its connections are the parent's
            self._engine = None

    def _make_table(self, engine: sa.Engine) -> None:
        if engine.dialect.name == "sqlite":
            # readers beside a writer, from several processes; the file remembers it. A file that
            # is in use just now refuses, which only costs that
            with suppress(sa.exc.OperationalError), engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA journal_mode=WAL")
        try:
            self._table.metadata.create_all(engine)
        except sa.exc.DBAPIError:  # another process made it just now
            if not sa.inspect(engine).has_table(TABLE):
                raise

    def _reason(self, error: BaseException) -> str:
        """Return what the driver says, if it is about the connection: else it may show values."""
        cause = getattr(error, "orig", None) or error
        if not isinstance(error, sa.exc.OperationalError | sa.exc.InterfaceError | OSError):
            return type(cause).__name__
        said = " ".join(str(cause).split())
        password = self._url.password
        return f"{type(cause).__name__}: {said.replace(password, '***') if password else said}"


def _row_id(app_id: str, key: str) -> str:
    return hashlib.sha256(f"{app_id}:{key}".encode()).hexdigest()


def _checked(text: str) -> sa.URL:
    """Return the URL, if a database behind it would keep what it is given."""
    try:
        url = sa.make_url(text)
        url.get_dialect().import_dbapi()
    except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError, ValueError):
        raise ConfigurationError(
            "posthog_jobs_storage_url is not the URL of a database that SQLAlchemy knows; use one "
            "such as postgresql+psycopg://user:password@host/database or sqlite:////var/lib/jobs.db"
        ) from None
    except ImportError as error:
        raise ConfigurationError(
            f"posthog_jobs_storage_url names the driver {url.drivername!r}, which cannot be "
            f"imported: {error}; install it"
        ) from None
    if url.get_dialect().is_async:
        raise ConfigurationError(
            f"posthog_jobs_storage_url names {url.drivername!r}, an asyncio driver; use a blocking "
            "one: coroutines are served by a thread"
        )
    in_memory = url.database in (None, "", ":memory:") or url.query.get("mode") == "memory"
    if url.get_backend_name() == "sqlite" and in_memory:
        raise ConfigurationError(
            "posthog_jobs_storage_url is an SQLite database in memory, which keeps nothing; name a "
            "file, such as sqlite:////var/lib/jobs.db"
        )
    return url


def _engine(url: sa.URL) -> sa.Engine:
    driver = url.get_driver_name()
    arguments: dict[str, Any] = {}
    if driver in ("psycopg", "psycopg2") and "connect_timeout" not in url.query:
        arguments["connect_timeout"] = _WAIT
    elif driver == "pysqlite" and "timeout" not in url.query:
        arguments["timeout"] = _WAIT
    return sa.create_engine(
        url, connect_args=arguments, hide_parameters=True, pool_pre_ping=True, pool_timeout=_WAIT
    )
