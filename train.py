"""Train a network:  python train.py denoiser | time | class | classifier | text | superres | matcher

Each run fills one folder (runs/TASK): loss.csv and loss.png, samples-epoch-*.png from one fixed noise, state.safetensors (all that
--resume needs) and what sample.py loads: mnist-TASK.safetensors, or a model in the layout of the hub.
`torchrun --nproc_per_node=N train.py class` splits each batch over N processes and averages their gradients; BatchNorm then sees
its own part of the batch only, so the weights of digits are not those of one process to the bit.
"""

import argparse
import csv
import json
import math
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from minidiff import digit_tasks, images, matcher_task, text_tasks
from minidiff.files import check_writable, load_tensors, replaced
from minidiff.machine import Parser, choose_device, keep_freed_memory, start_processes
from minidiff.run import Run, Task, learning_rate

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
        "lr": 1e-3, "decay": "cosine", "warmup": 200,  # Adam's second moments settle first; the end of the run is nearly free of noise
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
BETTER["time"] |= {"guide": "mnist-class", "scale": 2.0}  # no label to be guided by: away from a worse network (AG, see model.py)

BETTER["classifier"] = {
    "task": "classifier", "width": 24, "pixels": [0, 1],  # the assignment has none; 24 channels are enough, and train in minutes
    "turn": 15.0, "shift": 2.0,  # each time another digit: turned by up to so many degrees, moved by up to so many pixels
    "lr": 4e-3, "decay": "cosine", "warmup": 200, "batch": 128, "epochs": 10, "ema": 0.998,
}  # fmt: skip

BETTER["text"] = {
    "task": "text", "size": 32, "widths": [32, 64, 128, 128], "depth": 1, "attends": [False, False, True, True],  # pixels ask from 8 x 8 on
    "head_dim": 32, "groups": 8, "cross": 128,  # the text's keys and values are so wide before each attention's own projection
    "d_model": 128, "heads": 4, "layers": 2, "pieces": 2000,  # T5: captions are a few words
    "phases": [[0, 16, 100], [30, 16, 400], [60, 32, 10_000]],  # from epoch, size, things: few things first, small first
    "steps": 500,  # an epoch, which is here only how often results are written
    "lr": 1e-3, "decay": "trapezoid", "warmup": 200, "cooldown": 0.2,  # level, so that a run may be made longer
    "optimiser": "muon", "beta2": 0.99, "weight_decay": 0.01, "clip": 1.0, "batch": 32, "epochs": 200, "ema": 0.999, "p_uncond": 0.1, "scale": 4.0,
    "preview_every": 5,
}  # fmt: skip

BETTER["superres"] = BETTER["text"] | {
    "task": "superres", "text": "weights/picturebook",  # the model whose text encoder it listens to
    "size": 64, "crop": 32, "levels": 500,  # trained on every level of noise that the low resolution may get, up to this one
    "level": 100, "scale": 2.0, "depth": 1, "epochs": 100,  # of the previews
}  # fmt: skip
for unused in ("phases", "pieces", "d_model", "heads", "layers"):
    del BETTER["superres"][unused]

BETTER["matcher"] = {
    "task": "matcher", "seed": 731,  # not the generator's
    "widths": [48, 96, 144], "D": 128,  # 30 million multiplications a picture: ten passes over the book take minutes; 1.9 MB in half precision
    "turned": 0.3,  # of the pictures with one hue, so many are turned to another colour
    "bad": 0.2,  # how likely each way of spoiling a picture is; noise twice as likely
    "lr": 4e-3, "decay": "trapezoid", "warmup": 100, "cooldown": 0.4, "weight_decay": 0.02,  # it sees each picture some forty times
    "batch": 128, "epochs": 40, "ema": 0.998, "clip": 1.0,
}  # fmt: skip

TASKS = dict.fromkeys(COURSE | {"classifier": 0}, digit_tasks.task) | {"text": text_tasks.text, "superres": text_tasks.superres}
TASKS["matcher"] = matcher_task.matcher


def train(
    settings: dict, folder: Path, resume: bool, device: torch.device, save_every: float = 120, float32: bool = False, compiled: bool = False
) -> None:
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
        parameters = sum(p.numel() for p in run.net.parameters())
        kind = "bfloat16" if bf16 else "float32"
        print(f"{settings['task']}: {parameters:,} parameters, {task.steps} steps an epoch, {device}, {kind}, {folder}")
        print(f"settings: {settings}")
        if run.epoch == settings["epochs"]:
            print("this run is finished")
        if not resume:
            run.save(state)  # so that it can be resumed from its first step on
    parallel = DistributedDataParallel(run.net) if world > 1 else run.net
    if compiled:
        parallel = torch.compile(parallel, dynamic=False)
    saved = time.monotonic()
    while run.epoch < settings["epochs"]:
        for _ in epoch(run, task, parallel, bf16, rank, world):
            if rank == 0 and time.monotonic() - saved > save_every:
                run.save(state)
                saved = time.monotonic()
        run.check_finite()
        if rank == 0:
            write_results(run, task, folder)  # before the state: a run that is killed in between repeats them
            run.save(state)
            saved = time.monotonic()
    if world > 1:
        dist.destroy_process_group()


def epoch(run: Run, task: Task, parallel: torch.nn.Module, bf16: bool, rank: int, world: int):
    """What is left of the epoch that is under way; yields after each step but the last."""
    settings, device = run.settings, next(run.net.parameters()).device
    run.net.train()
    if run.order is None:
        run.order = task.order(run.epoch, run.generator)
    name = f"epoch {run.epoch + 1}/{settings['epochs']}"
    with tqdm(total=task.steps, initial=run.batch, desc=name, disable=rank > 0, mininterval=2) as bar:
        while run.batch < task.steps:
            chosen = run.order[run.batch * settings["batch"] : (run.batch + 1) * settings["batch"]]
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                value = task.loss(parallel, chosen, run.epoch, run.generator, slice(rank, None, world))
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


def write_results(run: Run, task: Task, folder: Path) -> None:
    """Loss curve, weights and, after some epochs, samples."""
    with replaced(folder / "loss.csv") as temporary, open(temporary, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["step", "loss"])
        table.writerows((i + 1, f"{value:.6f}") for i, value in enumerate(run.losses))
    images.save_png(images.curve(run.losses), folder / "loss.png")
    record = run.settings | {"epoch": run.epoch, "loss": run.recent_loss(400), "git": git_commit()}
    task.write(run.averaged if run.settings["ema"] else run.net, folder, record, run.epoch == run.settings["epochs"])


def has_bf16(device: torch.device) -> bool:
    """Whether this device multiplies bfloat16 faster than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, check, bool)() for check in checks)


def git_commit() -> str:
    try:
        command, here = ["git", "rev-parse", "--short", "HEAD"], Path(__file__).parent
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=here).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = Parser(prog="train.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", help="one of " + ", ".join(TASKS))
    parser.add_argument("--preset", help="better (the default: what we measured to be) or course (the assignment's numbers)")
    parser.add_argument("--width", type=int, help="digits: D, channels of the first level")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--limit", type=int, help="digits: train on the first N only")
    parser.add_argument("--seed", type=int, help="default 137")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="any other setting, the value as JSON: batch=64 'widths=[32,64]'")
    parser.add_argument("--out", type=Path, help="folder of the run, default runs/TASK")
    parser.add_argument("--init", type=Path, help="begin with the weights of another network of train.py's, as far as the two have the same layers")
    parser.add_argument("--text", type=Path, help="superres: the model (a folder or hub name) whose text encoder it listens to")
    parser.add_argument("--resume", action="store_true", help="go on where the run in --out stopped, with its own settings")
    parser.add_argument("--float32", action="store_true", help="no bfloat16 autocast, also where the machine is faster with it")
    parser.add_argument("--compile", action="store_true", help="torch.compile: minutes for the first step, then a third faster; wants a C++ compiler")
    parser.add_argument("--device", help="cpu, cuda, mps; default: the best there is")
    parser.add_argument("--save-every", type=float, default=120, help="seconds between saves of the state; it is saved after each epoch too")
    args = parser.parse_args(argv)
    if args.task not in TASKS:
        raise ValueError(f"a task is one of {', '.join(TASKS)}, got {args.task!r}")
    if args.preset not in (None, "better", "course"):
        raise ValueError(f"--preset wants better or course, got {args.preset!r}")
    if args.preset == "course" and args.task not in COURSE:
        raise ValueError(f"the assignment trains no {args.task}: leave --preset course out")
    for name, low, high in (("width", 1, 1024), ("epochs", 1, 10_000), ("limit", 256, 60_000), ("seed", 0, 2**32 - 1), ("save_every", 0, 1e6)):
        if (value := getattr(args, name)) is not None and not low <= value <= high:
            raise ValueError(f"--{name.replace('_', '-')} wants {low} to {high}, got {value}")
    args.out = args.out or Path("runs") / args.task
    return args


def asked(args: argparse.Namespace) -> dict:
    """The settings that the command line names."""
    named = {name: value for name in ("preset", "width", "epochs", "limit", "seed") if (value := getattr(args, name)) is not None}
    named |= {name: str(value) for name in ("init", "text") if (value := getattr(args, name)) is not None}
    known = COURSE.get(args.task, {}) | BETTER[args.task]
    for text in args.set:
        name, _, value = text.partition("=")
        if name not in known or name == "task":
            raise ValueError(f"--set wants NAME=VALUE, NAME one of {', '.join(known)}, got {text!r}")
        try:
            named[name] = json.loads(value)
        except json.JSONDecodeError:
            named[name] = value
        kinds = (int, float) if type(known[name]) is float else type(known[name])
        if not isinstance(named[name], kinds):
            raise ValueError(f"--set {name} wants a value like {known[name]!r}, got {value!r}")
    return named


def settings_of(args: argparse.Namespace) -> dict:
    """All settings of a run: of a new one the task's with what the command line names; of a resumed one its own, which a flag may not contradict."""
    named = asked(args)
    if not args.resume:
        course = named.setdefault("preset", "better") == "course"
        settings = COURSE.get(args.task, {}) | {"seed": 137} | ({} if course else BETTER[args.task])
        return settings | ({"limit": 60_000} if TASKS[args.task] is digit_tasks.task else {}) | named
    settings = load_tensors(args.out / "state.safetensors")[1].get("settings", {})
    if settings.get("decay") == "trapezoid":  # its end may be moved
        settings = settings | {"epochs": named.pop("epochs", settings["epochs"])}
    for name, value in ({"task": args.task} | named).items():
        if settings.get(name) != value:
            raise ValueError(f"the run in {args.out} has {name} = {settings.get(name)}, asked for {value}: leave it out, or begin another run with --out")
    return settings


def main(argv: list[str]) -> int:
    try:
        args = arguments(argv)
        keep_freed_memory()
        train(settings_of(args), args.out, args.resume, choose_device(args.device), args.save_every, args.float32, args.compile)
    except (ValueError, OSError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"train.py: stopped; the last saved state goes on with: python train.py {args.task} --resume --out {args.out}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
