"""Chapter 9. Illusions: how can one image be two?

Ask several denoisers about the same image, and walk along a combination of their answers. There are two ways to combine:

    anagram   ε = Σ_i w_i A_i⁻¹ ε_i(A_i x_t),  Σ w_i = 1        every prompt has its own view A_i of the image         (VA)
    hybrid    ε = Σ_i f_i(ε_i(x_t)),           Σ f_i = identity   every prompt draws one part f_i: coarse, fine, colour  (FD)

A network knows images plus N(0, I) noise, so a view has to carry N(0, I) to N(0, I): it is linear and orthogonal. Ours move whole
pixels and may change their sign. ε is moved back the same way. v is a share between two variances, which know no sign: it is
moved back and never negated.

VA = Geng, Park and Owens 2024, "Visual Anagrams", arXiv 2311.17919. FD = the same, "Factorized Diffusion", arXiv 2404.11615.
Left out: latents (an autoencoder does not turn with its picture). One part fixed to that of a photo is an edit. Next: editing.py.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise, product

import torch
from torch import Tensor

from minidiff.denoiser import Denoiser

Part = Callable[[Tensor], Tensor]  # a linear map of images, (B, C, H, W) -> (B, C, H, W)


@dataclass(frozen=True)
class View:
    """A signed permutation of pixels: a way to look at an image, and the way back. `unpermute` undoes `permute`; sign is 1 or −1."""

    name: str
    permute: Part
    unpermute: Part
    sign: int = 1

    def apply(self, x: Tensor) -> Tensor:
        """A x: the image as this view shows it."""
        return self.sign * self.permute(x)

    def undo(self, x: Tensor) -> Tensor:
        """A⁻¹ x, for images and for ε. (v goes back by `unpermute` alone.)"""
        return self.sign * self.unpermute(x)

    def check(self, shape: Sequence[int] = (3, 64, 64), seed: int = 0) -> None:
        """Measure on 8 pairs of noise images (C, H, W) what an illusion relies on. Raises ValueError with the three deviations (rms).

            linear  A(x + 2y) = A x + 2 A y        orthogonal  ⟨A x, A y⟩ = ⟨x, y⟩, or AᵀA = I        inverse  A⁻¹A x = x = A A⁻¹x
        """
        x, y = torch.randn(2, 8, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        Ax, Ay = self.apply(x), self.apply(y)
        if Ax.shape != x.shape:
            raise ValueError(f"the view {self.name!r} makes {tuple(Ax.shape[1:])} of {tuple(shape)}: crop the image to a square")
        linear = _rms(self.apply(x + 2 * y) - Ax - 2 * Ay)
        orthogonal = _rms((Ax * Ay - x * y).flatten(1).sum(1)) / math.sqrt(x[0].numel())  # about |AᵀA − I|, rms over eigenvalues
        inverse = max(_rms(self.undo(Ax) - x), _rms(self.apply(self.undo(x)) - x))
        if not max(linear, orthogonal, inverse) <= 1e-6:
            raise ValueError(
                f"noise seen through the view {self.name!r} would not stay N(0, I): off by {linear:.2g} from linear, {orthogonal:.2g} from AᵀA = I, "
                f"{inverse:.2g} from its inverse, wanted at most 1e-06: move whole pixels, and change no more than their sign"
            )


def moved(name: str, move: Callable[[Tensor], Tensor]) -> View:
    """The view that moves pixels as `move` moves the entries of a table (H, W); the way back is the inverse permutation."""

    @cache
    def tables(H: int, W: int, device: torch.device) -> tuple[Tensor, Tensor]:
        source = move(torch.arange(H * W).view(H, W))
        if source.shape != (H, W):
            raise ValueError(f"the view {name!r} wants a square image, got {H} x {W}: crop it")
        return source.flatten().to(device), source.flatten().argsort().to(device)

    def gather(x: Tensor, way: int) -> Tensor:
        return x.flatten(-2)[..., tables(*x.shape[-2:], x.device)[way]].reshape(x.shape)

    return View(name, lambda x: gather(x, 0), lambda x: gather(x, 1))


def patches(n: int = 4, seed: int = 0) -> View:
    """A grid of n x n patches, shuffled; what is left over at the right and lower border stays. Raises ValueError unless n >= 1."""
    if n < 1:
        raise ValueError(f"a grid of patches wants n >= 1, got {n}")
    order = torch.randperm(n * n, generator=torch.Generator().manual_seed(seed))

    def move(table: Tensor) -> Tensor:
        h, w = table.shape[0] // n, table.shape[1] // n
        grid = table[: n * h, : n * w].reshape(n, h, n, w).transpose(1, 2).reshape(n * n, h, w)
        grid = grid[order].view(n, n, h, w).transpose(1, 2).reshape(n * h, n * w)
        return table.index_put((torch.arange(n * h)[:, None], torch.arange(n * w)), grid)

    return moved("patches", move)


def jigsaw(seed: int = 0) -> View:
    """A puzzle of 4 x 4 interlocking pieces, for square images.

    The cut looks the same after a quarter turn about the centre. So a piece has three twins and can turn into the place of any: four
    corners, four inner pieces, twice four edge pieces, each four shuffled.
    """
    generator = torch.Generator().manual_seed(seed)
    places = torch.stack([torch.randperm(4, generator=generator) for _ in range(4)])  # of a kind of piece: from quarter to quarter

    def move(table: Tensor) -> Tensor:
        side = (2 * torch.arange(len(table)) + 1 - len(table)) * 2 / len(table)  # in (−2, 2): a piece is 1 wide
        y, x = torch.meshgrid(side, side, indexing="ij")
        for _ in range(4):  # a quarter turn of the plane each time: y, x <- x, −y
            for row, line in product((-1.5, -0.5), (-1, 0, 1)):
                knob = (y - row) ** 2 + (x - line - 0.15) ** 2 < 0.2**2  # a disc across this line, of the piece to its left
                y, x = torch.where(knob, row, y), torch.where(knob, line - 0.5, x)
            y, x = x, -y
        turns = torch.zeros_like(table)
        for quarter in range(4):
            kind = 2 * (y < -1).long() + (x < -1).long()
            turns = torch.where((y < 0) & (x <= 0), (places[kind, quarter] - quarter) % 4, turns)
            y, x = x, -y
        goal = torch.stack([table.rot90(-k) for k in range(4)]).gather(0, turns[None])
        return goal.flatten().argsort().view(table.shape)

    return moved("jigsaw", lambda table: move(table) if table.shape[0] == table.shape[1] else table.T)


def _skew(table: Tensor) -> Tensor:
    H, W = table.shape
    slide = (1.5 * (torch.arange(W) - (W - 1) / 2)).round().long()
    return table.gather(0, (torch.arange(H)[:, None] - slide) % H)


def _hinge(table: Tensor) -> Tensor:
    side = min(table.shape) // 3
    turned = table.clone()
    for i, j in product(range(3), repeat=2):
        square = slice(i * side, (i + 1) * side), slice(j * side, (j + 1) * side)
        turned[square] = table[square].rot90(1 if (i + j) % 2 else -1)
    return turned


def _circle(table: Tensor) -> Tensor:
    H, W = table.shape
    y, x = torch.arange(H)[:, None] - (H - 1) / 2, torch.arange(W) - (W - 1) / 2
    return torch.where(y**2 + x**2 < (min(H, W) * 3 / 8) ** 2, table.flip(0, 1), table)


def views(seed: int = 0) -> dict[str, View]:
    """All views by name; turns are counter-clockwise. `seed` is that of pixels (another image size, another shuffle), patches and jigsaw."""
    known = [
        View("identity", _same, _same),
        moved("vflip", lambda table: table.flip(0)),  # as in water
        moved("hflip", lambda table: table.flip(1)),
        moved("rot90", lambda table: table.rot90(1)),
        moved("rot180", lambda table: table.rot90(2)),
        moved("rot270", lambda table: table.rot90(3)),
        moved("transpose", lambda table: table.T),
        View("negate", _same, _same, sign=-1),
        moved("pixels", lambda table: table.flatten()[torch.randperm(table.numel(), generator=torch.Generator().manual_seed(seed))].view_as(table)),
        patches(4, seed),
        jigsaw(seed),
        moved("skew", _skew),  # columns slide down, the more the further right, and come in again at the top
        moved("hinge", _hinge),  # 3 x 3 squares, neighbours turn a quarter in opposite directions
        moved("circle", _circle),  # a disc, 3/4 of the image wide, turns upside down
    ]
    return {view.name: view for view in known}


def view(name: str, seed: int = 0) -> View:
    """The view of that name. Raises ValueError with the known names when there is none."""
    if name not in (known := views(seed)):
        raise ValueError(f"there is no view {name!r}: choose one of {', '.join(known)}")
    return known[name]


def anagram(denoisers: Sequence[Denoiser], views: Sequence[View], weights: Sequence[float] | None = None, alternate: Sequence[int] | None = None) -> Denoiser:
    """One image that denoiser i sees through view i: ε = Σ w_i A_i⁻¹ ε_i(A_i x_t), and v = Σ w_i v_i, permuted back (VA, method).

    weights:   one a view, >= 0, scaled to sum 1; more for a prompt that is lost. None: equal
    alternate: the levels of the walk; at each level one view is asked, in turn, in place of the mean of all: the price of one
    Raises ValueError unless all lists fit; when first called, if a view is not orthogonal; and at a level that `alternate` lacks.
    """
    n = len(views)
    w = [1.0] * n if weights is None else list(weights)
    if len(denoisers) != n or n == 0:
        raise ValueError(f"got {len(denoisers)} prompts and {n} views: give one view for each prompt")
    if len(w) != n or not all(weight >= 0 for weight in w) or not 0 < sum(w) < math.inf or (weights is not None and alternate is not None):
        raise ValueError(f"weights must be {n} finite numbers >= 0 that are not all 0, and only without `alternate`; got {w}: leave them out for equal parts")
    check = cache(lambda shape: [view.check(shape) for view in views])
    position = {t: i for i, t in enumerate(alternate or ())}

    def denoise(x_t: Tensor, t: int) -> tuple[Tensor, Tensor | None]:
        check(x_t.shape[1:])
        if alternate is not None and t not in position:
            raise ValueError(f"level {t} is none of the {len(position)} levels of `alternate`: give it the list that is walked")
        asked = range(n) if alternate is None else [position[t] % n]
        eps, v = zip(*[denoisers[i](views[i].apply(x_t), t) for i in asked])
        eps = [views[i].undo(e) for i, e in zip(asked, eps)]
        v = [e if e is None else views[i].unpermute(e) for i, e in zip(asked, v)]
        return _mean(eps, [w[i] for i in asked]), _mean(v, [w[i] for i in asked])

    return denoise


def factorised(denoisers: Sequence[Denoiser], parts: Sequence[Part]) -> Denoiser:
    """Denoiser i draws part i: ε = Σ f_i(ε_i), and v is the mean of theirs (FD, method).

    Raises ValueError unless there is one part for each denoiser; when first called, if the parts do not sum to the identity.
    """
    if len(denoisers) != len(parts) or len(parts) == 0:
        raise ValueError(f"got {len(denoisers)} prompts and {len(parts)} parts: give one part for each prompt")

    @cache
    def check(shape: torch.Size) -> None:
        x = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        if not (missing := _rms(sum(part(x) for part in parts) - x)) <= 1e-6:
            raise ValueError(f"the parts of noise differ from it, summed, by {missing:.2g}, wanted at most 1e-06: make them sum to the identity")

    def denoise(x_t: Tensor, t: int) -> tuple[Tensor, Tensor | None]:
        check(x_t.shape[1:])
        eps, v = zip(*[denoiser(x_t, t) for denoiser in denoisers])
        return sum(part(e) for part, e in zip(parts, eps)), _mean(v, [1.0] * len(v))

    return denoise


def gaussian(sigma: float) -> Part:
    """Low pass: a blur with standard deviation `sigma` pixels, for every image size. Raises ValueError unless sigma > 0.

    A blur is a matrix along columns and one along rows, G_H x G_Wᵀ. Borders mirror (the outermost pixel stands once). The kernel
    reaches 8σ: the course's 33 pixels for σ = 2 at 64 pixels, which is σ = 0.9 at 28.
    """
    if not 0 < sigma < math.inf:
        raise ValueError(f"sigma must be a number of pixels above 0, got {sigma}")

    @cache
    def blur(n: int) -> Tensor:
        offset = torch.arange(-math.ceil(8 * sigma), math.ceil(8 * sigma) + 1)
        weight = torch.exp(-((offset.double() / sigma) ** 2) / 2)
        period = max(2 * (n - 1), 1)  # 0 1 2 3 2 1 0 1 …
        pixel = (torch.arange(n)[:, None] + offset) % period
        pixel = torch.where(pixel < n, pixel, period - pixel)
        return torch.zeros(n, n, dtype=torch.float64).scatter_add(1, pixel, (weight / weight.sum()).expand(n, -1))

    return lambda x: blur(x.shape[-2]).to(x) @ x @ blur(x.shape[-1]).to(x).T


def bands(*low_passes: Part) -> list[Part]:
    """Parts of an image between low passes, coarsest first: L_1 x, L_2 x − L_1 x, …, x − L_n x. They sum to x."""
    return [lambda x, low=low, high=high: high(x) - low(x) for low, high in pairwise([torch.zeros_like, *low_passes, _same])]


def grey(x: Tensor) -> Tensor:
    """The mean of the channels, in each of them."""
    return x.mean(1, keepdim=True).expand_as(x)


def hybrid(far: Denoiser, near: Denoiser, low_pass: Part) -> Denoiser:
    """One prompt from afar, one near by: low(ε_far) + ε_near − low(ε_near) (FD, hybrid images). A wider blur favours `near`."""
    return factorised([far, near], bands(low_pass))


def triple_hybrid(far: Denoiser, middle: Denoiser, near: Denoiser, coarse: Part, fine: Part) -> Denoiser:
    """Three prompts at three distances. `coarse` is the wider blur."""
    return factorised([far, middle, near], bands(coarse, fine))


def colour_hybrid(without: Denoiser, colour: Denoiser) -> Denoiser:
    """One prompt in the greys, as in dim light, another in what the colours add to them."""
    return factorised([without, colour], [grey, lambda x: x - grey(x)])


def _mean(terms: Sequence[Tensor | None], weights: Sequence[float]) -> Tensor | None:
    return None if any(term is None for term in terms) else sum(w * term for w, term in zip(weights, terms)) / sum(weights)


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def _same(x: Tensor) -> Tensor:
    return x
