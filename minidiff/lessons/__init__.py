"""The lessons: one function an experiment, named as its command of sample.py.

A lesson takes words, a model (or its name) and plain values, and returns a Result. It prints nothing, writes no file
and changes no argument. Its docstring describes the arguments of its own; those of a walk are described in Walk, those
of a model in `minidiff.load`: sample.py makes its command line from all three.
"""

from minidiff.lessons.drawing import digits, guidance, text
from minidiff.lessons.editing import edit, inpaint, logo, upscale
from minidiff.lessons.illusions import anagram, colour, hybrid, triple
from minidiff.lessons.measuring import embed, score
from minidiff.lessons.noising import blur, denoise, noise, onestep, ood

LESSONS = (
    digits, text, guidance, denoise, edit, inpaint, anagram, hybrid, triple, colour, logo, upscale, embed, score,
    noise, blur, onestep, ood,
)  # fmt: skip

__all__ = [lesson.__name__ for lesson in LESSONS]
