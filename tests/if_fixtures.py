"""The golden numbers and the small models they were made with (tests/golden/README.md)."""

import json
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file

from minidiff.networks.if_unet import IFUNet

GOLDEN = Path(__file__).parent / "golden"
CONFIG = {stage: json.loads((GOLDEN / f"tiny-if-{stage}/unet/config.json").read_text()) for stage in ("I", "II")}


@cache
def golden(name: str) -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / f"{name}.safetensors")


@cache
def unet_weights(stage: str) -> dict[str, torch.Tensor]:
    weights = {}
    for file in sorted((GOLDEN / f"tiny-if-{stage}/unet").glob("*.safetensors")):
        weights |= load_file(file)
    return weights


def small_unet(stage: str, dtype: torch.dtype = torch.float32) -> IFUNet:
    with torch.device("meta"):
        unet = IFUNet(CONFIG[stage])
    unet.load_state_dict({name: weight.to(dtype) for name, weight in unet_weights(stage).items()}, assign=True)
    return unet.eval()


def published_configs() -> dict[str, dict]:
    """The five unet/config.json files of the hub, from our fixtures' and their sizes."""
    attends = (
        ["ResnetDownsampleBlock2D"] * 3 + ["SimpleCrossAttnDownBlock2D"] * 2,
        ["SimpleCrossAttnUpBlock2D"] * 2 + ["ResnetUpsampleBlock2D"] * 3,
    )
    full = {
        "addition_embed_type_num_heads": 64,
        "attention_head_dim": 64,
        "encoder_hid_dim": 4096,
        "norm_num_groups": 32,
    }
    one = CONFIG["I"] | full | {"layers_per_block": 3}
    two = CONFIG["II"] | full | {"down_block_types": attends[0], "up_block_types": attends[1]}
    return {
        "IF-I-M": one | {"block_out_channels": [192, 384, 576, 768], "cross_attention_dim": 768},
        "IF-I-L": one | {"block_out_channels": [320, 640, 960, 1280], "cross_attention_dim": 1280},
        "IF-I-XL": one | {"block_out_channels": [704, 1408, 2112, 2816], "cross_attention_dim": 2816},
        "IF-II-M": two | {
            "block_out_channels": [128, 256, 512, 768, 768], "layers_per_block": [2, 2, 3, 3, 3],
            "cross_attention_dim": 768, "time_embedding_dim": 768, "only_cross_attention": False,
        },
        "IF-II-L": two | {
            "block_out_channels": [192, 384, 768, 1152, 1152], "layers_per_block": [2, 2, 3, 5, 5],
            "cross_attention_dim": 1152, "time_embedding_dim": 1152, "only_cross_attention": True,
        },
    }  # fmt: skip
