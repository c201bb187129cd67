"""Chapter 13. T5: how does a prompt become vectors?

The encoder of T5 v1.1: every token attends to all, with a bias by distance instead of position embeddings.

    x = embedding(ids)
    each block:   x += o(softmax(q kᵀ + bias[distance] + mask) v)         q, k, v of rms(x); no 1/√d (in the weights)
                  x += wo(GELU_tanh(wi_0 y) · wi_1 y)                     y = rms(x)
    states = rms(x)                                                       (B, L, D); rms(x) = w x / √(mean x² + ε)

T5-XXL (4.76 billion weights) need never fit: `stream` keeps one of its 24 blocks in memory, which is enough to encode a
prompt. In half precision x stays float32, and so does `wo`: its output overflows float16 in the real model.

T5 = Raffel et al. 2020, arXiv 1910.10683; v1.1's gated GELU: Shazeer 2020, arXiv 2002.05202. Left out: the decoder,
dropout.
Next: tokenizer.py, the ids.
"""

import math
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BUILT = {"model_type": "t5", "feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu_new", "is_gated_act": True}
SIZES = ("d_model", "d_kv", "num_heads", "d_ff", "num_layers", "vocab_size")
DEFAULTS = {"relative_attention_num_buckets": 32, "relative_attention_max_distance": 128, "layer_norm_epsilon": 1e-6}
ALIAS = {"encoder.embed_tokens.weight": "shared.weight"}  # files hold the embedding under either name or both
DECODER = ("decoder.", "lm_head.")  # what the file of a whole T5 also holds


def _refused(name: str, value, expected: str) -> ValueError:
    asked = f"the text encoder's config.json asks for {name} = {value!r}"
    return ValueError(f"{asked}, expected {expected}: use a T5 v1.1 encoder")


def checked(config: dict) -> dict:
    """The config with T5's values for absent fields. Raises ValueError with the field, its value and that expected."""
    for name, value in BUILT.items():
        if config.get(name, value) != value:
            raise _refused(name, config[name], repr(value))
    config = DEFAULTS | config
    for name in (*SIZES, *DEFAULTS):
        value, whole = config.get(name), name != "layer_norm_epsilon"
        if value is None:
            raise ValueError(
                f"the text encoder's config.json lacks {name}: use the text_encoder/config.json of an IF checkpoint"
            )
        if type(value) not in ((int,) if whole else (int, float)) or not 0 < value < 2**24:
            raise _refused(name, value, f"a {'whole ' * whole}number above 0")
    rows, most = config["relative_attention_num_buckets"], config["relative_attention_max_distance"]
    if rows < 4 or most <= rows // 4:
        raise ValueError(
            f"the text encoder's config.json asks for {rows} buckets up to a distance of {most}, "
            "expected at least 4 buckets, and a distance above a quarter of their number: fix the file"
        )
    return config


def bucket(distance: Tensor, buckets: int = 32, max_distance: int = 128) -> Tensor:
    """distance (L, L), key position − query position -> (L, L), the row of the bias table.

    Near distances have a row each, far ones share rows logarithmically. Half of the rows are for keys to the right: of
    16, the first 8 are distances 0 … 7, the last is max_distance and beyond.
    """
    half = buckets // 2
    near = half // 2
    n = distance.abs()
    far = near + (torch.log(n.clamp(min=1).float() / near) / math.log(max_distance / near) * (half - near)).long()
    return half * (distance > 0) + torch.where(n < near, n, far.clamp(max=half - 1))


def embedding(rows: int, width: int) -> nn.Embedding:
    """A table (rows, width), uniform with variance 1: drawing N(0, 1) on "meta" imports sympy, which takes 2 s."""
    table = nn.Embedding.from_pretrained(torch.empty(rows, width), freeze=False)
    nn.init.uniform_(table.weight, -(3**0.5), 3**0.5)
    return table


class RMSNorm(nn.Module):
    """w x / √(mean x² + ε) over the last dimension: (B, L, D) -> (B, L, D)."""

    def __init__(self, D: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(D)), eps

    def forward(self, x: Tensor) -> Tensor:
        """Statistics in x's dtype (float32 or better), the result in the weights'."""
        return (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)).to(self.weight.dtype) * self.weight


class SelfAttention(nn.Module):
    """Unscaled attention with a bias (B or 1, heads, L, L) on its scores: (B, L, D) -> (B, L, D)."""

    def __init__(self, config: dict, has_bias: bool):
        super().__init__()
        D, self.heads = config["d_model"], config["num_heads"]
        inner = self.heads * config["d_kv"]
        self.q, self.k, self.v = (nn.Linear(D, inner, bias=False) for _ in range(3))
        self.o = nn.Linear(inner, D, bias=False)
        if has_bias:  # block 0 owns the table of all blocks
            self.relative_attention_bias = embedding(config["relative_attention_num_buckets"], self.heads)

    def forward(self, y: Tensor, bias: Tensor) -> Tensor:
        q, k, v = (p(y).unflatten(2, (self.heads, -1)) for p in (self.q, self.k, self.v))
        q, k, v = (a.transpose(1, 2).to(bias.dtype) for a in (q, k, v))      # (B, heads, L, d_kv)
        a = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
        return self.o(a.transpose(1, 2).flatten(2).to(y.dtype))


class FeedForward(nn.Module):
    """The gated GELU, wo(GELU_tanh(wi_0 y) · wi_1 y): (B, L, D) -> (B, L, D)."""

    def __init__(self, config: dict):
        super().__init__()
        D, d_ff = config["d_model"], config["d_ff"]
        self.wi_0, self.wi_1 = nn.Linear(D, d_ff, bias=False), nn.Linear(D, d_ff, bias=False)
        self.wo = nn.Linear(d_ff, D, bias=False)

    def forward(self, y: Tensor) -> Tensor:
        safe = torch.float32 if torch.float16 in (y.dtype, self.wo.weight.dtype) else self.wo.weight.dtype
        h = F.gelu(self.wi_0(y), approximate="tanh").to(safe) * self.wi_1(y)
        return F.linear(h, self.wo.weight.to(safe))


class Sublayer(nn.Module):
    """x + inner(rms(x)), with `inner` under its name in the checkpoint: (B, L, D) -> (B, L, D)."""

    def __init__(self, name: str, inner: nn.Module, config: dict):
        super().__init__()
        self.name = name
        self.add_module(name, inner)
        self.layer_norm = RMSNorm(config["d_model"], config["layer_norm_epsilon"])

    def forward(self, x: Tensor, *args: Tensor) -> Tensor:
        return x + getattr(self, self.name)(self.layer_norm(x), *args)


class Block(nn.Module):
    """Self-attention, then feed-forward, each with its norm and residual: (B, L, D) -> (B, L, D)."""

    def __init__(self, config: dict, has_bias: bool):
        super().__init__()
        attention = Sublayer("SelfAttention", SelfAttention(config, has_bias), config)
        self.layer = nn.ModuleList([attention, Sublayer("DenseReluDense", FeedForward(config), config)])

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x (B, L, D) float32 or better; bias (B or 1, heads, L, L), the mask included."""
        return self.layer[1](self.layer[0](x, bias))


class Stack(nn.Module):
    """The blocks (B, L, D) -> (B, L, D) and the last norm, under their names in the checkpoint."""

    def __init__(self, config: dict):
        super().__init__()
        self.block = nn.ModuleList([Block(config, has_bias=i == 0) for i in range(config["num_layers"])])
        self.final_layer_norm = RMSNorm(config["d_model"], config["layer_norm_epsilon"])


class T5Encoder(nn.Module):
    """The encoder as `text_encoder/config.json` says (XXL: 4,762,310,656 weights). ValueError for other configs."""

    def __init__(self, config: dict):
        super().__init__()
        self.config = checked(config)
        self.shared = embedding(self.config["vocab_size"], self.config["d_model"])
        self.encoder = Stack(self.config)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """The states of the tokens.

        ids:  (B, L) int64, L of any length (IF was trained with 77)
        mask: (B, L), 1 for a token, 0 for padding: no token attends to it, though it has a state; None for no padding
        -> (B, L, D), in the dtype of the weights
        Raises ValueError when an id is not in the vocabulary.
        """
        if not torch.compiler.is_compiling():  # a compiler would have to stop and look
            self.check_ids(ids)
        x = at_least_float32(self.shared(ids))
        bias = self.bias(ids, mask)
        for block in self.encoder.block:
            x = block(x, bias)
        return self.encoder.final_layer_norm(x)

    def bias(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """(B or 1, heads, L, L): the bias of each distance, and the most negative number at padded keys."""
        position = torch.arange(ids.shape[1], device=ids.device)
        distance = position[None, :] - position[:, None]                     # key − query
        buckets, most = self.config["relative_attention_num_buckets"], self.config["relative_attention_max_distance"]
        table = self.encoder.block[0].layer[0].SelfAttention.relative_attention_bias
        bias = at_least_float32(table(bucket(distance, buckets, most))).permute(2, 0, 1)[None]
        if mask is None:
            return bias
        return bias.masked_fill(mask[:, None, None, :] == 0, torch.finfo(bias.dtype).min)

    def check_ids(self, ids: Tensor) -> None:
        """Raises ValueError when one of the ids (B, L) is not in the vocabulary."""
        size = self.config["vocab_size"]
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < size:
            got = f"{int(ids.min())} to {int(ids.max())}"
            raise ValueError(f"expected ids in [0, {size}), got {got}: use the tokenizer of this encoder")


def at_least_float32(x: Tensor) -> Tensor:
    """x, of any shape such as (B, L, D), in float32 if it was in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def on_meta(config: dict) -> T5Encoder:
    """The encoder without its weights: to check a file against, or to be filled."""
    with torch.device("meta"):
        return T5Encoder(config)


@torch.no_grad()
def stream(
    config: dict,
    ids: Tensor,
    mask: Tensor | None,
    read: Callable[[list[str]], dict[str, Tensor]],
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Tensor:
    """The states (B, L, D) of `T5Encoder.forward`, with one block in memory at a time.

    read:     names of tensors -> tensors, in the dtype to compute in (or memory-mapped as they are)
    progress: wraps the iteration over the blocks, like tqdm
    """
    encoder = on_meta(config)
    encoder.check_ids(ids)

    def filled(module: nn.Module, name: str) -> nn.Module:
        weights = read([f"{name}.{key}" for key in module.state_dict()])
        module.load_state_dict({key.removeprefix(f"{name}."): weight for key, weight in weights.items()}, assign=True)
        return module

    x, bias = at_least_float32(filled(encoder.shared, "shared")(ids)), None
    encoder.shared = None
    for i in progress(range(len(encoder.encoder.block))):
        filled(encoder.encoder.block[i], f"encoder.block.{i}")
        if bias is None:
            bias = encoder.bias(ids, mask)  # from block 0's table
        x = encoder.encoder.block[i](x, bias)
        encoder.encoder.block[i] = nn.Identity()  # lets go of it, before the next one is read
    return filled(encoder.encoder.final_layer_norm, "encoder.final_layer_norm")(x)
