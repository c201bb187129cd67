"""What the text models learn: pictures from captions, at 32 x 32 (stage I), and 64 x 64 from 32 x 32 (stage II).

    stage I     E w_t ‖ε_θ(x_t, t, T5(caption)) − ε‖²                       the encoder learns with the U-Net
    stage II    E w_t ‖ε_θ(x_t, t, T5(caption), low_s, s) − ε‖²             low_s: the small picture, enlarged and noised to level s

A tenth of the captions is dropped: "" is the prompt that guidance steers away from (CFG Alg. 1). What is written has the hub's layout, in
bfloat16, and is read by the loader that reads DeepFloyd IF. CFG = Ho and Salimans 2022, arXiv 2207.12598.
"""

import copy
import io
import json
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from minidiff import adapters, hub, images, sampling, schedule, training
from minidiff.deepfloyd import solver_levels
from minidiff.diffusion import add_noise, clip_to
from minidiff.files import load_tensors, replaced
from minidiff.guidance import cfg
from minidiff.networks import t5
from minidiff.networks.if_unet import Attention, IFUNet, Resnet
from minidiff.networks.t5 import T5Encoder
from minidiff.networks.tokenizer import Tokenizer, plain
from minidiff.run import Task

UNET, ENCODER, SPIECE = "unet/diffusion_pytorch_model", "text_encoder/model", "tokenizer/spiece.model"
SCHEDULER = {
    "_class_name": "DDPMScheduler", "num_train_timesteps": 1000, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "epsilon",
    "variance_type": "fixed_small", "thresholding": False, "clip_sample": True, "clip_sample_range": 1.0,
}  # fmt: skip


class TextToImage(nn.Module):
    """A U-Net with its text encoder: one network to train, two parts of what is written."""

    def __init__(self, unet: IFUNet, text_encoder: T5Encoder):
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder

    def forward(self, x: Tensor, t: Tensor, ids: Tensor, mask: Tensor, level: Tensor | None = None) -> Tensor:
        """x (B, 3 or 6, H, W), t (B,) in 1 … T, ids and mask (B, L), level (B,) in 1 … T for stage II -> ε (B, 3, H, W)."""
        state = self.unet.encode(self.text_encoder(ids, mask))
        return self.unet(x, t - 1, state, None if level is None else level - 1)[0]


def text(settings: dict, folder: Path) -> Task:
    """Stage I with its encoder, from `picturebook`."""
    from minidiff import picturebook

    book = picturebook.load()
    source = folder if (folder / SPIECE).is_file() else Path(settings["init"]) if "init" in settings else None
    spiece = (source / SPIECE).read_bytes() if source and (source / SPIECE).is_file() else train_tokenizer(corpus(book), settings["pieces"])
    tokenizer, alpha_bar = Tokenizer(_on_disk(spiece, folder)), schedule.cosine(1000)
    net = TextToImage(IFUNet(unet_config(settings)), T5Encoder(encoder_config(settings, tokenizer.pieces.get_piece_size())))
    begin(net)
    if "init" in settings:
        net.load_state_dict(weights_of(Path(settings["init"])))

    def order(epoch: int, generator: torch.Generator) -> Tensor:
        things = phase(settings, epoch)["things"]
        seen = ((book.thing < things) & ~book.held_out).nonzero()[:, 0]
        wanted = settings["steps"] * settings["batch"]
        rounds = -(-wanted // len(seen))
        return torch.cat([seen[torch.randperm(len(seen), generator=generator)] for _ in range(rounds)])[:wanted]

    def loss(net: nn.Module, chosen: Tensor, epoch: int, generator: torch.Generator, mine: slice) -> Tensor:
        x_0, captions = picturebook.batch(book, chosen, phase(settings, epoch)["size"], generator)
        keep = torch.rand(len(chosen), generator=generator) >= settings["p_uncond"]
        captions = training.drop_captions(captions, keep)
        ids, mask = tokenizer(captions[mine])
        eps, t = torch.randn(x_0.shape, generator=generator), torch.randint(1, 1001, (len(x_0),), generator=generator)
        x_0, eps, t, ids, mask = (a.to(_device(net)) for a in (x_0[mine], eps[mine], t[mine], ids, mask))
        a = alpha_bar[t.cpu()].to(x_0)
        eps_hat = net(add_noise(x_0, a[:, None, None, None], eps), t, ids, mask)
        return training.noise_loss(eps_hat, eps, training.min_snr(alpha_bar[t.cpu()]).to(eps))

    def write(net: TextToImage, folder: Path, record: dict, last: bool) -> None:
        write_model(net, spiece, folder)
        if last or record["epoch"] % settings["preview_every"] == 0:
            sheet = preview(net, tokenizer, book, settings, phase(settings, record["epoch"] - 1))
            images.save_png(sheet, folder / f"samples-epoch-{record['epoch']:03d}.png", record)

    return Task(net, settings["steps"], order, loss, write)


def phase(settings: dict, epoch: int) -> dict:
    """What an epoch trains on, counted from 0: the last of `phases` that has begun. A phase is [first epoch, size, things]."""
    first, size, things = [p for p in settings["phases"] if p[0] <= epoch][-1]
    return {"size": size, "things": things}


def unet_config(settings: dict, second: bool = False) -> dict:
    """unet/config.json from a run's settings: the fields of IF's checkpoints, with fixed variance (3 channels out)."""
    widths, attends = settings["widths"], settings["attends"]
    down = ["SimpleCrossAttnDownBlock2D" if a else "ResnetDownsampleBlock2D" for a in attends]
    up = ["SimpleCrossAttnUpBlock2D" if a else "ResnetUpsampleBlock2D" for a in reversed(attends)]
    stage = {"class_embed_type": "timestep", "in_channels": 6} if second else {"class_embed_type": None, "in_channels": 3}
    return stage | {
        "_class_name": "UNet2DConditionModel", "act_fn": "gelu", "addition_embed_type": "text",
        "addition_embed_type_num_heads": settings["heads"], "attention_head_dim": settings["head_dim"], "block_out_channels": widths,
        "cross_attention_dim": settings["cross"], "cross_attention_norm": "group_norm", "down_block_types": down, "up_block_types": up,
        "encoder_hid_dim": settings["d_model"], "encoder_hid_dim_type": "text_proj", "layers_per_block": settings["depth"],
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn", "norm_num_groups": settings["groups"], "out_channels": 3,
        "resnet_time_scale_shift": "scale_shift", "sample_size": settings["size"],
    }  # fmt: skip


def encoder_config(settings: dict, pieces: int) -> dict:
    """text_encoder/config.json from a run's settings and the size of its vocabulary."""
    D, heads = settings["d_model"], settings["heads"]
    return {
        "architectures": ["T5EncoderModel"], "model_type": "t5", "feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu_new",
        "is_gated_act": True, "d_model": D, "d_kv": D // heads, "num_heads": heads, "d_ff": 2 * D, "num_layers": settings["layers"],
        "vocab_size": pieces, "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128,
        "layer_norm_epsilon": 1e-6, "pad_token_id": 0, "eos_token_id": 1,
    }  # fmt: skip


@torch.no_grad()
def begin(net: TextToImage) -> None:
    """The first weights. T5's: what it multiplies keeps its variance, and 1/√d lies in q (T5 appendix). The U-Net's blocks begin as identities."""
    config = net.text_encoder.config
    D, d_kv, d_ff = config["d_model"], config["d_kv"], config["d_ff"]
    inner = config["num_heads"] * d_kv
    stds = {"q": (D * d_kv) ** -0.5, "k": D**-0.5, "v": D**-0.5, "o": inner**-0.5, "wi_0": D**-0.5, "wi_1": D**-0.5, "wo": d_ff**-0.5}
    stds |= {"relative_attention_bias": D**-0.5, "shared": 1.0}
    for name, p in net.text_encoder.named_parameters():
        if (layer := name.split(".")[-2]) in stds:
            p.normal_(0, stds[layer])
    for module in net.unet.modules():
        if isinstance(module, (Resnet, Attention)):
            out = module.conv2 if isinstance(module, Resnet) else module.to_out[0]
            out.weight.zero_()
            out.bias.zero_()


def corpus(book) -> list[str]:
    """Captions to cut into pieces: three of every picture, and the letters and digits, so that no word is unknown."""
    from minidiff import picturebook

    generator, everything = torch.Generator().manual_seed(0), torch.arange(len(book.thing))
    captions = [c for _ in range(3) for part in everything.split(256) for c in picturebook.batch(book, part, 16, generator)[1]]
    return [*captions, *"abcdefghijklmnopqrstuvwxyz0123456789"]


def train_tokenizer(captions: list[str], pieces: int) -> bytes:
    """spiece.model of at most so many pieces (unigram), with T5's ids: 0 padding, 1 end, 2 unknown. The same captions give the same bytes."""
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter([plain(c) for c in captions]), model_writer=model, model_type="unigram", vocab_size=pieces,
        hard_vocab_limit=False, character_coverage=1.0, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, num_threads=1, minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


def _on_disk(spiece: bytes, folder: Path) -> Path:
    with replaced(folder / SPIECE) as temporary:
        temporary.write_bytes(spiece)
    return folder / SPIECE


def weights_of(model: Path) -> dict[str, Tensor]:
    """The averaged weights of a run's folder, or those of a model in the hub's layout, under `TextToImage`'s names."""
    if (model / "state.safetensors").is_file():
        tensors, _ = load_tensors(model / "state.safetensors")
        return {k.removeprefix("ema."): v for k, v in tensors.items() if k.startswith("ema.")}
    tensors = {}
    for part, stem, alias in (("unet", "diffusion_pytorch_model", {}), ("text_encoder", "model", t5.ALIAS)):
        stored = hub.find_weights(model, part, stem, False, alias=alias)
        tensors |= {f"{part}.{k}": v for k, v in hub.read(stored, stored, torch.float32).items()}
    return tensors


def write_model(net: TextToImage, spiece: bytes, folder: Path) -> None:
    """The model in the hub's layout, weights in bfloat16, each file whole or not at all."""
    for part, stem in ((net.unet, UNET), (net.text_encoder, ENCODER)):
        weights = {k: v.to("cpu", torch.bfloat16).contiguous() for k, v in part.state_dict().items()}
        with replaced(folder / f"{stem}.safetensors") as temporary:
            save_file(weights, temporary, {"format": "pt"})
        _write_json(part.config, (folder / stem).parent / "config.json")
    _write_json(SCHEDULER, folder / "scheduler/scheduler_config.json")
    _on_disk(spiece, folder)


def _write_json(config: dict, path: Path) -> None:
    with replaced(path) as temporary:
        temporary.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


@torch.no_grad()
def preview(net: TextToImage, tokenizer: Tokenizer, book, settings: dict, phase: dict, things: int = 6, steps: int = 20):
    """A sheet of so many things (columns) in all styles (rows), from the same noise each time, guided; bfloat16, as it is written."""
    net = copy.deepcopy(net).to(torch.bfloat16)
    places = torch.linspace(0, phase["things"] - 1, things).long().unique().tolist()
    names, styles = [book.things[i] for i in places], list(book.styles)
    prompts = [f"{style} {name}" for style in styles for name in names]
    rows = []
    for k, style in enumerate(styles):
        ids, mask = (a.to(_device(net)) for a in tokenizer([*prompts[k * len(names) : (k + 1) * len(names)], ""]))
        states = net.text_encoder(ids, mask)
        cond, uncond = (adapters.text(net.unet, net.unet.encode(s)) for s in (states[:-1], states[-1:]))
        noise = sampling.noise_per_image(sampling.seeded(settings["seed"], k * len(names), len(names)))
        x = noise(torch.empty(len(names), 3, phase["size"], phase["size"], device=_device(net)))
        alpha_bar = schedule.cosine(1000)
        levels = solver_levels(alpha_bar, steps)
        walk = sampling.sample(cfg(cond, uncond, settings["scale"]), x, levels, alpha_bar, step=sampling.dpm_solver(), clip=clip_to(-1, 1))
        rows.append(images.to_unit(sampling.last(walk)))
    zoom = 96 // phase["size"]
    return images.beside(images.captioned(images.grid(torch.cat(rows), len(names), zoom), names), styles)


def _device(net: nn.Module) -> torch.device:
    return next(net.parameters()).device
