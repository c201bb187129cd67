"""The lessons with a model of prompts, from the command line to the file: against the same walks written out by hand
with the golden networks."""

import gc
import json
import shutil
import weakref

from types import SimpleNamespace

import pytest
import torch
from if_fixtures import GOLDEN
from PIL import Image
from torch.testing import assert_close

import sample
from minidiff import deepfloyd, hub, pictures, prompted, prompts
from minidiff import sample as walk
from minidiff.adapters import enlarged, superres, text
from minidiff.diffusion import add_noise
from minidiff.editing import inpaint
from minidiff.files import load_tensors
from minidiff.guidance import cfg
from minidiff.illusions import anagram, colour_hybrid, gaussian, hybrid
from minidiff.lessons import editing
from minidiff.lessons.editing import STARTS
from minidiff.networks.if_unet import IFUNet, TextState
from minidiff.one_forward import stacked
from minidiff.pretrained import load
from minidiff.sampling import dpm_step, last, noise_per_image, seeded
from minidiff.schedule import strided
from minidiff.shipped import PICTURES
from minidiff.views import view
from minidiff.walk import Walk as walk_of

ONE, TWO = str(GOLDEN / "tiny-if-I"), str(GOLDEN / "tiny-if-II")
TOWER = str(PICTURES / "tower.png")
CLOSE = {"rtol": 0, "atol": 1e-3}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Draws into a file of arrays, in a folder of its own, and returns the arrays."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        assert sample.main([*map(str, arguments), "--device", "cpu", "--out", "x.safetensors"]) == 0
        return load_tensors("x.safetensors")[0]

    return run


def stage(name):
    """What a walk by hand needs, with the weights for text still there."""
    alpha_bar, clip = deepfloyd.schedule_of(hub.read_json(name, "scheduler/scheduler_config.json"))
    unet = prompted.load_unet(name, torch.float32)
    found = SimpleNamespace(unet=unet, alpha_bar=alpha_bar, clip=clip, size=unet.config["sample_size"])
    if name == TWO:
        noising = hub.read_json(name, "image_noising_scheduler/scheduler_config.json")
        found.low_alpha_bar, _ = deepfloyd.schedule_of(noising)
    return found


@pytest.fixture(scope="module")
def one():
    return stage(ONE)


@pytest.fixture(scope="module")
def two():
    return stage(TWO)


def states_of(stage, *words):
    return [stage.unet.encode(vectors[None]) for vectors in prompts.embed(list(words), ONE, 32, {})]


def noises(seed, count):
    return noise_per_image(seeded(seed, 0, count))


def unit(x):
    return ((x + 1) / 2).clamp(0, 1)


@torch.no_grad()
def by_hand(stage, denoise, levels, noise, count, step=None):
    how = {} if step is None else {"step": step}
    x_T = noise(torch.empty(count, 3, stage.size, stage.size))
    return last(walk(denoise, x_T, levels, stage.alpha_bar, clip=stage.clip, noise=noise, **how))


@pytest.mark.parametrize("sampler", ["ddpm", "dpm"])
def test_text_is_the_guided_walk_by_hand(run, one, sampler):
    """Respacings for DDPM with the learned variance of the prompt's branch; DPM-Solver++ from the level where it is
    safe to begin."""
    fox, empty = states_of(one, "a fox", "")
    denoise = cfg(text(one.unet, fox), text(one.unet, empty), 7.0)
    levels, step, steps = deepfloyd.respaced("3,2,1"), None, "3,2,1"
    if sampler == "dpm":
        levels, step, steps = deepfloyd.solver_levels(one.alpha_bar, 4), dpm_step, 4
    made = run("text", "A Fox ", "--model", ONE, "-n", 2, "--sampler", sampler, "--steps", steps, "--seed", 5)
    assert_close(made["images"], unit(by_hand(one, denoise, levels, noises(5, 2), 2, step)), **CLOSE)
    assert set(made) == {"images"}


def test_prompts_take_turns_and_image_k_is_the_same_for_any_batch_size_and_without_fusing(run):
    command = ("text", "a fox", "a skull", "--model", ONE, "-n", 3, "--steps", 3)
    x = run(*command)["images"]
    for more in (["--batch", 2], ["--sequential"], ["--batch", 1, "--sequential"]):
        assert_close(run(*command, *more)["images"], x, **CLOSE)
    assert_close(run(*command, "-n", 1)["images"], x[:1], **CLOSE)
    alone = run("text", "a skull", "--model", ONE, "-n", 2, "--steps", 3)["images"]
    assert_close(alone[1], x[1], **CLOSE)
    assert float((alone[0] - x[0]).abs().max()) > 0.01


def test_t5_is_asked_once_and_the_bank_after_that(run, tmp_path, capsys):
    """The second run has a model without a text encoder; a prompt that is not in the bank is then refused, with the
    nearest one."""
    shutil.copytree(ONE, tmp_path / "tiny-if-I")
    command = ["--model", "tiny-if-I", "--bank", "bank.safetensors", "--steps", 2, "-n", 1]
    x = run("text", "a red fox", *command)["images"]
    assert "T5 block by block" in capsys.readouterr().out
    assert "a red fox" in {words for words, _ in prompts.load_bank("bank.safetensors")}
    shutil.rmtree(tmp_path / "tiny-if-I" / "text_encoder")
    assert_close(run("text", "a red fox", *command)["images"], x, rtol=0, atol=0)
    assert "T5" not in capsys.readouterr().out
    assert sample.main(["text", "a red ox", *map(str, command)]) == 2
    error = capsys.readouterr().err
    assert "no embedding for 'a red ox' in the bank (nearest there: 'a red fox'), and T5 cannot make it" in error
    assert error.count("\n") == 1


def test_embed_fills_the_bank_that_a_lesson_reads(run, tmp_path, capsys, refused):
    torch.save({"A Waterfall": torch.ones(1, 77, 4096)}, tmp_path / "course.pth")
    assert sample.main(["embed", "a fox", "a skull", "--encoder", ONE, "--bank", "bank.safetensors"]) == 0
    said = capsys.readouterr().out
    assert "3 prompts added, 3 in the bank" in said
    assert "-> bank.safetensors" in said
    assert sample.main(["embed", "--import", "course.pth", "--out", "bank.safetensors"]) == 0
    assert "1 prompt added, 4 in the bank" in capsys.readouterr().out
    ours = [(word, "tiny-if-I") for word in ("", "a fox", "a skull")]
    assert [(text, by.name) for text, by in prompts.load_bank("bank.safetensors")] == [
        *ours,
        ("a waterfall", prompts.XXL),
    ]
    run("text", "a fox", "--model", ONE, "--bank", "bank.safetensors", "--steps", 1, "-n", 1)
    assert "T5" not in capsys.readouterr().out
    refused(
        sample, ["embed", "--import", "course.txt", "--out", "bank.safetensors"], "course.txt cannot be read safely"
    )


def test_words_that_are_cut_off_are_named(run, capsys):
    run("text", "word " * 90 + "nevermore", "--model", ONE, "--steps", 1, "-n", 1)
    error = capsys.readouterr().err
    assert "sample.py: the prompt has" in error
    assert "nevermore" in error
    assert "UserWarning" not in error


def test_edit_begins_at_the_courses_own_levels(run, calls):
    made = run("edit", TOWER, "--model", ONE, "--prompt", "a rocket ship", "-n", 1)
    assert made["levels"].tolist() == [strided(991, 30)[i] for i in STARTS] == [961, 901, 841, 781, 691, 391]
    assert len(calls) == sum(len(strided(991, 30)[i:]) - 1 for i in STARTS)


def test_edit_is_the_walk_by_hand_from_a_level_of_the_course(run, one, monkeypatch):
    monkeypatch.setattr(editing, "STARTS", [26])
    made = run("edit", TOWER, "--model", ONE, "--prompt", "a rocket ship", "-n", 1)
    assert made["levels"].tolist() == [211]
    ship, empty = states_of(one, "a rocket ship", "")
    x_0, noise = 2 * made["original"] - 1, noises(137, 1)
    x = add_noise(x_0, one.alpha_bar[211], noise(x_0))
    denoise = cfg(text(one.unet, ship), text(one.unet, empty), 7.0)
    with torch.no_grad():
        x = last(walk(denoise, x, strided(991, 30)[26:], one.alpha_bar, clip=one.clip, noise=noise))
    assert_close(made["images"], unit(x), **CLOSE)


def test_inpaint_keeps_the_picture_to_the_bit_and_draws_by_hand_inside(run, one):
    made = run("inpaint", TOWER, "--model", ONE, "-n", 1, "--mask", "4,4,12,12", "--steps", 3)
    m = made["mask"]
    assert m.sum() == 64
    outside = (m == 0).expand_as(made["images"])
    assert torch.equal(made["images"][outside], made["original"][outside])
    photo, empty = states_of(one, "a high quality photo", "")
    denoise = cfg(text(one.unet, photo), text(one.unet, empty), 7.0)
    how = {"clip": one.clip, "noise": noises(137, 1)}
    x = last(inpaint(denoise, 2 * made["original"] - 1, m, [1000, 501, 1, 0], one.alpha_bar, **how))
    assert_close(made["images"], unit(x), **CLOSE)


def second_walk(two, x, denoise_of, seed=138):
    """Stage II on images (N, 3, 16, 16) in [0, 1], three steps of DPM-Solver++."""
    noise = noises(seed, len(x))
    x_T = noise(torch.empty(len(x), 3, 32, 32))
    low = enlarged(2 * x - 1, (32, 32), two.low_alpha_bar, 251, noise)
    levels = deepfloyd.solver_levels(two.alpha_bar, 3)
    with torch.no_grad():
        return unit(last(walk(denoise_of(low), x_T, levels, two.alpha_bar, step=dpm_step, clip=two.clip, noise=noise)))


def test_an_anagram_is_enlarged_with_the_low_resolution_seen_through_each_view(run, one, two):
    command = ("anagram", "an old man", "a campfire", "--view", "rot90", "--model", ONE, "-n", 2, "--steps", 2)
    x, turn = run(*command)["images"], view("rot90")
    man, fire, empty = states_of(one, "an old man", "a campfire", "")
    man2, fire2, empty2 = states_of(two, "an old man", "a campfire", "")
    first = anagram([cfg(text(one.unet, c), text(one.unet, empty), 7.0) for c in (man, fire)], [view("identity"), turn])
    levels = deepfloyd.solver_levels(one.alpha_bar, 2)
    assert_close(x, unit(by_hand(one, first, levels, noises(137, 2), 2, dpm_step)), **CLOSE)

    def second(low):
        seen = [(man2, low), (fire2, turn.apply(low))]
        guided = [cfg(superres(two.unet, c, a), superres(two.unet, empty2, a), 4.0) for c, a in seen]
        return anagram(guided, [view("identity"), turn])

    made = run(*command, "--upscale", TWO, "--upscale-steps", 3)
    assert_close(made["images"], second_walk(two, x, second), **CLOSE)
    assert_close(made["views"][:, 1], made["images"].rot90(1, (-2, -1)))


def test_a_hybrid_is_enlarged_with_a_blur_as_much_wider_as_the_picture(run, two):
    command = ("hybrid", "a waterfall", "a skull", "--model", ONE, "-n", 1, "--steps", 2)
    near, far, empty = states_of(two, "a waterfall", "a skull", "")

    def second(low):
        guided = [cfg(superres(two.unet, c, low), superres(two.unet, empty, low), 4.0) for c in (far, near)]
        return hybrid(*guided, gaussian(2 * 0.5))  # from 16 to 32 pixels

    made = run(*command, "--upscale", TWO, "--upscale-steps", 3)["images"]
    assert_close(made, second_walk(two, run(*command)["images"], second), **CLOSE)


def test_a_colour_hybrid_is_the_formula_in_both_stages(run, one, two):
    command = ("colour", "a lake", "a face", "--model", ONE, "-n", 1, "--steps", 2)
    small = run(*command)
    lake, face, empty = states_of(one, "a lake", "a face", "")
    first = colour_hybrid(*(cfg(text(one.unet, c), text(one.unet, empty), 7.0) for c in (lake, face)))
    levels = deepfloyd.solver_levels(one.alpha_bar, 2)
    assert_close(small["images"], unit(by_hand(one, first, levels, noises(137, 1), 1, dpm_step)), **CLOSE)
    grey = small["images"].mean(1, keepdim=True).expand(-1, 3, -1, -1)
    assert_close(small["views"], torch.stack([grey, small["images"]], 1))
    lake2, face2, empty2 = states_of(two, "a lake", "a face", "")

    def second(low):
        guided = [cfg(superres(two.unet, c, low), superres(two.unet, empty2, low), 4.0) for c in (lake2, face2)]
        return colour_hybrid(*guided)

    made = run(*command, "--upscale", TWO, "--upscale-steps", 3)["images"]
    assert_close(made, second_walk(two, small["images"], second), **CLOSE)


def test_upscale_draws_what_the_flag_of_another_lesson_draws(run, tmp_path):
    command = ("text", "a fox", "--model", ONE, "-n", 2, "--steps", 2)
    both = run(*command, "--upscale", TWO, "--upscale-steps", 3)["images"]
    run(*command)
    shutil.copy("x.safetensors", "small.safetensors")
    assert both.shape == (2, 3, 32, 32)
    command = ("upscale", "small.safetensors", "--model", TWO, "--encoder", ONE, "--prompt", "a fox", "--steps", 3)
    assert_close(run(*command)["images"], both, **CLOSE)
    assert load_tensors("x.safetensors")[1]["n"] == 2
    library = load(ONE, upscale=TWO, upscale_steps=3).sample("a fox", 2, steps=2, progress=False)
    assert_close(library, both, **CLOSE)


def test_stage_two_walks_with_the_seed_and_the_sampler_of_the_caller(two):
    model = load(ONE, upscale=TWO, upscale_steps=2)
    first, other = (model.sample("a fox", steps=2, seed=seed, progress=False) for seed in (5, 6))
    x, _ = model.from_noise([["a fox"]], 1, walk_of(steps=2, seed=5), show=False)
    fox, empty = states_of(two, "a fox", "")
    low_noise = noises(6, 1)  # other noise than that of stage I
    x_T = low_noise(torch.empty(1, 3, 32, 32))
    low = enlarged(2 * x - 1, (32, 32), two.low_alpha_bar, 251, low_noise)
    denoise = cfg(superres(two.unet, fox, low), superres(two.unet, empty, low), 4.0)
    levels = deepfloyd.solver_levels(two.alpha_bar, 2)
    how = {"step": dpm_step, "clip": two.clip, "noise": low_noise}
    with torch.no_grad():
        assert_close(first, unit(last(walk(denoise, x_T, levels, two.alpha_bar, **how))), **CLOSE)
    assert float((first - other).abs().max()) > 0.01


def test_inpainting_is_enlarged_with_the_large_picture_around_it(run):
    made = run("inpaint", TOWER, "--model", ONE, "-n", 1, "--steps", 2, "--upscale", TWO, "--upscale-steps", 3)
    outside = (made["mask"] == 0).expand_as(made["images"])
    assert made["images"].shape == (1, 3, 32, 32)
    assert torch.equal(made["images"][outside], made["original"][outside])
    assert float((made["images"] - made["original"])[~outside].abs().mean()) > 0.01


@pytest.mark.usefixtures("calls")
def test_digits_for_prompts_are_no_labels(run):
    assert set(run("anagram", "4", "7", "--model", ONE, "-n", 1, "--steps", 1)) == {"images", "views"}


LESSONS = ["text a", "edit", "inpaint", "anagram a b", "hybrid a b", "triple a b c", "colour a b"]


@pytest.mark.usefixtures("calls")
@pytest.mark.parametrize("lesson", [*LESSONS, f"upscale --encoder {ONE}"], ids=lambda a: a.split()[0])
def test_every_lesson_draws_a_picture_that_says_how_it_was_made(tmp_path, monkeypatch, lesson):
    monkeypatch.chdir(tmp_path)
    name, *more = lesson.split()
    model = TWO if name == "upscale" else ONE
    command = [name, *more, "--model", model, "-n", "2", "--steps", "2", "--dtype", "bfloat16"]
    assert sample.main(command) == 0
    with Image.open(f"out/{name}.png") as picture:
        settings = json.loads(picture.text["minidiff"])
    assert (settings["model"], settings["dtype"], settings["seed"], settings["n"]) == (model, "bfloat16", 137, 2)


def test_the_plan_is_told_first_and_nothing_is_loaded_that_does_not_fit(tmp_path, monkeypatch, capsys):
    def never(*args, **kwargs):
        raise AssertionError("loaded before the plan was checked")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(prompted, "free_memory", lambda device: 1000)
    monkeypatch.setattr(prompts, "embed", never)
    monkeypatch.setattr(prompted, "load_unet", never)
    assert sample.main(["text", "a fox", "--model", ONE]) == 2
    said = capsys.readouterr()
    assert "weights 0.00 GB + activations" in said.out
    assert "GB), and 0.0 GB are free: use a smaller model" in said.err


PLANS = {
    "text a": (8, True),
    "text a -n 1": (2, True),
    "text a -n 1 --scale 1": (1, True),
    "text a --batch 2": (4, True),
    "text NONE a -n 2": (4, True),
    "text NONE -n 2": (2, True),
    "anagram a b --batch 2": (8, True),
    "anagram a a --batch 2": (8, True),
    "hybrid a b --batch 2": (6, True),
    "triple a b c --batch 2": (8, True),
    "colour a b --batch 2": (6, True),
    "anagram a b --batch 2 --sequential": (2, True),
    "edit -n 1": (2, True),
    "inpaint -n 1": (2, True),
}


@pytest.mark.parametrize("command", PLANS)
def test_a_full_size_model_is_planned_by_its_rows(tmp_path, monkeypatch, command):
    """More images at a time take more, --sequential takes less, and T5 is counted where a prompt is not in the bank."""
    plans = []

    def plan(config, dtype, rows, text_config=None):
        plans.append((rows, text_config is not None))
        return deepfloyd.MemoryPlan(10**18, 0, 0)

    monkeypatch.setattr(deepfloyd, "memory_plan", plan)
    monkeypatch.chdir(tmp_path)
    assert sample.main([{"NONE": ""}.get(word, word) for word in command.split()] + ["--model", ONE]) == 2
    assert plans == [PLANS[command]]


@pytest.mark.usefixtures("calls")
def test_what_a_loaded_model_holds_is_not_asked_for_again(monkeypatch, tmp_path):
    """Memory for the weights and the activations once: the first walk takes the weights, the second needs no more."""
    monkeypatch.chdir(tmp_path)
    model, loaded = load(ONE), []
    monkeypatch.setattr(deepfloyd, "memory_plan", lambda *a, **more: deepfloyd.MemoryPlan(1000, 500, 0))
    monkeypatch.setattr(prompted, "free_memory", lambda device: 500 if loaded else 1500)
    honest = prompted.load_unet
    monkeypatch.setattr(prompted, "load_unet", lambda *a, **k: loaded.append(1) or honest(*a, **k))
    for _ in range(2):
        model.sample("a fox", steps=1, progress=False)
    assert loaded == [1]
    monkeypatch.setattr(prompted, "free_memory", lambda device: 499)
    with pytest.raises(ValueError, match="needs about 0.0 GB"):
        model.sample("a fox", steps=1, progress=False)


@pytest.mark.parametrize(
    ("more", "planned"),
    [([], [("II", 4), ("I", 12), ("II", 4)]), (["--sequential"], [("II", 1), ("I", 3), ("II", 1)])],
)
def test_both_stages_of_an_anagram_are_planned_by_their_own_rows(run, calls, monkeypatch, more, planned):
    """Two terms and guidance, four questions an image; three images at a time in stage I, one in stage II, whose plan
    is checked before all else."""
    plans = []

    def plan(config, dtype, rows, **text):
        plans.append(("II" if config["in_channels"] == 6 else "I", rows))
        return deepfloyd.MemoryPlan(0, 0, 0)

    monkeypatch.setattr(deepfloyd, "memory_plan", plan)
    both = ("--model", ONE, "--upscale", TWO, "--steps", 1, "--upscale-steps", 1)
    run("anagram", "a", "b", "-n", 3, "--batch", 3, *both, *more)
    assert plans == planned


@pytest.mark.parametrize(
    ("dtype", "half"),
    [([], False), (["--dtype", "float32"], False), (["--dtype", "bfloat16"], True), (["--dtype", "float16"], True)],
)
def test_embed_takes_the_half_precision_files_where_it_is_asked_to(tmp_path, monkeypatch, dtype, half):
    asked = []
    monkeypatch.setattr(prompts, "embed", lambda words, encoder, width, bank, half, progress: asked.append(half))
    assert sample.main(["embed", "a", "--encoder", ONE, *dtype, "--bank", str(tmp_path / "bank.safetensors")]) == 0
    assert asked == [half]


def test_each_level_of_each_picture_is_enlarged_with_the_words_of_the_picture(run, two):
    few = ("-n", 2, "--steps", 2, "--sampler", "dpm")
    command = ("edit", TOWER, "--model", ONE, "--prompt", "a fox", "a skull", *few)
    small = run(*command)
    fox, skull, empty = states_of(two, "a fox", "a skull", "")
    each = stacked([fox] * 2 + [skull] * 2, 1)

    def second(low):
        return cfg(superres(two.unet, TextState(*each), low), superres(two.unet, empty, low), 4.0)

    assert len(small["images"]) == 4  # two levels of the first picture, and two of the second
    made = run(*command, "--upscale", TWO, "--upscale-steps", 3)["images"]
    assert_close(made, second_walk(two, small["images"], second), **CLOSE)


DPM = "DPM-Solver++ takes a number of steps, got 'smart2"
TAKEN = "leave it out, or choose another model"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("text a --model no-such-folder", "a folder or owner/name on the hub, got 'no-such-folder'"),
        ("text a --model ./no-such-folder", "there is no folder"),
        ("text a --model ONE --steps smart28", f"{DPM}8': a name is for ddpm or ddim"),
        (
            "text a --model ONE --sampler ddpm --steps smart28",
            "steps must be a number, numbers like 10,10,3,2,2 or one of fast27",
        ),
        ("text a --model ONE --steps 2000", "steps must be between 1 and 995, got 2000"),
        ("text a --model ONE --steps 0", "steps must be between 1 and 995, got 0"),
        ("text a --model ONE -n 0", "n must be between 1 and 10000000, got 0"),
        ("text a --model ONE --upscale ./nowhere", "upscale: there is no folder ./nowhere"),
        ("text a --model ONE --upscale TWO --upscale-steps smart27", f"upscale: {DPM}7': a name is for ddpm or ddim"),
        ("text a --model ONE --upscale TWO --upscale-steps 0", "upscale: steps must be between 1 and 995, got 0"),
        ("text a --model ONE --upscale-steps 5", "upscale_steps is for stage II, got 5 without upscale"),
        ("text a --model ONE --noise-level 5", "noise_level is for stage II, got 5 for"),
        ("text a --model ONE --upscale TWO --noise-level 1000", "noise_level must be between 0 and 999, got 1000"),
        ("edit no.png --model ONE", "there is no picture no.png"),
        ("text a --model ONE --bank bank.txt", "bank must be a name that ends in .safetensors, got bank.txt"),
        ("text a --model ONE --dtype float8", "dtype must be one of float32, bfloat16, float16, got 'float8'"),
        ("text a --model TWO --encoder ONE", "tiny-if-II is a stage II, which enlarges pictures: expected a stage I"),
        ("edit --model TWO --encoder ONE", "tiny-if-II is a stage II, which enlarges pictures: expected a stage I"),
        ("inpaint --model TWO --encoder ONE", "tiny-if-II is a stage II, which enlarges pictures: expected a stage I"),
        ("anagram a b --model TWO --encoder ONE", "is a stage II, which enlarges pictures: expected a stage I"),
        ("text a --model TWO --upscale TWO", "is a stage II, which enlarges pictures: expected a stage I"),
        ("text a --model ONE --upscale ONE", "tiny-if-I is a stage I, expected a stage II"),
        ("upscale --model ONE", "is no stage II, which enlarges: name one, like DeepFloyd/IF-II-M-v1.0"),
        ("upscale --model TWO", "no embedding for ''"),
        ("upscale --model TWO --encoder ONE --prompt a b", "expected one word here, got 2: 'a', 'b'"),
        ("upscale no.png --model TWO --encoder ONE", "there is no picture no.png"),
        ("digits --model ONE", "digits is a lesson on digits"),
        ("guidance --model ONE", "guidance is a lesson on digits"),
        ("edit --prompt fox --model mnist-class", "mnist-class knows the digits 0 to 9, got 'fox'"),
        ("anagram 4 7 --upscale", f"upscale is for models of prompts, mnist-class draws digits: {TAKEN}"),
        ("anagram 4 7 --upscale-steps 3", f"upscale_steps is for models of prompts, mnist-class draws digits: {TAKEN}"),
        ("anagram 4 7 --bank x.safetensors", f"bank is for models of prompts, mnist-class draws digits: {TAKEN}"),
        ("edit --noise-level 0", f"noise_level is for models of prompts, mnist-class draws digits: {TAKEN}"),
        ("edit --dtype bfloat16", f"dtype is for models of prompts, mnist-class draws digits: {TAKEN}"),
        ("edit --encoder x", f"encoder is for models of prompts, mnist-class draws digits: {TAKEN}"),
        (
            "anagram a b --view pixels --model ONE --upscale TWO",
            "the view 'pixels' shuffles a large picture otherwise",
        ),
        ("upscale --model mnist-class", "mnist-class is no stage II, which enlarges: name one, like DeepFloyd/IF-II"),
        ("text a --model ONE --upscale mnist-class", "upscale: "),
        ("inpaint --model ONE --mask 0,0,17,3", "the box 0,0,17,3 is not inside 16 x 16 pixels"),
        ("embed a --encoder TWO", "tiny-if-II has no text_encoder/config.json"),
        ("embed a --encoder ONE --bank bank.png", "must have a name that ends in .safetensors, got bank.png"),
        ("text a --model ONE --bank /proc/none/bank.safetensors", "cannot write /proc/none/bank.safetensors"),
        ("text --prompts none.txt --model ONE", "cannot read the prompts in none.txt (No such file or directory)"),
    ],
)
def test_wrong_input_is_refused_in_one_line_with_exit_code_2(arguments, says, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(sample, [{"ONE": ONE, "TWO": TWO}.get(word, word) for word in arguments.split()], says)
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".png", ".gif")]


def test_the_model_of_a_hub_name_is_asked_from_the_hub(monkeypatch, capsys, tmp_path):
    def asked(model, *names):
        raise ValueError(f"{model} is gated: accept its licence")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "fetch", asked)
    assert sample.main(["text", "a snowy mountain village", "--model", "DeepFloyd/IF-I-M-v1.0"]) == 2
    assert capsys.readouterr().err == "sample.py: DeepFloyd/IF-I-M-v1.0 is gated: accept its licence\n"


@pytest.fixture
def loaded(monkeypatch):
    """Weak references to the networks in the order of loading; each must be gone, by reference counts alone, without
    waiting for the garbage collector, before the next is loaded."""
    honest, loaded = prompted.load_unet, []

    def load(*arguments):
        assert [network() for network in loaded] == [None] * len(loaded)
        unet = honest(*arguments)
        loaded.append(weakref.ref(unet))
        return unet

    monkeypatch.setattr(prompted, "load_unet", load)
    gc.disable()
    yield loaded
    gc.enable()


@pytest.mark.usefixtures("calls")
@pytest.mark.parametrize("lesson", LESSONS, ids=lambda a: a.split()[0])
def test_the_first_network_is_gone_before_the_second_is_loaded(run, loaded, lesson):
    run(*lesson.split(), "--model", ONE, "-n", 1, "--steps", 2, "--upscale", TWO, "--upscale-steps", 1)
    assert len(loaded) == 2


def test_stage_two_is_gone_before_stage_one_is_loaded_again(loaded, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = load(ONE, upscale=TWO, upscale_steps=1)
    x = model.sample("a fox", steps=1, progress=False)
    assert_close(model.sample("a fox", steps=1, progress=False), x, rtol=0, atol=0)
    assert len(loaded) == 4


def test_a_prompt_that_comes_later_is_encoded_then_and_the_first_stays_as_it_was(loaded, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, alone = load(ONE), load(ONE)
    fox, skull, again = (model.sample(word, steps=1, progress=False) for word in ("a fox", "a skull", "a fox"))
    assert len(loaded) == 2  # T5 and the U-Net are never in memory at once
    model.release()
    assert_close(again, fox, rtol=0, atol=0)
    assert_close(alone.sample("a skull", steps=1, progress=False), skull, rtol=0, atol=0)


@pytest.fixture
def calls(monkeypatch):
    """(images in the call, dtype, noise level of the low resolution) of every call of a network, which predicts no
    noise; the text weights must be gone by then."""
    seen = []

    def forward(self, x, t, state, class_labels=None):
        assert not hasattr(self, "add_embedding")
        seen.append((len(x), x.dtype, class_labels))
        return torch.zeros_like(x[:, :3]), None

    monkeypatch.setattr(IFUNet, "forward", forward)
    return seen


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda a: a.split()[0])
def test_sequential_asks_for_one_term_at_a_time_and_dtype_reaches_both_stages(run, calls, lesson):
    few = ("-n", 1, "--steps", 1, "--upscale-steps", 1)
    command = (*lesson.split(), "--model", ONE, "--upscale", TWO, "--dtype", "bfloat16", *few)
    run(*command)
    fused = {"anagram": 4, "hybrid": 3, "triple": 4, "colour": 3}.get(lesson.split()[0], 2)
    assert {rows for rows, _, _ in calls} == {fused}
    assert {dtype for _, dtype, _ in calls} == {torch.bfloat16}
    calls.clear()
    run(*command, "--sequential")
    assert {rows for rows, _, _ in calls} == {1}


def test_stage_two_has_steps_of_its_own_and_is_told_the_noise_level(run, calls):
    run("inpaint", "--model", ONE, "-n", 1, "--steps", 2, "--sampler", "dpm", "--upscale", TWO, "--noise-level", 100)
    assert [level for _, _, level in calls] == [None] * 2 + [100] * 20


def test_upscale_by_hand_at_another_noise_level(run, two):
    tower, empty = states_of(two, "a tower", "")
    command = ("upscale", TOWER, "--model", TWO, "--encoder", ONE, "--prompt", "a tower")
    made = run(*command, "--noise-level", 100, "--steps", 3)
    x, noise = pictures.read(TOWER, (8, 8)), noises(138, 1)
    x_T = noise(torch.empty(1, 3, 32, 32))
    low = enlarged(x, (32, 32), two.low_alpha_bar, 101, noise)
    denoise = cfg(superres(two.unet, tower, low, 101), superres(two.unet, empty, low, 101), 4.0)
    levels, how = deepfloyd.solver_levels(two.alpha_bar, 3), {"step": dpm_step, "clip": two.clip, "noise": noise}
    with torch.no_grad():
        x_0 = last(walk(denoise, x_T, levels, two.alpha_bar, **how))
    assert_close(made["images"], unit(x_0), **CLOSE)


@pytest.mark.usefixtures("calls")
def test_an_animation_can_stand_beside_arrays(run, tmp_path):
    run("text", "a", "--model", ONE, "-n", 3, "--batch", 2, "--steps", 4, "--gif")
    with Image.open("x.gif") as picture:
        assert picture.n_frames == 4


@pytest.mark.usefixtures("calls")
def test_a_text_picture_with_a_bright_border_is_not_inverted(run, tmp_path):
    Image.new("RGB", (32, 32), "white").save(tmp_path / "white.png")
    made = run("edit", "white.png", "--model", ONE, "-n", 1, "--steps", 3, "--sampler", "dpm")
    assert float(made["original"].min()) == 1


@pytest.mark.usefixtures("calls")
def test_what_was_settled_is_written_down(run):
    for lesson, sampler in (("text 7", "dpm"), ("edit", "ddpm"), ("inpaint", "ddpm"), ("hybrid a b", "dpm")):
        command = [*lesson.split(), "--model", ONE, "-n", "1", "--steps", "2", "--out", "x.safetensors"]
        assert sample.main(command) == 0
        arrays, settings = load_tensors("x.safetensors")
        assert (settings["sampler"], settings["scale"], settings["dtype"]) == (sampler, 7.0, "float32")
        assert "labels" not in arrays


def test_no_prompt_is_no_prompt_and_is_not_guided(run, one):
    """`--prompt ""`: one question a step, the unconditional network."""
    (empty,) = states_of(one, "")
    levels, denoise = deepfloyd.solver_levels(one.alpha_bar, 3), text(one.unet, empty)
    made = run("text", "", "--model", ONE, "-n", 1, "--steps", 3)["images"]
    assert_close(made, unit(by_hand(one, denoise, levels, noises(137, 1), 1, dpm_step)), **CLOSE)


def test_a_batch_in_which_some_prompts_are_empty_guides_the_others(run):
    command = ("--model", ONE, "-n", 2, "--steps", 2)
    both = run("text", "a fox", "", *command)["images"]
    assert_close(both[:1], run("text", "a fox", *command)["images"][:1], **CLOSE)
    assert_close(both[1:], run("text", "", *command)["images"][1:], **CLOSE)


def test_levels_of_a_prompted_model_may_begin_lower():
    model = load(ONE)
    whole = model.timesteps(4)
    assert model.timesteps(4, start=500) == [500, *(t for t in whole if t < 500)]
    with pytest.raises(ValueError, match="start must be between 1 and T = 1000, got 1001"):
        model.timesteps(4, start=1001)
    assert model.timesteps(4, dpm_step) == whole
