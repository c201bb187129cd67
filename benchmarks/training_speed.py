"""Images per second of train.py's loop against a plain one (float32, contiguous): same network, same batch, in turns.

    python benchmarks/training_speed.py [--task class] [--rounds 5] [--steps 4] [--width 64]
"""

import argparse
import sys
import time
from pathlib import Path
from statistics import median

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import train
from minidiff import mnist
from minidiff.machine import choose_device


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="class", choices=list(train.COURSE))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--device")
    args = parser.parse_args()
    device = choose_device(args.device)
    settings = train.COURSE[args.task] | train.BETTER[args.task] | {"width": args.width, "seed": 0}
    batch, bf16 = settings["batch"], train.has_bf16(device)
    digits, labels = (a[:batch] for a in mnist.load(train=True))

    def plain_run() -> train.Run:
        run = train.Run(settings, device)
        run.model.unet.to(memory_format=torch.contiguous_format)
        run.optimiser = torch.optim.Adam(run.model.unet.parameters(), lr=settings["lr"])
        return run

    def step(run: train.Run, autocast: bool, ema: bool) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            value = train.loss(run, run.model.unet, digits, labels, slice(None))
        run.optimiser.zero_grad()
        value.backward()
        value.item()
        run.optimiser.step()
        if ema:
            run.count(0.0)

    ours, plain = train.Run(settings, device), plain_run()
    for run, fast in ((ours, True), (plain, False)):
        step(run, fast and bf16, fast)
    speeds = {"ours": [], "plain": []}
    for _ in range(args.rounds):
        for name, run in (("ours", ours), ("plain", plain)):
            started = time.perf_counter()
            for _ in range(args.steps):
                step(run, name == "ours" and bf16, name == "ours")
            speeds[name].append(args.steps * batch / (time.perf_counter() - started))
    ratios = [a / b for a, b in zip(speeds["ours"], speeds["plain"], strict=True)]
    print(f"{args.task}, D = {args.width}, batch {batch}, {device}, {torch.get_num_threads()} threads, {'bfloat16' if bf16 else 'float32'} against float32")
    print(f"ours {median(speeds['ours']):.1f} images/s, plain {median(speeds['plain']):.1f} images/s, ratio {median(ratios):.2f} (rounds {min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
