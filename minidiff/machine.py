"""What this machine offers: the scripts ask here once, the library follows its inputs."""

import argparse
import os

import torch
import torch.distributed as dist


def choose_device(name: str | None = None) -> torch.device:
    """The device of that name, or the best there is; under torchrun, this process's own. Raises ValueError for one that is not there."""
    best = torch.accelerator.current_accelerator().type if torch.accelerator.is_available() else "cpu"
    if name not in (None, "cpu", best):
        raise ValueError(f"--device wants {' or '.join(sorted({'cpu', best}))} on this machine, got {name!r}")
    name = name or best
    return torch.device(name, int(os.environ.get("LOCAL_RANK", "0"))) if name != "cpu" else torch.device("cpu")


def start_processes(device: torch.device) -> tuple[int, int]:
    """(rank, number of processes) under torchrun, (0, 1) without it."""
    if "RANK" not in os.environ:
        return 0, 1
    if device.type != "cpu":
        torch.accelerator.set_device_index(device.index)
    dist.init_process_group(dist.get_default_backend_for_device(device))
    return dist.get_rank(), dist.get_world_size()


class Parser(argparse.ArgumentParser):
    """Wrong arguments become a ValueError, so that a script says every error the same way: one sentence, exit code 2."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> None:
        raise ValueError(message)
