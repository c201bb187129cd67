"""What can be asked of sample.py: its flags, their ranges, and which lesson takes which. No lesson is here; they are in sample.py."""

import argparse
import math
import re
from pathlib import Path

from minidiff.command import Parser
from minidiff.files import check_writable
from minidiff.illusions import views
from minidiff.machine import choose_device

ARRAYS = (".safetensors", ".npz")
BANK = Path("out/prompts.safetensors")
SAMPLERS = {"dpm": 20, "ddim": 50, "ddpm": None, "ddpm-large": None}  # default steps for digits; None: every level, the full walk
DTYPES = ("float32", "bfloat16", "float16")
STAGE_I, STAGE_II = "DeepFloyd/IF-I-M-v1.0", "DeepFloyd/IF-II-M-v1.0"

FLAGS = {
    "-n": {"type": int, "help": "how many images"},
    "--digit": {"type": int, "nargs": "+", "help": "which digits; of a picture of yours, what it is to be (default: no label)"},
    "--prompt": {"nargs": "+", "help": 'what it is to be, for a text model (default "a high quality photo")'},
    "--model": {"help": f"mnist-class, mnist-time, mnist-denoiser, a file of train.py's; where prompts are taken a folder or a name on the hub, like {STAGE_I}"},
    "--sampler": {"help": "dpm (DPM-Solver++ 2M), ddim, ddpm (variance β̃, or learned), ddpm-large (β); default dpm, of inpaint, and of edit with a text model, ddpm"},
    "--steps": {"help": "steps of the walk: dpm 20, ddim 50, ddpm all levels; edit 33, inpaint 50, anagram and hybrid of digits 10. A text model also takes smart27, smart50, fast27, 10,10,3,2,2 ..."},
    "--eta": {"type": float, "default": 0.0, "help": "DDIM's noise, 0 ... 1"},
    "--scale": {"type": float, "nargs": "+", "help": "guidance γ: 0 no label or prompt, 1 just that, more exaggerates; default by the model (mnist-class 1.5, mnist-time 2), anagram of digits 3, hybrid 4; mnist-time is guided away from mnist-class without its label"},
    "--rounds": {"type": int, "help": "how often each step is taken: 1 is plain (default of a text model), more heal the seam (RePaint; default for digits 4)"},
    "--mask": {"help": "what to repaint: x0,y0,x1,y1 in pixels of the network, or a picture, white there; default the lower half"},
    "--view": {"nargs": "+", "default": ["rot180"], "help": f"one for each word but the first: {', '.join(views())}"},
    "--weights": {"type": float, "nargs": "+", "help": "one for each word, more for one that is lost; default equal"},
    "--sigma": {"type": float, "help": "of the low pass, in pixels: more favours what is near; default 1.5 for digits, else 2 for 64 pixels"},
    "picture": {"nargs": "?", "help": "any PNG, JPEG or WebP: its centre; for digits inverted where its border is bright. Default: one of ours"},
    "words": {"nargs": "+", "help": "digits, or with a text model prompts: the first is seen upright"},
    "near": {"help": "the digit or prompt to be seen near by"},
    "far": {"help": "the digit or prompt to be seen from afar"},
    "--best-of": {"type": int, "help": "draw so many times as many, and keep those that the classifier reads best, the best first (so image k depends on -n); default for digits 6, of hybrid 12"},
    "arrays": {"type": Path, "help": "a .safetensors or .npz of another lesson, or a .npz of yours: images (N, 1, 28, 28) in [0, 1], labels"},
    "prompts": {"nargs": "*", "help": "what to encode"},
    "--import": {"type": Path, "dest": "course", "help": "also take the course's .pth file of embeddings into the bank"},
    "--level": {"type": int, "help": "the noise level to start from"},
    "--threshold": {"type": float, "nargs": "?", "const": 0.2, "help": "make pixels below this black (0.2)"},
    "--batch": {"type": int, "help": "images at a time; default 100 digits, 4 pictures, 1 large one"},
    "--dtype": {"help": "of a text model's weights: float32, bfloat16 or float16; default float32, on CUDA float16"},
    "--sequential": {"action": "store_true", "help": "a forward pass for each term of a formula: less memory"},
    "--bank": {"type": Path, "help": f"the prompt bank: looked into before T5 is asked, and added to; default {BANK}"},
    "--encoder": {"help": "the model whose tokenizer/ and text_encoder/ encode the prompts, if not --model"},
    "--upscale": {"nargs": "?", "const": STAGE_II, "help": f"then enlarge four times, with stage II of that folder or name ({STAGE_II})"},
    "--upscale-steps": {"help": "steps of that; default dpm 20, ddpm smart50"},
    "--noise-level": {"type": int, "help": "of the small picture in stage II, 0 ... 999: more invents more (250)"},
    "--gif": {"action": "store_true", "help": "also the walk, or the view, as an animation beside --out"},
    "--seed": {"type": int, "default": 137, "help": "of the noise"},
    "--device": {"help": "cpu, cuda, mps; default: the best there is"},
    "--out": {"type": Path, "help": "a .png, .safetensors or .npz; default out/LESSON.png"},
}
AT_LEAST_1 = (1, math.inf)
RANGES = {"n": (1, 10**7), "digit": (0, 9), "eta": (0, 1), "batch": AT_LEAST_1, "best_of": (1, 1000), "scale": (0, 100), "sigma": (1e-3, 1000), "rounds": (1, 1000), "seed": (0, math.inf), "threshold": (0, 1), "noise_level": (0, 999)}
WALK = ["--sampler", "--steps", "--eta", "--scale", "--batch"]
TEXT = ["--dtype", "--sequential", "--bank", "--encoder", "--noise-level"]
ENLARGE = ["--upscale", "--upscale-steps"]
EDIT = ["picture", "-n", "--digit", "--prompt", "--model", *WALK, *TEXT, *ENLARGE]
TAKES = {  # the flags of each lesson, besides --seed, --device and --out; and its defaults
    "digits": (["-n", "--digit", "--model", *WALK, "--threshold", "--gif"], {"n": 40, "model": "mnist-class"}),
    "text": (["words", "-n", "--model", *WALK, *TEXT, *ENLARGE, "--gif"], {"n": 4, "model": STAGE_I}),
    "guidance": (["--digit", "--model", "--sampler", "--steps", "--eta", "--scale"], {"model": "mnist-class", "n": 10}),
    "denoise": (["-n", "--digit", "--model", "--sampler", "--steps", "--eta", "--scale", "--level", "--gif"], {"n": 5, "model": "mnist-time"}),
    "edit": (EDIT, {"n": 4, "model": "mnist-class"}),
    "inpaint": ([*EDIT, "--mask", "--rounds"], {"n": 9, "model": "mnist-class"}),
    "anagram": (["words", "--view", "--weights", "--best-of", "-n", "--model", *WALK, *TEXT, *ENLARGE, "--gif"], {"n": 10, "model": "mnist-class"}),
    "hybrid": (["near", "far", "--sigma", "--best-of", "-n", "--model", *WALK, *TEXT, *ENLARGE], {"n": 10, "model": "mnist-class"}),
    "upscale": (["picture", "-n", "--prompt", "--model", *WALK, *TEXT], {"n": 1, "model": STAGE_II}),
    "embed": (["prompts", "--import", "--model", "--dtype"], {"model": STAGE_I, "out": BANK, "n": 0}),
    "score": (["arrays"], {"n": 0, "out": None}),
    "noise": (["-n", "--digit"], {"n": 10}),
    "blur": (["-n", "--digit"], {"n": 10}),
    "onestep": (["-n", "--digit", "--model", "--batch"], {"n": 10, "model": "mnist-denoiser"}),
    "ood": (["-n", "--digit", "--model"], {"n": 10, "model": "mnist-denoiser"}),
}


def arguments(argv: list[str], description: str) -> argparse.Namespace:
    """The command line, checked as far as no model is needed. Raises ValueError."""
    parser = Parser(prog="sample.py", description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    lessons = parser.add_subparsers(dest="lesson", metavar="LESSON")
    about = dict(re.findall(r"^(\w+) {2,}(.+)$", description, re.MULTILINE))
    for lesson, (flags, defaults) in TAKES.items():
        settled = ", ".join(f"{name} {value}" for name, value in ((flag, defaults.get(flag.strip("-"))) for flag in flags) if value)
        sub = lessons.add_parser(lesson, description=about[lesson], epilog=settled and f"By default: {settled}.")
        for flag in [*flags, *([] if lesson == "score" else ["--seed", "--device", "--out"])]:
            sub.add_argument(flag, **FLAGS[flag])
        sub.set_defaults(**{"gif": False, "upscale": None, "sequential": False} | defaults)
    if not argv or argv[0].startswith("-") and argv[0] not in ("-h", "--help"):
        argv = ["digits", *argv]
    if argv[0] not in TAKES and not argv[0].startswith("-"):
        raise ValueError(f"a lesson is one of {', '.join(TAKES)}, got {argv[0]!r}")
    args = parser.parse_args(argv)
    check(args)
    args.device = choose_device(getattr(args, "device", None))
    if args.lesson == "score":
        return args  # it writes nothing
    args.out = args.out or Path("out") / f"{args.lesson}.png"
    if args.out.suffix not in (".png", *ARRAYS) or (args.lesson == "embed" and args.out.suffix != ".safetensors"):
        raise ValueError(f"--out wants a name that ends in {'.safetensors' if args.lesson == 'embed' else '.png, .safetensors or .npz'}, got {args.out}")
    if args.out.suffix == ".png" and args.n > 10_000:
        raise ValueError(f"a picture holds at most 10000 images, got -n {args.n}: write arrays with --out NAME.safetensors")
    if getattr(args, "picture", None) and args.out.resolve() == Path(args.picture).resolve():
        raise ValueError(f"--out {args.out} would take the place of your picture: give another name")
    for path in (args.out, *([args.out.with_suffix(".gif")] if args.gif else [])):
        check_writable(path)
    return args


def check(args: argparse.Namespace) -> None:
    """Raises ValueError for a number out of its range."""
    values = {name: value if isinstance(value, list) else [value] for name, value in vars(args).items() if value is not None}
    if values.get("bank", [BANK])[0].suffix != ".safetensors":
        raise ValueError(f"--bank wants a name that ends in .safetensors, got {args.bank}")
    for name in ("scale", "weights", "sigma"):
        if not all(math.isfinite(value) for value in values.get(name, [])):
            raise ValueError(f"--{name} wants finite numbers, got {values[name]}")
    for name, (low, high) in RANGES.items():
        for value in values.get(name, []):
            if not low <= value <= high and not (name == "n" and args.lesson in ("embed", "score")):
                flag = f"-{name}" if len(name) == 1 else f"--{name.replace('_', '-')}"
                raise ValueError(f"{flag} wants {f'{low} to {high}' if high < math.inf else f'at least {low}'}, got {value}")
    if "weights" in values and not (min(args.weights) >= 0 and sum(args.weights) > 0):
        raise ValueError(f"--weights wants numbers of at least 0, not all of them 0, got {args.weights}")
    if len(values.get("scale", [])) > 1 and args.lesson != "guidance":
        raise ValueError(f"--scale wants one number in {args.lesson}, got {args.scale}: the lesson guidance takes several")
    for name, known in (("sampler", SAMPLERS), ("dtype", DTYPES)):
        if name in values and getattr(args, name) not in known:
            raise ValueError(f"--{name} wants one of {', '.join(known)}, got {getattr(args, name)!r}")
    if getattr(args, "eta", 0) and args.sampler != "ddim":
        raise ValueError(f"--eta is DDIM's, got {args.eta} with --sampler {args.sampler or 'dpm'}: add --sampler ddim")
