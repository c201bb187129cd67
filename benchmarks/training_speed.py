"""Images per second of train.py's loop against a plain one (float32, contiguous): same network, same batch, in turns.

    python benchmarks/training_speed.py [--task class] [--rounds 5] [--steps 4] [--width 64]

Each loop has a process of its own, as it has for those who run it, and waits while the other works.
"""

import argparse
import multiprocessing
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import train
from minidiff import mnist
from minidiff.machine import choose_device, keep_freed_memory


def loop(orders: Connection, settings: dict, device: torch.device, ours: bool, steps: int) -> None:
    """For every order so many steps; answers with the seconds that they took."""
    digits, labels = (a[: settings["batch"]] for a in mnist.load(train=True))
    if ours:
        keep_freed_memory()
    run = train.Run(settings, device)
    unet, bf16 = run.model.unet.train(), ours and train.has_bf16(device)
    if not ours:
        unet.to(memory_format=torch.contiguous_format).requires_grad_(True)
        run.optimiser = torch.optim.Adam(unet.parameters(), lr=settings["lr"])
    orders.send("ready")
    while orders.recv():
        started = time.perf_counter()
        for _ in range(steps):
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                value = train.loss(run, unet, digits, labels, slice(None))
            run.optimiser.zero_grad()
            value.backward()
            value.item()
            run.optimiser.step()
            if ours:
                run.count(0.0)
        orders.send(time.perf_counter() - started)


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
    context, connections = multiprocessing.get_context("spawn"), []
    for ours in (True, False):
        here, there = context.Pipe()
        context.Process(target=loop, args=(there, settings, device, ours, args.steps), daemon=True).start()
        here.recv()
        connections.append(here)
    seconds = []
    for _ in range(args.rounds + 1):
        for connection in connections:
            connection.send(True)
            seconds.append(connection.recv())
    ours, plain = ([args.steps * settings["batch"] / s for s in seconds[i::2][1:]] for i in (0, 1))  # the first round warms up
    ratios = [a / b for a, b in zip(ours, plain, strict=True)]
    for connection in connections:
        connection.send(False)
    print(f"{args.task}, D = {args.width}, batch {settings['batch']}, {device}, {torch.get_num_threads()} threads, {'bfloat16' if train.has_bf16(device) else 'float32'} against float32")
    print(f"ours {median(ours):.1f} images/s, plain {median(plain):.1f} images/s, ratio {median(ratios):.2f} (rounds {min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
