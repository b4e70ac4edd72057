"""The service with short leases and a clock that can be moved: `python -m tests.support.fault_server URL PORT FOLDER`.

It answers on PORT and says so. Its clock is ahead by as many seconds as the file `clock` in FOLDER says.
"""

from __future__ import annotations

import sys
from datetime import datetime, timedelta
from pathlib import Path

from backend.app import create_app
from backend.database import Database
from backend.deps import utc_now
from backend.migrate import migrate
from backend.server import Server, bind
from backend.settings import LeaseTerms, Settings

LEASE_SECONDS = 4.0
TERMS = LeaseTerms(lease_seconds=LEASE_SECONDS, heartbeat_seconds=0.5)


def main(database_url: str, port: int, folder: Path) -> None:
    """Serve until the end."""

    def clock() -> datetime:
        return utc_now() + timedelta(seconds=float((folder / "clock").read_text()))

    database = Database(database_url)
    migrate(database)
    database.dispose()
    settings = Settings(
        database_url=database_url, local_terms=TERMS, slurm_terms=TERMS, upload_seconds=0.2, poll_seconds=0.2
    )
    with bind("127.0.0.1", port) as listener:
        print("serving", flush=True)
        Server(create_app(settings, clock=clock), settings.log_level).run(sockets=[listener])


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
