"""What the server does under load, beside prediction without a server.

    python -m benchmarks.serve --model=RUN|EXPORT [--seconds=60] [--clients=50] [--crowd=500]
        [--malformed=2000] [--photos=FOLDER] [--report=FILE]

Four measurements on one server with a queue of 64, started as a process of its own:

- `predict`: the same photos by `Model.predict_bytes`, in this process, before the server starts;
- clients that each send one photo after the other: none may be refused;
- a crowd of more clients than the queue has places: each answer is 200 or 503. Whoever is refused
  comes again after the seconds that `Retry-After` names;
- malformed bodies: damaged photos, broken forms, bombs, nonsense instead of HTTP. The server goes
  on, answers none with 5xx, and its memory stays where it is.

The exit code is 1 when something of this does not hold. Clients share the machine with the server.
"""

import asyncio
import collections
import contextlib
import io
import json
import os
import random
import re
import statistics
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import psutil
from absl import flags
from PIL import Image

from benchmarks import fuzz
from tfrecords import command
from tfrecords.errors import UserError
from trainer import predictor

FLAGS = flags.FlagValues()
command.DEFINE_path("model", None, "a run or an export", flag_values=FLAGS)
flags.DEFINE_float("seconds", 60.0, "of each load", 0.1, flag_values=FLAGS)
flags.DEFINE_integer("clients", 50, "clients at a time", 1, 64, flag_values=FLAGS)
flags.DEFINE_integer("crowd", 500, "clients at a time, more than the queue takes", 65,
                     flag_values=FLAGS)  # fmt: skip
flags.DEFINE_integer("malformed", 2000, "malformed bodies", 10, flag_values=FLAGS)
command.DEFINE_path("photos", None, "folder of JPEGs; made up by default", flag_values=FLAGS)
command.DEFINE_path("report", None, "JSON file for the figures", flag_values=FLAGS)

_QUEUE = 64
_GROWTH_MB = 30.0  # of memory, over the malformed bodies, that is still called flat
_SENDERS = 16  # of malformed bodies at a time
_PATIENCE_SECONDS = 2.0  # for the answer to a body of which not all comes
_CLOSED, _LEFT = 0, 1  # stand for a status: the server closed the connection, or the client did
_WORDS = {_CLOSED: "closed by the server", _LEFT: "left by the client"}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command.

    Raises:
        UserError: the server did not do what it must; the message says what.
    """
    command.parse(FLAGS, argv, usage=__doc__)
    command.required(FLAGS, "model")
    photos = _read_photos(FLAGS.photos) if FLAGS.photos else _made_up_photos()
    figures: dict[str, Any] = {"predict": _predict(photos)}
    with _server() as (process, port):
        for name, clients in (("clients", FLAGS.clients), ("crowd", FLAGS.crowd)):
            before = _cpu(process)
            figures[name] = asyncio.run(_load(port, photos, clients, FLAGS.seconds))
            judged = max(figures[name]["answers"].get(200, 0), 1)
            figures[name]["cpu_ms"] = 1000 * (_cpu(process) - before) / judged
        figures["malformed"] = _malformed(port, process)
        is_alive = process.is_running() and asyncio.run(_ask(port, photos[0])) == 200
    _print(figures)
    if FLAGS.report:
        with open(FLAGS.report, "w") as file:
            json.dump(figures, file, indent=1)
    if faults := [*_faults(figures), *["the server does not answer any more"] * (not is_alive)]:
        raise UserError("; ".join(faults))


def _faults(figures: dict[str, Any]) -> Iterator[str]:
    if others := set(figures["clients"]["answers"]) - {200}:
        yield f"{FLAGS.clients} clients were answered with {sorted(others)}"
    if others := set(figures["crowd"]["answers"]) - {200, 503}:
        yield f"{FLAGS.crowd} clients were answered with {sorted(others)}"
    if others := {status for status in figures["malformed"]["answers"] if status >= 500}:
        yield f"malformed bodies were answered with {sorted(others)}"
    if figures["malformed"]["growth_mb"] > _GROWTH_MB:
        yield f"memory grew by {figures['malformed']['growth_mb']:.0f} MB over malformed bodies"


def _print(figures: dict[str, Any]) -> None:
    predict = figures["predict"]
    print("\n| | photos/s | of predict | CPU ms a photo | p50 | p99 | answers |")
    print("|---|---:|---:|---:|---:|---:|---|")
    print(
        f"| predict, without a server | {predict['rate']:.1f} | 1.00 | {predict['cpu_ms']:.1f}"
        " | | | |"
    )
    for name in ("clients", "crowd"):
        found = figures[name]
        print(
            f"| {found['clients']} clients, {found['seconds']:.0f} s"
            f" | {found['rate']:.1f} | {found['rate'] / predict['rate']:.2f}"
            f" | {found['cpu_ms']:.1f}"
            f" | {found['p50_ms']:.0f} ms | {found['p99_ms']:.0f} ms"
            f" | {_counts(found['answers'])} |"
        )
    found = figures["malformed"]
    print(
        f"\n{found['bodies']:,} malformed bodies in {found['seconds']:.0f} s:"
        f" {_counts(found['answers'])}; memory {found['before_mb']:.0f} MB before,"
        f" {found['after_mb']:.0f} MB after"
    )


def _counts(answers: dict[int, int]) -> str:
    return ", ".join(
        f"{count:,} x {_WORDS.get(status, status)}" for status, count in sorted(answers.items())
    )


def _predict(photos: Sequence[bytes]) -> dict[str, float]:
    """Returns the rate of prediction without a server, in this process."""
    model = predictor.load(FLAGS.model)
    model.predict_bytes(photos)
    count, started, seconds = 0, time.perf_counter(), min(FLAGS.seconds, 20.0)
    before = _cpu(psutil.Process())
    while (passed := time.perf_counter() - started) < seconds:
        model.predict_bytes(photos)
        count += len(photos)
    cpu = _cpu(psutil.Process()) - before
    return {"rate": count / passed, "cpu_ms": 1000 * cpu / count}


def _cpu(process: psutil.Process) -> float:
    """Returns the seconds of CPU that a process has used."""
    times = process.cpu_times()
    return times.user + times.system


@contextlib.contextmanager
def _server() -> Iterator[tuple[psutil.Process, int]]:
    """Starts the server; returns its process and its port."""
    words = [sys.executable, "-m", "trainer.serve", f"--model={FLAGS.model}", "--port=0"]
    words.append(f"--queue={_QUEUE}")
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            for line in process.stdout:
                if found := re.search(r"http://\S+:(\d+)/ ", line):
                    break
            else:
                raise UserError("the server did not start; see its message above.")
            yield psutil.Process(process.pid), int(found[1])
        finally:
            process.terminate()


async def _load(port: int, photos: Sequence[bytes], clients: int, seconds: float) -> dict[str, Any]:
    """Lets clients send one photo after the other, each on a connection of its own.

    Returns:
        Figures: the rate and the latencies are those of answers with 200.
    """
    answers: collections.Counter[int] = collections.Counter()
    latencies: list[float] = []
    started = time.perf_counter()

    async def client(number: int) -> None:
        requests = [_request(photo) for photo in photos]
        turn = number
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() - started < seconds:
            began = time.perf_counter()
            writer.write(requests[turn % len(requests)])
            await writer.drain()
            status, retry = await _answer(reader)
            answers[status] += 1
            if status == 200:
                latencies.append(time.perf_counter() - began)
                turn += 1
            else:
                await asyncio.sleep(retry)
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*(client(number) for number in range(clients)))
    passed = time.perf_counter() - started
    percentiles = statistics.quantiles(latencies, n=100) if len(latencies) > 1 else [0.0] * 99
    return {
        "clients": clients,
        "seconds": passed,
        "answers": dict(answers),
        "rate": answers[200] / passed,
        "p50_ms": 1000 * percentiles[49],
        "p99_ms": 1000 * percentiles[98],
    }


def _malformed(port: int, process: psutil.Process) -> dict[str, Any]:
    """Sends malformed bodies, the first tenth to warm up, and watches the server's memory."""
    answers: collections.Counter[int] = collections.Counter()

    async def send(first: int, last: int) -> None:
        numbers = iter(range(first, last))

        async def sender() -> None:
            for number in numbers:
                answers[await _send_malformed(port, _nonsense(number))] += 1

        await asyncio.gather(*(sender() for _ in range(_SENDERS)))

    warm = FLAGS.malformed // 10
    asyncio.run(send(0, warm))
    answers.clear()
    before, started = process.memory_info().rss / 1e6, time.perf_counter()
    asyncio.run(send(warm, warm + FLAGS.malformed))
    after = process.memory_info().rss / 1e6
    return {
        "bodies": FLAGS.malformed,
        "seconds": time.perf_counter() - started,
        "answers": dict(answers),
        "before_mb": before,
        "after_mb": after,
        "growth_mb": after - before,
    }


async def _ask(port: int, photo: bytes) -> int:
    return await _send_malformed(port, _request(photo))


async def _send_malformed(port: int, request: bytes) -> int:
    """Sends bytes and returns the status of the answer, if one comes soon."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        await writer.drain()
        async with asyncio.timeout(_PATIENCE_SECONDS):
            return (await _answer(reader))[0]
    except (ConnectionError, asyncio.IncompleteReadError):
        return _CLOSED
    except TimeoutError:
        return _LEFT
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def _answer(reader: asyncio.StreamReader) -> tuple[int, float]:
    """Returns an answer's status, and the seconds after which to come again."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if length := re.search(rb"\r\ncontent-length: (\d+)", head):
        await reader.readexactly(int(length[1]))
    retry = re.search(rb"\r\nretry-after: (\d+)", head)
    return int(head.split(None, 2)[1]), float(retry[1]) if retry else 0.0


def _request(body: bytes, *headers: str, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    lines = ["POST /predict HTTP/1.1", "Host: localhost", f"Content-Length: {size}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def _nonsense(number: int) -> bytes:
    """Returns a malformed request; the same one for the same number."""
    rng = random.Random(number)
    damaged = fuzz.mutate(rng.choice(_SEEDS), rng)
    form = "Content-Type: multipart/form-data; boundary=x"
    part = b'--x\r\nContent-Disposition: form-data; name="f"; filename="a"\r\n\r\n'
    kinds: list[Callable[[], bytes]] = [
        lambda: _request(damaged),
        lambda: _request(damaged),
        lambda: _request(part + damaged + b"\r\n--x--\r\n", form),
        lambda: _request(fuzz.mutate(part + damaged + b"\r\n--x--\r\n", rng), form),
        lambda: _request(rng.randbytes(rng.choice((0, 1, 100, 100_000)))),
        lambda: _request(damaged, length=len(damaged) + 1000),  # the client leaves half-way
        lambda: _request(damaged, length=len(damaged) // 2),
        lambda: _request(_bomb(rng.choice((20_000, 60_000)))),
        lambda: _request(b"\0" * (22 << 20)),
        lambda: _request(damaged, "Transfer-Encoding: chunked"),
        lambda: fuzz.mutate(_request(damaged), rng),
        lambda: rng.randbytes(1000),
        lambda: _request(damaged, "X-Long: " + "x" * rng.choice((1000, 100_000))),
    ]
    return kinds[number % len(kinds)]()


def _bomb(side: int) -> bytes:
    """A PNG of a few bytes that says it has side x side pixels."""
    out = b"\x89PNG\r\n\x1a\n"
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")):
        out += struct.pack(">I", len(data)) + kind + data
        out += struct.pack(">I", zlib.crc32(kind + data))
    return out


_SEEDS = fuzz.seeds()


def _read_photos(folder: str) -> list[bytes]:
    paths = [os.path.join(where, name) for where, _, names in os.walk(folder) for name in names]
    photos = [path for path in sorted(paths) if path.lower().endswith((".jpg", ".jpeg"))]
    if not photos:
        raise UserError(f"--photos={folder} holds no JPEG.")
    found = []
    for path in photos[:256]:
        with open(path, "rb") as file:
            found.append(file.read())
    return found


def _made_up_photos() -> list[bytes]:
    """Returns 64 JPEGs of 640x480 pixels, of about 60 KB each."""
    rng = np.random.default_rng(0)
    photos = []
    for _ in range(64):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8))
        smooth = np.asarray(coarse.resize((640, 480), Image.Resampling.BICUBIC)).astype(int)
        noisy = np.clip(smooth + rng.integers(-8, 9, smooth.shape), 0, 255).astype(np.uint8)
        out = io.BytesIO()
        Image.fromarray(noisy).save(out, "JPEG", quality=85)
        photos.append(out.getvalue())
    return photos


if __name__ == "__main__":
    command.run(main)
