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

NAMED = {lesson.__name__: lesson for lesson in LESSONS}
ARRAYS = (".safetensors", ".npz")
STAGE_II = "DeepFloyd/IF-II-M-v1.0"
FLAGS = {"n": ["-n"], "words": ["--digit", "--prompt"], "course": ["--import"]}  # other names than --the-argument
BARE = {"threshold": 0.2, "upscale": STAGE_II}  # what a flag without a value means
OF_PROMPTS = ("dtype", "bank", "encoder", "noise_level", "upscale", "upscale_steps")  # arguments of `load`


def parameters(lesson) -> list[tuple[inspect.Parameter, str]]:
    """All that can be asked of a lesson, with what its docstring, Walk's or load's says of it: its own arguments come
    first."""
    own = [p for p in inspect.signature(lesson).parameters.values() if p.name != "walk"]
    taken, found = {p.name for p in own}, [(p, about(lesson.__doc__, p.name)) for p in own]
    if "walk" in inspect.signature(lesson).parameters:
        found += [
            (p, about(Walk.__doc__, p.name)) for p in inspect.signature(Walk).parameters.values() if p.name not in taken
        ]
    if "model" in taken:
        digits = typing.get_origin(inspect.signature(lesson).parameters["model"].annotation) is typing.Annotated
        options = [p for p in inspect.signature(load).parameters.values() if p.name in OF_PROMPTS and not digits]
        found += [(p, about(load.__doc__, p.name)) for p in options]
        found = [(p, about(load.__doc__, "name") if p.name == "model" else text) for p, text in found]
    return found


def about(docstring: str, name: str) -> str:
    """The line of a docstring that describes an argument."""
    found = re.search(rf"\b{name}: +(.+(?:\n {{8,}}\S.*)*)", docstring)
    return " ".join(found.group(1).split()).replace("%", "%%") if found else ""


def add(parser: argparse.ArgumentParser, parameter: inspect.Parameter, text: str) -> None:
    """An argument of a lesson as an argument of the command line: its type from its annotation, its default in its
    help."""
    name, kinds = parameter.name, _kinds(parameter.annotation)
    optional = parameter.default is not inspect.Parameter.empty
    how = {"default": argparse.SUPPRESS, "help": text}
    if (
        optional
        and parameter.default not in (None, False, ())
        and isinstance(parameter.default, int | float | str | list | tuple)
    ):
        default = (
            parameter.default
            if isinstance(parameter.default, int | float | str)
            else " ".join(map(str, parameter.default))
        )
        how["help"] += f" (default {default})"
    if kinds == {bool}:
        how["action"] = "store_true"
    else:
        number = next((kind for kind in (int, float) if kind in kinds and str not in kinds), None)
        how |= {"type": number} if number else {}
        several = bool(kinds & {list, tuple, torch.Tensor}) or typing.get_origin(parameter.annotation) is list
        how |= {"nargs": "+"} if several else {"nargs": "?", "const": BARE[name]} if name in BARE else {}
    if (
        parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        and not isinstance(parameter.default, bool)
        and name in POSITIONAL
    ):
        nargs = ("*" if optional else "+") if how.get("nargs") == "+" else ("?" if optional else None)
        parser.add_argument(name, **how | {"nargs": nargs})
        return
    flags = [*FLAGS.get(name, []), f"--{name.replace('_', '-')}"] if name != "n" else ["-n"]
    parser.add_argument(*flags, dest=name, **how)


POSITIONAL = {
    p.name
    for lesson in LESSONS
    for p in inspect.signature(lesson).parameters.values()
    if p.kind is p.POSITIONAL_OR_KEYWORD
}


def _kinds(annotation) -> set:
    """int | None -> {int}, Words -> {str, int, list, Tensor}, list[float] -> {list, float}."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _kinds(typing.get_args(annotation)[0])
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return set().union(*(_kinds(each) for each in typing.get_args(annotation))) - {types.NoneType}
    if typing.get_origin(annotation) is Callable:
        return set()  # for callers in Python
    if typing.get_origin(annotation) is not None:
        return {list}.union(*(_kinds(each) for each in typing.get_args(annotation)))
    return {annotation}


def arguments(argv: list[str]) -> dict:
    """The command line as a dict of what was asked for. Raises ValueError."""
    summaries = [f"{name:<10} {lesson.__doc__.splitlines()[0]}" for name, lesson in NAMED.items()]
    parser = Parser(
        prog="sample.py",
        description=__doc__.replace("LESSONS\n", "\n".join(summaries) + "\n\n"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="lesson", metavar="LESSON")
    for name, lesson in NAMED.items():
        example = re.search(r"Example: (.+)", lesson.__doc__)
        epilog = f"Example: python sample.py {example.group(1)}" if example else None
        sub = commands.add_parser(name, description=lesson.__doc__.split("\n\n    ")[0], epilog=epilog)
        for parameter, text in parameters(lesson):
            add(sub, parameter, text)
        if name not in ("score", "embed"):
            sub.add_argument("--out", type=Path, default=Path(f"out/{name}.png"), help="a .png, .safetensors or .npz")
        if name not in ("score", "embed"):
            sub.add_argument("--device", help="cpu, cuda, mps; default: the best there is")
    if not argv or argv[0].startswith("-") and argv[0] not in ("-h", "--help"):
        argv = ["digits", *argv]
    if argv[0] not in NAMED and not argv[0].startswith("-"):
        raise ValueError(f"a lesson is one of {', '.join(NAMED)}, got {argv[0]!r}")
    asked = vars(parser.parse_args(argv))
    check_out(asked)
    return asked


def check_out(asked: dict) -> None:
    """Raises ValueError where the result could not be written: asked before the work."""
    out = asked.get("out") or asked.get("bank")
    if asked["lesson"] == "embed":
        out = Path(asked.get("bank", "out/prompts.safetensors"))
    if "out" not in asked and asked["lesson"] != "embed":
        return
    suffixes = (".safetensors",) if asked["lesson"] == "embed" else (".png", *ARRAYS)
    if out.suffix not in suffixes:
        raise ValueError(f"--out must be a name that ends in {' or '.join(suffixes)}, got {out}")
    if out.suffix == ".png" and asked.get("n", 0) > 10_000:
        raise ValueError(
            f"a picture holds at most 10000 images, got -n {asked['n']}: write arrays with --out NAME.safetensors"
        )
    if asked.get("picture") and out.resolve() == Path(asked["picture"]).resolve():
        raise ValueError(f"--out {out} would take the place of your picture: give another name")
    for path in (out, *([out.with_suffix(".gif")] if asked.get("gif") else [])):
        files.check_writable(path)


def draw(lesson, asked: dict, device: torch.device) -> Result:
    """Run the lesson with what was asked for."""
    takes = inspect.signature(lesson).parameters
    values = {name: value for name, value in asked.items() if name in takes}
    if "walk" in takes:
        walk = {
            field.name: asked[field.name] for field in fields(Walk) if field.name in asked and field.name not in takes
        }
        values["walk"] = Walk(**walk)
    if "model" in takes:
        words = asked.get("words", asked.get("near", asked.get("grey")))
        name = asked.get("model") or takes["model"].default or default_model(asked["lesson"], words, asked.get("picture"))
        options = {option: asked[option] for option in OF_PROMPTS if option in asked}
        if name is not None:
            values["model"] = load(name, device, **options, say=print if is_first() else None)
    return lesson(**values)


def save(result: Result, asked: dict, settings: dict) -> list[Path]:
    """Write what was made; the paths."""
    if result.bank is not None:
        path = Path(asked.get("bank", "out/prompts.safetensors"))
        prompts.save_bank(result.bank, path)
        return [path]
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
    result = draw(NAMED[asked["lesson"]], asked, device)
    if not is_first():
        return
    walked = result.walk.settings() if result.walk else {}
    defaults = {p.name: p.default for p, _ in parameters(NAMED[asked["lesson"]]) if p.default is not p.empty}
    settings = defaults | asked | walked | result.settled | {"device": str(device), "prompts": list(result.prompts)}
    plain = {
        k: v if isinstance(v, str | int | float | list | tuple | None) else str(v)
        for k, v in settings.items()
        if k != "walk"
    }
    written = save(result, asked, plain)
    print(result.summary)
    if written:
        seed = walked.get("seed", asked.get("seed", 137))
        model = f"{plain['model']}, " if plain.get("model") else ""
        took = time.monotonic() - started
        print(f"{model}seed {seed}, {device}, {took:.1f} s -> {' and '.join(map(str, written))}")
    if not argv:
        print("next: python sample.py digits --digit 3 --gif, python sample.py guidance, python sample.py denoise")


def main(argv: list[str]) -> int:
    """The exit code: 0, 2 after an error in one sentence, 130 after Ctrl-C."""
    return run("sample.py", command, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
