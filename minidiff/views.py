"""Chapter 9. Views: how may one look at an image, so that a network still knows what it sees?

A network knows images plus N(0, I) noise. So a view A has to carry N(0, I) to N(0, I): it is linear and orthogonal, AᵀA = I.
Ours move whole pixels, and may change their sign: signed permutations. A⁻¹ moves them back (VA, "Conditions on views").

VA = Geng, Park and Owens 2024, "Visual Anagrams", arXiv 2311.17919. Next: illusions.py, which looks through several at once.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import torch
from torch import Tensor


@dataclass(frozen=True)
class View:
    """A signed permutation of pixels: a way to look at an image, and the way back. `unpermute` undoes `permute`; sign is 1 or −1."""

    name: str
    permute: Callable[[Tensor], Tensor]  # (B, C, H, W) -> (B, C, H, W)
    unpermute: Callable[[Tensor], Tensor]
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
        x, y = torch.randn(2, 8, *shape, generator=_generator(seed), dtype=torch.float64)
        Ax, Ay = self.apply(x), self.apply(y)
        if Ax.shape != x.shape:
            raise ValueError(
                f"the view {self.name!r} makes {tuple(Ax.shape[1:])} of {tuple(shape)}: crop the image to a square"
            )
        linear = rms(self.apply(x + 2 * y) - Ax - 2 * Ay)
        # about |AᵀA − I|, rms over eigenvalues
        orthogonal = rms((Ax * Ay - x * y).flatten(1).sum(1)) / math.sqrt(x[0].numel())
        inverse = max(rms(self.undo(Ax) - x), rms(self.apply(self.undo(x)) - x))
        if not max(linear, orthogonal, inverse) <= 1e-6:
            raise ValueError(
                f"noise seen through the view {self.name!r} would not stay N(0, I): off by {linear:.2g} from linear, {orthogonal:.2g} from AᵀA = I, "
                f"{inverse:.2g} from its inverse, wanted at most 1e-06: move whole pixels, and change no more than their sign"
            )


def permutation(name: str, move: Callable[[Tensor], Tensor]) -> View:
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
    order = torch.randperm(n * n, generator=_generator(seed))

    def move(table: Tensor) -> Tensor:
        h, w = table.shape[0] // n, table.shape[1] // n
        grid = table[: n * h, : n * w].reshape(n, h, n, w).transpose(1, 2).reshape(n * n, h, w)
        grid = grid[order].view(n, n, h, w).transpose(1, 2).reshape(n * h, n * w)
        return table.index_put((torch.arange(n * h)[:, None], torch.arange(n * w)), grid)

    return permutation("patches", move)


def jigsaw(seed: int = 0) -> View:
    """A puzzle of 4 x 4 interlocking pieces, for square images.

    The cut looks the same after a quarter turn about the centre. So a piece has three twins and can turn into the place of any: four
    corners, four inner pieces, twice four edge pieces, each four shuffled.
    """
    generator = _generator(seed)
    places = torch.stack(
        [torch.randperm(4, generator=generator) for _ in range(4)]
    )  # of a kind of piece: from quarter to quarter

    def move(table: Tensor) -> Tensor:
        side = (2 * torch.arange(len(table)) + 1 - len(table)) * 2 / len(table)  # in (−2, 2): a piece is 1 wide
        y, x = torch.meshgrid(side, side, indexing="ij")
        for _ in range(4):  # a quarter turn of the plane each time: y, x <- x, −y
            for row, line in product((-1.5, -0.5), (-1, 0, 1)):
                knob = (y - row) ** 2 + (
                    x - line - 0.15
                ) ** 2 < 0.2**2  # a disc across this line, of the piece to its left
                y, x = torch.where(knob, row, y), torch.where(knob, line - 0.5, x)
            y, x = x, -y
        turns = torch.zeros_like(table)
        for quarter in range(4):
            kind = 2 * (y < -1).long() + (x < -1).long()
            turns = torch.where((y < 0) & (x <= 0), (places[kind, quarter] - quarter) % 4, turns)
            y, x = x, -y
        goal = torch.stack([table.rot90(-k) for k in range(4)]).gather(0, turns[None])
        return goal.flatten().argsort().view(table.shape)

    return permutation("jigsaw", lambda table: move(table) if table.shape[0] == table.shape[1] else table.T)


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
        View("identity", _identity, _identity),
        permutation("vflip", lambda table: table.flip(0)),  # as in water
        permutation("hflip", lambda table: table.flip(1)),
        permutation("rot90", lambda table: table.rot90(1)),
        permutation("rot180", lambda table: table.rot90(2)),
        permutation("rot270", lambda table: table.rot90(3)),
        permutation("transpose", lambda table: table.T),
        View("negate", _identity, _identity, sign=-1),
        permutation(
            "pixels",
            lambda table: table.flatten()[
                torch.randperm(table.numel(), generator=_generator(seed))
            ].view_as(table),
        ),
        patches(4, seed),
        jigsaw(seed),
        permutation("skew", _skew),  # columns slide down, the more the further right, and come in again at the top
        permutation("hinge", _hinge),  # 3 x 3 squares, neighbours turn a quarter in opposite directions
        permutation("circle", _circle),  # a disc, 3/4 of the image wide, turns upside down
    ]
    return {view.name: view for view in known}


def view(name: str, seed: int = 0) -> View:
    """The view of that name. Raises ValueError with the known names when there is none."""
    if name not in (known := views(seed)):
        raise ValueError(f"there is no view {name!r}: choose one of {', '.join(known)}")
    return known[name]


def under_way(images: Tensor, view, s: float, zoom: int = 4, paper: float = 0.35) -> Tensor:
    """Images on their way through a view of illusions.py: every pixel turns about the centre to its new place (of a mirror image, goes straight), a negative fades.

    images: (N, C, H, W) in [0, 1]; s: 0 at the start, 1 at the end. Returns (N, C, S, S) in [0, 1] with S = zoom · the diagonal, rounded up.
    """
    N, C, H, W = images.shape
    y, x = torch.meshgrid(torch.arange(H) - (H - 1) / 2, torch.arange(W) - (W - 1) / 2, indexing="ij")
    goal = torch.complex(x, y).flatten()
    source = view.permute(torch.arange(float(H * W)).view(1, 1, H, W)).flatten().long()  # place i will show pixel source[i]
    start = goal[source]
    turn = (goal.angle() - start.angle()) % (2 * math.pi)
    turn = torch.where(turn > math.pi + 1e-4, turn - 2 * math.pi, turn)  # the short way; half a turn always to the same side
    mirrored = torch.allclose(start.abs(), goal.abs()) and not torch.allclose(turn, (turn * 2 / math.pi).round() * math.pi / 2, atol=1e-3)
    place = (1 - s) * start + s * goal if mirrored else torch.polar((1 - s) * start.abs() + s * goal.abs(), start.angle() + s * turn)
    colour = images.flatten(2)[..., source]
    colour = torch.lerp(colour, 1 - colour, s) if view.sign < 0 else colour
    size = math.ceil(math.hypot(H, W)) * zoom
    side = torch.arange(zoom if s in (0, 1) else math.ceil(1.5 * zoom))  # larger while the grid is askew, so that no gap shows
    rows, columns = [((v * zoom + (size - len(side)) / 2).round().long()[:, None, None] + d).clamp(0, size - 1) for v, d in ((place.imag, side[:, None]), (place.real, side))]
    canvas = images.new_full((N, C, size, size), paper)
    canvas[..., rows, columns] = colour[..., None, None]
    return canvas


def rms(x: Tensor) -> float:
    """Root of the mean square of all entries."""
    return float(x.square().mean().sqrt())


def _identity(x: Tensor) -> Tensor:
    return x


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed % 2**64)  # any whole number is a seed
