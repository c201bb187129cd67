"""Files that are whole or not there: atomic writing, and safetensors that are checked before they are believed.

A tensor file of ours keeps one JSON record in its metadata, under the key "minidiff", and in it the sha256 of the tensors' bytes.
"""

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


@contextmanager
def replaced(path: str | Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place when the block ends well, and is gone when it does not."""
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o644)
        with open(temporary, "rb") as f:
            os.fsync(f.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: str | Path) -> None:
    """Raises ValueError when `path` could not be written: asked before the work, not after it. Makes the folder."""
    path = Path(path)
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ValueError(f"cannot write {path} ({error.strerror}): give --out a place that can be written") from None


def save_tensors(tensors: dict[str, Tensor], path: str | Path, record: dict) -> None:
    """Write a safetensors file with a JSON record in its metadata."""
    tensors = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}  # two may share memory
    metadata = {"minidiff": json.dumps(record | {"sha256": _digest(tensors)})}
    with replaced(path) as temporary:
        save_file(tensors, temporary, metadata)


def save_arrays(tensors: dict[str, Tensor], path: str | Path, record: dict) -> None:
    """Write numpy's .npz, with the record as the JSON string `settings`; or safetensors, when the path does not end in .npz."""
    if Path(path).suffix != ".npz":
        return save_tensors(tensors, path, record)
    with replaced(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **{name: tensor.numpy() for name, tensor in tensors.items()}, settings=json.dumps(record))


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict]:
    """Read what `save_tensors` wrote. Raises ValueError when the file is missing, no safetensors, or not as it was written."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {path}: check the path")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is no whole safetensors file ({error}): get it again") from None
    if "minidiff" not in metadata:
        raise ValueError(f"{path} holds no minidiff settings: it wants a file written by train.py")
    record = json.loads(metadata["minidiff"])
    if record.pop("sha256", None) != _digest(tensors):
        raise ValueError(f"{path} was changed after it was written (its sha256 is wrong): get it again")
    return tensors, record


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
