"""Chapter 18. DeepFloyd IF: what besides its weights does a published model need to sample as its authors intended?

    schedule     ᾱ, and how an estimate of x_0 is kept in range: both from scheduler_config.json
    levels       which of the 1000 noise levels to visit: `respaced` for DDPM's steps, `solver_levels` for DPM-Solver++
    memory       how much sampling will take, known before anything is loaded

IF numbers its levels 0 (least noise) … 999. Ours are one higher, 1 … 1000, and 0 is the clean image: their 999, …, 0
are our 1000, …, 1, 0. Left out: stage III (never released), the safety checker, the watermark. Next: walk.py.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from minidiff import schedule
from minidiff.diffusion import clip_to, dynamic_threshold, unclipped
from minidiff.networks.if_unet import Attention, IFUNet

RESPACINGS = {  # IF's own: name -> steps in equal sections of the levels, the least noisy first
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
    """steps + 1 decreasing levels, from at most T to 0.

    steps: a number (evenly from T to 1), a name in RESPACINGS, or the steps in each of equal sections: "10,10,3,2,2"
    Raises ValueError for an unknown name, and for more steps than levels.
    """
    text = RESPACINGS.get(str(steps), str(steps))
    if not re.fullmatch(r"\d+(,\d+)*", text):
        known = ", ".join(RESPACINGS)
        raise ValueError(f"steps must be a number, numbers like 10,10,3,2,2 or one of {known}, got {steps!r}")
    counts, first, levels = [int(n) for n in text.split(",")], 0, []
    for i, count in enumerate(counts):
        size = T // len(counts) + (i < T % len(counts))
        if not 1 <= count <= size:
            raise ValueError(f"a section of {size} levels must have 1 to {size} steps, got {count} in {steps!r}")
        # evenly from the first to the last level of the section; a running sum, which rounds as the original does
        at, stride = 0.0, (size - 1) / max(count - 1, 1)
        for _ in range(count):
            levels.append(first + round(at) + 1)
            at += stride
        first += size
    return [*reversed(levels), 0]


def solver_levels(alpha_bar: Tensor, steps: int, lowest_log_snr: float = -5.1) -> list[int]:
    """steps + 1 levels for DPM-Solver++, evenly from the noisiest with λ = ½ log(ᾱ/(1 − ᾱ)) >= lowest_log_snr, to 0.

    On the cosine schedule λ falls to −9.9 in the last levels, which hold no image: −5.1 leaves out the last 4 of 1000.
    Raises ValueError unless there are fewer steps than levels. alpha_bar: (T + 1,).
    """
    log_snr = 0.5 * (alpha_bar[1:] / (1 - alpha_bar[1:])).log()
    noisiest = int((log_snr >= lowest_log_snr).sum())
    if not 1 <= steps < noisiest:
        raise ValueError(f"steps must be between 1 and {noisiest - 1}, got {steps}")
    stride = (noisiest - 1) / steps  # divided first, so that halves round as the reference's do
    return [*(round(stride * i) + 1 for i in range(steps, 0, -1)), 0]


def number(config: dict, name: str, default: float, low: float, high: float) -> float:
    """A number from scheduler_config.json, an integer if its default is one. Raises ValueError for anything else."""
    value = default if config.get(name) is None else config[name]
    if type(value) not in (int, type(default)) or not low <= value <= high:
        kind = "an integer" if type(default) is int else "a number"
        raise _unknown(name, value, f"{kind} between {low} and {high}")
    return value


SUPPORTED = {  # settings that would change the walk -> what they may be; the first where they are absent
    "prediction_type": ("epsilon",),
    "variance_type": ("learned_range", "fixed_small"),
    "trained_betas": (None,),
    "rescale_betas_zero_snr": (False, None),
    "timestep_spacing": ("leading", "linspace", None),  # ours are `respaced` and `solver_levels`
    "steps_offset": (0, None),
    "set_alpha_to_one": (True, None),
    "final_sigmas_type": ("zero", None),
    "algorithm_type": ("dpmsolver++", None),
    "solver_order": (2, None),
    "use_karras_sigmas": (False, None),
    "use_exponential_sigmas": (False, None),
    "use_beta_sigmas": (False, None),
    "use_lu_lambdas": (False, None),
    "use_flow_sigmas": (False, None),
}


def schedule_of(config: dict) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """scheduler_config.json -> ᾱ (T + 1,) float64, and the clip of x_0. Raises ValueError for any other schedule."""
    for name, values in SUPPORTED.items():
        if config.get(name, values[0]) not in values:
            wanted = " or ".join(repr(value) for value in values if value is not None or len(values) == 1)
            raise _unknown(name, config[name], wanted)
    T, kind = number(config, "num_train_timesteps", 1000, 1, 100_000), config.get("beta_schedule")
    if kind == "squaredcos_cap_v2":
        alpha_bar = schedule.cosine(T)
    elif kind == "linear":
        alpha_bar = schedule.linear(T, number(config, "beta_start", 1e-4, 0, 1), number(config, "beta_end", 0.02, 0, 1))
    else:
        raise _unknown("beta_schedule", kind, "'squaredcos_cap_v2' or 'linear'")
    if config.get("thresholding"):
        ratio = number(config, "dynamic_thresholding_ratio", 0.995, 0, 1)
        clip = dynamic_threshold(ratio, number(config, "sample_max_value", 1.0, 0, math.inf))
    else:
        limit = number(config, "clip_sample_range", 1.0, 0, math.inf)
        clip = clip_to(-limit, limit) if config.get("clip_sample", True) else unclipped
    return alpha_bar, clip


def _unknown(name: str, value, expected: str) -> ValueError:
    remedy = "use the scheduler of an IF checkpoint"
    return ValueError(f"scheduler_config.json has {name} = {value!r}, expected {expected}: {remedy}")


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of memory that sampling will take: T5 first, then the U-Net with its activations."""

    weights: int
    activations: int
    text: int  # the largest block of T5, which runs block by block; 0 when it is not needed

    @property
    def peak(self) -> int:
        """T5 and the U-Net are never in memory at once."""
        return max(self.weights + self.activations, self.text)

    def __str__(self) -> str:
        parts = f"weights {self.weights / 1e9:.2f} GB + activations {self.activations / 1e9:.2f} GB"
        return parts + (f"; before that, T5 block by block {self.text / 1e9:.2f} GB" if self.text else "")

    def check(self, free: int) -> None:
        """Raises ValueError when the plan does not fit into `free` bytes."""
        if self.peak > free:
            raise ValueError(
                f"sampling needs about {self.peak / 1e9:.1f} GB ({self}), and {free / 1e9:.1f} GB are free: "
                "use a smaller model, bfloat16, a smaller batch or sequential passes"
            )


def memory_plan(
    config: dict, dtype: torch.dtype, rows: int, size: int | None = None, text_config: dict | None = None
) -> MemoryPlan:
    """What sampling with batches of `rows` (two per image with guidance) will take; nothing is loaded.

    config:      unet/config.json
    size:        H = W of the images (rows, C, H, W); None: the config's
    text_config: text_encoder/config.json if T5 is needed
    The activations are an upper estimate: the skip connections, ten times the widest activation, and a copy of the
    widest kernel (measured at width 128: 0.156 GB for 2 rows in float32, here 0.17; 0.14 for 4 in bfloat16, here 0.14).
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
