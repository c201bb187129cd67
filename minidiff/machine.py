"""What this machine offers: the scripts ask here once, the library follows its inputs."""

import argparse
import os

import torch
import torch.distributed as dist


def choose_device(name: str | None = None) -> torch.device:
    """The device of that name, or the best there is; under torchrun, this process's own. Raises ValueError for one that is not there."""
    best = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    try:
        device = torch.device(name or best)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ValueError(f"--device wants a device of this machine (cpu, {best}), got {name!r}") from None
    if device.type != "cpu" and device.index is None and "LOCAL_RANK" in os.environ:
        return torch.device(device.type, int(os.environ["LOCAL_RANK"]))
    return device


def start_processes(device: torch.device) -> tuple[int, int]:
    """(rank, number of processes) under torchrun, (0, 1) without it."""
    if "RANK" not in os.environ:
        return 0, 1
    if device.type != "cpu":
        torch.accelerator.set_device_index(device.index)
    dist.init_process_group(dist.get_default_backend_for_device(device))
    return dist.get_rank(), dist.get_world_size()


def shared(count: int, batch: int) -> list[range]:
    """The parts of range(count) that are this process's, at most `batch` long; all of them without torchrun."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    end = (rank + 1) * count // world
    return [range(first, min(first + batch, end)) for first in range(rank * count // world, end, batch)]


def gathered(parts: list[torch.Tensor]) -> torch.Tensor:
    """What all processes made of their parts, in order, as one tensor on the CPU of each."""
    lists = [[part.cpu() for part in parts]]
    if dist.is_initialized():
        lists = [None] * dist.get_world_size()
        dist.all_gather_object(lists, [part.cpu() for part in parts])
    return torch.cat([part for parts in lists for part in parts])


class Parser(argparse.ArgumentParser):
    """Wrong arguments become a ValueError, so that a script says every error the same way: one sentence, exit code 2."""

    def error(self, message: str) -> None:
        raise ValueError(message)
