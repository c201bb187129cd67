"""Chapter 15. The hub: where do the weights of a published model come from, and may they be believed?

A model is a folder, or a name like DeepFloyd/IF-I-M-v1.0 that the hub knows; a folder never touches the network, and
of the hub only the files asked for are fetched, once. Weights are safetensors, never pickles (which run code when they
are opened). Their names and shapes are read first and must be exactly the network's; then tensor by tensor goes into a
network that was built on "meta", so that at no time much more lies in memory than the weights that are kept. Next:
prompts.py, the text.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from minidiff import download
from minidiff.files import damaged

NAME = r"\w[\w.-]*/\w[\w.-]*"  # of a model on the hub
AT_ONCE = 16 * 2**20  # bytes of a file that are mapped at a time


def fetch(model: str | Path, *names: str) -> Path:
    """The first of the files ("unet/config.json") that the model has, in a folder, or on the hub: fetched if need be.

    Raises ValueError with the next step: no such folder or name, not allowed, not reachable, disk full, no such file.
    """
    if os.path.isdir(model):
        found = cached(model, *names)
        if found is None:
            pickles = sorted(p.name for p in Path(model, names[0]).parent.glob("*.bin"))
            why = f" ({pickles[0]} is a pickle, which can run code: it is never opened)" if pickles else ""
            raise ValueError(
                f"{model} has no {' or '.join(names)}{why}: give a folder in the layout of the hub, with safetensors"
            )
        return found
    if not re.fullmatch(NAME, str(model), re.ASCII) or len(str(model)) > 96:
        raise ValueError(
            f"there is no folder {' '.join(str(model).split())[:99]}, and a name on the hub has the form owner/name: "
            f"check the name of the model"
        )
    return download.download(str(model), names)


def cached(model: str | Path, *names: str) -> Path | None:
    """As `fetch`, but nobody is asked: None when the file is not in the folder or the cache."""
    if os.path.isdir(model):
        return next((Path(model, name) for name in names if os.path.isfile(Path(model, name))), None)
    return download.cached(str(model), names) if re.fullmatch(NAME, str(model), re.ASCII) else None


def read_json(model: str | Path, name: str) -> dict:
    """A config file of the model. Raises ValueError, also when a name stands twice in it."""
    path = fetch(model, name)
    content = _parsed(path)
    if not isinstance(content, dict):
        raise damaged(path, "JSON object", f"it holds {type(content).__name__}")
    return content


def _parsed(path: Path) -> object:
    try:
        return json.loads(
            path.read_bytes(), object_pairs_hook=_once
        )  # of bytes it knows the encoding, and a mark of it (BOM)
    except NamedTwice as error:
        raise ValueError(f"{path}: {error}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, "JSON object", error) from None


class NamedTwice(ValueError):
    """A name stands twice in a JSON object."""


def _once(pairs: list[tuple[str, object]]) -> dict:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise NamedTwice(
            f"{next(n for n in names if names.count(n) > 1)} stands twice: delete the file and get it again"
        )
    return dict(pairs)


class Stored(NamedTuple):
    """A tensor in a safetensors file."""

    file: Path
    key: str
    shape: tuple[int, ...]
    bytes: int


Weights = dict[str, Stored]  # name of the tensor -> where it lies


Find = Callable[..., Path]  # fetch, or another that takes (model, *names)


def find_files(
    model: str | Path, folder: str, stem: str, half: bool, find: Find = fetch
) -> dict[Path, set[str] | None]:
    """File -> the tensors that an index has in it; None for a file without an index. The arguments are those of
    `find_weights`.
    """
    index = f"{folder}/{stem}.safetensors.index"
    full = [f"{folder}/{stem}.safetensors", f"{index}.json"]
    fp16 = [f"{folder}/{stem}.fp16.safetensors", f"{index}.fp16.json", f"{folder}/{stem}.fp16.safetensors.index.json"]
    path = find(model, *(fp16 + full if half else full + fp16))
    if path.suffix != ".json":
        return {path: None}
    index = _parsed(path)
    placed = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(placed, dict):
        raise damaged(path, "index of safetensors", "it has no weight_map")
    wrong = [name for name in placed.values() if not re.fullmatch(r"[\w-][\w.-]*\.safetensors", str(name))]
    if wrong:
        raise ValueError(
            f"{path.name} names the file {wrong[0]!r}, wanted is a safetensors file in the same folder: do not trust "
            f"this model"
        )
    return {
        find(model, f"{folder}/{name}"): {key for key, where in placed.items() if where == name}
        for name in sorted(set(placed.values()))
    }


def find_weights(
    model: str | Path,
    folder: str,
    stem: str,
    half: bool,
    alias: dict[str, str] | None = None,
    ignore: tuple[str, ...] = (),
) -> Weights:
    """Where the tensors of one part of a model lie; only names and shapes are read (of the hub: the files are fetched).

    folder, stem: "unet" and "diffusion_pytorch_model", or "text_encoder" and "model"
    half:         prefer the files of half precision to those of full precision; if only the others are there, take them
    alias:        names that files may use -> the network's; a file with both is read under the second
    ignore:       beginnings of names that are no part of the network
    Raises ValueError for pickles, shards outside of the folder, tensors that are there twice, files that are broken.
    """
    weights = {}
    for file, listed in find_files(model, folder, stem, half).items():
        for key, shape, size in _header(file):
            if listed is not None and key not in listed:
                raise ValueError(
                    f"{key} is in {file.name}, but the index says otherwise: get the folder {folder} again"
                )
            if key in weights:
                raise ValueError(
                    f"{key} is twice in the files of {folder}, in {weights[key].file.name} and {file.name}: get the "
                    f"folder again"
                )
            weights[key] = Stored(file, key, shape, size)
        lost = [key for key in listed or () if key not in weights]
        if lost:
            raise ValueError(f"{lost[0]} is not in {file.name}, where the index has it: get the folder {folder} again")
    for theirs, ours in (alias or {}).items():
        if theirs in weights:
            stored = weights.pop(theirs)
            weights.setdefault(ours, stored)
    return {name: stored for name, stored in weights.items() if not name.startswith(ignore)}


@contextmanager
def _opened(file: Path) -> Iterator[safe_open]:
    try:
        with safe_open(file, framework="pt") as f:
            yield f
    except (SafetensorError, OSError) as error:
        raise damaged(file, "whole safetensors file", error) from None


def _header(file: Path) -> Iterator[tuple[str, tuple[int, ...], int]]:
    widths = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
    with _opened(file) as f:
        for key in f.keys():  # noqa: SIM118 (no dict)
            part = f.get_slice(key)
            shape, dtype = tuple(part.get_shape()), part.get_dtype()
            if dtype not in widths:
                raise ValueError(
                    f"{key} in {file.name} is of type {dtype}, wanted is one of {', '.join(widths)}: take the "
                    f"unquantised weights"
                )
            yield key, shape, widths[dtype] * torch.Size(shape).numel()


def read(weights: Weights, names: Iterable[str], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The tensors of these names, in `dtype`. Where it is the file's (or None) they stay memory-mapped, uncopied.

    What is mapped counts as memory until its file is closed. So files are opened anew for every AT_ONCE bytes, the
    largest tensors
    first: when most of the memory is taken, what is mapped besides is small.
    """
    tensors, portion, size = {}, [], 0
    names = sorted(names, key=lambda name: -weights[name].bytes)
    for name, following in zip(names, [*names[1:], None]):
        portion.append(name)
        size += weights[name].bytes
        if following is None or size + weights[following].bytes > AT_ONCE:
            for file in {weights[name].file for name in portion}:
                with _opened(file) as f:
                    for name in (name for name in portion if weights[name].file == file):
                        tensor = f.get_tensor(weights[name].key)
                        tensors[name] = tensor if dtype is None else tensor.to(dtype)
                        del tensor
            portion, size = [], 0
    return tensors


def check(network: nn.Module, weights: Weights) -> None:
    """Raises ValueError that names the first missing, unexpected or wrongly shaped tensor, before any is read."""
    wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    for problem, names in (
        ("lack", wanted.keys() - weights.keys()),
        ("have, unexpected,", weights.keys() - wanted.keys()),
    ):
        if names:
            raise ValueError(
                f"the files {problem} {min(names)} ({len(names)} such tensors): take the weights that belong to this "
                f"config.json"
            )
    for name, shape in wanted.items():
        if weights[name].shape != shape:
            raise ValueError(
                f"{name} is {weights[name].shape} in the file, {shape} in the network: take the weights that belong to "
                f"this config.json"
            )


def load(network: nn.Module, weights: Weights, dtype: torch.dtype) -> nn.Module:
    """Give a network built on "meta" its weights, in evaluation mode. Raises ValueError unless `check` passes."""
    check(network, weights)
    network.load_state_dict(read(weights, weights, dtype), strict=True, assign=True)
    return network.requires_grad_(False).eval()
