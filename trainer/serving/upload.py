"""One upload: a photo's bytes, read with limits, in memory and nowhere else."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator
from typing import NamedTuple

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

MEBIBYTE = 1 << 20
Stream = AsyncGenerator[bytes, None]

_SECONDS = 60.0  # for an upload; a client that is slower must not hold its place
_FORM_BYTES = 1 << 16  # what a form may add to its photo
_LINGER_SECONDS, _LINGER_BYTES = 5.0, 1 << 26


# What is wrong with a form belongs into the answer, not into the server's log.
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)


class RefusedError(Exception):
    """A request that gets an error as its answer.

    Attributes:
        status: of HTTP.
        reason: one word for programs.
        detail: a sentence for people.
        headers: of the answer.
    """

    def __init__(self, status: int, reason: str, detail: str, **headers: str):
        super().__init__(detail)
        self.status, self.reason, self.detail = status, reason, detail
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class Upload(NamedTuple):
    """A photo as it came.

    Attributes:
        photo: the bytes of its file.
        name: of its file, where the client gave one.
    """

    photo: bytes
    name: str | None


async def read(request: Request, stream: Stream, max_bytes: int) -> Upload:
    """Reads the photo that a request carries, as its whole body or as a file in a form.

    Args:
        request: says what its body is.
        stream: of the body, of which nothing was read yet.
        max_bytes: that the photo may have.

    Raises:
        RefusedError: it is too large, too slow, or there is not one photo.
        starlette.requests.ClientDisconnect: the client has gone.
    """
    _check_headers(request, max_bytes)
    try:
        async with asyncio.timeout(_SECONDS):
            if _is_form(request):
                upload = await _read_form(request, _limited(stream, max_bytes, _FORM_BYTES))
            else:
                body = bytearray()
                async for chunk in _limited(stream, max_bytes):
                    body += chunk
                upload = Upload(bytes(body), None)
    except TimeoutError:
        raise RefusedError(
            408, "too_slow", f"The photo did not arrive within {_SECONDS:.0f} seconds: try again."
        ) from None
    if len(upload.photo) > max_bytes:
        raise _too_large(max_bytes)
    if not upload.photo:
        raise RefusedError(
            400, "empty", "The request holds no bytes of a photo: is the file empty?"
        )
    return upload


async def discard(request: Request, stream: Stream) -> None:
    """Reads what is left of a body that is not wanted, unless that is long.

    A client that is still sending when its connection is closed may never see the answer.
    """
    # Who sends `Expect` waits for the answer before sending.
    if "expect" in request.headers or _declared(request) > _LINGER_BYTES:
        return
    size = 0
    with contextlib.suppress(TimeoutError, ClientDisconnect):
        async with asyncio.timeout(_LINGER_SECONDS):
            async for chunk in stream:
                size += len(chunk)
                if size > _LINGER_BYTES:
                    return


def _check_headers(request: Request, max_bytes: int) -> None:
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise RefusedError(
            415, "encoded", f"The body is {encoding}-encoded: send the photo's file as it is."
        )
    if _declared(request) > max_bytes + (_FORM_BYTES if _is_form(request) else 0):
        raise _too_large(max_bytes)


def _declared(request: Request) -> int:
    """Returns the length that the client announced, in bytes, or 0."""
    length = request.headers.get("content-length", "0")
    return int(length) if length.isdecimal() else 0


def _is_form(request: Request) -> bool:
    return request.headers.get("content-type", "").lower().startswith("multipart/")


def _too_large(max_bytes: int) -> RefusedError:
    return RefusedError(
        413,
        "too_large",
        f"The photo's file is larger than {max_bytes / MEBIBYTE:g} MB: send a smaller one.",
    )


async def _limited(stream: Stream, max_bytes: int, more: int = 0) -> Stream:
    """Passes a stream on, up to `max_bytes` and `more`."""
    size = 0
    async for chunk in stream:
        size += len(chunk)
        if size > max_bytes + more:
            raise _too_large(max_bytes)
        yield chunk


class _InMemory(MultiPartParser):
    """Starlette's parser writes what is larger than this into a temporary file."""

    spool_max_size = 1 << 40


async def _read_form(request: Request, stream: Stream) -> Upload:
    parser = _InMemory(
        request.headers, stream, max_files=1, max_fields=10, max_part_size=_FORM_BYTES
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        several = "Too many files" in error.message
        raise RefusedError(
            400,
            "form",
            "The form holds several files: send one photo a request."
            if several
            else f"The form cannot be read: {error.message}",
        ) from None
    files = [part for _, part in form.multi_items() if isinstance(part, UploadFile)]
    if not files:
        raise RefusedError(
            400, "form", "The form holds no file: send the photo as a field of type file."
        )
    try:
        return Upload(await files[0].read(), files[0].filename or None)
    finally:
        await files[0].close()
