"""What every worker must share with the driver, and how it shows that it is alive.

A worker with other versions, or one that sees other files under the same paths, would write other
bytes or none. It is stopped before it opens a photo: an `Environment` travels with the settings of
the pipeline, and to unpickle it where something differs is an error. Flink hangs on an error that
comes so early, so the worker also leaves the reason in the incomplete folder, where the driver
looks.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apache_beam as beam

import preprocess
import tfrecords
from preprocess import photos, publish, shard, storage
from tfrecords.errors import UserError

VARIABLE = "CARBOX_DRIVER"
"""In the environment of `carbox-worker`: that of the driver as JSON."""

_HEARTBEAT_SECONDS = 5.0
_HEARTBEAT_SECONDS_REMOTE = 30.0

_last_heartbeat: dict[str, float] = {}  # by run
_shared: set[str] = set()  # runs whose folders this process sees


@functools.cache
def versions() -> dict[str, str]:
    """Returns the versions of this process that decide what a worker does."""
    libraries = publish.libraries() | {"apache-beam": beam.__version__, "carbox": _carbox()}
    libraries["python"] = ".".join(platform.python_version_tuple()[:2])
    return libraries


def _carbox() -> str:
    """Returns carbox's version and a hash of its code: development does not raise a version."""
    digest = hashlib.sha256()
    for package in (preprocess, tfrecords):
        root = Path(str(package.__file__)).parent
        for path in sorted(root.rglob("*.py")):
            digest.update(f"{package.__name__}/{path.relative_to(root)}\n".encode())
            digest.update(path.read_bytes())
    try:
        version = importlib.metadata.version("carbox")
    except importlib.metadata.PackageNotFoundError:  # it is on the path only
        version = "not installed"
    return f"{version} (code {digest.hexdigest()[:8]})"


@dataclass(frozen=True)
class Environment:
    """The driver's environment; every copy of it is in an equal one.

    Attributes:
        folder: the incomplete folder, which all workers share.
        run: names this run of the pipeline.
        versions: as `versions`.
        csv: a file of the input that each worker must see, if there is one.
        csv_sha256: of its bytes.
    """

    folder: str
    run: str
    versions: dict[str, str] = field(default_factory=versions)
    csv: storage.Entry | None = None
    csv_sha256: str = ""

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores a pickled one.

        Raises:
            UserError: this process has other versions.
        """
        self.__dict__.update(state)
        self.require_versions()

    def require_versions(self) -> None:
        """Compares this process with the driver.

        Raises:
            UserError: this process has other versions.
        """
        here, there = versions(), self.versions
        names = sorted(here.keys() | there.keys())
        differ = [name for name in names if here.get(name) != there.get(name)]
        if differ:
            theirs, ours = (
                ", ".join(f"{name} {of.get(name, 'not at all')}" for name in differ)
                for of in (here, there)
            )
            raise self.refusal(
                f"a worker on {socket.gethostname()} has {theirs}; the machine that started the"
                f" job has {ours}. Install the same on both"
            )

    def to_json(self) -> str:
        """Returns what `carbox-worker` compares before it starts, for its variable `VARIABLE`."""
        return json.dumps([self.folder, self.run, self.versions])

    @classmethod
    def from_json(cls, text: str) -> "Environment":
        """Parses that."""
        return cls(*json.loads(text))

    def refusal(self, why: str) -> UserError:
        """Returns an error, after telling the driver."""
        with contextlib.suppress(OSError):  # this worker may not see the folder
            storage.write(refusal_path(self.folder, self.run), why.encode(), sync=False)
        return UserError(why)

    @classmethod
    def of(
        cls, folder: str, run: str, source: storage.Source, csvs: Iterable[storage.Entry]
    ) -> "Environment":
        """Returns this process's environment, with the smallest of the input's CSVs."""
        csv = min(csvs, key=lambda entry: entry.size, default=None)
        if csv is None:
            return cls(folder, run)
        return cls(folder, run, csv=csv, csv_sha256=_sha256(source, csv))


def mark(settings: photos.Settings) -> None:
    """Leaves a file in the incomplete folder, by which workers know that they see the same one."""
    storage.write(_mark_path(settings), b"", sync=False)


def require_shared(settings: photos.Settings, environment: Environment) -> None:
    """Checks once in a process that it sees the input and the incomplete folder.

    Raises:
        UserError: it does not.
    """
    if settings.run in _shared:
        return
    where = f"a worker on {socket.gethostname()}"
    try:
        source = settings.open_source()
        same = not environment.csv or _sha256(source, environment.csv) == environment.csv_sha256
    except (UserError, OSError, ValueError) as error:
        raise environment.refusal(f"{where} cannot read the input: {error}") from None
    if not same:
        raise environment.refusal(
            f"{where} sees another input at --input={settings.source} than the machine that"
            " started the job. All machines must see the same files there"
        )
    try:
        storage.read(_mark_path(settings))
    except OSError:
        raise environment.refusal(
            f"{where} does not see {settings.folder}, where the machine that started the job keeps"
            " what is not finished. All machines must share --output under the same path"
        ) from None
    _shared.add(settings.run)


def heartbeat(settings: photos.Settings) -> None:
    """Shows the driver that a worker is at work; costs nothing when called often."""
    now = time.monotonic()
    seconds = (
        _HEARTBEAT_SECONDS_REMOTE if storage.is_remote(settings.folder) else _HEARTBEAT_SECONDS
    )
    if now - _last_heartbeat.get(settings.run, -seconds) >= seconds:
        _last_heartbeat[settings.run] = now
        path = heartbeat_path(settings.folder, settings.run)
        with shard.naming(path):
            storage.write(path, os.urandom(8), sync=False)


def heartbeat_path(folder: str, run: str) -> str:
    """Returns where the last worker that was alive has left its mark."""
    return f"{folder}/progress/heartbeat-{run}"


def refusal_path(folder: str, run: str) -> str:
    """Returns where a worker says why it does not work."""
    return f"{folder}/progress/refused-{run}"


def _mark_path(settings: photos.Settings) -> str:
    return f"{settings.folder}/progress/driver-{settings.run}"


def _sha256(source: storage.Source, entry: storage.Entry) -> str:
    return hashlib.sha256(source.read(entry)).hexdigest()
