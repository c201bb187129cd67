"""A prompt is encoded once, and what is kept of it is known by what encoded it."""

import json
import re
import shutil

import pytest
import torch
from if_fixtures import GOLDEN, golden
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from minidiff import prompts
from minidiff.files import save_tensors
from minidiff.prompts import XXL, Encoder

ONE = GOLDEN / "tiny-if-I"


TEXTS = ["A photo of a red fox standing in the snow!", "an oil painting of a lighthouse"]


def test_prompts_are_encoded_once_and_kept(tmp_path):
    bank = {}
    first = prompts.embed([*TEXTS, ""], ONE, 32, bank)
    walks = golden("pipeline")
    assert_close(first[:2], walks["text.prompt_embeds"], atol=1e-4, rtol=0)
    assert_close(first[2], walks["text.negative_prompt_embeds"][0], atol=1e-4, rtol=0)
    prompts.save_bank(bank, tmp_path / "bank.safetensors")
    bank = prompts.load_bank(tmp_path / "bank.safetensors")
    assert_close(
        prompts.embed(["  AN OIL painting of a lighthouse", ""], tmp_path / "tiny-if-I", 32, bank),
        first[1:],
        rtol=0,
        atol=0,
    )


def test_a_prompt_that_is_nowhere_names_the_nearest(tmp_path):
    bank = {
        ("an oil painting of a fox", Encoder("empty")): torch.zeros(77, 32),
        ("something else", Encoder("other")): torch.zeros(77, 32),
    }
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        ValueError,
        match=r"no embedding for 'an oil painting of an ox' in the bank .nearest there: '.* fox'., and T5",
    ):
        prompts.embed(["an oil painting of an ox"], tmp_path / "empty", 32, bank)
    with pytest.raises(ValueError, match=r"\(77, 32\), the model wants \(77, 64\)"):
        prompts.embed(["an oil painting of a fox"], tmp_path / "empty", 64, bank)


def test_the_courses_file_is_imported_without_running_pickles(tmp_path):
    import pickle

    torch.save({"An Oil Painting": torch.ones(1, 77, 4096, dtype=torch.float16)}, tmp_path / "prompts.pth")
    bank = prompts.import_pth(tmp_path / "prompts.pth")
    assert list(bank) == [("an oil painting", Encoder(prompts.XXL))]
    assert_close(prompts.embed(["an oil painting "], "DeepFloyd/IF-I-M-v1.0", 4096, bank), torch.ones(1, 77, 4096))
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"a": print}, protocol=2))
    (tmp_path / "empty.pth").touch()
    for name, message in (
        ("evil.pth", r"damaged, or holds more than tensors\)"),
        ("empty.pth", "damaged"),
        ("absent.pth", "No such file"),
    ):
        with pytest.raises(ValueError, match=f"cannot be read safely .*{message}") as refusal:
            prompts.import_pth(tmp_path / name)
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "stored",
    [
        [1, 2],
        {1: torch.ones(77, 8)},
        {"a": torch.ones(2, 77, 8)},
        {"a": torch.ones(1, 76, 8)},
        {"a": torch.ones(77)},
        {"a": torch.ones(77, 0)},
        {"a": torch.ones(77, 8, dtype=torch.int64)},
        {"a": torch.full((77, 8), torch.nan)},
        {"a": torch.ones(77, 8).to_sparse()},
        {"a": "b"},
    ],
)
@pytest.mark.filterwarnings("ignore:Validating sparse")
def test_a_pth_file_without_embeddings_is_refused(tmp_path, stored):
    torch.save(stored, tmp_path / "wrong.pth")
    with pytest.raises(ValueError, match="is no dict of text"):
        prompts.import_pth(tmp_path / "wrong.pth")


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"prompts": 5},
        {"prompts": None},
        {"prompts": [{"text": "a"}]},
        {"prompts": [{"text": "a", "encoder": "b"}] * 2},
    ],
    ids=repr,
)
def test_a_file_that_is_no_bank_is_refused(tmp_path, record):
    save_tensors({"0": torch.zeros(77, 8)}, tmp_path / "bank.safetensors", record)
    with pytest.raises(ValueError, match="is no prompt bank: give"):
        prompts.load_bank(tmp_path / "bank.safetensors")


@pytest.fixture
def model(tmp_path):
    """A copy of the small model, U-Net left out."""
    for part in ("tokenizer", "text_encoder"):
        shutil.copytree(ONE / part, tmp_path / "a" / part)
    return tmp_path / "a"


def change_weights(model):
    for file in (model / "text_encoder").glob("*.safetensors"):
        save_file({name: tensor * 1.5 for name, tensor in load_file(file).items()}, file, {"format": "pt"})


def change_config(model):
    path = model / "text_encoder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"layer_norm_epsilon": 0.1}))


def change_one_number(model):
    file = next((model / "text_encoder").glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


CHANGES = {
    "weights": change_weights,
    "config": change_config,
    "one number": change_one_number,
    "tokenizer": lambda model: (model / "tokenizer" / "spiece.model").write_bytes(
        (model / "tokenizer" / "spiece.model").read_bytes() + b" "
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_encoder_in_a_folder_of_the_same_name_is_another_encoder(model, change):
    before = prompts.encoder_of(model, 32)
    CHANGES[change](model)
    assert len(before.digest) == 64 and prompts.encoder_of(model, 32).digest not in ("", before.digest)


def test_files_of_another_precision_are_another_encoder(model):
    assert len({prompts.encoder_of(model, 32, half).digest for half in (True, False)}) == 2


def test_what_another_encoder_made_is_not_taken_and_the_same_elsewhere_is(model, tmp_path, monkeypatch):
    bank = {}
    first = prompts.embed(["a fox"], model, 32, bank)
    change_weights(model)
    assert prompts.missing(["a fox"], model, 32, bank) == ["a fox"]
    second = prompts.embed(["a fox"], model, 32, bank)
    assert len(bank) == 2 and float((first - second).abs().max()) > 1e-3
    shutil.copytree(model, tmp_path / "b")
    monkeypatch.setattr(prompts, "encode", None)
    assert torch.equal(prompts.embed([" A fox"], tmp_path / "b", 32, bank), second)
    assert torch.equal(prompts.embed(["a fox"], ONE, 32, bank), first)


def test_without_the_encoder_its_name_decides_unless_there_are_two(model):
    bank = {}
    first = prompts.embed(["a fox"], model, 32, bank)
    shutil.rmtree(model / "text_encoder")
    assert torch.equal(prompts.embed(["a fox"], model, 32, bank), first)
    bank["a fox", Encoder("a", "another")] = first[0] + 1
    with pytest.raises(
        ValueError, match="the bank has 'a fox' from two encoders named a, and neither is here: name the encoder"
    ):
        prompts.embed(["a fox"], model, 32, bank)
    bank["a bear", Encoder("a", "another")] = first[0] + 2
    assert_close(
        prompts.embed(["a fox", "a bear"], model, 32, bank), torch.cat([first + 1, first + 2])
    )  # it alone has both


def test_prompts_of_one_walk_are_of_one_encoder(model):
    """One prompt is in the bank by the encoder's name; when the encoder is fetched for the other and proves to be
    another, both are encoded.
    """
    bank = {("a fox", Encoder("a", "another")): torch.zeros(77, 32)}
    found = prompts.embed(["a fox", "a bear"], model, 32, bank)
    assert not bool((found[0] == 0).all()) and len(bank) == 3


def test_the_courses_vectors_serve_where_t5_is_and_where_it_is_not(tmp_path, monkeypatch):
    xxl, a, b = Encoder(XXL), torch.ones(77, 4096), torch.zeros(77, 4096)
    bank = {("a fox", xxl): a, ("a bear", Encoder(XXL, "1")): b}
    assert prompts.missing(["a fox", "a bear"], tmp_path, 4096, bank) == []
    monkeypatch.setattr(prompts, "encoder_of", lambda *_: Encoder(XXL, "2"))
    assert prompts.missing(["a fox", "a bear"], tmp_path, 4096, bank) == ["a bear"]


def test_a_bank_comes_back_and_an_older_one_is_read(tmp_path, model):
    bank = {("a", Encoder("a", "12")): torch.ones(77, 32), ("a", Encoder("a")): torch.zeros(77, 32)}
    prompts.save_bank(bank, tmp_path / "bank.safetensors")
    assert list(prompts.load_bank(tmp_path / "bank.safetensors")) == list(bank)
    save_tensors(
        {"0": torch.ones(77, 32)}, tmp_path / "old.safetensors", {"prompts": [{"text": "a fox", "encoder": "a"}]}
    )
    old = prompts.load_bank(tmp_path / "old.safetensors")
    assert prompts.missing(["a fox"], model, 32, old) == [
        "a fox"
    ]  # its encoder is here: it is better asked than believed to be the same
    shutil.rmtree(model / "text_encoder")
    assert prompts.missing(["a fox"], model, 32, old) == []


def test_a_bank_that_cannot_be_written_is_kept_elsewhere_and_is_a_bank(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    bank = {("a", Encoder("a", "12")): torch.ones(77, 32)}
    with pytest.raises(OSError, match="cannot write .*; the arrays are kept in ") as raised:
        prompts.save_bank(bank, tmp_path / "file" / "bank.safetensors")
    assert list(prompts.load_bank(str(raised.value).split(" are kept in ")[1])) == list(bank)


def test_a_link_to_a_bank_that_is_not_there_is_no_empty_bank(tmp_path):
    (tmp_path / "bank.safetensors").symlink_to(tmp_path / "gone")
    with pytest.raises(ValueError, match="there is no file"):
        prompts.load_bank(tmp_path / "bank.safetensors")


def test_a_tokenizer_that_knows_more_than_its_encoder_is_refused(model):
    path = model / "text_encoder" / "config.json"
    config = json.loads(path.read_text())
    for file in (model / "text_encoder").glob("*.safetensors"):
        save_file(
            {
                name: tensor[:50].clone() if tensor.shape[0] == config["vocab_size"] else tensor
                for name, tensor in load_file(file).items()
            },
            file,
        )
    path.write_text(json.dumps(config | {"vocab_size": 50}))
    with pytest.raises(
        ValueError, match=re.escape("knows more pieces than its T5, 50: take the two that belong together")
    ):
        prompts.embed(["an oil painting of a fox"], model, 32, {})
