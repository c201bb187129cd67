import json
import re
import shutil
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from if_fixtures import GOLDEN, golden, published_configs
from torch.testing import assert_close

from minidiff import hub
from minidiff.adapters import enlarged, superres, text
from minidiff.deepfloyd import RESPACINGS, memory_plan, respaced, schedule_of, solver_levels
from minidiff.diffusion import add_noise, clip_to, dynamic_threshold, unclipped
from minidiff.guidance import cfg
from minidiff.prompted import Weights, forget_text, load_prompted, load_unet
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
    want = numbers["tables.squaredcos1000.alphas_cumprod"]  # a product of float32
    assert_close(alpha_bar[1:].float(), want, rtol=1e-4, atol=1e-9)
    assert alpha_bar[0] == 1 and float(alpha_bar[1000]) == pytest.approx(2.4288e-9, rel=1e-4)
    x = numbers["threshold.p095_c1.5.in"]
    assert_close(clip(x), numbers["threshold.p095_c1.5.out"], atol=1e-6, rtol=0)
    changes = {"beta_schedule": "linear", "thresholding": False, "clip_sample_range": 0.5}
    alpha_bar, clip = schedule_of(IF_CONFIG | changes)
    assert_close(alpha_bar[1:].float(), numbers["tables.linear1000.alphas_cumprod"], rtol=1e-4, atol=0)
    assert clip(x).abs().max() == 0.5
    assert_close(schedule_of(IF_CONFIG | {"thresholding": False, "clip_sample": False})[1](x), x)


@pytest.mark.parametrize(
    "field, value, built",
    [
        ("beta_schedule", "sigmoid", "'squaredcos_cap_v2' or 'linear'"),
        ("prediction_type", "v_prediction", "'epsilon'"),
        ("variance_type", "learned", "'learned_range' or 'fixed_small'"),
        ("trained_betas", [0.1], "None"),
        ("timestep_spacing", "trailing", "'leading' or 'linspace'"),
        ("steps_offset", 1, "0"),
        ("solver_order", 3, "2"),
        ("algorithm_type", "sde-dpmsolver++", "'dpmsolver..'"),
        ("use_karras_sigmas", True, "False"),
        ("use_beta_sigmas", True, "False"),
        ("rescale_betas_zero_snr", True, "False"),
    ],
)
def test_a_schedule_that_is_not_built_is_refused(field, value, built):
    with pytest.raises(ValueError, match=f"{field} = .*, expected {built}: use"):
        schedule_of(IF_CONFIG | {field: value})


def test_settings_that_change_nothing_are_taken():
    same = {
        "timestep_spacing": "leading",
        "steps_offset": 0,
        "use_karras_sigmas": False,
        "solver_order": 2,
        "algorithm_type": "dpmsolver++",
        "use_lu_lambdas": None,
    }
    assert torch.equal(schedule_of(IF_CONFIG | same)[0], schedule_of(IF_CONFIG)[0])


@pytest.mark.parametrize(
    "field, value, wanted",
    [
        ("num_train_timesteps", "1000", "an integer between 1 and 100000"),
        ("num_train_timesteps", 1e3, "an integer between 1 and 100000"),
        ("dynamic_thresholding_ratio", 95, "a number between 0 and 1"),
        ("sample_max_value", float("nan"), "a number between 0 and inf"),
        ("sample_max_value", True, "a number between 0 and inf"),
        ("clip_sample_range", [1], "a number between 0 and inf"),
        ("beta_end", 2, "a number between 0 and 1"),
    ],
)
def test_numbers_of_the_schedule_that_are_none_are_refused(field, value, wanted):
    config = IF_CONFIG | {"beta_schedule": "linear", "thresholding": field != "clip_sample_range", field: value}
    with pytest.raises(ValueError, match=re.escape(f"{field} = {value!r}, expected {wanted}: use")):
        schedule_of(config)
    assert len(schedule_of(config | {field: None})[0]) == 1001


@pytest.mark.parametrize("variance", ["learned_range", "fixed_small", None])
def test_the_learned_variance_is_dropped_when_the_scheduler_wants_a_fixed_one(tmp_path, variance):
    shutil.copytree(ONE, tmp_path / "model")
    file = tmp_path / "model/scheduler/scheduler_config.json"
    config = json.loads(file.read_text()) | {"variance_type": variance}
    file.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
    unet = load_unet(tmp_path / "model", torch.float32)
    eps, v = unet(torch.randn(2, 3, 16, 16), 500, states(unet)[0])
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
        rising = (np.linspace(0, 995, steps + 1).round()[1:] + 1).astype(int).tolist()
        assert solver_levels(cosine(), steps) == [*reversed(rising), 0]


def test_the_solver_refuses_more_steps_than_levels():
    with pytest.raises(ValueError, match="between 1 and 995, got 996"):
        solver_levels(cosine(), 996)


# Single steps
STEPS = sorted(key.removesuffix(".prev") for key in numbers if re.match(r"ddpm\.II?\..*\.prev$", key))


def float32_table():
    """The references keep ᾱ in float32: 1 − ᾱ_1 = 4.1e-5 is off by up to 0.1 % there, as the last noisy step shows."""
    return torch.cat([torch.ones(1), numbers["tables.squaredcos1000.alphas_cumprod"]]).double()


def step_of(step, eps, v, alpha_bar_t, alpha_bar_prev, clip):
    """A step from the recorded image with the recorded noise."""
    return step(numbers["ddpm.sample"], eps, v, alpha_bar_t, alpha_bar_prev, clip, lambda like: numbers["ddpm.noise"])


@pytest.mark.parametrize("key", STEPS)
def test_a_ddpm_step_with_learned_variance_is_the_references(key):
    _, stage, _, t = key.split(".")
    t, t_prev = int(t[1:]) + 1, int(numbers[f"{key}.prev_t"]) + 1
    eps, raw = numbers["ddpm.model_output"].chunk(2, dim=1)
    clip = dynamic_threshold(0.95, 1.5 if stage == "I" else 1.0)
    for alpha_bar, rtol in ((float32_table(), 1e-4), (cosine(), 1e-4 if t != 2 else 2.5e-4)):
        x = step_of(ddpm_step, eps, (raw + 1) / 2, alpha_bar[t], alpha_bar[t_prev], clip)
        assert_close(x, numbers[f"{key}.prev"], atol=1e-4, rtol=rtol)


@pytest.mark.parametrize("t", [0, 500, 980])
def test_a_ddpm_step_with_fixed_variance_is_the_references(t):
    eps = numbers["ddpm.model_output"][:, :3]
    alpha_bar = cosine()
    clip = dynamic_threshold(0.95, 1.5)
    x = step_of(ddpm_step, eps, None, alpha_bar[t + 1], alpha_bar[max(t - 19, 0)], clip)
    assert_close(x, numbers[f"ddpm.I_fixed_small.leading50.t{t}.prev"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("t", [0, 1, 150, 299])
def test_a_plain_ddpm_step_is_the_references(t):
    eps = numbers["ddpm.model_output"][:, :3]
    alpha_bar = linear(300)
    x = step_of(ddpm_step, eps, None, alpha_bar[t + 1], alpha_bar[t], clip_to(-1, 1))
    assert_close(x, numbers[f"ddpm.linear300_fixed_small.t{t}.prev"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("eta", [0, 1])
@pytest.mark.parametrize("t", [0, 500, 900])
def test_a_ddim_step_with_eps_derived_again_is_the_references(t, eta):
    eps, alpha_bar = numbers["ddpm.model_output"][:, :3], cosine()
    step, clip = partial(ddim_step, eta=eta), dynamic_threshold(0.95, 1.5)
    x = step_of(step, eps, None, alpha_bar[t + 1], alpha_bar[max(t - 99, 0)], clip)
    want = numbers[f"ddim.thresh_cos.n10.t{t}.eta{eta}.clipped_eps.prev"]
    assert_close(x, want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("t", [0, 100, 250, 999])
def test_noising_is_the_references(t):
    x_t = add_noise(numbers["ddpm.sample"], cosine()[t + 1], numbers["ddpm.noise"])
    assert_close(x_t, numbers[f"add_noise.t{t}"], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("cap", [1.0, 1.5, 15.0])
def test_thresholding_is_the_references(cap):
    x, want = numbers[f"threshold.p095_c{cap}.in"], numbers[f"threshold.p095_c{cap}.out"]
    assert_close(dynamic_threshold(0.95, cap)(x), want, atol=1e-6, rtol=0)


# Whole walks
walks = golden("pipeline")


def replay(denoise, tag, model, step=ddpm_step):
    """Walk from the recorded start with the recorded noise, and compare every state."""
    draws = iter(walks.get(f"{tag}.noise_steps", ()))
    how = {"step": step, "clip": model.clip, "noise": lambda like: next(draws)}
    steps = sample(denoise, walks[f"{tag}.noise_init"], ours(walks[f"{tag}.timesteps"]), model.alpha_bar, **how)
    for (_, x), want in zip(steps, walks[f"{tag}.states"], strict=True):
        assert_close(x, want, atol=2e-3, rtol=0)
    assert next(draws, None) is None


def states(unet):
    """Those of the recorded prompts and of the empty one."""
    return unet.encode(walks["text.prompt_embeds"]), unet.encode(walks["text.negative_prompt_embeds"])


@pytest.mark.parametrize(
    "tag, scale", [("I_ddpm5_g7", 7), ("I_ddpm_custom_g7", 7), ("I_ddpm5_g1_noguidance", 1), ("I_dpmpp8_g7", 7)]
)
def test_a_whole_walk_of_stage_one_is_the_references(tag, scale):
    unet = load_unet(ONE, torch.float32)
    prompt, empty = states(unet)
    denoise = cfg(text(unet, prompt), text(unet, empty), scale)
    replay(denoise, tag, load_prompted(ONE), dpm_step if "dpmpp" in tag else ddpm_step)


@pytest.mark.parametrize("tag, level", [("II_ddpm4_g4_noise250", 251), ("II_ddpm3_g4_noise0", 1)])
def test_a_whole_walk_of_stage_two_is_the_references(tag, level):
    unet, model = load_unet(TWO, torch.float32), load_prompted(TWO, noise_level=level - 1)
    prompt, empty = states(unet)
    low = model.low(walks["II_input_lowres"], lambda like: walks[f"{tag}.noise_lowres"])
    replay(cfg(superres(unet, prompt, low, level), superres(unet, empty, low, level), 4), tag, model)


# Adapters and models
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


def test_models_know_what_they_are():
    one, two = load_prompted(ONE), load_prompted(TWO)
    assert (one.shape, one.scale, one.low) == ((3, 16, 16), 7.0, None)
    assert (two.shape, two.scale) == ((3, 32, 32), 4.0)
    assert one.timesteps(None, "ddpm") == respaced("150") and two.timesteps(None, "ddpm") == respaced("smart50")
    assert one.timesteps(20, "dpm") == two.timesteps(20, "dpm") == solver_levels(cosine(), 20, -5.1)
    assert Weights(ONE, torch.float32, torch.device("cpu"), None, ONE, None).width == 32
    unet = load_unet(TWO, torch.bfloat16)
    assert unet.conv_in.weight.dtype == torch.bfloat16
    assert unet.mid_block.resnets[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("noise_level", [-1, 1000])
def test_a_noise_level_outside_the_schedule_of_the_low_resolution_is_refused(noise_level):
    with pytest.raises(ValueError, match=f"noise_level must be between 0 and 999, got {noise_level}"):
        load_prompted(TWO, noise_level=noise_level)


@pytest.mark.parametrize("noise_level", [0, 1, 250, 998, 999])
def test_each_schedule_is_that_of_its_own_file(tmp_path, noise_level):
    """The walk's and the low resolution's differ, and say so: the golden folder has the same numbers in both."""
    shutil.copytree(TWO, tmp_path / "two")
    for folder, more in (
        ("scheduler", {"lambda_min_clipped": -3.5}),
        ("image_noising_scheduler", {"beta_schedule": "linear", "lambda_min_clipped": -2.0}),
    ):
        path = tmp_path / "two" / folder / "scheduler_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | more))
    model = load_prompted(tmp_path / "two", noise_level=noise_level)
    assert_close(model.alpha_bar, cosine(), rtol=0, atol=1e-12)
    low = model.low(torch.ones(1, 3, 16, 16, dtype=torch.float64), torch.zeros_like)
    assert_close(low, linear(1000)[noise_level + 1].sqrt().expand_as(low), rtol=0, atol=1e-12)
    assert model.timesteps(20, "dpm") == solver_levels(cosine(), 20, -3.5) != solver_levels(cosine(), 20)


@pytest.mark.parametrize("folder", [ONE, TWO])
def test_a_network_that_forgot_its_text_weights_computes_the_same(folder):
    unet = load_unet(folder, torch.float32)
    state, x = states(unet)[0], torch.randn(2, unet.config["in_channels"], 16, 16)
    labels = 250 if folder == TWO else None
    want = unet(x, 500, state, labels)
    before = {name for name, _ in unet.named_parameters()}
    forget_text(unet)
    assert_close(unet(x, 500, state, labels), want, rtol=0, atol=0)
    gone = before - {name for name, _ in unet.named_parameters()}
    kinds = {re.sub(r".*(attentions\.\d\.)", "", name).split(".")[0] for name in gone}
    assert kinds == {"add_embedding", "encoder_hid_proj", "norm_cross", "add_k_proj", "add_v_proj"}


def test_a_walk_in_bfloat16_stays_near_the_one_in_float32():
    tag, model, found = "I_ddpm5_g1_noguidance", load_prompted(ONE), []
    levels = ours(walks[f"{tag}.timesteps"])
    for dtype in (torch.float32, torch.bfloat16):
        unet, draws = load_unet(ONE, dtype), iter(walks[f"{tag}.noise_steps"])
        how = {"clip": model.clip, "noise": lambda like, draws=draws: next(draws)}
        denoise = text(unet, states(unet)[0])
        *_, (_, x) = sample(denoise, walks[f"{tag}.noise_init"], levels, model.alpha_bar, **how)
        assert x.dtype == torch.float32
        found.append(x)
    assert (found[0] - found[1]).square().mean().sqrt() < 0.05


# Memory
def test_the_memory_plan_counts_the_weights_exactly_and_is_refused_in_one_sentence():
    config = published_configs()["IF-I-M"]
    xxl = {"d_model": 4096, "d_kv": 64, "num_heads": 64, "d_ff": 10240, "vocab_size": 32128}
    plan = memory_plan(config, torch.bfloat16, rows=2, size=64, text_config=xxl)
    assert plan.weights == 2 * 371605830
    assert plan.text == 4 * (4 * 4096 * 4096 + 3 * 4096 * 10240)
    assert plan.weights + plan.activations < plan.weights * 1.5
    plan.check(plan.peak)
    says = r"about 0\.\d GB \(weights 0.74 GB \+ activations 0.\d+ GB; before that.*\), and 0.5 GB are free: use"
    with pytest.raises(ValueError, match=says) as refusal:
        plan.check(500_000_000)
    assert "\n" not in str(refusal.value)
