"""Files that are whole or not there: atomic writing, and safetensors that are checked before they are believed.

A tensor file of ours keeps one JSON record in its metadata, under the key "minidiff", and beside it, under "sha256", the digest
of that record and of all tensors: a file that was changed is not believed.
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
    """A temporary file beside `path` that takes its place when the block ends well, and is gone when it does not. Makes the folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb+") as f:
            os.fsync(f.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise OSError(f"cannot write {path} ({getattr(error, 'strerror', None) or error}): make room, or give --out another place") from None
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: str | Path) -> None:
    """Raises ValueError when `path` could not be written: asked before the work, not after it."""
    path = Path(path)
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{path.name}."):
            pass
    except OSError as error:
        raise ValueError(f"cannot write {path} ({error.strerror}): name a place that can be written") from None


def save_tensors(tensors: dict[str, Tensor], path: str | Path, record: dict) -> None:
    """Write a safetensors file with a JSON record in its metadata."""
    tensors = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}  # two may share memory
    text = json.dumps(record)
    metadata = {"minidiff": text, "sha256": _digest(tensors, text)}
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
        raise ValueError(f"{path} holds no minidiff settings: it wants a file written by train.py or sample.py")
    if metadata.get("sha256") != _digest(tensors, metadata["minidiff"]):
        raise ValueError(f"{path} was changed after it was written (its sha256 is wrong): get it again")
    record = json.loads(metadata["minidiff"])
    if not isinstance(record, dict):
        raise ValueError(f"{path} holds {record!r} in place of its settings: get it again")  # noqa: TRY004, a wrong file like the others
    return tensors, record


def load_arrays(path: str | Path) -> dict[str, Tensor]:
    """Read what `save_arrays` wrote, or another .npz of numbers. Raises ValueError when the file is missing, damaged, or of another kind."""
    path = Path(path)
    if path.suffix == ".safetensors":
        return load_tensors(path)[0]
    if path.suffix != ".npz":
        raise ValueError(f"arrays are in a .safetensors or .npz file, got {path}: write them with --out NAME.safetensors")
    if not path.is_file():
        raise ValueError(f"there is no file {path}: check the path")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return {name: torch.from_numpy(array) for name, array in arrays.items() if isinstance(array, np.ndarray) and array.dtype.kind in "iufb"}
    except Exception as error:  # noqa: BLE001, damaged archives raise a dozen kinds
        raise ValueError(f"{path} is no whole .npz file of numbers ({' '.join(str(error).split())[:120]}): get it again") from None


def _digest(tensors: dict[str, Tensor], record: str) -> str:
    digest = hashlib.sha256(record.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
