"""Chapter 18. Drawing: from the name of a model and some words to a denoiser.

A lesson should not care what it draws. So one frozen record stands for the digits' U-Net with its labels and for DeepFloyd IF with its
prompts: a network, and for every *word* ("7", "an oil painting of a snowy mountain village") the condition that the network is
given for it. The word "" is none: the half that guidance leads away from.

A prompted model is made ready in the order that needs the least memory: plan, encode the prompts, let T5 go, load the U-Net.
Next: the scripts.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minidiff import adapters, deepfloyd, hub, prompts
from minidiff.denoiser import Denoiser
from minidiff.diffusion import clip_to
from minidiff.files import check_writable
from minidiff.guidance import cfg
from minidiff.machine import free_memory
from minidiff.networks.if_unet import TextState
from minidiff.one_forward import Network, one_forward, rows, sequential
from minidiff.pretrained import Digits
from minidiff.sampling import Clip

Combine = Callable[[Sequence[Denoiser]], Denoiser]  # one guided denoiser for each term of a formula -> the formula


@dataclass(frozen=True)
class Model:
    """All that a walk needs to know of a network, whatever it draws.

    network:    eps, v = network(x_t, t, c), as `one_forward` wants it
    conditions: word -> c, one row; "" for no word
    alpha_bar:  (T + 1,) float64
    clip:       keeps an estimate of x_0 in range
    pixels:     (low, high)
    shape:      (C, H, W) of an image
    scale:      the guidance that suits it
    levels:     (steps as text, or None for the default; whether DPM-Solver++ walks) -> falling levels from T to 0
    guide:      a worse denoiser to be guided away from, for a network that knows no words (AG, see pretrained.py)
    enlarged:   stage II alone: (low-resolution images, noise source) -> what the network sees of them, (B, C, H, W)
    """

    network: Network
    conditions: dict[str, Any]
    alpha_bar: Tensor
    clip: Clip
    pixels: tuple[float, float]
    shape: tuple[int, int, int]
    scale: float
    levels: Callable[[str | None, bool], list[int]] | None = None
    guide: Denoiser | None = None
    enlarged: Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor] | None = None

    def told(self, words: Sequence[str]) -> Any:
        """What the network is told: one row when all words are the same, else a row each. Raises ValueError for a word that it does not know."""
        for word in words:
            if word not in self.conditions:
                raise ValueError(f"the model knows {', '.join(filter(None, self.conditions)) or 'no words'}, got {word!r}")
        return self.conditions[words[0]] if len(set(words)) == 1 else rows([self.conditions[word] for word in words], 1)

    def guided(self, net: Callable[[Any], Denoiser], words: Sequence[str], scale: float, low: Tensor | None = None) -> Denoiser:
        """A term of a formula: from no word to the words, or from the guide to the network."""
        c, empty = self.told(words), self.conditions[""]
        if low is not None:
            c, empty = (c, low), (empty, low)
        if self.guide is not None:
            return cfg(net(c), self.guide, scale)
        return cfg(net(c), net(empty), scale) if any(words) else net(c)

    def denoiser(self, terms: Sequence[Sequence[str]], combine: Combine, scale: float, one_by_one: bool = False, lows: Sequence[Tensor] | None = None) -> Denoiser:
        """A denoiser of several guided ones, with one forward pass a step.

        terms:      for each the words, one an image, or one for all
        combine:    `anagram`, `hybrid`, … of the terms' denoisers; `only` for one term
        one_by_one: a forward pass for each question: for small memories
        lows:       stage II alone: what each term sees of the low resolution
        """
        fuse = sequential if one_by_one or self.guide is not None else one_forward  # the recorder would ask the guide in earnest
        return fuse(self.network, lambda net: combine([self.guided(net, words, scale, low) for words, low in zip(terms, lows or [None] * len(terms), strict=True)]))


def only(denoisers: Sequence[Denoiser]) -> Denoiser:
    """The combination of one term."""
    [denoiser] = denoisers
    return denoiser


def digits_model(digits: Digits) -> Model:
    """The digits' U-Net, with "0" … "9" for words if it knows labels."""
    labels = {"": -1, **{str(c): c for c in range(digits.classes)}}
    conditions = {word: torch.tensor([c], device=digits.device) if digits.classes else None for word, c in labels.items()}
    guide = None if digits.guide is None else digits.guide.denoiser()
    return Model(digits.network, conditions, digits.alpha_bar, clip_to(*digits.pixels), digits.pixels, (1, 28, 28), digits.scale, guide=guide)


def load_prompted(
    name: str | Path,
    words: Sequence[str],
    bank: str | Path,
    *,
    encoder: str | Path | None = None,
    rows: int = 2,
    noise_level: int = 251,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    say: Callable[[str], None] = print,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Model:
    """DeepFloyd IF, stage I or II, with its prompts encoded.

    name:        a folder, or a name on the hub
    words:       the prompts; "" is added
    bank:        the file of a prompt bank: where their vectors may be, and what T5 has to make is added to
    encoder:     where tokenizer/ and text_encoder/ are, if not beside the U-Net
    rows:        images in a forward pass, for the memory plan, which `say` is told before anything is loaded
    noise_level: of the low resolution in stage II, 1 … T
    progress:    wraps the counting of T5's blocks, like tqdm
    Raises ValueError when the model cannot be had, is not built, or would not fit into memory.
    """
    words, encoder, half = list(dict.fromkeys(["", *words])), encoder or name, dtype != torch.float32
    config, stored = hub.read_json(name, "unet/config.json"), prompts.load_bank(bank)
    width, text_config, before = config.get("encoder_hid_dim") or 0, None, len(stored)
    if prompts.missing(words, encoder, width, stored, half):
        check_writable(bank)
        with suppress(ValueError):  # a model without text encoder: `embed` says so, and what is nearest in the bank
            text_config = hub.read_json(encoder, "text_encoder/config.json")
    plan = deepfloyd.memory_plan(config, dtype, rows, text_config=text_config)
    say(f"{name}: {plan}")
    plan.check(free_memory(torch.device(device)))
    embeddings = prompts.embed(words, encoder, width, stored, half, progress)
    if len(stored) > before:
        prompts.save_bank(stored, bank)
    stage = deepfloyd.load_stage(name, dtype, device)
    with torch.no_grad():
        states = {word: stage.unet.encode(vectors[None].to(device)) for word, vectors in zip(words, embeddings)}
    deepfloyd.forget_text(stage.unet)

    def levels(steps: str | None, solver: bool) -> list[int]:
        if not solver:
            return deepfloyd.respaced(steps or stage.steps)
        if steps is not None and not steps.isdecimal():
            raise ValueError(f"DPM-Solver++ takes a number of --steps, got {steps!r}: a named respacing is for --sampler ddpm or ddim")
        return deepfloyd.solver_levels(stage.alpha_bar, int(steps or 20), stage.lowest_log_snr)

    size = (stage.size, stage.size)
    if stage.low_alpha_bar is None:
        return Model(
            lambda x_t, t, c: adapters.text(stage.unet, TextState(*c))(x_t, t),
            states, stage.alpha_bar, stage.clip, (-1, 1), (3, *size), stage.scale, levels,
        )  # fmt: skip
    return Model(
        lambda x_t, t, c: adapters.superres(stage.unet, TextState(*c[0]), c[1], noise_level)(x_t, t),
        states, stage.alpha_bar, stage.clip, (-1, 1), (3, *size), stage.scale, levels,
        enlarged=lambda low, noise: adapters.enlarged(low, size, stage.low_alpha_bar, noise_level, noise),
    )  # fmt: skip
