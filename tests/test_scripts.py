"""The two scripts from end to end, small: what they write, what they refuse, and that a run can be killed and resumed."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close
from torchvision.transforms.functional import gaussian_blur

import sample
import train
from minidiff import cfg, clip_to, images, labelled, last, linear, linear_to_noise, load_digits, mnist
from minidiff import sample as walk
from minidiff.files import load_tensors, save_tensors
from minidiff.networks.mnist_unet import UNet
from minidiff.sampling import ddim_step, ddpm_large_step
from minidiff.judge import psnr

SMALL = ["--width", "4", "--limit", "256"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One small run of each task, two epochs, without their sample grids, which take longer."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "preview", lambda model, settings: Image.new("L", (1, 1)))
        for task in train.BETTER:
            assert train.main([task, *SMALL, "--epochs", "2", "--out", str(folder / task)]) == 0
    return folder


def model(runs, task):
    return str(runs / task / f"mnist-{task}.safetensors")


@pytest.mark.parametrize("task", train.BETTER)
def test_a_run_writes_its_curve_its_samples_its_state_and_its_weights(runs, task):
    assert {p.name for p in (runs / task).iterdir()} == {
        "loss.csv", "loss.png", "samples-epoch-001.png", "samples-epoch-002.png", "state.safetensors", f"mnist-{task}.safetensors",
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
def test_a_killed_and_resumed_run_ends_in_the_same_weights(task, tmp_path, runs, monkeypatch):
    """Killed in the second epoch, after a state saved in mid-epoch: bit for bit what the uninterrupted run has."""

    def killed(run, *args):
        if run.steps == 3:
            raise KeyboardInterrupt
        return honest(run, *args)

    honest = train.loss
    monkeypatch.setattr(train, "loss", killed)
    command = [task, *SMALL, "--epochs", "2", "--out", str(tmp_path), "--save-every", "0"]
    with pytest.raises(KeyboardInterrupt):
        train.main(command)
    assert load_tensors(tmp_path / "state.safetensors")[1]["batch"] == 1
    monkeypatch.setattr(train, "loss", honest)
    assert train.main([*command, "--resume"]) == 0
    for name in (f"mnist-{task}.safetensors", "state.safetensors"):
        one, other = load_tensors(tmp_path / name)[0], load_tensors(runs / task / name)[0]
        assert one.keys() == other.keys()
        for key in one:
            assert_close(one[key], other[key], rtol=0, atol=0)


def test_a_run_can_begin_with_the_layers_of_another_network(runs, refused):
    run = train.Run(train.COURSE["time"] | {"width": 4, "seed": 1}, torch.device("cpu"))
    run.begin_with(model(runs, "class"))
    theirs, _ = load_tensors(model(runs, "class"))
    for mine in (run.model, run.averaged):
        for name, tensor in mine.unet.state_dict().items():
            assert_close(tensor, theirs[name], rtol=0, atol=0)
    refused(train, ["time", "--width", "8", "--init", model(runs, "class"), "--out", str(runs / "never")], "--init wants a network of width 8")
    assert not (runs / "never").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["clas"], "a task is one of denoiser, time, class, classifier, got 'clas'"),
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
    refused(train, ["class", *SMALL, "--epochs", "3", "--out", str(runs / "class"), "--resume"], "has epochs = 2, asked for 3")


def draw(*arguments):
    assert sample.main([str(a) for a in arguments]) == 0


@pytest.mark.parametrize(
    ("lesson", "task", "more"),
    [
        ("digits", "class", ["--steps", 2, "-n", 20, "--threshold", "--gif"]),
        ("digits", "time", ["--steps", 2, "-n", 4, "--sampler", "ddpm"]),
        ("guidance", "class", ["--steps", 2, "--scale", 0, 1, 2]),
        ("denoise", "time", ["--steps", 3, "-n", 2, "--sampler", "ddim", "--eta", 0.5, "--gif"]),
        ("denoise", "class", ["--steps", 8, "-n", 2, "--level", 20]),
        ("noise", None, ["-n", 2]),
        ("blur", None, ["-n", 2, "--digit", 3]),
        ("onestep", "denoiser", ["-n", 3]),
        ("ood", "denoiser", ["-n", 2]),
    ],
)
def test_every_lesson_draws_a_picture_that_says_how_it_was_made(runs, tmp_path, capsys, lesson, task, more):
    draw(lesson, *(["--model", model(runs, task)] if task else []), *more, "--out", tmp_path / "x.png")
    assert f"-> {tmp_path / 'x.png'}" in capsys.readouterr().out
    picture = Image.open(tmp_path / "x.png")
    assert json.loads(picture.text["minidiff"])["lesson"] == lesson
    assert max(picture.getextrema()[0]) > 200
    if "--gif" in more:
        assert Image.open(tmp_path / "x.gif").n_frames > 1


def arrays(runs, tmp_path, *arguments, task="class"):
    path = tmp_path / "x.safetensors"
    draw("digits", "--model", model(runs, task), *arguments, "--out", path)
    tensors, _ = load_tensors(path)
    return tensors["images"], tensors["labels"]


def test_arrays_are_images_in_0_1_and_their_labels(runs, tmp_path):
    x, labels = arrays(runs, tmp_path, "-n", 23, "--steps", 2)
    assert x.shape == (23, 1, 28, 28)
    assert x.dtype == torch.float32
    assert float(x.min()) >= 0
    assert float(x.max()) <= 1
    assert labels.tolist() == [k % 10 for k in range(23)]
    draw("digits", "--model", model(runs, "class"), "-n", 23, "--steps", 2, "--out", tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as file:
        assert_close(torch.from_numpy(file["images"]), x, rtol=0, atol=0)
        assert file["labels"].tolist() == labels.tolist()


@pytest.mark.parametrize("sampler", ["dpm", "ddim", "ddpm", "ddpm-large"])
def test_the_picture_is_the_same_for_any_batch_size(runs, tmp_path, sampler):
    more = ("-n", 7, "--steps", 5, "--sampler", sampler, "--scale", 3)
    x, _ = arrays(runs, tmp_path, *more)
    y, _ = arrays(runs, tmp_path, *more, "--batch", 3)
    assert_close(x, y, rtol=0, atol=1e-4)
    z, _ = arrays(runs, tmp_path, "-n", 3, *more[2:])
    assert_close(x[:3], z, rtol=0, atol=1e-4)


def lesson(tmp_path, *arguments):
    path = tmp_path / "lesson.safetensors"
    draw(*arguments, "--out", path)
    return load_tensors(path)[0]["images"]


def noise_of(seed, count):
    """Each image's own stream of draws."""
    streams = [torch.Generator().manual_seed((seed * 1_000_003 + k) % 2**32) for k in range(count)]
    return lambda like: torch.stack([torch.randn(1, 28, 28, generator=g) for g in streams])


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """A network that predicts eps and knows pixels in [0, 1]: the other conventions."""
    folder = tmp_path_factory.mktemp("course")
    assert train.main(["class", *SMALL, "--preset", "course", "--epochs", "1", "--out", str(folder)]) == 0
    return str(folder / "mnist-class.safetensors")


def loud(path, tmp_path):
    """The same network with labels that matter: after four steps of training they hardly do."""
    tensors, settings = load_tensors(path)
    for name in ("class1.0.weight", "class2.0.weight"):
        tensors[name] = 30 * torch.randn(tensors[name].shape, generator=torch.Generator().manual_seed(1))
        tensors[name.replace("0.weight", "2.weight")] *= 100
    save_tensors(tensors, tmp_path / "loud.safetensors", settings)
    return str(tmp_path / "loud.safetensors")


@pytest.mark.parametrize("preset", ["better", "course"])
def test_digits_are_the_walk_by_hand(runs, course, tmp_path, preset):
    path = loud(course if preset == "course" else model(runs, "class"), tmp_path)
    low, high = (0, 1) if preset == "course" else (-1, 1)
    alpha_bar, target = (linear(300), "eps") if preset == "course" else (linear_to_noise(300), "velocity")
    unet, c, noise = load_digits(path, ("class",)).unet, torch.tensor([3, 8, 3]), noise_of(5, 3)
    guided = cfg(labelled(unet, c, alpha_bar, 10, target), labelled(unet, None, alpha_bar, 10, target), 3.0)
    x = last(walk(guided, noise(None), [300, 225, 150, 75, 0], alpha_bar, clip=clip_to(low, high), noise=noise))
    by_hand = ((x - low) / (high - low)).clamp(0, 1)
    command = ("--model", path, "--digit", 3, 8, "--steps", 4, "--sampler", "ddpm", "--scale", 3, "--seed", 5)
    assert_close(lesson(tmp_path, "digits", "-n", 3, *command), by_hand, rtol=0, atol=1e-4)


def test_guidance_draws_a_row_for_each_scale_from_the_same_noise(runs, tmp_path):
    more = ("--model", loud(model(runs, "class"), tmp_path), "--digit", 4, 7, "--steps", 3)
    rows = lesson(tmp_path, "guidance", *more, "--scale", 0, 1, 4)
    for i, scale in enumerate((0, 1, 4)):
        assert_close(rows[2 * i : 2 * i + 2], lesson(tmp_path, "digits", "-n", 2, *more, "--scale", scale), rtol=0, atol=1e-4)
    assert float((rows[:2] - rows[2:4]).abs().max()) > 0.01
    assert float((rows[2:4] - rows[4:]).abs().max()) > 0.01


def test_denoise_walks_a_test_digit_back_from_its_level(runs, tmp_path):
    network, noise = load_digits(model(runs, "time"), ("time",)), noise_of(137, 2)
    x_0 = mnist.load(train=False)[0][:2].float() / 127.5 - 1
    alpha_bar = linear_to_noise(300)
    x_t = alpha_bar[90].sqrt() * x_0 + (1 - alpha_bar[90]).sqrt() * noise(None)
    x = last(walk(network.denoiser(), x_t.float(), [90, 60, 30, 0], alpha_bar, clip=clip_to(-1, 1), noise=noise))
    found = lesson(tmp_path, "denoise", "--model", model(runs, "time"), "-n", 2, "--level", 90, "--steps", 3, "--sampler", "ddpm")
    assert_close(found, (x + 1) / 2, rtol=0, atol=1e-4)


def test_noise_and_onestep_are_x_plus_sigma_eps_and_the_denoiser_of_it(runs, tmp_path, capsys):
    x, eps = mnist.load(train=False)[0][:3].float() / 255, noise_of(137, 3)(None)
    z = torch.stack([x + sigma * eps for sigma in (0, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0)], 1)
    assert_close(lesson(tmp_path, "noise", "-n", 3), z.clamp(0, 1).flatten(0, 1), rtol=0, atol=1e-6)
    unet = load_digits(model(runs, "denoiser"), ("denoiser",)).unet
    D = torch.stack([unet(z[:, i]) for i in range(7)], 1).clamp(0, 1)
    assert_close(lesson(tmp_path, "ood", "-n", 3, "--model", model(runs, "denoiser")), D.flatten(0, 1), rtol=0, atol=1e-4)
    capsys.readouterr()
    assert_close(lesson(tmp_path, "onestep", "-n", 3, "--model", model(runs, "denoiser")), D[:, 3], rtol=0, atol=1e-4)
    decibel = -10 * ((D[:, 3] - x) ** 2).flatten(1).mean(1).log10().mean()
    assert f"PSNR {float(decibel):.2f} dB" in capsys.readouterr().out


def test_another_seed_draws_other_digits_and_the_same_seed_the_same(runs, tmp_path):
    x, _ = arrays(runs, tmp_path, "-n", 2, "--steps", 3)
    assert_close(arrays(runs, tmp_path, "-n", 2, "--steps", 3)[0], x, rtol=0, atol=0)
    assert not torch.allclose(arrays(runs, tmp_path, "-n", 2, "--steps", 3, "--seed", 138)[0], x, atol=0.1)


def test_asked_digits_and_scales_reach_the_network(runs, tmp_path):
    _, labels = arrays(runs, tmp_path, "-n", 3, "--digit", 8, "--steps", 3, "--scale", 1)
    assert labels.tolist() == [8, 8, 8]
    tensors, settings = load_tensors(model(runs, "class"))
    tensors["class1.0.weight"][:, 8] += 100
    tensors["class2.0.weight"][:, 8] += 100
    save_tensors(tensors, tmp_path / "other.safetensors", settings)
    path = tmp_path / "y.safetensors"
    for scale, same in ((1, False), (0, True)):
        command = ("digits", "-n", 3, "--digit", 8, "--steps", 3, "--scale", scale, "--out", path)
        draw(*command, "--model", tmp_path / "other.safetensors")
        changed = load_tensors(path)[0]["images"]
        draw(*command, "--model", model(runs, "class"))
        assert torch.allclose(changed, load_tensors(path)[0]["images"], atol=1e-5) == same


def test_threshold_blackens_faint_pixels_and_leaves_the_others(runs, tmp_path):
    x, _ = arrays(runs, tmp_path, "-n", 2, "--steps", 3)
    y, _ = arrays(runs, tmp_path, "-n", 2, "--steps", 3, "--threshold", 0.3)
    assert_close(y, torch.where(x < 0.3, 0, x))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["digitz"], "a lesson is one of digits, text, guidance, denoise, edit, inpaint, anagram, hybrid, upscale, embed, score, noise, blur, onestep, ood, got 'digitz'"),
        (["digits", "--digit", "12"], "--digit wants 0 to 9, got 12"),
        (["digits", "--steps", "0"], "--steps must be between 1 and 300, the level where the walk begins, got 0"),
        (["digits", "--steps", "301"], "--steps must be between 1 and 300, the level where the walk begins, got 301"),
        (["digits", "--steps", "many"], "many"),
        (["digits", "-n", "0"], "-n wants 1 to 10000000, got 0"),
        (["digits", "-n", "50000"], "a picture holds at most 10000 images, got -n 50000"),
        (["digits", "--sampler", "euler"], "--sampler wants one of dpm, ddim_step, ddpm, ddpm-large, got 'euler'"),
        (["digits", "--sampler", "ddim", "--eta", "3"], "--eta wants 0 to 1, got 3"),
        (["denoise", "--level", "301"], "--level must be between 1 and T = 300, got 301"),
        (["digits", "--model", "mnist-nothing"], "got 'mnist-nothing'"),
        (["digits", "--model", "/no/such.safetensors"], "there is no file /no/such.safetensors"),
        (["digits", "--out", "x.jpg"], "ends in .png, .safetensors or .npz, got x.jpg"),
        (["digits", "--out", "/proc/x/y.png"], "cannot write /proc/x/y.png"),
        (["digits", "--device", "toaster"], "got 'toaster'"),
        (["noise", "--gif"], "unrecognized arguments: --gif"),
        (["digits", "--bank", "x.safetensors"], "unrecognized arguments: --bank"),
        (["anagram", "4", "7", "--bank", "x.safetensors"], "--bank is for text models, mnist-class is for digits"),
        (["edit", "--noise-level", "0"], "--noise-level is for text models"),
        (["denoise", "--level", "0"], "--level must be between 1 and T = 300, got 0"),
        (["digits", "--threshold", "2"], "--threshold wants 0 to 1, got 2"),
        (["digits", "--scale", "nan"], "--scale wants finite numbers, got [nan]"),
        (["digits", "--scale", "1", "5"], "--scale wants one number in digits, got [1.0, 5.0]"),
        (["digits", "--eta", "0.5"], "--eta is DDIM's, got 0.5 with --sampler dpm"),
        (["digits", "--st", "3"], "unrecognized arguments: --st 3"),
        (["digits", "--device", "meta"], "got 'meta'"),
    ],
)
def test_sample_refuses_in_one_line_with_exit_code_2(runs, arguments, says, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tasks = {"digits": "class", "denoise": "time"}
    if "--model" not in arguments and arguments[0] in tasks:
        arguments = [*arguments, "--model", model(runs, tasks[arguments[0]])]
    refused(sample, arguments, says)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_guidance_of_a_network_with_nothing_to_be_guided_by_is_refused(refused, tmp_path):
    settings = train.COURSE["time"] | {"width": 4}
    save_tensors(train.pretrained.build(settings).unet.state_dict(), tmp_path / "w.safetensors", settings)
    refused(sample, ["digits", "--model", str(tmp_path / "w.safetensors"), "--scale", "2", "--out", str(tmp_path / "x.png")], "--scale wants a network with labels or a guide")


@pytest.mark.parametrize("lesson", sample.flags.TAKES)
def test_every_lesson_says_what_it_does_and_what_it_takes_by_default(lesson, capsys):
    with pytest.raises(SystemExit):
        sample.main([lesson, "--help"])
    said = " ".join(capsys.readouterr().out.split())
    (about,) = (line.removeprefix(lesson).strip() for line in sample.__doc__.splitlines() if line.startswith(f"{lesson} "))
    assert about in said
    if "model" in sample.flags.TAKES[lesson][1]:
        assert f"--model {sample.flags.TAKES[lesson][1]['model']}" in said.split("By default:")[1]


def test_a_network_of_another_kind_is_refused(runs, refused, tmp_path):
    refused(sample, ["onestep", "--model", model(runs, "class"), "--out", str(tmp_path / "x.png")], "kind 'class', wanted denoiser")


def test_a_full_disk_leaves_nothing_half_written(runs, refused, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    refused(sample, ["noise", "-n", "1", "--out", str(tmp_path / "x.png")], "No space left on device")
    assert not list(tmp_path.iterdir())


def test_two_processes_draw_the_same_images(runs, tmp_path, two_processes):
    two_processes("sample.py", "digits", "-n", 5, "--steps", 2, "--model", model(runs, "class"), "--out", tmp_path / "two.safetensors", "--device", "cpu")
    x, labels = arrays(runs, tmp_path, "-n", 5, "--steps", 2)
    both, _ = load_tensors(tmp_path / "two.safetensors")
    assert_close(both["images"], x, rtol=0, atol=1e-4)
    assert both["labels"].tolist() == labels.tolist()


def test_a_run_is_not_resumed_with_a_setting_that_it_did_not_have_nor_its_weights_overwritten(runs, tmp_path, capsys):
    command = ["class", *SMALL, "--epochs", "2"]
    assert train.main([*command, "--out", str(runs / "class"), "--resume", "--init", model(runs, "time")]) == 2
    assert "has init = None, asked for" in capsys.readouterr().err
    shutil.copy(model(runs, "class"), tmp_path)  # weights alone, whose state was thrown away
    assert train.main([*command, "--out", str(tmp_path)]) == 2
    assert "holds a run" in capsys.readouterr().err


@pytest.mark.parametrize(("flags", "step"), [(["--sampler", "ddim"], ddim_step), (["--sampler", "ddim", "--eta", 0.5], partial(ddim_step, eta=0.5)), (["--sampler", "ddpm-large"], ddpm_large_step)], ids=["ddim", "ddim-half", "ddpm-large"])
def test_the_sampler_and_its_eta_reach_the_walk(runs, tmp_path, flags, step):
    network, noise = load_digits(model(runs, "class"), ("class",)), noise_of(137, 2)
    x = last(walk(network.denoiser(torch.tensor([0, 1])), noise(None), [300, 200, 100, 0], linear_to_noise(300), step=step, clip=clip_to(-1, 1), noise=noise))
    found = lesson(tmp_path, "digits", "-n", 2, "--model", model(runs, "class"), "--steps", 3, "--scale", 1, *flags)
    assert_close(found, (x + 1) / 2, rtol=0, atol=1e-4)


def test_denoise_is_guided_by_the_digits_own_label_from_half_of_T_and_each_psnr_has_its_name(runs, tmp_path, capsys):
    path = loud(model(runs, "class"), tmp_path)
    unet, eps, alpha_bar = load_digits(path, ("class",)).unet, noise_of(137, 2)(None), linear_to_noise(300)
    x_0, labels = mnist.to_pixels(mnist.load(train=False)[0][:2]), torch.tensor([7, 2])
    guided = cfg(labelled(unet, labels, alpha_bar, 10, "velocity"), labelled(unet, None, alpha_bar, 10, "velocity"), 3.0)
    a = alpha_bar[150]
    x_t = a.sqrt() * x_0 + (1 - a).sqrt() * eps
    x = last(walk(guided, x_t, [150, 100, 50, 0], alpha_bar, step=ddim_step, clip=clip_to(-1, 1)))
    one_step = (x_t - (1 - a).sqrt() * guided(x_t, 150)[0]) / a.sqrt()
    unit = [((y + 1) / 2).clamp(0, 1) for y in (x_0, x, one_step, gaussian_blur(x_t / a.sqrt(), 13, 2.5))]
    capsys.readouterr()
    assert_close(lesson(tmp_path, "denoise", "--model", path, "-n", 2, "--steps", 3, "--sampler", "ddim", "--scale", 3), unit[1], rtol=0, atol=1e-4)
    said = capsys.readouterr().out
    assert "from level 150 of 300" in said
    scores = [float(number) for number in re.search(r"walk ([\d.]+) dB, one step ([\d.]+), blur ([\d.]+)", said).groups()]
    assert scores == pytest.approx([psnr(y, unit[0]) for y in unit[1:]], abs=0.006)


def test_blur_blurs_the_noisy_digits_and_the_psnr_is_that_to_the_clean_ones(runs, tmp_path, capsys):
    x, eps = mnist.load(train=False)[0][:2].float() / 255, noise_of(137, 2)(None)
    noisy = [x + sigma * eps for sigma in sample.SIGMAS]
    unet = load_digits(model(runs, "denoiser"), ("denoiser",)).unet
    cases = {"blur": [gaussian_blur(z, 9, sample.BLUR[sigma]) for z, sigma in zip(noisy, sample.SIGMAS)], "ood": [unet(z) for z in noisy]}
    for name, columns in cases.items():
        columns = [z.clamp(0, 1) for z in columns]
        capsys.readouterr()
        draw(name, "-n", 2, *(["--model", model(runs, "denoiser")] if name == "ood" else []), "--out", tmp_path / "x.safetensors")
        said, made = capsys.readouterr().out, load_tensors(tmp_path / "x.safetensors")[0]
        assert_close(made["images"], torch.stack(columns, 1).flatten(0, 1), rtol=0, atol=1e-4)
        assert made["labels"].tolist() == [7] * 7 + [2] * 7
        scores = [float(number) for number in re.search(r"PSNR in dB: ([\d., ]+\d)", said)[1].split(", ")]
        assert scores == pytest.approx([psnr(z, x) for z in columns], abs=0.06)


def test_guidance_says_all_its_scales_and_a_row_has_a_column_for_each_digit(runs, tmp_path):
    command = ("guidance", "--model", model(runs, "class"), "--digit", 4, 7, "--steps", 1, "--scale", 0, 1, 3)
    draw(*command, "--out", tmp_path / "x.safetensors")
    tensors, settings = load_tensors(tmp_path / "x.safetensors")
    assert (settings["scale"], tensors["labels"].tolist()) == ([0, 1, 3], [4, 7] * 3)
    draw(*command, "--out", tmp_path / "x.png")
    assert Image.open(tmp_path / "x.png").size == (40 + 2 * (2 * 29 + 1), 2 * (3 * 29 + 1))
    draw("digits", "--model", model(runs, "class"), "--digit", 4, 7, "-n", 6, "--steps", 1, "--out", tmp_path / "y.png")
    assert Image.open(tmp_path / "y.png").size == (2 * (2 * 29 + 1), 2 * (3 * 29 + 1))


def test_the_animation_of_denoise_begins_with_the_noisy_digit_and_ends_with_the_result(runs, tmp_path):
    command = ("denoise", "--model", model(runs, "time"), "-n", 2, "--steps", 3, "--level", 290, "--gif", "--out", tmp_path / "x.safetensors")
    draw(*command)
    made, x_0 = load_tensors(tmp_path / "x.safetensors")[0]["images"], mnist.to_pixels(mnist.load(train=False)[0][:2])
    a = linear_to_noise(300)[290]
    x_t = a.sqrt() * x_0 + (1 - a).sqrt() * noise_of(137, 2)(None)
    with Image.open(tmp_path / "x.gif") as picture:
        assert picture.n_frames == 4
        for i, x in ((0, (x_t + 1) / 2), (3, made)):
            picture.seek(i)
            assert abs(np.asarray(picture.convert("L")).astype(int) - np.asarray(images.grid(x.clamp(0, 1), 10).convert("L"))).mean() < 3


def test_a_walk_from_a_low_level_has_no_more_steps_than_levels(runs, tmp_path):
    draw("denoise", "--model", model(runs, "time"), "-n", 1, "--level", 10, "--out", tmp_path / "x.png")  # of 20 by default


def test_the_strip_of_denoise_ends_in_the_clean_digit(runs, tmp_path, monkeypatch):
    names = []
    monkeypatch.setattr(sample, "strips", lambda args, x, titles: names.extend(titles))
    draw("denoise", "--model", model(runs, "time"), "-n", 1, "--steps", 20, "--out", tmp_path / "x.safetensors")
    assert (names[:2], names[-3:]) == (["original", "t = 150"], ["t = 0", "one step", "blur"])


def test_the_denoiser_takes_as_many_digits_at_a_time_as_asked(runs, tmp_path, monkeypatch):
    seen, honest = [], UNet.forward
    monkeypatch.setattr(UNet, "forward", lambda self, x, *rest: seen.append(len(x)) or honest(self, x, *rest))
    draw("onestep", "--model", model(runs, "denoiser"), "-n", 5, "--batch", 2, "--out", tmp_path / "x.safetensors")
    assert seen == [2, 2, 1]


def test_the_frames_of_an_animation_are_laid_out_as_the_picture(runs, tmp_path):
    draw("digits", "--model", model(runs, "class"), "--digit", 4, 7, "-n", 6, "--steps", 1, "--gif", "--out", tmp_path / "x.png")
    assert Image.open(tmp_path / "x.gif").size == Image.open(tmp_path / "x.png").size
