"""Builds the three images and runs each, on a machine that has no container engine.

    make docker-test [EXTRA=train]

It needs root, Go, and `apt-get install buildah debootstrap`. Debian's own Python stands in for the
base image, and Beam's program `boot`, built from its Go module, for Beam's image. The settings and
certificates that pip has on this machine are lent to the builds and are in no image.

Then a job runs on a pool of workers from `preprocess`, `trainer` trains on its records, is stopped
by SIGTERM and goes on, and `serve` answers a photo with that model. The last line is JSON; a part
that cannot run fails the test. EXTRA=train builds the trainer without the 4.4 GB of CUDA.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
IMAGES = ("preprocess", "trainer", "serve")
CERTIFICATES = "/etc/ssl/certs"
JOB_PORT, POOL_PORT, SERVE_PORT = 18099, 50000, 8080  # the last two are those of the images
CODE_USER = 1000
GPU_DISK_GB = 30


def main() -> None:
    """Runs all parts, in order; each needs those before it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--extra", choices=["gpu", "train"], default="gpu")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "docker-test")
    options = parser.parse_args()
    for program in ("buildah", "debootstrap", "go"):
        if not shutil.which(program):
            sys.exit(f"error: {program} is missing; see the top of {__file__}")
    if os.geteuid():
        sys.exit(f"error: it needs root; see the top of {__file__}")
    options.work.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(options.work).free / 1e9
    if options.extra == "gpu" and free < GPU_DISK_GB:
        sys.exit(
            f"error: {options.work} has {free:.0f} GB free, and the trainer with CUDA needs"
            f" {GPU_DISK_GB}. Free some, or run `make docker-test EXTRA=train`."
        )
    test = Test(options.work.resolve(), options.extra)
    found: dict[str, Any] = {"extra": options.extra}
    try:
        for part in (test.stand_ins, test.build, test.preprocess, test.trainer, test.serve):
            started = time.monotonic()
            print(f"== {part.__name__}", flush=True)
            found |= part()
            found[f"{part.__name__}_seconds"] = round(time.monotonic() - started, 1)
    except BaseException as error:
        print(json.dumps({**found, "passed": False, "failed": f"{part.__name__}: {error}"}))
        raise
    finally:
        test.remove()
    print(json.dumps({**found, "passed": True}))


class Test:
    """The parts of the test, and what they share."""

    def __init__(self, work: Path, extra: str):
        """Takes a folder that may be kept between tests: it saves debootstrap and Go their work."""
        self.work, self.extra = work, extra
        self.store = Path(tempfile.mkdtemp(prefix="store-", dir=work))
        self.buildah = ["buildah", "--root", f"{self.store}/root", "--runroot", f"{self.store}/run"]
        self.data, self.runs = self.store / "data", self.store / "runs"
        for folder in (self.data, self.runs):
            folder.mkdir()
            os.chown(folder, CODE_USER, CODE_USER)

    def remove(self) -> None:
        """Removes the images and what they wrote."""
        subprocess.run([*self.buildah, "rm", "--all"], stdout=subprocess.DEVNULL, check=False)
        subprocess.run([*self.buildah, "rmi", "--all", "--force"], stdout=subprocess.DEVNULL)
        shutil.rmtree(self.store, ignore_errors=True)

    def stand_ins(self) -> dict[str, Any]:
        """Makes images with the names that the Dockerfiles start from."""
        beam = self.version("apache-beam")
        # Named by its version: after an update of Beam the old program must not be tested.
        base, boot = self.work / "base", self.work / f"boot-{beam}" / "container"
        if not (base / "usr/bin/python").exists():
            shutil.rmtree(base, ignore_errors=True)
            include = "--include=python3,python3-venv,python3-pip,ca-certificates"
            run("debootstrap", "--variant=minbase", include, "bookworm", str(base))
            (base / "usr/lib/python3.11/EXTERNALLY-MANAGED").unlink()
            # What debootstrap downloaded, 100 MB that no Python image has, would count as size.
            for downloads in ("var/cache/apt", "var/lib/apt/lists"):
                shutil.rmtree(base / downloads)
            (base / "usr/bin/python").symlink_to("python3")
        module = f"github.com/apache/beam/sdks/v2/python/container@v{beam}"
        if not boot.exists():
            run("go", "install", module, GOBIN=str(boot.parent), CGO_ENABLED="0")
        context = self.store / "stand-ins"
        worker = context / "beam/opt/apache/beam"
        worker.mkdir(parents=True)
        shutil.copy(boot, worker / "boot")
        for name in ("LICENSE", "NOTICE"):
            shutil.copy(ROOT / "LICENSE", worker / name)
        (context / "base").mkdir()
        run("tar", "-C", str(base), "-cf", str(context / "base/base.tar"), ".")
        files = {"base": "ADD base.tar /", "beam": "COPY opt /opt"}
        names = dict(self.arguments("preprocess"))
        for name, argument in (("base", "PYTHON_IMAGE"), ("beam", "BEAM_IMAGE")):
            (context / name / "Dockerfile").write_text(f"FROM scratch\n{files[name]}\n")
            self.bud(str(context / name), tag=names[argument])
        return {}

    def build(self) -> dict[str, Any]:
        """Builds the images and looks into each."""
        sizes: dict[str, int] = {}
        volumes = {CERTIFICATES: CERTIFICATES, "/etc/pip.conf": str(self.pip_settings())}
        for name in IMAGES:
            arguments = [f"--build-arg=EXTRA={self.extra}"] if name == "trainer" else []
            self.bud(
                str(ROOT),
                f"--file={ROOT}/docker/{name}.Dockerfile",
                *(f"--volume={here}:{there}:ro" for there, here in volumes.items()),
                *arguments,
                tag=f"carbox-{name}",
            )
            self.call("from", "--pull-never", "--name", name, f"carbox-{name}")
            mounted = Path(self.call("mount", name).strip())
            sizes[name] = round(int(out("du", "-sbx", str(mounted)).split()[0]) / 1e6)
            compilers = [one for one in ("gcc", "cc", "g++", "make") if find(mounted, one)]
            check(not compilers, f"{name} has {compilers}")
            config = self.config(name)
            check(config["User"] == "1000", f"{name} runs as {config['User']}")
            labels = [f"org.opencontainers.image.{one}" for one in ("title", "licenses")]
            check(set(labels) <= config["Labels"].keys(), f"{name} has no labels")
            settings = [one for one in config["Env"] if re.match("PIP_(INDEX|CERT|EXTRA)", one)]
            check(not settings, f"{name} holds {settings}")
        heavy = "tensorflow", "keras", "torch"
        packages = list(self.packages("preprocess"))
        check("apache_beam" in packages and not set(heavy) & set(packages), "preprocess")
        return {"megabytes": sizes}

    def preprocess(self) -> dict[str, Any]:
        """A job by Beam's job server on a pool of workers of the image."""
        flags = [
            *("--runner=PortableRunner", f"--job_endpoint=localhost:{JOB_PORT}"),
            *("--environment_type=EXTERNAL", f"--environment_config=localhost:{POOL_PORT}"),
        ]
        server = ["python", "-m", "apache_beam.runners.portability.local_job_service_main"]
        volume = f"{self.data}:/carbox/data"
        for port in (JOB_PORT, POOL_PORT):
            check(not listens(port), f"port {port} is in use: another pool could do the work")
        pool_command = [*self.config("preprocess")["Entrypoint"], "--worker_pool"]
        with (
            self.running("preprocess", *server, "-p", str(JOB_PORT)),
            self.running("preprocess", *pool_command, volumes=[volume]) as pool,
        ):
            for port in (JOB_PORT, POOL_PORT):
                wait_for(lambda port=port: listens(port), 120)
            command = ["python", "-m", "preprocess.run", "--train_shards=4"]
            said = self.inside("preprocess", *command, *flags, volumes=[volume])
            print(said)
            log = Path(pool.log).read_text()
            workers = log.count("Starting worker with command")
        manifest = json.loads((self.data / "tfrecords/dataset.json").read_text())
        photos = {name: one["num_examples"] for name, one in manifest["splits"].items()}
        check(sum(photos.values()) == 1950, f"{photos}")
        check(workers > 0, f"the pool started no worker:\n{log}")
        owner = (self.data / "tfrecords/dataset.json").stat().st_uid
        check(owner == CODE_USER, f"the records are user {owner}'s")
        alone = ["--runner=DirectRunner", "--output=data/alone"]
        self.inside("preprocess", *command, *alone, volumes=[volume])
        for one in (self.data / "alone").iterdir():
            same = (self.data / "tfrecords" / one.name).read_bytes() == one.read_bytes()
            check(same, f"{one.name} is another than without the pool")
        return {"records": photos, "workers_started": workers}

    def trainer(self) -> dict[str, Any]:
        """Trains, is stopped by SIGTERM after the first epoch, and goes on."""
        command = [
            *self.config("trainer")["Entrypoint"],
            *("--strategy=mirrored", "--run=runs/first", "--epochs=2", "--report=none"),
        ]
        volumes = [f"{self.data}/tfrecords:/carbox/data/tfrecords:ro", f"{self.runs}:/carbox/runs"]
        with self.running("trainer", *command, volumes=volumes) as container:
            wait_for(lambda: "epoch 1: loss" in container.said(), 900, container)
            container.signal("trainer.task", signal.SIGTERM)
            status = container.wait(180)
            check(status == 75 and "SIGTERM: saved at step" in container.said(), container.said())
        said = self.inside("trainer", *command, volumes=volumes)
        print(said)
        check("epoch 2: loss" in said and "epoch 1: loss" not in said, said)
        resumed = re.search(r"resuming at step (\d+) of (\d+)", said)
        check(resumed is not None and (self.runs / "first/report.html").exists(), said)
        assert resumed
        return {"stopped_with": status, "resumed_at_step": f"{resumed[1]} of {resumed[2]}"}

    def serve(self) -> dict[str, Any]:
        """Serves that run; the image's own check and a photo over HTTP."""
        config = self.config("serve")
        photo = next((self.data / "sample/car_data/car_data/test").rglob("*.jpg"))
        volumes = [f"{self.runs}/first:/carbox/model:ro"]
        check_health = config["Healthcheck"]["Test"][1:]
        with self.running("serve", *config["Entrypoint"], volumes=volumes) as container:
            early = self.status("serve", *check_health)
            wait_for(lambda: self.status("serve", *check_health) == 0, 300, container)
            asked = urllib.request.Request(
                f"http://127.0.0.1:{SERVE_PORT}/predict", photo.read_bytes(), method="POST"
            )
            with urllib.request.urlopen(asked, timeout=60) as response:
                answer = json.load(response)
            check(len(answer["names"]) > 0 and answer["box"]["xmax"] > 0, f"{answer}")
            container.signal("trainer.serve", signal.SIGTERM)
            stopped = container.wait(60)
            check(stopped == 0 and "1 photos judged" in container.said(), container.said())
        check(early != 0, "the check passed before the model was loaded")
        return {"answer": answer["names"][0], "health_before_loading": early}

    def version(self, package: str) -> str:
        """Returns the version that requirements.lock pins."""
        lock = (ROOT / "requirements.lock").read_text()
        found = re.search(rf"^{re.escape(package)}==(.+)$", lock, re.MULTILINE)
        assert found
        return found[1]

    def arguments(self, name: str) -> list[tuple[str, str]]:
        """Returns a Dockerfile's arguments and their defaults."""
        text = (ROOT / f"docker/{name}.Dockerfile").read_text()
        return re.findall(r"^ARG (\w+)=(.*)$", text, re.MULTILINE)

    def pip_settings(self) -> Path:
        """Writes pip's settings on this machine, environment included, as one file."""
        lines = ["[global]"]
        for line in out(sys.executable, "-m", "pip", "config", "list").splitlines():
            key, _, value = line.partition("=")
            section, _, name = key.rpartition(".")
            if section in ("global", ":env:") and name not in ("disable-pip-version-check",):
                lines.append(f"{name} = {value.strip(chr(39))}")
        path = self.store / "pip.conf"
        path.write_text("\n".join(dict.fromkeys(lines)) + "\n")
        return path

    def bud(self, context: str, *flags: str, tag: str) -> None:
        """Builds an image."""
        isolated = ["--isolation=chroot", "--network=host", "--pull-never", "--format=docker"]
        self.call("bud", *isolated, f"--tag={tag}", *flags, context, shown=True)

    def call(self, *arguments: str, shown: bool = False) -> str:
        """Calls buildah and returns what it prints."""
        done = subprocess.run(
            [*self.buildah, *arguments], stdout=None if shown else subprocess.PIPE, text=True
        )
        check(done.returncode == 0, f"buildah {' '.join(arguments)}: exit code {done.returncode}")
        return done.stdout or ""

    def config(self, name: str) -> dict[str, Any]:
        """Returns how an image is to be run: user, entry point, labels, health check."""
        described = json.loads(self.call("inspect", "--type=image", f"carbox-{name}"))
        return described["Docker"]["config"]

    def packages(self, name: str) -> Iterator[str]:
        """Yields the names of packages that are installed in an image."""
        for place in Path(self.call("mount", name).strip()).glob("usr/local/lib/python3*/*"):
            yield from (one.name for one in place.iterdir())

    def command(self, name: str, *command: str, volumes: list[str]) -> list[str]:
        """Returns the command that runs another in a container, as the image's user."""
        mounts = [f"--volume={volume}" for volume in volumes]
        # The name is what Beam gives its workers as its address.
        isolated = ["--isolation=chroot", "--hostname=localhost"]
        return [*self.buildah, "run", *isolated, *mounts, name, "--", *command]

    def inside(self, name: str, *command: str, volumes: list[str]) -> str:
        """Runs a command that must succeed, and returns its output."""
        done = subprocess.run(
            self.command(name, *command, volumes=volumes),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        check(done.returncode == 0, f"exit code {done.returncode}: {done.stdout}")
        return done.stdout

    def status(self, name: str, *command: str) -> int:
        """Returns a command's exit code."""
        done = subprocess.run(
            self.command(name, *command, volumes=[]),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        return done.returncode

    @contextlib.contextmanager
    def running(
        self, name: str, *command: str, volumes: list[str] | None = None
    ) -> Iterator["Running"]:
        """Runs a command in a container until the block ends."""
        log = tempfile.NamedTemporaryFile(dir=self.store, suffix=".log", delete=False)  # noqa: SIM115
        process = subprocess.Popen(
            self.command(name, *command, volumes=volumes or []),
            stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        container = Running(process, log.name)
        try:
            yield container
        except BaseException:
            print(container.said())
            raise
        finally:
            container.kill()


class Running:
    """A command in a container."""

    def __init__(self, process: subprocess.Popen, log: str):
        """Takes buildah's process and the file of all output."""
        self.process, self.log = process, log

    def said(self) -> str:
        """Returns the output so far."""
        return Path(self.log).read_text(errors="replace")

    def signal(self, part: str, number: int) -> None:
        """Signals the Python process whose command has a part: an engine signals it alone."""
        for one in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error, ValueError):  # it has just ended
                program, *arguments = one.cmdline()
                if os.path.basename(program).startswith("python") and part in arguments:
                    one.send_signal(number)
                    return
        raise RuntimeError(f"no process of {part}")

    def wait(self, seconds: float) -> int:
        """Returns the exit code."""
        return self.process.wait(seconds)

    def kill(self) -> None:
        """Ends it and all that it started."""
        with contextlib.suppress(psutil.Error):
            started = psutil.Process(self.process.pid)
            for one in [*started.children(recursive=True), started]:
                with contextlib.suppress(psutil.Error):
                    one.kill()
        self.process.wait()


def run(*command: str, **environment: str) -> None:
    """Runs a command that must succeed."""
    done = subprocess.run(command, env={**os.environ, **environment})
    check(done.returncode == 0, f"{command[0]}: exit code {done.returncode}")


def out(*command: str) -> str:
    """Returns a command's output."""
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def find(root: Path, program: str) -> bool:
    """Whether a program is in an image."""
    places = ("bin", "usr/bin", "usr/local/bin")
    return any(os.path.lexists(root / place / program) for place in places)


def check(holds: bool, otherwise: str) -> None:
    """Fails the test where something does not hold."""
    if not holds:
        raise RuntimeError(otherwise)


def listens(port: int) -> bool:
    """Whether a server listens on a port of this machine."""
    return any(
        one.laddr.port == port and one.status == psutil.CONN_LISTEN
        for one in psutil.net_connections("tcp")
    )


def wait_for(holds: Callable[[], bool], seconds: float, container: Running | None = None) -> None:
    """Waits until something holds; fails when it takes too long or the container ends."""
    deadline = time.monotonic() + seconds
    while not holds():
        ended = container is not None and container.process.poll() is not None
        check(not ended and time.monotonic() < deadline, "it never came")
        time.sleep(0.5)


if __name__ == "__main__":
    main()
