"""The README is true: its line counts, its files, its commands and its ten lines of code."""

import hashlib
import re
import shlex
from pathlib import Path

import pytest
import torch

import sample
import train

HERE = Path(__file__).parent.parent
TEXT = (HERE / "README.md").read_text()
ROWS = re.findall(r"\[[\w./]+\]\(([\w./]+\.py)\) \| (\d+) \|", TEXT)


def test_the_reading_path_is_there():
    assert len(ROWS) >= 11


@pytest.mark.parametrize(("path", "lines"), ROWS, ids=[path for path, _ in ROWS])
def test_line_counts_are_those_of_the_files(path, lines):
    assert len((HERE / path).read_text().splitlines()) == int(lines)


def test_every_link_leads_to_a_file_and_every_chapter_is_named():
    for path in re.findall(r"\]\(([^)#:]+)\)", TEXT):
        assert (HERE / path).exists(), path
    for path in (HERE / "minidiff").glob("*.py"):
        assert path.name == "__init__.py" or f"minidiff/{path.name})" in TEXT, path.name


@pytest.mark.parametrize("line", re.findall(r"^(?:torchrun --nproc_per_node=2|python) ((?:sample|train)\.py .*?)\s*(?:#.*)?$", TEXT, re.MULTILINE))
def test_every_command_is_one_that_the_scripts_take(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script, *arguments = shlex.split(line)
    {"sample.py": sample, "train.py": train}[script].arguments(arguments)


def test_the_ten_lines_draw_two_digits():
    code = re.search(r"```python\n(.*?)```", TEXT, re.DOTALL).group(1)
    assert len([line for line in code.splitlines() if line]) <= 12
    names = {}
    exec(code.replace("evenly_spaced(300, 20)", "evenly_spaced(300, 4)"), names)  # noqa: S102, the same with fewer steps
    assert names["x_0"].shape == (2, 1, 28, 28)
    assert float(names["x_0"].abs().max()) <= 1
    assert bool(torch.isfinite(names["x_0"]).all())


@pytest.mark.parametrize("path", sorted((HERE / "weights").glob("*.safetensors")), ids=lambda p: p.name)
def test_the_weights_are_those_that_their_readme_names(path):
    assert path.stat().st_size <= 20e6
    assert hashlib.sha256(path.read_bytes()).hexdigest() in (HERE / "weights" / "README.md").read_text()
