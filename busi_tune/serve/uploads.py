"""The pictures in the body of a request, which is a form with files. Files are read into memory within limits."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from busi_tune.errors import printable

MEGABYTE = 1024 * 1024
MOST_BYTES = 64 * MEGABYTE
MOST_UNKEPT = 16 * MOST_BYTES
MOST_FILES = 64
SECONDS = 60
FORM = "multipart/form-data"
EXAMPLE = "send pictures as `curl -F files=@scan.png` does"


class Form(MultiPartParser):
    """A form whose files stay in memory; `ended` is true once its last boundary has arrived."""

    # Larger files would go to a temporary file on the disk.
    spool_max_size = 2 * MOST_BYTES
    ended = False

    def on_end(self) -> None:
        """Record that the last boundary has arrived."""
        self.ended = True


async def read_pictures(request: Request) -> list[tuple[str, bytes]]:
    """The name and the content of each file in the form of a request.

    Raises:
        HTTPException: the body is not a form of this type, holds no file, is too large or arrives too slowly. The
            exception has a status of at least 400 and a sentence.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != FORM:
        raise HTTPException(415, f"The body must be a form of the type {FORM}, not {kind or 'none'!r}; {EXAMPLE}.")
    try:
        async with asyncio.timeout(SECONDS), aclosing(_limited(request)) as stream:
            form = Form(request.headers, stream, max_files=MOST_FILES, max_fields=MOST_FILES)
            parts = (await form.parse()).multi_items()
    except TimeoutError:
        raise HTTPException(408, f"The body did not arrive within {SECONDS} s; send fewer pictures at once.") from None
    except MultiPartException as error:
        raise HTTPException(400, f"The form cannot be read: {error.message.rstrip('.')}; {EXAMPLE}.") from None
    if not form.ended:
        raise HTTPException(400, "The form ends before its last boundary, so a picture may be cut off; send it again.")
    if not parts:
        raise HTTPException(400, f"The form holds no file; {EXAMPLE}.")
    return [await _picture(field, value) for field, value in parts]


async def _limited(request: Request) -> AsyncGenerator[bytes, None]:
    """The body of a request as it arrives.

    The rest of a body that is too large is read and dropped, so that its sender receives the error.
    """
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= MOST_BYTES:
            yield chunk
        elif size > MOST_UNKEPT:
            break
    if size > MOST_BYTES:
        raise HTTPException(
            413, f"The body is larger than the {MOST_BYTES // MEGABYTE} MB that are accepted; send fewer pictures."
        )


async def _picture(field: str, value: UploadFile | str) -> tuple[str, bytes]:
    if isinstance(value, str):
        raise HTTPException(400, f"The field {printable(field)!r} holds text, not a file; {EXAMPLE}.")
    try:
        return value.filename or "unnamed", await value.read()
    finally:
        await value.close()
