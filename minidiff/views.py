"""Chapter 9. Views: through which transformations can a network still see an image?

A network was trained on images plus N(0, I) noise. So a view A must map N(0, I) to N(0, I): linear and orthogonal,
AᵀA = I. Ours move whole pixels and may change their sign: signed permutations (VA, "Conditions on views").

VA = Geng, Park and Owens 2024, "Visual Anagrams", arXiv 2311.17919.
Next: illusions.py, which looks through several views at once.
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
    """A signed permutation of pixels, and its inverse. `unpermute` undoes `permute`; sign is 1 or −1."""

    name: str
    permute: Callable[[Tensor], Tensor]  # (B, C, H, W) -> (B, C, H, W)
    unpermute: Callable[[Tensor], Tensor]
    sign: int = 1

    def apply(self, x: Tensor) -> Tensor:
        """A x: the image (B, C, H, W) as this view shows it."""
        return self.sign * self.permute(x)

    def undo(self, x: Tensor) -> Tensor:
        """A⁻¹ x, for images and for ε, (B, C, H, W). (v goes back by `unpermute` alone.)"""
        return self.sign * self.unpermute(x)

    def check(self, shape: Sequence[int] = (3, 64, 64), seed: int = 0) -> None:
        """Measure on 8 pairs of noise images (C, H, W) whether illusions can use this view.

            linear        A(x + 2y) = A x + 2 A y
            orthogonal    ⟨A x, A y⟩ = ⟨x, y⟩, or AᵀA = I
            inverse       A⁻¹A x = x = A A⁻¹x

        Raises ValueError, with the three deviations (rms), when it cannot be used.
        """
        x, y = torch.randn(2, 8, *shape, generator=_generator(seed), dtype=torch.float64)
        Ax, Ay = self.apply(x), self.apply(y)
        if Ax.shape != x.shape:
            got = f"{tuple(Ax.shape[1:])} from {tuple(shape)}"
            raise ValueError(
                f"the view {self.name!r} must keep the image's shape, got {got}: crop the image to a square"
            )
        linear = rms(self.apply(x + 2 * y) - Ax - 2 * Ay)
        # estimates |AᵀA − I|, rms over its eigenvalues
        orthogonal = rms((Ax * Ay - x * y).flatten(1).sum(1)) / math.sqrt(x[0].numel())
        inverse = max(rms(self.undo(Ax) - x), rms(self.apply(self.undo(x)) - x))
        if not max(linear, orthogonal, inverse) <= 1e-6:
            raise ValueError(
                f"noise seen through the view {self.name!r} would not stay N(0, I): off by {linear:.2g} from linear, "
                f"{orthogonal:.2g} from AᵀA = I, {inverse:.2g} from its inverse, expected at most 1e-06: "
                "move whole pixels, and change nothing but their sign"
            )


def permutation(name: str, move: Callable[[Tensor], Tensor]) -> View:
    """The view that moves pixels as `move` moves the entries of a table (H, W). Its inverse is the argsort."""

    @cache
    def tables(H: int, W: int, device: torch.device) -> tuple[Tensor, Tensor]:
        source = move(torch.arange(H * W).view(H, W))
        if source.shape != (H, W):
            raise ValueError(f"the view {name!r} needs a square image, got {H} x {W}: crop it")
        return source.flatten().to(device), source.flatten().argsort().to(device)

    def gather(x: Tensor, way: int) -> Tensor:
        return x.flatten(-2)[..., tables(*x.shape[-2:], x.device)[way]].reshape(x.shape)

    return View(name, lambda x: gather(x, 0), lambda x: gather(x, 1))


def patches(n: int = 4, seed: int = 0) -> View:
    """Shuffles n x n patches; pixels left over at the right and bottom edges stay. Raises ValueError unless n >= 1."""
    if n < 1:
        raise ValueError(f"the number of patches in a row must be at least 1, got {n}")
    order = torch.randperm(n * n, generator=_generator(seed))

    def move(table: Tensor) -> Tensor:
        h, w = table.shape[0] // n, table.shape[1] // n
        grid = table[: n * h, : n * w].reshape(n, h, n, w).transpose(1, 2).reshape(n * n, h, w)
        grid = grid[order].view(n, n, h, w).transpose(1, 2).reshape(n * h, n * w)
        return table.index_put((torch.arange(n * h)[:, None], torch.arange(n * w)), grid)

    return permutation("patches", move)


def jigsaw(seed: int = 0) -> View:
    """A puzzle of 4 x 4 interlocking pieces, for square images.

    The cuts look the same after a quarter turn about the centre, so each piece fits into four places: there are four
    corners, four inner pieces, and two sets of four edge pieces. Each set of four is shuffled.
    """
    generator = _generator(seed)
    places = torch.stack([torch.randperm(4, generator=generator) for _ in range(4)])  # [kind, quarter] -> quarter

    def move(table: Tensor) -> Tensor:
        side = (2 * torch.arange(len(table)) + 1 - len(table)) * 2 / len(table)  # in (−2, 2): a piece is 1 wide
        y, x = torch.meshgrid(side, side, indexing="ij")
        for _ in range(4):  # a quarter turn of the plane each time: y, x <- x, −y
            for row, line in product((-1.5, -0.5), (-1, 0, 1)):
                # a disc across this line belongs to the piece on its left
                knob = (y - row) ** 2 + (x - line - 0.15) ** 2 < 0.2**2
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
    """All views by name; rotations are counter-clockwise. `seed`, any integer, is for pixels, patches and jigsaw."""

    def shuffled(table: Tensor) -> Tensor:
        return table.flatten()[torch.randperm(table.numel(), generator=_generator(seed))].view_as(table)

    known = [
        View("identity", _identity, _identity),
        permutation("vflip", lambda table: table.flip(0)),  # upside down, as a reflection in water
        permutation("hflip", lambda table: table.flip(1)),
        permutation("rot90", lambda table: table.rot90(1)),
        permutation("rot180", lambda table: table.rot90(2)),
        permutation("rot270", lambda table: table.rot90(3)),
        permutation("transpose", lambda table: table.T),
        View("negate", _identity, _identity, sign=-1),
        permutation("pixels", shuffled),  # differently for each image size
        patches(4, seed),
        jigsaw(seed),
        permutation("skew", _skew),  # columns slide down, further to the right by more, and wrap around
        permutation("hinge", _hinge),  # 3 x 3 squares; neighbours make a quarter turn in opposite directions
        permutation("circle", _circle),  # a disc, 3/4 of the image wide, turned by 180 degrees
    ]
    return {view.name: view for view in known}


def view(name: str, seed: int = 0) -> View:
    """The view of that name. Raises ValueError for an unknown one."""
    if name not in (known := views(seed)):
        raise ValueError(f"there is no view {name!r}: choose one of {', '.join(known)}")
    return known[name]


def under_way(images: Tensor, view: View, s: float, zoom: int = 4, paper: float = 0.35) -> Tensor:
    """A frame of an animation: images on their way through a view. Each pixel turns about the centre to its new place.

    images: (N, C, H, W) in [0, 1]
    s:      from 0, the image, to 1, what the view shows
    zoom:   the side of a pixel; paper: the grey around the image
    -> (N, C, S, S) in [0, 1], S = zoom · the diagonal, rounded up. A mirror image moves straight; a negative fades.
    """
    N, C, H, W = images.shape
    y, x = torch.meshgrid(torch.arange(H) - (H - 1) / 2, torch.arange(W) - (W - 1) / 2, indexing="ij")
    goal = torch.complex(x, y).flatten()
    pixel = view.permute(torch.arange(float(H * W)).view(1, 1, H, W)).flatten().long()  # place i will show pixel[i]
    start = goal[pixel]
    turn = (goal.angle() - start.angle()) % (2 * math.pi)
    turn = torch.where(turn > math.pi + 1e-4, turn - 2 * math.pi, turn)  # the short way; half turns all to one side
    quarters = (turn * 2 / math.pi).round() * math.pi / 2
    mirrored = torch.allclose(start.abs(), goal.abs()) and not torch.allclose(turn, quarters, atol=1e-3)
    if mirrored:
        place = (1 - s) * start + s * goal
    else:
        place = torch.polar((1 - s) * start.abs() + s * goal.abs(), start.angle() + s * turn)
    colour = images.flatten(2)[..., pixel]
    colour = torch.lerp(colour, 1 - colour, s) if view.sign < 0 else colour

    size = math.ceil(math.hypot(H, W)) * zoom
    side = torch.arange(zoom if s in (0, 1) else math.ceil(1.5 * zoom))  # larger while askew, so that no gap shows
    corner = (size - len(side)) / 2
    rows = (place.imag * zoom + corner).round().long()[:, None, None] + side[:, None]
    columns = (place.real * zoom + corner).round().long()[:, None, None] + side
    canvas = images.new_full((N, C, size, size), paper)
    canvas[..., rows.clamp(0, size - 1), columns.clamp(0, size - 1)] = colour[..., None, None]
    return canvas


def rms(x: Tensor) -> float:
    """Root mean square of all entries, of a tensor of any shape."""
    return float(x.square().mean().sqrt())


def _identity(x: Tensor) -> Tensor:
    return x


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed % 2**64)  # PyTorch takes 64 bits
