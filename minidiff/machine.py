"""What this machine offers: the scripts ask here once, the library follows its inputs."""

import argparse
import ctypes
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist


def choose_device(name: str | None = None) -> torch.device:
    """The device of that name, or the best there is; under torchrun, this process's own. Raises ValueError for one that is not there."""
    best = torch.accelerator.current_accelerator().type if torch.accelerator.is_available() else "cpu"
    if name not in (None, "cpu", best):
        raise ValueError(f"--device wants {' or '.join(sorted({'cpu', best}))} on this machine, got {name!r}")
    name = name or best
    return torch.device(name, int(os.environ.get("LOCAL_RANK", "0"))) if name != "cpu" else torch.device("cpu")


def free_memory(device: torch.device) -> int:
    """Bytes that a program may take on the device; of main memory, what Linux calls available, elsewhere all that there is."""
    if device.type not in ("cpu", "mps") and hasattr(torch.accelerator, "get_memory_info"):  # of PyTorch 2.9; Apple's chips have main memory alone
        torch.accelerator.empty_cache()  # what an earlier network left behind is free too
        return torch.accelerator.get_memory_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        return next(int(line.split()[1]) * 1024 for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable"))
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def has_bf16(device: torch.device) -> bool:
    """Whether this device multiplies bfloat16 faster than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, check, bool)() for check in checks)


def keep_freed_memory() -> None:
    """Tell glibc to keep what a step of training frees for the next one, and not to hand it back to the system (mallopt(3)): 4 % of a step."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
        libc.mallopt(M_MMAP_THRESHOLD, 2**25)  # 32 MiB, the most it takes
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def start_processes(device: torch.device) -> tuple[int, int]:
    """(rank, number of processes) under torchrun, (0, 1) without it."""
    if "RANK" not in os.environ:
        return 0, 1
    if device.type != "cpu":
        torch.accelerator.set_device_index(device.index)
    dist.init_process_group(dist.get_default_backend_for_device(device))
    return dist.get_rank(), dist.get_world_size()


def is_first() -> bool:
    """Whether this is the only process, or the one of several that prints."""
    return not dist.is_initialized() or dist.get_rank() == 0


def shared(count: int, batch: int) -> list[range]:
    """The parts of range(count) that are this process's, at most `batch` long; all of them without torchrun."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    share = -(-count // world)  # rounded up: the first process has image 0, and the last may have none
    end = min((rank + 1) * share, count)
    return [range(first, min(first + batch, end)) for first in range(rank * share, end, batch)]


def gathered(parts: list[torch.Tensor]) -> torch.Tensor:
    """What all processes made of their parts, in order, as one tensor on the CPU of each."""
    mine = [part.cpu() for part in parts]
    lists = [mine]
    if dist.is_initialized():
        lists = [None] * dist.get_world_size()
        dist.all_gather_object(lists, mine)
    return torch.cat([part for parts in lists for part in parts])


class Parser(argparse.ArgumentParser):
    """Wrong arguments become a ValueError, so that a script says every error the same way: one sentence, exit code 2."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> None:
        raise ValueError(f"{message}: {self.prog} --help lists what it takes")
