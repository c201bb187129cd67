"""A training step of our IF U-Net against one of diffusers' UNet2DConditionModel: same weights, same loop, in turns.

    python benchmarks/text_training_speed.py [--rounds 20] [--threads 1] [--batch 32] [--size 32] [--widths 32 64 128 128] [--eager]

A step is forward, backward and fused Adam, in bfloat16 autocast, channels last. Ours is compiled (torch.compile; that takes two minutes
and a C++ compiler) as train.py does it; with --eager neither is, with --compile-both both are. The ratio of the medians is printed
(ours / theirs, below 1 is faster), and the losses of both after each of the first steps.
"""

import argparse
import importlib.util
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from minidiff.machine import keep_freed_memory
from minidiff.networks.if_unet import IFUNet


def config_of(widths: list[int], size: int) -> dict:
    """A small stage I, which attends everywhere but at its first level."""
    attends = len(widths) - 1
    return {
        "act_fn": "gelu", "addition_embed_type": "text", "addition_embed_type_num_heads": 4, "attention_head_dim": 32,
        "block_out_channels": widths, "cross_attention_dim": 128, "cross_attention_norm": "group_norm",
        "down_block_types": ["ResnetDownsampleBlock2D"] + ["SimpleCrossAttnDownBlock2D"] * attends,
        "up_block_types": ["SimpleCrossAttnUpBlock2D"] * attends + ["ResnetUpsampleBlock2D"],
        "encoder_hid_dim": 128, "encoder_hid_dim_type": "text_proj", "in_channels": 3, "out_channels": 3, "layers_per_block": 1,
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn", "norm_num_groups": 32, "resnet_time_scale_shift": "scale_shift",
        "sample_size": size,
    }  # fmt: skip


class Ours(nn.Module):
    def __init__(self, unet: IFUNet):
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        return self.unet(x, t, self.unet.encode(text))[0]


class Theirs(nn.Module):
    def __init__(self, unet: nn.Module):
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        return self.unet(x, t, text).sample


def loop(net: nn.Module, x: Tensor, t: Tensor, text: Tensor, eps: Tensor):
    """-> a function that makes one step and returns its loss and its seconds."""
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-4, fused=True)

    def step() -> tuple[float, float]:
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.mse_loss(net(x, t, text).float(), eps)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return loss.item(), time.perf_counter() - start

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 64, 128, 128])
    for name, default in (("--rounds", 20), ("--threads", 0), ("--batch", 32), ("--size", 32), ("--tokens", 16)):
        parser.add_argument(name, type=int, default=default)
    for name in ("--eager", "--compile-both"):
        parser.add_argument(name, action="store_true")
    args = parser.parse_args()
    if importlib.util.find_spec("diffusers") is None:
        sys.exit("diffusers is not installed: `pip install diffusers` to compare with it")
    import diffusers

    diffusers.logging.set_verbosity_error()
    keep_freed_memory()
    torch.manual_seed(0)
    if args.threads:
        torch.set_num_threads(args.threads)
    config = config_of(args.widths, args.size)
    ours, theirs = IFUNet(config), diffusers.UNet2DConditionModel.from_config(config)
    theirs.load_state_dict(ours.state_dict())
    x, eps = torch.randn(2, args.batch, 3, args.size, args.size)
    x, t, text = x.contiguous(memory_format=torch.channels_last), torch.randint(0, 1000, (args.batch,)), torch.randn(args.batch, args.tokens, 128)
    nets = [Ours(ours).to(memory_format=torch.channels_last), Theirs(theirs).to(memory_format=torch.channels_last)]
    nets[0] = nets[0] if args.eager else torch.compile(nets[0], dynamic=False)
    nets[1] = torch.compile(nets[1], dynamic=False) if args.compile_both else nets[1]
    steps = [loop(net, x, t, text, eps) for net in nets]

    times = [], []
    for i in range(args.rounds + 2):  # two to warm up
        (loss, seconds), (their_loss, their_seconds) = (step() for step in steps)
        if i < 5:
            print(f"step {i + 1}: loss {loss:.5f}, theirs {their_loss:.5f}", flush=True)
        if i >= 2:
            times[0].append(seconds), times[1].append(their_seconds)
    ours_s, theirs_s = map(statistics.median, times)
    ratios = sorted(a / b for a, b in zip(*times))
    count = sum(p.numel() for p in ours.parameters()) / 1e6
    print(f"{count:.1f} M parameters, batch {args.batch} of {args.size} x {args.size}, {torch.get_num_threads()} threads")
    print(f"a step {ours_s:.3f} s ({args.batch / ours_s:.0f} images/s), theirs {theirs_s:.3f} s ({args.batch / theirs_s:.0f} images/s)")
    print(f"ratio {ours_s / theirs_s:.3f} (rounds {ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
