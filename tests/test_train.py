"""train.py against the same training written out by hand: which images, noise, rate, average, gradients."""

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import train
from minidiff import digit_tasks, digits, images, judge, mnist, training
from minidiff.diffusion import predict_eps
from minidiff.files import load_tensors
from minidiff.networks.mnist_classifier import Classifier
from minidiff.networks.mnist_unet import UNet
from minidiff.run import Run
from minidiff.sampling import noise_per_image, seeded
from minidiff.schedule import linear, linear_to_noise

CPU = torch.device("cpu")
SMALL = ["--width", "4", "--limit", "256"]


def run_of(settings):
    """A run of a digits task at its beginning."""
    return Run(digit_tasks.task({"limit": 256} | settings, None).net, settings, CPU)


def loss_of(run, x, labels, mine=slice(None)):
    """The loss of a batch, or of a part of it, with the run's random numbers."""
    return digit_tasks.loss(run.settings, digits.schedule(run.settings), run.net, x, labels, run.generator, mine)


def by_hand(settings, steps):
    """A plain loop with train.py's own settings: random numbers in their order; Adam, rate and average written out."""
    torch.manual_seed(137)
    unet = UNet(4, time=True, classes=10).to(memory_format=torch.channels_last)
    average = {k: v.clone() for k, v in unet.state_dict().items()}
    adam, g = torch.optim.Adam(unet.parameters()), torch.Generator().manual_seed(137)
    digits, labels = mnist.load(train=True)
    alpha_bar = {"linear": linear(300), "linear_to_noise": linear_to_noise(300)}[settings["schedule"]]
    order = torch.randperm(256, generator=g)
    for k in range(steps):
        i = order[128 * k : 128 * (k + 1)]
        low, high = settings["pixels"]
        x_0 = low + (high - low) * digits[i].float() / 255
        eps = torch.randn(128, 1, 28, 28, generator=g)
        t = torch.randint(1, 301, (128,), generator=g)
        keep = torch.rand(128, generator=g) >= 0.1
        a = alpha_bar[t].float().reshape(128, 1, 1, 1)
        wanted = eps if settings["target"] == "eps" else a.sqrt() * eps - (1 - a).sqrt() * x_0
        loss = (
            (
                unet(
                    a.sqrt() * x_0 + (1 - a).sqrt() * eps,
                    t.reshape(128, 1) / 300,
                    torch.eye(10)[labels[i]] * keep.reshape(128, 1),
                )
                - wanted
            )
            .square()
            .mean()
        )
        adam.param_groups[0]["lr"] = settings["rates"][k]
        adam.zero_grad()
        loss.backward()
        adam.step()
        decay = min(settings["ema"], k / (k + 10))
        average = {
            n: decay * average[n] + (1 - decay) * v if v.is_floating_point() else v.clone()
            for n, v in unet.state_dict().items()
        }
    return unet.state_dict(), average


@pytest.mark.usefixtures("_no_preview")
@pytest.mark.parametrize("preset", ["better", "course"])
def test_a_run_is_the_loop_by_hand(tmp_path, monkeypatch, preset):
    settings = train.COURSE["class"] | {"width": 4, "epochs": 1, "lr": 0.01, "seed": 137, "limit": 256}
    if preset == "better":
        settings |= train.BETTER["class"] | {"epochs": 1, "lr": 0.01, "warmup": 1, "ema": 0.08}
    monkeypatch.setattr(digit_tasks, "SAMPLED", ())
    monkeypatch.setattr(digit_tasks, "preview", lambda net, settings: images.grid(torch.zeros(1, 1, 4, 4), 1))
    train.train(settings, tmp_path, False, CPU, float32=True)
    rates = (
        [0.01, 0.01] if preset == "course" else [0.01 / 2, 0.01 * 0.5]
    )  # half way up; at the top, and half way down the cosine
    weights, average = by_hand(settings | {"rates": rates}, 2)
    state, written = (
        load_tensors(tmp_path / "state.safetensors")[0],
        load_tensors(tmp_path / "mnist-class.safetensors")[0],
    )
    for name, tensor in weights.items():
        if tensor.ndim < 2:
            continue  # a bias before BatchNorm has gradient 0 but for rounding, and Adam makes whole steps of that
        assert_close(state[f"net.{name}"], tensor, rtol=1e-4, atol=1e-5)
        assert_close(written[name], average[name] if preset == "better" else tensor, rtol=1e-4, atol=1e-5)


def test_a_classifiers_run_is_the_loop_by_hand(tmp_path, monkeypatch):
    """One step on 256 digits, each turned by its own angle, up to 15 degrees, and moved by up to 2 pixels both ways."""
    settings = train.BETTER["classifier"] | {
        "width": 4,
        "epochs": 1,
        "seed": 137,
        "limit": 256,
        "batch": 256,
        "warmup": 0,
        "ema": 0.5,
    }
    monkeypatch.setattr(train, "write_results", lambda *args: None)
    train.train(settings, tmp_path, False, CPU, float32=True)
    torch.manual_seed(137)
    net, g = Classifier(4).to(memory_format=torch.channels_last), torch.Generator().manual_seed(137)
    start = {k: v.clone() for k, v in net.named_parameters()}
    digits, labels = mnist.load(train=True)
    order = torch.randperm(256, generator=g)
    angle, right, down = 2 * torch.rand(3, 256, generator=g) - 1
    x = training.moved(digits[order].float() / 255, angle * torch.pi / 12, 2 * torch.stack([right, down], 1))
    loss = -net(x).log_softmax(1)[range(256), labels[order]].mean()
    loss.backward()
    trained, _ = load_tensors(tmp_path / "state.safetensors")
    assert float(trained["losses"]) == pytest.approx(loss.item(), rel=1e-5)
    for name, before in start.items():
        gradient = net.get_parameter(name).grad
        clear = gradient.abs() > 1e-4
        assert_close(
            (trained[f"net.{name}"] - before)[clear], (-settings["lr"] * gradient.sign())[clear], rtol=0, atol=1e-5
        )  # Adam's first step
        assert_close(trained[f"ema.{name}"], trained[f"net.{name}"])  # the first weights that count are the average


def test_angles_and_shifts_fill_their_range_and_no_more(monkeypatch):
    seen = []
    monkeypatch.setattr(digit_tasks.training, "moved", lambda x, angle, shift: seen.append((angle, shift)) or x)
    run = run_of(train.BETTER["classifier"] | {"width": 1, "seed": 1})
    loss_of(run, torch.zeros(5000, 1, 28, 28, dtype=torch.uint8), torch.zeros(5000, dtype=torch.int64))
    angle, shift = seen[0]
    for values, end in ((angle.rad2deg(), 15), (shift[:, 0], 2), (shift[:, 1], 2)):
        assert_close(
            torch.stack([values.min(), values.mean(), values.max(), values.std()]),
            end * torch.tensor([-1, 0, 1, 3**-0.5]),
            rtol=0,
            atol=0.02 * end,
        )
    assert float(torch.corrcoef(torch.stack([angle, *shift.T])).triu(1).abs().max()) < 0.05


def test_a_part_of_a_batch_sees_what_it_would_see_in_the_whole(monkeypatch):
    seen = []
    monkeypatch.setattr(digit_tasks.training, "classifier_loss", lambda net, x, c: seen.append((x, c)))
    digits, labels = mnist.load(train=True)
    for mine in (slice(None), slice(0, None, 2), slice(1, None, 2)):
        run = run_of(train.BETTER["classifier"] | {"width": 1, "seed": 1})
        loss_of(run, digits[:8], labels[:8], mine)
    for k in range(2):
        assert_close(seen[1 + k][0], seen[0][0][k::2])
        assert_close(seen[1 + k][1], seen[0][1][k::2])


def test_two_processes_average_the_gradients_of_their_halves_of_the_batch(tmp_path, two_processes):
    """One step of the denoiser with Adam, whose first step is lr · g/|g|: the mean gradient's sign, where clear."""
    settings = ["--width", 4, "--limit", 256, "--epochs", 1, "--float32", "--device", "cpu"]
    two_processes("train.py", "denoiser", "--preset", "course", *settings, "--out", tmp_path)
    torch.manual_seed(137)
    unet, g = UNet(4), torch.Generator().manual_seed(137)
    start = {k: v.clone() for k, v in unet.named_parameters()}
    x = mnist.to_pixels(mnist.load(train=True)[0][torch.randperm(256, generator=g)], 0, 1)
    eps = torch.randn(x.shape, generator=g)
    halves = []
    for rank in range(2):
        unet.zero_grad()
        F.mse_loss(unet(x[rank::2] + 0.5 * eps[rank::2]), x[rank::2]).backward()
        halves.append({k: p.grad.clone() for k, p in unet.named_parameters()})
    trained, _ = load_tensors(tmp_path / "state.safetensors")
    fixed = [f"{layer}.bias" for layer in ("unflatten.0", "up1.0.0", "up2.0.0")]  # BatchNorm subtracts them
    for name in fixed:
        assert torch.equal(trained[f"net.{name}"], start.pop(name)) and float(halves[0][name].abs().max()) < 1e-6
    for name, before in start.items():
        one, other = (half[name] for half in halves)
        mean = (one + other) / 2
        clear = mean.abs() > 1e-4
        assert_close((trained[f"net.{name}"] - before)[clear], (-1e-4 * mean.sign())[clear], rtol=0, atol=2e-6)
        assert_close(
            trained[f"adam.{list(start).index(name)}.exp_avg"].flatten(), 0.1 * mean.flatten(), rtol=1e-3, atol=1e-6
        )  # a bias before BatchNorm has gradient 0, but for rounding


def test_the_rate_warms_up_in_a_line_and_falls_along_a_cosine():
    s = {"lr": 8.0, "decay": "cosine", "warmup": 3, "epochs": 2}
    rates = [train.learning_rate(s, step, 10) for step in (0, 1, 10, 20)]
    assert rates == pytest.approx([2.0, 4.0 * 0.9938441702975689, 4.0, 0.0])


def test_a_preview_changes_nothing_and_training_goes_on_in_training_mode(tmp_path):
    """Only batches seen in training mode are counted by BatchNorm, so the count tells both."""
    settings = train.COURSE["time"] | {"width": 4, "epochs": 2, "seed": 137, "limit": 256}
    train.train(settings, tmp_path, False, CPU)
    tensors, record = load_tensors(tmp_path / "state.safetensors")
    assert record["steps"] == 4
    assert [int(v) for k, v in tensors.items() if k.startswith("net.") and k.endswith("num_batches_tracked")] == [
        4
    ] * 17


@pytest.mark.usefixtures("_no_preview")
@pytest.mark.parametrize("name", ["denoiser", "time", "class", "classifier", "course"])
def test_the_weights_are_those_of_the_loop_before_it_was_rebuilt(name, tmp_path):
    """To the bit, on the kind of machine where they were recorded (commit 8ea3e7f)."""
    golden = json.loads((Path(__file__).parent / "golden/digit_weights.json").read_text())
    if (golden["torch"], golden["cpu"]) != (torch.__version__, torch.backends.cpu.get_cpu_capability()):
        pytest.skip(f"recorded with torch {golden['torch']} on {golden['cpu']}")
    task, preset = ("class", "course") if name == "course" else (name, "better")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert (
            train.main(
                [
                    task,
                    "--preset",
                    preset,
                    *SMALL,
                    "--epochs",
                    "1",
                    "--float32",
                    "--device",
                    "cpu",
                    "--out",
                    str(tmp_path),
                ]
            )
            == 0
        )
    finally:
        torch.set_num_threads(threads)
    weights, digest = load_tensors(tmp_path / f"mnist-{task}.safetensors")[0], hashlib.sha256()
    for key in sorted(weights):
        digest.update(key.encode() + weights[key].contiguous().numpy().tobytes())
    assert digest.hexdigest() == golden["weights"][name]


@pytest.mark.usefixtures("_no_preview")
def test_each_epoch_goes_through_the_digits_in_an_order_of_its_own(monkeypatch, tmp_path):
    seen = []
    honest = digit_tasks.loss
    monkeypatch.setattr(
        digit_tasks,
        "loss",
        lambda s, a, net, x, *rest: seen.append(x.flatten(1).float().mean(1)) or honest(s, a, net, x, *rest),
    )
    monkeypatch.setattr(digit_tasks, "SAMPLED", ())
    train.train(train.COURSE["time"] | {"width": 1, "epochs": 2, "seed": 3, "limit": 256}, tmp_path, False, CPU)
    brightness = mnist.load(train=True)[0][:256].flatten(1).float().mean(1)
    first, second = torch.cat(seen[:2]), torch.cat(seen[2:])
    for epoch in (first, second):
        assert_close(epoch.sort().values, brightness.sort().values)
        assert not torch.equal(epoch, brightness)
    assert not torch.equal(first, second)


@pytest.mark.usefixtures("_no_preview")
def test_nothing_good_is_overwritten_by_weights_that_are_not_finite(tmp_path, monkeypatch, capsys):
    honest = train.Run.count

    def spoil(run, value):
        honest(run, value)
        if run.epoch == 1 and run.batch == 2:
            run.net.leave[1].bias.data.fill_(float("nan"))

    monkeypatch.setattr(train.Run, "count", spoil)
    assert train.main(["time", "--width", "4", "--limit", "256", "--epochs", "2", "--out", str(tmp_path)]) == 2
    assert "no longer finite" in capsys.readouterr().err
    for name, key in (("state", "epoch"), ("mnist-time", "epoch")):
        tensors, record = load_tensors(tmp_path / f"{name}.safetensors")
        assert record[key] == 1
        assert all(bool(v.isfinite().all()) for v in tensors.values())


def test_the_preset_course_is_the_assignment_to_the_letter():
    for task in ("time", "class"):
        s = train.COURSE[task]
        assert (
            s["T"],
            s["schedule"],
            s["lr"],
            s["batch"],
            s["epochs"],
            s["width"],
            s["target"],
            s["ema"],
            s["pixels"],
        ) == (300, "linear", 1e-3, 128, 20, 64, "eps", 0, [0, 1])
        assert [train.learning_rate(s, step, 468) for step in (0, 467, 468)] == pytest.approx(
            [1e-3, 1e-3, 1e-3 * 0.1 ** (1 / 20)]
        )
    assert (train.COURSE["class"]["p_uncond"], train.COURSE["class"]["scale"]) == (0.1, 5.0)
    s = train.COURSE["denoiser"]
    assert (s["sigma"], s["lr"], s["batch"], s["epochs"], s["width"]) == (0.5, 1e-4, 256, 5, 128)
    assert train.learning_rate(s, 900, 234) == 1e-4


def test_label_dropout_drops_a_tenth_of_the_labels_and_each_as_a_whole(monkeypatch):
    seen = []
    monkeypatch.setattr(
        digit_tasks.training, "diffusion_loss", lambda unet, x_0, t, eps, alpha_bar, c, target: seen.append((c, t))
    )
    run = run_of(train.COURSE["class"] | {"width": 1, "seed": 1})
    labels = torch.arange(20_000) % 10
    loss_of(run, torch.zeros(20_000, 1, 1, 1, dtype=torch.uint8), labels)
    c, t = seen[0]
    kept = c.sum(1)
    assert set(kept.tolist()) == {0.0, 1.0}
    assert abs(float(kept.mean()) - 0.9) < 0.01
    assert_close(c[kept == 1].argmax(1), labels[kept == 1])
    assert (int(t.min()), int(t.max())) == (1, 300)


def test_the_noise_of_training_is_gaussian_and_fresh(monkeypatch):
    seen = []
    monkeypatch.setattr(digit_tasks.training, "denoiser_loss", lambda unet, x_0, eps, sigma: seen.append(eps))
    run = run_of(train.COURSE["denoiser"] | {"width": 1, "seed": 1})
    for _ in range(2):
        loss_of(run, torch.zeros(100, 1, 28, 28, dtype=torch.uint8), torch.zeros(100))
    assert abs(float(seen[0].mean())) < 0.02
    assert abs(float(seen[0].std()) - 1) < 0.02
    assert float(seen[0].min()) < -3
    assert not torch.equal(*seen)


@pytest.mark.usefixtures("_no_preview")
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(tmp_path, monkeypatch, capsys):
    command = ["time", *SMALL, "--epochs", "2", "--out", str(tmp_path)]
    honest, spoiled = digit_tasks.loss, iter([1, 1, float("nan")])
    monkeypatch.setattr(digit_tasks, "loss", lambda *args: honest(*args) * next(spoiled))
    assert train.main(command) == 2
    assert "loss is nan in epoch 2, step 1" in capsys.readouterr().err
    tensors, record = load_tensors(tmp_path / "state.safetensors")
    assert record["epoch"] == 1
    assert all(bool(v.isfinite().all()) for v in tensors.values())


@pytest.mark.usefixtures("_no_preview")
def test_an_epoch_is_of_whole_batches_and_leaves_the_rest_out(tmp_path):
    train.train(train.COURSE["time"] | {"width": 1, "epochs": 1, "seed": 3, "limit": 300}, tmp_path, False, CPU)
    assert load_tensors(tmp_path / "state.safetensors")[1]["steps"] == 300 // 128


def test_the_state_is_saved_after_so_many_seconds_and_not_at_every_step_from_then_on(tmp_path, monkeypatch):
    """A step takes a minute, a state is due after 100 seconds: after each second of 8 steps, and at the epoch's end."""
    saved, seconds, honest = [], [0], digit_tasks.loss
    monkeypatch.setattr(train, "time", SimpleNamespace(monotonic=lambda: seconds[0]))
    monkeypatch.setattr(digit_tasks, "loss", lambda *args: seconds.__setitem__(0, seconds[0] + 60) or honest(*args))
    monkeypatch.setattr(train, "write_results", lambda *args: None)
    monkeypatch.setattr(train.Run, "save", lambda run, path: saved.append((run.epoch, run.batch)))
    train.train(
        train.COURSE["time"] | {"width": 1, "epochs": 1, "seed": 3, "limit": 256, "batch": 32},
        tmp_path,
        False,
        CPU,
        save_every=100,
    )
    assert saved == [(0, 0), (0, 2), (0, 4), (0, 6), (0, 8), (1, 0)]


@pytest.mark.usefixtures("_no_preview")
def test_a_run_that_is_killed_while_it_writes_its_results_writes_them_when_resumed(tmp_path, monkeypatch):
    def killed(*args):
        raise KeyboardInterrupt

    command = ["time", *SMALL, "--epochs", "1", "--out", str(tmp_path), "--save-every", "0"]
    with monkeypatch.context() as patch:
        patch.setattr(train, "write_results", killed)
        assert train.main(command) == 130
    assert train.main([*command, "--resume"]) == 0
    assert load_tensors(tmp_path / "mnist-time.safetensors")[1]["epoch"] == 1


def test_a_batch_that_the_processes_cannot_share_evenly_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "start_processes", lambda device: (0, 3))
    assert train.main(["time", *SMALL, "--out", str(tmp_path)]) == 2
    assert "the batch of 128 does not split over 3 processes" in capsys.readouterr().err


def test_the_curve_counts_steps_from_1_and_the_record_has_the_mean_of_the_last_400_losses(tmp_path, monkeypatch):
    monkeypatch.setattr(digit_tasks, "preview", lambda net, settings: images.grid(torch.zeros(1, 1, 4, 4), 1))
    run = run_of(train.COURSE["time"] | {"width": 1, "seed": 1})
    run.losses = [9.0] * 3 + [1.0, 3.0] * 200
    train.write_results(run, digit_tasks.task({"limit": 256} | run.settings, None), tmp_path)
    rows = [line.split(",") for line in (tmp_path / "loss.csv").read_text().splitlines()]
    assert rows[0] == ["step", "loss"]
    assert [(int(step), float(loss)) for step, loss in rows[1:]] == list(enumerate(run.losses, 1))
    assert load_tensors(tmp_path / "mnist-time.safetensors")[1]["loss"] == 2


def test_accuracy_is_that_of_the_test_digits(monkeypatch):
    """Of a reader that says 7 to all: 1,028 of the 10,000 test digits are."""
    sevens = SimpleNamespace(features=lambda x: x, log_probs=lambda x: torch.eye(10)[7].expand(len(x), 10))
    monkeypatch.setattr(judge, "Reader", lambda classifier: sevens)
    assert digit_tasks.accuracy(None) == pytest.approx(0.1028)


def corner(sheet, wanted):
    """What lies in the lower right corner of a sheet, as large as the wanted grid: below and beside its names."""
    return sheet.convert("RGB").crop(
        (sheet.width - wanted.width, sheet.height - wanted.height, sheet.width, sheet.height)
    )


def test_a_preview_has_each_digit_in_its_column_guided_as_suits_the_network(monkeypatch):
    """Label c at scale γ is one grey, γ c/18: with γ = 2, from black to white."""
    settings = train.COURSE["class"] | {"width": 1, "seed": 1, "scale": 2.0}
    alpha_bar = digits.schedule(settings)

    def labelled(unet, c, *rest):  # −1, no label, is black
        grey = (c.clamp(min=0) / 18).view(-1, 1, 1, 1).expand(-1, 1, 28, 28)
        return lambda x, t: (predict_eps(x, grey, alpha_bar[t]), None)

    monkeypatch.setattr(digits, "labelled", labelled)
    sheet = digit_tasks.preview(digits.network(settings).eval(), settings)
    wanted = images.grid((torch.arange(40) % 10 / 9).view(40, 1, 1, 1).expand(-1, 1, 28, 28), 10, 3)
    assert abs(np.asarray(corner(sheet, wanted)).astype(int) - np.asarray(wanted)).max() <= 1


def test_the_previews_of_the_denoiser_and_the_classifier_by_hand(monkeypatch):
    """Ten test digits, x, x + σ ε and D; and the 40 of 2,000 that a reader who goes by brightness is least sure of."""
    settings = train.COURSE["denoiser"] | {"width": 2, "seed": 5}
    x, denoiser = mnist.to_pixels(mnist.load(train=False)[0][:2000], 0, 1), digits.network(settings).eval()
    z = x[:10] + 0.5 * noise_per_image(seeded(5, 0, 10))(x[:10])
    with torch.no_grad():
        wanted = images.grid(torch.cat([x[:10], z, denoiser(z)]).clamp(0, 1), 10, 3)
    assert corner(digit_tasks.preview(denoiser, settings), wanted).tobytes() == wanted.tobytes()
    by_brightness = SimpleNamespace(
        features=lambda x: x.mean((1, 2, 3))[:, None], log_probs=lambda features: features.expand(-1, 10)
    )
    monkeypatch.setattr(judge, "Reader", lambda classifier: by_brightness)
    wanted = images.grid(x[x.mean((1, 2, 3)).argsort()[30:40]], 10, 3)  # the last of four rows
    assert corner(digit_tasks.preview(None, train.BETTER["classifier"]), wanted).tobytes() == wanted.tobytes()


@pytest.mark.parametrize("guided", [True, False])
def test_a_time_networks_preview_is_guided_as_its_drawings_are(guided, monkeypatch):
    """Away from the network that its settings name, at their scale; and one without a guide is not."""
    asked, settings = [], train.COURSE["time"] | {"width": 1, "seed": 1} | (train.BETTER["time"] if guided else {})
    honest = digits.model
    monkeypatch.setattr(digits, "model", lambda *args: asked.append(args[3]) or honest(*args))
    seen = lambda self, words, n, walk: asked.append(walk.scale or self.scale) or iter([(0, torch.zeros(n, 1, 28, 28))])
    monkeypatch.setattr(digits.Model, "walk", seen)
    digit_tasks.preview(digits.network(settings).eval(), settings)
    *_, guide, scale = asked
    assert (guide is not None, scale) == (guided, 2.0 if guided else 1.0)


def test_the_rate_goes_on_falling_in_the_second_epoch(tmp_path, monkeypatch):
    rates, honest = [], train.Run.count
    monkeypatch.setattr(
        train.Run,
        "count",
        lambda run, value: rates.append(run.optimisers["adam"].param_groups[0]["lr"]) or honest(run, value),
    )
    monkeypatch.setattr(train, "write_results", lambda *args: None)
    settings = train.COURSE["time"] | {"width": 1, "epochs": 2, "seed": 3, "limit": 256, "decay": "cosine", "warmup": 0}
    train.train(settings, tmp_path, False, CPU)
    assert rates == pytest.approx([train.learning_rate(settings, step, 2) for step in range(4)])


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "start_processes", lambda device: (1, 1))
    train.train(
        train.COURSE["time"] | {"width": 1, "epochs": 1, "seed": 3, "limit": 256}, tmp_path, False, CPU, save_every=0
    )
    assert not list(tmp_path.iterdir())


def test_the_seed_and_the_folder_are_those_of_the_command_line(monkeypatch):
    asked = []
    monkeypatch.setattr(
        train, "train", lambda settings, out, *rest: asked.append((settings["seed"], settings["limit"], out))
    )
    assert train.main(["time", "--seed", "5", "--limit", "300"]) == 0
    assert asked == [(5, 300, Path("runs/time"))]


def test_a_disk_that_is_full_is_said_in_one_line_with_exit_code_2(tmp_path, monkeypatch, capsys):
    def full(*args):
        raise OSError(f"cannot write {tmp_path} (No space left on device)")

    monkeypatch.setattr("minidiff.run.save_tensors", full)
    assert train.main(["time", *SMALL, "--out", str(tmp_path), "--save-every", "0"]) == 2
    assert "train.py: cannot write" in capsys.readouterr().err


def test_the_written_accuracy_is_that_of_the_written_weights(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(digit_tasks, "accuracy", lambda network: seen.append(network) or 0.5)
    monkeypatch.setattr(digit_tasks, "preview", lambda net, settings: images.grid(torch.zeros(1, 1, 4, 4), 1))
    run = run_of(train.BETTER["classifier"] | {"width": 1, "seed": 1})
    run.losses = [1.0]
    train.write_results(run, digit_tasks.task({"limit": 256} | run.settings, None), tmp_path)
    assert seen == [run.averaged]


def test_the_average_of_a_run_is_checked_as_its_weights_are():
    run = run_of(train.COURSE["time"] | {"width": 1, "seed": 1})
    run.averaged.leave[1].bias.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="no longer finite"):
        run.check_finite()


@pytest.mark.parametrize("float32", [False, True])
def test_float32_turns_autocast_off_where_the_machine_would_use_it(tmp_path, monkeypatch, float32):
    seen, honest = [], digit_tasks.loss
    monkeypatch.setattr(train, "has_bf16", lambda device: True)
    monkeypatch.setattr(
        digit_tasks, "loss", lambda *args: seen.append(torch.is_autocast_enabled("cpu")) or honest(*args)
    )
    monkeypatch.setattr(train, "write_results", lambda *args: None)
    train.train(
        train.COURSE["time"] | {"width": 1, "epochs": 1, "seed": 3, "limit": 256}, tmp_path, False, CPU, float32=float32
    )
    assert seen == [not float32] * 2
