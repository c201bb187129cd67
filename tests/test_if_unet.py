import functools
import re

import pytest
import torch
import torch.nn.functional as F
from if_fixtures import CONFIG, golden, published_configs, small_unet, unet_weights
from torch.testing import assert_close

from minidiff.networks import if_unet
from minidiff.networks.if_unet import (
    Attention,
    AttentionPool,
    IFUNet,
    TextState,
    attend,
    conv_of_enlarged,
    conv_of_small,
    norm_scale_shift,
    spread,
)

CASES = [("I", "a"), ("I", "b"), ("I", "c"), ("I", "d_float_t"), ("I", "e_fp16_weights"), ("II", "a"), ("II", "b")]


def case(stage, tag):
    numbers = golden(f"tiny-if-{stage}.unet")
    names = ("sample", "timestep", "encoder_hidden_states", "class_labels", "out_f64")
    return [numbers.get(f"{tag}.{name}") for name in names]


@torch.no_grad()
def run(unet, stage, tag, dtype=torch.float32, layout=torch.contiguous_format):
    x, t, text, labels, want = case(stage, tag)
    eps, v = unet(x.to(dtype).contiguous(memory_format=layout), t, unet.encode(text), labels)
    return torch.cat([eps, 2 * v - 1], dim=1), want


@pytest.mark.parametrize("stage, tag", CASES)
@pytest.mark.parametrize("dtype, atol", [(torch.float32, 1e-4), (torch.float64, 1e-5)])
def test_output_is_that_of_the_reference(stage, tag, dtype, atol):
    unet = small_unet(stage, dtype)
    if tag == "e_fp16_weights":
        unet = unet.half().to(dtype)  # rounded as the file of half precision is
    got, want = run(unet, stage, tag, dtype)
    assert got.dtype == dtype
    assert_close(got, want.to(dtype), atol=atol, rtol=0)


@pytest.mark.parametrize("stage", ["I", "II"])
def test_bfloat16_and_channels_last_stay_close(stage):
    got, want = run(small_unet(stage).to(memory_format=torch.channels_last), stage, "a", layout=torch.channels_last)
    assert_close(got, want.float(), atol=1e-4, rtol=0)
    for layout in (torch.contiguous_format, torch.channels_last):
        got, want = run(small_unet(stage, torch.bfloat16).to(memory_format=layout), stage, "a", torch.bfloat16, layout)
        assert_close(got.float(), want.float(), atol=0.06, rtol=0)  # the outputs have a standard deviation of 0.2


COUNTS = {
    "IF-I-M": (371605830, 775),
    "IF-I-L": (935365830, 775),
    "IF-I-XL": (4304695110, 775),
    "IF-II-M": (461064198, 721),
    "IF-II-L": (1242987270, 845),
}


@pytest.mark.parametrize("name", COUNTS)
def test_the_published_variants_have_their_exact_keys_and_counts(name):
    config = published_configs()[name]
    with torch.device("meta"):
        unet = IFUNet(config)
    shapes = {key: tuple(value.shape) for key, value in unet.state_dict().items()}
    assert (sum(p.numel() for p in unet.parameters()), len(shapes)) == COUNTS[name]
    assert shapes == expected_shapes(config)


def expected_shapes(config):
    """The table of IF_SPEC B, written out a second time from the names."""
    ch, X, D = config["block_out_channels"], config["cross_attention_dim"], config["encoder_hid_dim"]
    n = len(ch)
    T, depth = config["time_embedding_dim"] or 4 * ch[0], config["layers_per_block"]
    depth = depth if isinstance(depth, list) else [depth] * n
    out = {"add_embedding.pool.positional_embedding": (1, D)}

    def put(name, *shape):
        out[f"{name}.weight"], out[f"{name}.bias"] = shape, shape[:1]

    def resnet(name, c_in, c_out):
        put(f"{name}.norm1", c_in), put(f"{name}.conv1", c_out, c_in, 3, 3), put(f"{name}.time_emb_proj", 2 * c_out, T)
        put(f"{name}.norm2", c_out), put(f"{name}.conv2", c_out, c_out, 3, 3)
        if c_in != c_out:
            put(f"{name}.conv_shortcut", c_out, c_in, 1, 1)

    def attention(name, C):
        for part in ("to_q", "to_out.0") if config["only_cross_attention"] else ("to_q", "to_k", "to_v", "to_out.0"):
            put(f"{name}.{part}", C, C)
        put(f"{name}.group_norm", C), put(f"{name}.norm_cross", X)
        put(f"{name}.add_k_proj", C, X), put(f"{name}.add_v_proj", C, X)

    put("conv_in", ch[0], config["in_channels"], 3, 3), put("conv_out", 6, ch[0], 3, 3), put("conv_norm_out", ch[0])
    for mlp in ["time_embedding"] + ["class_embedding"] * (config["class_embed_type"] == "timestep"):
        put(f"{mlp}.linear_1", T, ch[0]), put(f"{mlp}.linear_2", T, T)
    put("encoder_hid_proj", X, D), put("add_embedding.norm1", D)
    put("add_embedding.proj", T, D), put("add_embedding.norm2", T)
    for part in "kqv":
        put(f"add_embedding.pool.{part}_proj", D, D)

    skips = [ch[0]]
    for i in range(n):
        for j in range(depth[i]):
            resnet(f"down_blocks.{i}.resnets.{j}", skips[-1], ch[i])
            if config["down_block_types"][i].startswith("Simple"):
                attention(f"down_blocks.{i}.attentions.{j}", ch[i])
            skips.append(ch[i])
        if i < n - 1:
            resnet(f"down_blocks.{i}.downsamplers.0", ch[i], ch[i])
            skips.append(ch[i])
    resnet("mid_block.resnets.0", ch[-1], ch[-1]), resnet("mid_block.resnets.1", ch[-1], ch[-1])
    attention("mid_block.attentions.0", ch[-1])
    h = ch[-1]
    for u, i in enumerate(reversed(range(n))):
        for j in range(depth[i] + 1):
            resnet(f"up_blocks.{u}.resnets.{j}", h + skips.pop(), ch[i])
            if config["up_block_types"][u].startswith("Simple"):
                attention(f"up_blocks.{u}.attentions.{j}", ch[i])
            h = ch[i]
        if u < n - 1:
            resnet(f"up_blocks.{u}.upsamplers.0", h, h)
    return out


def joined(states):
    """One state with the rows of all."""
    keys, values = (
        [torch.cat(layer) for layer in zip(*layers)]
        for layers in ([s.keys for s in states], [s.values for s in states])
    )
    return TextState(torch.cat([s.pooled for s in states]), keys, values)


def test_a_prompt_is_encoded_once_for_all_images_and_prompts_share_a_batch():
    unet = small_unet("I", torch.float64)
    x, _, text, _, _ = case("I", "a")
    x, t = x.double(), 500
    with torch.no_grad():
        both = unet(x, t, unet.encode(text))
        assert_close(unet(x, t, joined([unet.encode(text[:1]), unet.encode(text[1:])])), both)
        first = unet.encode(text[:1])
        assert_close(unet(x, t, first), unet(x, t, unet.encode(text[:1].expand(2, -1, -1))))
        assert_close(unet(x, torch.tensor([500, 500]), first), unet(x, torch.tensor(500.0), first))
        assert_close(unet(x[:1], t, first)[0], both[0][:1])
        three = joined([unet.encode(text), spread(first, 1)])
        assert_close(unet(x[[0, 1, 0]], t, three)[0], both[0][[0, 1, 0]])


def test_only_cross_attention_takes_one_prompt_for_many_images():
    unet = small_unet("II", torch.float64)
    x, t, text, labels, _ = case("II", "a")
    with torch.no_grad():
        assert_close(
            unet(x.double(), t, unet.encode(text[:1]), labels), unet(x.double(), t, unet.encode(text[[0, 0]]), labels)
        )


@pytest.mark.parametrize("size", [4, 16])
def test_the_convolution_of_an_enlarged_picture_is_a_transposed_one(size):
    conv = torch.nn.Conv2d(3, 5, 3, padding=1, dtype=torch.float64)
    x = torch.randn(2, 3, size, size + 1, dtype=torch.float64)
    want = conv(F.interpolate(x, scale_factor=2, mode="nearest"))
    assert_close(conv_of_enlarged(x, conv), want)
    assert_close(
        conv_of_enlarged(x.contiguous(memory_format=torch.channels_last), conv.to(memory_format=torch.channels_last)),
        want,
    )


def test_the_convolution_of_a_small_picture_is_one_product_of_matrices(monkeypatch):
    conv = torch.nn.Conv2d(3, 5, 3, padding=1, dtype=torch.float64).to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 6, 7, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    want = conv(x)
    monkeypatch.setattr(if_unet, "lean", lambda x: True)
    monkeypatch.setattr(torch.nn.Conv2d, "forward", None)
    got = conv_of_small(x, conv)
    assert_close(got, want)
    assert got.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("M", [1, 5])
def test_attention_head_by_head_is_attention(M, monkeypatch):
    q, k, v = torch.randn(2, M, 12, dtype=torch.float64), *torch.randn(2, 2, 7, 12, dtype=torch.float64)
    want = attend(q, k, v, 3)
    heads = [
        torch.softmax(q[..., i : i + 4] @ k[..., i : i + 4].transpose(1, 2) / 2, dim=2) @ v[..., i : i + 4]
        for i in (0, 4, 8)
    ]
    assert_close(want, torch.cat(heads, dim=2))
    monkeypatch.setattr(if_unet, "lean", lambda x: True)
    monkeypatch.setattr(F, "scaled_dot_product_attention", None)
    assert_close(attend(q, k, v, 3), want)


def test_attention_in_bfloat16_stays_close_for_large_scores_too():
    q, k, v = 4 * torch.randn(2, 9, 128), *torch.randn(2, 2, 50, 128)
    q, k, v = q.bfloat16(), k.bfloat16(), v.bfloat16()
    want = attend(q.float(), k.float(), v.float(), 2)  # scores up to about 16
    assert_close(attend(q, k, v, 2).float(), want, atol=0.06, rtol=0)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_scale_and_shift_are_folded_into_the_norm(layout):
    norm = torch.nn.GroupNorm(4, 8, dtype=torch.float64)
    torch.nn.init.normal_(norm.weight), torch.nn.init.normal_(norm.bias)
    x, scale, shift = (
        torch.randn(3, 8, 5, 4, dtype=torch.float64).contiguous(memory_format=layout),
        *torch.randn(2, 3, 8, dtype=torch.float64),
    )
    assert_close(
        norm_scale_shift(x, norm, scale, shift), norm(x) * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
    )


@pytest.mark.parametrize("stage", ["I", "II"])
def test_every_weight_learns(stage):
    unet = small_unet(stage).requires_grad_(True)
    x, t, text, labels, _ = case(stage, "a")
    eps, v = unet(x, t, unet.encode(text), labels)
    (eps.square().mean() + v.mean()).backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in unet.parameters())


def test_group_norm_is_safe_in_half_precision():
    """Numbers of 300 have squares that half precision (at most 65,504) cannot hold."""
    norm = torch.nn.GroupNorm(2, 4)
    x = 300 + 40 * torch.randn(1, 4, 8, 8)
    assert_close(norm.half()(x.half()).float(), norm.float()(x.half().float()), atol=0.02, rtol=0)


# Each mistake that IF_SPEC A.6 names, planted; the golden numbers must notice.
def swap_sin_cos(unet, patch):
    right = if_unet.sinusoid
    patch(if_unet, "sinusoid", lambda t, width: right(t, width).roll(width // 2, dims=1))


def divisor_less_one(unet, patch):
    def sinusoid(t, width):
        f = 10000 ** (-torch.arange(width // 2) / (width // 2 - 1))
        return torch.cat([(t.float()[:, None] * f).cos(), (t.float()[:, None] * f).sin()], dim=1)

    patch(if_unet, "sinusoid", sinusoid)


def token_without_mean(unet, patch):
    patch(
        AttentionPool,
        "forward",
        lambda self, x: if_unet.attend(*(p(x) for p in (self.q_proj, self.k_proj, self.v_proj)), self.heads)[:, 0],
    )


def pool_padding_out(unet, patch):
    right = AttentionPool.forward
    patch(AttentionPool, "forward", lambda self, x: right(self, x[:, : x.shape[1] // 2]))


def swapped_scale_and_shift(unet, patch):
    right = if_unet.norm_scale_shift
    patch(if_unet, "norm_scale_shift", lambda x, norm, *given: right(x, norm, *given[::-1]))


def scale_without_one(unet, patch):
    right = if_unet.norm_scale_shift
    patch(if_unet, "norm_scale_shift", lambda x, norm, *given: right(x, norm, *(given and (given[0] - 1, given[1]))))


def norm_of_each_token(unet, patch):
    def text(self, context):
        c = self.norm_cross(context.flatten(0, 1)).view_as(context)
        return self.add_k_proj(c), self.add_v_proj(c)

    patch(Attention, "text", text)


def skip_first(unet, patch):
    right = torch.cat
    patch(torch, "cat", lambda parts, dim=0: right(parts[::-1] if parts[0].ndim == 4 else parts, dim))


def for_attentions(**attributes):
    def plant(unet, patch):
        for attention in (m for m in unet.modules() if isinstance(m, Attention)):
            attention.heads = attributes.get("heads", attention.heads)
            attention.norm_cross.num_groups = attributes.get("groups", 32)

    return plant


def mid_scale_of_one(unet, patch):
    for resnet in unet.mid_block.resnets:
        resnet.scale = 1


MISTAKES = {
    "tanh GELU": ("I", lambda unet, patch: patch(F, "gelu", functools.partial(F.gelu, approximate="tanh"))),
    "sine first": ("I", swap_sin_cos),
    "divisor half - 1": ("I", divisor_less_one),
    "class token without the mean": ("I", token_without_mean),
    "pooling without padding": ("I", pool_padding_out),
    "no LayerNorm before pooling": ("I", lambda unet, patch: setattr(unet.add_embedding, "norm1", torch.nn.Identity())),
    "no LayerNorm after pooling": ("I", lambda unet, patch: setattr(unet.add_embedding, "norm2", torch.nn.Identity())),
    "scale and shift swapped": ("I", swapped_scale_and_shift),
    "scale without 1 +": ("I", scale_without_one),
    "emb activated twice, stage I": ("I", lambda unet, patch: unet.config.update(time_embedding_act_fn="gelu")),
    "emb never activated, stage I": ("I", lambda unet, patch: unet.config.update(resnet_skip_time_act=True)),
    "emb activated twice, stage II": ("II", lambda unet, patch: unet.config.update(resnet_skip_time_act=False)),
    "emb never activated, stage II": ("II", lambda unet, patch: unet.config.update(time_embedding_act_fn=None)),
    "no output scale in the middle": ("II", mid_scale_of_one),
    "strided for average pooling": ("I", lambda unet, patch: patch(F, "avg_pool2d", lambda x, k: x[:, :, ::k, ::k])),
    "head width taken for the count": ("I", for_attentions(heads=16)),
    "16 groups of norm_cross": ("I", for_attentions(groups=16)),
    "norm_cross a token": ("I", norm_of_each_token),
    "skip before features": ("I", skip_first),
    "class_labels by the time MLP": ("II", lambda unet, patch: setattr(unet, "class_embedding", unet.time_embedding)),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_golden_numbers_notice(mistake, monkeypatch):
    stage, plant = MISTAKES[mistake]
    unet = small_unet(stage, torch.float64)
    unet.config = dict(unet.config)
    plant(unet, monkeypatch.setattr)
    got, want = run(unet, stage, "a", torch.float64)
    assert (got - want).abs().max() > 1e-4


@pytest.mark.parametrize("field, value, built", [
    ("act_fn", "silu", "'gelu'"),
    ("class_embed_type", "projection", "None or 'timestep'"),
    ("cross_attention_norm", None, "'group_norm'"),
    ("encoder_hid_dim_type", "image_proj", "None or 'text_proj'"),
    ("flip_sin_to_cos", False, "True"),
    ("freq_shift", 1, "0"),
    ("in_channels", 4, "3 or 6"),
    ("mid_block_type", "UNetMidBlock2DCrossAttn", "'UNetMidBlock2DSimpleCrossAttn'"),
    ("resnet_time_scale_shift", "default", "'scale_shift'"),
    ("time_embedding_act_fn", "silu", "None or 'gelu'"),
    ("upcast_attention", True, "null or false"),
    ("dropout", 0.1, "null or false"),
    ("something_new", "yes", "null or false"),
    ("down_block_types", ["DownBlock2D"] * 4, "ResnetDownsampleBlock2D or SimpleCrossAttnDownBlock2D"),
    ("layers_per_block", [1, 1], "one or 4"),
    ("cross_attention_dim", 40, "multiples of 32"),
    ("norm_num_groups", 5, "multiples of 5"),
    ("attention_head_dim", 5, "attention_head_dim = 5, expected a divisor of"),
    ("block_out_channels", None, "lacks"),
    ("block_out_channels", [], "expected one or 0"),
    ("layers_per_block", 0, "a whole number above 0"),
    ("layers_per_block", [1, 2, "3", 4], "a whole number above 0"),
    ("encoder_hid_dim", 1.5, "a whole number above 0"),
    ("addition_embed_type_num_heads", True, "a whole number above 0"),
    ("norm_num_groups", [16], "a whole number above 0"),
    ("time_embedding_dim", -1, "a whole number above 0"),
    ("sample_size", "64", "a whole number above 0"),
    ("norm_eps", float("nan"), "a number above 0"),
    ("mid_block_scale_factor", "1", "a number above 0"),
    ("only_cross_attention", 2, "true or false"),
    ("up_block_types", 4, "ResnetUpsampleBlock2D or SimpleCrossAttnUpBlock2D"),
    ("up_block_types", [[]] * 4, "ResnetUpsampleBlock2D or SimpleCrossAttnUpBlock2D"),
])  # fmt: skip
def test_a_config_that_is_not_built_is_refused_with_its_field_and_the_values_built(field, value, built):
    with pytest.raises(ValueError, match=re.escape(built)) as refusal, torch.device("meta"):
        IFUNet(CONFIG["I"] | {field: value})
    assert field in str(refusal.value) and "\n" not in str(refusal.value)
    assert "block" in field or repr(value) in str(refusal.value) or str(value) in str(refusal.value)


def test_widths_of_heads_a_level_are_read_as_the_reference_reads_them():
    """On the way up it turns every list round but this one."""
    attends = {
        "down_block_types": ["SimpleCrossAttnDownBlock2D"] * 4,
        "up_block_types": ["SimpleCrossAttnUpBlock2D"] * 4,
    }
    with torch.device("meta"):
        unet = IFUNet(CONFIG["I"] | attends | {"block_out_channels": [32] * 4, "attention_head_dim": [4, 8, 16, 32]})
    down, up = ([32 // level.attentions[0].heads for level in levels] for levels in (unet.down_blocks, unet.up_blocks))
    assert (down, 32 // unet.mid_block.attentions[0].heads, up) == ([4, 8, 16, 32], 32, [4, 8, 16, 32])


def test_v_is_never_clamped():
    unet = small_unet("I")
    unet.conv_out.weight.data = 50 * unet.conv_out.weight.data
    x, t, text, _, _ = case("I", "a")
    eps, v = unet(x, t, unet.encode(text))
    assert v.min() < -1 and v.max() > 2
    assert eps.shape == v.shape == x.shape


def test_the_configs_eps_is_for_residual_blocks_alone():
    with torch.device("meta"):
        unet = IFUNet(CONFIG["I"] | {"norm_eps": 1e-3})
    attention, resnet = unet.mid_block.attentions[0], unet.mid_block.resnets[0]
    assert (
        attention.group_norm.eps,
        attention.norm_cross.eps,
        resnet.norm1.eps,
        resnet.norm2.eps,
        unet.conv_norm_out.eps,
    ) == (1e-5, 1e-5, 1e-3, 1e-3, 1e-3)


def test_unknown_fields_that_ask_for_nothing_pass_and_absent_ones_are_ifs():
    config = {
        name: value
        for name, value in CONFIG["I"].items()
        if name not in ("act_fn", "norm_eps", "only_cross_attention", "resnet_out_scale_factor")
    }
    with torch.device("meta"):
        unet = IFUNet(
            config
            | {"brand_new": None, "brand_old": False, "_anything": 3, "dropout": 0.0, "attention_type": "default"}
        )
    assert set(unet.state_dict()) == set(unet_weights("I"))


def test_inputs_that_do_not_fit_are_refused():
    one, two = small_unet("I"), small_unet("II")
    x, t, text, _, _ = case("I", "a")
    state = one.encode(text)
    with pytest.raises(ValueError, match="divisible by 8"):
        one(torch.zeros(1, 3, 16, 12), 5, state)
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
        one(torch.zeros(1, 6, 16, 16), 5, state)
    with pytest.raises(ValueError, match="float16: cast"):
        one(x.half(), t, state)
    with pytest.raises(ValueError, match="expected 1 or 3 prompts, got 2"):
        one(torch.zeros(3, 3, 16, 16), 5, state)
    with pytest.raises(ValueError, match=r"expected t of shape \(\) or"):
        one(x, torch.zeros(5), state)
    with pytest.raises(ValueError, match="class_labels"):
        one(x, t, state, t)
    with pytest.raises(ValueError, match="class_labels"):
        two(torch.zeros(2, 6, 16, 16), t, two.encode(text))
    with pytest.raises(ValueError, match=r"\(B, L, 32\)"):
        one.encode(torch.zeros(1, 77, 64))


@pytest.mark.parametrize("stage", ["I", "II"])
def test_what_a_compiler_is_given_has_the_same_numbers_and_gradients(stage, monkeypatch):
    x, t, text, labels, _ = case(stage, "a")
    unet, found = small_unet(stage).requires_grad_(True), []
    for compiling in (False, True):
        # as while it is traced, but no C++
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda compiling=compiling: compiling)
        unet.zero_grad()
        eps, _ = unet(x.contiguous(memory_format=torch.channels_last), t, unet.encode(text), labels)
        eps.square().sum().backward()
        found.append([eps.detach()] + [p.grad for p in unet.parameters() if p.grad is not None])
    assert len(found[0]) == len(found[1])
    for got, want in zip(*found):
        assert_close(got, want, atol=1e-4 * max(1, float(want.abs().max())), rtol=0)
