import json
import re
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from if_fixtures import GOLDEN, golden, published_configs
from torch.testing import assert_close

from minidiff import hub, prompts
from minidiff.adapters import enlarged, superres, text
from minidiff.deepfloyd import RESPACINGS, forget_text, load_stage, memory_plan, respaced, schedule_of, solver_levels
from minidiff.diffusion import add_noise, clip_to, dynamic_threshold, unclipped
from minidiff.files import save_tensors
from minidiff.guidance import cfg
from minidiff.sampling import ddim_step, ddpm_step, dpm_step, sample
from minidiff.schedule import cosine, linear

ONE, TWO = GOLDEN / "tiny-if-I", GOLDEN / "tiny-if-II"
numbers = golden("schedulers")
IF_CONFIG = hub.read_json(ONE, "scheduler/scheduler_config.json")


def ours(timesteps):
    """Their list of levels, counted from 0 and without the clean image, as ours."""
    return [int(t) + 1 for t in timesteps] + [0]


# Schedules and levels
def test_the_schedule_is_that_of_the_file():
    alpha_bar, clip = schedule_of(IF_CONFIG)
    assert_close(alpha_bar[1:].float(), numbers["tables.squaredcos1000.alphas_cumprod"], rtol=1e-4, atol=1e-9)  # theirs is a product of float32
    assert alpha_bar[0] == 1 and float(alpha_bar[1000]) == pytest.approx(2.4288e-9, rel=1e-4)
    x = numbers["threshold.p095_c1.5.in"]
    assert_close(clip(x), numbers["threshold.p095_c1.5.out"], atol=1e-6, rtol=0)
    alpha_bar, clip = schedule_of(IF_CONFIG | {"beta_schedule": "linear", "thresholding": False, "clip_sample_range": 0.5})
    assert_close(alpha_bar[1:].float(), numbers["tables.linear1000.alphas_cumprod"], rtol=1e-4, atol=0)
    assert clip(x).abs().max() == 0.5
    assert_close(schedule_of(IF_CONFIG | {"thresholding": False, "clip_sample": False})[1](x), x)


@pytest.mark.parametrize("field, value, built", [
    ("beta_schedule", "sigmoid", "'squaredcos_cap_v2' or 'linear'"),
    ("prediction_type", "v_prediction", "'epsilon'"),
    ("variance_type", "learned", "'learned_range' or 'fixed_small'"),
    ("trained_betas", [0.1], "None"),
])  # fmt: skip
def test_a_schedule_that_is_not_built_is_refused(field, value, built):
    with pytest.raises(ValueError, match=f"{field} = .*built is {built}: use"):
        schedule_of(IF_CONFIG | {field: value})


@pytest.mark.parametrize("field, value, wanted", [
    ("num_train_timesteps", "1000", "a whole number between 1 and 100000"),
    ("num_train_timesteps", 1e3, "a whole number between 1 and 100000"),
    ("dynamic_thresholding_ratio", 95, "a number between 0 and 1"),
    ("sample_max_value", float("nan"), "a number between 0 and inf"),
    ("sample_max_value", True, "a number between 0 and inf"),
    ("clip_sample_range", [1], "a number between 0 and inf"),
    ("beta_end", 2, "a number between 0 and 1"),
])  # fmt: skip
def test_numbers_of_the_schedule_that_are_none_are_refused(field, value, wanted):
    config = IF_CONFIG | {"beta_schedule": "linear", "thresholding": field != "clip_sample_range", field: value}
    with pytest.raises(ValueError, match=re.escape(f"{field} = {value!r}, wanted is {wanted}: use")):
        schedule_of(config)
    assert len(schedule_of(config | {field: None})[0]) == 1001


@pytest.mark.parametrize("variance", ["learned_range", "fixed_small", None])
def test_the_learned_variance_is_dropped_when_the_scheduler_wants_a_fixed_one(tmp_path, variance):
    shutil.copytree(ONE, tmp_path / "model")
    file = tmp_path / "model/scheduler/scheduler_config.json"
    config = json.loads(file.read_text()) | {"variance_type": variance}
    file.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
    stage = load_stage(tmp_path / "model")
    eps, v = stage.unet(torch.randn(2, 3, 16, 16), 500, conditions(stage)[0])
    assert eps.shape == (2, 3, 16, 16)
    assert (v is not None) == (variance == "learned_range")


@pytest.mark.parametrize("name", RESPACINGS)
def test_named_respacings_are_the_originals(name):
    assert respaced(name) == ours(numbers[f"timesteps.respacing.{name}"])
    assert len(respaced(name)) == int(re.sub(r"\D", "", name)) + 1


def test_a_plain_number_is_one_section():
    assert respaced(150)[-4:] == [14, 8, 1, 0]
    assert respaced("150") == respaced(150)
    assert respaced(150)[:2] == [1000, 993] and len(respaced(150)) == 151
    assert respaced(1000) == list(range(1000, -1, -1))
    assert respaced(1) == [1, 0]


@pytest.mark.parametrize("steps", ["smart30", "10;10", 0, 1001, "600,600", -5, ""])
def test_other_steps_are_refused(steps):
    with pytest.raises(ValueError, match="steps"):
        respaced(steps)


@pytest.mark.parametrize("config, steps", [("cos_lam_n10", 10), ("cos_lam_n20", 20), ("cos_lam_thresh_n8", 8)])
def test_the_solver_visits_the_references_levels_and_takes_its_steps(config, steps):
    levels = solver_levels(cosine(), steps)
    assert levels == ours(numbers[f"dpm.{config}.timesteps"])

    def toy(x, t):
        return 0.3 * x + 0.1 + 0.0002 * (t - 1), None

    clip = dynamic_threshold(0.95, 1.5) if "thresh" in config else unclipped
    walk = sample(toy, numbers["dpm.init"], levels, cosine(), step=dpm_step, clip=clip)
    for (_, x), want in zip(walk, numbers[f"dpm.{config}.trajectory"], strict=True):
        assert_close(x, want, atol=1e-4, rtol=1e-4)


def test_halves_round_as_in_the_references_linspace():
    """45 · 995/50 = 895.5 is 895.4999… there, and so their 895, our 896."""
    assert solver_levels(cosine(), 50)[5] == 896
    for steps in (1, 7, 50, 398, 994):
        assert solver_levels(cosine(), steps) == [*reversed((np.linspace(0, 995, steps + 1).round()[1:] + 1).astype(int).tolist()), 0]


def test_the_solver_refuses_more_steps_than_levels():
    with pytest.raises(ValueError, match="between 1 and 995, got 996"):
        solver_levels(cosine(), 996)


# Single steps
STEPS = sorted(key.removesuffix(".prev") for key in numbers if re.match(r"ddpm\.II?\..*\.prev$", key))


def float32_table():
    """The references keep ᾱ in float32: 1 − ᾱ_1 = 4.1e-5 is then wrong by up to 0.1 %, which shows in the last noisy step."""
    return torch.cat([torch.ones(1), numbers["tables.squaredcos1000.alphas_cumprod"]]).double()


@pytest.mark.parametrize("key", STEPS)
def test_a_ddpm_step_with_learned_variance_is_the_references(key):
    _, stage, _, t = key.split(".")
    t, t_prev = int(t[1:]) + 1, int(numbers[f"{key}.prev_t"]) + 1
    eps, raw = numbers["ddpm.model_output"].chunk(2, dim=1)
    clip = dynamic_threshold(0.95, 1.5 if stage == "I" else 1.0)
    for alpha_bar, rtol in ((float32_table(), 1e-4), (cosine(), 1e-4 if t != 2 else 2.5e-4)):
        x = ddpm_step(numbers["ddpm.sample"], eps, (raw + 1) / 2, alpha_bar[t], alpha_bar[t_prev], clip, lambda like: numbers["ddpm.noise"])
        assert_close(x, numbers[f"{key}.prev"], atol=1e-4, rtol=rtol)


@pytest.mark.parametrize("t", [0, 500, 980])
def test_a_ddpm_step_with_fixed_variance_is_the_references(t):
    eps = numbers["ddpm.model_output"][:, :3]
    alpha_bar = cosine()
    x = ddpm_step(numbers["ddpm.sample"], eps, None, alpha_bar[t + 1], alpha_bar[max(t - 19, 0)], dynamic_threshold(0.95, 1.5), lambda like: numbers["ddpm.noise"])
    assert_close(x, numbers[f"ddpm.I_fixed_small.leading50.t{t}.prev"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("t", [0, 1, 150, 299])
def test_a_plain_ddpm_step_is_the_references(t):
    eps = numbers["ddpm.model_output"][:, :3]
    alpha_bar = linear(300)
    x = ddpm_step(numbers["ddpm.sample"], eps, None, alpha_bar[t + 1], alpha_bar[t], clip_to(-1, 1), lambda like: numbers["ddpm.noise"])
    assert_close(x, numbers[f"ddpm.linear300_fixed_small.t{t}.prev"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("eta", [0, 1])
@pytest.mark.parametrize("t", [0, 500, 900])
def test_a_ddim_step_with_eps_derived_again_is_the_references(t, eta):
    eps, alpha_bar = numbers["ddpm.model_output"][:, :3], cosine()
    x = ddim(eta)(numbers["ddpm.sample"], eps, None, alpha_bar[t + 1], alpha_bar[max(t - 99, 0)], dynamic_threshold(0.95, 1.5), lambda like: numbers["ddpm.noise"])
    want = numbers[f"ddim.thresh_cos.n10.t{t}.eta{eta}.clipped_eps.prev"]
    assert_close(x, want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("t", [0, 100, 250, 999])
def test_noising_is_the_references(t):
    assert_close(add_noise(numbers["ddpm.sample"], cosine()[t + 1], numbers["ddpm.noise"]), numbers[f"add_noise.t{t}"], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("cap", [1.0, 1.5, 15.0])
def test_thresholding_is_the_references(cap):
    assert_close(dynamic_threshold(0.95, cap)(numbers[f"threshold.p095_c{cap}.in"]), numbers[f"threshold.p095_c{cap}.out"], atol=1e-6, rtol=0)


# Whole walks
walks = golden("pipeline")


def replay(denoise, tag, stage, step=ddpm_step):
    """Walk from the recorded start with the recorded noise, and compare every state."""
    draws = iter(walks.get(f"{tag}.noise_steps", ()))
    steps = sample(denoise, walks[f"{tag}.noise_init"], ours(walks[f"{tag}.timesteps"]), stage.alpha_bar, step=step, clip=stage.clip, noise=lambda like: next(draws))
    for (_, x), want in zip(steps, walks[f"{tag}.states"], strict=True):
        assert_close(x, want, atol=2e-3, rtol=0)
    assert next(draws, None) is None


def conditions(stage):
    return stage.unet.encode(walks["text.prompt_embeds"]), stage.unet.encode(walks["text.negative_prompt_embeds"])


@pytest.mark.parametrize("tag, scale", [("I_ddpm5_g7", 7), ("I_ddpm_custom_g7", 7), ("I_ddpm5_g1_noguidance", 1), ("I_dpmpp8_g7", 7)])
def test_a_whole_walk_of_stage_one_is_the_references(tag, scale):
    stage = load_stage(ONE)
    prompt, empty = conditions(stage)
    replay(cfg(text(stage.unet, prompt), text(stage.unet, empty), scale), tag, stage, dpm_step if "dpmpp" in tag else ddpm_step)


@pytest.mark.parametrize("tag, level", [("II_ddpm4_g4_noise250", 251), ("II_ddpm3_g4_noise0", 1)])
def test_a_whole_walk_of_stage_two_is_the_references(tag, level):
    stage = load_stage(TWO)
    prompt, empty = conditions(stage)
    low = enlarged(walks["II_input_lowres"], (stage.size, stage.size), stage.low_alpha_bar, level, lambda like: walks[f"{tag}.noise_lowres"])
    replay(cfg(superres(stage.unet, prompt, low, level), superres(stage.unet, empty, low, level), 4), tag, stage)


# Adapters and stages
def test_the_network_sees_its_own_dtype_and_the_level_less_one():
    seen = []

    def network(x, t, state, label=None):
        seen.append((x.dtype, x.shape[1], t, label))
        return x[:, :3], x[:, :3]

    class state:
        pooled = torch.zeros(1, 8, dtype=torch.float16)

    x = torch.randn(2, 3, 8, 8)
    eps, v = text(network, state)(x, 1000)
    assert eps.dtype == v.dtype == torch.float32
    superres(network, state, torch.zeros(2, 3, 8, 8), level=251)(x, 1)
    assert seen == [(torch.float16, 3, 999, None), (torch.float16, 6, 0, 250)]


def test_the_low_resolution_is_enlarged_corner_to_corner_and_noised_once():
    x = torch.randn(1, 3, 2, 2)
    low = enlarged(x, (5, 5), cosine(), 251, torch.zeros_like)
    assert_close(low[..., ::4, ::4], cosine()[251].sqrt().float() * x)
    assert_close(low, cosine()[251].sqrt().float() * F.interpolate(x, size=(5, 5), mode="bilinear", align_corners=True))
    for level in (0, 1001):
        with pytest.raises(ValueError, match=f"between 1 and 1000, got {level}"):
            enlarged(x, (5, 5), cosine(), level)


def test_stages_know_what_they_are():
    one, two = load_stage(ONE), load_stage(TWO, torch.bfloat16)
    assert (one.size, one.width, one.scale, one.steps, one.low_alpha_bar) == (16, 32, 7.0, "150", None)
    assert (two.size, two.scale, two.steps, len(two.low_alpha_bar)) == (32, 4.0, "smart50", 1001)
    assert one.lowest_log_snr == -5.1
    assert two.unet.conv_in.weight.dtype == torch.bfloat16
    assert two.unet.mid_block.resnets[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)


def test_each_schedule_is_that_of_its_own_file(tmp_path):
    """The walk's and the low resolution's differ, and say so: the golden folder has the same numbers in both."""
    shutil.copytree(TWO, tmp_path / "two")
    for folder, more in (("scheduler", {"lambda_min_clipped": -3.5}), ("image_noising_scheduler", {"beta_schedule": "linear", "lambda_min_clipped": -2.0})):
        path = tmp_path / "two" / folder / "scheduler_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | more))
    stage = load_stage(tmp_path / "two")
    assert_close(stage.alpha_bar, cosine(), rtol=0, atol=1e-12)
    assert_close(stage.low_alpha_bar, linear(1000), rtol=0, atol=1e-12)
    assert stage.lowest_log_snr == -3.5


@pytest.mark.parametrize("folder", [ONE, TWO])
def test_a_network_that_forgot_its_text_weights_computes_the_same(folder):
    stage = load_stage(folder)
    state, x = conditions(stage)[0], torch.randn(2, stage.unet.config["in_channels"], 16, 16)
    labels = 250 if folder == TWO else None
    want = stage.unet(x, 500, state, labels)
    before = {name for name, _ in stage.unet.named_parameters()}
    forget_text(stage.unet)
    assert_close(stage.unet(x, 500, state, labels), want, rtol=0, atol=0)
    gone = before - {name for name, _ in stage.unet.named_parameters()}
    assert {re.sub(r".*(attentions\.\d\.)", "", name).split(".")[0] for name in gone} == {"add_embedding", "encoder_hid_proj", "norm_cross", "add_k_proj", "add_v_proj"}


def test_a_walk_in_bfloat16_stays_near_the_one_in_float32():
    tag, states = "I_ddpm5_g1_noguidance", []
    for dtype in (torch.float32, torch.bfloat16):
        stage, draws = load_stage(ONE, dtype), iter(walks[f"{tag}.noise_steps"])
        denoise = text(stage.unet, conditions(stage)[0])
        *_, (_, x) = sample(denoise, walks[f"{tag}.noise_init"], ours(walks[f"{tag}.timesteps"]), stage.alpha_bar, clip=stage.clip, noise=lambda like, draws=draws: next(draws))
        assert x.dtype == torch.float32
        states.append(x)
    assert (states[0] - states[1]).square().mean().sqrt() < 0.05


# Prompts
TEXTS = ["A photo of a red fox standing in the snow!", "an oil painting of a lighthouse"]


def test_prompts_are_encoded_once_and_kept(tmp_path):
    bank = {}
    first = prompts.embed([*TEXTS, ""], ONE, 32, bank)
    assert_close(first[:2], walks["text.prompt_embeds"], atol=1e-4, rtol=0)
    assert_close(first[2], walks["text.negative_prompt_embeds"][0], atol=1e-4, rtol=0)
    prompts.save_bank(bank, tmp_path / "bank.safetensors")
    bank = prompts.load_bank(tmp_path / "bank.safetensors")
    assert_close(prompts.embed(["  AN OIL painting of a lighthouse", ""], tmp_path / "tiny-if-I", 32, bank), first[1:], rtol=0, atol=0)


def test_a_prompt_that_is_nowhere_names_the_nearest(tmp_path):
    bank = {("an oil painting of a fox", "empty"): torch.zeros(77, 32), ("something else", "other"): torch.zeros(77, 32)}
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no embedding for 'an oil painting of an ox' in the bank \(nearest there: 'an oil painting of a fox'\), and T5"):
        prompts.embed(["an oil painting of an ox"], tmp_path / "empty", 32, bank)
    with pytest.raises(ValueError, match=r"\(77, 32\), the model wants \(77, 64\)"):
        prompts.embed(["an oil painting of a fox"], tmp_path / "empty", 64, bank)


def test_the_courses_file_is_imported_without_running_pickles(tmp_path):
    import pickle

    torch.save({"An Oil Painting": torch.ones(1, 77, 4096, dtype=torch.float16)}, tmp_path / "prompts.pth")
    bank = prompts.import_pth(tmp_path / "prompts.pth")
    assert list(bank) == [("an oil painting", prompts.XXL)]
    assert_close(prompts.embed(["an oil painting "], "DeepFloyd/IF-I-M-v1.0", 4096, bank), torch.ones(1, 77, 4096))
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"a": print}, protocol=2))
    (tmp_path / "empty.pth").touch()
    for name, message in (("evil.pth", r"damaged, or holds more than tensors\)"), ("empty.pth", "damaged"), ("absent.pth", "No such file")):
        with pytest.raises(ValueError, match=f"cannot be read safely .*{message}") as refusal:
            prompts.import_pth(tmp_path / name)
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("stored", [
    [1, 2], {1: torch.ones(77, 8)}, {"a": torch.ones(2, 77, 8)}, {"a": torch.ones(1, 76, 8)}, {"a": torch.ones(77)}, {"a": torch.ones(77, 0)},
    {"a": torch.ones(77, 8, dtype=torch.int64)}, {"a": torch.full((77, 8), torch.nan)}, {"a": torch.ones(77, 8).to_sparse()}, {"a": "b"},
])  # fmt: skip
@pytest.mark.filterwarnings("ignore:Validating sparse")
def test_a_pth_file_without_embeddings_is_refused(tmp_path, stored):
    torch.save(stored, tmp_path / "wrong.pth")
    with pytest.raises(ValueError, match="is no dict of text"):
        prompts.import_pth(tmp_path / "wrong.pth")


@pytest.mark.parametrize("record", [{}, {"prompts": 5}, {"prompts": None}, {"prompts": [{"text": "a"}]}, {"prompts": [{"text": "a", "encoder": "b"}] * 2}], ids=repr)
def test_a_file_that_is_no_bank_is_refused(tmp_path, record):
    save_tensors({"0": torch.zeros(77, 8)}, tmp_path / "bank.safetensors", record)
    with pytest.raises(ValueError, match="is no prompt bank: give"):
        prompts.load_bank(tmp_path / "bank.safetensors")


# Memory
def test_the_memory_plan_counts_the_weights_exactly_and_is_refused_in_one_sentence():
    config = published_configs()["IF-I-M"]
    xxl = {"d_model": 4096, "d_kv": 64, "num_heads": 64, "d_ff": 10240, "vocab_size": 32128}
    plan = memory_plan(config, torch.bfloat16, rows=2, size=64, text_config=xxl)
    assert plan.weights == 2 * 371605830
    assert plan.text == 4 * (4 * 4096 * 4096 + 3 * 4096 * 10240)
    assert plan.weights + plan.activations < plan.weights * 1.5
    plan.check(plan.peak)
    with pytest.raises(ValueError, match=r"needs about 0\.\d GB \(weights 0.74 GB \+ activations 0.\d+ GB; before that.*\), free are 0.5 GB: use") as refusal:
        plan.check(500_000_000)
    assert "\n" not in str(refusal.value)
