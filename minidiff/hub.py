"""Chapter 15. The hub: where do the weights of a published model come from, and may they be believed?

A model is a folder, or a name like DeepFloyd/IF-I-M-v1.0 that the hub knows; a folder never touches the network, and of the hub only
the files asked for are fetched, once. Weights are safetensors, never pickles (which run code when they are opened). Their names and
shapes are read first and must be exactly the network's; then tensor by tensor goes into a network that was built on "meta", so that
at no time much more lies in memory than the weights that are kept. Next: prompts.py, the text.
"""

import errno
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

AT_ONCE = 16 * 2**20  # bytes of a file that are mapped at a time


def fetch(model: str | Path, *names: str) -> Path:
    """The first of the files that the model has: "unet/config.json" in a folder, or of a hub name, downloaded if it is not in the cache.

    Raises ValueError with the next step: no such folder or name, not allowed, not reachable, disk full, none of the files.
    """
    if os.path.isdir(model):
        found = [Path(model, name) for name in names if Path(model, name).is_file()]
        if not found:
            pickles = sorted(p.name for p in Path(model, names[0]).parent.glob("*.bin"))
            why = f" ({pickles[0]} is a pickle, which can run code: it is never opened)" if pickles else ""
            raise ValueError(f"{model} has no {' or '.join(names)}{why}: give a folder in the layout of the hub, with safetensors")
        return found[0]
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(model), re.ASCII) or len(str(model)) > 96:
        raise ValueError(f"there is no folder {' '.join(str(model).split())[:99]}, and a name on the hub has the form owner/name: check --model")
    return _download(str(model), names)


def _download(repo: str, names: tuple[str, ...]) -> Path:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, utils  # here: it takes a second, and a folder does not need it

    for name in names:  # what is in the cache is used, and nobody asked
        try:
            return Path(hf_hub_download(repo, name, local_files_only=True))
        except utils.EntryNotFoundError:
            pass
    for name in names:
        try:
            get_hf_file_metadata(hf_hub_url(repo, name))  # ask first: the download itself would try a dead line five times
            return Path(hf_hub_download(repo, name))
        except utils.GatedRepoError as error:
            if error.response.status_code == 401:
                raise ValueError(f"{repo} wants to know who you are (401: no valid token): accept its licence at huggingface.co/{repo}, then run `hf auth login`") from None
            raise ValueError(f"{repo} is gated and your account has not accepted its licence (403): accept it at huggingface.co/{repo}, then try again") from None
        except utils.RepositoryNotFoundError as error:
            hint = "it may be private: run `hf auth login`, or " if error.response.status_code == 401 else ""
            raise ValueError(f"the hub has no model {repo} that you may see ({error.response.status_code}): {hint}check the spelling of --model") from None
        except utils.LocalEntryNotFoundError:
            raise ValueError(f"the hub stopped answering while {repo}/{name} was fetched: try again, or give a local folder") from None
        except utils.EntryNotFoundError:
            continue  # the hub knows the model, and that it has no such file
        except utils.HfHubHTTPError as error:
            raise ValueError(f"the hub answered {error.response.status_code} for {repo}/{name}: try again later, or give a local folder") from None
        except (OSError, utils.HfHubHTTPError.__bases__[0]) as error:  # the second: what its HTTP library raises, requests or httpx
            if getattr(error, "errno", None) == errno.ENOSPC:
                raise ValueError(f"the disk is full, {repo}/{name} was not saved: free some space, or set HF_HOME to a folder on another disk") from None
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(f"the hub cannot be reached ({reason}), and {repo}/{name} is not in the cache: go online, or give a local folder") from None
    raise ValueError(f"{repo} has no {' or '.join(names)}: choose a model in the layout of the hub, with safetensors")


def read_json(model: str | Path, name: str) -> dict:
    """A config file of the model. Raises ValueError, also when a name stands twice in it."""
    path = fetch(model, name)
    content = _parsed(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no JSON object (it holds {type(content).__name__}): get it again")  # noqa: TRY004, a wrong file like the others
    return content


def _parsed(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON object ({error}): get it again") from None


def _once(pairs: list[tuple[str, object]]) -> dict:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError(f"{next(n for n in names if names.count(n) > 1)} stands twice in a JSON file of the model: get the file again")
    return dict(pairs)


class Stored(NamedTuple):
    """A tensor in a safetensors file."""

    file: Path
    key: str
    shape: tuple[int, ...]
    bytes: int


Weights = dict[str, Stored]  # name of the tensor -> where it lies


def find_weights(model: str | Path, folder: str, stem: str, half: bool, alias: dict[str, str] | None = None, ignore: tuple[str, ...] = ()) -> Weights:
    """Where the tensors of one part of a model lie; nothing but names and shapes is read (from the hub: the files are fetched).

    folder, stem: "unet" and "diffusion_pytorch_model", or "text_encoder" and "model"
    half:         prefer the files of half precision to those of full precision; if only the others are there, take them
    alias:        names that files may use -> the network's; a file with both is read under the second
    ignore:       beginnings of names that are no part of the network
    Raises ValueError for pickles, shards outside of the folder, tensors that are there twice, and files that are no safetensors.
    """
    index = f"{folder}/{stem}.safetensors.index"
    full = [f"{folder}/{stem}.safetensors", f"{index}.json"]
    fp16 = [f"{folder}/{stem}.fp16.safetensors", f"{index}.fp16.json", f"{folder}/{stem}.fp16.safetensors.index.json"]
    path = fetch(model, *(fp16 + full if half else full + fp16))
    weights = {}
    for file, listed in _shards(model, folder, path).items():
        for key, shape, size in _header(file):
            if listed is not None and key not in listed:
                raise ValueError(f"{key} is in {file.name}, but the index says otherwise: get the folder {folder} again")
            if key in weights:
                raise ValueError(f"{key} is twice in the files of {folder}, in {weights[key].file.name} and {file.name}: get the folder again")
            weights[key] = Stored(file, key, shape, size)
        lost = [key for key in listed or () if key not in weights]
        if lost:
            raise ValueError(f"{lost[0]} is not in {file.name}, where the index has it: get the folder {folder} again")
    for theirs, ours in (alias or {}).items():
        if theirs in weights:
            stored = weights.pop(theirs)
            weights.setdefault(ours, stored)
    return {name: stored for name, stored in weights.items() if not name.startswith(ignore)}


def _shards(model: str | Path, folder: str, path: Path) -> dict[Path, set[str] | None]:
    """File -> the tensors that an index has in it; None for a file without an index."""
    if path.suffix != ".json":
        return {path: None}
    index = _parsed(path)
    placed = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(placed, dict):
        raise ValueError(f"{path} is no index of safetensors (it has no weight_map): get it again")  # noqa: TRY004, a wrong file like the others
    wrong = [name for name in placed.values() if not re.fullmatch(r"[\w-][\w.-]*\.safetensors", str(name))]
    if wrong:
        raise ValueError(f"{path.name} names the file {wrong[0]!r}, wanted is a safetensors file in the same folder: do not trust this model")
    return {fetch(model, f"{folder}/{name}"): {key for key, where in placed.items() if where == name} for name in sorted(set(placed.values()))}


def _header(file: Path) -> Iterator[tuple[str, tuple[int, ...], int]]:
    widths = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
    try:
        with safe_open(file, framework="pt") as f:
            for key in f.keys():  # noqa: SIM118 (no dict)
                part = f.get_slice(key)
                shape, dtype = tuple(part.get_shape()), part.get_dtype()
                if dtype not in widths:
                    raise ValueError(f"{key} in {file.name} is of type {dtype}, wanted is one of {', '.join(widths)}: take the unquantised weights")
                yield key, shape, widths[dtype] * torch.Size(shape).numel()
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is no whole safetensors file ({error}): delete it and get it again") from None


def read(weights: Weights, names: Iterable[str], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The tensors of these names, in `dtype`. Where it is the file's (or None) they stay memory-mapped: no copy is made.

    What is mapped counts as memory until its file is closed. So files are opened anew for every AT_ONCE bytes, the largest tensors
    first: when most of the memory is taken, what is mapped besides is small.
    """
    tensors, portion, size = {}, [], 0
    names = sorted(names, key=lambda name: -weights[name].bytes)
    for name, following in zip(names, [*names[1:], None]):
        portion.append(name)
        size += weights[name].bytes
        if following is None or size + weights[following].bytes > AT_ONCE:
            for file in {weights[name].file for name in portion}:
                with safe_open(file, framework="pt") as f:
                    for name in (name for name in portion if weights[name].file == file):
                        tensor = f.get_tensor(weights[name].key)
                        tensors[name] = tensor if dtype is None else tensor.to(dtype)
                        del tensor
            portion, size = [], 0
    return tensors


def check(network: nn.Module, weights: Weights) -> None:
    """Raises ValueError that names the first missing, unexpected or wrongly shaped tensor, before any is read."""
    wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    for problem, names in (("lack", wanted.keys() - weights.keys()), ("have, unexpected,", weights.keys() - wanted.keys())):
        if names:
            raise ValueError(f"the files {problem} {min(names)} ({len(names)} such tensors): take the weights that belong to this config.json")
    for name, shape in wanted.items():
        if weights[name].shape != shape:
            raise ValueError(f"{name} is {weights[name].shape} in the file, {shape} in the network: take the weights that belong to this config.json")


def load(network: nn.Module, weights: Weights, dtype: torch.dtype) -> nn.Module:
    """Give a network that was built on "meta" its weights, in evaluation mode. Raises ValueError unless `check` passes."""
    check(network, weights)
    network.load_state_dict(read(weights, weights, dtype), strict=True, assign=True)
    return network.requires_grad_(False).eval()
