"""The README is true: its line counts, its files, its commands and its snippets.

python tests/test_readme.py --write        writes the line counts
"""

import hashlib
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent.parent
TEXT = (HERE / "README.md").read_text(encoding="utf-8")
ROW = re.compile(r"(\[[\w./]+\]\(([\w./]+\.py)\) \| )(\d+)( \|)")
COMMAND = re.compile(r"^(?:torchrun --nproc_per_node=2|python) ((?:sample|train)\.py .*?)\s*(?:#.*)?$", re.MULTILINE)
SNIPPETS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def counted(path):
    return len((HERE / path).read_text(encoding="utf-8").splitlines())


def test_the_reading_path_is_there():
    assert len(ROW.findall(TEXT)) >= 11


def test_line_counts_are_those_of_the_files():
    wrong = [f"{path}: {counted(path)}" for _, path, lines, _ in ROW.findall(TEXT) if counted(path) != int(lines)]
    assert not wrong, f"{', '.join(wrong)}: python tests/test_readme.py --write"


def test_every_link_leads_to_a_file_and_every_chapter_is_named():
    assert [path for path in re.findall(r"\]\(([^)#:]+)\)", TEXT) if not (HERE / path).exists()] == []
    chapters = [*(HERE / "minidiff").glob("*.py"), *(HERE / "minidiff" / "lessons").glob("*.py")]
    places = [path.relative_to(HERE).as_posix() for path in chapters if path.name not in ("__init__.py", "common.py")]
    assert [place for place in places if f"{place})" not in TEXT] == []


@pytest.mark.parametrize("line", COMMAND.findall(TEXT))
def test_every_command_is_one_that_the_scripts_take(line, tmp_path, monkeypatch):
    import sample
    import train

    monkeypatch.chdir(tmp_path)
    script, *arguments = shlex.split(line)
    {"sample.py": sample, "train.py": train}[script].arguments(arguments)


@pytest.mark.parametrize("code", SNIPPETS, ids=lambda code: code.strip().splitlines()[-1][:40])
def test_every_snippet_runs(code, tmp_path, monkeypatch):
    """With two steps where it takes many."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(HERE)
    few = re.sub(r"steps=\d+", "steps=2", code.replace("evenly_spaced(300, 20)", "evenly_spaced(300, 4)"))
    exec(few.replace("m.walk(7)", "m.walk(7, walk=Walk(steps=2))"), {})  # noqa: S102


def test_the_ten_lines_draw_two_digits():
    code = SNIPPETS[0]
    assert len([line for line in code.splitlines() if line]) <= 12
    names = {}
    exec(code.replace("evenly_spaced(300, 20)", "evenly_spaced(300, 4)"), names)  # noqa: S102, with fewer steps
    assert names["x_0"].shape == (2, 1, 28, 28)
    assert float(names["x_0"].abs().max()) <= 1
    assert bool(torch.isfinite(names["x_0"]).all())


@pytest.mark.parametrize("path", sorted((HERE / "weights").glob("*.safetensors")), ids=lambda p: p.name)
def test_the_weights_are_those_that_their_readme_names(path):
    assert path.stat().st_size <= 20e6
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert digest in (HERE / "weights" / "README.md").read_text(encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(__doc__)
    text = ROW.sub(lambda row: f"{row[1]}{counted(row[2])}{row[4]}", TEXT)
    (HERE / "README.md").write_text(text, encoding="utf-8")
