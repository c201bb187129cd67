"""Peak resident memory and time of encoding a prompt with a random T5-XXL, block by block from disk.

    python benchmarks/t5_memory.py                24 blocks as published: float16, `wo` in float32; 11.5 GB of disk for a while
    python benchmarks/t5_memory.py --blocks 3     the same memory, an eighth of the disk and of the time
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
import torch
from safetensors.torch import save_file

from minidiff import hub
from minidiff.networks import t5

XXL = {"d_model": 4096, "d_kv": 64, "num_heads": 64, "d_ff": 10240, "num_layers": 24, "vocab_size": 32128, "feed_forward_proj": "gated-gelu"}


def write_model(folder: Path, config: dict) -> None:
    """A shard a block, and an index; every block has its own random weights of a trained T5's size."""
    (folder / "text_encoder").mkdir()
    (folder / "text_encoder/config.json").write_text(json.dumps(config))
    shapes = {name: tuple(value.shape) for name, value in t5.on_meta(config).state_dict().items()}
    placed = {name: f"model.fp16-{int(name.split('.')[2]) + 1 if '.block.' in name else 0:05}.safetensors" for name in shapes}
    for file in sorted(set(placed.values())):
        names = [name for name in shapes if placed[name] == file]
        tensors = {name: torch.ones(shapes[name]) if "norm" in name else torch.randn(shapes[name]) * shapes[name][-1] ** -0.5 for name in names}
        save_file({name: tensor if name.endswith("wo.weight") else tensor.half() for name, tensor in tensors.items()}, folder / "text_encoder" / file)
    (folder / "text_encoder/model.safetensors.index.fp16.json").write_text(json.dumps({"weight_map": placed}))


def resident(field: str) -> float:
    """GB, from Linux's own count (getrusage would inherit the peak of the process that started this one)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=24)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:  # a process of its own: the peak is that of encoding alone
        start = time.perf_counter()
        config = hub.read_json(args.child, "text_encoder/config.json")
        weights = hub.find_weights(args.child, "text_encoder", "model", half=True)
        ids = torch.ones(1, 77, dtype=torch.int64)
        states = t5.stream(config, ids, None, lambda names: hub.read(weights, names, torch.float32))
        peak = resident("VmHWM")
        size = sum(stored.bytes for stored in weights.values()) / 1e9
        print(f"{config['num_layers']} blocks, {size:.1f} GB on disk: peak {peak:.2f} GB resident, {time.perf_counter() - start:.1f} s; all finite: {bool(states.isfinite().all())}")
        return
    import subprocess

    print(f"a process that has imported torch: {resident('VmRSS'):.2f} GB", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), XXL | {"num_layers": args.blocks})
        subprocess.run([sys.executable, __file__, "--child", folder], check=True)


if __name__ == "__main__":
    main()
