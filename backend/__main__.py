"""`python -m backend serve`, `migrate`, `check`, `token`, `backup`, `restore` and `copy`."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Sequence

from alembic.util import CommandError
from sqlalchemy.exc import SQLAlchemyError

from backend.app import create_app
from backend.auth import command as token_command
from backend.auth.service import TokenService
from backend.database import Database
from backend.deps import utc_now
from backend.logs import configure as configure_logs
from backend.migrate import current_revision, head_revision, migrate
from backend.operations import command as database_command
from backend.operations.backup import BackupError
from backend.server import Server, bind
from backend.settings import DEFAULT_DATABASE_URL, Settings, SettingsError, load_settings

EXIT_BAD_INPUT = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; bad input ends in one line on standard error and exit code 2."""
    given = _parser().parse_args(arguments)
    try:
        settings = load_settings(
            os.environ,
            database_url=getattr(given, "database_url", None),
            log_level=getattr(given, "log_level", None),
            log_format=getattr(given, "log_format", None),
            host=getattr(given, "host", None),
            port=getattr(given, "port", None),
            tokens=getattr(given, "tokens", None),
            run_roots=getattr(given, "run_roots", None),
        )
        configure_logs(settings.log_level, settings.log_format)
        if given.command == "migrate":
            return _migrate(settings)
        if given.command == "check":
            return _check(settings)
        if given.command == "token":
            return _token(settings, given)
        if given.command in database_command.COMMANDS:
            return _whole(settings, given)
        return _serve(settings, migrate_first=given.migrate)
    except (SettingsError, BackupError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--database-url", help=f"SQLite or Postgres; $N2N_DATABASE_URL, or {DEFAULT_DATABASE_URL} when absent"
    )
    common.add_argument("--log-level", choices=["debug", "info", "warning", "error"], help="warning when absent")
    parser = argparse.ArgumentParser(prog="python -m backend", description="The service: REST in front of a database.")
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", parents=[common], help="answer requests")
    serve.add_argument("--host", help="address to listen on; 127.0.0.1 when absent, others only with --tokens")
    serve.add_argument("--port", type=int, help="0 takes any free one; 8420 when absent")
    serve.add_argument(
        "--tokens", action="store_true", default=None, help="answer requests with an access token only, but for health"
    )
    serve.add_argument(
        "--run-roots", help="folders, with colons between, of workers whose checkpoints may be pinned, deleted and sent"
    )
    serve.add_argument(
        "--log-format", choices=["text", "json"], help="of log lines; text when absent. --log-level info logs requests"
    )
    serve.add_argument("--migrate", action="store_true", help="bring the database to the newest schema first")
    commands.add_parser("migrate", parents=[common], help="bring the database to the newest schema")
    commands.add_parser("check", parents=[common], help="whether the database answers and has the newest schema")
    token_command.add_parser(commands, common)
    database_command.add_parsers(commands, common)
    return parser


def _migrate(settings: Settings) -> int:
    database = Database(settings.database_url)
    try:
        migrate(database)
    except (SQLAlchemyError, CommandError, OSError) as error:
        raise _unusable(database, error) from None
    finally:
        database.dispose()
    print(f"{database.url} is at {head_revision()}", flush=True)
    return 0


def _check(settings: Settings) -> int:
    _check_schema(settings, migrate_first=False)
    print(f"{Database(settings.database_url).url} is at {head_revision()}")
    return 0


def _whole(settings: Settings, given: argparse.Namespace) -> int:
    try:
        return database_command.run(settings.database_url, given)
    except (SQLAlchemyError, CommandError, OSError) as error:
        raise _unusable(Database(settings.database_url), error) from None


def _token(settings: Settings, given: argparse.Namespace) -> int:
    _check_schema(settings, migrate_first=False)
    database = Database(settings.database_url)
    try:
        return token_command.run(database, given)
    except (SQLAlchemyError, OSError) as error:
        raise _unusable(database, error) from None
    finally:
        database.dispose()


def _serve(settings: Settings, *, migrate_first: bool) -> int:
    listener = bind(settings.host, settings.port)
    with listener:
        _check_schema(settings, migrate_first=migrate_first)
        if settings.tokens:
            _check_bootstrapped(settings)
        host, port = listener.getsockname()[:2]
        print(f"serving http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
        # uvicorn raises the signal again once it has shut down: that is a clean end
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        server = Server(create_app(settings), settings.log_level)
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listener])
    return 0 if server.started else 1


def _check_schema(settings: Settings, *, migrate_first: bool) -> None:
    database = Database(settings.database_url)
    try:
        if migrate_first:
            migrate(database)
        if database.path is not None and not database.path.is_file():
            raise SettingsError(f"there is no database {database.url} yet; {_remedy(database)}")
        found, head = current_revision(database), head_revision()
    except (SQLAlchemyError, CommandError, OSError) as error:
        raise _unusable(database, error) from None
    finally:
        database.dispose()
    if found != head:
        have = f"has the schema {found}" if found else "has no schema"
        raise SettingsError(f"the database {database.url} {have}, but {head} is needed; {_remedy(database)}")


def _check_bootstrapped(settings: Settings) -> None:
    """A service that asks for tokens needs somebody who can make them."""
    database = Database(settings.database_url)
    try:
        with database.read() as session:
            found = TokenService(session, utc_now()).has_admin()
    except SQLAlchemyError as error:
        raise _unusable(database, error) from None
    finally:
        database.dispose()
    if not found:
        raise SettingsError(
            f"--tokens: the database {database.url} has no valid token with the scope admin; make one with "
            f"`python -m backend token create NAME --scope admin --database-url {database.url}`"
        )


def _remedy(database: Database) -> str:
    return f"run `python -m backend migrate --database-url {database.url}`, or serve with --migrate"


def _unusable(database: Database, error: Exception) -> SettingsError:
    if isinstance(error, CommandError):
        return SettingsError(
            f"the database {database.url} was made by another version of this project ({error}); install that version, "
            "or choose another database with --database-url"
        )
    cause = getattr(error, "orig", None) or error
    reason = " ".join(str(cause).split())
    return SettingsError(f"cannot use the database {database.url}: {reason}; check --database-url")


if __name__ == "__main__":
    sys.exit(main())
