"""How much of what it is told does a model of prompts draw?

    python benchmarks/text_quality.py --model weights/picturebook                 64 seen pairs, all held-out ones
    python benchmarks/text_quality.py --model runs/text --count 24 --things 100   while it trains

Marked by the shipped matcher, see minidiff/exam.py. Held-out pictures may have twins that were seen: flat of 3d,
pixel of emoji.
"""

import argparse
import time

import torch

import minidiff
from minidiff import exam


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="picturebook", help="a name or a folder (default picturebook)")
    parser.add_argument("--count", type=int, default=64, help="seen pairs (default 64)")
    parser.add_argument(
        "--things", type=int, default=100, help="the first so many of the book, which it was trained on (default 100)"
    )
    parser.add_argument("-n", type=int, default=1, help="pictures of each prompt (default 1)")
    parser.add_argument("--seed", type=int, default=137)
    parser.add_argument("--steps", type=int, help="default: the model's own")
    parser.add_argument("--scale", type=float, help="guidance, default: the model's own")
    parser.add_argument("--batch", type=int, default=32, help="pictures at a time (default 32)")
    args = parser.parse_args()
    start, model = time.monotonic(), minidiff.load(args.model)
    asked = {"steps": args.steps, "scale": args.scale, "batch": args.batch}
    with torch.no_grad():
        print(exam.score_prompts(model, args.n, args.count, args.things, args.seed, **asked))
    print(f"{args.model}, seed {args.seed}, {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
