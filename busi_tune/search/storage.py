"""The study's database: its URL, whose password is never shown, and retries while its server is unreachable."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy import URL, create_engine, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from busi_tune.errors import ConfigError, FileError
from busi_tune.progress import Progress

SERVER = "postgresql+psycopg"
DATABASE = "study.db"
# Seconds for which calls are retried while the server is unreachable.
PATIENCE = 45.0
# Limits after which an unanswered connection counts as lost, in seconds (tcp_user_timeout in ms); see libpq's manual.
CONNECTION = {"connect_timeout": 10, "keepalives_idle": 10, "keepalives_interval": 5, "tcp_user_timeout": 20_000}

# Errors that Optuna raises if the database fails, belongs to another version of Optuna, or lacks values.
BROKEN = (StorageInternalError, SQLAlchemyError, RuntimeError, LookupError, AssertionError, TypeError, ValueError)
SECRETS = frozenset({"password", "sslpassword"})

T = TypeVar("T")


def server_url(text: str) -> URL:
    """The URL of `--storage`.

    Raises:
        ConfigError: it is not a PostgreSQL URL. The message does not quote it, because it may hold a password.
    """
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ConfigError(f"storage must be a URL like {SERVER}://user@host/database; it is not a URL.") from None
    if url.drivername != SERVER or not url.database:
        raise ConfigError(
            f"storage must be a URL like {SERVER}://user@host/database, not one of {url.drivername!r} "
            f"with the database {url.database!r}."
        )
    # An unescaped @ in the password would move its rest into the host name, which messages show.
    if "@" in f"{url.host}{url.database}":
        raise ConfigError("storage has an @ in its host or database; write one in a password as %40.")
    return url


def shown(url: URL) -> str:
    """A URL without its password."""
    hidden = {key: value for key, value in url.query.items() if key not in SECRETS}
    return URL.create(url.drivername, url.username, None, url.host, url.port, url.database, hidden).render_as_string()


@dataclass(frozen=True)
class Database:
    """The database of a study's trials: a file in the study's folder, or a server that several drivers share."""

    url: URL
    progress: Progress

    @classmethod
    def of(cls, folder: Path, server: str | None, progress: Progress) -> "Database":
        """The database of the study in `folder`."""
        if server is not None:
            return cls(server_url(server), progress)
        return cls(URL.create("sqlite", database=str((folder / DATABASE).resolve())), progress)

    @property
    def shared(self) -> bool:
        """Whether several drivers may use the database at the same time."""
        return self.url.drivername == SERVER

    @property
    def name(self) -> str:
        """The database's name in messages."""
        return shown(self.url) if self.shared else str(self.url.database)

    def check(self) -> None:
        """Connect to a server, and change nothing.

        Raises:
            ConfigError: the Python driver of the database is not installed.
            FileError: the server cannot be reached.
        """
        if self.shared:
            with _driver_explained():
                engine = create_engine(self.url, connect_args=CONNECTION)
            self.call(lambda: engine.connect().close())

    def open(self) -> RDBStorage:
        """Connect, and create the tables if they do not exist.

        Raises:
            ConfigError: the Python driver of the database is not installed.
        """
        logging.getLogger("optuna").setLevel(logging.ERROR)
        warnings.simplefilter("ignore", ExperimentalWarning)
        # No pool_pre_ping: after a lost connection, `call` retries with a new one.
        arguments = {"connect_args": CONNECTION if self.shared else {"timeout": 60}}
        with _driver_explained():
            return RDBStorage(self.url.render_as_string(hide_password=False), engine_kwargs=arguments)

    def call(self, work: Callable[[], T], *, patient: bool = True, own: type[Exception] | tuple[()] = ()) -> T:
        """Run `work` on the database. With `patient`, retry while the server is unreachable.

        Errors of the type `own` come from `work` itself and are raised unchanged.

        Raises:
            FileError: the database failed, or its server was unreachable for too long.
        """
        try:
            return self._retrying()(work) if self.shared and patient else work()
        except own:
            raise
        except BROKEN as error:
            raise FileError(
                f"The study's database {self.name} failed ({_reason(error)}); everything is kept: fix that and run "
                "the same command again."
            ) from error

    def _retrying(self) -> Retrying:
        return Retrying(
            retry=retry_if_exception_type((StorageInternalError, SQLAlchemyError)),
            stop=stop_after_delay(PATIENCE),
            wait=wait_fixed(1),
            before_sleep=self._tell,
            reraise=True,
        )

    def _tell(self, state: RetryCallState) -> None:
        if state.attempt_number == 1 and state.outcome is not None:
            self.progress.notice(
                f"The study's database {self.name} does not answer ({_reason(state.outcome.exception())}); "
                f"waiting for it, up to {PATIENCE:.0f} s."
            )


@contextmanager
def _driver_explained() -> Iterator[None]:
    try:
        yield
    except ImportError:
        raise ConfigError(
            "storage needs psycopg, which is not installed; pip install '/path/to/busi-tune[postgres]'."
        ) from None


def _reason(error: BaseException | None) -> str:
    cause = getattr(error, "__cause__", None) or error
    text = str(getattr(cause, "orig", cause))
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__
