"""A PostgreSQL server for tests: started from the installed programs, on a free port of 127.0.0.1."""

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

USER = "busi"


def programs() -> Path | None:
    """The folder of PostgreSQL's server programs, or None if they are not installed."""
    found = shutil.which("initdb")
    if found:
        return Path(found).parent
    return max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)


class Server:
    """A server with one empty database; it can be stopped and started again."""

    def __init__(self) -> None:
        found = programs()
        assert found is not None
        self.programs = found
        self.password = secrets.token_hex(8)
        self.folder = Path(tempfile.mkdtemp(prefix="busi-tune-postgres-"))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        words = self.folder / "password"
        words.write_text(self.password)
        if os.getuid() == 0:
            # PostgreSQL refuses to run as root, so its files belong to the user postgres.
            for path in (self.folder, words):
                shutil.chown(path, "postgres", "postgres")
        self._run("initdb", "-D", str(self.data), "-U", USER, "--auth=scram-sha-256", f"--pwfile={words}", "--no-sync")
        self.start()

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://{USER}:{self.password}@127.0.0.1:{self.port}/postgres"

    def _run(self, program: str, *arguments: str) -> None:
        as_postgres = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.getuid() == 0 else []
        with (self.folder / "programs.log").open("ab") as log:
            command = [*as_postgres, str(self.programs / program), *arguments]
            subprocess.run(command, check=True, stdout=log, stderr=log, cwd=self.folder, timeout=120)

    def start(self) -> None:
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 -c fsync=off -c max_connections=200"
        self._run("pg_ctl", "-D", str(self.data), "-w", "-l", str(self.folder / "server.log"), "-o", options, "start")

    def stop(self) -> None:
        self._run("pg_ctl", "-D", str(self.data), "-w", "-m", "immediate", "stop")

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder)
