"""The floors of the house: imports point down; files and functions are small and described; the library is light."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "minidiff"
MAY_IMPORT = {
    # 1. what needs nothing of ours
    "schedule": set(),
    "diffusion": set(),
    "denoiser": set(),
    "views": set(),
    "files": set(),
    "machine": set(),
    "command": set(),
    "shipped": set(),
    "download": set(),
    "captions": set(),
    "muon": set(),
    "networks.__init__": set(),
    "networks.gelu": set(),
    "networks.mnist_unet": {"networks.gelu"},
    "networks.mnist_classifier": {"networks.mnist_unet"},
    "networks.matcher": set(),
    "networks.if_unet": {"networks.gelu", "networks.plain"},
    "networks.plain": set(),
    "networks.t5": set(),
    "networks.tokenizer": {"files"},
    "mnist": {"shipped"},
    # 2. the chapters
    "sampling": {"denoiser", "diffusion", "schedule"},
    "training": {"diffusion"},
    "guidance": {"denoiser"},
    "adapters": {"denoiser", "diffusion"},
    "illusions": {"denoiser", "views"},
    "editing": {"denoiser", "diffusion", "sampling", "schedule"},
    "one_forward": {"denoiser"},
    "images": {"files"},
    "pictures": {"files"},
    "words": {"captions"},
    "hub": {"download", "files"},
    "prompts": {"files", "hub", "networks.t5", "networks.tokenizer"},
    "deepfloyd": {"diffusion", "hub", "networks.if_unet", "schedule"},
    "picturebook": {"captions", "shipped"},
    # 3. to 6. one model, whatever it is
    "walk": {"machine", "sampling"},
    "formula": {"denoiser", "guidance", "one_forward"},
    "model": {
        "denoiser", "editing", "formula", "one_forward", "pictures", "sampling", "views", "walk", "words",
    },
    "digits": {
        "adapters", "denoiser", "diffusion", "files", "model", "networks.mnist_classifier", "networks.mnist_unet",
        "one_forward", "schedule", "shipped",
    },
    "prompted": {
        "adapters", "deepfloyd", "files", "hub", "machine", "model", "networks.if_unet", "prompts", "sampling",
    },
    "pretrained": {"digits", "model", "prompted", "shipped"},
    "judge": {"digits", "files", "mnist", "networks.mnist_classifier"},
    "matching": {"files", "judge", "networks.matcher", "shipped"},
    "marks": {"matching", "networks.matcher", "picturebook"},
    "exam": {"judge", "marks", "matching", "networks.matcher", "picturebook"},
    "results": {"images", "walk"},
    # 7. experiments and training
    "lessons.common": {"mnist", "model", "pretrained", "shipped", "words"},
    "lessons.drawing": {"captions", "formula", "lessons.common", "results", "walk", "words"},
    "lessons.editing": {
        "editing", "files", "lessons.common", "model", "pictures", "results", "sampling", "schedule", "shipped", "walk",
        "words",
    },
    "lessons.illusions": {
        "formula", "illusions", "judge", "lessons.common", "matching", "model", "results", "views", "walk", "words",
    },
    "lessons.measuring": {"exam", "files", "hub", "judge", "prompted", "prompts", "results"},
    "lessons.noising": {"diffusion", "judge", "lessons.common", "model", "results", "sampling", "walk", "words"},
    "lessons.__init__": {
        "lessons.drawing", "lessons.editing", "lessons.illusions", "lessons.measuring", "lessons.noising",
    },
    "run": {"files", "images", "muon", "training"},
    "digit_tasks": {"digits", "files", "images", "judge", "mnist", "run", "sampling", "training", "walk"},
    "matcher_task": {"files", "networks.matcher", "picturebook", "run", "training"},
    "text_model": {"files", "hub", "networks.if_unet", "networks.t5", "networks.tokenizer"},
    "text_tasks": {
        "adapters", "deepfloyd", "denoiser", "diffusion", "guidance", "hub", "images", "networks.if_unet",
        "networks.t5", "networks.tokenizer", "picturebook", "run", "sampling", "schedule", "text_model", "training",
    },
    "__init__": {
        "adapters", "denoiser", "diffusion", "editing", "guidance", "illusions", "images", "model",
        "networks.mnist_unet", "one_forward", "pretrained", "results", "sampling", "schedule", "training", "views",
        "walk",
    },
}  # fmt: skip
FILES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = [ROOT / "sample.py", ROOT / "train.py"]
TESTS = sorted((ROOT / "tests").glob("*.py"))
STILL_SAY_FLAGS = """run digit_tasks text_model text_tasks""".split()
STILL_UNDESCRIBED = """muon.Muon.step run.Run.recent_loss text_model.write_bytes""".split()


def chapter(path):
    if PACKAGE not in path.parents:
        return path.stem
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


@cache
def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path):
    """The modules that a file imports, ours by the name of their chapter."""
    known = {chapter(other) for other in FILES}
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole.removeprefix("minidiff.") in known else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def functions(path):
    return [node for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


# --------------------------------------------------------------------------------------------------------------- floors


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


def test_every_floor_is_that_of_a_file():
    assert MAY_IMPORT.keys() == {chapter(path) for path in FILES}


@pytest.mark.parametrize("path", [path for path in FILES if chapter(path) != "command"], ids=chapter)
def test_the_command_line_stays_above_the_library(path):
    assert not {"argparse", "sample", "train"} & set(imports(path))
    assert "Namespace" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "path", [path for path in FILES if chapter(path) not in ("command", *STILL_SAY_FLAGS)], ids=chapter
)
def test_no_error_of_the_library_names_a_flag_of_the_command_line(path):
    texts = [
        text.value
        for error in ast.walk(tree(path))
        if isinstance(error, ast.Raise)
        for text in ast.walk(error)
        if isinstance(text, ast.Constant) and isinstance(text.value, str)
    ]
    assert [text for text in texts if re.search(r"(^|\W)--?[a-z]", text)] == []


@pytest.mark.parametrize("path", FILES, ids=chapter)
def test_the_library_names_no_device_and_runs_no_pickle(path):
    forbidden = r"""["']cuda["':]|\.cuda\(|torch\.load\((?!.*weights_only=True)|pickle\.load"""
    assert not re.search(forbidden, path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", [*FILES, *SCRIPTS], ids=chapter)
def test_no_library_does_the_work_for_us(path):
    assert not {name.split(".")[0] for name in imports(path)} & {"diffusers", "transformers", "accelerate", "einops"}


def test_importing_the_library_brings_in_neither_torchvision_nor_pillow():
    heavy = "{'torchvision', 'PIL', 'sentencepiece', 'huggingface_hub'}"
    code = f"import sys, minidiff; print(sorted({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == "[]"


# ----------------------------------------------------------------------------------------------------------------- size


@pytest.mark.parametrize("path", [*FILES, *SCRIPTS, *TESTS], ids=chapter)
def test_no_line_is_longer_than_120_columns(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [f"{path.name}:{i}" for i, line in enumerate(lines, 1) if len(line) > 120] == []


@pytest.mark.parametrize("path", [*FILES, *SCRIPTS], ids=chapter)
def test_no_file_but_the_if_unet_is_longer_than_300_lines(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= 300 or chapter(path) == "networks.if_unet", f"{lines} lines: find the missing noun"


@pytest.mark.parametrize("path", [*FILES, *SCRIPTS], ids=chapter)
def test_no_function_is_longer_than_45_lines(path):
    """Its own lines: without the docstring, the signature and the functions inside it."""
    long = []
    for function in functions(path):
        inner = {n for f in ast.walk(function) if f is not function and isinstance(f, ast.FunctionDef) for n in span(f)}
        body = function.body[1:] if ast.get_docstring(function) else function.body
        own = {n for statement in body for n in span(statement)} - inner
        long += [f"{function.name}: {len(own)}"] if len(own) > 45 else []
    assert long == []


def span(node):
    return range(node.lineno, node.end_lineno + 1)


@pytest.mark.parametrize("path", [*FILES, *SCRIPTS], ids=chapter)
def test_no_statement_has_more_than_two_nested_comprehensions(path):
    kinds = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)

    def depth(node):
        return max((depth(child) for child in ast.iter_child_nodes(node)), default=0) + isinstance(node, kinds)

    for statement in ast.walk(tree(path)):
        if isinstance(statement, ast.stmt) and not hasattr(statement, "body"):
            assert depth(statement) <= 2, f"{path.name}:{statement.lineno}"


# ---------------------------------------------------------------------------------------------------------- description


def public():
    """(name, docstring) of every public function and class of the package; not what is inside a function."""
    for path in FILES:
        if path.name == "__init__.py" and path.parent != PACKAGE:
            continue
        for node in tree(path).body:
            if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
                continue
            yield f"{chapter(path)}.{node.name}", ast.get_docstring(node), isinstance(node, ast.FunctionDef)
            for part in node.body if isinstance(node, ast.ClassDef) else []:
                if isinstance(part, ast.FunctionDef) and not part.name.startswith("_") and part.name != "forward":
                    yield f"{chapter(path)}.{node.name}.{part.name}", ast.get_docstring(part), True


def test_every_public_function_has_a_docstring():
    assert [name for name, docstring, _ in public() if not docstring and name not in STILL_UNDESCRIBED] == []


SHAPE = r"\((?:\.{3}|…|[A-Z]\w*|\d+|n|N)(?: or \d+)?(?:,| [+·x] ).*?\)|\(\w+,\)|\b0-dim\b|\d+ x \d+"


def test_the_docstrings_of_functions_on_tensors_name_a_shape():
    """60 % of the public functions whose signature has a tensor in it."""
    described = dict((name, docstring) for name, docstring, is_function in public() if is_function)
    of_tensors = {f"{chapter(path)}.{f.name}" for path in FILES for f in functions(path) if "Tensor" in signature(f)}
    asked = [name for name in described if ".".join([*name.split(".")[:-2], name.split(".")[-1]]) in of_tensors]
    asked += [name for name in described if name in of_tensors and name not in asked]
    named = [name for name in asked if re.search(SHAPE, described[name] or "")]
    without = sorted(set(asked) - set(named))
    assert len(named) >= 0.6 * len(asked), f"{len(named)} of {len(asked)}, without: {', '.join(without)}"


def signature(function):
    return ast.unparse(function.args) + (ast.unparse(function.returns) if function.returns else "")
