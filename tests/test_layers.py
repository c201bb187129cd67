"""The floors of the house: imports point down, and the library is light to import and knows no device."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "minidiff"
MAY_IMPORT = {
    "drawing": {"adapters", "deepfloyd", "denoiser", "diffusion", "files", "guidance", "hub", "machine", "networks.if_unet", "one_forward", "pretrained", "prompts", "sampling"},
    "sheets": {"drawing", "images", "mnist", "pictures", "sampling", "workbench"},
    "workbench": {"denoiser", "drawing", "deepfloyd", "editing", "flags", "hub", "illusions", "images", "machine", "pictures", "pretrained", "reader", "sampling", "schedule", "scores"},
    "command": set(),
    "flags": {"command", "files", "illusions", "machine"},
    "__init__": {"schedule", "diffusion", "denoiser", "sampling", "networks.mnist_unet", "training", "guidance", "adapters", "pretrained"},
    "schedule": set(),
    "diffusion": set(),
    "denoiser": set(),
    "files": set(),
    "machine": set(),
    "mnist": set(),
    "networks.__init__": set(),
    "networks.mnist_unet": {"networks.gelu"},
    "networks.mnist_classifier": {"networks.mnist_unet"},
    "networks.gelu": set(),
    "networks.if_unet": {"networks.gelu"},
    "networks.t5": set(),
    "networks.tokenizer": {"files"},
    "download": set(),
    "hub": {"download", "files"},
    "prompts": {"files", "hub", "networks.t5", "networks.tokenizer"},
    "deepfloyd": {"diffusion", "hub", "networks.if_unet", "schedule"},
    "images": {"files"},
    "sampling": {"denoiser", "diffusion", "schedule"},
    "training": {"diffusion"},
    "guidance": {"denoiser"},
    "illusions": {"denoiser"},
    "editing": {"denoiser", "diffusion", "sampling", "schedule"},
    "one_forward": {"denoiser"},
    "pictures": {"files"},
    "captions": set(),
    "picturebook": {"captions"},
    "scores": set(),
    "adapters": {"denoiser", "diffusion"},
    "pretrained": {"adapters", "denoiser", "diffusion", "files", "guidance", "networks.mnist_classifier", "networks.mnist_unet", "sampling", "schedule"},
    "run": {"files", "images", "muon", "training"},
    "muon": set(),
    "digit_tasks": {"digits", "files", "images", "judge", "mnist", "run", "sampling", "training", "walk"},
    "text_model": {"files", "hub", "networks.if_unet", "networks.t5", "networks.tokenizer"},
    "text_tasks": {
        "adapters", "deepfloyd", "denoiser", "diffusion", "guidance", "hub", "images", "networks.if_unet", "networks.t5",
        "networks.tokenizer", "picturebook", "run", "sampling", "schedule", "text_model", "training",
    },  # fmt: skip
    "picturebook": {"files"},
    "reader": {"mnist", "networks.mnist_classifier", "pretrained", "scores"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def chapter(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield from ([node.module] if node.module not in ("minidiff", "minidiff.networks") else [f"{node.module}.{a.name}" for a in node.names])
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names)


@pytest.mark.parametrize("path", FILES, ids=chapter)
def test_imports_point_down(path):
    inside = {name.removeprefix("minidiff.") for name in imports(path) if name.startswith("minidiff")}
    assert inside <= MAY_IMPORT[chapter(path)], "an arrow up or sideways: move the code, or the floor"


def test_the_floors_have_no_cycle():
    done = set()
    while len(done) < len(MAY_IMPORT):
        ready = {name for name, below in MAY_IMPORT.items() if name not in done and below <= done}
        assert ready, f"a cycle among {set(MAY_IMPORT) - done}"
        done |= ready


@pytest.mark.parametrize("path", FILES, ids=chapter)
def test_the_library_names_no_device_and_runs_no_pickle(path):
    assert not re.search(r"""["']cuda["':]|\.cuda\(|torch\.load\((?!.*weights_only=True)|pickle\.load""", path.read_text())


@pytest.mark.parametrize("path", [*FILES, PACKAGE.parent / "train.py", PACKAGE.parent / "sample.py"], ids=lambda p: p.name)
def test_no_library_does_the_work_for_us(path):
    assert not {name.split(".")[0] for name in imports(path)} & {"diffusers", "transformers", "accelerate", "einops"}


def test_importing_the_library_brings_in_neither_torchvision_nor_pillow():
    code = "import sys, minidiff; print(sorted({'torchvision', 'PIL', 'sentencepiece', 'huggingface_hub'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent).stdout.strip() == "[]"
