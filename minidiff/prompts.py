"""Chapter 16. Prompts: how does text become the vectors that IF's U-Nets read, and where are they kept?

    embeddings = embed(["an oil painting of a fox", ""], model, bank)          (B, 77, D)

After a prompt has been encoded once, T5 is not needed again: the bank is a small file, 77 x 4096 numbers a prompt,
keyed by the plain text and by what encoded it: the content of T5's and the tokenizer's files, whatever they are
called. Where these files are not at hand the name decides; all of DeepFloyd's models share one encoder, so one bank
serves them all. Next: deepfloyd.py.
"""

import difflib
import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from minidiff import hub
from minidiff.files import load_tensors, rescued, save_tensors
from minidiff.networks import t5
from minidiff.networks.tokenizer import LENGTH, Tokenizer, plain

XXL = "t5-v1_1-xxl"  # the encoder of all DeepFloyd models, and the only one of its width here


class Encoder(NamedTuple):
    """What encoded a prompt: its name, and a digest of its files, "" where they were not at hand: in an older bank, or
    the course's file.
    """

    name: str
    digest: str = ""


Bank = dict[tuple[str, Encoder], Tensor]  # plain text, encoder -> (77, D)


def encoder_of(model: str | Path, D: int, half: bool = False) -> Encoder:
    """The encoder of a model whose prompts have vectors D wide, by the files that `embed` would read; nothing is
    fetched.
    """
    name, digest = XXL if D == 4096 else Path(model).resolve().name, hashlib.sha256()

    def find(model: str | Path, *names: str) -> Path:
        path = hub.cached(model, *names)
        if path is None:
            raise ValueError(f"{names[0]} is not here")
        return path

    try:
        files = [
            find(model, "tokenizer/spiece.model"),
            find(model, "text_encoder/config.json"),
            *hub.find_files(model, "text_encoder", "model", half, find),
        ]
        for path in files:
            with open(path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                digest.update(size.to_bytes(8, "big"))
                for start in range(
                    0, size, max(2**16, size // 1024)
                ):  # all of a file of 64 MB, of a larger one a sample of it
                    file.seek(start)
                    digest.update(file.read(2**16))
    except (OSError, ValueError):
        return Encoder(name)
    return Encoder(name, digest.hexdigest())


def stored(texts: Iterable[str], bank: Bank, encoder: Encoder) -> dict[str, Tensor]:
    """What the bank has of plain texts, as this encoder would encode them. Raises ValueError when it cannot tell two
    encoders apart.
    """
    texts = set(texts)

    def of(digest: str, *names: str) -> dict[str, Tensor]:
        return {
            text: state
            for (text, by), state in bank.items()
            if text in texts and by.digest == digest and (not names or by.name in names)
        }

    if encoder.digest:
        return (of("", XXL) if encoder.name == XXL else {}) | of(encoder.digest)
    unsigned, digests = of("", encoder.name), dict.fromkeys(by.digest for _, by in bank if by.name == encoder.name)
    choices = sorted((of(digest, encoder.name) for digest in digests if digest), key=len)
    if len(choices) > 1 and len(choices[-2]) == len(choices[-1]) > 0 and encoder.name != XXL:
        raise ValueError(
            f"the bank has {min(choices[-1])!r} from two encoders named {encoder.name}, and neither is here: "
            f"name the encoder, or another bank"
        )
    return unsigned | (choices[-1] if choices else {})


def missing(prompts: Iterable[str], model: str | Path, D: int, bank: Bank, half: bool = False) -> list[str]:
    """The plain texts for which `embed` will need T5."""
    texts = dict.fromkeys(map(plain, prompts))
    found = stored(texts, bank, encoder_of(model, D, half))
    return [text for text in texts if text not in found]


def embed(
    prompts: list[str],
    model: str | Path,
    D: int,
    bank: Bank,
    half: bool = False,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Tensor:
    """The vectors of prompts (B, 77, D) float32: from the bank, or by T5, which then puts them into the bank.

    model:    where tokenizer/ and text_encoder/ are, if T5 is needed
    D:        width of the vectors that the U-Net reads (encoder_hid_dim)
    half:     read T5's files of half precision first: 11.5 GB and not 19 for XXL, states that differ by 1 %
    progress: wraps the counting of T5's blocks, like tqdm
    Raises ValueError when a prompt is not in the bank and the model has no text encoder.
    """
    lacking, encoder = missing(prompts, model, D, bank, half), encoder_of(model, D, half)
    if lacking:
        try:
            _fetched(model, half)
            lacking, encoder = (
                missing(prompts, model, D, bank, half),
                encoder_of(model, D, half),
            )  # now that it is here, it is known by its content
            bank |= {
                (text, encoder): state
                for text, state in zip(lacking, encode(lacking, model, half, progress) if lacking else ())
            }
        except ValueError as error:
            known = difflib.get_close_matches(
                lacking[0], [text for text, by in bank if by.name == encoder.name], n=1, cutoff=0
            )
            nearest = f" (nearest there: {known[0]!r})" if known else ""
            raise ValueError(
                f"no embedding for {lacking[0][:200]!r} in the bank{nearest}, and T5 cannot make it: {error}; or name "
                f"another encoder"
            ) from None
    found = stored(map(plain, prompts), bank, encoder)
    wrong = [tuple(state.shape) for state in found.values() if state.shape != (LENGTH, D)]
    if wrong:
        raise ValueError(
            f"the bank's embeddings are {wrong[0]}, the model wants {(LENGTH, D)}: encode the prompts with this "
            f"model's T5"
        )
    return torch.stack([found[plain(prompt)] for prompt in prompts]).float()


def _fetched(model: str | Path, half: bool) -> tuple[Tokenizer, dict, hub.Weights]:
    tokenizer = Tokenizer(hub.fetch(model, "tokenizer/spiece.model"))
    config = hub.read_json(model, "text_encoder/config.json")
    return tokenizer, config, hub.find_weights(model, "text_encoder", "model", half, alias=t5.ALIAS, ignore=t5.DECODER)


def encode(
    prompts: list[str], model: str | Path, half: bool = False, progress: Callable[[Iterable[int]], Iterable[int]] = iter
) -> Tensor:
    """T5's states (B, 77, D), computed in float32 whatever the files' precision, with one block in memory at a time."""
    tokenizer, config, weights = _fetched(model, half)
    ids, mask = tokenizer(prompts)
    hub.check(t5.on_meta(config), weights)
    if int(ids.max()) >= config["vocab_size"]:
        raise ValueError(
            f"the tokenizer of {model} knows more pieces than its T5, {config['vocab_size']}: take the two that belong "
            f"together"
        )
    return t5.stream(config, ids, mask, lambda names: hub.read(weights, names, torch.float32), progress)


def save_bank(bank: Bank, path: str | Path) -> None:
    """Write the bank, a safetensors file of 1.2 MB a prompt for T5-XXL; if it cannot be, it is kept elsewhere."""
    keys = [{"text": text, "encoder": encoder.name, "digest": encoder.digest} for text, encoder in bank]
    tensors = {str(i): state for i, state in enumerate(bank.values())}
    with rescued(tensors, path, {"prompts": keys}):
        save_tensors(tensors, path, {"prompts": keys})


def load_bank(path: str | Path) -> Bank:
    """Read a bank; an empty one if there is no such file. Raises ValueError for a file that is no bank."""
    if not os.path.lexists(path):
        return {}
    tensors, record = load_tensors(path)
    try:
        keys = [
            (str(key["text"]), Encoder(str(key["encoder"]), str(key.get("digest") or ""))) for key in record["prompts"]
        ]
        return {key: tensors[str(i)] for i, key in enumerate(keys)}
    except (KeyError, TypeError, AttributeError):
        raise ValueError(f"{path} is no prompt bank: give a file written by `sample.py embed`") from None


def import_pth(path: str | Path, encoder: str = XXL) -> Bank:
    """The course's file of embeddings, a pickled dict of text -> (1, 77, 4096); what a pickle may hold is not run.

    Raises ValueError when the file holds anything but tensors under texts.
    """
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001, arbitrary bytes make the unpickler raise anything
        why = error.strerror if isinstance(error, OSError) else "it is damaged, or holds more than tensors"
        raise ValueError(f"{path} cannot be read safely ({why}): give a .pth file that holds tensors alone") from None
    if not isinstance(stored, dict) or not all(
        isinstance(text, str) and _is_embedding(x) for text, x in stored.items()
    ):
        raise ValueError(
            f"{path} is no dict of text -> ({LENGTH}, D) tensors: give the course's file of prompt embeddings"
        )
    wrong = next((x.shape[-1] for x in stored.values() if encoder == XXL and x.shape[-1] != 4096), None)
    if wrong:
        raise ValueError(
            f"{path} holds vectors {wrong} wide, those of {XXL} are 4096 wide: give the course's file of prompt "
            f"embeddings"
        )
    return {(plain(text), Encoder(encoder)): x.detach().reshape(LENGTH, -1) for text, x in stored.items()}


def _is_embedding(x: object) -> bool:
    """(77, D) or (1, 77, D) finite numbers?"""
    plain_numbers = isinstance(x, Tensor) and x.layout == torch.strided and x.is_floating_point() and x.numel() > 0
    return plain_numbers and x.shape[:-1] in ((LENGTH,), (1, LENGTH)) and bool(torch.isfinite(x.float()).all())
