"""How much of a machine this process may use: a container's limits (cgroups) count.

In a container, `/proc` shows the whole machine. The container's limits are in the kernel's cgroup
files (version 1 or 2), for its own group and for its parents; the smallest one applies.
"""

import math
import os
from collections.abc import Iterator
from pathlib import PurePosixPath

import psutil

from tfrecords import pipelines


def cores(root: str = "/") -> int:
    """Returns how many cores this process may keep busy, at least 1.

    Args:
        root: where `proc` and `sys` are.
    """
    limits = [pipelines.CORES]
    for group in _groups(root, "cpu"):
        quota, period = (_text(group, "cpu.max").split() or ["max"] * 2)[:2]
        if quota == "max":
            quota, period = _text(group, "cpu.cfs_quota_us"), _text(group, "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit():  # -1: no limit
            limits.append(max(1, math.ceil(int(quota) / int(period))))
    return min(limits)


def free_memory(root: str = "/") -> int:
    """Returns how many bytes this process may still allocate.

    Args:
        root: where `proc` and `sys` are.
    """
    limits = [psutil.virtual_memory().available]
    for group in _groups(root, "memory"):
        limit = _text(group, "memory.max") or _text(group, "memory.limit_in_bytes")
        used = _text(group, "memory.current") or _text(group, "memory.usage_in_bytes")
        if limit.isdigit() and used.isdigit():
            limits.append(max(0, int(limit) - int(used) + _reclaimable(group)))
    return min(limits)


def _groups(root: str, controller: str) -> Iterator[str]:
    """Yields the folders of this process's group and of its parents that exist."""
    base = os.path.join(root, "sys/fs/cgroup")
    for line in _text(root, "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        # Version 2 has one tree and names no controllers; version 1 has a tree for each.
        for tree in (controllers, controller) if controllers else ("", "unified"):
            for group in (PurePosixPath(path), *PurePosixPath(path).parents):
                folder = os.path.join(base, tree, str(group).lstrip("/"))
                if os.path.isdir(folder):
                    yield folder


def _reclaimable(group: str) -> int:
    """Returns the bytes of cached files that the kernel frees when memory is needed."""
    for line in _text(group, "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file") and value.isdigit():
            return int(value)
    return 0


def _text(folder: str, name: str) -> str:
    try:
        with open(os.path.join(folder, name)) as file:
            return file.read().strip()
    except OSError:
        return ""
