"""What this machine offers: the scripts ask here once, the library follows its inputs."""

import ctypes
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist


def choose_device(name: str | None = None) -> torch.device:
    """The device of that name, or the best there is; under torchrun, this process's own. Raises ValueError for one that
    is not there.
    """
    best = torch.accelerator.current_accelerator().type if torch.accelerator.is_available() else "cpu"
    if name not in (None, "cpu", best):
        raise ValueError(f"the device must be {' or '.join(sorted({'cpu', best}))} on this machine, got {name!r}")
    if (name or best) == "cpu":
        return torch.device("cpu")
    number, count = int(os.environ.get("LOCAL_RANK", "0")), torch.accelerator.device_count()
    if number >= count:
        raise ValueError(
            f"torchrun started {number + 1} processes or more on this machine, it has {count} of {best}: start fewer"
        )
    return torch.device(name or best, number)


def free_memory(device: torch.device, root: Path = Path("/")) -> int:
    """Bytes that a program may take on the device. Of main memory, what the system calls available, and no more than
    the container's limit leaves.
    """
    if device.type not in ("cpu", "mps") and hasattr(
        torch.accelerator, "get_memory_info"
    ):  # of PyTorch 2.9; Apple's chips have main memory alone
        torch.accelerator.empty_cache()  # what an earlier network left behind is free too
        return torch.accelerator.get_memory_info(device)[0]
    known = re.findall(r"^(MemAvailable|MemFree|Cached): +(\d+) kB$", _text(root / "proc/meminfo"), re.MULTILINE)
    if known:
        sizes = {name: int(size) * 1024 for name, size in known}
        available = sizes.get("MemAvailable", sizes.get("MemFree", 0) + sizes.get("Cached", 0))
        return max(0, min([available, *_left_by_limits(root)]))
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    status = (ctypes.c_uint64 * 8)(64)  # Windows' MEMORYSTATUSEX: its own size, all memory, what is available, ...
    ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
    return status[2]


def _left_by_limits(root: Path) -> Iterator[int]:
    """What each limit of a control group leaves to this process: its own, and those of the groups around it.

    There are two versions. Inside a container the group's path may be the host's, and the container's own group is
    where the groups are mounted. What is cached of files and not in use (inactive) is given back when it is needed, so
    it is free.
    """
    two, one = (
        ("sys/fs/cgroup", "max", "current", "inactive_file"),
        ("sys/fs/cgroup/memory", "limit_in_bytes", "usage_in_bytes", "total_inactive_file"),
    )
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        mount, limit, usage, cached = one if controllers else two
        group = Path(path.strip("/"))
        for folder in dict.fromkeys(root / mount / inner for inner in (group, *group.parents, Path())):
            most, used = _text(folder / f"memory.{limit}").strip(), _text(folder / f"memory.{usage}").strip()
            if (
                most.isdecimal() and used.isdecimal()
            ):  # without a limit it is "max", in version 1 a number that is larger than any memory
                inactive = re.search(rf"^{cached} (\d+)$", _text(folder / "memory.stat"), re.MULTILINE)
                yield int(most) - int(used) + (int(inactive[1]) if inactive else 0)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def has_bf16(device: torch.device) -> bool:
    """Whether this device multiplies bfloat16 faster than float32."""
    if device.type == "cpu":
        return any(getattr(torch.cpu, f"_is_{name}_supported", bool)() for name in ("avx512_bf16", "amx_tile"))
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def keep_freed_memory() -> None:
    """Tell glibc to keep what a step of training frees for the next one, and not to hand it back to the system
    (mallopt(3)): 4 % of a step.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
        libc.mallopt(M_MMAP_THRESHOLD, 2**25)  # 32 MiB, the most it takes
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


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
