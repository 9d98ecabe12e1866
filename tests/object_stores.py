"""Object stores on this machine, as processes of their own: moto and MinIO, an emulator of GCS.

Between a store and its users stands a door, which a test shuts to take the store away.
"""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import fsspec

BUCKET = "carbox-tests"
MINIO = "github.com/minio/minio@v0.0.0-20260212201848-7aac2a2c5b7c"
TOOLS = os.path.expanduser("~/.cache/carbox-servers")

_MINIO = os.path.join(TOOLS, "minio")


class Door:
    """Passes connections on to a port; while it is shut, nobody listens and none is left."""

    def __init__(self, target: int):
        """Opens at a free port, which stays its own."""
        self._target = target
        self._passing: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._serve()

    def shut(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for one in self._passing:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._passing.clear()

    def open(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self._serve()

    def _serve(self) -> None:
        threading.Thread(target=self._accept, args=[self._listener], daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                self._passing += [client, server]
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=_pump, args=pair, daemon=True).start()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    for one in (source, target):
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)


@dataclass(frozen=True)
class Store:
    """A store with one bucket.

    Attributes:
        name: of the server.
        url: of the bucket.
        environment: in which a process finds the store.
        door: to shut and to open.
    """

    name: str
    url: str
    environment: dict[str, str]
    door: Door

    def objects(self, folder: str) -> dict[str, bytes]:
        """Returns the objects below a folder of the bucket, by their relative names."""
        system, root = fsspec.url_to_fs(f"{self.url}/{folder}", use_listings_cache=False)
        return {name: system.cat_file(f"{root}/{name}") for name in self.names(folder)}

    def names(self, folder: str) -> list[str]:
        """Returns the relative names of the objects below a folder of the bucket."""
        system, root = fsspec.url_to_fs(f"{self.url}/{folder}", use_listings_cache=False)
        return [path[len(root) + 1 :] for path in system.find(root)]

    def put(self, folder: str, name: str) -> None:
        """Copies a local folder into the bucket."""
        for parent, _, files in os.walk(folder):
            for file in files:
                path = os.path.join(parent, file)
                with open(path, "rb") as content:
                    self.write(f"{name}/{os.path.relpath(path, folder)}", content.read())

    def write(self, name: str, data: bytes) -> None:
        system, path = fsspec.url_to_fs(f"{self.url}/{name}", use_listings_cache=False)
        system.pipe_file(path, data)


@contextlib.contextmanager
def moto() -> Iterator[Store]:
    """Starts moto, which speaks the protocol of S3 and lets everybody in."""

    def command(port: int) -> list[str]:
        return [sys.executable, "-m", "moto.server", f"--port={port}"]

    with _process(command) as port, _s3("moto", port, "tests") as store:
        yield store


@contextlib.contextmanager
def minio() -> Iterator[Store]:
    """Starts MinIO, which speaks the protocol of S3 and knows one user."""
    with tempfile.TemporaryDirectory() as folder:

        def command(port: int) -> list[str]:
            return [_MINIO, "server", f"--address=127.0.0.1:{port}", folder]

        with _process(command) as port, _s3("minio", port, "minioadmin") as store:
            yield store


@contextlib.contextmanager
def _s3(name: str, port: int, user: str) -> Iterator[Store]:
    door = Door(port)
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{door.port}",
        "AWS_ACCESS_KEY_ID": user,
        "AWS_SECRET_ACCESS_KEY": user,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with _set(environment):
        fsspec.filesystem("s3", skip_instance_cache=True).mkdir(BUCKET)
        yield Store(name, f"s3://{BUCKET}", environment, door)


@contextlib.contextmanager
def gs() -> Iterator[Store]:
    """Starts gcp-storage-emulator, which speaks the protocol of GCS and lets everybody in."""

    def command(port: int) -> list[str]:
        flags = ["--host=127.0.0.1", f"--port={port}", "--in-memory", "--quiet"]
        return [sys.executable, "-m", "gcp_storage_emulator", "start", *flags]

    with _process(command) as port:
        door = Door(port)
        address = f"http://127.0.0.1:{door.port}"
        environment = {
            "STORAGE_EMULATOR_HOST": address,
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            "GOOGLE_CLOUD_PROJECT": "tests",
        }
        with _set(environment):
            fsspec.filesystem("gs", skip_instance_cache=True).mkdir(BUCKET)
            yield Store("gs", f"gs://{BUCKET}", environment, door)


def missing(name: str) -> str:
    """Returns how to get the server of a store, or nothing where it is there."""
    if name != "minio" or os.path.exists(_MINIO):
        return ""
    return f"get it by GOBIN={TOOLS} go install {MINIO}"


@contextlib.contextmanager
def _set(environment: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _process(command: Callable[[int], list[str]]) -> Iterator[int]:
    """Starts a server, waits until it answers, and gives its port."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command(port), **silent) as process:
        try:
            deadline = time.monotonic() + 60
            while True:
                with contextlib.suppress(ConnectionRefusedError):
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                assert process.poll() is None, command(port)
                assert time.monotonic() < deadline
                time.sleep(0.1)
            yield port
        finally:
            process.kill()
