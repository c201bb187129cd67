import json
import shutil
import warnings

import pytest
import torch
from if_fixtures import GOLDEN
from torch.testing import assert_close

from minidiff.networks.tokenizer import Tokenizer, plain

CASES = json.loads((GOLDEN / "tiny-if-I.tokenizer.json").read_text())
SPIECE = GOLDEN / "tiny-if-I/tokenizer/spiece.model"


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(SPIECE)


@pytest.mark.parametrize(
    "case", [c for c in CASES if plain(c["text"]) == c["text"]], ids=lambda c: repr(c["text"][:20])
)
@pytest.mark.filterwarnings("ignore:the prompt has")
def test_ids_are_those_of_the_reference(case, tokenizer):
    ids, mask = tokenizer([case["text"]])
    assert ids[0].tolist() == case["input_ids"]
    assert int(mask.sum()) == min(case["n_untruncated"], 77)


def test_capitals_and_space_around_the_prompt_do_not_matter(tokenizer):
    ids, mask = tokenizer(["  A Red FOX \n", "a red fox", ""])
    assert_close(ids[0], ids[1])
    assert ids[2].tolist() == [1] + [0] * 76
    assert mask.sum(1).tolist() == [(ids[0] > 0).sum(), (ids[1] > 0).sum(), 1]


def test_a_long_prompt_is_cut_and_the_warning_names_the_words(tokenizer):
    long = "a photo of a red fox " * 20 + "in the snow"
    with pytest.warns(UserWarning, match=r"(?s)tokens, the model reads 77: cut off is .*in the snow'; shorten"):
        ids, mask = tokenizer([long])
    assert ids.shape == (1, 77) and int(ids[0, -1]) == 1 and bool(mask.all())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exactly = tokenizer.pieces.decode(ids[0, :-1].tolist())
        assert_close(tokenizer([exactly])[0], ids)


def test_another_file_is_refused(tmp_path):
    (tmp_path / "empty.model").touch()
    (tmp_path / "pointer.model").write_text("version https://git-lfs.github.com/spec/v1\n")
    says = {
        tmp_path / "absent.model": "cannot be read",
        GOLDEN / "README.md": "delete it and get it again",
        tmp_path / "empty.model": "it has 0 bytes",
        tmp_path / "pointer.model": "git lfs pull",
    }
    for bad, why in says.items():
        with pytest.raises(ValueError, match=rf"{bad.name} (is no sentencepiece model .*)?{why}|{why}"):
            Tokenizer(bad)


def test_a_tokenizer_in_a_folder_of_any_name_is_read(tmp_path):
    folder = tmp_path / "модель é 😀"
    folder.mkdir()
    shutil.copy(SPIECE, folder)
    assert Tokenizer(folder / SPIECE.name)(["fox"])[1].sum() > 1


def test_a_very_long_prompt_takes_time_that_grows_with_its_length_and_a_warning_that_does_not(tokenizer):
    with pytest.warns(UserWarning, match=r"cut off is '.{300,500}'; shorten"):
        ids, _ = tokenizer(["a red fox " * 20_000])
    assert ids.shape == (1, 77)


def test_ids_are_whole_numbers_for_an_embedding(tokenizer):
    ids, mask = tokenizer(["fox"])
    assert ids.dtype == mask.dtype == torch.int64


def test_bytes_that_are_no_text_are_refused(tokenizer):
    with pytest.raises(ValueError, match=r"the prompt 'fox\\udcff' is no text: type it again"):
        tokenizer([b"fox\xff".decode(errors="surrogateescape")])
