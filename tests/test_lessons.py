"""The lessons on editing and illusions, from the command line to the file, with networks whose answers are known."""

import json
import re
from dataclasses import replace

import pytest
import torch
from if_fixtures import GOLDEN
from PIL import Image
from torch.testing import assert_close

import sample
from minidiff import Walk, digits, files, judge, lessons, load, mnist, results
from minidiff.diffusion import predict_eps
from minidiff.files import load_tensors, save_arrays, save_tensors
from minidiff.illusions import gaussian
from minidiff.judge import RealDigits, concealment, frechet, load_reader, readings, to_nearest
from minidiff.schedule import linear_to_noise

LEVELS = [218, 182, 155, 136, 118, 64]
# the one image that is known for each label; the last for none
MU = torch.rand(11, 1, 28, 28, generator=torch.Generator().manual_seed(5)) * 0.6 - 0.3


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """Files of small untrained networks, by task."""
    folder = tmp_path_factory.mktemp("networks")
    for task, classes in (("class", 10), ("time", 0)):
        torch.manual_seed(1)
        settings = {"task": task, "width": 2, "T": 300, "schedule": "linear_to_noise", "pixels": [-1, 1]}
        settings |= {"classes": classes, "target": "eps", "scale": 2}
        save_tensors(digits.network(settings).state_dict(), folder / f"{task}.safetensors", settings)
    return lambda task: str(folder / f"{task}.safetensors")


@pytest.fixture
def ideal(monkeypatch):
    """In place of the network: label c knows the one image MU[c], and the answer is exact. Returns the rows of each
    call."""
    rows = []

    def labelled(unet, c, alpha_bar, classes, target):
        def denoise(x_t, t):
            rows.append(len(x_t))
            return predict_eps(x_t, MU[-1:] if c is None else MU[c], alpha_bar[t]), None

        return denoise

    monkeypatch.setattr(digits, "labelled", labelled)
    monkeypatch.setattr(digits, "in_parts", lambda ask: ask)
    return rows


@pytest.fixture
def run(network, tmp_path):
    """Draws into a file of arrays, and returns them."""

    def run(*arguments, task="class"):
        path = tmp_path / "x.safetensors"
        one = ["--best-of", 1] if arguments[0] in ("anagram", "hybrid") and "--best-of" not in arguments else []
        more = (*one, "--model", network(task), "--device", "cpu", "--out", path)
        assert sample.main([str(a) for a in (*arguments, *more)]) == 0
        return load_tensors(path)[0]

    return run


@pytest.fixture
def drawing(tmp_path):
    """A black square on white paper, and its mask: the left half."""
    picture, mask = Image.new("RGB", (56, 56), "white"), Image.new("L", (56, 56), 0)
    picture.paste("black", (20, 20, 36, 36))
    mask.paste(255, (0, 0, 28, 56))
    picture.save(tmp_path / "drawing.png")
    mask.save(tmp_path / "mask.png")
    return tmp_path / "drawing.png"


def unit(mu):
    return (mu + 1) / 2


LESSONS = [
    ("edit", "class", ["-n", 3, "--steps", 3]),
    ("edit", "class", ["-n", 2, "--steps", 1, "--digit", 3, 8, "--scale", 3]),
    ("edit", "time", ["-n", 1, "--steps", 3, "--sampler", "ddpm-large"]),
    ("inpaint", "class", ["-n", 3, "--steps", 3]),
    ("inpaint", "time", ["-n", 3, "--steps", 2, "--mask", "3,3,9,9", "--rounds", 1, "--sampler", "ddim"]),
    ("anagram", "class", ["4", "7", "-n", 3, "--steps", 2, "--best-of", 1, "--gif"]),
    (
        "anagram",
        "class",
        "1 2 3 --view jigsaw negate --weights 1 2 0.5 -n 3 --steps 2 --best-of 1".split(),
    ),
    ("hybrid", "class", ["3", "8", "-n", 3, "--steps", 2, "--sigma", 0.9, "--best-of", 1]),
    ("triple", "class", ["3", "8", "1", "-n", 3, "--steps", 2]),
]


@pytest.mark.parametrize(("lesson", "task", "more"), LESSONS)
def test_every_lesson_draws_a_picture_that_says_how_it_was_made(network, tmp_path, capsys, lesson, task, more):
    assert sample.main([lesson, *map(str, more), "--model", network(task), "--out", str(tmp_path / "x.png")]) == 0
    assert f"-> {tmp_path / 'x.png'}" in capsys.readouterr().out
    picture = Image.open(tmp_path / "x.png")
    settings = json.loads(picture.text["minidiff"])
    assert (settings["lesson"], settings["n"], settings["seed"]) == (lesson, int(more[more.index("-n") + 1]), 137)
    assert (settings["model"], settings["device"], settings["dtype"]) == (network(task), settings["device"], "float32")
    assert (tmp_path / "x.gif").exists() == ("--gif" in more)


THREE = [case for case in LESSONS if str(case[2][case[2].index("-n") + 1]) == "3"]


@pytest.mark.parametrize(("lesson", "task", "more"), THREE)
def test_image_k_is_the_same_for_any_batch_size_and_any_n(run, lesson, task, more):
    more = [m for m in more if m != "--gif"]
    x = run(lesson, *more, task=task)["images"]
    assert_close(run(lesson, *more, "--batch", 2, task=task)["images"], x, rtol=0, atol=1e-4)
    fewer = run(lesson, *more, "-n", 2, task=task)["images"]
    assert_close(fewer, x[: len(fewer)], rtol=0, atol=1e-4)
    assert not torch.allclose(run(lesson, *more, "--seed", 138, task=task)["images"], x, atol=0.01)


def test_edit_turns_the_picture_into_the_label_from_the_courses_levels(run, ideal, drawing):
    """With one image a label, every start leads to it. The walks begin where ᾱ is nearest to that of the course's
    levels 961 … 391 (0.0037 … 0.66)."""
    made = run("edit", drawing, "-n", 3, "--digit", 3, 8, "--scale", 1)
    assert made["labels"].tolist() == [3] * 6 + [8] * 6 + [3] * 6
    assert_close(made["images"], unit(MU[made["labels"]]), rtol=0, atol=1e-5)
    assert made["levels"].tolist() == LEVELS * 3
    left = linear_to_noise(300)[made["levels"][:6]].tolist()
    assert left == pytest.approx([0.0037, 0.0236, 0.0602, 0.1120, 0.2145, 0.6608], rel=0.25)
    assert ideal == [3] * sum(round(33 * t / 300) for t in LEVELS)


def test_edit_shows_a_level_once_that_two_starts_share(run, ideal, drawing):
    """The walk has the levels 300, 200, 100: by what is left of ᾱ the first two starts are nearest to 300, the last to
    100, the others to 200."""
    assert run("edit", drawing, "-n", 2, "--digit", 3, "--steps", 3)["levels"].tolist() == [300, 200, 100] * 2


def test_ink_on_paper_is_inverted_and_light_on_black_is_not(run, ideal, drawing, capsys):
    original = run("edit", drawing, "-n", 1, "--steps", 2)["original"]
    assert "(inverted" in capsys.readouterr().out
    square = torch.zeros(1, 1, 28, 28)
    square[..., 10:18, 10:18] = 1
    assert_close(original, square)
    Image.open(drawing).point(lambda value: 255 - value).save(drawing)
    assert_close(run("edit", drawing, "-n", 1, "--steps", 2)["original"], square)
    assert "(inverted" not in capsys.readouterr().out


def test_without_a_label_the_network_is_asked_once_without_one(run, ideal, drawing):
    made = run("edit", drawing, "-n", 2, "--steps", 2, "--scale", 5)
    assert set(made["labels"].tolist()) == {-1}
    assert_close(made["images"], unit(MU[-1:].expand(4, 1, 28, 28)), rtol=0, atol=1e-5)
    assert set(ideal) == {2}


@pytest.mark.parametrize("sampler", ["ddpm", "dpm"])
def test_inpaint_repaints_the_mask_and_keeps_the_rest_to_the_bit(run, ideal, sampler):
    made = run("inpaint", "-n", 4, "--mask", "0,14,28,28", "--steps", 5, "--scale", 1, "--sampler", sampler)
    assert made["labels"].tolist() == [7, 2, 1, 0]  # the first of the test set
    mask = made["mask"].expand(4, -1, -1, -1) == 1
    assert mask.sum() == 4 * 14 * 28
    assert bool(mask[..., 14:, :].all())
    assert torch.equal(made["images"][~mask], made["original"][~mask])
    assert_close(made["images"][mask], unit(MU[made["labels"]])[mask], rtol=0, atol=1e-5)
    assert len(ideal) == 1 + 4 * 4  # every step but the last is walked 4 times


def test_inpaint_takes_a_picture_with_a_mask_of_its_size_and_a_label(run, ideal, drawing):
    mask = drawing.parent / "mask.png"
    made = run("inpaint", drawing, "--mask", mask, "--digit", 5, "-n", 1, "--steps", 2, "--scale", 1)
    assert_close(made["mask"][0, 0], (torch.arange(28) < 14).float().expand(28, 28))
    assert_close(made["images"], torch.where(made["mask"] == 1, unit(MU[5:6]), made["original"]), rtol=0, atol=1e-5)


def test_an_anagram_is_the_weighted_mean_of_what_each_view_wants(run, ideal):
    made = run("anagram", 4, 7, "--view", "rot180", "--weights", 3, 1, "-n", 2, "--scale", 1, "--steps", 2)
    assert_close(made["images"][0], unit((3 * MU[4] + MU[7].rot90(2, (-2, -1))) / 4), rtol=0, atol=1e-5)
    assert made["labels"].tolist() == [[4, 7]] * 2
    assert_close(made["views"][:, 0], made["images"])
    assert_close(made["views"][:, 1], made["images"].rot90(2, (-2, -1)))
    assert ideal == [4, 4]


def test_the_negative_of_an_anagram_is_one_minus_it(run, ideal):
    made = run("anagram", 1, 2, "--view", "negate", "-n", 1, "--scale", 1, "--steps", 2)
    assert_close(made["images"][0], unit((MU[1] - MU[2]) / 2), rtol=0, atol=1e-5)
    assert_close(made["views"][:, 1], 1 - made["images"])


def test_a_hybrid_is_coarse_from_afar_and_fine_near_by(run, ideal):
    made = run("hybrid", 3, 8, "--sigma", 1.5, "-n", 2, "--scale", 1, "--steps", 2)
    low = gaussian(1.5)
    assert_close(made["images"][1], unit(low(MU[8]) + MU[3] - low(MU[3])), rtol=0, atol=1e-5)
    assert made["labels"].tolist() == [[3, 8]] * 2
    assert_close(made["small"], made["images"].view(2, 1, 7, 4, 7, 4).mean((3, 5)))
    near, far = made["views"].unbind(1)
    assert_close(near, made["images"])
    blurred = low(made["images"])
    part = blurred / blurred.flatten(1).max(1).values.view(2, 1, 1, 1)
    assert_close(far, ((part - 0.3) / 0.4).clamp(0, 1))


def test_a_triple_hybrid_has_three_words_at_three_distances(run, ideal):
    made = run("triple", 3, 8, 1, "--sigma", 0.8, 1.6, "-n", 1, "--scale", 1, "--steps", 2)
    fine, coarse = gaussian(0.8), gaussian(1.6)
    wanted = coarse(MU[1]) + fine(MU[8]) - coarse(MU[8]) + MU[3] - fine(MU[3])
    assert_close(made["images"][0], unit(wanted), rtol=0, atol=1e-5)
    assert made["labels"].tolist() == [[3, 8, 1]]
    seen = [made["images"], fine(made["images"]), coarse(made["images"])]
    assert_close(made["views"], torch.stack(seen, 1))


@pytest.mark.parametrize(
    ("arguments", "rows"),
    [
        (["anagram", 4, 7], 4),
        (["anagram", 4, 7, "--scale", 1], 2),
        (["hybrid", 3, 8], 3),
        (["triple", 3, 8, 1], 4),
    ],
)
def test_a_step_is_one_forward_pass_and_asks_nothing_twice(run, ideal, arguments, rows):
    run(*arguments, "-n", 1, "--steps", 2)
    assert ideal == [rows, rows]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("anagram 4 7 8", "3 words need 2 views (the first is seen as it is), got 1"),
        ("anagram 4 7 --view upwards", "there is no view 'upwards': choose one of identity, vflip"),
        ("anagram 4 7 --weights 1", "as many weights, if any: got 2 words, 1 weights"),
        ("anagram 4 7 --weights 0 0", "weights must be numbers of at least 0, not all of them 0, got [0.0, 0.0]"),
        ("anagram 4 7 --weights 1 nan", "weights must be numbers of at least 0, not all of them 0, got [1.0, nan]"),
        ("anagram 4 7 --weights 1 inf", "weights must be numbers of at least 0, not all of them 0, got [1.0, inf]"),
        ("anagram 4 7 --best-of 0", "best_of must be between 1 and 1000, got 0"),
        ("anagram 4 7 --best-of 1001", "best_of must be between 1 and 1000, got 1001"),
        ("edit wide.png --out wide.png", "wide.png would take the place of your picture"),
        (["edit", ""], "there is no picture"),
        ("anagram 4 17", "class.safetensors knows the digits 0 to 9, got '17'"),
        (["anagram", "4", ""], "class.safetensors knows the digits 0 to 9, got ''"),
        ("hybrid 3", "the following arguments are required: far: sample.py hybrid --help lists what it takes"),
        ("hybrid 3 -1", "class.safetensors knows the digits 0 to 9, got '-1'"),
        ("hybrid 3 8 --sigma 0", "sigma must be between 0.001 and 1000 pixels, got 0.0"),
        ("hybrid 3 8 --sigma 1e9", "sigma must be between 0.001 and 1000 pixels, got 1000000000.0"),
        ("hybrid 3 8 --sigma nan", "sigma must be between 0.001 and 1000 pixels, got nan"),
        (
            "triple 3 8 1 --sigma 2 1",
            "sigma must be two numbers, the fine one first, 0 < fine < coarse, got [2.0, 1.0]",
        ),
        ("triple 3 8 1 --sigma 1", "sigma must be two numbers, the fine one first, 0 < fine < coarse, got [1.0]"),
        ("triple 3 8 1 --sigma 1 1e9", "sigma must be between 0.001 and 1000 pixels, got 1000000000.0"),
        ("colour 3 8", "colour needs pictures with colours, "),
        ("edit no-such.png", "there is no picture no-such.png"),
        ("edit empty.png", "empty.png is empty (0 bytes)"),
        ("edit text.png", "text.png is "),
        ("edit --steps 301", "steps must be between 1 and 300, the level where the walk begins, got 301"),
        ("edit --digit 10", "class.safetensors knows the digits 0 to 9, got '10'"),
        ("edit -n 0", "n must be between 1 and 10000000, got 0"),
        ("inpaint --mask wide.png", "the mask wide.png has 40 x 30 pixels: make it 28 x 28"),
        ("inpaint --mask 0,0,29,3", "the box 0,0,29,3 is not inside 28 x 28 pixels"),
        ("inpaint --mask empty.png", "empty.png is empty (0 bytes)"),
        ("inpaint --mask 1,2,3", "four whole numbers x0,y0,x1,y1, got '1,2,3'"),
        ("inpaint --rounds 0", "rounds must be between 1 and 1000, got 0"),
        ("inpaint --digit 5 -n 893", "the test set has 892 of the digits 5, asked for 893"),
        ("inpaint --digit 12", "a digit is 0 to 9, got '12'"),
    ],
    ids=lambda case: case if isinstance(case, str) else " ".join(case),
)
def test_wrong_input_is_refused_in_one_line_with_exit_code_2(network, arguments, says, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no picture")
    Image.new("L", (40, 30)).save("wide.png")
    before = set(tmp_path.rglob("*.*"))
    arguments = arguments.split() if isinstance(arguments, str) else arguments
    refused(sample, [*arguments, "--model", network("class")], says)
    assert set(tmp_path.rglob("*.*")) == before


@pytest.fixture(scope="module")
def few_real_digits():
    """500 in place of 10,000: seconds less."""
    x = load_reader().features(mnist.to_pixels(mnist.load(train=False)[0][:500], 0, 1))
    return RealDigits(x, float(to_nearest(x, x, 6).quantile(0.99)), floor=0.25)


@pytest.fixture
def _few(monkeypatch, few_real_digits):
    monkeypatch.setattr(judge, "real_digits", lambda reader: few_real_digits)


class Brightness:
    """A reader that is as sure of every digit as the picture is bright."""

    def features(self, x):
        return x.mean((1, 2, 3))[:, None]

    def log_probs(self, features):
        return (0.5 + features / 2).log().expand(*features.shape[:-1], 10)


@pytest.mark.parametrize("lesson", [("anagram", 4, 7), ("hybrid", 3, 8)])
def test_best_of_draws_many_and_keeps_the_best_first(run, monkeypatch, lesson):
    """The reader likes bright pictures, and real digits are as bright as the second brightest, or nearly."""
    monkeypatch.setattr(judge, "load_reader", Brightness)
    command = (*lesson, "--steps", 2, "--scale", 1)
    many = run(*command, "-n", 12)["images"]
    brightness = many.mean((1, 2, 3))
    limit = 1e-3
    real = RealDigits(brightness.sort().values[-2].expand(5, 1), limit, floor=0.0)
    monkeypatch.setattr(judge, "real_digits", lambda reader: real)
    made = run(*command, "-n", 3, "--best-of", 4)
    score = (0.5 + brightness / 2).log() - (brightness - real.features[0]).abs() / limit
    wanted = score.argsort(descending=True)[:3]
    assert wanted[0] == brightness.argsort()[-2]
    assert_close(made["images"], many[wanted], rtol=0, atol=1e-4)
    assert made["labels"].tolist() == [list(lesson[1:])] * 3
    assert_close(made["views"][:, 0], made["images"])


def test_the_best_of_prompts_are_those_that_the_matcher_ranks_first(monkeypatch):
    """The matcher replaced by one that likes the dark; hybrids and anagrams of prompts alike."""
    dark = lambda seen, words: -seen[:, 0].mean((1, 2, 3)) * (words == ["a", "b"])
    monkeypatch.setattr("minidiff.lessons.illusions.rank_prompts", dark)
    model, walk = replace(load(GOLDEN / "tiny-if-I"), vocabulary=frozenset("ab")), Walk(steps=2)
    for lesson, words in ((lessons.anagram, [["a", "b"]]), (lessons.hybrid, ["a", "b"])):
        many = lesson(*words, n=4, best_of=1, model=model, walk=walk).images
        best = lesson(*words, n=2, best_of=2, model=model, walk=walk).images
        assert_close(best, many[many.mean((1, 2, 3)).argsort()[:2]], rtol=0, atol=1e-4)


def scored(arrays, capsys, path):
    (save_tensors if path.suffix == ".safetensors" else save_arrays)(arrays, path, {})
    assert sample.main(["score", str(path)]) == 0
    return capsys.readouterr().out


@pytest.mark.usefixtures("_few")
@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_score_says_of_real_digits_that_they_are_real(tmp_path, capsys, few_real_digits, suffix):
    """200 test digits, a quarter of them under a wrong label: three quarters are read as asked; all are about as
    plausible as real digits are."""
    x, labels = mnist.load(train=False)
    x, labels = mnist.to_pixels(x[:200], 0, 1), labels[:200].clone()
    labels[:50] = (labels[:50] + 1) % 10
    said = scored({"images": x, "labels": labels}, capsys, tmp_path / f"x{suffix}")
    right, fits, both = (float(share) for share in re.findall(r"([\d.]+)%", said)[:3])
    assert right == pytest.approx(75, abs=1)
    assert fits >= 97
    assert both <= right
    distance = frechet(load_reader().features(x), few_real_digits.features)
    assert f"test digits {distance:.3f}; of 2,000 training digits 0.250" in said


@pytest.mark.usefixtures("_few")
def test_score_says_of_an_illusion_how_each_view_is_read(tmp_path, capsys):
    """Sixes that are nines upside down, and fours that are nothing so: the second view is read in half of them."""
    x, labels = mnist.load(train=False)
    six, four = (mnist.to_pixels(x[labels == c][:20], 0, 1) for c in (6, 4))
    upright = torch.cat([six, four])
    seen = torch.stack([upright, upright.rot90(2, (-2, -1))], 1)
    labels = torch.tensor([[6, 9]] * 20 + [[4, 9]] * 20)
    said = scored({"images": upright, "views": seen, "labels": labels}, capsys, tmp_path / "x.safetensors")
    first, second = (float(share) for share in re.findall(r"view \d: ([\d.]+)% read", said))
    assert first >= 97
    assert 40 <= second <= 60
    assert "concealment" in said


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"images": torch.zeros(3, 1, 28, 28)}, "got images (3, 1, 28, 28): give digits"),
        (
            {"images": torch.zeros(3, 3, 28, 28), "labels": torch.zeros(3)},
            "got images (3, 3, 28, 28), labels (3,): give digits",
        ),
        ({"images": torch.zeros(3, 1, 28, 28), "labels": torch.zeros(2)}, "labels (2,): give digits"),
        (
            {"images": torch.zeros(3, 1, 28, 28), "labels": torch.zeros(3, 2)},
            "views (N, V, 1, 28, 28) with labels (N, V), got images",
        ),
        ({"images": torch.zeros(3, 1, 28, 28), "labels": torch.zeros(())}, "labels (): give digits"),
        ({}, "got nothing: give digits"),
        ({"images": torch.zeros(0, 1, 28, 28), "labels": torch.zeros(0)}, "got 0 images"),
        ({"images": torch.zeros(3, 1, 28, 28), "labels": torch.full((3,), 77)}, "labels [77, 77, 77]"),
        ({"images": torch.zeros(3, 1, 28, 28), "labels": torch.full((3,), 1.5)}, "labels [1.5, 1.5, 1.5]"),
        (
            {"images": torch.full((3, 1, 28, 28), 2.0), "labels": torch.zeros(3)},
            "expected pixels in [0, 1], got 2 to 2",
        ),
        ({"images": torch.full((3, 1, 28, 28), torch.nan), "labels": torch.zeros(3)}, "got nan to nan"),
    ],
)
def test_score_refuses_what_is_no_set_of_digits(tmp_path, capsys, arrays, says):
    for path in (tmp_path / "x.safetensors", tmp_path / "x.npz"):
        save_arrays(arrays, path, {})
        assert sample.main(["score", str(path)]) == 2
        error = capsys.readouterr().err
        assert says in error
        assert error.count("\n") == 1
    files_of = (("y.npz", "no zip", " .npz file"), ("y.safetensors", "none", " safetensors file"))
    for name, text, answer in (*files_of, ("z.npz", None, "there is no file")):
        if text:
            (tmp_path / name).write_text(text)
        assert sample.main(["score", str(tmp_path / name)]) == 2
        assert answer in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["anagram", "4"], "an anagram needs at least two words, and as many weights, if any: got 1 words, 1 weights"),
        (["digits", "--scale", "1e30"], "scale must be between 0 and 100, got 1e+30"),
        (["digits", "--digit", "3", "--model", "mnist-time"], "mnist-time knows no labels, got '3'"),
        (["edit", "--digit", "3", "--model", "mnist-time"], "mnist-time knows no labels, got '3'"),
        (["score", "digits.png"], "arrays are in a .safetensors or .npz file, got digits.png"),
    ],
)
def test_other_wrong_input_is_refused_in_one_line_with_exit_code_2(arguments, says, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(sample, arguments, says)


class Halves:
    """A reader that sees a 4 in a bright upper half, a 7 in a bright lower one, and nothing that makes one digit more
    real than another."""

    def features(self, x):
        p = torch.full((len(x), 10), 1e-9)
        p[:, 4], p[:, 7] = 0.01 + x[:, 0, :14].mean((1, 2)), 0.01 + x[:, 0, 14:].mean((1, 2))
        return p

    def log_probs(self, features):
        return features.log()


def test_each_view_is_read_as_its_own_digit(run, monkeypatch):
    """Upside down the lower half is the upper one: both digits want the same half bright."""
    monkeypatch.setattr(judge, "load_reader", Halves)
    monkeypatch.setattr(judge, "real_digits", lambda reader: RealDigits(torch.ones(5, 10), float("inf"), 0.0))
    command = ("anagram", 4, 7, "--steps", 2, "--scale", 1)
    many = run(*command, "-n", 12)["images"]
    kept = many[many[:, 0, :14].mean((1, 2)).argsort(descending=True)[:4]]
    assert_close(run(*command, "-n", 4, "--best-of", 3)["images"], kept, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("lesson", "settled"),
    [
        (["anagram", "4", "7"], {"sampler": "dpm", "steps": 10, "scale": 3, "best_of": 6, "view": ["rot180"]}),
        (["hybrid", "3", "8"], {"sampler": "dpm", "steps": 10, "scale": 4, "best_of": 12, "sigma": 1.5}),
        (["triple", "3", "8", "1"], {"sampler": "dpm", "steps": None, "scale": 2, "sigma": [28 / 32, 28 / 16]}),
        (["inpaint"], {"sampler": "ddpm", "steps": 50, "scale": 2, "rounds": 4}),
        (["edit"], {"sampler": "dpm", "steps": 33, "scale": 2}),
        (["digits"], {"sampler": "dpm", "steps": None, "scale": 2, "batch": 100, "eta": 0, "seed": 137}),
    ],
    ids=lambda case: case[0] if isinstance(case, list) else "",
)
@pytest.mark.usefixtures("ideal")
def test_what_is_not_asked_for_is_settled_by_lesson_and_written_down(network, tmp_path, monkeypatch, lesson, settled):
    monkeypatch.setattr(judge, "load_reader", Brightness)
    monkeypatch.setattr(judge, "real_digits", lambda reader: RealDigits(torch.ones(5, 1), 1.0, 0.0))
    assert sample.main([*lesson, "-n", "1", "--model", network("class"), "--out", str(tmp_path / "x.safetensors")]) == 0
    _, settings = load_tensors(tmp_path / "x.safetensors")
    assert {name: settings[name] for name in settled} == settled


def test_an_animation_of_the_first_batch_can_stand_beside_arrays(run, tmp_path):
    run("digits", "-n", 5, "--batch", 2, "--steps", 3, "--gif")
    with Image.open(tmp_path / "x.gif") as picture:
        assert picture.n_frames == 3
        assert picture.size == results.grid(torch.zeros(2, 1, 28, 28), 10).size


def read(seen, labels):
    reader = load_reader()
    log_probs = reader.log_probs(reader.features(seen.flatten(0, 1))).unflatten(0, seen.shape[:2])
    return readings(log_probs, torch.tensor(labels))


@pytest.mark.usefixtures("_few")
def test_score_counts_as_read_only_what_was_asked_for(tmp_path, capsys):
    """20 test digits, half of them drawn without a label."""
    x, labels = mnist.load(train=False)
    labels = labels[:20].clone()
    labels[::2] = -1
    x, path = mnist.to_pixels(x[:20], 0, 1), tmp_path / "x.safetensors"
    assert "20 images: 100.0% read as asked" in scored({"images": x, "labels": labels}, capsys, path)
    assert "read as asked" not in scored({"images": x, "labels": labels * 0 - 1}, capsys, path)


@pytest.mark.usefixtures("_few")
def test_an_illusion_is_plausible_when_every_view_is_and_its_concealment_is_of_labels_in_columns(tmp_path, capsys):
    """Sixes whose second view is grey: no digit."""
    x, labels = mnist.load(train=False)
    six = mnist.to_pixels(x[labels == 6][:20], 0, 1)
    seen = torch.stack([six, torch.full_like(six, 0.5)], 1)
    arrays = {"images": six, "views": seen, "labels": torch.tensor([[6, 9]] * 20)}
    said = scored(arrays, capsys, tmp_path / "x.safetensors")
    assert re.search(r"20 images: [\d.]+% read as asked, 0.0% plausible", said)
    assert f"concealment {float(concealment(read(seen, [6, 9])).mean()):.3f} " in said


@pytest.mark.usefixtures("_few")
def test_score_takes_one_image_alone(tmp_path, capsys):
    x, labels = mnist.load(train=False)
    said = scored({"images": mnist.to_pixels(x[:1], 0, 1), "labels": labels[:1]}, capsys, tmp_path / "x.safetensors")
    assert "1 image: 100.0% read as asked" in said
    assert "Fréchet" not in said


@pytest.mark.usefixtures("_few")
def test_score_says_of_each_view_and_of_both_what_is_theirs(tmp_path, capsys):
    """Ten sixes; the second view of five is the six itself, read as asked, and of five it is grey."""
    x, labels = mnist.load(train=False)
    six = mnist.to_pixels(x[labels == 6][:10], 0, 1)
    seen = torch.stack([six, torch.cat([six[:5], torch.full_like(six[5:], 0.5)])], 1)
    arrays = {"images": six, "views": seen, "labels": torch.tensor([[6, 6]] * 10)}
    said = scored(arrays, capsys, tmp_path / "x.safetensors")
    numbers = [[float(share) for share in re.findall(r"([\d.]+)%", line)] for line in said.splitlines()[:3]]
    assert numbers[1:] == [[100, 100], [50, 50]]
    assert numbers[0][2] == 50  # both
    wanted = read(seen, [6, 6]).diagonal(dim1=1, dim2=2).amin(1).mean()
    assert f"alignment {float(wanted):.3f} (" in said


def test_a_label_of_an_illusion_cannot_be_none(tmp_path, capsys):
    arrays = {"images": torch.zeros(1, 1, 28, 28), "views": torch.zeros(1, 2, 1, 28, 28)}
    files.save_arrays(arrays | {"labels": torch.tensor([[3, -1]])}, tmp_path / "x.npz", {})
    assert sample.main(["score", str(tmp_path / "x.npz")]) == 2
    assert "labels [3, -1]" in capsys.readouterr().err
