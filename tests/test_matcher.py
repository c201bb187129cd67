"""The judge of prompts: what it learns, what it says of pictures, what is asked of a model; and the shipped weights."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

import train
from minidiff import exam, marks, matcher_task, matching, picturebook
from minidiff.marks import Asked
from minidiff.matching import Judge, cosines, load_matcher, rank_prompts, readings
from minidiff.networks.matcher import UNKNOWN, at_the_door, read

CPU = torch.device("cpu")
shipped = pytest.mark.skipif(
    not (matching.WEIGHTS / "picturebook-matcher.safetensors").is_file(), reason="no shipped matcher"
)


@pytest.fixture(scope="module")
def book():
    return picturebook.load()


def pictures_of(book, rows):
    return (picturebook.render(book.pictures[rows], 32) + 1) / 2


@pytest.fixture(scope="module")
def task(book):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(picturebook, "load", lambda: book)
        return matcher_task.matcher(train.BETTER["matcher"] | {"widths": [8, 8, 16], "D": 32}, None)


def test_a_fixed_batch_is_learned(task):
    """The same pictures and words each time: their loss falls, in every weight of both towers."""
    chosen, losses = torch.arange(0, 9000, 300), []
    adam = torch.optim.Adam(task.net.parameters(), 1e-2)
    for _ in range(12):
        value = task.loss(task.net, chosen, 0, torch.Generator().manual_seed(5), slice(None))
        adam.zero_grad()
        value.backward()
        adam.step()
        losses.append(value.item())
    assert losses[-1] < 0.6 * losses[0]
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in task.net.parameters())


def test_the_loss_is_that_of_cosines_by_hand():
    """A picture that is exactly its thing and style, of two things and two styles, scale 1: cosines 1, ½, ½ and 0."""
    a, b, s, t = torch.eye(4)
    v, sums = ((a + s) / 2**0.5)[None], torch.stack([a, b, s, t, a, a])  # things a b, styles s t, a colour, a kind
    got = matcher_task.matcher_loss(v, sums, torch.tensor(1.0), torch.tensor([[0], [0], [-1], [0]]), (2, 2, 1, 1))
    pair, bare = math.log(math.e + 2 * math.e**0.5 + 1) - 1, math.log(1 + math.exp(-(0.5**0.5)))
    assert_close(got, torch.tensor(pair + 0.5 * bare))


def test_words_count_and_neither_their_order_nor_articles(task):
    net = task.net
    vectors = net.of_texts(["An emoji of a hot dog", "dog hot emoji", "emoji dog", "emoji zorblax", "quux emoji"])
    assert_close(vectors[0], vectors[1])
    assert not torch.allclose(vectors[0], vectors[2])
    assert_close(vectors[3], vectors[4])  # all that is unknown looks alike
    assert_close(vectors.norm(dim=1), torch.ones(5))
    assert net.ids(["zorblax", "a"]).tolist() == [[UNKNOWN], [UNKNOWN]]
    assert net.unknown("a pixel art drawing of a zorblax") == ["zorblax"]


def test_pictures_of_any_size_are_seen_at_32():
    x = torch.rand(2, 3, 64, 64)
    assert_close(at_the_door(x), torch.nn.functional.avg_pool2d(x, 2))
    assert_close(at_the_door(torch.ones(1, 3, 16, 20)), torch.ones(1, 3, 32, 32))


def test_what_is_drawn_badly_has_the_same_shape_and_a_white_ground_stays(book):
    generator = torch.Generator().manual_seed(3)
    assert_close(matcher_task.drawn_badly(torch.ones(4, 3, 32, 32), 0, generator), torch.ones(4, 3, 32, 32))
    x = picturebook.render(book.pictures[:40], 32)
    bad = matcher_task.drawn_badly(x, 1, generator)
    assert bad.shape == x.shape and bool(bad.isfinite().all())
    assert float((bad - x).square().mean()) > 0.05


def test_a_turned_picture_has_the_colour_that_is_said_of_it(book):
    rows = (~book.hue.isnan()).nonzero()[::30, 0]
    x, colour = matcher_task.turned(book, rows, 1.0, torch.Generator().manual_seed(1))
    assert bool((colour >= 0).all())
    assert float((marks.main_colours((x + 1) / 2, book) == colour).float().mean()) > 0.9


def test_an_alias_is_used_for_one_thing_alone(book):
    said = sum(matcher_task.own_aliases(book), [])
    assert len(said) == len(set(said)) > 500
    assert not set(said) & {thing.name for thing in book.things}


def by_hand():
    """Red looks like a top, green like a left, blue like a right: unit vectors of their own, scale 1."""
    rows = {"top": 0, "left": 1, "right": 2}
    net = SimpleNamespace(
        of_pictures=lambda x: torch.nn.functional.normalize((x.mean((2, 3)) + 1) / 2, dim=-1),
        of_texts=lambda texts: torch.eye(3)[[rows[read(text)[-1]] for text in texts]],
        scale=torch.tensor(1.0),
    )
    return Judge(net, ("top", "left", "right"), frozenset(["drawing"]))


def test_illusions_are_ranked_by_the_worst_view_and_a_little_concealment():
    """Of three things, at scale 1, log p of the right one is 1 - log(e + 2), of another -log(e + 2).

    First both views are right, then the second shows what no prompt asks for: S = [[1, 0], [0, 0]] - log(e + 2).
    """
    red, green, blue = torch.eye(3)[:, :, None, None].expand(3, 3, 4, 4)
    views, prompts = (
        torch.stack([torch.stack([red, green]), torch.stack([red, blue])]),
        ["a top", "a drawing of a left"],
    )
    S = torch.tensor([[[1.0, 0], [0, 1]], [[1, 0], [0, 0]]]) - math.log(math.e + 2)
    assert_close(readings(views, prompts, by_hand()), S)
    p = math.e / (math.e + 1)
    assert_close(
        rank_prompts(views, prompts, by_hand()), torch.tensor([1 + p / 2, (p + 0.5) / 4]) - math.log(math.e + 2)
    )


def test_rivals_have_the_prompts_words_of_style_and_colour():
    judge = Judge(None, ("apple", "orange", "hot dog"), frozenset("pixel art drawing orange".split()))
    assert matching.rivals("a pixel art drawing of an apple", judge) == [
        "pixel art drawing orange",
        "pixel art drawing hot dog",
    ]
    assert matching.rivals("an orange", judge) == ["apple", "hot dog"]
    assert matching.rivals("a zorblax", judge) == ["apple", "orange", "hot dog"]


@pytest.mark.parametrize(
    ("images", "prompts", "says"),
    [
        (torch.zeros(2, 1, 8, 8), ["a top"], "expected pictures in colour"),
        (torch.full((2, 3, 8, 8), -1.0), ["a top"], r"expected pixels in \[0, 1\], got -1 to -1"),
        (torch.full((2, 3, 8, 8), math.nan), ["a top"], r"expected pixels in \[0, 1\], got nan"),
        (torch.zeros(2, 3, 8, 8), [], "expected prompts that name something to see, got ''"),
        (torch.zeros(2, 3, 8, 8), ["a top", "of the"], "got 'of the'"),
    ],
)
def test_what_cannot_be_judged_is_refused(images, prompts, says):
    with pytest.raises(ValueError, match=says):
        cosines(images, prompts, by_hand())
    with pytest.raises(ValueError, match="expected views"):
        readings(images[:, None], ["a top", "a left"], by_hand())


@pytest.mark.parametrize(
    ("prompt", "thing", "style", "colour"),
    [
        ("a pixel art drawing of a red apple", "apple", "pixel", "red"),
        ("an orange", "orange", None, None),
        ("a thin line drawing of a glass of wine", "glass of wine", "line", None),
        ("a 3D render of a hot dog", "hot dog", "3d", None),
        ("a blue lemon", "lemon", None, "blue"),
        ("a cartoon of a zorblax", None, "cartoon", None),
        ("an owl and a rocket", None, None, None),
    ],
)
def test_prompts_are_understood(book, prompt, thing, style, colour):
    (question,) = exam.understood([prompt], book)
    assert (None if question.thing is None else book.things[question.thing].name, question.style, question.colour) == (
        thing,
        style,
        colour,
    )


def test_every_canonical_prompt_is_understood(book):
    names = {thing.name for thing in book.things}
    asks = [
        Asked(i, style, colour)
        for i, thing in enumerate(book.things)
        for style, colour in (("icon", None), (None, None), ("flat", "green"))
        if not (colour and ({*book.colours} & set(thing.name.split()) or f"{colour} {thing.name}" in names))
    ]
    assert len(asks) > 2700
    got = exam.understood([marks.said(book, *ask) for ask in asks], book)
    wrong = [(ask, found) for ask, found in zip(asks, got) if ask != found]
    assert not wrong


def test_the_questions_are_what_they_are_called(book):
    asks = exam.questions(book)
    lesson = picturebook.lesson(book)
    trained = {(int(t), book.styles[int(s)]) for t, s in zip(book.thing[lesson], book.style[lesson])}
    assert len(set(asks["seen pairs"])) == 64
    assert all((q.thing, q.style) in trained for q in asks["seen pairs"])
    assert len(asks["held-out pairs"]) >= 29
    assert not any((q.thing, q.style) in trained for q in asks["held-out pairs"])
    assert all((book.things[q.thing].name, q.colour) in book.held_out_colours for q in asks["held-out colours"])


def test_a_copy_is_found_also_when_it_was_moved(book):
    lesson = picturebook.lesson(book)[[5, 500, 5000]]
    distance, nearest = marks.to_nearest(pictures_of(book, lesson).roll((1, -1), (2, 3)), book, lesson)
    assert nearest.tolist() == lesson.tolist()
    assert_close(distance, torch.zeros(3), atol=1e-3, rtol=0)


def test_a_run_is_written_and_read(book, tmp_path, monkeypatch):
    few = {name: getattr(book, name)[::80] for name in ("pictures", "thing", "style", "sheet", "hue", "held_out")}
    monkeypatch.setattr(picturebook, "load", lambda: replace(book, **few))
    settings = ["widths=[8,8,8]", "D=8", "batch=60"]
    assert train.main(["matcher", "--epochs", "1", "--set", *settings, "--out", str(tmp_path), "--device", "cpu"]) == 0
    judge = load_matcher(tmp_path / "picturebook-matcher.safetensors")
    assert cosines(torch.rand(2, 3, 64, 64), ["an owl", "a red apple", "zorblax"], judge).shape == (2, 3)
    assert len(judge.things) == len(book.things)
    with pytest.raises(ValueError, match="holds a network of kind 'class', expected a matcher"):
        load_matcher("mnist-class")
    with pytest.raises(ValueError, match="there is no file"):
        load_matcher("nothing")


@shipped
def test_the_shipped_matcher_finds_its_own_pictures_among_a_hundred_and_their_styles(book):
    assert (matching.WEIGHTS / "picturebook-matcher.safetensors").stat().st_size <= 2e6
    rows = (book.thing < 100).nonzero()[::12, 0]
    asks = [Asked(int(book.thing[i]), book.styles[book.style[i]], None) for i in rows]
    found = marks.evaluate(pictures_of(book, rows), asks, book)
    assert float(found["thing"].mean()) > 0.95
    assert float(found["style"].mean()) > 0.75  # a third of the emoji are flat in all but name
    assert bool(found["colour"].isnan().all())
    assert float((found["distance"][~book.held_out[rows]] < 1e-3).float().mean()) == 1


@shipped
def test_a_model_that_shows_the_pictures_themselves_passes_the_exam(book, monkeypatch):
    def sample(prompts, seed):
        asks = exam.understood(prompts, book)
        rows = [
            next(
                i
                for i in (book.thing == q.thing).nonzero()[:, 0].tolist()
                if q.style in (None, book.styles[book.style[i]])
            )
            for q in asks
        ]
        return pictures_of(book, rows)

    monkeypatch.setattr(picturebook, "load", lambda: book)
    lines = exam.score_prompts(SimpleNamespace(sample=sample), count=16).splitlines()
    assert [line[5:].split(":")[0] for line in lines[:-1]] == ["seen pairs", "held-out pairs", "held-out colours"]
    assert lines[-1] == exam.CEILING
    assert "100% nearer than" in lines[0]


def arrays_of(book):
    rows = (book.thing < 100).nonzero()[::40, 0]
    prompts = [marks.said(book, int(book.thing[i]), book.styles[book.style[i]]) for i in rows]
    return pictures_of(book, rows), prompts


@shipped
def test_a_file_of_pictures_and_one_of_illusions_are_scored(book, monkeypatch):
    monkeypatch.setattr(picturebook, "load", lambda: book)
    images, prompts = arrays_of(book)
    lines = exam.score_arrays({"images": images}, [*prompts[:-1], "a zorblax"]).splitlines()
    assert "of seen pairs: right thing" in lines[0]
    assert lines[-1] == "   1 of other prompts, not marked"
    line = exam.score_arrays({"images": images[:1], "views": images[None, :2]}, prompts[:2])
    assert line.startswith("1 illusions: alignment ")


def test_a_file_without_prompts_is_refused():
    with pytest.raises(ValueError, match="expected images or views and their prompts, got images and 0 prompts"):
        exam.score_arrays({"images": torch.zeros(1, 3, 8, 8)}, [])
