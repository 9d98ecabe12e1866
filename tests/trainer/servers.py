"""A tiny model, and `trainer.serve` as a process of its own, asked over HTTP."""

import contextlib
import http.client
import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.trainer import commands
from trainer import checkpoint, configs, model, run_dir, strategy, train_state

CLASS_NAMES = [
    "Audi TTS Coupe 2012",
    'Ram <i onclick="x">C/V</i> & "Cargo" Van 2012',
    "Citroën 2CV",
]


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    json: Any


class Server(NamedTuple):
    process: subprocess.Popen
    port: int
    announced: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        connection = self.connect()
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, names)
        found = answer(connection)
        connection.close()
        return found


def answer(connection: http.client.HTTPConnection) -> Answer:
    response = connection.getresponse()
    content = response.read()
    is_json = response.headers.get_content_type() == "application/json"
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Answer(response.status, headers, json.loads(content) if is_json else content.decode())


def tiny_run(directory: Path) -> str:
    """Makes the run of a small model that has learned nothing yet, and returns its folder."""
    run, (height, width) = str(directory / "run"), (64, 96)
    config = configs.replace(configs.load("sample"), {"downscale": 1})
    network = model.build(config, height, width, CLASS_NAMES)
    state = train_state.create(strategy.make("one", allow_cpu=True), network, config)
    data = run_dir.DatasetInfo("data", "tiny", "0", height, width, CLASS_NAMES, "letterbox")
    run_dir.create(run, config, data)
    checkpoint.save(state, os.path.join(run, run_dir.BEST), keep=1)
    return run


@contextlib.contextmanager
def started(model: str, *flags: str, **environment: str) -> Iterator[Server]:
    """Starts a server on a free port and stops it at the end."""
    process = commands.start("trainer.serve", f"--model={model}", "--port=0", *flags, **environment)
    try:
        assert process.stdout
        announced = ""
        while not (found := re.search(r"http://\S+:(\d+)/ ", announced)):
            line = process.stdout.readline()
            assert line, process.communicate()
            announced += line
        yield Server(process, int(found[1]), announced)
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def half_sent(server: Server, photo: bytes) -> Iterator[http.client.HTTPConnection]:
    """Sends half of a photo and waits until the server has begun to read it."""
    before = server.ask("GET", "/healthz").json["queue"]["taken"]
    connection = server.connect()
    connection.putrequest("POST", "/predict")
    connection.putheader("Content-Length", str(len(photo)))
    connection.endheaders(photo[: len(photo) // 2])
    deadline = time.monotonic() + 10
    while server.ask("GET", "/healthz").json["queue"]["taken"] == before:
        assert time.monotonic() < deadline
    yield connection
    connection.close()
