"""A training run that can be killed at any moment and goes on as if it had not been.

    state.safetensors    the network, its average (EMA), the optimisers' moments, the place in the epoch and its order,
                         the random numbers, all losses; and, as JSON, the settings, which --resume does not ask for

What is saved is all that the next step depends on: a run that was stopped and resumed ends with the same weights, to
the bit, as one that was not. What a run learns, and from what, is a `Task`: digit_tasks.py and text_tasks.py make them.
"""

import copy
import csv
import math
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from minidiff import images
from minidiff.files import load_tensors, replaced, save_tensors
from minidiff.muon import Muon, matrices
from minidiff.training import update_ema

MOMENTS = {
    "adam": ("exp_avg", "exp_avg_sq", "step"),
    "muon": ("momentum",),
}  # what an optimiser remembers of each weight


class Task(NamedTuple):
    """What is learned, from what, and what is written of it.

    net:   the network; with several parts (U-Net and text encoder) one module that holds them
    steps: of an epoch
    order: (epoch, generator) -> the examples of that epoch, in the order of use, int64
    loss:  (net, chosen (B,) int64, epoch, generator, mine) -> 0-dim: the loss of the part `mine` of a batch. Each
           process draws the random numbers of the whole batch, so that they do not depend on how it is split
    write: (averaged net, folder, record, last) -> None: the weights, and pictures
    init:  () -> tensors by name: the first weights, when the settings name another network to begin with
    """

    net: nn.Module
    steps: int
    order: Callable[[int, torch.Generator], Tensor]
    loss: Callable[[nn.Module, Tensor, int, torch.Generator, slice], Tensor]
    write: Callable[[nn.Module, Path, dict, bool], None]
    init: Callable[[], dict[str, Tensor]]


class Run:
    """All that a run is made of, so that it can stop and go on: networks, optimisers, position, random numbers, losses.

    net:      the network, which the run moves to `device`
    settings: see train.py; all of them are kept in the state
    """

    def __init__(self, net: nn.Module, settings: dict, device: torch.device):
        self.settings = settings
        self.net = net.to(device, memory_format=torch.channels_last)
        self.averaged = copy.deepcopy(self.net).requires_grad_(False)
        self.optimisers = optimisers(net, settings)
        self.generator = torch.Generator().manual_seed(settings["seed"])
        self.epoch = self.batch = self.steps = 0
        self.order: Tensor | None = None  # of the examples in the epoch that is under way
        self.losses: list[float] = []

    def begin_with(self, tensors: dict[str, Tensor], source: str) -> None:
        """Take over another network's layers, as far as both have them: `time` is `class` without the label.

        source: where the tensors are from. Raises ValueError when none fits, or one has another shape.
        """
        own = self.net.state_dict()
        shared = {name: tensor.to(own[name]) for name, tensor in tensors.items() if name in own}
        wrong = [name for name in shared if shared[name].shape != own[name].shape]
        if wrong or not shared:
            layer = f" ({wrong[0]})" if wrong else ""
            raise ValueError(
                f"--init wants a network of the same widths, {source} has other layers{layer}: name another"
            )
        for net in (self.net, self.averaged):
            net.load_state_dict(own | shared)

    def learn(self, rate: float) -> None:
        """One step of the optimisers with the gradients that are there, cut to the norm `clip` if there is one."""
        if self.settings.get("clip"):
            nn.utils.clip_grad_norm_(self.net.parameters(), self.settings["clip"])
        for optimiser in self.optimisers.values():
            optimiser.param_groups[0]["lr"] = rate
            optimiser.step()

    def count(self, value: float) -> None:
        """One more step is done: average the weights. A young average forgets faster, or it remembers the start."""
        if self.settings["ema"]:
            update_ema(self.averaged, self.net, min(self.settings["ema"], self.steps / (self.steps + 10)))
        self.steps, self.batch = self.steps + 1, self.batch + 1
        self.losses.append(value)

    def recent_loss(self, count: int) -> float:
        return sum(self.losses[-count:]) / max(len(self.losses[-count:]), 1)

    def check_finite(self) -> None:
        """Raises ValueError when a weight is NaN or infinite: asked before anything good is overwritten."""
        for net in (self.net, self.averaged):
            if not all(bool(torch.isfinite(v).all()) for v in net.state_dict().values()):
                where = f"after step {self.steps}: the last good state is kept"
                raise ValueError(f"the weights are no longer finite {where}, lower the learning rate")

    def save(self, path: Path) -> None:
        """Write the state, whole or not at all. Raises ValueError for weights that are not finite, or OSError."""
        self.check_finite()
        tensors = {f"net.{k}": v for k, v in self.net.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in self.averaged.state_dict().items()}
        for name, optimiser in self.optimisers.items():
            for i, state in optimiser.state_dict()["state"].items():
                tensors |= {f"{name}.{i}.{k}": v for k, v in state.items()}
        tensors |= {"generator": self.generator.get_state(), "losses": torch.tensor(self.losses, dtype=torch.float64)}
        if self.order is not None:
            tensors["order"] = self.order
        position = {"epoch": self.epoch, "batch": self.batch, "steps": self.steps}
        save_tensors(tensors, path, {"settings": self.settings} | position)

    def load(self, path: Path) -> None:
        """Go on from a state, every tensor of which must be there and fit. Raises ValueError."""
        tensors, record = load_tensors(path)
        try:
            for prefix, net in (("net.", self.net), ("ema.", self.averaged)):
                net.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
            if record["steps"]:  # before the first step there are no moments
                self._load_optimisers(tensors)
            self.generator.set_state(tensors["generator"].clone())
            self.losses = tensors["losses"].tolist()
            self.order = tensors["order"].clone() if "order" in tensors else None
            self.epoch, self.batch, self.steps = record["epoch"], record["batch"], record["steps"]
        except (KeyError, TypeError, RuntimeError) as error:
            why = " ".join(str(error).split())[:120]
            raise ValueError(f"{path} is no state of this run ({why}): start again in another folder") from None

    def _load_optimisers(self, tensors: dict[str, Tensor]) -> None:
        for name, optimiser in self.optimisers.items():
            states = optimiser.state_dict()
            for i, p in enumerate(optimiser.param_groups[0]["params"]):
                found = {key: tensors[f"{name}.{i}.{key}"].clone() for key in MOMENTS[name]}
                states["state"][i] = {
                    k: torch.empty_like(p).copy_(v) if v.shape == p.shape else v for k, v in found.items()
                }
            optimiser.load_state_dict(states)


def optimisers(net: nn.Module, settings: dict) -> dict[str, torch.optim.Optimizer]:
    """AdamW for all that learns, or, where the settings say so, for what is no matrix, and Muon for the matrices."""
    decay, muons = settings.get("weight_decay", 0.0), matrices(net) if settings.get("optimiser") == "muon" else []
    theirs = {id(p) for p in muons}
    rest = [p for p in net.parameters() if p.requires_grad and id(p) not in theirs]
    betas = (0.9, settings.get("beta2", 0.999))
    adam = torch.optim.AdamW(rest, settings["lr"], betas, weight_decay=0.0 if muons else decay, fused=True)
    return {"adam": adam, "muon": Muon(muons, settings["lr"], decay)} if muons else {"adam": adam}


def learning_rate(settings: dict, step: int, steps_per_epoch: int) -> float:
    """The rate of a step, counted from 0.

    constant    lr
    epoch       lr · 0.1^(1/epochs) an epoch, a tenth at the end (the course)
    cosine      up in a straight line for `warmup` steps, down to 0 along a cosine
    trapezoid   up for `warmup` steps, level, and down to 0 in a straight line over the last `cooldown` (a share of the
                run): the level part may be as long as there is time for
    """
    lr, epochs, total = settings["lr"], settings["epochs"], settings["epochs"] * steps_per_epoch
    if settings["decay"] == "constant":
        return lr
    if settings["decay"] == "epoch":
        return lr * 0.1 ** (step // steps_per_epoch / epochs)
    up = min(1, (step + 1) / (settings["warmup"] + 1))
    if settings["decay"] == "trapezoid":
        return lr * min(up, (total - step) / max(settings["cooldown"] * total, 1), 1)
    return lr * up * 0.5 * (1 + math.cos(math.pi * step / total))


def write_results(run: Run, task: Task, folder: Path) -> None:
    """Loss curve, weights and, after some epochs, samples."""
    with replaced(folder / "loss.csv") as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["step", "loss"])
        table.writerows((i + 1, f"{value:.6f}") for i, value in enumerate(run.losses))
    images.save_png(images.curve(run.losses), folder / "loss.png")
    record = run.settings | {"epoch": run.epoch, "loss": run.recent_loss(400), "git": git_commit()}
    task.write(run.averaged if run.settings["ema"] else run.net, folder, record, run.epoch == run.settings["epochs"])


def git_commit() -> str:
    """The commit of this code; "unknown" where there is no git."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        here = Path(__file__).parent
        return subprocess.run(command, capture_output=True, encoding="utf-8", check=True, cwd=here).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
