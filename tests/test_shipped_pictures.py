"""The shipped text-to-image model: read by the loader of DeepFloyd's models, it draws the same each time."""

import json
import warnings
from pathlib import Path

import pytest
import torch

import minidiff
from minidiff import lessons, picturebook
from minidiff.shipped import WEIGHTS
from minidiff.walk import Walk

GOLDEN = Path(__file__).parent / "golden" / "picturebook.json"


@pytest.fixture(scope="module")
def model():
    return minidiff.load("picturebook")


def test_it_is_in_the_layout_of_the_hub_and_small(model):
    folder = WEIGHTS / "picturebook"
    for name in ("unet/diffusion_pytorch_model", "text_encoder/model"):
        assert (folder / f"{name}.safetensors").stat().st_size <= 20e6
        assert (folder / name).parent.joinpath("config.json").is_file()
    assert (folder / "tokenizer/spiece.model").is_file()
    assert "picturebook" in minidiff.names()
    assert model.shape == (3, 32, 32)


def test_it_knows_the_words_of_the_captions_it_learned_and_names_others(model):
    assert model.vocabulary <= picturebook.vocabulary(picturebook.load())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.known("a pixel art drawing of a red apple")
    with pytest.warns(UserWarning, match="never seen the word 'aple', the nearest that it knows is 'apple'"):
        model.known("an emoji of an aple")


def test_a_drawn_picture_is_the_one_written_down(model):
    """Eight steps of three prompts; to 0.02, since other processors round otherwise."""
    written = json.loads(GOLDEN.read_text(encoding="utf-8"))
    x = model.sample(written["prompts"], steps=8, seed=1, progress=False)
    assert x.shape[0] == len(written["prompts"])
    torch.testing.assert_close(x.flatten(1)[:, ::97], torch.tensor(written["values"]), rtol=0, atol=0.02)


def test_another_prompt_draws_another_picture_from_the_same_noise(model):
    prompts = ("an emoji of a panda", "an emoji of a heart")
    first, second = (model.sample(p, steps=4, seed=1, progress=False) for p in prompts)
    assert float((first - second).abs().mean()) > 0.05


def test_without_words_text_draws_a_sheet_of_styles(model):
    made = lessons.text(model=model, walk=Walk(steps=1, scale=1))
    assert made.rows == tuple(picturebook.load().styles)
    assert len(made.images) == len(made.rows) * len(made.columns)
    assert set(made.prompts[0].split()) <= model.vocabulary


if __name__ == "__main__":  # writes the pictures down anew, where the weights changed
    prompts = ["an emoji of a panda", "a 3d render of a heart", "a pixel art drawing of a strawberry"]
    x = minidiff.load("picturebook").sample(prompts, steps=8, seed=1)
    GOLDEN.write_text(json.dumps({"prompts": prompts, "values": x.flatten(1)[:, ::97].tolist()}), encoding="utf-8")
