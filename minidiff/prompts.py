"""Chapter 16. Prompts: how does text become the vectors that IF's U-Nets read, and where are they kept?

    embeddings = embed(["an oil painting of a fox", ""], model, bank)          (B, 77, D)

After a prompt has been encoded once, T5 is not needed again: the bank is a small file, 77 x 4096 numbers a prompt, keyed by the plain
text and the name of the encoder. All of DeepFloyd's models share one encoder, so one bank serves them all. Next: deepfloyd.py.
"""

import difflib
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from minidiff import hub
from minidiff.files import load_tensors, save_tensors
from minidiff.networks import t5
from minidiff.networks.tokenizer import LENGTH, Tokenizer, plain

XXL = "t5-v1_1-xxl"  # the encoder of all DeepFloyd models, and the only one of its width here
Bank = dict[tuple[str, str], Tensor]  # (plain text, name of the encoder) -> (77, D)


def encoder_name(model: str | Path, D: int) -> str:
    """The encoder of a model whose prompts have vectors D wide: T5-XXL's name, or that of the model's folder."""
    return XXL if D == 4096 else Path(model).resolve().name


def embed(prompts: list[str], model: str | Path, D: int, bank: Bank, half: bool = False, progress: Callable[[Iterable[int]], Iterable[int]] = iter) -> Tensor:
    """The vectors of prompts (B, 77, D) float32: from the bank, or by T5, which then puts them into the bank.

    model:    where tokenizer/ and text_encoder/ are, if T5 is needed
    D:        width of the vectors that the U-Net reads (encoder_hid_dim)
    half:     read T5's files of half precision first: 11.5 GB and not 19 for XXL, states that differ by 1 %
    progress: wraps the counting of T5's blocks, like tqdm
    Raises ValueError when a prompt is not in the bank and the model has no text encoder.
    """
    name = encoder_name(model, D)
    missing = [prompt for prompt in dict.fromkeys(map(plain, prompts)) if (prompt, name) not in bank]
    if missing:
        try:
            states = encode(missing, model, half, progress)
        except ValueError as error:
            stored = difflib.get_close_matches(missing[0], [text for text, encoder in bank if encoder == name], n=1, cutoff=0)
            nearest = f" (nearest there: {stored[0]!r})" if stored else ""
            raise ValueError(f"no embedding for {missing[0]!r} in the bank{nearest}, and T5 cannot make it: {error}; or name a model with a text encoder with --encoder") from None
        bank |= {(prompt, name): state for prompt, state in zip(missing, states)}
    found = [bank[plain(prompt), name] for prompt in prompts]
    wrong = [tuple(state.shape) for state in found if state.shape != (LENGTH, D)]
    if wrong:
        raise ValueError(f"the bank's embeddings are {wrong[0]}, the model wants {(LENGTH, D)}: encode the prompts with this model's T5")
    return torch.stack(found).float()


def encode(prompts: list[str], model: str | Path, half: bool = False, progress: Callable[[Iterable[int]], Iterable[int]] = iter) -> Tensor:
    """T5's states (B, 77, D), computed in float32 whatever the files' precision, with one block in memory at a time."""
    ids, mask = Tokenizer(hub.fetch(model, "tokenizer/spiece.model"))(prompts)
    config = hub.read_json(model, "text_encoder/config.json")
    weights = hub.find_weights(model, "text_encoder", "model", half, alias=t5.ALIAS, ignore=t5.DECODER)
    hub.check(t5.on_meta(config), weights)
    return t5.stream(config, ids, mask, lambda names: hub.read(weights, names, torch.float32), progress)


def save_bank(bank: Bank, path: str | Path) -> None:
    """Write the bank, a safetensors file of 1.2 MB a prompt for T5-XXL."""
    keys = [{"text": text, "encoder": encoder} for text, encoder in bank]
    save_tensors({str(i): state for i, state in enumerate(bank.values())}, path, {"prompts": keys})


def load_bank(path: str | Path) -> Bank:
    """Read a bank; an empty one if there is no such file. Raises ValueError for a file that is no bank."""
    if not Path(path).exists():
        return {}
    tensors, record = load_tensors(path)
    try:
        return {(str(key["text"]), str(key["encoder"])): tensors[str(i)] for i, key in enumerate(record["prompts"])}
    except (KeyError, TypeError):
        raise ValueError(f"{path} is no prompt bank: give a file written by `sample.py embed`") from None


def import_pth(path: str | Path, encoder: str = XXL) -> Bank:
    """The course's file of embeddings, a pickled dict of text -> (1, 77, 4096), read without running what a pickle may hold.

    Raises ValueError when the file holds anything but tensors under texts.
    """
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001, arbitrary bytes make the unpickler raise anything
        why = error.strerror if isinstance(error, OSError) else "it is damaged, or holds more than tensors"
        raise ValueError(f"{path} cannot be read safely ({why}): give a .pth file that holds tensors alone") from None
    if not isinstance(stored, dict) or not all(isinstance(text, str) and _is_embedding(x) for text, x in stored.items()):
        raise ValueError(f"{path} is no dict of text -> ({LENGTH}, D) tensors: give the course's file of prompt embeddings")
    wrong = next((x.shape[-1] for x in stored.values() if encoder == XXL and x.shape[-1] != 4096), None)
    if wrong:
        raise ValueError(f"{path} holds vectors {wrong} wide, those of {XXL} are 4096 wide: give the course's file of prompt embeddings")
    return {(plain(text), encoder): x.detach().reshape(LENGTH, -1) for text, x in stored.items()}


def _is_embedding(x: object) -> bool:
    """(77, D) or (1, 77, D) finite numbers?"""
    plain_numbers = isinstance(x, Tensor) and x.layout == torch.strided and x.is_floating_point() and x.numel() > 0
    return plain_numbers and x.shape[:-1] in ((LENGTH,), (1, LENGTH)) and bool(torch.isfinite(x.float()).all())
