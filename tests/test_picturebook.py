"""The picture book: what is shipped, what is said of it, and that a picture is what its numbers say."""

import json
import re

import pytest
import torch
from torch.testing import assert_close

from minidiff import picturebook
from minidiff.captions import PHRASE, with_article
from minidiff.picturebook import FOLDER, batch, caption, lesson, prompt, recolour, render, vocabulary


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def book():
    return picturebook.load()


@pytest.fixture(scope="module")
def told():
    return json.loads((FOLDER / "captions.json").read_text())


def test_ten_thousand_pictures_of_nine_hundred_things_in_eight_styles(book):
    assert len(book.pictures) > 9500 and len(book.things) > 900 and len(book.styles) == 8
    assert book.pictures.shape[1:] == (4, 64, 64) and book.pictures.dtype == torch.uint8
    for column in (book.thing, book.style, book.sheet, book.hue, book.held_out):
        assert column.shape == (len(book.pictures),)
    assert (book.pictures[:, 3].amax((1, 2)) > 0).all()  # none is empty
    assert book.thing.bincount().min() >= 4
    known = ~book.hue.isnan()
    assert known.sum() > 3000 and (book.hue[known] < 360).all() and (book.hue[known] >= 0).all()


def test_no_two_things_share_a_name_and_no_picture_is_there_twice(book):
    names = [thing.name for thing in book.things]
    assert len(set(names)) == len(names)
    assert not set(names) & {alias for thing in book.things for alias in thing.aliases}
    assert len({picture.numpy().tobytes() for picture in book.pictures}) == len(book.pictures)


def test_sheets_are_small_and_each_has_its_licence_and_credit(told):
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= 12.5e6
    credits = (FOLDER / "LICENSES" / "CREDITS.md").read_text()
    for sheet in told["sheets"]:
        assert (FOLDER / "LICENSES" / f"{sheet['licence']}.txt").stat().st_size > 1000
        assert re.search(rf"\| {sheet['file']} \|.*\| {sheet['licence']} \|", credits)
        assert len(sheet["things"]) == len(set(sheet["things"])) == len(sheet["hues"])
    assert {path.name for path in FOLDER.glob("*.webp")} == {sheet["file"] for sheet in told["sheets"]}


def test_what_is_held_out_is_never_trained_on(book, told):
    seen = {(book.things[book.thing[i]].name, book.styles[book.style[i]]) for i in lesson(book).tolist()}
    pairs = {tuple(pair) for pair in told["held_out"]}
    assert 0.03 < len(pairs) / (len(seen) + len(pairs)) < 0.07
    assert not seen & pairs
    assert book.thing[lesson(book)].bincount(minlength=len(book.things)).min() >= 3
    assert book.thing[lesson(book, 100)].max() == 99


def test_colours_that_are_held_out_are_never_said(book):
    one_hue = lesson(book)[~book.hue[lesson(book)].isnan()]
    _, captions = batch(book, one_hue, 4, seeded(), recolour_share=1)
    for i, said in zip(one_hue.tolist(), captions, strict=True):
        (colour,) = [colour for colour in book.colours if re.search(rf"\b{colour}\b", said)] or [""]
        assert colour and (book.things[book.thing[i]].name, colour) not in book.held_out_colours, said


@pytest.mark.parametrize("words", ["owl", "apple", "hourglass", "umbrella", "x-ray", "orange cherry"])
def test_an_before_a_vowel_that_is_heard(words):
    assert with_article(words) == f"an {words}"


@pytest.mark.parametrize(
    "words", ["unicorn", "red apple", "ufo", "cactus", "glass of milk", "ewe", "rhinoceros", "dress"]
)
def test_a_before_other_single_things(words):
    assert with_article(words) == f"a {words}"


@pytest.mark.parametrize(
    "words", ["cherries", "bread", "scissors", "mount fuji", "orange trousers", "toilet paper", "skis"]
)
def test_no_article_before_many_or_what_is_not_counted(words):
    assert with_article(words) == words


def test_prompts():
    assert prompt("pixel", "apple", "red") == "a pixel art drawing of a red apple"
    assert prompt("icon", "owl") == "an icon of an owl"
    assert prompt(None, "owl", "orange") == "an orange owl"
    with pytest.raises(ValueError, match="expected one of the styles emoji, flat, .* got 'oil'"):
        prompt("oil", "owl")


def test_captions_name_the_thing_and_the_style_as_often_as_promised(book):
    i = next(
        i
        for i in range(len(book.thing))
        if book.things[book.thing[i]].name == "pear" and book.styles[book.style[i]] == "pixel"
    )
    generator = seeded()
    said = [caption(book, i, generator) for _ in range(2000)]
    share = lambda pattern: sum(bool(re.search(pattern, s)) for s in said) / len(said)  # noqa: E731
    assert abs(share(r"\ba pear$") - 0.75) < 0.03
    assert abs(share(r"\ba green pear$") - 0.15) < 0.03
    assert abs(share(r"\ba fruit$") - 0.10) < 0.03
    assert abs(share("pixel") - 0.90) < 0.03
    assert {tuple(phrases)[0] for phrases in book.phrases} == set(PHRASE.values()) and tuple(PHRASE) == book.styles


def test_no_red_apple_is_said_of_a_black_one(book):
    black = [
        i
        for i in range(len(book.thing))
        if book.things[book.thing[i]].name == "apple" and book.styles[book.style[i]] in book.colourless
    ]
    generator = seeded()
    assert not any("red" in caption(book, i, generator) for i in black for _ in range(200))


def test_every_word_of_a_caption_is_in_the_vocabulary(book):
    known, generator = vocabulary(book), seeded()
    assert {"apple", "owl", "rocket", "pixel", "silhouette", "blue", "fruit", "a", "an"} <= known
    assert {
        word for i in range(0, len(book.thing), 7) for word in picturebook.words(caption(book, i, generator, "blue"))
    } <= known


def test_one_seed_gives_one_batch(book):
    chosen = lesson(book)[:64]
    (x, said), (again, as_before) = (batch(book, chosen, 32, seeded(7)) for _ in range(2))
    assert torch.equal(x, again) and said == as_before
    assert x.shape == (64, 3, 32, 32) and x.dtype == torch.float32 and x.min() >= -1 and x.max() <= 1
    assert batch(book, chosen, 32, seeded(8))[1] != said


def test_turning_red_by_120_degrees_gives_green_and_leaves_far_hues_greys_and_alpha_alone():
    pixels = torch.tensor(
        [[255, 0, 0, 255], [200, 100, 100, 9], [0, 0, 255, 255], [90, 90, 90, 255]], dtype=torch.uint8
    )
    turned = recolour(pixels.T.reshape(4, 1, 4), 0, 120).reshape(4, 4).T
    assert turned.tolist() == [[0, 255, 0, 255], [100, 200, 100, 9], [0, 0, 255, 255], [90, 90, 90, 255]]


def test_a_turn_and_back_is_no_turn(book):
    rgba = book.pictures[book.style == 0][:50]
    back = recolour(recolour(rgba, 0, 0), 200, 200)
    assert (back.int() - rgba.int()).abs().max() <= 1


@pytest.mark.parametrize("size", [64, 32, 24, 16, 1])
def test_a_rendered_pixel_is_the_mean_of_what_it_covers_on_white(size):
    rgba = torch.randint(0, 256, (2, 4, 64, 64), dtype=torch.uint8, generator=seeded())
    x = rgba.double() / 255
    on_white = 1 - x[:, 3:] + x[:, 3:] * x[:, :3]
    assert_close(render(rgba, size).mean((2, 3)).double(), (on_white * 2 - 1).mean((2, 3)), atol=1e-6, rtol=0)
    if 64 % size == 0:
        means = torch.nn.functional.avg_pool2d(on_white * 2 - 1, 64 // size)
        assert_close(render(rgba, size).double(), means, atol=1e-6, rtol=0)


def test_what_is_clear_shows_the_background_and_too_large_is_refused():
    clear = torch.tensor([9, 9, 9, 0], dtype=torch.uint8).view(1, 4, 1, 1).expand(1, 4, 64, 64)
    assert_close(render(clear, 32, background=-0.5), torch.full((1, 3, 32, 32), -0.5))
    with pytest.raises(ValueError, match="expected a size from 1 to 64, got 128"):
        render(clear, 128)


def test_a_missing_sheet_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"cannot read the picture book .*captions\.json.*git checkout"):
        picturebook.load(tmp_path)
