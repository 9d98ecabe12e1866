"""What is served: the page, predictions as JSON, the health of the server, its description."""

import asyncio
import base64
import contextlib
import dataclasses
import hashlib
import importlib.resources
import io
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from trainer.predictor import Model, Prediction, Unreadable
from trainer.serving import upload
from trainer.serving.batching import Batcher, BusyError
from trainer.serving.upload import MEBIBYTE, RefusedError

Verdict = Prediction | Unreadable
_Job = tuple[bytes, int]  # a photo's bytes, and how many names are wanted

_RETRY_SECONDS = 1
_STATUS = {"too_large": 413, "not_finite": 500}  # of an unreadable photo; 422 of all other reasons
# Pillow reads the headers of these only; the last two may be missing from it.
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "AVIF", "JPEG2000")
_HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff"}


@dataclass(frozen=True)
class Limits:
    """What the server takes.

    Attributes:
        max_upload_mb: megabytes (2^20 bytes) of a photo's file.
        max_pixels: height times width of a photo.
        queue: photos that are uploaded, wait and are judged at the same time.
        batch_size: photos that are judged together, at most.
        batch_wait_ms: for which a batch waits for photos that are being uploaded.
    """

    max_upload_mb: float
    max_pixels: int
    queue: int
    batch_size: int
    batch_wait_ms: float


def make(model: Model, name: str, limits: Limits, answers: Counter[int]) -> Starlette:
    """Returns the application.

    Args:
        model: judges the photos.
        name: of the model, for people.
        limits: what is taken.
        answers: counts the answers to `POST /predict` by their status.
    """
    batcher: Batcher[_Job, Verdict] = Batcher(
        lambda jobs: _judge(model, jobs, limits.max_pixels),
        batch_size=limits.batch_size,
        wait=limits.batch_wait_ms / 1000,
        places=limits.queue,
    )

    async def predict(request: Request) -> Response:
        stream = request.stream()
        try:
            response = await _predict(request, stream, model, batcher, limits)
        except RefusedError as refused:
            await upload.discard(request, stream)
            response = _error(refused.status, refused.reason, refused.detail, refused.headers)
        except asyncio.CancelledError:  # the server stops, and waits for this upload no longer
            response = _error(503, "stopped", "The server was stopped before the photo was there.")
        answers[response.status_code] += 1
        return response

    async def health(request: Request) -> Response:
        return JSONResponse(
            {
                "status": "ok",
                "model": name,
                "num_classes": len(model.class_names),
                "queue": {"taken": batcher.taken, "places": batcher.places},
                "max_upload_bytes": _bytes(limits),
                "max_pixels": limits.max_pixels,
            },
            headers=_HEADERS,
        )

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with batcher.running():
            yield

    return Starlette(
        routes=[
            Route("/", _file("page.html", "text/html")),
            Route("/openapi.json", _file("openapi.json", "application/json")),
            Route("/healthz", health),
            Route("/predict", predict, methods=["POST"]),
        ],
        lifespan=lifespan,
        exception_handlers={
            HTTPException: _no_such_thing,
            ClientDisconnect: _nobody_there,
            Exception: _defect,
        },
    )


async def _predict(
    request: Request,
    stream: upload.Stream,
    model: Model,
    batcher: Batcher[_Job, Verdict],
    limits: Limits,
) -> Response:
    try:
        with batcher.place():
            top = _top(request, len(model.class_names))
            photo, name = await upload.read(request, stream, _bytes(limits))
            verdict = await batcher.judge((photo, top))
    except BusyError:
        raise RefusedError(
            503,
            "busy",
            f"The server has {batcher.places} photos to judge already: try again in a moment.",
            retry_after=str(_RETRY_SECONDS),
        ) from None
    if isinstance(verdict, Unreadable):
        status = _STATUS.get(verdict.reason, 422)
        return _error(status, verdict.reason, verdict.detail, photo=name)
    verdict = dataclasses.replace(verdict, names=verdict.names[:top])  # others may want more
    return JSONResponse({"photo": name, **verdict.to_dict()}, headers=_HEADERS)


def _judge(model: Model, jobs: Sequence[_Job], max_pixels: int) -> list[Verdict]:
    """Judges photos together; those with too many pixels are not decoded."""
    verdicts: list[Verdict | None] = [_refuse_large(photo, max_pixels) for photo, _ in jobs]
    fit = [photo for (photo, _), verdict in zip(jobs, verdicts, strict=True) if verdict is None]
    judged = iter(model.predict_bytes(fit, top=max(top for _, top in jobs)) if fit else [])
    return [next(judged) if verdict is None else verdict for verdict in verdicts]


def _refuse_large(photo: bytes, max_pixels: int) -> Unreadable | None:
    """Returns why a photo is too large, by its header; the model finds all other faults."""
    try:
        with Image.open(io.BytesIO(photo), formats=_FORMATS) as image:
            width, height = image.size
    except Exception:
        return None
    if width * height <= max_pixels:
        return None
    return Unreadable(
        "too_large",
        f"The photo has {width}x{height} pixels, more than {max_pixels / 1e6:g} million:"
        " send a smaller one.",
    )


def _top(request: Request, classes: int) -> int:
    """Returns how many names are wanted."""
    text = request.query_params.get("top", "5")
    if not (text.isdecimal() and len(text) < 6 and int(text)):
        raise RefusedError(400, "top", f"top={text[:20]!r} is not a number from 1 on.")
    return min(int(text), classes)


def _error(
    status: int,
    reason: str,
    detail: str,
    headers: Mapping[str, str] | None = None,
    photo: str | None = None,
) -> JSONResponse:
    content = {"photo": photo, "error": {"reason": reason, "detail": detail}}
    return JSONResponse(content, status, {**_HEADERS, **(headers or {})})


def _no_such_thing(request: Request, error: Exception) -> Response:
    """Answers a wrong path or method, which Starlette finds."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        wanted = (
            "POST the photo there" if request.url.path == "/predict" else "only GET works there"
        )
        detail = f"{request.method} is not for {request.url.path}: {wanted}."
        return _error(405, "method", detail, error.headers)
    detail = "There is nothing here. The page is at /, the description of the API at /openapi.json."
    return _error(error.status_code, "not_found", detail, error.headers)


def _nobody_there(request: Request, error: Exception) -> Response:
    """Ends a request whose client has gone; nobody reads this."""
    return Response(status_code=400)


def _defect(request: Request, error: Exception) -> Response:
    detail = "The server failed on this photo; its log says why."
    return _error(500, "internal", detail)


def _bytes(limits: Limits) -> int:
    return int(limits.max_upload_mb * MEBIBYTE)


def _file(name: str, media_type: str) -> Callable[[Request], Awaitable[Response]]:
    """Returns an endpoint that serves a file of this package."""
    content = importlib.resources.files("trainer.serving").joinpath(name).read_text("utf-8")
    headers = {**_HEADERS, "referrer-policy": "no-referrer"}
    if media_type == "text/html":
        headers["content-security-policy"] = _policy(content)

    async def serve(request: Request) -> Response:
        return Response(content, media_type=media_type, headers=headers)

    return serve


def _policy(page: str) -> str:
    """Returns a policy that lets a page run its own script and style, and nothing else."""
    own = {}
    for tag in ("script", "style"):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        own[tag] = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{own['script']}';"
        f" style-src 'sha256-{own['style']}'; img-src blob: data:; connect-src 'self';"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
