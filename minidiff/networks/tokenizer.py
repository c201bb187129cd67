"""Chapter 14. The tokenizer: how does a prompt become 77 numbers?

    ids = pieces(prompt)[:76] + [1], padded with 0 to 77        mask = 1 for the pieces and the end, 0 for padding

The pieces are sentencepiece's (unigram), as `spiece.model` holds them. A prompt is lower-cased and stripped, no more:
the original's long chain of regular expressions (addresses, dashes, HTML) is left out on purpose; it matters for
captions from the web, not for prompts written by hand. Next: hub.py, the files.
"""

import warnings
from pathlib import Path

import torch
from torch import Tensor

from minidiff.files import damaged

LENGTH = 77  # what IF was trained with; T5 itself would take 512
PAD, END = 0, 1


def plain(prompt: str) -> str:
    """The prompt as the model knows it: lower case, no space around it."""
    return prompt.lower().strip()


class Tokenizer:
    """Prompts -> ids. Raises ValueError when the file is no sentencepiece model."""

    def __init__(self, spiece_model: str | Path):
        from sentencepiece import SentencePieceProcessor

        try:
            content = Path(spiece_model).read_bytes()  # not by its name: the library takes no name of any letters
            if not content:
                raise RuntimeError("empty")
            self.pieces = SentencePieceProcessor(model_proto=content)
        except (OSError, RuntimeError) as error:
            raise damaged(spiece_model, "sentencepiece model", error) from None

    def __call__(self, prompts: list[str], length: int = LENGTH) -> tuple[Tensor, Tensor]:
        """-> ids (B, length) int64 and mask (B, length) int64. Warns and names the words when a prompt is longer than
        that. Raises ValueError.
        """
        ids = torch.full((len(prompts), length), PAD)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            if any("\ud800" <= letter <= "\udfff" for letter in prompt):  # what Python makes of bytes that are no UTF-8
                raise ValueError(f"the prompt {prompt!r} is no text: type it again, in UTF-8")
            tokens = self.pieces.encode(plain(prompt))
            if len(tokens) > length - 1:
                dropped = self.pieces.decode(tokens[length - 1 :])
                dropped = dropped if len(dropped) < 400 else f"{dropped[:200]} ... {dropped[-200:]}"
                warnings.warn(
                    f"the prompt has {len(tokens) + 1} tokens, the model reads {length}: cut off is {dropped!r}; "
                    f"shorten the prompt",
                    stacklevel=2,
                )
            tokens = [*tokens[: length - 1], END]
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
        return ids, mask
