"""IF's networks, schedules and walks against diffusers and transformers, in other sizes than the golden ones.

`pip install diffusers transformers accelerate`: they are not part of the development install, and without them these
tests are skipped. The golden numbers stand in for them.
"""

import random
from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from minidiff.adapters import enlarged, superres, text
from minidiff.deepfloyd import respaced, schedule_of, solver_levels
from minidiff.guidance import cfg
from minidiff.networks.if_unet import IFUNet
from minidiff.networks.t5 import T5Encoder, bucket
from minidiff.sampling import ddpm_step, dpm_step, sample

SCHEDULER = {
    "num_train_timesteps": 1000, "beta_schedule": "squaredcos_cap_v2", "beta_start": 1e-4, "beta_end": 0.02,
    "prediction_type": "epsilon", "variance_type": "learned_range", "lambda_min_clipped": -5.1,
    "thresholding": True, "dynamic_thresholding_ratio": 0.95,
}  # fmt: skip


def unet_config(seed: int) -> dict:
    """Other widths, depths, heads and lists than any published model has."""
    r = random.Random(seed)
    n, groups, second = r.choice([1, 2, 3, 4]), r.choice([2, 4, 8, 16]), seed % 2 == 1
    widths = [16 * r.choice([1, 2, 3]) for _ in range(n)]
    attends = [r.random() < 0.6 for _ in range(n)]
    return {
        "act_fn": "gelu", "addition_embed_type": "text", "addition_embed_type_num_heads": r.choice([2, 4, 8]),
        "attention_head_dim": [r.choice([2, 4, 8, 16]) for _ in range(n)], "block_out_channels": widths,
        "cross_attention_dim": r.choice([32, 64, 96]), "cross_attention_norm": "group_norm",
        "encoder_hid_dim": r.choice([32, 64]), "encoder_hid_dim_type": "text_proj",
        "class_embed_type": "timestep" if second else None, "in_channels": 6 if second else 3,
        "out_channels": r.choice([3, 6]), "layers_per_block": [r.choice([1, 2, 3]) for _ in range(n)],
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "norm_num_groups": groups, "norm_eps": r.choice([1e-5, 1e-3]),
        "down_block_types": ["SimpleCrossAttnDownBlock2D" if a else "ResnetDownsampleBlock2D" for a in attends],
        "up_block_types": ["SimpleCrossAttnUpBlock2D" if a else "ResnetUpsampleBlock2D" for a in attends[::-1]],
        "only_cross_attention": [r.random() < 0.5 for _ in range(n)] if r.random() < 0.5 else r.random() < 0.5,
        "mid_block_only_cross_attention": r.choice([None, True, False]), "resnet_time_scale_shift": "scale_shift",
        "time_embedding_dim": r.choice([None, 48]), "resnet_skip_time_act": r.random() < 0.5,
        "time_embedding_act_fn": r.choice([None, "gelu"]), "resnet_out_scale_factor": r.choice([1.0, 1 / 0.7071]),
        "mid_block_scale_factor": r.choice([1, 1 / 0.7071]), "sample_size": 16,
    }  # fmt: skip


def both_unets(config: dict, seed: int = 0):
    diffusers = pytest.importorskip("diffusers")
    diffusers.logging.set_verbosity_error()
    torch.manual_seed(seed)
    ours, theirs = IFUNet(config).eval(), diffusers.UNet2DConditionModel.from_config(config).eval()
    for p in ours.parameters():
        p.requires_grad_(False).add_(0.05 * torch.randn_like(p))
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("seed", range(12))
@torch.no_grad()
def test_u_nets_of_other_sizes(seed):
    config, r = unet_config(seed), random.Random(seed)
    ours, theirs = both_unets(config, seed)
    B, L, factor = r.choice([1, 2, 3]), r.choice([2, 5, 77]), 2 ** (len(config["block_out_channels"]) - 1)
    x = torch.randn(B, config["in_channels"], factor * r.choice([1, 2, 3]), factor * r.choice([1, 2, 4]))
    prompt = 3 * torch.randn(B, L, config["encoder_hid_dim"])
    t, labels = torch.randint(0, 1000, (B,)), torch.randint(0, 1000, (B,)) if config["class_embed_type"] else None
    for dtype, atol in ((torch.float32, 1e-4), (torch.float64, 1e-5)):
        eps, v = ours.to(dtype)(x.to(dtype), t, ours.encode(prompt), labels)
        want = theirs.to(dtype)(x.to(dtype), t, prompt.to(dtype), class_labels=labels).sample
        assert_close(eps if v is None else torch.cat([eps, 2 * v - 1], dim=1), want, atol=atol, rtol=atol)


@pytest.mark.parametrize("seed", range(6))
@torch.no_grad()
def test_t5_of_other_sizes(seed):
    transformers, r = pytest.importorskip("transformers"), random.Random(seed)
    torch.manual_seed(seed)
    sizes = {
        "d_model": r.choice([24, 40]), "d_kv": r.choice([4, 8]), "num_heads": r.choice([1, 3, 5]),
        "d_ff": r.choice([16, 70]), "num_layers": r.choice([1, 2, 4]), "vocab_size": 99,
    }  # fmt: skip
    config = sizes | {
        "relative_attention_num_buckets": r.choice([8, 16, 32, 64]),
        "relative_attention_max_distance": r.choice([20, 64, 128]),
        "layer_norm_epsilon": r.choice([1e-6, 1e-3]),
    }
    theirs = transformers.T5EncoderModel(transformers.T5Config(feed_forward_proj="gated-gelu", **config)).eval()
    for p in theirs.parameters():
        p.add_(0.2 * torch.randn_like(p))
    ours = T5Encoder(theirs.config.to_dict())
    weights = theirs.state_dict()
    del weights["encoder.embed_tokens.weight"]  # the same as shared.weight
    ours.load_state_dict(weights)
    B, L = r.choice([1, 3]), r.choice([1, 7, 77, 200])
    ids, mask = torch.randint(0, 99, (B, L)), (torch.rand(B, L) < 0.8).long()
    mask[:, 0] = 1
    for dtype, atol in ((torch.float32, 1e-4), (torch.float64, 1e-5)):
        for m in (mask, None):
            want = theirs.to(dtype)(input_ids=ids, attention_mask=m).last_hidden_state
            assert_close(ours.to(dtype)(ids, m), want, atol=atol, rtol=atol)
    rows, most = config["relative_attention_num_buckets"], config["relative_attention_max_distance"]
    distance = torch.arange(-300, 301)
    attention = theirs.encoder.block[0].layer[0].SelfAttention
    want = attention._relative_position_bucket(distance, bidirectional=True, num_buckets=rows, max_distance=most)
    assert_close(bucket(distance, rows, most), want)


@pytest.mark.parametrize("schedule", ["squaredcos_cap_v2", "linear"])
@pytest.mark.parametrize("variance", ["learned_range", "fixed_small"])
@pytest.mark.parametrize("change", [
    {"sample_max_value": 1.5}, {"sample_max_value": 1.0}, {"num_train_timesteps": 300},
    {"thresholding": False}, {"thresholding": False, "clip_sample": False},
])  # fmt: skip
def test_ddpm_steps_under_any_list_of_levels(schedule, variance, change):
    diffusers = pytest.importorskip("diffusers")
    config = SCHEDULER | {"beta_schedule": schedule, "variance_type": variance} | change
    theirs = diffusers.DDPMScheduler.from_config(config)
    alpha_bar, clip = schedule_of(config)
    assert_close(alpha_bar[1:].float(), theirs.alphas_cumprod, rtol=1e-3, atol=1e-9)
    alpha_bar = torch.cat([torch.ones(1), theirs.alphas_cumprod]).double()  # theirs, of float32: this tests the step
    T = len(alpha_bar) - 1
    for steps in (5, "10,3,7"):
        levels = respaced(steps, T)
        theirs.set_timesteps(timesteps=[t - 1 for t in levels[:-1]])
        for i, (t, t_prev) in enumerate(pairwise(levels)):
            torch.manual_seed(i)
            x, out = 2 * torch.randn(2, 3, 8, 8), torch.randn(2, 6, 8, 8)
            if alpha_bar[t] <= 0.01 and not config.get("thresholding"):
                x = alpha_bar[t].sqrt() * x + (1 - alpha_bar[t]).sqrt() * out[:, :3]
            learned = variance == "learned_range"
            answer, generator = out if learned else out[:, :3], torch.Generator().manual_seed(7)
            want = theirs.step(answer, t - 1, x, generator=generator).prev_sample
            z = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(7))
            v = (out[:, 3:] + 1) / 2 if learned else None
            got = ddpm_step(x, out[:, :3], v, alpha_bar[t], alpha_bar[t_prev], clip, lambda like, z=z: z)
            assert_close(got, want, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("steps", [2, 7, 25, 50])
@pytest.mark.parametrize("cap", [None, 1.0, 1.5])
def test_the_solver_on_the_cosine_schedule(steps, cap):
    diffusers = pytest.importorskip("diffusers")
    config = SCHEDULER | ({"thresholding": False, "clip_sample": False} if cap is None else {"sample_max_value": cap})
    theirs = diffusers.DPMSolverMultistepScheduler.from_config(
        config, algorithm_type="dpmsolver++", solver_order=2, variance_type=None
    )
    theirs.set_timesteps(steps)
    alpha_bar, clip = schedule_of(config)
    levels = solver_levels(alpha_bar, steps, config["lambda_min_clipped"])
    assert levels == [int(t) + 1 for t in theirs.timesteps] + [0]

    def toy(x, t):
        return 0.7 * x + 0.1 * torch.sin(3 * x) + 1e-4 * t, None

    x_T = want = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for (_, x), t_theirs in zip(sample(toy, x_T, levels, alpha_bar, step=dpm_step, clip=clip), theirs.timesteps):
        want = theirs.step(toy(want, int(t_theirs) + 1)[0], t_theirs, want).prev_sample
        assert_close(x, want, atol=1e-3, rtol=1e-3)


def both_stages(second: bool, respacing: str, solver: bool = False):
    """A random stage and diffusers' pipeline of the same weights, with the schedule of the published file."""
    diffusers = pytest.importorskip("diffusers")
    config = unet_config(3 if second else 2) | {"out_channels": 6, "sample_size": 16}
    ours, theirs = both_unets(config)
    scheduler = SCHEDULER | {"sample_max_value": 1.0 if second else 1.5}
    theirs_scheduler = diffusers.DDPMScheduler.from_config(scheduler)
    if solver:
        theirs_scheduler = diffusers.DPMSolverMultistepScheduler.from_config(
            scheduler, algorithm_type="dpmsolver++", variance_type=None
        )
    absent = ("tokenizer", "text_encoder", "safety_checker", "feature_extractor", "watermarker")
    parts = {"unet": theirs, "scheduler": theirs_scheduler} | dict.fromkeys(absent)
    if second:
        low = diffusers.DDPMScheduler.from_config({"num_train_timesteps": 1000, "beta_schedule": "squaredcos_cap_v2"})
        pipe = diffusers.IFSuperResolutionPipeline(image_noising_scheduler=low, requires_safety_checker=False, **parts)
    else:
        pipe = diffusers.IFPipeline(requires_safety_checker=False, **parts)
    pipe.set_progress_bar_config(disable=True)
    return ours, pipe, *schedule_of(scheduler)


class Recorder:
    """Every normal draw of a walk, from one generator in order."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(3)

    def __call__(self, like):
        return torch.randn(like.shape, generator=self.generator)


@pytest.mark.parametrize("respacing, solver", [("10", False), ("4,3,2", False), ("12", True)])
@pytest.mark.parametrize("size", [(16, 16), (24, 16)])
@torch.no_grad()
def test_the_whole_walk_of_stage_one(respacing, solver, size):
    unet, pipe, alpha_bar, clip = both_stages(False, respacing, solver)
    prompt, empty = torch.randn(2, 2, 9, unet.config["encoder_hid_dim"])
    levels = solver_levels(alpha_bar, int(respacing)) if solver else respaced(respacing)
    steps = {"num_inference_steps": int(respacing)} if solver else {"timesteps": [t - 1 for t in levels[:-1]]}
    want = pipe(
        prompt_embeds=prompt, negative_prompt_embeds=empty, height=size[0], width=size[1], guidance_scale=7.0,
        output_type="pt", generator=Recorder().generator, **steps,
    ).images  # fmt: skip
    noise = Recorder()
    denoise = cfg(text(unet, unet.encode(prompt)), text(unet, unet.encode(empty)), 7.0)
    x, step = noise(torch.empty(2, 3, *size)), dpm_step if solver else ddpm_step
    *_, (_, x) = sample(denoise, x, levels, alpha_bar, step=step, clip=clip, noise=noise)
    assert 0.1 < want.std() and (want.abs() < 0.99).float().mean() > 0.3  # not all cut off
    assert_close(x, want, atol=2e-3, rtol=0)


@pytest.mark.parametrize("level", [0, 250])
@torch.no_grad()
def test_the_whole_walk_of_stage_two(level):
    unet, pipe, alpha_bar, clip = both_stages(True, "5,3")
    prompt, empty = torch.randn(2, 2, 9, unet.config["encoder_hid_dim"])
    small, size, levels = torch.rand(2, 3, 6, 4) * 2 - 1, (24, 16), respaced("5,3")
    want = pipe(
        image=small, prompt_embeds=prompt, negative_prompt_embeds=empty, height=24, width=16, guidance_scale=4.0,
        noise_level=level, timesteps=[t - 1 for t in levels[:-1]], output_type="pt", generator=Recorder().generator,
    ).images  # fmt: skip
    noise = Recorder()
    x = noise(torch.empty(2, 3, *size))
    low = enlarged(small, size, alpha_bar, level + 1, noise)
    cond, uncond = (superres(unet, unet.encode(text), low, level + 1) for text in (prompt, empty))
    denoise = cfg(cond, uncond, 4.0)
    *_, (_, x) = sample(denoise, x, levels, alpha_bar, clip=clip, noise=noise)
    assert 0.1 < want.std() and (want.abs() < 0.99).float().mean() > 0.3  # not all cut off
    assert_close(x, want, atol=2e-3, rtol=0)
