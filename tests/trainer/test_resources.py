"""The limits of containers, by the files in which the kernel tells them."""

import psutil
import pytest

from tfrecords import pipelines
from trainer import resources

GB = 10**9


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine of 64 cores and 500 GB; returns what writes its files."""
    monkeypatch.setattr(pipelines, "CORES", 64)
    free = psutil.virtual_memory()._replace(available=500 * GB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)

    def write(groups: str, **files: str) -> str:
        path = tmp_path / "proc/self/cgroup"
        path.parent.mkdir(parents=True)
        path.write_text(groups)
        for name, text in files.items():
            path = tmp_path / "sys/fs/cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")
        return str(tmp_path)

    return write


def test_without_limits_the_machine_counts(machine):
    root = machine("0::/\n", **{"cpu.max": "max 100000", "memory.max": "max"})
    assert (resources.cores(root), resources.free_memory(root)) == (64, 500 * GB)


def test_without_cgroups_the_machine_counts(tmp_path):
    assert resources.cores(str(tmp_path)) == pipelines.CORES
    assert resources.free_memory(str(tmp_path)) > 0


def test_limits_of_version_2_count_and_files_that_can_be_given_up_are_free(machine):
    files = {
        "cpu.max": "250000 100000",
        "memory.max": str(16 * GB),
        "memory.current": str(10 * GB),
        "memory.stat": f"anon {6 * GB}\ninactive_file {4 * GB}\nactive_file 0",
    }
    root = machine("0::/\n", **files)
    assert (resources.cores(root), resources.free_memory(root)) == (3, 10 * GB)


def test_limits_of_a_group_further_up_count(machine):
    files = {
        "slurm/cpu.max": "400000 100000",
        "slurm/job_7/cpu.max": "max 100000",
        "slurm/job_7/memory.max": str(8 * GB),
        "slurm/job_7/memory.current": str(3 * GB),
        "slurm/job_7/step_0/memory.max": "max",
    }
    root = machine("0::/slurm/job_7/step_0\n", **files)
    assert (resources.cores(root), resources.free_memory(root)) == (4, 5 * GB)


@pytest.mark.parametrize("inside", [True, False])
def test_limits_of_version_1_count(machine, inside):
    # A container sees the path outside of it, and its own files at the top of each tree.
    group = "" if inside else "docker/7/"
    files = {
        f"cpu,cpuacct/{group}cpu.cfs_quota_us": "50000",
        f"cpu,cpuacct/{group}cpu.cfs_period_us": "100000",
        f"memory/{group}memory.limit_in_bytes": str(16 * GB),
        f"memory/{group}memory.usage_in_bytes": str(10 * GB),
        f"memory/{group}memory.stat": f"total_inactive_file {2 * GB}",
    }
    root = machine("4:memory:/docker/7\n3:cpu,cpuacct:/docker/7\n0::/\n", **files)
    assert (resources.cores(root), resources.free_memory(root)) == (1, 8 * GB)


def test_version_1_without_limits_is_no_limit(machine):
    files = {
        "cpu/cpu.cfs_quota_us": "-1",
        "cpu/cpu.cfs_period_us": "100000",
        "memory/memory.limit_in_bytes": "9223372036854771712",
        "memory/memory.usage_in_bytes": "0",
    }
    root = machine("4:memory:/\n3:cpu:/\n", **files)
    assert (resources.cores(root), resources.free_memory(root)) == (64, 500 * GB)
