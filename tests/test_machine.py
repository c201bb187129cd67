"""Shares of the work: every image is drawn once, by one process."""

import ctypes
import os
import subprocess
import sys
import types

import pytest
import torch

from minidiff import machine


@pytest.mark.parametrize(("count", "world"), [(7, 1), (7, 2), (2, 3), (12, 4)])
def test_the_parts_of_all_processes_are_the_whole_in_order(count, world, monkeypatch):
    monkeypatch.setattr(machine.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(machine.dist, "get_world_size", lambda: world)
    seen = []
    for rank in range(world):
        monkeypatch.setattr(machine.dist, "get_rank", lambda rank=rank: rank)
        parts = machine.shared(count, 3)
        assert all(1 <= len(part) <= 3 for part in parts)
        seen += [k for part in parts for k in part]
    assert seen == list(range(count))


def test_one_process_gathers_its_own_parts():
    parts = [torch.ones(2, 1), torch.zeros(1, 1)]
    assert machine.gathered(parts).flatten().tolist() == [1, 1, 0]


CPU, MB = torch.device("cpu"), 2**20


def system(root, files):
    """The files of a system below a folder; memory in MB."""
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


MEMINFO = {"proc/meminfo": "MemTotal: 9216000 kB\nMemFree: 3072000 kB\nMemAvailable: 7168000 kB\nCached: 1024000 kB\n"}
TWO = MEMINFO | {"proc/self/cgroup": "0::/a/b\n"}
ONE = MEMINFO | {"proc/self/cgroup": "12:cpu,cpuacct:/c\n4:hugetlb,memory:/a/b\n0::/\n"}
GROUP, MEMORY = "sys/fs/cgroup/", "sys/fs/cgroup/memory/"
SYSTEMS = {
    "no limit": (MEMINFO, 7000),
    "an old Linux": ({"proc/meminfo": "MemTotal: 9216000 kB\nMemFree: 3072000 kB\nCached: 1024000 kB\n"}, 4000),
    "version 2": (
        TWO | {GROUP + "a/b/memory.max": f"{900 * MB}\n", GROUP + "a/b/memory.current": f"{200 * MB}\n"},
        700,
    ),
    "a group around it": (
        TWO
        | {
            GROUP + "a/memory.max": f"{500 * MB}\n",
            GROUP + "a/memory.current": f"{100 * MB}\n",
            GROUP + "a/b/memory.max": "max\n",
            GROUP + "a/b/memory.current": "0\n",
        },
        400,
    ),
    "both": (
        TWO
        | {
            f"{GROUP}{g}/memory.{n}": f"{v * MB}\n"
            for g, m, c in (("a", 500, 300), ("a/b", 400, 100))
            for n, v in (("max", m), ("current", c))
        },
        200,
    ),
    "a container": (TWO | {GROUP + "memory.max": f"{300 * MB}\n", GROUP + "memory.current": f"{100 * MB}\n"}, 200),
    "files in the cache": (
        TWO
        | {
            GROUP + "a/b/memory.max": f"{900 * MB}\n",
            GROUP + "a/b/memory.current": f"{800 * MB}\n",
            GROUP + "a/b/memory.stat": f"anon 5\ninactive_file {600 * MB}\n",
        },
        700,
    ),
    "more than there is": (
        TWO | {GROUP + "a/b/memory.max": f"{90_000 * MB}\n", GROUP + "a/b/memory.current": "0\n"},
        7000,
    ),
    "all used": (TWO | {GROUP + "a/b/memory.max": f"{100 * MB}\n", GROUP + "a/b/memory.current": f"{200 * MB}\n"}, 0),
    "version 1": (
        ONE
        | {
            MEMORY + "a/b/memory.limit_in_bytes": f"{900 * MB}\n",
            MEMORY + "a/b/memory.usage_in_bytes": f"{200 * MB}\n",
            MEMORY + "a/b/memory.stat": f"total_inactive_file {50 * MB}\n",
        },
        750,
    ),
    "version 1 without": (
        ONE
        | {
            MEMORY + "memory.limit_in_bytes": "9223372036854771712\n",
            MEMORY + "memory.usage_in_bytes": f"{200 * MB}\n",
        },
        7000,
    ),
    "version 1, a container": (
        ONE | {MEMORY + "memory.limit_in_bytes": f"{300 * MB}\n", MEMORY + "memory.usage_in_bytes": f"{200 * MB}\n"},
        100,
    ),
    "another controller's limit": (
        MEMINFO
        | {
            "proc/self/cgroup": "3:cpu:/a\n",
            MEMORY + "a/memory.limit_in_bytes": "1\n",
            MEMORY + "a/memory.usage_in_bytes": "0\n",
        },
        7000,
    ),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_free_memory_is_what_linux_calls_available_and_what_each_limit_leaves(tmp_path, name):
    files, free = SYSTEMS[name]
    assert machine.free_memory(CPU, system(tmp_path, files)) == free * MB


def test_free_memory_of_this_machine_and_of_others_without_proc(tmp_path, monkeypatch):
    assert 10**7 < machine.free_memory(CPU) < 10**14
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PHYS_PAGES": 10, "SC_PAGE_SIZE": 4096}[name], raising=False)
    assert machine.free_memory(CPU, tmp_path) == 40960
    monkeypatch.delattr(os, "sysconf")  # Windows

    def ask(status):
        status._obj[1], status._obj[2] = 2000, 1000

    windows = types.SimpleNamespace(kernel32=types.SimpleNamespace(GlobalMemoryStatusEx=ask))
    monkeypatch.setattr(ctypes, "windll", windows, raising=False)
    assert machine.free_memory(CPU, tmp_path) == 1000


@pytest.mark.skipif(sys.platform != "linux", reason="page faults are counted by Linux, and memory is kept by glibc")
def test_memory_that_is_freed_is_kept_for_the_next_step():
    """Three blocks of 30 MB, written to and freed: 22,000 pages, and a page fault for each that the system had back in
    between.
    """
    program = """
import ctypes, resource
from minidiff.machine import keep_freed_memory
keep_freed_memory()
libc, size = ctypes.CDLL(None), 30_000_000
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.memset.argtypes, libc.free.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t], [ctypes.c_void_p]
for _ in range(3):
    before, blocks = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, []
    for _ in range(3):
        blocks.append(libc.malloc(size))
        libc.memset(blocks[-1], 0, size)
    for block in blocks:
        libc.free(block)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    first, *later = map(int, result.stdout.split())
    assert first > 10_000 and max(later) < 1000


def test_a_process_of_many_has_the_device_of_its_number(monkeypatch):
    monkeypatch.setattr(machine.torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(machine.torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(machine.torch.accelerator, "device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert machine.choose_device() == torch.device("cuda", 3)
    assert machine.choose_device("cpu") == torch.device("cpu")
    monkeypatch.setenv("LOCAL_RANK", "4")
    with pytest.raises(
        ValueError, match="torchrun started 5 processes or more on this machine, it has 4 of cuda: start fewer"
    ):
        machine.choose_device()
