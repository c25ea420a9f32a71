"""A server for one model on one address of this machine."""

import ipaddress
import os
import socket
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import uvicorn

from busi_tune.errors import ConfigError
from busi_tune.inference import open_export
from busi_tune.serve.application import application
from busi_tune.serve.batching import Batching
from busi_tune.serve.pages import front_page

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
# With these headers, browsers block requests of the page to other hosts, and frames of other sites that embed it.
HEADERS = [
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("cache-control", "no-store"),
    ("cross-origin-resource-policy", "same-origin"),
    ("referrer-policy", "no-referrer"),
    ("x-content-type-options", "nosniff"),
]


def serve(export: Path, ready: Callable[[str, bool], None], *, host: str, port: int, threads: int) -> None:
    """Serve predictions of an export's model until a signal ends the process.

    Once the server accepts requests, it calls `ready` with the URL and with whether only this machine can reach it.
    `threads` is the number of batches that run at the same time; 0 means one per core. A `port` of 0 means any free
    port.

    Raises:
        BusiTuneError: the model (see `open_export`) or the address cannot be used.
    """
    count = threads or os.cpu_count() or 1
    # Each thread runs the model separately, so ONNX Runtime needs only one thread per run.
    classifier = open_export(export, 1)
    with bound(host, port) as listener, ThreadPoolExecutor(count) as pool, warnings.catch_warnings(action="ignore"):
        address, number = listener.getsockname()[:2]
        local = ipaddress.ip_address(address).is_loopback
        app = application(Batching(classifier, pool), front_page(classifier), LOOPBACK if local else ["*"])
        config = uvicorn.Config(
            app,
            log_config=None,
            log_level="error",
            access_log=False,
            headers=HEADERS,
            server_header=False,
            proxy_headers=False,
            ws="none",
            lifespan="off",
            timeout_graceful_shutdown=5,
        )
        ready(f"http://{f'[{address}]' if ':' in address else address}:{number}", local)
        uvicorn.Server(config).run(sockets=[listener])


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens on an address.

    Raises:
        ConfigError: this machine does not have the address, or the port is in use.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=1024)
    except (OSError, UnicodeError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise ConfigError(
            f"{host}, port {port} cannot be listened on ({reason}); name another --host, or another --port (0: any)."
        ) from error
