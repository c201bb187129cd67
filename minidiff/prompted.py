"""Chapter 22. Prompted models: from a folder or a name on the hub to a model that draws what a text says.

Only the configs are read when the model is made. What weighs something comes when a prompt is needed, in the order that
takes the least memory: plan, encode the prompts (T5, block by block), let T5 go, load the U-Net, let go of its weights
for text. A prompt that comes later is encoded then. Next: pretrained.py.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from minidiff import adapters, deepfloyd, hub, prompts
from minidiff.files import check_writable
from minidiff.machine import free_memory, is_first
from minidiff.model import Model
from minidiff.networks.if_unet import Attention, IFUNet, TextState
from minidiff.sampling import Noise

BANK = Path("out/prompts.safetensors")  # of DeepFloyd's encoder, T5-XXL: 11 GB to read for each new prompt


class Weights:
    """The U-Net of a model and the states of its prompts, loaded when needed: the only object here that changes.

    name:    of the model, a folder or a name on the hub
    dtype:   float32, or bfloat16/float16 for half of the memory (then pictures are laid out channels last)
    bank:    the file of a prompt bank, or None to keep none
    encoder: where tokenizer/ and text_encoder/ are
    say:     takes a line about the memory plan
    """

    def __init__(
        self,
        name: str | Path,
        dtype: torch.dtype,
        device: torch.device,
        bank: str | Path | None,
        encoder: str | Path,
        say: Callable[[str], None] | None,
    ):
        self.name, self.dtype, self.device, self.encoder, self.say = name, dtype, device, encoder, say
        self.config = hub.read_json(name, "unet/config.json")
        self.width = self.config.get("encoder_hid_dim") or 0
        self.bank = bank or (BANK if self.width == 4096 else None)
        self.half = dtype in (torch.float16, torch.bfloat16)
        self.unet: IFUNet | None = None
        self.vectors: dict[str, Tensor] = {}  # prompt -> (77, D)
        self.states: dict[str, TextState] = {}

    def plan(self, rows: int, words: Sequence[str]) -> None:
        """Raises ValueError when a forward pass of so many rows, or T5 before it, does not fit into memory."""
        text_config, stored = None, prompts.load_bank(self.bank) if self.bank else {}
        new = [word for word in words if word not in self.vectors]
        if prompts.missing(new, self.encoder, self.width, stored, self.half):
            if self.bank:
                check_writable(self.bank)
            with suppress(ValueError):  # a model without text encoder: `embed` says so, and what is nearest in the bank
                text_config = hub.read_json(self.encoder, "text_encoder/config.json")
        plan = deepfloyd.memory_plan(self.config, self.dtype, rows, text_config=text_config)
        if self.say is not None:
            self.say(f"{self.name}: {plan}")
        held = 0 if self.unet is None else plan.weights  # what is loaded is in the plan, and no longer free
        plan.check(free_memory(self.device) + held)

    def conditions(self, words: Sequence[str]) -> dict[str, TextState]:
        """The states of these prompts, and the U-Net ready to be asked."""
        new = [word for word in words if word not in self.vectors]
        if new:
            self.release()  # T5 and the U-Net are never in memory at once
            self.vectors |= dict(zip(new, self._embedded(new)))
        if self.unet is None:
            unet = load_unet(self.name, self.dtype, self.device)
            with torch.no_grad():
                self.states = {w: unet.encode(v[None].to(self.device)) for w, v in self.vectors.items()}
            forget_text(unet)
            self.unet = unet
        return {word: self.states[word] for word in words}

    def release(self) -> None:
        """Let go of the U-Net; the prompts' vectors stay."""
        self.unet, self.states = None, {}

    def _embedded(self, words: Sequence[str]) -> Tensor:
        stored = prompts.load_bank(self.bank) if self.bank else {}
        before = len(stored)
        vectors = prompts.embed(list(words), self.encoder, self.width, stored, self.half, block_by_block)
        if self.bank and len(stored) > before:
            prompts.save_bank(stored, self.bank)
        return vectors


def block_by_block(blocks):
    """The bar of T5's blocks."""
    return tqdm(blocks, desc="T5, block by block", leave=False, disable=not is_first())


def load_prompted(
    name: str | Path,
    device: torch.device | str = "cpu",
    *,
    dtype: torch.dtype | None = None,
    bank: str | Path | None = None,
    encoder: str | Path | None = None,
    noise_level: int = 250,
    steps: int | str | None = None,
    large: Model | None = None,
    say: Callable[[str], None] | None = None,
) -> Model:
    """DeepFloyd IF or a model of the same layout, stage I or II, as its configs say. Weights come when they are needed.

    name:        a folder, or a name on the hub
    dtype:       None: float32, on CUDA float16
    bank:        the file of a prompt bank; None: one for T5-XXL's vectors, none for a small encoder's
    encoder:     where tokenizer/ and text_encoder/ are, if not beside the U-Net
    noise_level: stage II alone: of the low resolution, 0 … 999
    steps:       of a walk that asks for none
    large:       stage II of this model
    Raises ValueError when the configs cannot be had, or ask for what is not built.
    """
    device = torch.device(device)
    if dtype is None:
        dtype = torch.float32 if device.type in ("cpu", "mps") else torch.float16
    weights = Weights(name, dtype, device, bank, encoder or name, say)
    with torch.device("meta"):
        config = IFUNet(weights.config).config
    second = config["in_channels"] == 6
    scheduler = hub.read_json(name, "scheduler/scheduler_config.json")
    alpha_bar, clip = deepfloyd.schedule_of(scheduler)
    lowest = deepfloyd.number(scheduler, "lambda_min_clipped", -5.1, -math.inf, math.inf)
    own = weights.config.get("_minidiff") or {}  # what suits a model that is not DeepFloyd's: scale, steps, levels
    default_steps = own.get("steps") or ("smart50" if second else "150")

    def levels(asked: int | str | None, sampler: str, start: int | None) -> list[int]:
        asked = steps if asked is None else asked
        if sampler == "dpm":
            if asked is not None and not str(asked).isdecimal():
                raise ValueError(f"DPM-Solver++ takes a number of steps, got {asked!r}: a name is for ddpm or ddim")
            found = deepfloyd.solver_levels(
                alpha_bar, int(own.get("solver_steps", 20) if asked is None else asked), lowest
            )
        else:
            found = deepfloyd.respaced(default_steps if asked is None else asked, len(alpha_bar) - 1)
        return found if start is None else [start, *(t for t in found if t < start)]

    def ask_first(x_t: Tensor, t: int, c: Any) -> tuple[Tensor, Tensor | None]:
        return adapters.text(weights.unet, TextState(*c))(x_t, t)

    def ask_second(x_t: Tensor, t: int, c: Any) -> tuple[Tensor, Tensor | None]:
        return adapters.superres(weights.unet, TextState(*c[0]), c[1], noise_level + 1)(x_t, t)

    size, low = config.get("sample_size") or (256 if second else 64), None
    if second:
        low_alpha_bar, _ = deepfloyd.schedule_of(hub.read_json(name, "image_noising_scheduler/scheduler_config.json"))
        if not 0 <= noise_level < len(low_alpha_bar) - 1:
            raise ValueError(f"noise_level must be between 0 and {len(low_alpha_bar) - 2}, got {noise_level}")

        def low(low_res: Tensor, noise: Noise) -> Tensor:
            return adapters.enlarged(low_res, (size, size), low_alpha_bar, noise_level + 1, noise)

    return Model(
        name=str(name),
        network=ask_second if second else ask_first,
        words=None,
        conditions=weights.conditions,
        alpha_bar=alpha_bar,
        clip=clip,
        pixels=(-1, 1),
        shape=(3, size, size),
        scale=float(own.get("scale", 4.0 if second else 7.0)),
        device=device,
        batch=1 if second else 4,
        levels=levels,
        dtype=dtype,
        plan=weights.plan,
        release=weights.release,
        low=low,
        large=large,
        vocabulary=_vocabulary(name),
    )


def _vocabulary(name: str | Path) -> frozenset[str] | None:
    """The words of the captions that a model was trained on, one a line in its vocabulary.txt; None where there is
    none."""
    path = Path(name) / "vocabulary.txt"
    return frozenset(path.read_text(encoding="utf-8").split()) if path.is_file() else None


def load_unet(name: str | Path, dtype: torch.dtype, device: torch.device | str = "cpu", folder: str = "unet") -> IFUNet:
    """The U-Net of a model's folder, in eval mode. Raises ValueError when it cannot be had; see hub.py."""
    with torch.device("meta"):
        unet = IFUNet(hub.read_json(name, f"{folder}/config.json"))
    half = dtype in (torch.float16, torch.bfloat16)
    hub.load(unet, hub.find_weights(name, folder, "diffusion_pytorch_model", half), dtype)
    unet.to(device=device, memory_format=torch.channels_last if half else torch.preserve_format)
    variance = hub.read_json(name, "scheduler/scheduler_config.json").get("variance_type")  # absent: fixed_small
    unet.learned = unet.learned and variance == "learned_range"
    return unet.eval().requires_grad_(False)


def forget_text(unet: IFUNet) -> None:
    """Let go of the weights that `encode` alone reads, once all prompts are encoded: a fifth of IF-I-M."""
    del unet.add_embedding, unet.encoder_hid_proj
    for module in unet.modules():
        if isinstance(module, Attention):
            del module.norm_cross, module.add_k_proj, module.add_v_proj
