"""A text model from nothing: its configs, its tokenizer, its first weights, and the files that it is written to.

A run's settings say how large it is; what is written has the layout of the hub, in bfloat16, and the loader that reads
DeepFloyd IF reads it (prompted.py). T5 = Raffel et al. 2020, arXiv 1910.10683. Next: text_tasks.py, what it learns.
"""

import io
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from minidiff import hub
from minidiff.files import load_tensors, replaced
from minidiff.networks import t5
from minidiff.networks.if_unet import Attention, IFUNet, Resnet
from minidiff.networks.t5 import T5Encoder
from minidiff.networks.tokenizer import LENGTH, plain

SPIECE = "tokenizer/spiece.model"
NOISING = {"_class_name": "DDPMScheduler", "num_train_timesteps": 1000, "beta_schedule": "squaredcos_cap_v2"}
SCHEDULER = NOISING | {  # the variance of a step is fixed, and x_0 is cut to [-1, 1]
    "prediction_type": "epsilon", "variance_type": "fixed_small",
    "thresholding": False, "clip_sample": True, "clip_sample_range": 1.0,
}  # fmt: skip


class TextToImage(nn.Module):
    """A U-Net with its text encoder: one network to train, two parts of what is written."""

    def __init__(self, unet: IFUNet, text_encoder: T5Encoder):
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder

    def forward(self, x: Tensor, t: Tensor, ids: Tensor, mask: Tensor, level: Tensor | None = None) -> Tensor:
        """The noise in x.

        x:         (B, 3, H, W); stage II (B, 6, H, W), the low resolution behind
        t:         (B,) int64 in 1 … T
        ids, mask: (B, L) of the tokenizer; of fewer than 77 tokens only as `short` makes them
        level:     (B,) int64 in 1 … T, stage II alone: the noise level of the low resolution
        -> ε (B, 3, H, W)
        """
        states = self.text_encoder(ids, mask)
        states = torch.cat([states, states[:, -1:].expand(-1, LENGTH - ids.shape[1], -1)], dim=1)    # (B, 77, D)
        state = self.unet.encode(states)
        return self.unet(x, t - 1, state, None if level is None else level - 1)[0]  # IF counts levels from 0


def short(ids: Tensor, mask: Tensor, config: dict) -> tuple[Tensor, Tensor]:
    """The tokens whose states have to be computed: padding farther from the text than T5 tells apart has one state.

    ids, mask: (B, 77)
    config:    of the encoder
    Returns (B, L) each, 24 <= L <= 77; where L < 77 the last column is such padding.
    """
    reach = int(mask.sum(1).max()) + config["relative_attention_max_distance"]
    L = min(max(24, -(-reach // 8) * 8), ids.shape[1])  # few different lengths: a compiler begins anew with each
    return ids[:, :L], mask[:, :L]


def unet_config(settings: dict, second: bool) -> dict:
    """unet/config.json from a run's settings, of stage I or II: IF's fields, with 3 channels out (fixed variance)."""
    widths, attends = settings["widths"], settings["attends"]
    down = ["SimpleCrossAttnDownBlock2D" if a else "ResnetDownsampleBlock2D" for a in attends]
    up = ["SimpleCrossAttnUpBlock2D" if a else "ResnetUpsampleBlock2D" for a in reversed(attends)]
    return {
        "act_fn": "gelu", "addition_embed_type": "text",
        "addition_embed_type_num_heads": settings["heads"],
        "attention_head_dim": settings["head_dim"], "block_out_channels": widths,
        "class_embed_type": "timestep" if second else None, "cross_attention_dim": settings["cross"],
        "cross_attention_norm": "group_norm", "down_block_types": down, "encoder_hid_dim": settings["d_model"],
        "encoder_hid_dim_type": "text_proj", "in_channels": 6 if second else 3, "layers_per_block": settings["depth"],
        "mid_block_only_cross_attention": second,
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn", "norm_num_groups": settings["groups"], "out_channels": 3,
        "resnet_time_scale_shift": "scale_shift", "sample_size": settings["size"], "up_block_types": up,
    }  # fmt: skip


def encoder_config(settings: dict, pieces: int) -> dict:
    """text_encoder/config.json from a run's settings and the size of its vocabulary."""
    D, heads = settings["d_model"], settings["heads"]
    return {
        "model_type": "t5", "feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu_new", "is_gated_act": True,
        "d_model": D, "d_kv": D // heads, "num_heads": heads, "d_ff": 2 * D, "num_layers": settings["layers"],
        "vocab_size": pieces, "relative_attention_num_buckets": 16, "relative_attention_max_distance": 8,  # see `short`
        "layer_norm_epsilon": 1e-6, "pad_token_id": 0, "eos_token_id": 1,
    }  # fmt: skip


@torch.no_grad()
def begin_encoder(encoder: T5Encoder) -> T5Encoder:
    """T5's first weights: a product keeps the variance of its input; the 1/√d of attention lies in q (T5's code)."""
    config = encoder.config
    D, d_kv, d_ff = config["d_model"], config["d_kv"], config["d_ff"]
    std = dict.fromkeys(("k", "v", "wi_0", "wi_1", "relative_attention_bias"), D**-0.5) | {"shared": 1.0}
    std |= {"q": (D * d_kv) ** -0.5, "o": (config["num_heads"] * d_kv) ** -0.5, "wo": d_ff**-0.5}
    for name, weight in encoder.named_parameters():
        if (layer := name.split(".")[-2]) in std:
            weight.normal_(0, std[layer])
    return encoder


@torch.no_grad()
def begin_unet(unet: IFUNet) -> IFUNet:
    """The U-Net's first weights: PyTorch's, but each block begins as the identity, its last layer zero (ADM's code)."""
    for module in unet.modules():
        if isinstance(module, (Resnet, Attention)):
            last = module.conv2 if isinstance(module, Resnet) else module.to_out[0]
            last.weight.zero_()
            last.bias.zero_()
    return unet


def train_tokenizer(captions: list[str], pieces: int) -> bytes:
    """spiece.model of at most so many pieces, with T5's ids: 0 padding, 1 end, 2 unknown.

    By pairs (BPE): of so few words unigram makes few whole pieces (9.9 tokens a caption, not 6.5). Letters and digits
    are pieces too, so that no English word is unknown. The same captions give the same bytes.
    """
    from sentencepiece import SentencePieceTrainer

    model, letters = io.BytesIO(), "abcdefghijklmnopqrstuvwxyz0123456789"
    SentencePieceTrainer.train(
        sentence_iterator=iter([plain(caption) for caption in captions]), model_writer=model,
        model_type="bpe", vocab_size=pieces, hard_vocab_limit=False, required_chars=letters,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, num_threads=1, minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


def weights_of(model: Path) -> dict[str, Tensor]:
    """The averaged weights of a run's folder, or of a model in the hub's layout, named as in `TextToImage`."""
    if (model / "state.safetensors").is_file():
        tensors, _ = load_tensors(model / "state.safetensors")
        return {name.removeprefix("ema."): tensor for name, tensor in tensors.items() if name.startswith("ema.")}
    unet, encoder = hub.find_weights(model, "unet", "diffusion_pytorch_model", False), encoder_weights(model)
    return {f"unet.{k}": v for k, v in hub.read(unet, unet, torch.float32).items()} | {
        f"text_encoder.{k}": v for k, v in encoder.items()
    }


def encoder_weights(model: Path) -> dict[str, Tensor]:
    """The tensors of text_encoder/, float32. Raises ValueError."""
    stored = hub.find_weights(model, "text_encoder", "model", False, t5.ALIAS, t5.DECODER)
    return hub.read(stored, stored, torch.float32)


def write_unet(unet: IFUNet, scale: float, folder: Path) -> None:
    """unet/ and scheduler/, of stage II image_noising_scheduler/ too; weights in bfloat16, files whole or not at all.

    scale: the guidance that suits the model; kept in unet/config.json beside what the hub's fields say
    """
    _write_part(
        unet,
        folder / "unet",
        "diffusion_pytorch_model",
        {"_class_name": "UNet2DConditionModel", "_minidiff": {"scale": scale}},
    )
    _write_json(SCHEDULER, folder / "scheduler/scheduler_config.json")
    if unet.config["in_channels"] == 6:
        _write_json(NOISING, folder / "image_noising_scheduler/scheduler_config.json")


def write_text(encoder: T5Encoder, spiece: bytes, folder: Path) -> None:
    """text_encoder/ and tokenizer/."""
    _write_part(encoder, folder / "text_encoder", "model", {"architectures": ["T5EncoderModel"]})
    write_bytes(spiece, folder / SPIECE)


def write_bytes(content: bytes, path: Path) -> None:
    with replaced(path) as temporary:
        temporary.write_bytes(content)


def _write_part(part: nn.Module, folder: Path, stem: str, more: dict) -> None:
    weights = {name: tensor.to("cpu", torch.bfloat16).contiguous() for name, tensor in part.state_dict().items()}
    with replaced(folder / f"{stem}.safetensors") as temporary:
        save_file(weights, temporary, {"format": "pt"})
    _write_json(part.config | more, folder / "config.json")


def _write_json(config: dict, path: Path) -> None:
    write_bytes((json.dumps(config, indent=2) + "\n").encode(), path)
