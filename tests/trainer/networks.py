"""Machines of a virtual network: namespaces of Linux, each with its own address, on one bridge."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

PORT = 2222
"""Where each machine's worker listens: no two of them share an address."""


class Lan:
    """Machines that reach each other over a bridge, and nothing else over any network."""

    def __init__(self, names: Sequence[str]):
        """Args: what the machines are called, by each other too."""
        self.names = list(names)
        self.addresses = [f"10.77.0.{index + 1}" for index in range(len(names))]
        self._prefix = f"carbox-{os.getpid()}"

    def command(self, index: int) -> list[str]:
        """Returns what stands before a command that runs on a machine; its process is the same."""
        return ["ip", "netns", "exec", self._machine(index)]

    def unplug(self, index: int) -> None:
        """Drops all that a machine sends and is sent. Its link stays up: nothing tells anybody."""
        _ip("-n", self._bridge, "link", "set", f"port{index}", "nomaster")

    def plug(self, index: int) -> None:
        """Connects a machine to the others."""
        _ip("-n", self._bridge, "link", "set", f"port{index}", "master", "bridge", "up")

    def shut_down(self, index: int) -> None:
        """Takes down a machine's own link, as its administrator could: the machine notices."""
        _ip("-n", self._machine(index), "link", "set", "eth0", "down")

    def put_up(self, index: int) -> None:
        """Takes up a machine's own link."""
        _ip("-n", self._machine(index), "link", "set", "eth0", "up")

    def make(self) -> None:
        """Makes the machines, which do not share the files of this one's network settings."""
        _ip("netns", "add", self._bridge)
        _ip("-n", self._bridge, "link", "add", "bridge", "type", "bridge")
        _ip("-n", self._bridge, "link", "set", "bridge", "up")
        hosts = ["127.0.0.1 localhost"]
        hosts += [f"{at} {name}" for at, name in zip(self.addresses, self.names, strict=True)]
        for index, address in enumerate(self.addresses):
            machine = self._machine(index)
            _ip("netns", "add", machine)
            # The kernel's files for a namespace lie in /run, those that `ip netns exec` puts over
            # /etc lie in /etc/netns.
            self._files(index).mkdir(parents=True)
            (self._files(index) / "hosts").write_text("\n".join(hosts) + "\n")
            _ip("-n", self._bridge, "link", "add", f"port{index}", "type", "veth",
                "peer", "name", "eth0", "netns", machine)  # fmt: skip
            _ip("-n", machine, "address", "add", f"{address}/24", "dev", "eth0")
            for link in ("lo", "eth0"):
                _ip("-n", machine, "link", "set", link, "up")
            self.plug(index)

    def remove(self) -> None:
        """Removes what `make` has made, if only a part of it."""
        for name in (self._bridge, *map(self._machine, range(len(self.names)))):
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("netns", "delete", name)
        for index in range(len(self.names)):
            shutil.rmtree(self._files(index), ignore_errors=True)

    @property
    def _bridge(self) -> str:
        return f"{self._prefix}-bridge"

    def _machine(self, index: int) -> str:
        return f"{self._prefix}-{index}"

    def _files(self, index: int) -> Path:
        return Path("/etc/netns") / self._machine(index)


@contextlib.contextmanager
def lan(names: Sequence[str]) -> Iterator[Lan]:
    """Makes a network of machines, and removes it."""
    made = Lan(names)
    try:
        made.make()
        yield made
    finally:
        made.remove()


def missing() -> str | None:
    """Returns why this machine cannot make such networks, if it cannot."""
    if not shutil.which("ip"):
        return "there is no `ip` (apt-get install iproute2)"
    try:
        with lan(["one"]):
            return None
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        return f"network namespaces cannot be made here: {said.strip()}"


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
