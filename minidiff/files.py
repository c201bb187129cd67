"""Files that are whole or not there: atomic writing, and safetensors that are checked before they are believed.

A tensor file of ours keeps one JSON record in its metadata, under the key "minidiff", and beside it, under "sha256",
the digest of that record and of all tensors: a file that was changed is not believed. What is being written lies in a
hidden folder whose name has the host and the process in it, so that the next run can remove what a killed one left.
"""

import errno
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

HOST, RUN = hashlib.sha256(platform.node().encode()).hexdigest()[:8], secrets.token_hex(4)
HIDDEN = re.compile(r"\..+\.minidiff-([0-9a-f]{8})-(\d+)-([0-9a-f]{8})-[0-9a-f]{6}", re.DOTALL)  # host, process, run
WITH_A_LOST_WRITE = (errno.EIO, errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))  # fsync's errors that mean it


@contextmanager
def replaced(path: str | Path) -> Iterator[Path]:
    """A temporary file that takes the place of `path` when the block ends well, else is gone. Makes the folder."""
    new, ended_well = [], False
    try:
        place = _place(path)
        new = [folder for folder in place.parents if not os.path.lexists(folder)]
        place.parent.mkdir(parents=True, exist_ok=True)
        with _hidden(place) as hidden:  # a folder, as who writes into it may have temporary files of its own
            temporary = hidden / "file"
            temporary.touch()
            yield temporary
            with open(temporary, "rb+") as file:
                _to_disk(file.fileno())
            mask = os.umask(0)
            os.umask(mask)
            with suppress(OSError):  # there are disks without rights
                os.chmod(temporary, 0o666 & ~mask)
            os.replace(temporary, place)
            ended_well = True
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
        raise OSError(f"cannot write {path} ({why}): make room, or name another place") from None
    finally:
        for folder in [] if ended_well else new:  # innermost first; what is not empty stays
            with suppress(OSError):
                folder.rmdir()


def check_writable(path: str | Path, size: int = 2**16) -> None:
    """Raises ValueError when `path`, a file of `size` bytes, could not be written: asked before the work, not after it.

    It is tried: a file of that name and size is made in a hidden folder, as near to `path` as there are folders, and
    removed. So are the temporary files there of runs that were killed.
    """
    try:
        place = _place(path)
        nearest = next(folder for folder in place.parents if os.path.lexists(folder))
        if not os.path.isdir(nearest):
            why = "is a link to nothing" if os.path.islink(nearest) else "is no folder"
            raise NotADirectoryError(errno.ENOTDIR, f"{nearest} {why}")
        _remove_leftovers(nearest)
        with _hidden(nearest / place.name) as hidden:
            there = hidden / place.relative_to(nearest)
            there.parent.mkdir(parents=True, exist_ok=True)
            with open(there, "xb", buffering=0) as file:
                _fill(file.fileno(), size)
                _to_disk(file.fileno())
    except OSError as error:
        wanted = f"name a place that can be written, with {size:,} bytes of room"
        raise ValueError(f"cannot write {path} ({error.strerror or error}): {wanted}") from None


@contextmanager
def _hidden(place: Path) -> Iterator[Path]:
    """A folder beside `place`, gone after the block."""
    hidden = place.parent / f".{place.name[:20]}.minidiff-{HOST}-{os.getpid()}-{RUN}-{secrets.token_hex(3)}"
    hidden.mkdir()
    try:
        yield hidden
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _place(path: str | Path) -> Path:
    """Where a file will lie: a link is followed. Raises OSError for what cannot be replaced by a file."""
    if "\0" in str(path):
        raise OSError(errno.EINVAL, "a name holds no NUL")
    place = Path(path).absolute()
    if os.path.islink(place):
        place = Path(os.path.realpath(place))
        if os.path.islink(place) or not os.path.isdir(place.parent):
            raise OSError(errno.ENOENT, f"it is a link to {place}, and there is no such folder")
    if os.path.isdir(place):
        raise IsADirectoryError(errno.EISDIR, "it is a folder")
    if os.path.exists(place):
        folder, file = os.stat(place.parent), os.stat(place)
        if not stat.S_ISREG(file.st_mode):
            raise OSError(errno.EINVAL, "it is no ordinary file")
        for_all = folder.st_mode & stat.S_ISVTX and hasattr(os, "geteuid")  # and none removes another's, as in /tmp
        if for_all and os.geteuid() not in (0, folder.st_uid, file.st_uid):
            raise PermissionError(errno.EPERM, "it belongs to another user")
        try:
            os.close(os.open(place, os.O_WRONLY))
        except PermissionError as error:
            if error.errno == errno.EPERM:  # never to change; one that may only be read (EACCES) can be replaced
                raise
    return place


def _remove_leftovers(folder: Path) -> None:
    """The hidden folders whose process, on this host, is no more. One of our number and another run was before us."""
    with suppress(OSError):
        for path in folder.iterdir():
            host, process, run = found.groups() if (found := HIDDEN.fullmatch(path.name)) else ("", 0, "")
            if host == HOST and run != RUN and (int(process) == os.getpid() or not _lives(int(process))):
                shutil.rmtree(path, ignore_errors=True)


def _lives(process: int) -> bool:
    if os.name == "nt":
        return True  # there is no harmless question on Windows: its leftovers stay
    try:
        os.kill(process, 0)  # signal 0 is none: it asks
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's
        pass
    return True


def _fill(handle: int, size: int) -> None:
    """Take room for a file of `size` bytes."""
    try:
        os.posix_fallocate(handle, 0, size)
    except (AttributeError, OSError) as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EFBIG, *WITH_A_LOST_WRITE):
            raise
        while size > 0:  # a system or a disk that cannot do it at once
            size -= os.write(handle, bytes(min(size, 2**20)))


def _to_disk(handle: int) -> None:
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno in WITH_A_LOST_WRITE:
            raise  # others come from disks that do not know how, after a good write


@contextmanager
def rescued(tensors: dict[str, Tensor], path: str | Path, record: dict) -> Iterator[None]:
    """When the block, which is to write the tensors to `path`, fails, they are kept elsewhere: the error says where.

    tensors: may be filled within the block: what is there when it fails is kept
    """
    try:
        yield
    except Exception as error:
        kept = _kept(tensors, Path(path), record)
        if kept is None:
            raise
        says = f"{' '.join(str(error).split()) or type(error).__name__}; the arrays are kept in {kept}"
        if isinstance(error, OSError | ValueError | MemoryError):
            raise OSError(says) from None
        raise RuntimeError(says) from error


def _kept(tensors: dict[str, Tensor], path: Path, record: dict) -> Path | None:
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    name = f"{path.stem[:50]}-rescued-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.safetensors"
    places = [path.parent, Path(), Path(os.path.expanduser("~")), Path(tempfile.gettempdir())]
    for folder in places if tensors else []:
        with suppress(OSError, ValueError, TypeError, MemoryError):
            if os.path.isdir(folder):
                save_tensors(tensors, folder.absolute() / name, json.loads(json.dumps(record, default=str)))
                return folder.absolute() / name
    return None


def damaged(path: str | Path, kind: str, error: object) -> ValueError:
    """The error for a file that is not of its kind: what it is, and what helps. It names the file behind a link."""
    real, advice = os.path.realpath(path), "delete it and get it again"
    try:
        with open(real, "rb") as file:
            start, size = file.read(200), os.fstat(file.fileno()).st_size
    except OSError as unread:
        return ValueError(f"{real} cannot be read ({unread.strerror}): check its rights and its disk")
    why = f"{' '.join(str(error).split())[:120]}; it has {size:,} bytes"
    if start.startswith(b"version https://git-lfs"):
        why = "it is a Git LFS pointer, a note where the file is"
        advice = advice if "blobs" in Path(real).parts else "run `git lfs pull` in its folder"
    elif start.lstrip()[:5].lower() in (b"<!doc", b"<html"):
        why = "it is a web page, perhaps of a login"
    return ValueError(f"{real} is no {kind} ({why}): {advice}")


def save_tensors(tensors: dict[str, Tensor], path: str | Path, record: dict) -> None:
    """Write a safetensors file with a JSON record in its metadata."""
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }  # two may share memory
    text = json.dumps(record)
    metadata = {"minidiff": text, "sha256": _digest(tensors, text)}
    with replaced(path) as temporary:
        save_file(tensors, temporary, metadata)


def save_arrays(tensors: dict[str, Tensor], path: str | Path, record: dict) -> None:
    """Write numpy's .npz, with the record as the JSON string `settings`; or safetensors, when the path does not end in
    .npz.
    """
    if Path(path).suffix != ".npz":
        return save_tensors(tensors, path, record)
    with replaced(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **{name: tensor.numpy() for name, tensor in tensors.items()}, settings=json.dumps(record))


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict]:
    """Read what `save_tensors` wrote. Raises ValueError when the file is missing, no safetensors, or not as it was
    written.
    """
    path = Path(path)
    if not os.path.isfile(path):
        raise ValueError(f"there is no file {path}: check the path")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
    except (SafetensorError, OSError) as error:
        raise damaged(path, "whole safetensors file", error) from None
    if "minidiff" not in metadata:
        raise ValueError(f"{path} holds no minidiff settings: it wants a file written by train.py or sample.py")
    if metadata.get("sha256") != _digest(tensors, metadata["minidiff"]):
        raise ValueError(f"{path} was changed after it was written (its sha256 is wrong): get it again")
    record = json.loads(metadata["minidiff"])
    if not isinstance(record, dict):
        raise damaged(path, "file of tensors", f"its settings are {record!r}")
    return tensors, record


def load_arrays(path: str | Path) -> dict[str, Tensor]:
    """Read what `save_arrays` wrote, or another .npz of numbers. Raises ValueError when the file is missing, damaged,
    or of another kind.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return load_tensors(path)[0]
    if path.suffix != ".npz":
        raise ValueError(f"arrays are in a .safetensors or .npz file, got {path}: let a lesson write NAME.safetensors")
    if not os.path.isfile(path):
        raise ValueError(f"there is no file {path}: check the path")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return {
            name: torch.from_numpy(array)
            for name, array in arrays.items()
            if isinstance(array, np.ndarray) and array.dtype.kind in "iufb"
        }
    except Exception as error:  # noqa: BLE001, damaged archives raise a dozen kinds
        raise ValueError(
            f"{path} is no whole .npz file of numbers ({' '.join(str(error).split())[:120]}): get it again"
        ) from None


def _digest(tensors: dict[str, Tensor], record: str) -> str:
    digest = hashlib.sha256(record.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
