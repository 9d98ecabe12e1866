"""Throws broken photos at the code that reads photos: no crash, no hang, no wrong result.

    python -m benchmarks.fuzz --mutations=100000 [--seed=0] [--processes=N]

Small JPEGs, PNGs and others are mutated at random: bits flipped, bytes replaced, blocks deleted,
doubled, swapped or cut off, and numbers in headers set to extremes. Each goes through exactly what
the job does with a photo. A process that dies, takes longer than `--seconds` for one photo, or
stores what is no JPEG of the right size is reported, with the photo's bytes kept in `--keep`. Ends
with a table of outcomes, and exit code 1 if anything was found.
"""

import dataclasses
import io
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags
from PIL import Image, features

from tfrecords import command

FLAGS = flags.FlagValues()
flags.DEFINE_integer("mutations", 100_000, "photos to try", 1, flag_values=FLAGS)
flags.DEFINE_integer("seed", 0, "of the mutations", flag_values=FLAGS)
flags.DEFINE_integer(
    "processes", os.cpu_count() or 1, "that work side by side", 1, flag_values=FLAGS
)
flags.DEFINE_float("seconds", 20.0, "for one photo; more is a hang", 0, flag_values=FLAGS)
command.DEFINE_path("keep", "runs/fuzz", "folder for the bytes of what failed", FLAGS)

_HEIGHT, _WIDTH = 48, 64
_OUTCOMES = ("stored", "unreadable", "too_large", "damaged")
_EXTREMES = (b"\x00", b"\x01", b"\x7f", b"\x80", b"\xff", b"\x00\x00", b"\xff\xff", b"\xff\xd8",
             b"\xff\xd9", b"\xff\xc0", b"\xff\xc4", b"\xff\xda", b"\x7f\xff\xff\xff")  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the fuzzer and prints what came of it."""
    command.parse(FLAGS, argv, usage=__doc__)
    started = time.monotonic()
    outcomes, failures, slowest = _fuzz()
    seconds = time.monotonic() - started
    print("\n| outcome | photos | share |\n|---|---:|---:|")
    for outcome, count in sorted(outcomes.items(), key=lambda item: -item[1]):
        print(f"| {outcome} | {count:,} | {count / FLAGS.mutations:.1%} |")
    print(
        f"\n{FLAGS.mutations:,} mutations in {seconds:.0f} s ({FLAGS.mutations / seconds:,.0f}/s),"
        f" the slowest photo {slowest:.2f} s; {len(failures)} failures"
    )
    for failure in failures:
        print(failure)
    sys.exit(1 if failures else 0)


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Returns the bytes with one to eight random wounds."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        if not out:
            break
        # Headers are short and decide most: half of the wounds go there.
        at = rng.randrange(min(len(out), rng.choice((64, 700, len(out)))))
        length = min(rng.choice((1, 2, 4, 16, 200)), len(out) - at)
        kind = rng.randrange(8)
        if kind == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at] = rng.randrange(256)
        elif kind == 2:
            extreme = rng.choice(_EXTREMES)
            out[at : at + len(extreme)] = extreme
        elif kind == 3:
            out[at : at + length] = rng.randbytes(length)
        elif kind == 4:
            del out[at : at + length]
        elif kind == 5:
            out[at:at] = out[at : at + length]
        elif kind == 6:
            other = rng.randrange(len(out) - length + 1)
            out[at : at + length], out[other : other + length] = (
                out[other : other + length], out[at : at + length],
            )  # fmt: skip
        else:
            del out[at:]
    return bytes(out)


def seeds() -> list[bytes]:
    """Returns small photos, mostly JPEGs, of every kind that the code knows."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
    photo = coarse.resize((160, 120), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "carbox"
    jpegs: list[tuple[Image.Image, dict[str, Any]]] = [
        (photo, {"quality": 90}),
        (photo, {"quality": 70, "progressive": True}),
        (photo, {"quality": 90, "exif": exif}),
        (photo, {"quality": 90, "exif": exif, "progressive": True, "subsampling": 0}),
        (photo.convert("L"), {"quality": 90}),
        (photo.convert("CMYK"), {"quality": 90}),
        (photo, {"quality": 90, "restart_marker_rows": 1, "comment": b"hello"}),
        (photo.resize((31, 17)), {"quality": 95}),
    ]
    others = ["PNG", "GIF", "BMP", "WEBP", "TIFF"]
    others += [name for name, codec in (("AVIF", "avif"), ("JPEG2000", "jpg_2000"))
               if features.check(codec)]  # fmt: skip
    alpha = photo.convert("RGBA")
    alpha.putalpha(100)
    return [
        *(_encoded(picture, "JPEG", **save) for picture, save in jpegs * 3),
        *(_encoded(photo, kind) for kind in others),
        _encoded(alpha, "PNG"),
        _encoded(photo, "TIFF", compression="tiff_lzw"),
    ]


def _encoded(picture: Image.Image, kind: str, **save: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **save)
    return out.getvalue()


def _fuzz() -> tuple[dict[str, int], list[str], float]:
    workers = [_Worker(number) for number in range(FLAGS.processes)]
    failures: list[str] = []
    shown = time.monotonic()
    while any(worker.is_busy for worker in workers):
        time.sleep(0.1)
        for worker in workers:
            if how := worker.watch():
                failures.append(f"{how}: {_keep(worker.position)}")
        if time.monotonic() - shown > 10:
            shown = time.monotonic()
            done = sum(worker.counts.sum() for worker in workers)
            print(f"{done:,.0f}/{FLAGS.mutations:,} photos, {len(failures)} failures", flush=True)
    counts = np.sum([worker.counts for worker in workers], axis=0).astype(int)
    outcomes = dict(zip(_OUTCOMES, counts.tolist(), strict=True))
    for how in ("crash", "hang"):
        outcomes[how] = sum(failure.startswith(how) for failure in failures)
    return outcomes, failures, max(worker.slowest for worker in workers)


def _keep(position: int) -> str:
    os.makedirs(FLAGS.keep, exist_ok=True)
    path = os.path.join(FLAGS.keep, f"{FLAGS.seed}-{position}.jpg")
    with open(path, "wb") as file:
        file.write(_mutation(FLAGS.seed, position, seeds()))
    return path


class _Worker:
    """A process that works through its share of positions; started anew when it dies or hangs.

    What it did stands in shared memory, which outlives it: the position and since when it is at
    it, the longest time for a photo, and how many photos had each outcome.
    """

    def __init__(self, number: int):
        self._context = multiprocessing.get_context("spawn")
        self._shared = self._context.RawArray("d", 3 + len(_OUTCOMES))
        self._state = np.frombuffer(self._shared)
        self._state[0] = number
        self._ended_at = number
        self._process: Any = self._start()

    @property
    def is_busy(self) -> bool:
        return self._process is not None

    @property
    def position(self) -> int:
        """Of the photo at which the last process ended."""
        return self._ended_at

    @property
    def slowest(self) -> float:
        return float(self._state[2])

    @property
    def counts(self) -> np.ndarray:
        return self._state[3:]

    def watch(self) -> str:
        """Returns how the process ended, if it ended badly; a new one goes on behind it."""
        if self._process is None:
            return ""
        how = ""
        if not self._process.is_alive():
            if self._process.exitcode == 0:
                self._process = None
                return ""
            how = "crash"
        elif self._state[1] and time.monotonic() - self._state[1] > FLAGS.seconds:
            how = "hang"
        if how:
            self._process.kill()
            self._process.join()
            self._ended_at = int(self._state[0])
            self._state[0] += FLAGS.processes
            self._process = self._start()
        return how

    def _start(self) -> Any:
        self._state[1] = 0  # the clock runs from the first photo on: imports take seconds
        arguments = (FLAGS.flag_values_dict(), self._shared)
        process = self._context.Process(target=_work, args=arguments, daemon=True)
        process.start()
        return process


def _work(given: dict[str, Any], shared: Any) -> None:
    """Works from the position in shared memory to the end, in steps of the number of processes."""
    from tfrecords import image

    state = np.frombuffer(shared)
    options = image.ImageOptions(_HEIGHT, _WIDTH, max_pixels=1_000_000)
    keeping = dataclasses.replace(options, keep_damaged=True)
    photos = seeds()
    for position in range(int(state[0]), given["mutations"], given["processes"]):
        data = _mutation(given["seed"], position, photos)
        state[0], state[1] = position, time.monotonic()
        # Every other photo is kept as far as it can be decoded, so that this is tried as well.
        try:
            photo = image.prepare(data, keeping if position // 2 % 2 else options)
        except image.Rejected as rejected:
            outcome = rejected.reason
        else:
            outcome = "stored"
            if not _is_good(photo.encoded):
                raise AssertionError(f"mutation {position}: what is stored is no JPEG of its size")
        state[2] = max(state[2], time.monotonic() - state[1])
        state[3 + _OUTCOMES.index(outcome)] += 1
    state[1] = 0


def _mutation(seed: int, position: int, photos: list[bytes]) -> bytes:
    rng = random.Random(f"{seed} {position}")
    return mutate(rng.choice(photos), rng)


def _is_good(encoded: bytes) -> bool:
    with Image.open(io.BytesIO(encoded)) as picture:
        picture.load()
        return (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (_WIDTH, _HEIGHT))


if __name__ == "__main__":
    command.run(main)
