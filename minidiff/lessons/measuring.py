"""Measuring what was drawn, and encoding prompts once."""

from pathlib import Path

import torch
from torch import Tensor

from minidiff import exam, files, hub, judge, prompts
from minidiff.prompted import BANK, block_by_block
from minidiff.results import Result, counted


def embed(
    words: list[str] = (),
    *,
    course: str | None = None,
    bank: str = str(BANK),
    encoder: str = "DeepFloyd/IF-I-M-v1.0",
    dtype: str | None = None,
) -> Result:
    """Encode prompts with T5 into a prompt bank, after which T5 is not needed for them again.

    words:   the prompts
    course:  also take the course's .pth file of embeddings into the bank
    bank:    the .safetensors file that is added to
    encoder: the model whose tokenizer/ and text_encoder/ encode
    dtype:   of the files that are read: bfloat16 or float16 for half of the download
    Example: embed "an oil painting of a fox" --bank out/prompts.safetensors
    """
    stored = prompts.load_bank(bank)
    before = len(stored)
    if course is not None:
        stored |= prompts.import_pth(course)
    if words or course is None:
        width = hub.read_json(encoder, "text_encoder/config.json").get("d_model")
        prompts.embed(["", *words], encoder, width, stored, dtype not in (None, "float32"), block_by_block)
    summary = (
        f"{counted(len(stored) - before, 'prompt')} added, {len(stored)} in the bank: every lesson looks there first"
    )
    return Result(summary, bank=stored)


def score(arrays: str | Path) -> Result:
    """What our judges say of the arrays of a lesson: of digits beside real digits; of prompts, is what they name there?

    arrays: a .safetensors or .npz of another lesson, or a .npz of yours: images (N, 1, 28, 28) in [0, 1] and labels; of
            prompts, which are in its settings, a .safetensors
    Example: score out/digits.safetensors
    """
    found = files.load_arrays(arrays)
    if "labels" not in found and found.get("images", torch.empty(0)).shape[1:2] == (3,):
        settings = files.load_tensors(arrays)[1] if Path(arrays).suffix == ".safetensors" else {}
        return Result(exam.score_arrays(found, settings.get("prompts", [])))
    seen, labels = _digits(found, arrays)
    N, V = seen.shape[:2]
    reader = judge.load_reader()
    features = reader.features(seen.flatten(0, 1)).unflatten(0, (N, V))
    log_probs, real, fits_of = reader.log_probs(features), judge.real_digits(reader), labels.view(N, V)
    right = judge.read_as(log_probs.flatten(0, 1), fits_of.flatten()).view(N, V)
    fits = judge.plausible(features.flatten(0, 1), real).view(N, V)
    asked = (fits_of >= 0).all(1)
    read = f"{_share(right[asked].all(1))} read as asked, " if bool(asked.any()) else ""
    lines = [f"{counted(N, 'image')}: {read}{_share(fits.all(1))} plausible, {_share((right & fits).all(1))} both"]
    if V > 1:
        lines += [
            f"view {i + 1}: {_share(right[:, i])} read as asked, {_share(fits[:, i])} plausible" for i in range(V)
        ]
        S = judge.readings(log_probs, fits_of)
        alignment, concealment = float(judge.alignment(S).mean()), float(judge.concealment(S).mean())
        lines.append(
            f"alignment {alignment:.3f} (log-probability in the worst view), "
            f"concealment {concealment:.3f} (by chance {1 / V:.2f}, at most 1)"
        )
    elif N > 1:
        distance = judge.frechet(features[:, 0], real.features)
        lines.append(
            f"Fréchet distance to the 10,000 test digits {distance:.3f}; of 2,000 training digits {real.floor:.3f} "
            f"(by our classifier's {features.shape[-1]} features; fewer images read higher)"
        )
    return Result("\n".join([*lines, "99 % of real test digits are plausible"]))


def _digits(arrays: dict[str, Tensor], name: str | Path) -> tuple[Tensor, Tensor]:
    """What a file holds as (N, V, 1, 28, 28) and labels (N, V) or (N,) int64.

    Raises ValueError for another shape or label.
    """
    x, labels = arrays.get("images"), arrays.get("labels")
    plain = x is not None and x.ndim == 4 and labels is not None and labels.ndim == 1
    seen = x[:, None] if plain else arrays.get("views")
    if (
        seen is None
        or labels is None
        or seen.ndim != 5
        or seen.shape[2:] != (1, 28, 28)
        or labels.numel() != seen.shape[0] * seen.shape[1]
        or len(labels) != len(seen)
    ):
        found = ", ".join(f"{key} {tuple(tensor.shape)}" for key, tensor in [*arrays.items()][:5]) or "nothing"
        raise ValueError(
            f"{name}: expected images (N, 1, 28, 28) with labels (N,), or views (N, V, 1, 28, 28) with labels (N, V), "
            f"got {found}: give digits"
        )
    known = torch.arange(-1 if labels.ndim == 1 else 0, 10).double()
    if len(seen) == 0 or not bool(torch.isin(labels.double(), known).all()):
        got = f"{len(seen)} images, labels {labels.flatten()[:3].tolist()}..."
        raise ValueError(
            f"{name}: expected at least one image, and labels 0 to 9 or -1 for none, got {got}: give digits"
        )
    return seen, labels.long()


def _share(which: Tensor) -> str:
    return f"{float(which.float().mean()):.1%}"
