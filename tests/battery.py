"""Commands whose arrays were written down before the code above the chapters was rebuilt: they stay equal bit for bit.

    python tests/battery.py --write        only where a bit has to change, and the commit says which and why

Of each array: its shape, the sha256 of its bytes and some of its values. The bytes depend on the processor's kernels:
on another kind of machine the values are compared, to 1e-3.
"""

import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
FILE = HERE / "golden" / "battery.json"
ONE, TWO = (str(HERE / "golden" / f"tiny-if-{stage}") for stage in ("I", "II"))
PICTURES = HERE.parent / "data" / "pictures"
TOWER, HOUSE = str(PICTURES / "tower.png"), str(PICTURES / "drawing-house.png")
TEXT, UP = f"--model {ONE}", f"--upscale {TWO} --upscale-steps 2"

COMMANDS = {
    "digits": "digits -n 12 --steps 5",
    "digits of one kind, ddim": "digits -n 3 --digit 3 --scale 3 --sampler ddim --eta 0.5 --steps 4 --seed 5",
    "digits by turns, ddpm": "digits -n 4 --digit 3 8 --sampler ddpm --steps 4 --batch 3",
    "digits, large variance": "digits -n 2 --sampler ddpm-large --steps 3 --threshold",
    "digits of time": "digits -n 3 --model mnist-time --steps 3",
    "digits of time alone": "digits -n 3 --model mnist-time --steps 3 --scale 1",
    "guidance": "guidance --digit 3 5 --steps 3",
    "denoise": "denoise -n 2 --steps 4",
    "denoise of class": "denoise -n 2 --steps 4 --model mnist-class --level 100 --digit 3",
    "edit": "edit -n 2 --digit 3 8 --steps 6",
    "edit of a house": f"edit {HOUSE} -n 1 --steps 4 --digit 4",
    "edit of test digits": "edit -n 1 --model mnist-time --steps 3 --sampler ddpm",
    "inpaint": "inpaint -n 2 --steps 3",
    "inpaint a box": "inpaint -n 2 --mask 8,8,20,20 --rounds 1 --steps 3 --digit 4",
    "inpaint a picture": f"inpaint {HOUSE} -n 1 --digit 7 --steps 3 --rounds 2",
    "anagram": "anagram 4 7 -n 2 --best-of 2 --steps 2",
    "anagram best": "anagram 6 9 -n 1 --steps 2",
    "anagram of three": "anagram 4 7 1 --view rot180 transpose --weights 2 2 1 -n 2 --best-of 1 --steps 2",
    "anagram negated": "anagram 3 5 --view negate -n 1 --best-of 1 --steps 2",
    "anagram of pixels": "anagram 3 5 --view pixels -n 1 --best-of 1 --steps 2 --seed 9",
    "anagram of time": "anagram 3 5 --view vflip -n 1 --best-of 1 --steps 2 --scale 2",
    "hybrid": "hybrid 3 8 -n 2 --best-of 2 --steps 2",
    "hybrid sigma": "hybrid 7 2 -n 1 --best-of 1 --sigma 2 --steps 3 --sampler ddim",
    "noise": "noise -n 3",
    "blur": "blur -n 3 --digit 5",
    "onestep": "onestep -n 3",
    "ood": "ood -n 2",
    "text": f"text fox skull {TEXT} -n 3 --steps 2",
    "text ddpm": f"text fox {TEXT} -n 1 --steps 3 --sampler ddpm --scale 3",
    "text plain": f"text fox {TEXT} -n 1 --steps 2 --scale 1 --sequential",
    "text in bfloat16": f"text fox {TEXT} -n 1 --steps 2 --dtype bfloat16",
    "text large": f"text fox {TEXT} -n 2 --steps 2 {UP}",
    "text edit": f"edit {TOWER} {TEXT} --prompt ship -n 1 --steps 4 --sampler dpm",
    "text edit large": f"edit {TOWER} {TEXT} --prompt fox skull -n 2 --steps 2 --sampler dpm {UP}",
    "text inpaint": f"inpaint {TOWER} {TEXT} -n 1 --mask 4,4,12,12 --steps 3",
    "text inpaint large": f"inpaint {TEXT} -n 1 --steps 2 --rounds 2 {UP}",
    "text anagram": f"anagram man fire --view rot90 {TEXT} -n 2 --steps 2",
    "text anagram large": f"anagram man fire --view rot90 {TEXT} -n 1 --steps 2 {UP}",
    "text anagram alone": (
        f"anagram man fire --view hflip --weights 1 2 {TEXT} -n 1 --steps 2 --sequential --sampler ddpm"
    ),
    "text hybrid": f"hybrid water skull {TEXT} -n 1 --steps 2",
    "text hybrid large": f"hybrid water skull {TEXT} -n 1 --steps 2 --sigma 0.7 {UP}",
    "upscale": f"upscale {TOWER} --model {TWO} --encoder {ONE} --prompt tower --steps 2",
    "upscale noisier": f"upscale --model {TWO} --encoder {ONE} --noise-level 100 --steps 2 --sampler ddpm",
}  # fmt: skip


def machine() -> str:
    """What the bits depend on: PyTorch, and the instructions of this processor."""
    return f"{torch.__version__.split('+')[0]} {torch.backends.cpu.get_cpu_capability()}"


def arrays_of(command: str) -> dict[str, torch.Tensor]:
    """The arrays that a command of sample.py writes, computed on one thread in a folder of its own."""
    sys.path.insert(0, str(HERE.parent))
    import sample
    from minidiff.files import load_tensors

    threads, place = torch.get_num_threads(), os.getcwd()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            assert sample.main([*command.split(), "--device", "cpu", "--out", "x.safetensors"]) == 0
            return load_tensors("x.safetensors")[0]
    finally:
        os.chdir(place)
        torch.set_num_threads(threads)


def digest(x: torch.Tensor) -> dict:
    flat = x.detach().contiguous().flatten()
    some = flat[:: max(1, len(flat) // 40)].double()
    return {
        "shape": list(x.shape),
        "sha256": hashlib.sha256(flat.numpy().tobytes()).hexdigest(),
        "values": [round(float(v), 5) for v in some],
    }


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(__doc__)
    found = {name: {k: digest(v) for k, v in sorted(arrays_of(command).items())} for name, command in COMMANDS.items()}
    lines = [f"  {json.dumps(name)}: {json.dumps(arrays)}" for name, arrays in found.items()]
    FILE.write_text(
        '{"machine": ' + json.dumps(machine()) + ', "commands": {\n' + ",\n".join(lines) + "\n}}\n", encoding="utf-8"
    )
