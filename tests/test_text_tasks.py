"""train.py text and superres on plain shapes, tiny: what is learned, dropped, saved, resumed, written and read."""

import itertools

import fake_book
import pytest
import torch
from torch.testing import assert_close

import minidiff
import train
from minidiff import text_tasks, training
from minidiff.files import load_tensors
from minidiff.networks.t5 import T5Encoder
from minidiff.networks.tokenizer import Tokenizer
from minidiff.prompted import load_unet
from minidiff.run import Run, learning_rate
from minidiff.schedule import cosine
from minidiff.text_model import SPIECE, begin_encoder, encoder_config, encoder_weights, short, train_tokenizer

CPU = torch.device("cpu")
UNET = {
    "widths": [32, 32],
    "attends": [False, True],
    "cross": 32,
    "head_dim": 16,
    "groups": 8,
    "size": 16,
    "steps": 3,
    "batch": 4,
}
TEXT = UNET | {"d_model": 32, "layers": 1, "pieces": 60, "phases": [[0, 8, 2], [1, 16, 4]], "share": {}}
SECOND = UNET | {"size": 32, "crop": 16, "share": {}}


@pytest.fixture(autouse=True)
def _shapes(monkeypatch):
    monkeypatch.setattr(text_tasks, "picturebook", fake_book)
    for name in ("preview", "enlarged_preview"):
        monkeypatch.setattr(text_tasks, name, lambda *args: text_tasks.images.grid(torch.zeros(1, 3, 4, 4), 1))


def flags(settings):
    return [
        "--set",
        *(f"{name}={str(value).lower()}" for name, value in settings.items()),
        "--float32",
        "--device",
        "cpu",
    ]


def command(task, out, *more):
    return [task, *flags(TEXT if task == "text" else SECOND), "--epochs", "2", "--out", str(out), *map(str, more)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One small run of each task, two epochs of three steps: the second at another size, with more things."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        _shapes.__wrapped__(patch)
        assert train.main(command("text", folder / "text")) == 0
        assert train.main(command("superres", folder / "superres", "--text", folder / "text")) == 0
    return folder


def test_a_fixed_batch_is_learned(tmp_path):
    """The same pictures, captions, noise and levels: twenty steps take away most of the error of their ε."""
    settings = train.BETTER["text"] | TEXT | {"seed": 1, "lr": 3e-3, "clip": 1.0}
    task = text_tasks.text(settings, tmp_path)
    run, chosen = Run(task.net, settings, CPU), torch.tensor([0, 4, 8])
    losses = []
    for _ in range(20):
        value = task.loss(run.net, chosen, 1, torch.Generator().manual_seed(5), slice(None))
        run.net.zero_grad()
        value.backward()
        run.learn(3e-3)
        losses.append(value.item())
    assert losses[1] < losses[0]
    assert losses[-1] < 0.5 * losses[0]
    assert all(
        p.grad is not None and bool(p.grad.abs().sum() > 0) for p in run.net.parameters()
    )  # text and U-Net learn together


@pytest.mark.parametrize("task", ["text", "superres"])
@pytest.mark.parametrize("at", [0, 1, 4])
def test_a_killed_and_resumed_run_ends_in_the_same_weights(task, at, runs, tmp_path, monkeypatch, capsys):
    """Killed before its first step, in its first epoch, in the second; resumed without its settings: the same bits."""
    honest, steps = text_tasks.text_loss, itertools.count()

    def killed(*args):
        if next(steps) == at:
            raise KeyboardInterrupt
        return honest(*args)

    more = ["--text", runs / "text"] if task == "superres" else []
    with monkeypatch.context() as patch:
        patch.setattr(text_tasks, "text_loss", killed)
        assert train.main([*command(task, tmp_path, *more), "--save-every", "0"]) == 130
    assert f"python train.py {task} --resume --out {tmp_path}" in capsys.readouterr().err
    assert load_tensors(tmp_path / "state.safetensors")[1]["steps"] == at
    assert train.main([task, "--resume", "--out", str(tmp_path), "--float32", "--device", "cpu"]) == 0
    one, other = load_tensors(tmp_path / "state.safetensors")[0], load_tensors(runs / task / "state.safetensors")[0]
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name
    for part in ("unet/diffusion_pytorch_model.safetensors", "unet/config.json"):
        assert (tmp_path / part).read_bytes() == (runs / task / part).read_bytes()


def test_what_is_written_is_loaded_by_its_folder_and_draws(runs):
    first = minidiff.load(runs / "text", upscale=runs / "superres", upscale_steps=2)
    assert (first.shape, first.scale, first.large.shape, first.large.scale) == ((3, 16, 16), 3.0, (3, 32, 32), 2.0)
    x = first.sample(["a red top", ""], steps=2, progress=False)
    assert x.shape == (2, 3, 32, 32)
    assert bool(x.isfinite().all())


def test_the_written_weights_are_the_average_in_bfloat16(runs):
    state, unet = load_tensors(runs / "text" / "state.safetensors")[0], load_unet(runs / "text", torch.float32)
    assert not unet.learned
    for name, weight in unet.state_dict().items():
        assert torch.equal(weight, state[f"ema.unet.{name}"].bfloat16().float())


def test_superres_trains_the_unet_and_leaves_the_encoder_as_it_is(runs):
    state, theirs = load_tensors(runs / "superres" / "state.safetensors")[0], encoder_weights(runs / "text")
    for name, weight in theirs.items():
        assert torch.equal(state[f"net.text_encoder.{name}"], weight)
    assert not torch.equal(state["net.unet.conv_out.weight"], state["ema.unet.conv_out.weight"])


def test_captions_are_dropped_at_their_rate_and_as_a_whole(runs, monkeypatch):
    seen, tokenizer = [], Tokenizer(runs / "text" / SPIECE)
    monkeypatch.setattr(training, "noise_loss", lambda *args: None)
    spy = lambda captions: seen.append(captions) or tokenizer(captions)
    net = lambda x, *args: x
    net.parameters = lambda: iter([torch.zeros(1)])
    captions = ["a red top"] * 10_000
    text_tasks.text_loss(
        net, torch.zeros(10_000, 3, 1, 1), captions, spy, 0.1, torch.Generator().manual_seed(1), slice(None)
    )
    assert set(seen[0]) == {"a red top", ""}
    assert abs(seen[0].count("") / 10_000 - 0.1) < 0.01


def test_min_snr_is_the_papers_formula():
    """min(SNR, 5)/SNR: 1 where noise prevails; at ᾱ = 10/11, where SNR = 10, one half."""
    assert_close(
        training.min_snr(torch.tensor([1e-9, 0.5, 5 / 6, 10 / 11, 0.99], dtype=torch.float64)),
        torch.tensor([1, 1, 1, 0.5, 5 / 99], dtype=torch.float64),
    )
    weights = training.min_snr(cosine()[1:])
    assert bool((weights.diff() >= 0).all())
    eps_hat, eps = torch.zeros(2, 1, 2, 2), torch.ones(2, 1, 2, 2)
    assert_close(training.noise_loss(eps_hat, eps, torch.tensor([1.0, 0.5])), torch.tensor(0.75))


def test_two_processes_learn_what_one_does(runs, tmp_path, two_processes):
    """Each takes half of every batch, with the random numbers of the whole; gradients are averaged. Adam's first steps
    go by the sign of the gradient, so what is compared is its moments after the last step."""
    two_processes("tests/train_on_shapes.py", *command("text", tmp_path))
    one, two = (load_tensors(folder / "state.safetensors")[0] for folder in (runs / "text", tmp_path))
    halves = two["losses"]
    assert len(halves) == 6
    for name, moment in one.items():
        if name.endswith(("exp_avg", "momentum")):
            assert_close(two[name], moment, rtol=0.02, atol=2e-4)


def test_things_and_size_follow_the_phases():
    settings = {"phases": [[0, 16, 100], [10, 32, 100], [20, 32, 900]]}
    assert [text_tasks.phase(settings, epoch) for epoch in (0, 9, 10, 25)] == [
        (16, 100),
        (16, 100),
        (32, 100),
        (32, 900),
    ]


def test_each_picture_is_seen_once_before_any_is_seen_again_but_for_styles_that_are_seen_less_often():
    book, g = fake_book.load(), torch.Generator().manual_seed(1)
    order = text_tasks.in_order(book, 4, {"steps": 11, "batch": 2, "share": {}}, g)
    assert [sorted(part.tolist()) for part in order.split(11)] == [list(range(11))] * 2  # the twelfth is held out
    order = text_tasks.in_order(book, 4, {"steps": 1000, "batch": 10, "share": {"red": 0.25}}, g)
    red = (book.style[order] == 0).float().mean()
    assert abs(float(red) - 1 / (1 + 4 + 3)) < 0.01  # a quarter of 4, to 4 green and 3 blue


def test_padding_far_from_the_text_has_one_state():
    """Of 77 tokens 24 are computed: the others' states are that of the last, to rounding."""
    settings = train.BETTER["text"] | TEXT
    encoder = begin_encoder(T5Encoder(encoder_config(settings, 50))).double()
    torch.nn.init.normal_(encoder.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight)
    ids, mask = torch.zeros(2, 77, dtype=torch.int64), torch.zeros(2, 77, dtype=torch.int64)
    ids[0, :16], mask[0, :16], ids[1, 0], mask[1, 0] = torch.arange(16) + 5, 1, 1, 1
    some, few = short(ids, mask, encoder.config)
    assert some.shape == (2, 24)
    states, found = encoder(ids, mask), encoder(some, few)
    assert_close(torch.cat([found, found[:, -1:].expand(-1, 53, -1)], 1), states)
    assert not torch.allclose(states[0, 18], states[0, 76])  # near the text they differ
    assert short(ids, mask, {"relative_attention_max_distance": 128})[0].shape == (2, 77)


def test_the_tokenizer_is_the_same_each_time_and_knows_every_letter(tmp_path):
    captions = text_tasks.corpus(fake_book.load())
    spiece = train_tokenizer(captions, 60)
    assert spiece == train_tokenizer(captions, 60)
    (tmp_path / "spiece.model").write_bytes(spiece)
    ids, mask = Tokenizer(tmp_path / "spiece.model")(["the quick brown fox jumps over 13 lazy dogs", "", "Red,"])
    assert ids.shape == (3, 77)
    assert [bool((row == 2).any()) for row in ids] == [False, False, True]  # the comma is unknown
    assert (ids[1, :2].tolist(), int(mask[1].sum())) == ([1, 0], 1)


def test_a_run_begins_with_another_runs_average_and_its_tokenizer(runs, tmp_path):
    settings = train.BETTER["text"] | TEXT | {"seed": 2, "init": str(runs / "text")}
    task = text_tasks.text(settings, tmp_path)
    run = Run(task.net, settings, CPU)
    run.begin_with(task.init(), settings["init"])
    state, _ = load_tensors(runs / "text" / "state.safetensors")
    for name, weight in run.net.state_dict().items():
        assert torch.equal(weight, state[f"ema.{name}"])
    assert (tmp_path / SPIECE).read_bytes() == (runs / "text" / SPIECE).read_bytes()


def test_the_trapezoid_rises_stays_and_falls_to_zero():
    s = {"lr": 8.0, "decay": "trapezoid", "warmup": 3, "cooldown": 0.2, "epochs": 2}
    rates = [learning_rate(s, step, 10) for step in (0, 1, 3, 15, 16, 18, 20)]
    assert rates == pytest.approx([2.0, 4.0, 8.0, 8.0, 8.0, 4.0, 0.0])


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--seed", "3"], "has seed = 137, asked for 3: leave it out"),
        (["--set", "batch=8"], "has batch = 4, asked for 8"),
        (["--width", "4"], "text has no width: leave --width out"),
        (["--set", "banana=8"], "--set wants NAME=VALUE, NAME one of task, size"),
        (["--set", "batch=many"], "--set batch wants a value like 64, got 'many'"),
    ],
)
def test_a_flag_that_contradicts_the_run_is_refused_in_one_line(runs, refused, more, says):
    refused(train, ["text", "--resume", "--out", runs / "text", *more], says)
    refused(train, ["superres", "--resume", "--out", runs / "text"], "has task = text, asked for superres")
