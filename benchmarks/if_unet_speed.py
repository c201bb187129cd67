"""Our IF U-Net against diffusers' on the same random weights: time a step, time to the first step, peak memory, outputs.

    python benchmarks/if_unet_speed.py            IF-I-M at full size, a guided batch of 2; takes minutes and 6 GB
    python benchmarks/if_unet_speed.py --width 32 the same with other widths (32, 64, 96, 128): seconds

The two take turns, so that a busy machine is busy for both; the ratio of the medians is printed (ours / theirs, below 1 is faster).
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
DTYPES = ("float32", "bfloat16")  # bfloat16: with channels_last, from the float32 file


def config_of(width: int) -> dict:
    """unet/config.json of IF-I-M (width 192), or of a narrower one."""
    return {
        "act_fn": "gelu", "addition_embed_type": "text", "addition_embed_type_num_heads": 64, "attention_head_dim": 64 if width % 64 == 0 else 32,
        "block_out_channels": [width, 2 * width, 3 * width, 4 * width], "cross_attention_dim": 4 * width, "cross_attention_norm": "group_norm",
        "down_block_types": ["ResnetDownsampleBlock2D"] + ["SimpleCrossAttnDownBlock2D"] * 3,
        "up_block_types": ["SimpleCrossAttnUpBlock2D"] * 3 + ["ResnetUpsampleBlock2D"],
        "encoder_hid_dim": 4096 if width == 192 else 1024, "encoder_hid_dim_type": "text_proj", "in_channels": 3, "out_channels": 6, "layers_per_block": 3,
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn", "resnet_time_scale_shift": "scale_shift", "sample_size": 64,
    }  # fmt: skip


def inputs(config: dict, dtype: str):
    import torch

    torch.manual_seed(1)
    x, text = torch.randn(2, 3, 64, 64), torch.randn(2, 77, config["encoder_hid_dim"])
    if dtype == "bfloat16":
        x, text = x.bfloat16().contiguous(memory_format=torch.channels_last), text.bfloat16()
    return x, text


def ours(folder: Path, dtype: str):
    import torch

    from minidiff import hub
    from minidiff.deepfloyd import forget_text
    from minidiff.networks.if_unet import IFUNet

    torch.set_grad_enabled(False)
    config = hub.read_json(folder, "unet/config.json")
    with torch.device("meta"):
        unet = IFUNet(config)
    hub.load(unet, hub.find_weights(folder, "unet", "diffusion_pytorch_model", half=False), getattr(torch, dtype))
    if dtype == "bfloat16":
        unet.to(memory_format=torch.channels_last)
    x, text = inputs(config, dtype)
    state = unet.encode(text)
    forget_text(unet)

    def step():
        eps, v = unet(x, 500, state)
        return torch.cat([eps, 2 * v - 1], dim=1).float()

    return step


def theirs(folder: Path, dtype: str):
    import torch
    from diffusers import UNet2DConditionModel

    torch.set_grad_enabled(False)
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=getattr(torch, dtype)).eval()
    if dtype == "bfloat16":
        unet.to(memory_format=torch.channels_last)
    x, text = inputs(dict(unet.config), dtype)
    return lambda: unet(x, 500, text).sample.float()


SIDES = {"ours": ours, "theirs": theirs}


def steps(folder: Path, repeats: int) -> None:
    """Time a step, taking turns."""
    for dtype in DTYPES:
        sides = {side: make(folder, dtype) for side, make in SIDES.items()}
        outputs, times = {side: step() for side, step in sides.items()}, {side: [] for side in sides}  # the first step warms up
        for _ in range(repeats):
            for side, step in sides.items():
                start = time.perf_counter()
                step()
                times[side].append(time.perf_counter() - start)
        medians = [statistics.median(times[side]) for side in SIDES]
        difference = float((outputs["ours"] - outputs["theirs"]).norm() / outputs["theirs"].norm())
        print(f"{dtype}: a step {medians[0]:.3f} s, theirs {medians[1]:.3f} s, ratio {medians[0] / medians[1]:.3f}; outputs differ by {difference:.1e}", flush=True)


def first_steps(folder: Path) -> None:
    """From the start of a process to its first step, and its peak of resident memory."""
    for dtype in DTYPES:
        found = {}
        for side in SIDES:
            command = [sys.executable, __file__, "--child", side, "--dtype", dtype, "--folder", str(folder)]
            started = time.perf_counter()
            process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found[side] = time.perf_counter() - started, float(process.stdout.split()[-1])
        (a, m), (b, n) = found["ours"], found["theirs"]
        print(f"{dtype}: to the first step {a:.1f} s, theirs {b:.1f} s, ratio {a / b:.2f}; peak {m:.2f} GB, theirs {n:.2f} GB, ratio {m / n:.2f}", flush=True)


def write_model(folder: Path, width: int) -> None:
    import torch
    from safetensors.torch import save_file

    from minidiff.networks.if_unet import IFUNet

    torch.manual_seed(0)
    (folder / "unet").mkdir()
    (folder / "unet/config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"} | config_of(width)))
    save_file(IFUNet(config_of(width)).state_dict(), folder / "unet/diffusion_pytorch_model.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--repeats", type=int, default=5)
    for name in ("--child", "--dtype", "--folder"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        SIDES[args.child](Path(args.folder), args.dtype)()
        peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        print(int(peak.split()[1]) * 1024 / 1e9)
        return
    if importlib.util.find_spec("diffusers") is None:
        sys.exit("diffusers is not installed: `pip install diffusers` to compare with it")
    with tempfile.TemporaryDirectory() as folder:
        print(f"IF-I with width {args.width}, a batch of 2, {os.cpu_count()} cores", flush=True)
        subprocess.run([sys.executable, "-c", f"import sys; sys.path[:0] = {[str(ROOT), str(ROOT / 'benchmarks')]!r}; import if_unet_speed as b; b.write_model(b.Path({folder!r}), {args.width})"], check=True)
        first_steps(Path(folder))
        steps(Path(folder), args.repeats)


if __name__ == "__main__":
    main()
