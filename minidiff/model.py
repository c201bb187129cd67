"""Chapter 15. Models: a network with all that a walk needs to know of it, whatever it draws.

One frozen record stands for the digits' U-Net with its labels and for DeepFloyd IF with its prompts: a network, and for
every *word* ("7", "an oil painting of a fox") the condition that the network is given for it. The word "" is none: the
half that guidance leads away from. A network without words has no such half; a worse version of itself, its `guide`,
will do (AG).

AG = Karras et al. 2024, "Guiding a diffusion model with a bad version of itself", arXiv 2406.02507. Next: digits.py.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from minidiff import editing, sampling
from minidiff.denoiser import Denoiser
from minidiff.formula import Combine, all_words, formula_of, only, rows_of
from minidiff.one_forward import Network, one_forward, sequential
from minidiff.sampling import Clip, Noise, Step
from minidiff.views import View
from minidiff.walk import Path, Walk, draw
from minidiff.words import Words, texts, warn_of_unknown

Terms = Sequence[Sequence[str]]  # the words of each term of a formula, one for all images or one an image


@dataclass(frozen=True, repr=False)
class Model:
    """What `minidiff.load` returns.

    name:       as it was loaded
    network:    eps, v = network(x_t, t, c), as `one_forward` takes it
    words:      those it knows ("0" … "9"); () for a network without words; None: any prompt
    conditions: words -> {word: c}, c of one row; encodes prompts and loads weights when needed
    alpha_bar:  (T + 1,) float64, None for the one-step denoiser
    clip:       keeps an estimate of x_0 in range
    pixels:     (low, high)
    shape:      (C, H, W) of an image
    scale:      the guidance that suits it
    device:     where it computes
    batch:      images at a time that suit it
    levels:     (steps or None, name of the sampler, start or None) -> falling levels to 0
    dtype:      of the weights
    unet:       the digits' network; None where weights are loaded when needed
    guide:      a worse denoiser to be guided away from (AG), for a network without words
    plan:       (rows of a forward pass, words) -> ValueError where memory will not do
    release:    lets go of the weights until they are needed again
    low:        stage II alone: (low-resolution images, noise) -> what the network sees of them, (B, C, H, W)
    large:      stage II of this model, if there is one
    vocabulary: the words of the captions that it was trained on, None where nobody counted
    """

    name: str
    network: Network
    words: tuple[str, ...] | None
    conditions: Callable[[Sequence[str]], dict[str, Any]]
    alpha_bar: Tensor | None
    clip: Clip
    pixels: tuple[float, float]
    shape: tuple[int, int, int]
    scale: float
    device: torch.device
    batch: int
    levels: Callable[[int | str | None, str, int | None], list[int]]
    dtype: torch.dtype = torch.float32
    unet: nn.Module | None = None
    guide: Denoiser | None = None
    plan: Callable[[int, Sequence[str]], None] = lambda rows, words: None
    release: Callable[[], None] = lambda: None
    low: Callable[[Tensor, Noise], Tensor] | None = None
    large: "Model | None" = None
    vocabulary: frozenset[str] | None = None

    def __repr__(self) -> str:
        draws = "pictures of prompts" if self.words is None else f"digits {' '.join(self.words)}".rstrip()
        levels = "one step" if self.alpha_bar is None else f"{len(self.alpha_bar) - 1} levels"
        return f"Model({self.name}: {draws}, {' x '.join(map(str, self.shape))}, {levels}, on {self.device})"

    def known(self, words: Words, n: int | None = None) -> list[str]:
        """The words as texts.

        Raises ValueError for one that the model does not know, and for another number than 1 or n.
        """
        words = texts(words)
        if n is not None and n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        for word in words if self.words is not None else ():
            if word not in ("", *self.words):
                what = f"the digits {self.words[0]} to {self.words[-1]}" if self.words else "no labels"
                raise ValueError(f"{self.name} knows {what}, got {word!r}")
        if self.vocabulary is not None:
            warn_of_unknown(words, self.vocabulary)
        if n is not None and len(words) not in (1, n):
            raise ValueError(f"expected one word, or {n} (one an image), got {len(words)}")
        return words

    def denoiser(self, words: Words = "", scale: float | None = None) -> Denoiser:
        """The guided denoiser of these words: one for all images, or one each.

        Raises ValueError for an unknown word.
        """
        return self.formula([words], scale=scale)

    def formula(
        self,
        terms: Sequence[Words],
        combine: Combine = only,
        scale: float | None = None,
        one_by_one: bool = False,
        lows: Sequence[Tensor] | None = None,
    ) -> Denoiser:
        """Guided denoisers, one a term, combined; with one forward pass a step.

        terms:      the words of each
        combine:    `anagram`, `hybrid`, … of the terms' denoisers
        scale:      guidance, None for what suits the model
        one_by_one: a forward pass for each question: for small memories
        lows:       stage II alone: what each term sees of the low resolution, of `low`
        Raises ValueError for an unknown word, and for the one-step denoiser.
        """
        self._walks()
        if lows is None:
            self._draws()
        terms = [self.known(words) for words in terms]
        conditions, scale = self.conditions(all_words(terms)), self.scale if scale is None else scale
        build = formula_of(terms, combine, scale, conditions, self.guide, lows)
        # a guide is no question to the network: the recorder would run it twice
        return (sequential if one_by_one or self.guide is not None else one_forward)(self._answer, build)

    def timesteps(
        self, steps: int | str | None = None, sampler: str | Step = "dpm", start: int | None = None
    ) -> list[int]:
        """The falling levels of a walk from `start` (None: pure noise) to 0.

        Raises ValueError for steps that do not fit.
        """
        self._walks()
        T = len(self.alpha_bar) - 1
        if start is not None and not 1 <= start <= T:
            raise ValueError(f"start must be between 1 and T = {T}, got {start}")
        return self.levels(Walk(steps=steps).steps, Walk(sampler).name, start)

    @property
    def guided(self) -> bool:
        """Whether there is something to be guided away from: no word, or a guide."""
        return self.words != () or self.guide is not None

    def settled(self, walk: Walk) -> Walk:
        """The walk with the model's own sampler, scale and batch where it has none. Raises ValueError for a scale where
        nothing guides."""
        if walk.scale is not None and not self.guided:
            raise ValueError(
                f"{self.name} has neither labels nor a guide to be guided by, got scale {walk.scale:g}: leave it out"
            )
        return walk.default(sampler="dpm", scale=self.scale if self.guided else None, batch=self.batch)

    def sample(
        self,
        words: Words = "",
        n: int | None = None,
        *,
        steps: int | str | None = None,
        scale: float | None = None,
        sampler: str | Step | None = None,
        eta: float = 0.0,
        seed: int = 137,
        batch: int | None = None,
        progress: bool = True,
    ) -> Tensor:
        """Draw images, (n, C, H, W) in [0, 1] on the CPU; enlarged where the model has a stage II.

        words: one for all, or one each; n: None for as many as words. The others: see Walk. Raises ValueError.
        """
        words = self.known(words, n)
        walk = Walk(sampler, steps, eta, scale, batch, seed=seed)
        x, _ = self.from_noise([words], n or len(words), walk, show=progress)
        return self.enlarge(x, [words], walk=walk, show=progress)

    def walk(self, words: Words = "", n: int | None = None, walk: Walk = Walk()) -> Iterator[tuple[int, Tensor]]:
        """One batch of n images on its way from noise: yields (t, x_t), (n, C, H, W) in `pixels`, after each step."""
        words, walk = self.known(words, n), self.settled(walk)
        n = n or len(words)
        self.prepare([words], n, walk, only)
        path = self._path([words], walk, self.timesteps(walk.steps, walk.sampler))
        return path(range(n), sampling.noise_per_image(sampling.seeded(walk.seed, 0, n)))

    def from_noise(
        self, terms: Terms, n: int, walk: Walk = Walk(), combine: Combine = only, watch: bool = False, show: bool = True
    ) -> tuple[Tensor, list[Tensor]]:
        """n images of a formula, (n, C, H, W) in [0, 1] on the CPU; to `watch` is to get those on the way as well."""
        walk = self.settled(walk)
        levels = self.timesteps(walk.steps, walk.sampler)
        self.prepare(terms, n, walk, combine)
        return self.draw(self._path(terms, walk, levels, combine), n, len(levels) - 1, walk, watch, show)

    def draw(
        self, path: Path, n: int, steps: int, walk: Walk, watch: bool = False, show: bool = True
    ) -> tuple[Tensor, list[Tensor]]:
        """The last images of n walks (see walk.py), in [0, 1], and those on the way, as `from_noise` returns them."""
        x, states = draw(path, n, steps, walk, watch, show)
        return self.to_unit(x), [self.to_unit(state) for state in states]

    def prepare(self, terms: Terms, n: int, walk: Walk, combine: Combine = only) -> None:
        """Ask for memory and weights before the first step: stage II's plan, then the plan of n images, then the
        prompts. The weights of stage II are let go of. Raises ValueError."""
        self._draws()
        self._prepare(terms, n, walk, combine)

    def enlarge(
        self,
        x: Tensor,
        terms: Terms,
        combine: Combine = only,
        views: Sequence[View] = (),
        keep: tuple[Tensor, Tensor] | None = None,
        walk: Walk = Walk(),
        show: bool = True,
    ) -> Tensor:
        """Images (N, 3, h, w) in [0, 1] enlarged by stage II, which walks the same formula; as they are where there is
        none. A stage II enlarges them itself, with the walk's steps, scale and batch, which are else those of stage I.

        views: what a term sees through a view, it sees through it in the low resolution too
        keep:  (1 - mask, x_orig): where the mask is 0, the images stay x_orig (N, 3, H, W) in [-1, 1]
        """
        if self.low is None and self.large is None:
            return x
        if self.low is None:
            self.release()
            own = replace(walk, steps=None, scale=None, batch=None)
            return self.large.enlarge(x, terms, combine, views, keep, own, show)
        walk = self.settled(replace(walk, seed=walk.seed + 1))  # other noise than that of stage I
        levels, n = self.timesteps(walk.steps, walk.sampler), len(x)
        self._prepare(terms, n, walk, combine)
        path = self._path(terms, walk, levels, combine, x, views, keep)
        return self.draw(path, n, len(levels) - 1, walk, show=show)[0]

    def of_part(self, terms: Terms, part: range, walk: Walk, combine: Combine = only, lows=None) -> Denoiser:
        """The formula for the images in a part of range(n), as a settled walk asks it."""
        words = [words if len(words) == 1 else words[part.start : part.stop] for words in terms]
        return self.formula(words, combine, walk.scale, walk.sequential, lows)

    def picture(self, source) -> Tensor:
        """A picture of yours, (1, C, H, W) in `pixels`: its centre, scaled; for digits, ink on paper becomes light on
        black."""
        from minidiff import pictures  # Pillow is needed by those who read pictures alone

        x = pictures.read(source, self.shape[1:], self.shape[0], *self.pixels)
        return sum(self.pixels) - x if self.words is not None and pictures.inked(x, *self.pixels) else x

    def to_unit(self, x: Tensor) -> Tensor:
        """Images in `pixels` -> in [0, 1], cut off outside, on the CPU."""
        low, high = self.pixels
        return ((x - low) / (high - low)).clamp(0, 1).cpu()

    def _walks(self) -> None:
        if self.alpha_bar is None:
            raise ValueError(f"{self.name} denoises in one step and has no levels to walk: use `unet`, or mnist-class")

    def _answer(self, x_t: Tensor, t: int, c: Any) -> tuple[Tensor, Tensor | None]:
        """The network's; it was trained on levels 1 … T and says anything of others."""
        T = len(self.alpha_bar) - 1
        if not 1 <= t <= T:
            raise ValueError(f"{self.name} knows the levels 1 to {T}, got {t}: walk with its own `alpha_bar`")
        return self.network(x_t, t, c)

    def _draws(self) -> None:
        if self.low is not None:
            raise ValueError(f"{self.name} is a stage II, which enlarges pictures: expected a stage I, or `enlarge`")

    def _prepare(self, terms: Terms, n: int, walk: Walk, combine: Combine) -> None:
        terms = [self.known(words) for words in terms]
        if self.words is None:
            rows = 1 if walk.sequential else rows_of(terms, combine, walk.scale, self.shape)
            if self.large is not None:
                self.large.release()
                self.large.timesteps(None, walk.sampler)
                self.large.plan(rows, ())
            self.plan(min(n, walk.batch) * rows, all_words(terms))
        self.conditions(all_words(terms))

    def _path(self, terms, walk: Walk, levels: list[int], combine: Combine = only, x=None, views=(), keep=None) -> Path:
        """From noise down the levels; for x, views and keep see `enlarge`."""

        def path(part: range, noise: Noise) -> Iterator[tuple[int, Tensor]]:
            x_T, lows, constrain = noise(torch.empty(len(part), *self.shape, device=self.device)), None, None
            if x is not None:
                low = self.low((2 * x[part] - 1).to(self.device), noise)
                lows = [view.apply(low) for view in views] if views else [low] * len(terms)
            if keep is not None:
                held, x_orig = (a.to(self.device) for a in keep)
                constrain = editing.hold(lambda x: held * x, x_orig[part], self.alpha_bar, noise)
            denoise = self.of_part(terms, part, walk, combine, lows)
            how = {"step": walk.step(), "clip": self.clip, "constrain": constrain, "noise": noise}
            return sampling.sample(denoise, x_T, levels, self.alpha_bar, **how)

        return path
