"""A real `busi-tune serve` in a child process, and forms like those of browsers."""

import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

BOUNDARY = "a-boundary-of-the-tests"


@dataclass(frozen=True)
class Served:
    """A running server: its process, and the URL that it printed."""

    process: "subprocess.Popen[str]"
    url: str


@contextmanager
def served(export: Path, *options: str, temporary: Path | None = None) -> Iterator[Served]:
    """Starts a server of `export` on a free port; `temporary` is its folder for temporary files."""
    command = [sys.executable, "-m", "busi_tune", "serve", str(export), "--port", "0", "--json", *options]
    environment = os.environ | ({"TMPDIR": str(temporary)} if temporary else {})
    # Ctrl-C in the terminal must stop the tests only.
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        text = ""
        while not text.endswith("}\n"):
            line = process.stdout.readline()
            assert line, process.communicate()
            text += line
        yield Served(process, json.loads(text)["url"])
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


def form(files: Sequence[tuple[str, bytes]], field: str = "files") -> bytes:
    """A multipart form with these files, given as names and contents."""
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'.encode()
        + data
        + b"\r\n"
        for name, data in files
    ]
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def ask(
    url: str, body: bytes | None = None, path: str = "/predict", **headers: str
) -> tuple[int, http.client.HTTPMessage, Any]:
    """Status, headers and content of a response; `body` is posted, as a form unless `headers` differ."""
    place = urlsplit(url)
    assert place.hostname
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=60)
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    if body is not None:
        given = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"} | given
    connection.request("GET" if body is None else "POST", path, body, given)
    answer = connection.getresponse()
    content = answer.read().decode()
    connection.close()
    is_json = answer.headers["Content-Type"] == "application/json"
    return answer.status, answer.headers, json.loads(content) if is_json else content
