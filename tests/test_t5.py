import gc
import re

import pytest
import torch
from if_fixtures import GOLDEN, golden
from torch.testing import assert_close

from minidiff import hub
from minidiff.networks import t5
from minidiff.networks.t5 import ALIAS, T5Encoder, bucket, stream

CONFIG = hub.read_json(GOLDEN / "tiny-if-I", "text_encoder/config.json")
CASES = ["a", "b_nomask", "c_long", "d_leftpad"]


def case(tag):
    numbers = golden("tiny-if-I.t5")
    return numbers[f"{tag}.input_ids"], numbers.get(f"{tag}.attention_mask"), numbers[f"{tag}.hidden_f64"]


def stored(half=False):
    return hub.find_weights(GOLDEN / "tiny-if-I", "text_encoder", "model", half, alias=ALIAS)


def small_t5(dtype=torch.float32, half=False):
    with torch.device("meta"):
        encoder = T5Encoder(CONFIG)
    return hub.load(encoder, stored(half), dtype)


@pytest.mark.parametrize("tag", CASES)
@pytest.mark.parametrize("dtype, atol", [(torch.float32, 1e-4), (torch.float64, 1e-5)])
def test_states_are_those_of_the_reference(tag, dtype, atol):
    ids, mask, want = case(tag)
    assert_close(small_t5(dtype)(ids, mask), want.to(dtype), atol=atol, rtol=0)


@pytest.mark.parametrize("tag", CASES)
def test_streaming_block_by_block_gives_the_same_states(tag):
    ids, mask, want = case(tag)
    weights, counted = stored(), []

    def progress(blocks):
        for i in blocks:
            counted.append(i)
            yield i

    got = stream(CONFIG, ids, mask, lambda names: hub.read(weights, names, torch.float64), progress)
    assert_close(got, want, atol=1e-5, rtol=0)
    assert counted == [0, 1, 2]


def test_one_block_at_a_time_is_alive():
    """When a block is read, no weight of another one is in memory."""
    weights, alive = stored(), []

    def read(names):
        # float64, which no other test holds on to: the weights of this walk
        filled = (p for p in gc.get_objects() if type(p) is torch.nn.Parameter and not p.is_meta)
        alive.append(sum(p.numel() for p in filled if p.dtype == torch.float64))
        return hub.read(weights, names, torch.float64)

    gc.collect()
    stream(CONFIG, *case("a")[:2], read)
    assert alive == [0] * 5  # the embedding, three blocks, the last norm


def test_the_half_precision_files_agree_with_the_reference():
    ids, mask, _ = case("a")
    want = golden("tiny-if-I.t5")
    assert_close(small_t5(half=True)(ids, mask), want["a.hidden_fp16ckpt_f32"], atol=1e-4, rtol=0)
    raw = stream(CONFIG, ids, mask, lambda names: hub.read(stored(half=True), names))  # float16, `wo` float32
    assert raw.dtype == torch.float16
    assert_close(raw, want["a.hidden_fp16_wo32"], atol=2e-2, rtol=0)


def test_bfloat16_stays_close():
    ids, mask, want = case("a")
    got = small_t5(torch.bfloat16)(ids, mask)
    assert (got.double() - want).square().mean().sqrt() < 0.02 * want.std()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_does_not_overflow_where_the_real_model_does(dtype):
    """T5-XXL's feed-forward output passes 65,504, the end of float16; here it is about 10^6.

    A norm follows, so the states are of order 1.
    """
    right, half = small_t5(torch.float64), small_t5(dtype)
    for encoder in (right, half):
        feed_forward = encoder.encoder.block[0].layer[1].DenseReluDense
        feed_forward.wi_1.weight.mul_(1000)
        feed_forward.wo.weight.mul_(1000)
    ids, mask, _ = case("a")
    want = right(ids, mask)
    seen = []
    right.encoder.block[0].layer[1].DenseReluDense.register_forward_hook(
        lambda module, args, out: seen.append(out.abs().max())
    )
    right(ids, mask)
    assert seen[0] > 65504
    got = half(ids, mask)
    assert (got.double() - want).square().mean().sqrt() < 0.03 * want.std()


def test_buckets_are_exact():
    numbers = golden("tiny-if-I.t5")
    assert_close(bucket(numbers["buckets.relative_position"]), numbers["buckets.bucket"])


def test_the_embedding_is_found_under_either_name():
    both = stored()
    assert "encoder.embed_tokens.weight" not in both and "shared.weight" in both


def test_xxl_has_its_count():
    config = CONFIG | {"d_model": 4096, "d_kv": 64, "num_heads": 64, "d_ff": 10240, "num_layers": 24}
    config["vocab_size"] = 32128
    with torch.device("meta"):
        encoder = T5Encoder(config)
    assert sum(p.numel() for p in encoder.parameters()) == 4762310656


@pytest.mark.parametrize("field, value, message", [
    ("feed_forward_proj", "relu", "expected 'gated-gelu'"),
    ("model_type", "bert", "expected 't5'"),
    ("d_kv", None, "lacks d_kv"),
    ("d_kv", -4, "d_kv = -4, expected a whole number above 0"),
    ("num_layers", 1.5, "num_layers = 1.5, expected a whole number above 0"),
    ("d_ff", True, "d_ff = True, expected a whole number above 0"),
    ("relative_attention_num_buckets", "32", "relative_attention_num_buckets = '32', expected a whole number above 0"),
    ("relative_attention_max_distance", 8, "32 buckets up to a distance of 8, expected at least 4"),
    ("layer_norm_epsilon", 0, "layer_norm_epsilon = 0, expected a number above 0"),
])  # fmt: skip
def test_configs_that_are_not_built_are_refused(field, value, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        T5Encoder(CONFIG | {field: value})


def test_ids_outside_of_the_vocabulary_are_refused():
    with pytest.raises(ValueError, match=r"expected ids in \[0, 416\), got 5 to 416"):
        small_t5()(torch.tensor([[5, 416]]))


# The mistakes that E.1 names, planted; the golden numbers must notice.
def unscaled(right):
    return lambda q, k, v, attn_mask, scale: right(q, k, v, attn_mask=attn_mask)


@pytest.mark.parametrize(
    "mistake", ["1/sqrt(d)", "exact GELU", "mean subtracted", "bias from the query's side", "no mask"]
)
def test_the_golden_numbers_notice(mistake, monkeypatch):
    F = torch.nn.functional
    encoder, (ids, mask, want) = small_t5(torch.float64), case("a")
    if mistake == "1/sqrt(d)":
        monkeypatch.setattr(F, "scaled_dot_product_attention", unscaled(F.scaled_dot_product_attention))
    elif mistake == "exact GELU":
        right = F.gelu
        monkeypatch.setattr(F, "gelu", lambda x, approximate: right(x))
    elif mistake == "mean subtracted":
        right = t5.RMSNorm.forward
        monkeypatch.setattr(t5.RMSNorm, "forward", lambda self, x: right(self, x - x.mean(-1, keepdim=True)))
    elif mistake == "bias from the query's side":
        monkeypatch.setattr(t5, "bucket", lambda distance, *sizes: bucket(-distance, *sizes))
    else:
        mask = None
    assert (encoder(ids, mask) - want).abs().max() > 1e-4
