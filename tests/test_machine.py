"""Shares of the work: every image is drawn once, by one process."""

import subprocess
import sys

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


def test_free_memory_is_what_linux_calls_available(monkeypatch, tmp_path):
    found = machine.free_memory(torch.device("cpu"))
    assert 10**7 < found < 10**14
    (tmp_path / "meminfo").write_text("MemTotal:       100 kB\nMemFree:         3 kB\nMemAvailable:    7 kB\n")
    monkeypatch.setattr(machine, "Path", lambda path: tmp_path / "meminfo")
    assert machine.free_memory(torch.device("cpu")) == 7 * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="page faults are counted by Linux, and memory is kept by glibc")
def test_memory_that_is_freed_is_kept_for_the_next_step():
    """Three blocks of 30 MB, written to and freed: 22,000 pages, and a page fault for each that the system had back in between."""
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
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert machine.choose_device() == torch.device("cuda", 3)
    assert machine.choose_device("cpu") == torch.device("cpu")
