"""Words: what a caller may say of an image, "7", 7, "a fox", a list or a tensor of them, as texts."""

import difflib
import warnings
from collections.abc import Iterable, Sequence

from torch import Tensor

from minidiff import captions

Words = str | int | Sequence[str | int] | Tensor  # one for all images, or one each


def texts(words: Words) -> list[str]:
    """Words of any kind as texts: 7, "7", ["a fox", ""], a tensor of labels (−1 or None for none).

    Raises ValueError for an empty list, and for what is no word at all.
    """
    if isinstance(words, Tensor):
        words = words.reshape(-1).tolist()
    several = not isinstance(words, str) and isinstance(words, Iterable)
    words = [w.item() if hasattr(w, "item") and w.ndim == 0 else w for w in (words if several else [words])]
    wrong = [word for word in words if not isinstance(word, str | int | None)]
    if not words or wrong:
        raise ValueError(f"expected words like 7, '7' or 'a fox', one or a list, got {wrong[0] if wrong else 'none'!r}")
    return ["" if word in (None, -1) else str(word) for word in words]


def one_text(words: Words) -> str:
    """One word as a text. Raises ValueError for several."""
    found = texts(words)
    if len(found) > 1:
        raise ValueError(f"expected one word here, got {len(found)}: {', '.join(map(repr, found))}")
    return found[0]


def warn_of_unknown(prompts: Sequence[str], vocabulary: frozenset[str]) -> None:
    """Warn of each word that a model has never seen, and name the nearest that it has."""
    for word in dict.fromkeys(word for prompt in prompts for word in captions.words(prompt)):
        if word not in vocabulary:
            near = difflib.get_close_matches(word, sorted(vocabulary), n=1)
            hint = f", the nearest that it knows is {near[0]!r}" if near else ""
            warnings.warn(f"the model has never seen the word {word!r}{hint}", stacklevel=2)
