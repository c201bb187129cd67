"""Chapter 12. DeepFloyd IF's U-Net: how do a prompt and a noise level steer a network that paints pixels?

    stage I    x (B, 3, H, W)                                   -> ε, v        64 x 64 from noise
    stage II   x (B, 6, H, W), low-resolution image behind      -> ε, v        64 -> 256, given the low-res noise level

Everything is in `config.json`, and modules are named as in the checkpoint. What depends on the prompt alone is computed
once per walk, by `encode`: the pooled text vector, and the text's keys and values for every attention.

    sinusoid(t) -> time_embedding ─┐
    sinusoid(level of low res) ────┼─ emb ──> scale and shift of every residual block
    prompt -> add_embedding ───────┘
    prompt -> encoder_hid_proj ──────────────> keys and values beside the picture's own, in every attention

Rewritings make it fast on a CPU and change only the rounding: a convolution of a picture enlarged 2x is a transposed
one of the small picture (4/9 of the work), GN · (1 + scale) + shift is one GN, and GELU reads memory in order. In
bfloat16, where products are cheap and memory is not, attention goes head by head, and a convolution of few pixels is
one matrix product. To train, wrap it in `torch.compile`, which is given formulas that it can fuse (plain.py).

IF = deep-floyd/IF, 2023, after Imagen (Saharia et al. 2022, arXiv 2205.11487); ADM = Dhariwal and Nichol 2021, arXiv
2105.05233. The names B, C, H, W, L (tokens), D (width of T5), T (width of `emb`, here alone). Left out: attention masks
(IF attends to all 77 positions, padding too), dropout. Next: t5.py, where the prompt's vectors come from.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minidiff.networks import plain
from minidiff.networks.gelu import gelu

DOWN = {"ResnetDownsampleBlock2D": False, "SimpleCrossAttnDownBlock2D": True}  # block type -> does it attend?
UP = {"ResnetUpsampleBlock2D": False, "SimpleCrossAttnUpBlock2D": True}
BUILT = {  # field of config.json -> the supported values, the first for a file without the field
    "act_fn": ("gelu",),
    "addition_embed_type": ("text",),
    "attention_type": ("default",),
    "class_embed_type": (None, "timestep"),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": ("group_norm",),
    "downsample_padding": (1,),
    "encoder_hid_dim_type": (None, "text_proj"),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "in_channels": (3, 6),
    "mid_block_only_cross_attention": (None, False, True),
    "mid_block_type": ("UNetMidBlock2DSimpleCrossAttn",),
    "out_channels": (6, 3),
    "resnet_skip_time_act": (False, True),
    "resnet_time_scale_shift": ("scale_shift",),
    "time_embedding_act_fn": (None, "gelu"),
    "time_embedding_type": ("positional",),
    "transformer_layers_per_block": (1,),
}
WHOLE, FACTOR, YES_NO = "a whole number above 0", "a number above 0", "true or false"
FITS = {
    WHOLE: lambda value: type(value) is int and 0 < value < 2**16,
    FACTOR: lambda value: type(value) in (int, float) and 0 < value < math.inf,
    YES_NO: lambda value: type(value) is bool,
}
SIZES = {  # fields of any size, with IF's value for files that leave it out; None: required
    "addition_embed_type_num_heads": (WHOLE, 64),
    "attention_head_dim": (WHOLE, None),
    "block_out_channels": (WHOLE, None),
    "cross_attention_dim": (WHOLE, None),
    "encoder_hid_dim": (WHOLE, None),
    "layers_per_block": (WHOLE, None),
    "mid_block_scale_factor": (FACTOR, 1.0),
    "norm_eps": (FACTOR, 1e-5),
    "norm_num_groups": (WHOLE, 32),
    "only_cross_attention": (YES_NO, False),
    "resnet_out_scale_factor": (FACTOR, 1.0),
}
LEVELS = ("layers_per_block", "attention_head_dim", "only_cross_attention", "block_out_channels")  # or a list of them
FREE = ("sample_size", "time_embedding_dim")  # whole numbers, or null


def _refused(name: str, value, expected: str, fix: str = "use an IF checkpoint of stage I or II") -> ValueError:
    return ValueError(f"config.json asks for {name} = {value!r}, expected {expected}: {fix}")


def checked(config: dict) -> dict:
    """The config with IF's values for absent fields. Raises ValueError with the field, its value and those expected."""
    config = {name: value for name, value in config.items() if not name.startswith("_")}
    for name, value in config.items():
        if name in BUILT:
            if value not in BUILT[name]:
                raise _refused(name, value, " or ".join(map(repr, BUILT[name])))
        elif name not in (*SIZES, *FREE, "down_block_types", "up_block_types") and value not in (None, False):
            raise _refused(name, value, "null or false, as it is not supported")
    defaults = {name: values[0] for name, values in BUILT.items()}
    config = defaults | {name: value for name, (_, value) in SIZES.items() if value is not None} | config
    missing = [name for name in (*SIZES, "down_block_types", "up_block_types") if config.get(name) is None]
    if missing:
        raise ValueError(f"config.json lacks {missing[0]}: use the unet/config.json of an IF checkpoint")

    n = len(config["block_out_channels"]) if isinstance(config["block_out_channels"], (list, tuple)) else 1
    if config["mid_block_only_cross_attention"] is None:
        config["mid_block_only_cross_attention"] = config["only_cross_attention"] is True  # but not when it is a list
    for name in LEVELS:
        value = config[name]
        config[name] = list(value) if isinstance(value, (list, tuple)) else [value] * n
        if len(config[name]) != n or n == 0:
            raise _refused(name, value, f"one or {n} values (one per level of block_out_channels)", "fix the file")
    kinds = {name: kind for name, (kind, _) in SIZES.items()} | {f: WHOLE for f in FREE if config.get(f) is not None}
    for name, kind in kinds.items():
        for value in config[name] if name in LEVELS else [config[name]]:
            if not FITS[kind](value):
                raise _refused(name, value, kind)
    for name, built in (("down_block_types", list(DOWN)), ("up_block_types", list(UP))):
        value = config[name]
        if not isinstance(value, (list, tuple)) or len(value) != n or any(block not in built for block in value):
            raise _refused(name, value, f"{n} of {' or '.join(built)}")
    divisors = {"encoder_hid_dim": "addition_embed_type_num_heads", "block_out_channels": "norm_num_groups"}
    for name, why in [("cross_attention_dim", "the groups of norm_cross"), *divisors.items()]:
        divisor = config.get(why, 32)
        if any(width % divisor for width in (config[name] if name in LEVELS else [config[name]])):
            raise _refused(name, config[name], f"multiples of {divisor} ({why})", "fix the file")
    return config


def sinusoid(t: Tensor, width: int) -> Tensor:
    """t (B,), fractions too -> (B, width) float32: [cos(t f_k), sin(t f_k)], f_k = 10000^(−k/half), k = 0 … half−1."""
    half = width // 2
    f = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angle = t.float()[:, None] * f  # never in half precision: bfloat16 rounds 999 to 1000
    return torch.cat([angle.cos(), angle.sin()], dim=1)


def lean(x: Tensor) -> bool:
    """Is x (any shape) bfloat16 on a CPU, uncompiled? Matrix products are then so fast that the rest takes the time."""
    return x.device.type == "cpu" and x.dtype == torch.bfloat16 and not torch.compiler.is_compiling()


def norm_scale_shift(x: Tensor, norm: nn.GroupNorm, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
    """GN(x) · (1 + scale) + shift, with x (B, C, H, W), scale and shift (B, C) or None      (ADM Eq. 3: adaptive GN)"""
    B, C, H, W = x.shape
    if torch.compiler.is_compiling():
        return plain.norm_scale_shift(x, norm, scale, shift)
    if scale is None:
        return norm(x)
    if not x.is_contiguous():
        return torch.addcmul(shift[:, :, None, None], norm(x), 1 + scale[:, :, None, None])
    # seen as one picture of B·C channels and B·groups groups, whose weights may then differ from picture to picture
    weight, bias = (norm.weight * (1 + scale)).flatten(), (norm.bias * (1 + scale) + shift).flatten()
    return torch.group_norm(x.view(1, B * C, H, W), B * norm.num_groups, weight, bias, norm.eps).view(B, C, H, W)


def conv_of_enlarged(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """conv(nearest2x(x)) for a 3 x 3 convolution: (B, C, H, W) -> (B, O, 2H, 2W).

    Repeating pixels is inserting zeros and convolving with a 2 x 2 kernel of ones. With the 3 x 3 kernel this makes one
    of 4 x 4, and a transposed convolution of stride 2 skips the zeros: 16 products per small pixel instead of 36.
    """
    if torch.compiler.is_compiling():
        return conv(plain.enlarged(x))
    if x.shape[2] * x.shape[3] < 256:  # a small picture: making the kernel costs more than it saves
        return conv(F.interpolate(x, scale_factor=2, mode="nearest"))
    O, C = conv.weight.shape[:2]
    one_each = torch.eye(9, dtype=x.dtype, device=x.device).view(9, 1, 3, 3).flip(2, 3)
    widen = F.conv_transpose2d(one_each, x.new_ones(1, 1, 2, 2)).view(9, 16)
    if x.is_contiguous():
        kernel = (conv.weight.reshape(O * C, 9) @ widen).view(O, C, 4, 4).transpose(0, 1)
    else:  # channels last: the same numbers, in the order in which the convolution will read them
        kernel = (widen.T @ conv.weight.permute(1, 2, 3, 0).reshape(C, 9, O)).view(C, 4, 4, O).permute(0, 3, 1, 2)
    return F.conv_transpose2d(x, kernel, conv.bias, stride=2, padding=1)


def conv_of_small(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """conv(x) for a 3 x 3 convolution: (B, C, H, W) -> (B, O, H, W). For few pixels it is one product, which reads the
    weights in place: a convolution rearranges them, which takes as long as the work on 8 x 8 pixels."""
    B, _, H, W = x.shape
    if not lean(x) or B * H * W > 256 or not conv.weight.is_contiguous(memory_format=torch.channels_last):
        return conv(x)
    x = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))                     # (B, H + 2, W + 2, C)
    patches = torch.cat([x[:, i : i + H, j : j + W] for i in range(3) for j in range(3)], dim=3)
    return F.linear(patches, conv.weight.permute(0, 2, 3, 1).flatten(1), conv.bias).permute(0, 3, 1, 2)


class MLP(nn.Module):
    """A sinusoid (B, C) -> `emb` (B, T). No activation after the second layer."""

    def __init__(self, c_in: int, T: int):
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(c_in, T), nn.Linear(T, T)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.gelu(self.linear_1(x)))


class AttentionPool(nn.Module):
    """Tokens (B, L, D) -> (B, D): their mean plus a learned vector attends to itself and the tokens."""

    def __init__(self, D: int, heads: int):
        super().__init__()
        self.heads, self.positional_embedding = heads, nn.Parameter(torch.empty(1, D))
        nn.init.uniform_(self.positional_embedding, -((3 / D) ** 0.5), (3 / D) ** 0.5)  # see t5.embedding
        self.k_proj, self.q_proj, self.v_proj = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        token = x.mean(dim=1, keepdim=True) + self.positional_embedding      # (B, 1, D)
        x = torch.cat([token, x], dim=1)                                     # (B, 1 + L, D)
        return attend(self.q_proj(token), self.k_proj(x), self.v_proj(x), self.heads)[:, 0]


class TextPool(nn.Module):
    """The prompt's states (B, L, D), as T5 gave them -> one vector (B, T). Padding is not masked."""

    def __init__(self, D: int, T: int, heads: int):
        super().__init__()
        self.norm1, self.pool = nn.LayerNorm(D), AttentionPool(D, heads)
        self.proj, self.norm2 = nn.Linear(D, T), nn.LayerNorm(T)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm2(self.proj(self.pool(self.norm1(x))))


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """softmax(q kᵀ/√d) v per head of width d: (B, M, C), twice (B, N, C) -> (B, M, C). Softmax in float32 or better."""
    q, k, v = (a.unflatten(2, (heads, -1)).transpose(1, 2) for a in (q, k, v))  # (B, heads, M or N, d)
    if torch.compiler.is_compiling():
        return plain.attention(q, k, v).transpose(1, 2).flatten(2)
    if lean(q):
        # fused attention computes in float32 here: bfloat16 products take half the time; a head's scores fit the cache
        q, k, v = (a.flatten(0, 1) for a in (q * q.shape[-1] ** -0.5, k, v))
        a = torch.stack([(q_h @ k_h.T).softmax(-1) @ v_h for q_h, k_h, v_h in zip(q, k, v)])
        return a.unflatten(0, (-1, heads)).transpose(1, 2).flatten(2)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Every pixel attends to the prompt's tokens and (unless only_cross) to every pixel. Heads are `head_dim` wide."""

    def __init__(self, C: int, X: int, head_dim: int, groups: int, only_cross: bool):
        super().__init__()
        if C % head_dim:
            raise _refused("attention_head_dim", head_dim, f"a divisor of the level's {C} channels", "fix the file")
        self.heads, self.only_cross = C // head_dim, only_cross
        self.group_norm, self.norm_cross = nn.GroupNorm(groups, C), nn.GroupNorm(32, X)  # 32 whatever the config says
        self.to_q = nn.Linear(C, C)
        if not only_cross:
            self.to_k, self.to_v = nn.Linear(C, C), nn.Linear(C, C)
        self.add_k_proj, self.add_v_proj = nn.Linear(X, C), nn.Linear(X, C)
        self.to_out = nn.ModuleList([nn.Linear(C, C)])

    def text(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """context (B, L, X) -> keys and values (B, L, C). The norm's groups run over all tokens."""
        c = self.norm_cross(context.transpose(1, 2)).transpose(1, 2)
        return self.add_k_proj(c), self.add_v_proj(c)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        H, W = x.shape[2:]
        y = norm_scale_shift(x, self.group_norm).flatten(2).transpose(1, 2).contiguous()  # (B, HW, C)
        if not self.only_cross:
            keys, values = torch.cat([keys, self.to_k(y)], 1), torch.cat([values, self.to_v(y)], 1)  # (B, L + HW, C)
        o = self.to_out[0](attend(self.to_q(y), keys, values, self.heads))   # (B, HW, C)
        return x + o.transpose(1, 2).unflatten(2, (H, W))


class Resnet(nn.Module):
    """A residual block of two convolutions, modulated by `emb` (B, T); "down" halves, "up" doubles the size first."""

    def __init__(self, c_in: int, c_out: int, config: dict, T: int, scale: float, way: str = ""):
        super().__init__()
        groups, eps = config["norm_num_groups"], config["norm_eps"]
        self.way, self.scale = way, scale
        self.norm1, self.conv1 = nn.GroupNorm(groups, c_in, eps), nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time_emb_proj = nn.Linear(T, 2 * c_out)
        self.norm2, self.conv2 = nn.GroupNorm(groups, c_out, eps), nn.Conv2d(c_out, c_out, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = gelu(norm_scale_shift(x, self.norm1))                            # (B, c_in, H, W)
        if self.way == "down":
            x, h = F.avg_pool2d(x, 2), F.avg_pool2d(h, 2)
        h = conv_of_enlarged(h, self.conv1) if self.way == "up" else conv_of_small(h, self.conv1)
        scale, shift = self.time_emb_proj(emb).chunk(2, dim=1)               # (B, c_out) each
        h = conv_of_small(gelu(norm_scale_shift(h, self.norm2, scale, shift)), self.conv2)
        # `h` is fresh from a convolution, which needs it for no gradient: add in place
        if self.way == "up" and torch.compiler.is_compiling():
            h = h + plain.enlarged(x)
        elif self.way == "up":
            h.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).add_(x[:, :, :, None, :, None])  # x enlarged 2x
        else:
            h.add_(self.conv_shortcut(x))
        return h if self.scale == 1 else h.div_(self.scale)


class Level(nn.Module):
    """Residual blocks at one size, each followed by an attention if there are any, and a sampler to the next size."""

    def __init__(self, widths: list[tuple[int, int]], attentions: list[Attention], config: dict, T: int, scale: float):
        super().__init__()
        self.resnets = nn.ModuleList([Resnet(c_in, c_out, config, T, scale) for c_in, c_out in widths])
        self.attentions = nn.ModuleList(attentions)

    def layer(self, j: int, h: Tensor, emb: Tensor, text) -> Tensor:
        """Residual block j, then its attention to the next of text: h (B, C, H, W), emb (B, T) -> (B, c_out, H, W)."""
        h = self.resnets[j](h, emb)
        return self.attentions[j](h, *next(text)) if j < len(self.attentions) else h


class TextState(NamedTuple):
    """Encoded prompts, the same for every x and t: one row for all images of a batch, or one per image."""

    pooled: Tensor              # (B, T)
    keys: tuple[Tensor, ...]    # (B, L, C) for each attention, in the order of use
    values: tuple[Tensor, ...]


def spread(state: TextState, rows: int) -> TextState:
    """The state of one prompt, pooled (1, T), for `rows` images, pooled (rows, T); nothing is copied."""
    if len(state.pooled) == rows:
        return state
    keys, values = (tuple(a.expand(rows, -1, -1) for a in tensors) for tensors in (state.keys, state.values))
    return TextState(state.pooled.expand(rows, -1), keys, values)


class IFUNet(nn.Module):
    """The U-Net of stages I and II, built as the hub's `unet/config.json` says.

        state = unet.encode(prompt_embeddings)          once per prompt
        eps, v = unet(x, t, state)                      at each step

    Parameters: IF-I-M 371,605,830, IF-I-L 935,365,830, IF-I-XL 4,304,695,110, IF-II-M 461,064,198.
    Build it under `torch.device("meta")` to load weights without making any. Raises ValueError for other configs.
    """

    def __init__(self, config: dict):
        super().__init__()
        self.config = config = checked(config)
        self.learned = config["out_channels"] == 6  # forward returns v; without it, the variance is fixed
        depths, heads, only_cross, widths = (config[name] for name in LEVELS)
        D, X, groups = config["encoder_hid_dim"], config["cross_attention_dim"], config["norm_num_groups"]
        n, T, scale = len(widths), config.get("time_embedding_dim") or 4 * widths[0], config["resnet_out_scale_factor"]

        def attentions(C: int, count: int, head_dim: int, only_cross: bool) -> list[Attention]:
            return [Attention(C, X, head_dim, groups, only_cross) for _ in range(count)]

        self.conv_in = nn.Conv2d(config["in_channels"], widths[0], 3, padding=1)
        self.time_embedding = MLP(widths[0], T)
        if config["class_embed_type"]:
            self.class_embedding = MLP(widths[0], T)
        self.encoder_hid_proj = nn.Linear(D, X)
        self.add_embedding = TextPool(D, T, config["addition_embed_type_num_heads"])

        self.down_blocks, skips = nn.ModuleList(), [widths[0]]  # the widths of what is kept for the way up
        for i, (C, depth) in enumerate(zip(widths, depths)):
            attending = attentions(C, depth * DOWN[config["down_block_types"][i]], heads[i], only_cross[i])
            level = Level([(skips[-1], C)] + [(C, C)] * (depth - 1), attending, config, T, scale)
            if i < n - 1:
                level.downsamplers = nn.ModuleList([Resnet(C, C, config, T, scale, "down")])
            self.down_blocks.append(level)
            skips += [C] * (depth + (i < n - 1))

        C = widths[-1]
        attending = attentions(C, 1, heads[-1], config["mid_block_only_cross_attention"])
        self.mid_block = Level([(C, C), (C, C)], attending, config, T, config["mid_block_scale_factor"])

        self.up_blocks = nn.ModuleList()
        for i in reversed(range(n)):
            attends, depth, below, C = UP[config["up_block_types"][n - 1 - i]], depths[i] + 1, C, widths[i]
            inputs = [(below if j == 0 else C) + skips.pop() for j in range(depth)]
            # heads[n - 1 - i], not heads[i]: the reference reverses every other list for the way up, but not this one
            attending = attentions(C, depth * attends, heads[n - 1 - i], only_cross[i])
            level = Level([(c_in, C) for c_in in inputs], attending, config, T, scale)
            if i > 0:
                level.upsamplers = nn.ModuleList([Resnet(C, C, config, T, scale, "up")])
            self.up_blocks.append(level)

        self.conv_norm_out = nn.GroupNorm(groups, widths[0], config["norm_eps"])
        self.conv_out = nn.Conv2d(widths[0], config["out_channels"], 3, padding=1)

    def encode(self, prompt_embeddings: Tensor) -> TextState:
        """T5's states (B, L, D), in any dtype -> the prompts' state for `forward`. ValueError on other shapes."""
        D, got = self.config["encoder_hid_dim"], tuple(prompt_embeddings.shape)
        if len(got) != 3 or got[2] != D:
            raise ValueError(f"expected prompt embeddings (B, L, {D}), got {got}: encode them with this model's T5")
        states = prompt_embeddings.to(self.conv_in.weight)
        context = self.encoder_hid_proj(states)
        text = [module.text(context) for module in self.modules() if isinstance(module, Attention)]
        return TextState(self.add_embedding(states), *zip(*text))

    def forward(
        self, x: Tensor, t: Tensor | float, state: TextState, class_labels: Tensor | float | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The noise in x, and where the variance of the step lies.

        x:            (B, 3, H, W), H and W divisible by 8; stage II (B, 6, H, W), divisible by 16; the network's dtype
        t:            () or (B,), counted from 0 as IF was trained: 0 … 999, fractions too; int or float32, never half
        state:        from `encode`, of one prompt for all images or one per image
        class_labels: () or (B,), stage II only: the noise level of the low-resolution image, 0 … 999
        -> eps (B, 3, H, W), and v (B, 3, H, W), nominally in [0, 1] and never clamped (None unless `learned`)
        Raises ValueError when a shape does not fit.
        """
        self._check(x, t, state, class_labels)
        state = spread(state, len(x))
        text = zip(state.keys, state.values)  # for one attention after the other
        emb = self.time_embedding(self._sinusoid(t, x))                      # (B, T)
        if class_labels is not None:
            emb = emb + self.class_embedding(self._sinusoid(class_labels, x))
        emb = emb + state.pooled
        if self.config["time_embedding_act_fn"]:
            emb = F.gelu(emb)
        if not self.config["resnet_skip_time_act"]:
            emb = F.gelu(emb)  # the residual blocks' own activation, once for all of them

        h = self.conv_in(x)                                                  # (B, C_0, H, W)
        skips = [h]
        for level in self.down_blocks:
            for j in range(len(level.resnets)):
                h = level.layer(j, h, emb, text)
                skips.append(h)
            if hasattr(level, "downsamplers"):
                h = level.downsamplers[0](h, emb)                            # (B, C_i, H/2, W/2)
                skips.append(h)

        h = self.mid_block.layer(0, h, emb, text)
        h = self.mid_block.resnets[1](h, emb)

        for level in self.up_blocks:
            for j in range(len(level.resnets)):
                h = torch.cat([h, skips.pop()], dim=1)                       # (B, C + C of the skip, H, W)
                h = level.layer(j, h, emb, text)
            if hasattr(level, "upsamplers"):
                h = level.upsamplers[0](h, emb)                              # (B, C_i, 2H, 2W)
        out = self.conv_out(gelu(norm_scale_shift(h, self.conv_norm_out)))   # (B, 6, H, W)
        return out[:, :3], ((out[:, 3:] + 1) / 2 if self.learned else None)

    def _sinusoid(self, t: Tensor | float, x: Tensor) -> Tensor:
        t = torch.as_tensor(t, device=x.device).expand(len(x))
        return sinusoid(t, self.config["block_out_channels"][0]).to(x.dtype)

    def _check(self, x: Tensor, t: Tensor | float, state: TextState, class_labels: Tensor | float | None) -> None:
        C, factor, got = self.config["in_channels"], 2 ** (len(self.down_blocks) - 1), tuple(x.shape)
        if x.ndim != 4 or x.shape[1] != C or x.shape[2] % factor or x.shape[3] % factor:
            raise ValueError(f"expected images (B, {C}, H, W), H, W divisible by {factor}, got {got}: resize or crop")
        if x.dtype != self.conv_in.weight.dtype:
            raise ValueError(f"expected images in {self.conv_in.weight.dtype}, got {x.dtype}: cast them")
        if (class_labels is None) != (self.config["class_embed_type"] is None):
            want = "the noise level of the low-resolution image, () or (B,)" if class_labels is None else "None"
            raise ValueError(f"expected class_labels = {want}, got {type(class_labels).__name__}: only stage II has it")
        for name, value in (("t", t), ("class_labels", class_labels)):
            if isinstance(value, Tensor) and value.ndim and value.shape != (len(x),):
                got = tuple(value.shape)
                raise ValueError(f"expected {name} of shape () or ({len(x)},), got {got}: give one, or one per image")
        if len(state.pooled) not in (1, len(x)):
            raise ValueError(f"expected 1 or {len(x)} prompts, got {len(state.pooled)}: encode one, or one per image")
