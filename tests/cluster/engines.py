"""Downloads and builds the engines once, by pip, Maven and Go with the user's own settings."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

CACHE = Path("~/.cache/carbox-cluster").expanduser()
FLINK = "apache-flink-libraries==1.19.3"
_MODULE = "github.com/apache/beam/sdks/v2/go/cmd/prism"


class Engines(NamedTuple):
    """Where they are: Flink's jars, Beam's job server for it, Prism's binary."""

    flink: Path
    job_server: Path
    prism: Path


def get() -> Engines:
    """Returns the engines, after building those that the cache lacks."""
    for program in ("java", "mvn", "go"):
        if not shutil.which(program):
            raise SystemExit(f"{program} is missing: install Java 17, Maven and Go (1.26 or later)")
    return Engines(_flink(), _job_server(), _prism())


def _flink() -> Path:
    folder = CACHE / FLINK
    if not folder.exists():
        made = _fresh(f"{FLINK}.partial")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", f"--target={made}"]
        _build("Flink", [*pip, FLINK], made)
        made.rename(folder)
    return folder / "pyflink" / "lib"


def _job_server() -> Path:
    source = Path(__file__).with_name("job-server.xml")
    target = CACHE / "job-server.jar"
    if not target.exists() or target.stat().st_mtime < source.stat().st_mtime:
        made = _fresh("job-server.partial")
        shutil.copy(source, made / "pom.xml")
        _build("Beam's job server", ["mvn", "--quiet", "--batch-mode", "package"], made)
        (made / "target" / "flink-job-server-1.jar").rename(target)
        shutil.rmtree(made)
    return target


def _prism() -> Path:
    version = importlib.metadata.version("apache-beam")
    target = CACHE / f"prism-{version}"
    if not target.exists():
        made = _fresh("prism.partial")
        _build("Prism", ["go", "install", f"{_MODULE}@v{version}"], made, GOBIN=str(made))
        (made / "prism").rename(target)
        shutil.rmtree(made)
    return target


def _fresh(name: str) -> Path:
    folder = CACHE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _build(what: str, command: list[str], folder: Path, **environment: str) -> None:
    print(f"building {what} in {folder}", flush=True)
    begin = time.monotonic()
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{what} cannot be built:\n{done.stdout[-3000:]}")
    print(f"  {time.monotonic() - begin:.0f} s", flush=True)
