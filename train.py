"""Train a network:  python train.py denoiser | time | class | classifier | text | superres | matcher

Each run fills one folder (runs/TASK): loss.csv and loss.png, samples-epoch-*.png of one fixed noise, state.safetensors
(all that --resume needs) and what sample.py loads: mnist-TASK.safetensors, or a model in the layout of the hub.
`torchrun --nproc_per_node=N train.py class` splits each batch over N processes and averages their gradients; BatchNorm
then sees its own part of the batch only, so the weights of digits are not those of one process to the bit.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from minidiff import command, digit_tasks, matcher_task, text_tasks
from minidiff.command import Parser, start_processes
from minidiff.files import check_writable, load_tensors
from minidiff.machine import choose_device, has_bf16, keep_freed_memory
from minidiff.run import Run, Task, learning_rate, write_results

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
        "lr": 1e-3, "decay": "cosine", "warmup": 200,  # Adam's moments settle first; the end is nearly free of noise
        "batch": 128, "epochs": 2, "ema": 0.998,  # the average of the last ~500 steps is better than the last step
    },
    "time": {
        "schedule": "linear_to_noise",  # ᾱ_300 = 3e-5 and not 0.048: a walk begins where training did (ZSNR)
        "target": "velocity",  # weighs the noisy levels, where a digit is decided, as much as the others (PD)
        "pixels": [-1, 1],  # centred, as N(0, I) is
        "lr": 2e-3, "decay": "cosine", "warmup": 500, "epochs": 10, "ema": 0.999,
    },
}  # fmt: skip
BETTER["class"] = BETTER["time"] | {"scale": 1.5}  # suits the network after training; at 2 the strokes grow too thick
BETTER["time"] |= {"guide": "mnist-class", "scale": 2.0}  # no label: away from a worse network (AG, see model.py)

BETTER["classifier"] = {
    "task": "classifier", "width": 24, "pixels": [0, 1],  # the assignment has none; 24 channels are enough, in minutes
    "turn": 15.0, "shift": 2.0,  # each digit is turned by up to so many degrees, moved by so many pixels
    "lr": 4e-3, "decay": "cosine", "warmup": 200, "batch": 128, "epochs": 10, "ema": 0.998,
}  # fmt: skip

BETTER["text"] = {
    "task": "text", "size": 32, "widths": [32, 96, 192], "depth": 1,  # few channels where pixels are many
    "attends": [False, False, True], "head_dim": 32, "groups": 16, "cross": 128,  # the lowest level asks the text
    "d_model": 128, "heads": 4, "layers": 2, "pieces": 2000,  # a small T5: captions are a few words
    "phases": [[0, 16, 100], [40, 16, 400], [80, 32, 10_000]],  # [from epoch, size, things]: first few, and small
    "share": {"blobs": 0.05, "emojitwo": 0.05, "fxemoji": 0.05},  # five of 13 sheets are emoji: mostly two of them
    "steps": 250,  # an epoch, which is here only how often results are written
    "lr": 1.5e-3, "decay": "trapezoid", "warmup": 200, "cooldown": 0.25,  # level, so that the end may be moved
    "optimiser": "muon", "beta2": 0.99, "weight_decay": 0.01, "clip": 1.0, "batch": 64, "epochs": 200, "ema": 0.999,
    "p_uncond": 0.1, "scale": 3.0, "preview_every": 10,
}  # fmt: skip

OF_STAGE_I = ("phases", "pieces", "d_model", "heads", "layers")
BETTER["superres"] = {name: value for name, value in BETTER["text"].items() if name not in OF_STAGE_I} | {
    "task": "superres", "text": "weights/picturebook",  # the model whose text encoder it listens to
    "size": 64, "crop": 32, "levels": 500,  # noise on the low resolution in training: each level up to this one
    "level": 100, "scale": 2.0, "epochs": 100,  # in the previews
}  # fmt: skip

BETTER["matcher"] = {
    "task": "matcher", "seed": 731,  # not the generator's
    "widths": [48, 96, 144], "D": 128,  # 30 million multiplications a picture; 1.9 MB in half precision
    "turned": 0.3,  # of the pictures with one hue, so many are turned to another colour
    "bad": 0.2,  # how likely each way of spoiling a picture is; noise twice as likely
    "lr": 4e-3, "decay": "trapezoid", "warmup": 100, "cooldown": 0.4, "weight_decay": 0.02,
    "batch": 128, "epochs": 28, "ema": 0.998, "clip": 1.0,
}  # fmt: skip

TASKS = dict.fromkeys(("denoiser", "time", "class", "classifier"), digit_tasks.task)  # (settings, folder) -> Task
TASKS |= {"text": text_tasks.text, "superres": text_tasks.superres, "matcher": matcher_task.matcher}
LIMITS = {"width": (1, 1024), "epochs": (1, 10_000), "limit": (256, 60_000), "seed": (0, 2**32 - 1),
          "save_every": (0, 1e6)}


def train(
    settings: dict, folder: Path, resume: bool, device: torch.device,
    save_every: float = 120, float32: bool = False, compiled: bool = False,
) -> None:  # fmt: skip
    """The whole run: the loop, its checkpoints and what it writes into `folder`."""
    rank, world = start_processes(device)
    state = folder / "state.safetensors"
    if settings["batch"] % world:
        raise ValueError(f"the batch of {settings['batch']} does not split over {world} processes: use a divisor of it")
    if not resume and any(folder.glob("*.safetensors")):
        raise ValueError(f"{folder} holds a run: go on with --resume, or name another folder with --out")
    check_writable(state)
    torch.manual_seed(settings["seed"])
    task = TASKS[settings["task"]](settings, folder)
    run = Run(task.net, settings, device)
    if resume:
        run.load(state)
    elif "init" in settings:
        run.begin_with(task.init(), settings["init"])
    bf16 = has_bf16(device) and not float32
    if rank == 0:
        size, kind = sum(p.numel() for p in run.net.parameters()), "bfloat16" if bf16 else "float32"
        print(f"{settings['task']}: {size:,} parameters, {task.steps} steps an epoch, {device}, {kind}, {folder}")
        print(f"settings: {settings}" if run.epoch < settings["epochs"] else "this run is finished", flush=True)
        if not resume:
            run.save(state)  # so that it can be resumed from its first step on
    net = DistributedDataParallel(run.net) if world > 1 else run.net
    net = torch.compile(net, dynamic=False) if compiled else net
    saved = time.monotonic()
    while run.epoch < settings["epochs"]:
        for _ in epoch(run, task, net, bf16, rank, world):
            if rank == 0 and time.monotonic() - saved > save_every:
                run.save(state)
                saved = time.monotonic()
        run.check_finite()
        if rank == 0:
            write_results(run, task, folder)  # before the state: a run that is killed in between repeats them
            run.save(state)
            saved = time.monotonic()


def epoch(run: Run, task: Task, net: nn.Module, bf16: bool, rank: int, world: int) -> Iterator[None]:
    """What is left of the epoch that is under way; yields after each step. net: run.net, as it is called."""
    settings, device = run.settings, next(run.net.parameters()).device
    run.net.train()
    if run.order is None:
        run.order = task.order(run.epoch, run.generator)
    name = f"epoch {run.epoch + 1}/{settings['epochs']}"
    with tqdm(total=task.steps, initial=run.batch, desc=name, disable=rank > 0, mininterval=2) as bar:
        while run.batch < task.steps:
            chosen = run.order[run.batch * settings["batch"] : (run.batch + 1) * settings["batch"]]
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                value = task.loss(net, chosen, run.epoch, run.generator, slice(rank, None, world))
            run.net.zero_grad()
            value.backward()
            if not math.isfinite(value := value.item()):
                where = f"in epoch {run.epoch + 1}, step {run.batch + 1}"
                raise ValueError(f"the loss is {value} {where}: the last good state is kept, lower the learning rate")
            run.learn(learning_rate(settings, run.steps, task.steps))
            run.count(value)
            bar.update()
            speed = settings["batch"] * (bar.format_dict["rate"] or 0)
            bar.set_postfix(loss=f"{run.recent_loss(100):.4f}", images_s=f"{speed:.0f}", refresh=False)
            yield
    run.epoch, run.batch, run.order = run.epoch + 1, 0, None


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = Parser(prog="train.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = parser.add_argument
    flag("task", help="one of " + ", ".join(TASKS))
    flag("--preset", help="better (the default: what we measured to be) or course (the assignment's numbers)")
    flag("--width", type=int, help="digits: D, channels of the first level")
    flag("--epochs", type=int)
    flag("--limit", type=int, help="digits: train on the first N only")
    flag("--seed", type=int, help="default 137")
    flag("--set", nargs="+", default=[], metavar="NAME=VALUE", help="other settings, JSON: batch=32 'widths=[32,64]'")
    flag("--out", type=Path, help="folder of the run, default runs/TASK")
    flag("--init", help="begin with the weights of another run or model, as far as the two have the same layers")
    flag("--text", help="superres: the model (a folder or hub name) whose text encoder it listens to")
    flag("--resume", action="store_true", help="go on where the run in --out stopped, with its own settings")
    flag("--float32", action="store_true", help="no bfloat16 autocast, also where the machine is faster with it")
    flag("--compile", action="store_true", help="torch.compile: a slow first step, then faster; wants a C++ compiler")
    flag("--device", help="cpu, cuda, mps; default: the best there is")
    flag("--save-every", type=float, default=120, help="seconds between saves of the state; it is saved each epoch too")
    args = parser.parse_args(argv)
    if args.task not in TASKS:
        raise ValueError(f"a task is one of {', '.join(TASKS)}, got {args.task!r}")
    if args.preset not in (None, "better", "course"):
        raise ValueError(f"--preset wants better or course, got {args.preset!r}")
    if args.preset == "course" and args.task not in COURSE:
        raise ValueError(f"the assignment trains no {args.task}: leave --preset course out")
    for name, (low, high) in LIMITS.items():
        if (value := getattr(args, name)) is not None and not low <= value <= high:
            raise ValueError(f"--{name.replace('_', '-')} wants {low} to {high}, got {value}")
    args.out = args.out or Path("runs") / args.task
    return args


def asked(args: argparse.Namespace) -> dict:
    """The settings that the command line names. Raises ValueError for one that the task does not have."""
    known = defaults(args.task, args.preset or "better")
    flags = ("preset", "width", "epochs", "limit", "seed", "text", "init")
    named = {name: value for name in flags if (value := getattr(args, name)) is not None}
    for name in sorted(named.keys() - known.keys() - {"init"}):
        raise ValueError(f"{args.task} has no {name}: leave --{name} out")
    for text in args.set:
        name, _, value = text.partition("=")
        if name not in known or name in ("task", "preset"):
            raise ValueError(f"--set wants NAME=VALUE, NAME one of {', '.join(known)}, got {text!r}")
        try:
            named[name] = json.loads(value)
        except json.JSONDecodeError:
            named[name] = value
        if not isinstance(named[name], (int, float) if type(known[name]) is float else type(known[name])):
            raise ValueError(f"--set {name} wants a value like {known[name]!r}, got {value!r}")
    return named


def defaults(task: str, preset: str) -> dict:
    """The settings of a task, as they are when the command line names none."""
    settings = COURSE.get(task, {}) | ({} if preset == "course" else BETTER[task]) | {"preset": preset}
    settings.setdefault("seed", 137)
    return settings | ({"limit": 60_000} if TASKS[task] is digit_tasks.task else {})


def settings_of(args: argparse.Namespace) -> dict:
    """The settings of a new run with what the command line names; or a resumed one's, which that may not contradict."""
    named = asked(args)
    if not args.resume:
        return defaults(args.task, args.preset or "better") | named
    settings = load_tensors(args.out / "state.safetensors")[1].get("settings", {})
    if settings.get("decay") == "trapezoid":  # its end may be moved
        settings = settings | {"epochs": named.pop("epochs", settings["epochs"])}
    for name, value in ({"task": args.task} | named).items():
        if settings.get(name) != value:
            found = f"the run in {args.out} has {name} = {settings.get(name)}, asked for {value}"
            raise ValueError(f"{found}: leave it out, or begin another run with --out")
    return settings


def run(argv: list[str]) -> None:
    args = arguments(argv)
    settings, device = settings_of(args), choose_device(args.device)
    keep_freed_memory()
    try:
        train(settings, args.out, args.resume, device, args.save_every, args.float32, args.compile)
    except KeyboardInterrupt as stop:
        again = f"python train.py {args.task} --resume --out {args.out}"
        stop.args = (f"the last saved state goes on with: {again}",)
        raise


def main(argv: list[str]) -> int:
    return command.run("train.py", run, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
