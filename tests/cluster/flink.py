"""Flink on this machine: a job manager, task managers, and Beam's job server."""

import json
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from tests.cluster.processes import Processes, listens, until
from tests.ports import free_ports

_EXPORTS = (
    "java.base/sun.net.util",
    "java.rmi/sun.rmi.registry",
    "java.security.jgss/sun.security.krb5",
)
_OPENS = (
    "lang", "net", "io", "nio", "lang.reflect", "text", "time", "util", "util.concurrent",
    "util.concurrent.atomic", "util.concurrent.locks",
)  # fmt: skip
_JAVA_17 = [
    *(f"--add-exports={name}=ALL-UNNAMED" for name in _EXPORTS),
    *(f"--add-opens=java.base/java.{name}=ALL-UNNAMED" for name in _OPENS),
    "--add-opens=java.base/sun.nio.ch=ALL-UNNAMED",
]
_START_SECONDS = 120.0


class Flink:
    """A cluster. Each task manager has one slot, so that two subtasks are on two of them."""

    def __init__(self, processes: Processes, libraries: Path, job_server: Path, folder: Path):
        """Args: who starts it; Flink's jars; Beam's job server; a folder for its files."""
        self._processes, self._libraries = processes, libraries
        self._folder = folder
        self.rest_port, rpc_port = free_ports(2)
        self.job_server_jar = job_server
        (folder / "conf").mkdir(parents=True)
        (folder / "conf" / "config.yaml").write_text(_configuration(self.rest_port, rpc_port))
        self.task_managers: dict[str, subprocess.Popen] = {}
        main = "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint"
        self._java("job-manager", ["-Xmx1g"], main)
        until("Flink's job manager", _START_SECONDS, lambda: listens(self.rest_port))
        for name in ("tm1", "tm2"):
            self.start_task_manager(name)
        (self.job_port,) = free_ports(1)
        processes.start(
            "job-server",
            ["java", *_JAVA_17, "-jar", str(job_server), f"--flink-master={self.master}",
             f"--job-port={self.job_port}", "--artifact-port=0", "--expansion-port=0",
             f"--artifacts-dir={folder}/artifacts"],
        )  # fmt: skip
        until("the job server", _START_SECONDS, lambda: listens(self.job_port))
        self.wait_for_slots(2)

    @property
    def master(self) -> str:
        """Address of the job manager."""
        return f"localhost:{self.rest_port}"

    def start_task_manager(self, name: str) -> None:
        """Starts one more."""
        self.task_managers[name] = self._java(
            name,
            ["-Xmx640m", "-XX:MaxDirectMemorySize=448m"],
            "org.apache.flink.runtime.taskexecutor.TaskManagerRunner",
            "-D",
            f"taskmanager.resource-id={name}",
        )

    def wait_for_slots(self, count: int, seconds: float = _START_SECONDS) -> None:
        """Waits until so many slots are free."""
        until(f"{count} free slots", seconds,
              lambda: self.rest("/overview")["slots-available"] == count)  # fmt: skip

    def rest(self, path: str, method: str = "GET") -> Any:
        """Asks the job manager."""
        request = urllib.request.Request(f"http://{self.master}{path}", method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.load(answer)
        except urllib.error.URLError as error:
            raise AssertionError(f"{path}: {error}") from error

    def jobs(self) -> list[dict[str, Any]]:
        """Returns all jobs, the latest first."""
        return sorted(
            self.rest("/jobs/overview")["jobs"], key=lambda job: job["start-time"], reverse=True
        )

    def subtasks(self, job: str, step: str) -> list[dict[str, Any]]:
        """Returns the subtasks of the vertex that does a step."""
        vertices = self.rest(f"/jobs/{job}")["vertices"]
        (vertex,) = (
            one for one in vertices if step in one["name"] and "Impulse" not in one["name"]
        )
        return self.rest(f"/jobs/{job}/vertices/{vertex['id']}")["subtasks"]

    def _java(self, name: str, memory: list[str], *main: str) -> subprocess.Popen:
        return self._processes.start(
            name,
            ["java", *memory, *_JAVA_17, "-cp", f"{self._libraries}/*", *main[:1],
             "--configDir", f"{self._folder}/conf", *main[1:]],
        )  # fmt: skip


def _configuration(rest_port: int, rpc_port: int) -> str:
    """Returns a configuration with every size of memory set: Flink refuses what does not add up."""
    return f"""\
jobmanager.rpc.address: localhost
jobmanager.rpc.port: {rpc_port}
jobmanager.bind-host: localhost
rest.address: localhost
rest.bind-address: localhost
rest.port: {rest_port}
taskmanager.host: localhost
taskmanager.bind-host: localhost
taskmanager.numberOfTaskSlots: 1
taskmanager.cpu.cores: 1
taskmanager.memory.task.heap.size: 512m
taskmanager.memory.task.off-heap.size: 64m
taskmanager.memory.framework.heap.size: 128m
taskmanager.memory.framework.off-heap.size: 128m
taskmanager.memory.network.min: 192m
taskmanager.memory.network.max: 192m
taskmanager.memory.managed.size: 256m
taskmanager.memory.jvm-metaspace.size: 512m
taskmanager.memory.jvm-overhead.min: 192m
taskmanager.memory.jvm-overhead.max: 192m
heartbeat.interval: 2000
heartbeat.timeout: 10000
restart-strategy.type: fixed-delay
restart-strategy.fixed-delay.attempts: 5
restart-strategy.fixed-delay.delay: 2 s
"""
