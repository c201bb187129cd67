"""Draw with the shipped weights, or with a text model:  python sample.py [LESSON] [options]

LESSONS
`--out NAME.png` is a picture (its settings are in the file), `--out NAME.safetensors` or `.npz` the arrays `images`
(N, C, H, W) in [0, 1] and, of digits, `labels` (N,), −1 for none; or of an illusion (N, V), a label for each reading.
Besides, edit has `original` and the `levels` (N,) it began at, inpaint `original` and `mask` (1 is repainted), an
illusion `views` (N, V, C, H, W), and hybrid `small`. `torchrun --nproc_per_node=N sample.py ...` draws the same images
on N processes.
"""

import argparse
import inspect
import re
import sys
import time
import types
import typing
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import torch

from minidiff import files, images, prompts
from minidiff.command import Parser, run, start_processes
from minidiff.lessons import LESSONS
from minidiff.lessons.common import default_model
from minidiff.machine import choose_device, is_first
from minidiff.pretrained import load
from minidiff.results import Result
from minidiff.walk import Walk
from minidiff.words import texts

NAMED = {lesson.__name__: lesson for lesson in LESSONS}
ARRAYS = (".safetensors", ".npz")
STAGE_II = "DeepFloyd/IF-II-M-v1.0"
FLAGS = {"n": ["-n"], "words": ["--digit", "--prompt"], "course": ["--import"]}  # other names than --the-argument
IN_EMBED = {"encoder": ["--model"], "bank": ["--out"]}  # ... and there
BARE = {"threshold": 0.2, "upscale": STAGE_II}  # what a flag without a value means
WORDS = (
    "words",
    "near",
    "middle",
    "far",
    "grey",
    "coloured",
)  # arguments that are words: they decide whose model it is
OF_PROMPTS = ("dtype", "bank", "encoder", "noise_level", "upscale", "upscale_steps")  # arguments of `load`


def parameters(lesson: Callable) -> list[tuple[inspect.Parameter, str]]:
    """All that can be asked of a lesson, with what its docstring, Walk's or load's says of it: its own arguments come
    first."""
    takes = takes_of(lesson)
    found = [(p, about(lesson.__doc__, p.name)) for p in takes.values() if p.name != "walk"]
    if "walk" in takes:
        of_walk = inspect.signature(Walk).parameters.values()
        found += [(p, about(Walk.__doc__, p.name)) for p in of_walk if p.name not in takes]
    if "model" in takes:
        kind = (typing.get_args(takes["model"].annotation) or [None])[-1]
        options = () if kind == "digits" else OF_PROMPTS[:-2] if kind == "enlarging" else OF_PROMPTS
        found += [(p, about(load.__doc__, p.name)) for p in takes_of(load).values() if p.name in options]
        found = [(p, about(load.__doc__, "name") if p.name == "model" else text) for p, text in found]
    return found


def takes_of(function: Callable) -> dict[str, inspect.Parameter]:
    """The arguments of a function by name, with their annotations as objects."""
    return dict(inspect.signature(function, eval_str=True).parameters)


def summary(lesson: Callable) -> str:
    """What a lesson does, of its docstring."""
    return inspect.cleandoc(lesson.__doc__ or "a lesson without a docstring").split("\n\n")[0]


def about(docstring: str | None, name: str) -> str:
    """The line of a docstring that describes an argument."""
    found = re.search(rf"^ *{name}: +(.+(?:\n {{8,}}\S.*)*)", docstring or "", re.MULTILINE)
    return " ".join(found.group(1).split()).replace("%", "%%") if found else ""


def add(parser: argparse.ArgumentParser, parameter: inspect.Parameter, text: str, positional: bool) -> None:
    """An argument of a lesson as an argument of the command line: its type from its annotation, its default in its
    help."""
    name, kinds, default = parameter.name, _kinds(parameter), parameter.default
    optional, how = default is not parameter.empty, {"default": argparse.SUPPRESS, "help": text}
    if isinstance(default, list | tuple):
        default = " ".join(map(str, default))
    if isinstance(default, int | float | str) and not isinstance(default, bool) and default not in ("", 0):
        how["help"] += f" (default {default})"
    if kinds == {bool}:
        how["action"] = "store_true"
    else:
        number = next((kind for kind in (int, float) if kind in kinds and str not in kinds), None)
        how |= {"type": number} if number else {}
        several = bool(kinds & {list, tuple, torch.Tensor})
        how |= {"nargs": "+"} if several else {"nargs": "?", "const": BARE[name]} if name in BARE else {}
    if positional:
        nargs = ("*" if optional else "+") if how.get("nargs") == "+" else ("?" if optional else None)
        parser.add_argument(name, **how | {"nargs": nargs})
        return
    flags = [*FLAGS.get(name, []), f"--{name.replace('_', '-')}"] if name != "n" else ["-n"]
    flags += IN_EMBED.get(name, []) if parser.prog.endswith(" embed") else []
    parser.add_argument(*flags, dest=name, **how)


def _kinds(parameter: inspect.Parameter) -> set:
    """The types of a value, without an annotation that of the default."""
    if parameter.annotation is parameter.empty:
        return {str if parameter.default in (None, parameter.empty) else type(parameter.default)}
    return _types(parameter.annotation)


def _types(annotation) -> set:
    """int | None -> {int}, Words -> {str, int, list, Tensor}, list[float] -> {list, float}."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _types(parts[0])
    if isinstance(annotation, types.UnionType) or origin is typing.Union:
        return set().union(*map(_types, parts)) - {types.NoneType}
    if origin is Callable:
        return set()  # for callers in Python
    return {annotation} if origin is None else {list}.union(*map(_types, parts))


def add_lesson(commands, name: str, lesson: Callable) -> None:
    """The command line of a lesson, with its example."""
    example = re.search(r"Example: (.+)", lesson.__doc__ or "")
    epilog = f"Example: python sample.py {example.group(1)}" if example else None
    sub, own = commands.add_parser(name, description=summary(lesson), epilog=epilog), takes_of(lesson)
    for parameter, text in parameters(lesson):
        add(sub, parameter, text, parameter.name in own and parameter.kind is parameter.POSITIONAL_OR_KEYWORD)
    if name not in ("score", "embed"):
        out = Path("out", f"{name}.png")
        sub.add_argument("--out", type=Path, default=out, help=f"a .png, .safetensors or .npz (default {out})")
        sub.add_argument("--device", help="cpu, cuda, mps; default: the best there is")


def arguments(argv: list[str]) -> dict:
    """The command line as a dict of what was asked for. Raises ValueError."""
    if not argv or argv[0].startswith("-") and argv[0] not in ("-h", "--help"):
        argv = ["digits", *argv]
    if argv[0] not in NAMED and not argv[0].startswith("-"):
        raise ValueError(f"a lesson is one of {', '.join(NAMED)}, got {argv[0]!r}")
    summaries = [f"{name:<10} {summary(lesson).splitlines()[0]}" for name, lesson in NAMED.items()]
    parser = Parser(
        prog="sample.py",
        description=__doc__.replace("LESSONS\n", "\n".join(summaries) + "\n\n"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="lesson", metavar="LESSON")
    if argv[0] in NAMED:
        add_lesson(commands, argv[0], NAMED[argv[0]])
    asked = vars(parser.parse_args(argv))
    check_out(asked)
    return asked


def check_out(asked: dict) -> None:
    """Raises ValueError where the result could not be written: asked before the work."""
    out, suffixes = asked.get("out"), (".png", *ARRAYS)
    if asked["lesson"] == "embed":
        out, suffixes = bank_of(asked), (".safetensors",)
    if out is None:
        return
    if out.suffix not in suffixes:
        raise ValueError(f"the file to write must have a name that ends in {' or '.join(suffixes)}, got {out}")
    if out.suffix == ".png" and asked.get("n", 0) > 10_000:
        raise ValueError(
            f"a picture holds at most 10000 images, got -n {asked['n']}: write arrays with --out NAME.safetensors"
        )
    if asked.get("picture") and out.resolve() == Path(asked["picture"]).resolve():
        raise ValueError(f"--out {out} would take the place of your picture: give another name")
    for path in (out, *([out.with_suffix(".gif")] if asked.get("gif") else [])):
        files.check_writable(path)


def bank_of(asked: dict) -> Path:
    """The file that the lesson embed writes."""
    return Path(asked.get("bank", takes_of(NAMED["embed"])["bank"].default))


def draw(lesson: Callable, asked: dict, device: torch.device) -> tuple[Result, dict]:
    """What the lesson made of what was asked for, and how it was settled."""
    takes = takes_of(lesson)
    values = {name: value for name, value in asked.items() if name in takes}
    if "walk" in takes:
        names = [field.name for field in fields(Walk) if field.name not in takes]
        values["walk"] = Walk(**{name: asked[name] for name in names if name in asked})
    settled = {p.name: p.default for p, _ in parameters(lesson) if p.default is not p.empty} | asked
    if "model" in takes:
        words = [word for name in WORDS if name in asked for word in texts(asked[name])] or None
        name = asked.get("model") or takes["model"].default
        name = name or default_model(asked["lesson"], words, asked.get("picture"))
        options = {option: asked[option] for option in OF_PROMPTS if option in asked}
        if name is None and options:
            option, value = next(iter(options.items()))
            raise ValueError(
                f"{option} is for a model, got {value}, but {asked['lesson']} of test digits uses none: leave it out"
            )
        if name is not None:
            values["model"] = load(name, device, **options, say=print if is_first() else None)
            settled |= {"model": str(name), "dtype": str(values["model"].dtype).removeprefix("torch.")}
    result = lesson(**values)
    return result, settled | (result.walk.settings() if result.walk else {}) | result.settled


def save(result: Result, asked: dict, settings: dict) -> list[Path]:
    """Write what was made; the paths."""
    if result.bank is not None:
        prompts.save_bank(result.bank, bank_of(asked))
        return [bank_of(asked)]
    if result.images is None:
        return []
    written = [asked["out"]]
    with files.rescued(result.stored(), written[0], settings):
        if written[0].suffix == ".png":
            images.save_png(result.picture(), written[0], settings)
        else:
            files.save_arrays(result.stored(), written[0], settings)
        if asked.get("gif"):
            written.append(written[0].with_suffix(".gif"))
            images.save_gif(result.animation(), written[-1])
    return written


@torch.no_grad()
def command(argv: list[str]) -> None:
    """The lesson asked for, from the command line to the file."""
    started = time.monotonic()
    asked = arguments(argv)
    device = choose_device(asked.pop("device", None))
    start_processes(device)
    result, settings = draw(NAMED[asked["lesson"]], asked, device)
    if not is_first():
        return
    settings |= {"device": str(device), "prompts": list(result.prompts)}
    simple = str | int | float | list | tuple | None
    settings = {name: value if isinstance(value, simple) else str(value) for name, value in settings.items()}
    written = save(result, asked, settings)
    print(result.summary)
    if written:
        how = [str(settings[name]) for name in ("model",) if name in settings]
        how += [f"seed {settings['seed']}"] if "seed" in settings else []
        how += [str(device), f"{time.monotonic() - started:.1f} s"]
        print(f"{', '.join(how)} -> {' and '.join(map(str, written))}")
    if not argv:
        print("next: python sample.py digits --digit 3 --gif, python sample.py guidance, python sample.py denoise")


def main(argv: list[str]) -> int:
    """The exit code: 0, 2 after an error in one sentence, 130 after Ctrl-C."""
    return run("sample.py", command, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
