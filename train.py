"""Train the digits' networks:  python train.py denoiser | time | class | classifier

Each run fills one folder (runs/TASK): loss.csv and loss.png, samples-epoch-*.png from one fixed noise, state.safetensors
(all that --resume needs) and mnist-TASK.safetensors (the averaged weights with their settings: what sample.py loads).
`torchrun --nproc_per_node=N train.py class` splits each batch over N processes and averages their gradients; BatchNorm then sees
its own part of the batch only, so the weights are not those of one process to the bit.
"""

import argparse
import csv
import math
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from minidiff import images, mnist, pretrained, sampling, training
from minidiff.files import check_writable, load_tensors, replaced, save_tensors
from minidiff.command import Parser, start_processes
from minidiff.machine import choose_device, keep_freed_memory
from minidiff.pretrained import Digits
from minidiff.reader import Reader, read_as
from minidiff.schedule import evenly_spaced

# The assignment, to the letter (CS180 project 5 part B, Fall 2024): what --preset course runs.
COURSE = {
    "denoiser": {
        "task": "denoiser", "width": 128, "sigma": 0.5, "pixels": [0, 1],
        "lr": 1e-4, "decay": "constant", "batch": 256, "epochs": 5, "ema": 0.0,
    },
    "time": {
        "task": "time", "width": 64, "T": 300, "schedule": "linear", "target": "eps", "pixels": [0, 1],
        "lr": 1e-3, "decay": "epoch", "batch": 128, "epochs": 20, "ema": 0.0,
    },
}  # fmt: skip
COURSE["class"] = COURSE["time"] | {"task": "class", "classes": 10, "p_uncond": 0.1, "scale": 5.0}

# What we changed because it is better, each with its reason; the README has the numbers.
BETTER = {
    "denoiser": {
        "width": 64,  # a quarter of the work of D = 128
        "lr": 1e-3, "decay": "cosine", "warmup": 200,  # Adam's second moments settle first, and the end of the run is nearly free of noise
        "batch": 128, "epochs": 2, "ema": 0.998,  # the average of the last ~500 steps is better than the last step
    },
    "time": {
        "schedule": "linear_to_noise",  # ᾱ_300 = 3e-5 and not 0.048: a walk begins where training did (ZSNR)
        "target": "velocity",  # weighs the noisy levels, where a digit is decided, as much as the others (PD)
        "pixels": [-1, 1],  # centred, as N(0, I) is
        "lr": 2e-3, "decay": "cosine", "warmup": 500, "epochs": 10, "ema": 0.999,
    },
}  # fmt: skip
BETTER["class"] = BETTER["time"] | {"scale": 1.5}  # what suits the network after training; at 2 the strokes grow too thick
BETTER["time"] |= {"guide": "mnist-class", "scale": 2.0}  # no label to be guided by: away from a worse network (AG, see pretrained.py)

BETTER["classifier"] = {
    "task": "classifier", "width": 24, "pixels": [0, 1],  # the assignment has none; 24 channels are enough, and train in minutes
    "turn": 15.0, "shift": 2.0,  # each time another digit: turned by up to so many degrees, moved by up to so many pixels
    "lr": 4e-3, "decay": "cosine", "warmup": 200, "batch": 128, "epochs": 10, "ema": 0.998,
}  # fmt: skip

SAMPLED = (1, 5, 10, 20)  # sample grids are drawn after these epochs and after the last


def train(settings: dict, folder: Path, resume: bool, device: torch.device, save_every: float = 120, float32: bool = False) -> None:
    """The whole run: the loop, its checkpoints and what it writes into `folder`."""
    rank, world = start_processes(device)
    if settings["batch"] % world:
        raise ValueError(f"the batch of {settings['batch']} does not split over {world} processes: use a divisor of it")
    digits, labels = (a[: settings["limit"]] for a in mnist.load(train=True))
    torch.manual_seed(settings["seed"])
    run = Run(settings, device)
    if resume:
        run.load(folder / "state.safetensors")
    elif any(folder.glob("*.safetensors")):
        raise ValueError(f"{folder} holds a run: go on with --resume, or name another folder with --out")
    elif "init" in settings:
        run.begin_with(Path(settings["init"]))
    check_writable(folder / "state.safetensors")

    unet = run.model.unet
    parallel = DistributedDataParallel(unet) if world > 1 else unet
    bf16 = has_bf16(device) and not float32
    steps_per_epoch = len(digits) // settings["batch"]
    if rank == 0:
        parameters = sum(p.numel() for p in unet.parameters())
        print(f"{settings['task']}: {parameters:,} parameters, {steps_per_epoch} steps an epoch, {device}, {'bfloat16' if bf16 else 'float32'}, {folder}")
        print(f"settings: {settings}")
        if run.epoch == settings["epochs"]:
            print("this run is finished")
    while run.epoch < settings["epochs"]:
        unet.train()
        if run.order is None:
            run.order = torch.randperm(len(digits), generator=run.generator)
        bar = tqdm(total=steps_per_epoch, initial=run.batch, desc=f"epoch {run.epoch + 1}/{settings['epochs']}", disable=rank > 0, mininterval=2)
        saved = time.monotonic()
        while run.batch < steps_per_epoch:
            run.optimiser.param_groups[0]["lr"] = learning_rate(settings, run.steps, steps_per_epoch)
            chosen = run.order[run.batch * settings["batch"] : (run.batch + 1) * settings["batch"]]
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                value = loss(run, parallel, digits[chosen], labels[chosen], slice(rank, None, world))
            run.optimiser.zero_grad()
            value.backward()
            if not math.isfinite(value := value.item()):
                raise ValueError(f"the loss is {value} in epoch {run.epoch + 1}, step {run.batch + 1}: the last good state is kept in {folder}, lower the learning rate")
            run.optimiser.step()
            run.count(value)
            bar.update()
            bar.set_postfix(loss=f"{run.recent_loss(100):.4f}", images_s=f"{settings['batch'] * (bar.format_dict['rate'] or 0):.0f}", refresh=False)
            if rank == 0 and time.monotonic() - saved > save_every:
                run.save(folder / "state.safetensors")
                saved = time.monotonic()
        bar.close()
        run.epoch, run.batch, run.order = run.epoch + 1, 0, None
        run.check_finite()
        if rank == 0:
            write_results(run, folder)  # before the state: a run that is killed in between repeats them
            run.save(folder / "state.safetensors")
    if world > 1:
        dist.destroy_process_group()


def loss(run: "Run", unet: nn.Module, digits: Tensor, labels: Tensor, mine: slice) -> Tensor:
    """The loss of this process's part of a batch. Each process draws the numbers of the whole batch, so that they do not depend on how it is split."""
    settings, device = run.settings, run.model.device
    x_0 = mnist.to_pixels(digits, *settings["pixels"])
    if settings["task"] == "classifier":
        angle, right, down = 2 * torch.rand(3, len(x_0), generator=run.generator) - 1  # in [-1, 1)
        shift = settings["shift"] * torch.stack([right, down], 1)
        x = training.moved(x_0[mine], math.radians(settings["turn"]) * angle[mine], shift[mine])
        return training.classifier_loss(unet, x.to(device), labels[mine].to(device))
    eps = torch.randn(x_0.shape, generator=run.generator)
    if settings["task"] == "denoiser":
        return training.denoiser_loss(unet, x_0[mine].to(device), eps[mine].to(device), settings["sigma"])
    t = torch.randint(1, settings["T"] + 1, (len(x_0),), generator=run.generator)
    c = None
    if "classes" in settings:
        keep = torch.rand(len(x_0), generator=run.generator) >= settings["p_uncond"]
        c = training.drop_labels(labels, keep, settings["classes"])[mine].to(device)
    return training.diffusion_loss(unet, x_0[mine].to(device), t[mine].to(device), eps[mine].to(device), run.model.alpha_bar, c, settings["target"])


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

    def __init__(self, settings: dict, device: torch.device):
        self.settings = settings
        self.model, self.averaged = pretrained.build(settings), pretrained.build(settings)
        for model in (self.model, self.averaged):
            model.unet.to(device, memory_format=torch.channels_last)
        self.averaged.unet.load_state_dict(self.model.unet.state_dict())
        for layer in self.model.unet.modules():
            if isinstance(layer, nn.ConvTranspose2d):  # BatchNorm follows, and subtracts any constant: the gradient is 0, and slow to add up
                layer.bias.requires_grad_(False)
        learned = [p for p in self.model.unet.parameters() if p.requires_grad]
        self.optimiser = torch.optim.Adam(learned, lr=settings["lr"], fused=device.type in ("cpu", "cuda"))
        self.generator = torch.Generator().manual_seed(settings["seed"])
        self.epoch = self.batch = self.steps = 0
        self.order: Tensor | None = None  # of the digits in the epoch that is under way
        self.losses: list[float] = []

    def begin_with(self, path: Path) -> None:
        """Take over another network's layers: the time-conditioned one, say, is the class-conditioned one without its label."""
        tensors, _ = load_tensors(path)
        own = self.model.unet.state_dict()
        shared = {name: tensor for name, tensor in tensors.items() if name in own}
        wrong = [name for name in shared if shared[name].shape != own[name].shape]
        if wrong or not shared:
            raise ValueError(f"--init wants a network of width {self.settings['width']}, {path} has other layers{f' ({wrong[0]})' if wrong else ''}: name another")
        for model in (self.model, self.averaged):
            model.unet.load_state_dict(own | shared)

    def count(self, value: float) -> None:
        """One more step is done: average the weights. A young average forgets faster, or it would remember the random start."""
        if self.settings["ema"]:
            training.update_ema(self.averaged.unet, self.model.unet, min(self.settings["ema"], self.steps / (self.steps + 10)))
        self.steps, self.batch = self.steps + 1, self.batch + 1
        self.losses.append(value)

    def recent_loss(self, count: int) -> float:
        return sum(self.losses[-count:]) / len(self.losses[-count:])

    def check_finite(self) -> None:
        """Raises ValueError when a weight is NaN or infinite: asked before anything good is overwritten."""
        for model in (self.model, self.averaged):
            if not all(bool(torch.isfinite(v).all()) for v in model.unet.state_dict().values()):
                raise ValueError(f"the weights are no longer finite after step {self.steps}: the last good state is kept, lower the learning rate")

    def save(self, path: Path) -> None:
        self.check_finite()
        tensors = {f"unet.{k}": v for k, v in self.model.unet.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in self.averaged.unet.state_dict().items()}
        for i, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"adam.{i}.{k}": v for k, v in state.items()}
        tensors |= {"generator": self.generator.get_state(), "losses": torch.tensor(self.losses, dtype=torch.float64)}
        if self.order is not None:
            tensors["order"] = self.order
        save_tensors(tensors, path, {"settings": self.settings, "epoch": self.epoch, "batch": self.batch, "steps": self.steps})

    def load(self, path: Path) -> None:
        tensors, record = load_tensors(path)
        theirs = record.get("settings", {})
        for k in sorted(self.settings.keys() | theirs.keys(), key=lambda k: (k != "task", k)):
            if self.settings.get(k) != theirs.get(k):
                raise ValueError(f"the run in {path.parent} has {k} = {theirs.get(k)}, asked for {self.settings.get(k)}: resume with its own settings")
        try:
            for prefix, model in (("unet.", self.model), ("ema.", self.averaged)):
                model.unet.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
            adam = self.optimiser.state_dict()
            for i, p in enumerate(self.optimiser.param_groups[0]["params"]):
                moments = {k: torch.empty_like(p).copy_(tensors[f"adam.{i}.{k}"]) for k in ("exp_avg", "exp_avg_sq")}
                adam["state"][i] = moments | {"step": tensors[f"adam.{i}.step"].clone()}
            self.optimiser.load_state_dict(adam)
            self.generator.set_state(tensors["generator"].clone())
            self.losses = tensors["losses"].tolist()
            self.order = tensors["order"].clone() if "order" in tensors else None
            self.epoch, self.batch, self.steps = record["epoch"], record["batch"], record["steps"]
        except (KeyError, TypeError, RuntimeError) as error:
            raise ValueError(f"{path} is no state of this run ({' '.join(str(error).split())[:120]}): start again in another folder") from None


def write_results(run: Run, folder: Path) -> None:
    """Loss curve, weights and, after some epochs, a grid of samples from noise that is the same each time."""
    with replaced(folder / "loss.csv") as temporary, open(temporary, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["step", "loss"])
        table.writerows((i + 1, f"{value:.6f}") for i, value in enumerate(run.losses))
    images.save_png(images.curve(run.losses), folder / "loss.png")
    record = run.settings | {"epoch": run.epoch, "loss": run.recent_loss(400), "git": git_commit()}
    model = run.averaged if run.settings["ema"] else run.model
    if model.task == "classifier":
        record["test_accuracy"] = accuracy(model)
        print(f"test digits read right after epoch {run.epoch}: {record['test_accuracy']:.2%}")
    save_tensors(model.unet.state_dict(), folder / f"mnist-{model.task}.safetensors", record)
    if run.epoch in SAMPLED or run.epoch == run.settings["epochs"]:
        images.save_png(preview(model, run.settings), folder / f"samples-epoch-{run.epoch:03d}.png", record)


def accuracy(model: Digits) -> float:
    """The part of the 10,000 test digits that a classifier reads right."""
    x, labels = mnist.load(train=False)
    reader = Reader(model.unet.eval())
    return float(read_as(reader.log_probs(reader.features(mnist.to_pixels(x, 0, 1))), labels).float().mean())


@torch.no_grad()
def preview(model: Digits, settings: dict) -> Image.Image:
    """40 digits from noise that is the same each time; for the denoiser ten test digits, noisy, denoised; for the classifier the 40 that it is least sure of, among 2,000."""
    model.unet.eval()
    if model.task == "classifier":
        x, labels = mnist.test_digits(2000, list(range(10)))
        x, reader = mnist.to_pixels(x, 0, 1), Reader(model.unet)
        sure = reader.log_probs(reader.features(x)).gather(1, labels[:, None])[:, 0]  # log p(label)
        return images.grid(x[sure.argsort()[:40]], 10)
    generators = sampling.seeded(settings["seed"], 0, 40)
    if model.task == "denoiser":
        x = mnist.to_pixels(mnist.load(train=False)[0][:10], 0, 1).to(model.device)
        z = x + settings["sigma"] * sampling.noise_per_image(generators[:10])(x)
        return images.grid(torch.cat([x, z, model.unet(z)]).clamp(0, 1), 10)
    c = (torch.arange(40) % 10).to(model.device) if model.classes else None
    x = sampling.last(model.draw(generators, evenly_spaced(settings["T"], 25), sampling.dpm_solver(), c, model.scale))
    return images.grid(images.to_unit(x, *model.pixels), 10)


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


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = Parser(prog="train.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", help="one of " + ", ".join(BETTER))
    parser.add_argument("--preset", default="better", help="better (the default: what we measured to be) or course (the assignment's numbers)")
    parser.add_argument("--width", type=int, help="D, channels of the first level")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--limit", type=int, default=60_000, help="train on the first N digits only")
    parser.add_argument("--seed", type=int, default=137)
    parser.add_argument("--out", type=Path, help="folder of the run, default runs/TASK")
    parser.add_argument("--init", type=Path, help="begin with the weights of another network of train.py's, as far as the two have the same layers")
    parser.add_argument("--resume", action="store_true", help="go on where the run in --out stopped; asks for the same settings again")
    parser.add_argument("--float32", action="store_true", help="no bfloat16 autocast, also where the machine is faster with it")
    parser.add_argument("--device", help="cpu, cuda, mps; default: the best there is")
    parser.add_argument("--save-every", type=float, default=120, help="seconds between saves of the state; it is saved after each epoch too")
    args = parser.parse_args(argv)
    if args.task not in BETTER:
        raise ValueError(f"a task is one of {', '.join(BETTER)}, got {args.task!r}")
    if args.preset not in ("better", "course"):
        raise ValueError(f"--preset wants better or course, got {args.preset!r}")
    if args.preset == "course" and args.task not in COURSE:
        raise ValueError(f"the assignment trains no {args.task}: leave --preset course out")
    for name, low, high in (("width", 1, 1024), ("epochs", 1, 10_000), ("limit", 256, 60_000), ("seed", 0, 2**32 - 1), ("save_every", 0, 1e6)):
        if (value := getattr(args, name)) is not None and not low <= value <= high:
            raise ValueError(f"--{name.replace('_', '-')} wants {low} to {high}, got {value}")
    args.out = args.out or Path("runs") / args.task
    return args


def main(argv: list[str]) -> int:
    try:
        args = arguments(argv)
        settings = COURSE.get(args.task, {}) | (BETTER[args.task] if args.preset == "better" else {})
        settings |= {"preset": args.preset, "seed": args.seed, "limit": args.limit}
        settings |= {name: value for name in ("width", "epochs") if (value := getattr(args, name)) is not None}
        settings |= {"init": str(args.init)} if args.init else {}
        keep_freed_memory()
        train(settings, args.out, args.resume, choose_device(args.device), args.save_every, args.float32)
    except (ValueError, OSError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
