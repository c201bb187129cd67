"""Chapter 17. DeepFloyd IF: what besides weights does a published model need to draw as its authors meant?

    schedule     ᾱ, and how an estimate of x_0 is kept in range: both in scheduler_config.json
    levels       which of the 1000 noise levels a walk visits: `respaced` for DDPM's steps, `solver_levels` for DPM-Solver++
    stage        a frozen record of all that, with the network
    memory       how much a walk will take, told before anything is loaded

IF counts levels from 0 (least noise) to 999; ours are one more, 1 … 1000, and 0 is the clean image: their list 999, …, 0 is our 1000,
…, 1, 0. Left out: stage III (it never came), the safety checker, the watermark. Next: the scripts.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from minidiff import hub, schedule
from minidiff.diffusion import clip_to, dynamic_threshold, unclipped
from minidiff.networks.if_unet import Attention, IFUNet

RESPACINGS = {  # name -> steps in equal sections of the levels, the least noisy first (IF's own)
    "fast27": "10,10,3,2,2",
    "smart27": "7,4,2,1,2,4,7",
    "smart50": "10,6,4,3,2,2,3,4,6,10",
    "smart100": "1,1,1,1,2,2,2,2,2,2,3,3,4,4,5,5,6,7,7,8,9,10,13",
    "smart185": "1,1,2,2,2,3,3,3,4,5,6,7,8,9,10,11,12,13,14,15,16,18,20",
    "super27": "1,1,1,1,1,1,1,2,5,13",
    "super40": "2,2,2,2,2,2,3,4,6,15",
    "super100": "4,4,6,6,8,8,10,10,14,30",
}


def respaced(steps: str | int, T: int = 1000) -> list[int]:
    """The levels of a walk, falling from at most T, with 0 behind: steps + 1 of them.

    steps: a number (evenly from 1 to T), a name of RESPACINGS, or numbers of steps for equal sections: "10,10,3,2,2"
    Raises ValueError for an unknown name, and for more steps than levels.
    """
    text = RESPACINGS.get(str(steps), str(steps))
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise ValueError(f"steps must be a number, numbers like 10,10,3,2,2 or one of {', '.join(RESPACINGS)}, got {steps!r}")
    counts, first, levels = [int(n) for n in text.split(",")], 0, []
    for i, count in enumerate(counts):
        size = T // len(counts) + (i < T % len(counts))
        if not 1 <= count <= size:
            raise ValueError(f"a section of {size} levels takes 1 to {size} steps, got {count} in {steps!r}: ask for other numbers")
        # evenly from the first to the last level of the section; the sum, not a product, rounds as the original does
        at, stride = 0.0, (size - 1) / max(count - 1, 1)
        for _ in range(count):
            levels.append(first + round(at) + 1)
            at += stride
        first += size
    return [*reversed(levels), 0]


def solver_levels(alpha_bar: Tensor, steps: int, lowest_log_snr: float = -5.1) -> list[int]:
    """Levels for DPM-Solver++: steps + 1, evenly from the noisiest one whose λ = ½ log(ᾱ/(1 − ᾱ)) is not below the bound, to 0.

    On the cosine schedule λ falls to −9.9 in the last levels, which hold no image: −5.1 leaves out the last 4 of 1000. Raises ValueError.
    """
    log_snr = 0.5 * (alpha_bar[1:] / (1 - alpha_bar[1:])).log()
    noisiest = int((log_snr >= lowest_log_snr).sum())
    if not 1 <= steps < noisiest:
        raise ValueError(f"steps must be between 1 and {noisiest - 1}, got {steps}")
    stride = (noisiest - 1) / steps  # divided first, so that halves round as the reference's do
    return [*(round(stride * i) + 1 for i in range(steps, 0, -1)), 0]


def number(config: dict, name: str, default: float, low: float, high: float) -> float:
    """A number of scheduler_config.json; a whole one where the default is. Raises ValueError for anything else."""
    value = default if config.get(name) is None else config[name]
    if type(value) not in (int, type(default)) or not low <= value <= high:
        kind = "whole number" if type(default) is int else "number"
        raise ValueError(f"the scheduler's config asks for {name} = {value!r}, wanted is a {kind} between {low} and {high}: use the scheduler of an IF checkpoint")
    return value


BUILT = {  # settings of a scheduler that would change the walk -> what they may be; the first where they are absent
    "prediction_type": ("epsilon",), "variance_type": ("learned_range", "fixed_small"), "trained_betas": (None,), "rescale_betas_zero_snr": (False, None),
    "timestep_spacing": ("leading", "linspace", None),  # of the steps that a pipeline chooses, and ours are those of `respaced` and `solver_levels`
    "steps_offset": (0, None), "set_alpha_to_one": (True, None), "final_sigmas_type": ("zero", None), "algorithm_type": ("dpmsolver++", None), "solver_order": (2, None),
    **{f"use_{kind}": (False, None) for kind in ("karras_sigmas", "exponential_sigmas", "beta_sigmas", "lu_lambdas", "flow_sigmas", "dynamic_shifting")},
}  # fmt: skip


def schedule_of(config: dict) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """scheduler_config.json -> ᾱ (T + 1,) float64, and the clip of x_0. Raises ValueError for a schedule that is not built."""
    for name, values in BUILT.items():
        if config.get(name, values[0]) not in values:
            raise ValueError(f"the scheduler's config asks for {name} = {config[name]!r}, built is {' or '.join(repr(value) for value in values if value is not None or len(values) == 1)}: use the scheduler of an IF checkpoint")
    T, kind = number(config, "num_train_timesteps", 1000, 1, 100_000), config.get("beta_schedule")
    if kind == "squaredcos_cap_v2":
        alpha_bar = schedule.cosine(T)
    elif kind == "linear":
        alpha_bar = schedule.linear(T, number(config, "beta_start", 1e-4, 0, 1), number(config, "beta_end", 0.02, 0, 1))
    else:
        raise ValueError(f"the scheduler's config asks for beta_schedule = {kind!r}, built is 'squaredcos_cap_v2' or 'linear': use the scheduler of an IF checkpoint")
    if config.get("thresholding"):
        clip = dynamic_threshold(number(config, "dynamic_thresholding_ratio", 0.995, 0, 1), number(config, "sample_max_value", 1.0, 0, math.inf))
    else:
        limit = number(config, "clip_sample_range", 1.0, 0, math.inf)
        clip = clip_to(-limit, limit) if config.get("clip_sample", True) else unclipped
    return alpha_bar, clip


@dataclass(frozen=True)
class Stage:
    """A stage of IF, ready to walk. Pixels are [-1, 1]."""

    unet: IFUNet
    alpha_bar: Tensor                   # (T + 1,) float64
    clip: Callable[[Tensor], Tensor]    # dynamic thresholding
    low_alpha_bar: Tensor | None        # stage II: the schedule by which the low-resolution image is noised
    lowest_log_snr: float               # of `solver_levels`
    size: int                           # of the picture: 64, stage II 256
    width: int                          # D of the prompts' vectors
    steps: str                          # of `respaced`, the original's default
    scale: float                        # of `cfg`, the original's default


def load_stage(model: str | Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", folder: str = "unet") -> Stage:
    """Stage I or II of a folder or a hub name: the config decides which.

    dtype:  float32, or bfloat16/float16 for half of the memory (then the network's pictures are laid out channels last)
    folder: where in the model the U-Net is
    Raises ValueError when the model cannot be had or is not built; see hub.py.
    """
    config = hub.read_json(model, f"{folder}/config.json")
    with torch.device("meta"):
        unet = IFUNet(config)
    scheduler = hub.read_json(model, "scheduler/scheduler_config.json")
    alpha_bar, clip = schedule_of(scheduler)
    second = unet.config["in_channels"] == 6
    low_alpha_bar = schedule_of(hub.read_json(model, "image_noising_scheduler/scheduler_config.json"))[0] if second else None
    half = dtype in (torch.float16, torch.bfloat16)
    hub.load(unet, hub.find_weights(model, folder, "diffusion_pytorch_model", half), dtype)
    unet.to(device=device, memory_format=torch.channels_last if half else torch.preserve_format)
    unet.learned = unet.learned and scheduler.get("variance_type") == "learned_range"  # absent is fixed_small, as in the reference
    lowest, size = number(scheduler, "lambda_min_clipped", -5.1, -math.inf, math.inf), unet.config.get("sample_size") or (256 if second else 64)
    steps, scale = ("smart50", 4.0) if second else ("150", 7.0)
    return Stage(unet, alpha_bar, clip, low_alpha_bar, lowest, size, unet.config["encoder_hid_dim"], steps, scale)


def forget_text(unet: IFUNet) -> None:
    """Let go of the weights that `encode` alone reads, once all prompts are encoded: a fifth of IF-I-M. `encode` does not work any more."""
    del unet.add_embedding, unet.encoder_hid_proj
    for module in unet.modules():
        if isinstance(module, Attention):
            del module.norm_cross, module.add_k_proj, module.add_v_proj


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that the parts of a walk will take, one after the other: the prompts first, then the network with its pictures."""

    weights: int
    activations: int
    text: int  # T5's largest block, streamed; 0 when all prompts are in the bank

    @property
    def peak(self) -> int:
        return max(self.weights + self.activations, self.text)

    def __str__(self) -> str:
        parts = f"weights {self.weights / 1e9:.2f} GB + activations {self.activations / 1e9:.2f} GB"
        return parts + (f"; before that, T5 block by block {self.text / 1e9:.2f} GB" if self.text else "")

    def check(self, free: int) -> None:
        """Raises ValueError when the plan does not fit into `free` bytes."""
        if self.peak > free:
            raise ValueError(
                f"this walk needs about {self.peak / 1e9:.1f} GB ({self}), free are {free / 1e9:.1f} GB: use a smaller model, --dtype bfloat16, fewer images or --sequential"
            )


def memory_plan(config: dict, dtype: torch.dtype, rows: int, size: int | None = None, text_config: dict | None = None) -> MemoryPlan:
    """What a walk of `rows` pictures at a time (two an image with guidance) will take; nothing is loaded.

    config:      unet/config.json
    text_config: text_encoder/config.json if T5 is needed
    The activations are an estimate from above: what is kept for the way up, ten times the widest picture, and the widest kernel once
    more (measured at width 128: 0.156 GB for 2 rows in float32, here 0.17; 0.14 for 4 in bfloat16, here 0.14).
    """
    with torch.device("meta"):
        unet = IFUNet(config)
    size, widths = size or config.get("sample_size") or 64, unet.config["block_out_channels"]
    areas = [size**2 // 4**i for i in range(len(widths))]
    skips = sum(C * area * (depth + 2) for C, area, depth in zip(widths, areas, unet.config["layers_per_block"]))
    widest = max(2 * C * area for C, area in zip(widths, areas))
    weights = sum(p.numel() for p in unet.parameters())
    tokens = sum(2 * 77 * m.to_q.out_features for m in unet.modules() if isinstance(m, Attention))
    numbers = rows * (skips + 10 * widest + tokens) + 40 * max(C * C for C in widths)
    text = 0
    if text_config is not None:
        D, inner = text_config["d_model"], text_config["num_heads"] * text_config["d_kv"]
        text = 4 * max(text_config["vocab_size"] * D, 4 * D * inner + 3 * D * text_config["d_ff"])
    return MemoryPlan(weights * dtype.itemsize, numbers * dtype.itemsize, text)
