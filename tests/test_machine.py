"""Shares of the work: every image is drawn once, by one process."""

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
