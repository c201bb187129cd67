import json
import os
import re
import shutil

import fake_hub
import pytest
import torch
from if_fixtures import CONFIG, GOLDEN
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from minidiff import hub
from minidiff.networks.if_unet import IFUNet

STEM = "diffusion_pytorch_model"


def unet_of(model, dtype=torch.float32, half=False, stage="I"):
    with torch.device("meta"):
        unet = IFUNet(CONFIG[stage])
    return hub.load(unet, hub.find_weights(model, "unet", STEM, half), dtype)


@pytest.fixture
def folder(tmp_path):
    """A copy of the small stage II, in four shards and an index."""
    shutil.copytree(GOLDEN / "tiny-if-II", tmp_path / "model")
    return tmp_path / "model"


def index_of(folder):
    return folder / "unet" / f"{STEM}.safetensors.index.json"


def change_index(folder, change):
    index = json.loads(index_of(folder).read_text())
    change(index["weight_map"])
    index_of(folder).write_text(json.dumps(index))


def change_shard(folder, number, change):
    file = folder / "unet" / f"{STEM}-0000{number}-of-00004.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def test_a_single_file_and_shards_give_the_same_network(folder):
    tensors = {name: tensor.float() for name, tensor in unet_of(folder, stage="II").state_dict().items()}
    shutil.rmtree(folder / "unet")
    (folder / "unet").mkdir()
    save_file(tensors, folder / "unet" / f"{STEM}.safetensors")
    assert_close(dict(unet_of(folder, stage="II").state_dict()), tensors, rtol=0, atol=0)


@pytest.mark.parametrize(
    "shard", ["{stem}.fp16-0000{k}-of-00002.safetensors", "{stem}-0000{k}-of-00002.fp16.safetensors"]
)
@pytest.mark.parametrize("index", ["{stem}.safetensors.index.fp16.json", "{stem}.fp16.safetensors.index.json"])
def test_both_spellings_of_the_variant_are_found(tmp_path, shard, index):
    tensors = load_file(GOLDEN / "tiny-if-I/unet" / f"{STEM}.safetensors")
    names = [shard.format(stem=STEM, k=k) for k in (1, 2)]
    placed = {key: names[i % 2] for i, key in enumerate(tensors)}
    (tmp_path / "unet").mkdir()
    for name in names:
        save_file({key: tensors[key].half() for key in tensors if placed[key] == name}, tmp_path / "unet" / name)
    (tmp_path / "unet" / index.format(stem=STEM)).write_text(json.dumps({"weight_map": placed}))
    for half in (True, False):  # the only files there are
        unet = unet_of(tmp_path, half=half)
        assert_close(
            dict(unet.state_dict()), {name: tensor.half().float() for name, tensor in tensors.items()}, rtol=0, atol=0
        )


def test_the_precision_asked_for_comes_first(tmp_path):
    (tmp_path / "unet").mkdir()
    tensors = load_file(GOLDEN / "tiny-if-I/unet" / f"{STEM}.safetensors")
    save_file(tensors, tmp_path / "unet" / f"{STEM}.safetensors")
    save_file({name: tensor.half() for name, tensor in tensors.items()}, tmp_path / "unet" / f"{STEM}.fp16.safetensors")
    for half, end in ((True, f"{STEM}.fp16.safetensors"), (False, f"{STEM}.safetensors")):
        assert {stored.file.name for stored in hub.find_weights(tmp_path, "unet", STEM, half).values()} == {end}


def test_a_loaded_network_is_ready_and_nothing_is_left_on_meta():
    unet = unet_of(GOLDEN / "tiny-if-I", torch.bfloat16)
    assert not unet.training
    assert {(p.device.type, p.dtype, p.requires_grad) for p in unet.parameters()} == {("cpu", torch.bfloat16, False)}


def test_files_are_opened_anew_for_every_portion_and_the_largest_tensors_come_first(tmp_path, monkeypatch):
    opened = []

    class Opened:
        def __init__(self, file, framework):
            opened.append([])

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def get_tensor(self, key):
            opened[-1].append(key)
            return torch.zeros(1)

    monkeypatch.setattr(hub, "safe_open", Opened)
    weights = {
        f"w{i}": hub.Stored(tmp_path, f"w{i}", (1,), size) for i, size in enumerate([5, 2**25, 2**23, 2**23, 2**23, 7])
    }
    assert set(hub.read(weights, weights)) == set(weights)
    assert opened == [["w1"], ["w2", "w3"], ["w4", "w5", "w0"]]


REFUSALS = {
    "missing": (
        lambda f: (
            change_shard(f, 1, lambda t: t.pop("conv_in.bias")),
            change_index(f, lambda m: m.pop("conv_in.bias")),
        ),
        "lack conv_in.bias",
    ),
    "lost": (lambda f: change_shard(f, 1, lambda t: t.pop("conv_in.bias")), "conv_in.bias is not in"),
    "unexpected": (
        lambda f: (
            change_shard(f, 1, lambda t: t.update(extra=torch.zeros(1))),
            change_index(f, lambda m: m.update(extra=m["conv_in.bias"])),
        ),
        "have, unexpected, extra",
    ),
    "not in the index": (lambda f: change_shard(f, 1, lambda t: t.update(extra=torch.zeros(1))), "extra is in"),
    "misshaped": (
        lambda f: change_shard(f, 1, lambda t: t.update({"conv_in.bias": torch.zeros(31)})),
        r"conv_in.bias is \(31,\) in the file, \(32,\) in the network",
    ),
    "twice": (lambda f: change_shard(f, 2, lambda t: t.update({"conv_in.bias": torch.zeros(32)})), "conv_in.bias"),
    "type": (
        lambda f: change_shard(f, 1, lambda t: t.update({"conv_in.bias": torch.zeros(32, dtype=torch.int8)})),
        "of type I8",
    ),
    "cut off": (lambda f: os.truncate(next((f / "unet").glob("*-00001-*")), 1000), "no whole safetensors file"),
    "no shard": (lambda f: next((f / "unet").glob("*-00001-*")).unlink(), "has no unet/.*00001"),
    "no index": (lambda f: index_of(f).write_text("[]"), "no index of safetensors"),
    "weight_map of text": (lambda f: index_of(f).write_text('{"weight_map": "ab"}'), "no index of safetensors"),
    "index of bytes": (lambda f: index_of(f).write_bytes(b"\xff\xfe"), "is no JSON object"),
    "key twice": (
        lambda f: index_of(f).write_text('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}'),
        "a stands twice",
    ),
    "..": (
        lambda f: change_index(f, lambda m: m.update({"conv_in.bias": "../evil.safetensors"})),
        r"names the file '\.\./evil.safetensors'.*do not trust",
    ),
    "absolute": (
        lambda f: change_index(f, lambda m: m.update({"conv_in.bias": "/tmp/evil.safetensors"})),
        "do not trust",
    ),
    "pickled shard": (
        lambda f: change_index(f, lambda m: m.update({"conv_in.bias": "evil.bin"})),
        "wanted is a safetensors file",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_weights_that_are_not_exactly_the_networks_are_refused_in_one_sentence(folder, case):
    spoil, message = REFUSALS[case]
    spoil(folder)
    with pytest.raises(ValueError, match=message) as refusal:
        unet_of(folder, stage="II")
    assert "\n" not in str(refusal.value) and ": " in str(refusal.value)


def test_pickles_are_refused(tmp_path):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / f"{STEM}.bin").write_bytes(b"anything")
    with pytest.raises(ValueError, match="is a pickle, which can run code"):
        unet_of(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{", b"7", b"null", bytes(1), b"\xff\xfe", b"[" * 100_000],
    ids=lambda content: repr(content)[:20],
)
def test_a_config_that_is_no_json_object_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match="is no JSON object .*: delete it and get it again"):
        hub.read_json(tmp_path, "config.json")


@pytest.mark.parametrize(
    "content",
    [b"", bytes(8), b"<html>404</html>", b"\x80\x02}q\x00."],
    ids=["empty", "zeros", "a web page", "a pickle"],
)
def test_a_file_that_is_no_safetensors_is_refused(tmp_path, content):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / f"{STEM}.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="is no whole safetensors file .*: delete it and get it again") as refusal:
        unet_of(tmp_path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["no/such/folder", "justaname", "../up", "é/x", "x" * 300 + "/y", "a/b\n"])
def test_what_is_neither_a_folder_nor_a_name_is_refused(name):
    with pytest.raises(ValueError, match=r"^there is no folder .*owner/name: check the name of the model$"):
        hub.read_json(name, "unet/config.json")


# The hub, on the loopback
@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What a process gets from the fake hub: online, then offline with the same cache."""
    server, home = fake_hub.serve(), tmp_path_factory.mktemp("hf")
    endpoint, said = f"http://127.0.0.1:{server.server_address[1]}", {}
    for state in ("online", "offline"):
        if state == "offline":
            server.shutdown()
            server.server_close()
        said[state] = fake_hub.ask_in_a_process_of_its_own(endpoint, str(home), state == "online")
    return said


LOGIN = "run `hf auth login` with a token from huggingface.co/settings/tokens"
ONLINE = {
    "tiny": "^gelu$",
    "gated-401": (
        rf"gated-401/I wants to know who you are \(401: no valid token\): accept its licence at .*, then "
        rf"{LOGIN}"
    ),
    "gated-403": (
        r"gated-403/I is gated and your account has not accepted its licence \(403\): accept it at "
        r"huggingface.co/gated-403/I"
    ),
    "pending": r"your request for pending/I waits for its authors \(403: .*\): try again when they have answered",
    "rejected": r"the authors of rejected/I have refused your request \(403: .*\): choose another model",
    "unknown-401": (
        rf"no model unknown-401/I that you may see \(401\): it may be private: {LOGIN}, or check the "
        rf"spelling"
    ),
    "unknown-404": r"no model unknown-404/I that you may see \(404\): check the spelling",
    "expired": rf"the hub does not accept your token \(401: Invalid credentials in Authorization header\): {LOGIN}",
    "narrow": (
        rf"your token may not read narrow/I \(403: Please enable .*\): allow it at "
        rf"huggingface.co/settings/tokens, or {LOGIN}"
    ),
    "disabled": r"the hub has closed disabled/I \(403: .*\): choose another model",
    "busy": rf"the hub was asked too often from here \(429\): wait 7 seconds, or {LOGIN}",
    "proxy": (
        r"the proxy of this network does not let you through to the hub \(407\): put USER:PASSWORD@ before "
        r"its host in HTTPS_PROXY"
    ),
    "firewall": r"127.0.0.1:\d+ refuses firewall/I/unet/config.json \(403\): let your network pass it",
    "broken-500": r"the hub answered 500 for broken-500/I/unet/config.json: try again later",
    "down": (
        r"the hub cannot be reached \(.*[Dd]isconnected.*\), and down/I/unet/config.json is not in the cache: "
        r"go online, or give a local folder"
    ),
    "storage": (
        r"the storage behind the hub \(127.0.0.1:\d+\) answered 403 for storage/I/unet/config.json: try "
        r"again, as its links expire; .* pass 127.0.0.1"
    ),
    "login": (
        r"what answered for login/I/unet/config.json is not the hub, but perhaps a login page of this "
        r"network: open any page .*, and check HF_ENDPOINT"
    ),
    "huge": (
        r"the disk is full, huge/I/unet/config.json was not fetched \(1000000.0 GB, free are \d+\.\d\): free "
        r"some space, or set HF_HOME"
    ),
    "absent": "tiny/I has no unet/model.bin or unet/model.pt: choose",
    "full": r"the disk is full, tiny/I/scheduler/scheduler_config.json was not saved: free some space, or set HF_HOME",
    "moved": f"snapshots.{fake_hub.ONE}.text_encoder.config.json$",
    "moved, later": f"snapshots.{fake_hub.ONE}.scheduler.scheduler_config.json$",
    "squashed": (
        r"the hub no longer has the commit of squashed/I that is in the cache: delete .*models--squashed--I "
        r"and start again"
    ),
    "squashed, later": f"snapshots.{fake_hub.TWO}.scheduler.scheduler_config.json$",
    "mirror": (
        r"mirror/I is here of commit 11111111, and the hub gives 22222222: delete .*models--mirror--I and "
        r"start again"
    ),
}


@pytest.mark.parametrize("case", ONLINE)
def test_each_answer_of_the_hub_has_its_own_sentence_and_next_step(answers, case):
    said = answers["online"][case]
    assert re.search(ONLINE[case], said), said
    assert "\n" not in said and (
        said.startswith("ValueError: ") or case in ("tiny", "moved", "moved, later", "squashed, later")
    )


def test_only_the_needed_files_are_fetched_and_each_once(answers):
    assert fake_hub.FETCHED.count("unet/config.json") == 2  # for the models tiny/I and new/I
    assert {name for name in fake_hub.FETCHED if ":" not in name} == {
        "unet/config.json",
        "text_encoder/model.safetensors.index.fp16.json",
        "text_encoder/model.fp16-00001-of-00002.safetensors",
        "text_encoder/model.fp16-00002-of-00002.safetensors",
    }


def test_without_a_network_the_cache_answers_and_its_gaps_are_said(answers):
    assert answers["offline"]["tiny"] == "gelu"
    assert answers["offline"]["weights"] == answers["online"]["weights"] == 30
    for owner in ("down", "gated-403"):
        said = answers["offline"][owner]
        assert re.search(
            f"the hub cannot be reached .*refused.*, and {owner}/I/unet/config.json is not in the cache: go online, or",
            said,
        ), said
