"""`pip install .` gives a package that works from any folder: it holds the weights and the data."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PARTS = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "minidiff", "weights", "data")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with the wheel and the sdist of a copy of what belongs into them."""
    source = tmp_path_factory.mktemp("source")
    for name in PARTS:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, source / name, copy_function=os.link, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            shutil.copy(ROOT / name, source)
    code = "from setuptools import build_meta as b; b.build_wheel('dist'); b.build_sdist('dist')"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
    return source / "dist"


def test_the_wheel_draws_two_digits_from_another_folder(built, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    python = tmp_path / "env" / ("Scripts" if os.name == "nt" else "bin") / "python"
    (wheel,) = built.glob("*.whl")
    install = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel]
    subprocess.run(install, check=True, capture_output=True)
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = subprocess.run([python, "-c", where], check=True, capture_output=True, text=True).stdout.strip()
    Path(site, "running.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    code = (
        "import minidiff; from minidiff import mnist; x = minidiff.load('mnist-class').sample([4, 2], steps=2);"
        "print(minidiff.__file__, tuple(x.shape), tuple(mnist.load(train=False)[0].shape))"
    )
    said = subprocess.run([python, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert said.split(" ", 1) == [str(Path(site, "minidiff", "__init__.py")), "(2, 1, 28, 28) (10000, 1, 28, 28)\n"]


def test_the_sdist_holds_package_weights_and_data(built):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    for name in (
        "minidiff/lessons/illusions.py",
        "weights/mnist-class.safetensors",
        "data/MNIST/raw/train-images-idx3-ubyte.gz",
    ):
        assert name in names


def test_every_package_is_listed():
    listed = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    for path in (ROOT / "minidiff").rglob("__init__.py"):
        assert "\n    " + ".".join(path.parent.relative_to(ROOT).parts) + "\n" in listed


def test_the_shipped_files_are_small_and_nothing_is_there_twice():
    sizes = {
        name: sum(p.stat().st_size for p in (ROOT / name).rglob("*") if p.is_file()) for name in ("weights", "data")
    }
    assert sizes["weights"] <= 60e6
    assert sizes["data"] <= 30e6
