"""What is said of a picture: the words that a small text-to-image network learns, and learns to be asked with.

A caption is a phrase for the style, an article, perhaps a colour, and one of the words for the thing:

    a pixel art drawing of | a | red | apple

Next: [picturebook.py](picturebook.py), the pictures.
"""

import re
from dataclasses import dataclass

import torch

PHRASE = {  # style -> the canonical phrase
    "emoji": "an emoji of", "flat": "a flat drawing of", "3d": "a 3d render of", "icon": "an icon of",
    "line": "a line drawing of", "pixel": "a pixel art drawing of", "cartoon": "a cartoon of",
    "silhouette": "a silhouette of",
}  # fmt: skip
COLOUR_WORDS = set("red orange yellow green turquoise blue purple pink black white brown gold silver bronze".split())
UNCOUNTED = set(  # no article before these
    """bacon blood bread broccoli butter cabbage cheese clothing coffee coral corn cream curry cutlery dna dynamite
    earth falafel fire fog fondue food fuji furniture garlic gear ginger grain honey ice lettuce lightning
    luggage mail maize make-up meat medicine milk money music paper pong poop popcorn porridge rain ramen rice
    sake salad salt saturn seafood shampoo smoke snow soap soda sound soup spaghetti steam stew sushi tableware
    tea tempura tennis water weather wheat whisky wind wine wood wool yarn""".split()
)


@dataclass(frozen=True)
class Thing:
    """What is drawn: the name to use, other names for it, and what it is one of (its hypernym)."""

    name: str
    aliases: tuple[str, ...]
    kind: str


def with_article(words: str) -> str:
    """owl -> an owl, unicorn -> a unicorn, cup of tea -> a cup of tea; cherries and bread stay as they are."""
    noun = re.split(r" (?:of|with|in|on|from|and|before|between|over|at) ", words)[0].split()[-1]
    if noun in UNCOUNTED or (noun.endswith("s") and not re.search(r"(ss|us|lens|rhinoceros)$", noun)):
        return words
    return f"{'an' if re.match('(?!eu|ewe|one|ufo|uni)[aeiou]|hour|x-ray', words) else 'a'} {words}"


def prompt(style: str | None, name: str, colour: str | None = None) -> str:
    """The canonical caption: prompt("pixel", "apple", "red") is "a pixel art drawing of a red apple".

    style: None for the thing alone, "a red apple". Raises ValueError for a style that there isn't.
    """
    if style is not None and style not in PHRASE:
        raise ValueError(f"expected one of the styles {', '.join(PHRASE)}, got {style!r}")
    return " ".join([*([PHRASE[style]] if style else []), with_article(f"{colour} {name}" if colour else name)])


def say(
    thing: Thing, phrases: tuple[str, ...], generator: torch.Generator, colour: str | None = None, black: bool = False
) -> str:
    """A caption: the thing's name (75 %), an alias (15 %) or its kind (10 %), with the style (90 %) or without.

    phrases: for the style; the first one is said twice as often as another
    colour:  what the picture was turned to. An alias with a colour in it is never said of a turned or a black picture.
    """
    which, alias, phrase, styled = torch.rand(4, generator=generator).tolist()
    fit = [a for a in thing.aliases if not ((colour or black) and COLOUR_WORDS & set(a.split()))] or [thing.name]
    said = thing.name if which < 0.75 else fit[int(alias * len(fit))] if which < 0.9 else thing.kind
    said = with_article(f"{colour} {said}" if colour else said)
    phrases = (phrases[0], *phrases)
    return f"{phrases[int(phrase * len(phrases))]} {said}" if styled < 0.9 else said


def words(text: str) -> list[str]:
    """The words of a prompt, as `vocabulary` lists them."""
    return re.findall(r"[a-z0-9][a-z0-9'-]*", text.lower())
