"""Train the digits' networks:  python train.py denoiser | time | class

Each run fills one folder (runs/TASK): loss.csv and loss.png, samples-epoch-*.png from one fixed noise, state.safetensors
(all that --resume needs) and mnist-TASK.safetensors (the averaged weights with their settings: what sample.py loads).
`torchrun --nproc_per_node=N train.py class` is the same run on N processes: the batch is split, the gradients are averaged.
"""

import argparse
import csv
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from minidiff import images, mnist, pretrained, training
from minidiff.files import load_tensors, replaced, save_tensors

# The assignment, to the letter (CS180 project 5 part B, Fall 2024): what --preset course runs.
COURSE = {
    "denoiser": dict(task="denoiser", width=128, sigma=0.5, pixels=[0, 1], lr=1e-4, decay="constant", warmup=0, batch=256, epochs=5, ema=0.0),
    "time": dict(
        task="time", width=64, T=300, schedule="linear", target="eps", pixels=[0, 1],
        lr=1e-3, decay="epoch", warmup=0, batch=128, epochs=20, ema=0.0,
    ),
}  # fmt: skip
COURSE["class"] = COURSE["time"] | dict(task="class", classes=10, p_uncond=0.1)

# What we measured to be better. Each entry with its reason.
BETTER = {
    "denoiser": dict(
        width=64,  # a quarter of the work of D = 128
        lr=1e-3,  # ten times the course's, with the decay below
        decay="cosine", warmup=200,  # Adam's second moments settle before the full rate; the end of the run is nearly free of noise
        batch=128, ema=0.998,  # the average of the last ~500 steps is better than the last step
    ),
    "time": dict(
        schedule="linear_to_noise",  # ᾱ_300 = 3e-5 and not 0.048: a walk begins where training did (ZSNR)
        target="velocity",  # weighs the noisy levels, where a digit is decided, as much as the others (PD)
        pixels=[-1, 1],  # centred, as N(0, I) is
        lr=2e-3, decay="cosine", warmup=500, ema=0.999, epochs=10,
    ),
}  # fmt: skip
BETTER["class"] = BETTER["time"]

SAMPLED = (1, 5, 10, 20)  # sample grids are drawn after these epochs and after the last


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=list(COURSE))
    parser.add_argument("--preset", choices=["better", "course"], default="better", help="course: exactly the assignment's numbers")
    parser.add_argument("--width", type=int, help="D, channels of the first level")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--limit", type=int, default=60_000, help="train on the first N digits only")
    parser.add_argument("--seed", type=int, default=137)
    parser.add_argument("--out", type=Path, help="folder of the run, default runs/TASK")
    parser.add_argument("--resume", action="store_true", help="go on where the run in --out stopped")
    parser.add_argument("--device", help="cpu, cuda, mps; default: the best there is")
    parser.add_argument("--save-every", type=float, default=120, help="seconds between saves of the state; also after each epoch")
    args = parser.parse_args()
    settings = COURSE[args.task] | (BETTER[args.task] if args.preset == "better" else {})
    settings |= dict(preset=args.preset, seed=args.seed, limit=args.limit)
    settings |= {name: value for name in ("width", "epochs") if (value := getattr(args, name)) is not None}
    try:
        train(settings, args.out or Path("runs") / args.task, args.resume, args.device, args.save_every)
    except (ValueError, OSError) as error:
        sys.exit(f"train.py: {error}" if not print(f"train.py: {error}", file=sys.stderr) else 2)


def train(settings: dict, folder: Path, resume: bool, device: str | None, save_every: float) -> None:
    rank, world = start_processes()
    device = torch.device(device or best_device())
    if settings["batch"] % world:
        raise ValueError(f"the batch of {settings['batch']} does not split over {world} processes: use a divisor of it")
    folder.mkdir(parents=True, exist_ok=True)

    digits, labels = mnist.load(train=True)
    digits, labels = digits[: settings["limit"]], labels[: settings["limit"]]
    torch.manual_seed(settings["seed"])
    unet = pretrained.build(settings).to(device, memory_format=torch.channels_last)
    ema = pretrained.build(settings).to(device, memory_format=torch.channels_last)
    ema.load_state_dict(unet.state_dict())
    optimiser = torch.optim.Adam(unet.parameters(), lr=settings["lr"], fused=device.type in ("cpu", "cuda"))
    run = Run(settings, unet, ema, optimiser, torch.Generator().manual_seed(settings["seed"]))
    if resume:
        run.load(folder / "state.safetensors")
    model = DistributedDataParallel(unet) if world > 1 else unet

    steps_per_epoch = len(digits) // settings["batch"]
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=has_bf16(device))
    if rank == 0:
        parameters = sum(p.numel() for p in unet.parameters())
        print(f"{settings['task']}: {parameters:,} parameters, {steps_per_epoch} steps an epoch on {device}, {'bfloat16' if autocast._enabled else 'float32'}")
        print(f"settings: {settings}")
    while run.epoch < settings["epochs"]:
        model.train()
        if run.order is None:
            run.order = torch.randperm(len(digits), generator=run.generator)
        bar = tqdm(total=steps_per_epoch, initial=run.batch, desc=f"epoch {run.epoch + 1}/{settings['epochs']}", disable=rank > 0, mininterval=2)
        saved = time.monotonic()
        while run.batch < steps_per_epoch:
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(settings, run.epoch * steps_per_epoch + run.batch, steps_per_epoch)
            chosen = run.order[run.batch * settings["batch"] : (run.batch + 1) * settings["batch"]]
            with autocast:
                value = loss(settings, model, digits[chosen], labels[chosen], run.generator, device, slice(rank, None, world))
            optimiser.zero_grad()
            value.backward()
            if not math.isfinite(value := value.item()):
                raise ValueError(f"the loss is {value} in epoch {run.epoch + 1}, step {run.batch + 1}: lower the learning rate; {folder}/state.safetensors is the last good state")
            optimiser.step()
            training.update_ema(ema, unet, min(settings["ema"], run.steps / (run.steps + 10)))
            run.steps, run.batch = run.steps + 1, run.batch + 1
            run.losses.append(value)
            bar.update()
            bar.set_postfix(loss=f"{sum(run.losses[-100:]) / len(run.losses[-100:]):.4f}", images_s=f"{settings['batch'] * (bar.format_dict['rate'] or 0):.0f}", refresh=False)
            if rank == 0 and time.monotonic() - saved > save_every:
                run.save(folder / "state.safetensors")
                saved = time.monotonic()
        bar.close()
        run.epoch, run.batch, run.order = run.epoch + 1, 0, None
        if rank == 0:
            run.save(folder / "state.safetensors")
            write_results(run, folder)
    if world > 1:
        dist.destroy_process_group()


def loss(settings: dict, model: nn.Module, digits: Tensor, labels: Tensor, generator: torch.Generator, device: torch.device, mine: slice) -> Tensor:
    """The loss of this process's part of one batch. Every process draws the numbers of the whole batch, so that they do not depend on how it is split."""
    x_0 = mnist.to_pixels(digits, *settings["pixels"])
    eps = torch.randn(x_0.shape, generator=generator)
    if settings["task"] == "denoiser":
        x_0, eps = (a[mine].to(device) for a in (x_0, eps))
        return training.denoiser_loss(model, x_0, eps, settings["sigma"])
    alpha_bar = pretrained.schedule(settings)
    t = torch.randint(1, settings["T"] + 1, (len(x_0),), generator=generator)
    c = None
    if "classes" in settings:
        keep = torch.rand(len(x_0), generator=generator) >= settings["p_uncond"]
        c = training.drop_labels(labels, keep, settings["classes"])[mine].to(device)
    x_0, eps, t = (a[mine].to(device) for a in (x_0, eps, t))
    return training.diffusion_loss(model, x_0, t, eps, alpha_bar, c, settings["target"])


def learning_rate(settings: dict, step: int, steps_per_epoch: int) -> float:
    """`epoch`: 0.1^(1/epochs) an epoch, a tenth at the end (the course). `cosine`: up in a straight line, down to 0 along a cosine."""
    lr, epochs = settings["lr"], settings["epochs"]
    if settings["decay"] == "constant":
        return lr
    if settings["decay"] == "epoch":
        return lr * 0.1 ** (step // steps_per_epoch / epochs)
    return lr * min(1, (step + 1) / (settings["warmup"] + 1)) * 0.5 * (1 + math.cos(math.pi * step / (epochs * steps_per_epoch)))


class Run:
    """All that a run is made of, so that it can stop and go on: networks, optimiser, position, random numbers, losses."""

    def __init__(self, settings: dict, unet: nn.Module, ema: nn.Module, optimiser: torch.optim.Optimizer, generator: torch.Generator):
        self.settings, self.unet, self.ema, self.optimiser, self.generator = settings, unet, ema, optimiser, generator
        self.epoch = self.batch = self.steps = 0
        self.order: Tensor | None = None  # of the digits in the epoch that is under way
        self.losses: list[float] = []

    def save(self, path: Path) -> None:
        tensors = {f"unet.{k}": v for k, v in self.unet.state_dict().items()} | {f"ema.{k}": v for k, v in self.ema.state_dict().items()}
        for i, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"adam.{i}.{k}": v for k, v in state.items()}
        tensors |= {"generator": self.generator.get_state(), "losses": torch.tensor(self.losses, dtype=torch.float64)}
        if self.order is not None:
            tensors["order"] = self.order
        save_tensors(tensors, path, {"settings": self.settings, "epoch": self.epoch, "batch": self.batch, "steps": self.steps})

    def load(self, path: Path) -> None:
        tensors, record = load_tensors(path)
        changed = [k for k in self.settings if self.settings[k] != record["settings"].get(k)]
        if changed:
            k = changed[0]
            raise ValueError(f"the run in {path.parent} has {k} = {record['settings'].get(k)}, asked for {self.settings[k]}: resume with its own settings")
        self.unet.load_state_dict({k.removeprefix("unet."): v for k, v in tensors.items() if k.startswith("unet.")})
        self.ema.load_state_dict({k.removeprefix("ema."): v for k, v in tensors.items() if k.startswith("ema.")})
        adam = self.optimiser.state_dict()
        for i, p in enumerate(self.optimiser.param_groups[0]["params"]):
            names = [k for k in tensors if k.startswith(f"adam.{i}.")]
            adam["state"][i] = {k.split(".")[-1]: torch.empty_like(p).copy_(tensors[k]) if tensors[k].ndim else tensors[k] for k in names}
        self.optimiser.load_state_dict(adam)
        self.generator.set_state(tensors["generator"])
        self.losses, self.order = tensors["losses"].tolist(), tensors.get("order")
        self.epoch, self.batch, self.steps = record["epoch"], record["batch"], record["steps"]


def write_results(run: Run, folder: Path) -> None:
    """Loss curve, weights and, after some epochs, a grid of samples from noise that is the same each time."""
    with replaced(folder / "loss.csv") as temporary, open(temporary, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["step", "loss"])
        table.writerows((i + 1, f"{value:.6f}") for i, value in enumerate(run.losses))
    images.save_png(images.curve(run.losses), folder / "loss.png")
    record = run.settings | dict(epoch=run.epoch, loss=sum(run.losses[-400:]) / len(run.losses[-400:]), git=git_commit())
    weights = run.ema if run.settings["ema"] else run.unet
    save_tensors(weights.state_dict(), folder / f"mnist-{run.settings['task']}.safetensors", record)
    if run.epoch in SAMPLED or run.epoch == run.settings["epochs"]:
        model = pretrained.Digits(weights.eval(), run.settings)
        picture = pretrained.preview(model, seed=run.settings["seed"])
        images.save_png(picture, folder / f"samples-epoch-{run.epoch:03d}.png", record)


def start_processes() -> tuple[int, int]:
    """(rank, number of processes); (0, 1) without torchrun."""
    if "RANK" not in os.environ:
        return 0, 1
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return dist.get_rank(), dist.get_world_size()


def best_device() -> str:
    if torch.cuda.is_available():
        return f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def has_bf16(device: torch.device) -> bool:
    """Whether this device multiplies bfloat16 faster than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, check, bool)() for check in checks)


def git_commit() -> str:
    try:
        return subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True, cwd=Path(__file__).parent).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


if __name__ == "__main__":
    main()
