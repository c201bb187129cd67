"""Is one batched call per step faster than separate calls?

    python benchmarks/one_forward_speed.py [--width 64] [--rounds 30]

Times one step of a formula on the digits' U-Net, fused and separate by turns (so that a busy machine slows both), and
prints the median of the ratios, with their quartiles: above 1, one pass is faster. The weights are random: they do not
change the time.
"""

import argparse
import time

import torch

from minidiff import digits
from minidiff.guidance import cfg
from minidiff.illusions import anagram, gaussian, hybrid, triple_hybrid
from minidiff.one_forward import one_forward, sequential
from minidiff.views import view


def guided(net, c):
    return cfg(net(torch.tensor([c])), net(torch.tensor([-1])), 3.0)


FORMULAS = {
    "guided": lambda net: guided(net, 4),
    "guided anagram": lambda net: anagram([guided(net, 4), guided(net, 7)], [view("identity"), view("rot180")]),
    "guided hybrid": lambda net: hybrid(guided(net, 8), guided(net, 3), gaussian(1.5)),
    "guided triple hybrid": lambda net: triple_hybrid(
        guided(net, 8), guided(net, 3), guided(net, 1), gaussian(3), gaussian(1)
    ),
}


def seconds(denoise, x):
    start = time.perf_counter()
    denoise(x, 100)
    return time.perf_counter() - start


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=64, help="D of the U-Net")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    args = parser.parse_args()

    torch.manual_seed(0)
    settings = {"task": "class", "width": args.width, "classes": 10, "schedule": "linear_to_noise", "T": 300}
    settings |= {"target": "velocity", "pixels": [-1, 1]}
    model = digits.model("random", digits.network(settings).eval(), settings)
    print(f"U-Net of width {args.width}, {torch.get_num_threads()} threads, {args.rounds} rounds")
    print(f"{'formula':22} batch  separate     fused  separate/fused (quartiles)")
    for B in args.batch:
        x = torch.randn(B, 1, 28, 28)
        for name, formula in FORMULAS.items():
            fused, separate = one_forward(model.network, formula), sequential(model.network, formula)
            for denoise in (fused, separate, fused, separate):
                denoise(x, 100)
            pairs = [(seconds(separate, x), seconds(fused, x)) for _ in range(args.rounds)]
            pairs, quartiles = (torch.tensor(values, dtype=torch.float64) for values in (pairs, [0.25, 0.5, 0.75]))
            low, ratio, high = (pairs[:, 0] / pairs[:, 1]).quantile(quartiles).tolist()
            slow, fast = (pairs.median(0).values * 1000).tolist()
            print(f"{name:22} {B:5}  {slow:5.1f} ms  {fast:5.1f} ms  {ratio:.2f} ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
