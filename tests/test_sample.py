"""sample.py from end to end, small: what it writes and refuses, and that the lessons do what they say, by hand."""

import inspect
import json
import re
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close
from torchvision.transforms.functional import gaussian_blur

import sample
from minidiff import Walk, cfg, clip_to, digits, images, labelled, last, linear, linear_to_noise, mnist, results
from minidiff import sample as walk
from minidiff.digits import load_digits
from minidiff.files import load_tensors, save_tensors
from minidiff.judge import psnr
from minidiff.lessons import noising
from minidiff.networks.mnist_unet import UNet
from minidiff.sampling import ddim_step, ddpm_large_step
from minidiff.shipped import PICTURES

BETTER = {"width": 4, "T": 300, "schedule": "linear_to_noise", "target": "velocity", "pixels": [-1, 1], "scale": 1.5}
COURSE = BETTER | {"schedule": "linear", "target": "eps", "pixels": [0, 1], "scale": 5.0}  # the other conventions
SETTINGS = {
    "class": BETTER | {"task": "class", "classes": 10},
    "time": BETTER | {"task": "time", "guide": "class", "scale": 2.0},
    "course": COURSE | {"task": "class", "classes": 10},
    "denoiser": {"task": "denoiser", "width": 4, "sigma": 0.5, "pixels": [0, 1]},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """model(kind): the path of a small untrained network; of class and course the labels matter."""
    folder = tmp_path_factory.mktemp("networks")
    for kind, settings in SETTINGS.items():
        torch.manual_seed(len(kind))
        network = digits.network(settings)
        if settings.get("classes"):
            for embedding in (network.class1, network.class2):
                embedding[0].weight.data = 30 * torch.randn(embedding[0].weight.shape)
                embedding[2].weight.data *= 100
        settings = settings | ({"guide": str(folder / "class.safetensors")} if "guide" in settings else {})
        save_tensors(network.state_dict(), folder / f"{kind}.safetensors", settings)
    return lambda kind: str(folder / f"{kind}.safetensors")


@pytest.fixture
def draw(tmp_path, capsys):
    """draw(*arguments): the arrays that a command writes, its record, and what it says."""

    def draw(*arguments):
        capsys.readouterr()
        path = tmp_path / "drawn.safetensors"
        assert sample.main([*map(str, arguments), "--device", "cpu", "--out", str(path)]) == 0
        return *load_tensors(path), capsys.readouterr().out

    return draw


def noise_of(seed, count):
    """Each image's own stream of draws."""
    streams = [torch.Generator().manual_seed((seed * 1_000_003 + k) % 2**32) for k in range(count)]
    return lambda like: torch.stack([torch.randn(1, 28, 28, generator=g) for g in streams])


# ---------------------------------------------------------------------------------------------------- files and records


@pytest.mark.parametrize(
    ("lesson", "kind", "more"),
    [
        ("digits", "class", "--steps 2 -n 20 --threshold --gif"),
        ("digits", "time", "--steps 2 -n 4 --sampler ddpm"),
        ("guidance", "class", "--steps 2 --scale 0 1 2"),
        ("denoise", "time", "--steps 3 -n 2 --sampler ddim --eta 0.5 --gif"),
        ("denoise", "class", "--steps 8 -n 2 --level 20"),
        ("noise", None, "-n 2"),
        ("blur", None, "-n 2 --digit 3"),
        ("onestep", "denoiser", "-n 3"),
        ("ood", "denoiser", "-n 2"),
    ],
)
def test_every_lesson_draws_a_picture_that_says_how_it_was_made(model, tmp_path, capsys, lesson, kind, more):
    of_model = ["--model", model(kind)] if kind else []
    assert sample.main([lesson, *of_model, *more.split(), "--out", str(tmp_path / "x.png")]) == 0
    assert f"-> {tmp_path / 'x.png'}" in capsys.readouterr().out
    picture = Image.open(tmp_path / "x.png")
    settings = json.loads(picture.text["minidiff"])
    assert (settings["lesson"], settings["seed"], settings.get("model")) == (lesson, 137, model(kind) if kind else None)
    assert max(picture.getextrema()[0]) > 200
    if "--gif" in more:
        assert Image.open(tmp_path / "x.gif").n_frames > 1


def test_arrays_are_images_in_0_1_and_their_labels(model, draw, tmp_path):
    command = ["digits", "--model", model("class"), "-n", "23", "--steps", "2"]
    made, _, _ = draw(*command)
    x, labels = made["images"], made["labels"]
    assert x.shape == (23, 1, 28, 28)
    assert x.dtype == torch.float32
    assert float(x.min()) >= 0
    assert float(x.max()) <= 1
    assert labels.tolist() == [k % 10 for k in range(23)]
    assert sample.main([*command, "--out", str(tmp_path / "x.npz")]) == 0
    with np.load(tmp_path / "x.npz") as file:
        assert_close(torch.from_numpy(file["images"]), x, rtol=0, atol=0)
        assert file["labels"].tolist() == labels.tolist()
        assert json.loads(str(file["settings"]))["lesson"] == "digits"


def test_the_shipped_model_that_was_chosen_is_said_and_written_down(tmp_path, capsys):
    assert sample.main(["edit", "-n", "1", "--steps", "1", "--out", str(tmp_path / "x.safetensors")]) == 0
    assert "mnist-class, seed 137, " in capsys.readouterr().out
    assert load_tensors(tmp_path / "x.safetensors")[1]["model"] == "mnist-class"


def test_guidance_says_all_its_scales_and_a_row_has_a_column_for_each_digit(model, draw, tmp_path):
    command = ["guidance", "--model", model("class"), "--digit", "4", "7", "--steps", "1", "--scale", "0", "1", "3"]
    tensors, settings, _ = draw(*command)
    assert (settings["scale"], tensors["labels"].tolist()) == ([0, 1, 3], [4, 7] * 3)
    assert sample.main([*command, "--out", str(tmp_path / "x.png")]) == 0
    inner = 3 * (2 * 29 + 1), 3 * (3 * 29 + 1)  # digits are 84 pixels wide, with a line around each
    assert Image.open(tmp_path / "x.png").size == (40 + inner[0], 16 + inner[1])
    command = ["digits", "--model", model("class"), "--digit", "4", "7", "-n", "6", "--steps", "1"]
    assert sample.main([*command, "--gif", "--out", str(tmp_path / "y.png")]) == 0
    assert Image.open(tmp_path / "y.png").size == (inner[0], 16 + inner[1])
    assert Image.open(tmp_path / "y.gif").size == inner  # the frames are laid out as the picture


def test_the_names_of_a_row_of_few_digits_stand_above_them(model, tmp_path, monkeypatch):
    named = []
    honest = images.captioned
    monkeypatch.setattr(images, "captioned", lambda picture, names: named.append(names) or honest(picture, names))
    command = ["digits", "--model", model("class"), "-n", "3", "--steps", "1", "--out", str(tmp_path / "x.png")]
    assert sample.main(command) == 0
    assert [list(names) for names in named] == [["0", "1", "2"]]


def test_a_picture_that_cannot_be_written_leaves_its_arrays_and_nothing_half_written(refused, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    refused(sample, ["noise", "-n", "1", "--out", str(tmp_path / "x.png")], "No space left on device")
    (rescued,) = tmp_path.iterdir()
    assert load_tensors(rescued)[0]["images"].shape == (7, 1, 28, 28)


def test_two_processes_draw_the_same_images(model, draw, tmp_path, two_processes):
    command = ("digits", "-n", 5, "--steps", 2, "--model", model("class"))
    two_processes("sample.py", *command, "--out", tmp_path / "two.safetensors", "--device", "cpu")
    both, one = load_tensors(tmp_path / "two.safetensors")[0], draw(*command)[0]
    assert_close(both["images"], one["images"], rtol=0, atol=1e-4)
    assert both["labels"].tolist() == one["labels"].tolist()


# -------------------------------------------------------------------------------------------------------- what is drawn


@pytest.mark.parametrize("sampler", ["dpm", "ddim", "ddpm", "ddpm-large"])
def test_the_picture_is_the_same_for_any_batch_size(model, draw, sampler):
    command = ("digits", "--model", model("class"), "--steps", 5, "--sampler", sampler, "--scale", 3)
    x = draw(*command, "-n", 7)[0]["images"]
    assert_close(draw(*command, "-n", 7, "--batch", 3)[0]["images"], x, rtol=0, atol=1e-4)
    assert_close(draw(*command, "-n", 3)[0]["images"], x[:3], rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["class", "course"])
def test_digits_are_the_walk_by_hand(model, draw, kind):
    low, high = SETTINGS[kind]["pixels"]
    alpha_bar, target = (linear(300), "eps") if kind == "course" else (linear_to_noise(300), "velocity")
    unet, c, noise = load_digits(model(kind)).unet, torch.tensor([3, 8, 3]), noise_of(5, 3)
    given, dropped = (labelled(unet, label, alpha_bar, 10, target) for label in (c, None))
    how = {"clip": clip_to(low, high), "noise": noise}
    x = last(walk(cfg(given, dropped, 3.0), noise(None), [300, 225, 150, 75, 0], alpha_bar, **how))
    by_hand = ((x - low) / (high - low)).clamp(0, 1)
    command = ("--digit", 3, 8, "--steps", 4, "--sampler", "ddpm", "--scale", 3, "--seed", 5)
    found = draw("digits", "--model", model(kind), "-n", 3, *command)[0]["images"]
    assert_close(found, by_hand, rtol=0, atol=1e-4)
    assert float(by_hand.std()) > 0.05


def test_guidance_draws_a_row_for_each_scale_from_the_same_noise(model, draw):
    more = ("--model", model("class"), "--digit", 4, 7, "--steps", 3)
    rows = draw("guidance", *more, "--scale", 0, 1, 4)[0]["images"]
    for i, scale in enumerate((0, 1, 4)):
        row = draw("digits", "-n", 2, *more, "--scale", scale)[0]["images"]
        assert_close(rows[2 * i : 2 * i + 2], row, rtol=0, atol=1e-4)
    assert float((rows[:2] - rows[2:4]).abs().max()) > 0.01
    assert float((rows[2:4] - rows[4:]).abs().max()) > 0.01


def test_guidance_takes_the_batch_and_the_sampler_that_it_is_given(model, draw, monkeypatch):
    seen, honest = [], UNet.forward
    monkeypatch.setattr(UNet, "forward", lambda self, x, *rest: seen.append(len(x)) or honest(self, x, *rest))
    command = ("guidance", "--model", model("class"), "--digit", 4, 7, 8, "--steps", 1, "--scale", 2)
    draw(*command)
    assert seen == [6]
    seen.clear()
    draw(*command, "--batch", 2)
    assert seen == [4, 2]
    seen.clear()
    draw(*command, "--sequential")
    assert seen == [3, 3]


def test_another_seed_draws_other_digits_and_the_same_seed_the_same(model, draw):
    command = ("digits", "--model", model("class"), "-n", 2, "--steps", 3)
    x = draw(*command)[0]["images"]
    assert_close(draw(*command)[0]["images"], x, rtol=0, atol=0)
    assert not torch.allclose(draw(*command, "--seed", 138)[0]["images"], x, atol=0.1)


def test_asked_digits_and_scales_reach_the_network(model, draw, tmp_path):
    tensors, settings = load_tensors(model("class"))
    tensors["class1.0.weight"][:, 8] += 100
    tensors["class2.0.weight"][:, 8] += 100
    other = tmp_path / "other.safetensors"
    save_tensors(tensors, other, settings)
    for scale, same in ((1, False), (0, True)):
        command = ("digits", "-n", 3, "--digit", 8, "--steps", 3, "--scale", scale)
        changed, honest = (draw(*command, "--model", path)[0] for path in (other, model("class")))
        assert changed["labels"].tolist() == [8, 8, 8]
        assert torch.allclose(changed["images"], honest["images"], atol=1e-5) == same


def test_threshold_blackens_faint_pixels_and_leaves_the_others(model, draw):
    command = ("digits", "--model", model("class"), "-n", 2, "--steps", 3)
    x, plain = (draw(*command, *more)[0]["images"] for more in ((), ("--threshold",)))
    assert_close(plain, torch.where(x < 0.2, 0, x))
    assert_close(draw(*command, "--threshold", 0.6)[0]["images"], torch.where(x < 0.6, 0, x))


@pytest.mark.parametrize(
    ("flags", "step"),
    [
        (["--sampler", "ddim"], ddim_step),
        (["--sampler", "ddim", "--eta", 0.5], partial(ddim_step, eta=0.5)),
        (["--sampler", "ddpm-large"], ddpm_large_step),
    ],
    ids=["ddim", "ddim-half", "ddpm-large"],
)
def test_the_sampler_and_its_eta_reach_the_walk(model, draw, flags, step):
    network, noise = load_digits(model("class")), noise_of(137, 2)
    how = {"step": step, "clip": clip_to(-1, 1), "noise": noise}
    denoise = network.denoiser(torch.tensor([0, 1]), 1)
    x = last(walk(denoise, noise(None), [300, 200, 100, 0], linear_to_noise(300), **how))
    command = ("digits", "-n", 2, "--model", model("class"), "--steps", 3, "--scale", 1, *flags)
    assert_close(draw(*command)[0]["images"], ((x + 1) / 2).clamp(0, 1), rtol=0, atol=1e-4)


def test_denoise_walks_a_test_digit_back_from_its_level(model, draw):
    network, noise = load_digits(model("time")), noise_of(137, 2)
    x_0 = mnist.load(train=False)[0][:2].float() / 127.5 - 1
    alpha_bar = linear_to_noise(300)
    x_t = alpha_bar[90].sqrt() * x_0 + (1 - alpha_bar[90]).sqrt() * noise(None)
    how = {"clip": clip_to(-1, 1), "noise": noise}
    x = last(walk(network.denoiser(scale=1), x_t.float(), [90, 60, 30, 0], alpha_bar, **how))
    command = ("denoise", "--model", model("time"), "-n", 2, "--level", 90, "--steps", 3, "--sampler", "ddpm")
    assert_close(draw(*command)[0]["images"], ((x + 1) / 2).clamp(0, 1), rtol=0, atol=1e-4)


def test_denoise_is_guided_by_the_digits_own_label_from_half_of_T_and_each_psnr_has_its_name(model, draw):
    unet, eps, alpha_bar = load_digits(model("class")).unet, noise_of(137, 2)(None), linear_to_noise(300)
    x_0, labels = mnist.to_pixels(mnist.load(train=False)[0][:2]), torch.tensor([7, 2])
    guided = cfg(*(labelled(unet, c, alpha_bar, 10, "velocity") for c in (labels, None)), 3.0)
    a = alpha_bar[150]
    x_t = a.sqrt() * x_0 + (1 - a).sqrt() * eps
    x = last(walk(guided, x_t, [150, 100, 50, 0], alpha_bar, step=ddim_step, clip=clip_to(-1, 1)))
    one_step = (x_t - (1 - a).sqrt() * guided(x_t, 150)[0]) / a.sqrt()
    unit = [((y + 1) / 2).clamp(0, 1) for y in (x_0, x, one_step, gaussian_blur(x_t / a.sqrt(), 13, 2.5))]
    command = ("denoise", "--model", model("class"), "-n", 2, "--steps", 3, "--sampler", "ddim", "--scale", 3)
    made, settings, said = draw(*command)
    assert_close(made["images"], unit[1], rtol=0, atol=1e-4)
    assert "from level 150 of 300" in said
    assert settings["level"] == 150
    numbers = re.search(r"walk ([\d.]+) dB, one step ([\d.]+), blur ([\d.]+)", said).groups()
    assert [*map(float, numbers)] == pytest.approx([psnr(y, unit[0]) for y in unit[1:]], abs=0.006)
    alone = draw(*command, "--sequential")[0]["images"]
    assert_close(alone, unit[1], rtol=0, atol=1e-4)


def test_noise_and_onestep_are_x_plus_sigma_eps_and_the_denoiser_of_it(model, draw):
    x, eps = mnist.load(train=False)[0][:3].float() / 255, noise_of(137, 3)(None)
    z = torch.stack([x + sigma * eps for sigma in (0, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0)], 1)
    assert_close(draw("noise", "-n", 3)[0]["images"], z.clamp(0, 1).flatten(0, 1), rtol=0, atol=1e-6)
    unet, command = load_digits(model("denoiser")).unet, ("-n", 3, "--model", model("denoiser"))
    D = torch.stack([unet(z[:, i]) for i in range(7)], 1).clamp(0, 1)
    assert_close(draw("ood", *command)[0]["images"], D.flatten(0, 1), rtol=0, atol=1e-4)
    made, _, said = draw("onestep", *command)
    assert_close(made["images"], D[:, 3], rtol=0, atol=1e-4)
    decibel = -10 * ((D[:, 3] - x) ** 2).flatten(1).mean(1).log10().mean()
    assert f"PSNR {float(decibel):.2f} dB" in said


def test_blur_blurs_the_noisy_digits_and_the_psnr_is_that_to_the_clean_ones(model, draw):
    x, eps = mnist.load(train=False)[0][:2].float() / 255, noise_of(137, 2)(None)
    noisy = [x + sigma * eps for sigma in noising.SIGMAS]
    unet = load_digits(model("denoiser")).unet
    blurred = [gaussian_blur(z, 9, noising.BLUR[sigma]) for z, sigma in zip(noisy, noising.SIGMAS)]
    cases = {"blur": (blurred, ()), "ood": ([unet(z) for z in noisy], ("--model", model("denoiser")))}
    for name, (columns, more) in cases.items():
        columns = [z.clamp(0, 1) for z in columns]
        made, _, said = draw(name, "-n", 2, *more)
        assert_close(made["images"], torch.stack(columns, 1).flatten(0, 1), rtol=0, atol=1e-4)
        assert made["labels"].tolist() == [7] * 7 + [2] * 7
        scores = [float(number) for number in re.search(r"PSNR in dB: ([\d., ]+\d)", said)[1].split(", ")]
        assert scores == pytest.approx([psnr(z, x) for z in columns], abs=0.06)


def test_the_animation_of_denoise_begins_with_the_noisy_digit_and_ends_with_the_result(model, draw, tmp_path):
    made, _, _ = draw("denoise", "--model", model("time"), "-n", 2, "--steps", 3, "--level", 290, "--gif")
    x_0, a = mnist.to_pixels(mnist.load(train=False)[0][:2]), linear_to_noise(300)[290]
    x_t = a.sqrt() * x_0 + (1 - a).sqrt() * noise_of(137, 2)(None)
    with Image.open(tmp_path / "drawn.gif") as picture:
        assert picture.n_frames == 4
        for i, x in ((0, (x_t + 1) / 2), (3, made["images"])):
            picture.seek(i)
            wanted = np.asarray(results.grid(x.clamp(0, 1), 10).convert("L")).astype(int)
            assert abs(np.asarray(picture.convert("L")).astype(int) - wanted).mean() < 3


def test_a_walk_from_a_low_level_has_no_more_steps_than_levels(model, draw):
    draw("denoise", "--model", model("time"), "-n", 1, "--level", 10)  # of 20 by default


def test_the_strip_of_denoise_ends_in_the_clean_digit(model):
    names = noising.denoise(n=1, model=model("time"), walk=Walk(steps=20)).columns
    assert (names[:2], names[-3:]) == (("original", "t = 150"), ("t = 0", "one step", "blur"))


def test_the_denoiser_takes_as_many_digits_at_a_time_as_asked(model, draw, monkeypatch):
    seen, honest = [], UNet.forward
    monkeypatch.setattr(UNet, "forward", lambda self, x, *rest: seen.append(len(x)) or honest(self, x, *rest))
    draw("onestep", "--model", model("denoiser"), "-n", 5, "--batch", 2)
    assert seen == [2, 2, 1]


# ------------------------------------------------------------------------------------------------------ what is refused

KINDS = {"digits": "class", "denoise": "time", "onestep": "denoiser"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("digitz", f"a lesson is one of {', '.join(sample.NAMED)}, got 'digitz'"),
        ("digits --digit 12", "class.safetensors knows the digits 0 to 9, got '12'"),
        ("digits --steps 0", "steps must be between 1 and 300, the level where the walk begins, got 0"),
        ("digits --steps 301", "steps must be between 1 and 300, the level where the walk begins, got 301"),
        ("digits --steps many", "steps must be a whole number for digits, got 'many'"),
        ("digits -n 0", "n must be between 1 and 10000000, got 0"),
        ("digits -n 50000", "a picture holds at most 10000 images, got -n 50000"),
        ("digits --sampler euler", "sampler must be one of dpm, ddim, ddpm, ddpm-large, or a step, got 'euler'"),
        ("digits --sampler ddim --eta 3", "eta must be between 0 and 1, got 3"),
        ("denoise --level 301", "level must be between 1 and T = 300, got 301"),
        ("denoise --level 0", "level must be between 1 and T = 300, got 0"),
        ("denoise --batch 3", "denoise walks all its images at once, got batch 3: leave it out"),
        ("denoise --model mnist-denoiser", "mnist-denoiser denoises in one step and has no levels to walk"),
        ("digits --model mnist-denoiser", "mnist-denoiser denoises in one step and has no levels to walk"),
        ("digits --model mnist-nothing", "got 'mnist-nothing'"),
        ("digits --model /no/such.safetensors", "there is no file /no/such.safetensors"),
        ("digits --out x.jpg", "must have a name that ends in .png or .safetensors or .npz, got x.jpg"),
        ("digits --out /proc/x/y.png", "cannot write /proc/x/y.png"),
        ("digits --device toaster", "got 'toaster'"),
        ("digits --device meta", "got 'meta'"),
        ("noise --gif", "unrecognized arguments: --gif"),
        ("noise --seed -1", "seed must be a whole number from 0, got -1"),
        ("onestep --batch 0", "batch must be a whole number from 1, got 0"),
        ("onestep --seed -1", "seed must be a whole number from 0, got -1"),
        ("onestep --digit 12", "a digit is 0 to 9, got '12'"),
        ("digits --bank x.safetensors", "unrecognized arguments: --bank"),
        ("noise --bank x.safetensors", "bank is for a model, got x.safetensors, but noise of test digits uses none"),
        ("noise TOWER --digit 3", "words say which test digits, got ['3'] for a picture: leave them out"),
        ("onestep TOWER --batch 3 --model mnist-class", "a picture takes one step at once, got batch 3: leave it out"),
        ("guidance --scale -1", "scale must be between 0 and 100, got -1"),
        ("guidance --model mnist-time", "guidance needs a network with labels, mnist-time has none"),
        ("digits --threshold 2", "threshold must be between 0 and 1, got 2.0"),
        ("digits --threshold nan", "threshold must be between 0 and 1, got nan"),
        ("digits --scale nan", "scale must be between 0 and 100, got nan"),
        ("digits --scale 1 5", "unrecognized arguments: 5"),
        ("digits --eta 0.5", "eta is DDIM's, got 0.5 with the sampler dpm: use ddim"),
        ("digits --batch 0", "batch must be a whole number from 1, got 0"),
        ("digits --seed -1", "seed must be a whole number from 0, got -1"),
        ("digits --st 3", "unrecognized arguments: --st 3"),
        ("upscale --upscale", "unrecognized arguments: --upscale"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line_with_exit_code_2(
    model, arguments, says, refused, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    arguments = [str(PICTURES / "tower.png") if word == "TOWER" else word for word in arguments.split()]
    if "--model" not in arguments and arguments[0] in KINDS:
        arguments = [*arguments, "--model", model(KINDS[arguments[0]])]
    refused(sample, arguments, says)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_guidance_of_a_network_with_nothing_to_be_guided_by_is_refused(draw, refused, tmp_path):
    settings, path = SETTINGS["course"] | {"task": "time", "classes": 0}, tmp_path / "w.safetensors"
    save_tensors(digits.network(settings).state_dict(), path, settings)
    command = ["digits", "--model", str(path), "-n", "1", "--steps", "1"]
    refused(sample, [*command, "--scale", "2", "--out", str(tmp_path / "x.png")], "to be guided by, got scale 2")
    assert draw(*command)[1]["scale"] is None


def test_a_network_of_another_kind_is_refused(model, refused, tmp_path):
    command = ["ood", "--model", model("class"), "--out", str(tmp_path / "x.png")]
    refused(sample, command, "expected the one-step denoiser, got")


# ----------------------------------------------------------------------------------------------------- the command line


@pytest.mark.parametrize("lesson", sample.NAMED)
def test_every_lesson_says_what_it_does_what_it_takes_by_default_and_gives_an_example(lesson, capsys):
    with pytest.raises(SystemExit):
        sample.main([lesson, "--help"])
    said, does = " ".join(capsys.readouterr().out.split()), sample.NAMED[lesson]
    assert " ".join(sample.summary(does).split()) in said
    for parameter, text in sample.parameters(does):
        assert text, f"{parameter.name} is described nowhere"
        assert "".join(text.replace("%%", "%").split()) in "".join(said.split())
    n = inspect.signature(does).parameters.get("n")
    assert n is None or n.default is None or f"how many images (default {n.default})" in said
    assert f"Example: python sample.py {lesson}" in said
    assert (f"--out OUT a .png, .safetensors or .npz (default out/{lesson}.png)" in said) == (
        lesson not in ("score", "embed")
    )


def test_the_help_of_all_lists_every_lesson_with_a_sentence(capsys):
    with pytest.raises(SystemExit):
        sample.main(["--help"])
    said = capsys.readouterr().out
    for name, lesson in sample.NAMED.items():
        (line,) = (line for line in said.splitlines() if line.startswith(f"{name} "))
        assert line.endswith(sample.summary(lesson).splitlines()[0])
        assert line[-1] in ".?!"


def test_the_example_of_each_lesson_is_one_that_it_takes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, lesson in sample.NAMED.items():
        example = re.search(r"Example: (.+)", lesson.__doc__).group(1)
        words = re.findall(r'"([^"]+)"|(\S+)', example)
        assert sample.arguments([one or other for one, other in words])["lesson"] == name


@pytest.mark.parametrize("name", ["--digit", "--prompt", "--words"])
def test_words_have_three_names(model, draw, name):
    made, settings, _ = draw("digits", "--model", model("class"), name, "3", "8", "-n", 2, "--steps", 1)
    assert made["labels"].tolist() == [3, 8]
    assert settings["words"] == ["3", "8"]


def test_an_empty_word_is_no_word(model, draw):
    made, _, _ = draw("digits", "--model", model("class"), "--prompt", "", "-n", 1, "--steps", 1)
    assert made["labels"].tolist() == [-1]


@pytest.mark.parametrize(
    ("arguments", "lesson"), [([], "digits"), (["-n", "3"], "digits"), (["--digit", "3"], "digits"), (["ood"], "ood")]
)
def test_without_a_lesson_digits_are_drawn(tmp_path, monkeypatch, arguments, lesson):
    monkeypatch.chdir(tmp_path)
    assert sample.arguments(arguments)["lesson"] == lesson


def spectrum(n=4, *, power: float = 2.0, model: str = "mnist-class", walk: Walk = Walk()):
    return power


def test_a_lesson_without_a_docstring_and_annotations_has_a_command_line_all_the_same():
    taken = {p.name: text for p, text in sample.parameters(spectrum)}
    assert {"n", "power", "model", "steps", "seed", "bank"} <= taken.keys()
    assert sample.summary(spectrum) == "a lesson without a docstring"
    parser = sample.Parser(prog="sample.py spectrum")
    for parameter, text in sample.parameters(spectrum):
        sample.add(parser, parameter, text, parameter.name == "n")
    found = vars(parser.parse_args(["7", "--power", "3", "--steps", "5"]))
    assert {name: found[name] for name in ("n", "power", "steps")} == {"n": 7, "power": 3.0, "steps": "5"}
