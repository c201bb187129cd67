"""train.py from end to end, small: what it writes, what it refuses, and that a run can be killed and resumed."""

import itertools
import shutil

import pytest
import torch
from PIL import Image
from torch.testing import assert_close

import train
from minidiff import digit_tasks
from minidiff.files import load_tensors
from minidiff.run import Run

DIGITS = ("denoiser", "time", "class", "classifier")
SMALL = ["--width", "4", "--limit", "256"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One small run of each task, two epochs, without their sample grids, which take longer."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digit_tasks, "preview", lambda net, settings: Image.new("L", (1, 1)))
        for task in DIGITS:
            assert train.main([task, *SMALL, "--epochs", "2", "--out", str(folder / task)]) == 0
    return folder


def model(runs, task):
    return str(runs / task / f"mnist-{task}.safetensors")


@pytest.mark.parametrize("task", DIGITS)
def test_a_run_writes_its_curve_its_samples_its_state_and_its_weights(runs, task):
    assert {p.name for p in (runs / task).iterdir()} == {
        "loss.csv", "loss.png", "samples-epoch-001.png", "samples-epoch-002.png",
        "state.safetensors", f"mnist-{task}.safetensors",
    }  # fmt: skip
    _, settings = load_tensors(model(runs, task))
    assert (settings["task"], settings["seed"], settings["epoch"]) == (task, 137, 2)
    assert len((runs / task / "loss.csv").read_text().splitlines()) == 1 + 2 * (256 // settings["batch"])


def test_the_course_preset_runs(tmp_path):
    assert train.main(["class", *SMALL, "--preset", "course", "--epochs", "1", "--out", str(tmp_path)]) == 0
    _, settings = load_tensors(tmp_path / "mnist-class.safetensors")
    assert (settings["preset"], settings["schedule"], settings["lr"]) == ("course", "linear", 1e-3)


@pytest.mark.usefixtures("_no_preview")
@pytest.mark.parametrize("task", ["class", "classifier"])
def test_a_killed_and_resumed_run_ends_in_the_same_weights(task, tmp_path, runs, monkeypatch, capsys):
    """Killed in the second epoch, after a state saved in mid-epoch: bit for bit what the uninterrupted run has."""

    def killed(*args):
        if next(steps) == 3:
            raise KeyboardInterrupt
        return honest(*args)

    honest, steps = digit_tasks.loss, itertools.count()
    monkeypatch.setattr(digit_tasks, "loss", killed)
    command = [task, *SMALL, "--epochs", "2", "--out", str(tmp_path), "--save-every", "0"]
    assert train.main(command) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith(f"goes on with: python train.py {task} --resume --out {tmp_path}")
    assert load_tensors(tmp_path / "state.safetensors")[1]["batch"] == 1
    monkeypatch.setattr(digit_tasks, "loss", honest)
    assert train.main([task, "--out", str(tmp_path), "--resume"]) == 0
    for name in (f"mnist-{task}.safetensors", "state.safetensors"):
        one, other = load_tensors(tmp_path / name)[0], load_tensors(runs / task / name)[0]
        assert one.keys() == other.keys()
        for key in one:
            assert_close(one[key], other[key], rtol=0, atol=0)


def test_a_run_can_begin_with_the_layers_of_another_network(runs, refused):
    settings = train.COURSE["time"] | {"width": 4, "seed": 1, "limit": 256, "init": model(runs, "class")}
    task = digit_tasks.task(settings, None)
    run = Run(task.net, settings, torch.device("cpu"))
    theirs = task.init()
    run.begin_with(theirs, settings["init"])
    for mine in (run.net, run.averaged):
        for name, tensor in mine.state_dict().items():
            assert_close(tensor, theirs[name], rtol=0, atol=0)
    refused(
        train,
        ["time", "--width", "8", "--init", model(runs, "class"), "--out", str(runs / "never")],
        "--init wants a network of the same widths",
    )
    assert not (runs / "never").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["clas"], "a task is one of denoiser, time, class, classifier, text, superres, matcher, got 'clas'"),
        (["class", "--preset", "best"], "--preset wants better or course, got 'best'"),
        (["classifier", "--preset", "course"], "the assignment trains no classifier: leave --preset course out"),
        (["class", "--epochs", "0"], "--epochs wants 1 to 10000, got 0"),
        (["class", "--limit", "5"], "--limit wants 256 to 60000, got 5"),
        (["class", "--device", "toaster"], "got 'toaster'"),
        (["class", "--resume", "--out", "/nowhere/at/all"], "there is no file /nowhere/at/all/state.safetensors"),
        (["class", "--banana"], "banana"),
    ],
)
def test_train_refuses_in_one_line_with_exit_code_2(arguments, says, refused):
    refused(train, arguments, says)


def test_a_run_is_never_overwritten_nor_resumed_with_other_settings(runs, refused):
    refused(train, ["class", *SMALL, "--epochs", "2", "--out", str(runs / "class")], "holds a run: go on with --resume")
    refused(
        train,
        ["class", *SMALL, "--epochs", "3", "--out", str(runs / "class"), "--resume"],
        "has epochs = 2, asked for 3",
    )


def test_a_run_is_not_resumed_with_a_setting_that_it_did_not_have_nor_its_weights_overwritten(runs, tmp_path, capsys):
    command = ["class", *SMALL, "--epochs", "2"]
    assert train.main([*command, "--out", str(runs / "class"), "--resume", "--init", model(runs, "time")]) == 2
    assert "has init = None, asked for" in capsys.readouterr().err
    shutil.copy(model(runs, "class"), tmp_path)  # weights alone, whose state was thrown away
    assert train.main([*command, "--out", str(tmp_path)]) == 2
    assert "holds a run" in capsys.readouterr().err
