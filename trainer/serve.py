"""Serves a model: a page for people, and JSON for programs.

    python -m trainer.serve --model=RUN|EXPORT [--host=127.0.0.1] [--port=8080]

The page at `/` takes a photo that is dropped, pasted, chosen or taken by a phone's camera. Programs
send the bytes of a photo, or a form with one file; `/openapi.json` describes the answers:

    curl --data-binary @photo.jpg http://127.0.0.1:8080/predict
    curl --form photo=@photo.jpg 'http://127.0.0.1:8080/predict?top=3'

`/healthz` answers as soon as the model is loaded. Photos that come at about the same time are
judged together. When the queue is full, further photos are refused with status 503. No photo is
kept. Only this machine can reach the server unless --host says otherwise. Ctrl-C or SIGTERM stops
it after the photos that it has.
"""

import contextlib
import errno
import io
import ipaddress
import os
import signal
import socket
import sys
from collections import Counter
from collections.abc import Iterator, Sequence

from absl import flags

from tfrecords import command, remote
from tfrecords.errors import UserError, extra

with extra("serve"):
    import python_multipart  # noqa: F401 - Starlette misses it only when a form comes
    import uvicorn
    from PIL import Image

    from trainer import predictor
    from trainer.serving import app

FLAGS = flags.FlagValues()
command.DEFINE_path("model", None, "a run or an export", flag_values=FLAGS)
flags.DEFINE_string("host", "127.0.0.1", "address to listen on; 0.0.0.0 for all", flag_values=FLAGS)
flags.DEFINE_integer("port", 8080, "port to listen on; 0 for any free one", 0, 65535,
                     flag_values=FLAGS)  # fmt: skip
flags.DEFINE_float("max_upload_mb", 20.0, "largest file of a photo, in MB", 0.001, 1000.0,
                   flag_values=FLAGS)  # fmt: skip
flags.DEFINE_integer("max_pixels", 50_000_000, "largest photo, height times width", 1, 100_000_000,
                     flag_values=FLAGS)  # fmt: skip
flags.DEFINE_integer("queue", 64, "photos uploaded, waiting and judged at once; others are refused",
                     1, flag_values=FLAGS)  # fmt: skip
flags.DEFINE_integer("batch_size", 16, "photos judged together, at most", 1, flag_values=FLAGS)
flags.DEFINE_float("batch_wait_ms", 3.0, "how long a batch waits for uploads under way, at most",
                   0.0, 1000.0, flag_values=FLAGS)  # fmt: skip

_GRACE_SECONDS = 10  # for the photos that the server has when it is stopped


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command until it is stopped.

    Args:
        argv: flags; those of the command line if absent.

    Raises:
        UserError: there is no model, or nothing can listen at that address.
    """
    command.parse(FLAGS, argv, usage=__doc__)
    path = command.required(FLAGS, "model")
    limits = app.Limits(
        max_upload_mb=FLAGS.max_upload_mb,
        max_pixels=FLAGS.max_pixels,
        queue=FLAGS.queue,
        batch_size=FLAGS.batch_size,
        batch_wait_ms=FLAGS.batch_wait_ms,
    )
    with _listen(FLAGS.host, FLAGS.port) as listener:
        print(f"loading {path}", flush=True)
        model = predictor.load(remote.model(path, "model"))
        model.predict_bytes([_gray_photo()])  # the first photo takes seconds
        answers: Counter[int] = Counter()
        server = _server(app.make(model, _name(path), limits, answers))
        with _stopped_by_signals(server):
            _announce(listener, len(model.class_names), limits)
            server.run(sockets=[listener])
    print(_summary(answers))


def _listen(host: str, port: int) -> socket.socket:
    """Returns a socket that listens, so that a port in use is told before the model is loaded.

    Raises:
        UserError: it cannot be had.
    """
    where = f"--host={host} --port={port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError):
        raise UserError(
            f"{where}: this machine knows no address of that name. Use 127.0.0.1 for this machine"
            " only, or 0.0.0.0 for all its addresses."
        ) from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(socket.SOMAXCONN)
    except OSError as error:
        listener.close()
        raise UserError(f"{where}: {_why_not(error, port)}") from None
    return listener


def _why_not(error: OSError, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {port} is in use by another program. Stop that, or choose another --port;"
            " --port=0 takes any that is free."
        )
    if error.errno == errno.EACCES:
        return f"port {port} may only be used by root. Choose a --port from 1024 on."
    if error.errno == errno.EADDRNOTAVAIL:
        return "this machine has no such address. Use 0.0.0.0 for all its addresses."
    return f"nothing can listen there: {error.strerror}."


def _announce(listener: socket.socket, classes: int, limits: app.Limits) -> None:
    host, port = listener.getsockname()[:2]
    address = ipaddress.ip_address(host)
    if not address.is_loopback:
        print(
            f"warning: whoever reaches this machine on port {port} can send photos, without a"
            " password and without encryption. Let a reverse proxy that has both stand before it,"
            " or leave --host out.",
            file=sys.stderr,
        )
    if address.is_unspecified:
        host = socket.gethostname()
    elif address.version == 6:
        host = f"[{host}]"
    print(
        f"serving {FLAGS.model}: {classes} classes; photos up to {limits.max_upload_mb:g} MB and"
        f" {limits.max_pixels / 1e6:g} million pixels, {limits.queue} at a time\n"
        f"open http://{host}:{port}/ or POST a photo to http://{host}:{port}/predict; Ctrl-C stops",
        flush=True,
    )


def _server(application: app.Starlette) -> uvicorn.Server:
    config = uvicorn.Config(
        application,
        # Named, so that a server does not depend on what else is installed.
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    return uvicorn.Server(config)


@contextlib.contextmanager
def _stopped_by_signals(server: uvicorn.Server) -> Iterator[None]:
    """Takes SIGINT and SIGTERM for the wish to stop, which is no failure.

    uvicorn listens to them while it runs, and raises what stopped it again when it is done.
    """

    def stop(number: int, frame: object) -> None:
        server.should_exit = True

    kept = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _summary(answers: Counter[int]) -> str:
    others = sum(answers.values()) - answers[200] - answers[503]
    return f"stopped: {answers[200]:,} photos judged, {others:,} not, {answers[503]:,} refused"


def _name(model: str) -> str:
    return os.path.basename(os.path.normpath(model))


def _gray_photo() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (64, 64), "gray").save(out, "PNG")
    return out.getvalue()


if __name__ == "__main__":
    command.run(main)
