"""A verifier of pictures of shapes that sees nothing but their pixels, in place of GenEval's detector.

Things are found by the strength of their colour, so any grey background will do; each is named by its hue, and by the
shape whose drawing, with the centre and the area found, is most like it. What is on which side of what is judged as in
GenEval (Ghosh et al. 2023, arXiv 2310.11513, section 3.2): by the direction from centre to centre.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from penchant.errors import ConfigError, require_extra
from penchant.recipes.self_improve.shapes import (
    AREAS,
    COLORS,
    SHAPES,
    SIDES,
    Condition,
    Count,
    Floats,
    Picture,
    Prompt,
    Relation,
    Shape,
    Thing,
    coverage,
    prompts,
)
from penchant.recipes.self_improve.verifying import Verdict, share

if TYPE_CHECKING:
    Mask = npt.NDArray[np.bool_]
    Complexes = npt.NDArray[np.complex128]

WHEEL = np.exp(2j * math.pi / 3 * np.array([0, 1, 2]))
"""Where red, green and blue stand on the wheel of hues; a grey's parts cancel."""
HUES = {name: complex(WHEEL @ np.array(color)) for name, color in COLORS.items()}

COLORED = 0.55
"""The least strength of colour of a thing's pixels: a full red has 1.8 and the palest of the palette, green, 1.3."""
SPECK, DUST = 0.012, 0.04
"""Shares of the picture: components smaller than the first are specks, and more specks than the second are a mess."""
FULLEST = 0.75
"""The greatest share of the picture that can be in colour and still leave a background."""
ONE_HUE = 0.95
"""The least length of the mean direction of a thing's hues; two hues in equal parts have less from 36 degrees apart."""
NEAR_HUE = math.radians(20)
"""How far a thing's hue may be from that of the nearest colour."""
UNLIKE = 0.35
"""How far below 1 the cosine of a thing and the drawing of its shape may be, times its width in pixels: a good copy
goes wrong at the edge, and the edge's share of the thing falls with its width."""
SOFT = 0.5
"""The blur of the drawings, the standard deviation of a Gaussian in pixels: a model's edges are rarely sharp."""
FACING = 0.5
"""The least cosine of the angle between the direction to a thing and the side it is on, as in GenEval."""


@dataclass(frozen=True)
class Seen:
    """A thing found in a picture: its shape and colour, None where none of the known, and its centre of mass."""

    shape: Shape | None
    color: str | None
    x: float
    y: float

    def is_a(self, thing: Thing) -> bool:
        return self.shape == thing.shape and (thing.color is None or self.color == thing.color)


def conditions(prompt: str, image: Picture) -> Verdict:
    """For a recipe's `verifier.function`: `check` by a prompt's text.

    Raises:
        ConfigError: it is no prompt of this world.
    """
    known = _prompts().get(prompt)
    if known is None:
        raise ConfigError(f"{prompt!r} is no prompt of the world of shapes", fix="draw prompts by shapes.draw_prompts")
    return check(image, known)


@cache
def _prompts() -> dict[str, Prompt]:
    return {prompt.text: prompt for prompt in prompts()}


def check(image: Picture, prompt: Prompt) -> Verdict:
    """The verdict on a picture, [3, size, size] in [-1, 1], from its pixels alone.

    Raises:
        ConfigError: scipy is missing.
        ValueError: the picture is not of that shape.
    """
    return judge(look(image), prompt)


def judge(seen: tuple[Seen, ...], prompt: Prompt) -> Verdict:
    """The verdict on what was seen; things that no condition names are not held against a picture, as in GenEval."""
    met = tuple(_holds(condition, seen) for condition in prompt.conditions)
    missing = [_missing(condition, seen) for condition, holds in zip(prompt.conditions, met, strict=True) if not holds]
    return Verdict(met, share(met), "; ".join(missing))


def _holds(condition: Condition, seen: tuple[Seen, ...]) -> bool:
    if isinstance(condition, Count):
        return sum(thing.is_a(condition.thing) for thing in seen) == condition.number
    firsts, seconds = ([thing for thing in seen if thing.is_a(it)] for it in (condition.first, condition.second))
    pairs = list(product(firsts, seconds))
    return bool(pairs) and all(_faces(a.x - b.x, a.y - b.y, SIDES[condition.side]) for a, b in pairs)


def _faces(right: float, down: float, side: tuple[int, int]) -> bool:
    return right * side[0] + down * side[1] > FACING * math.hypot(right, down)


def _missing(condition: Condition, seen: tuple[Seen, ...]) -> str:
    if isinstance(condition, Relation):
        return f"the {condition.first} is not {condition.side} the {condition.second}"
    number = sum(thing.is_a(condition.thing) for thing in seen)
    if number == 1:
        return f"there is 1 {condition.thing}, expected {condition.number}"
    return f"there are {number or 'no'} {condition.thing.plural}, expected {condition.number}"


def look(image: Picture) -> tuple[Seen, ...]:
    """The things in a picture, [3, size, size] in [-1, 1], from above to below.

    Nothing is seen in a picture with values that are not finite, with hardly any background, or full of specks.

    Raises:
        ConfigError: scipy is missing.
        ValueError: the picture is not of that shape.
    """
    if image.ndim != 3 or image.shape[0] != 3 or image.shape[1] != image.shape[2]:
        raise ValueError(f"a picture of shape {image.shape}, expected (3, size, size)")
    if not np.isfinite(image).all():
        return ()
    hues = np.tensordot(WHEEL, image.clip(-1, 1), axes=1)
    colored = np.abs(hues) > COLORED
    if colored.mean() > FULLEST:
        return ()
    parts = list(_parts(colored))
    specks = [part for part in parts if part.mean() < SPECK]
    if sum(part.mean() for part in specks) > DUST:
        return ()
    return tuple(_see(hues, part, _surround(part, colored)) for part in parts if part.mean() >= SPECK)


def _parts(colored: Mask) -> Iterator[Mask]:
    labels, number = _ndimage().label(colored)
    return (labels == label for label in range(1, number + 1))


def _surround(part: Mask, colored: Mask) -> Mask:
    """A component with its soft edge: two pixels more all round, but none that touches another component."""
    grow = _ndimage().binary_dilation
    return grow(part, iterations=2) & ~grow(colored & ~part)


def _ndimage() -> Any:
    with require_extra("recipes", "looking at pictures needs scipy"):
        from scipy import ndimage
    return ndimage


def _see(hues: Complexes, part: Mask, around: Mask) -> Seen:
    strengths = np.abs(hues[part])
    mean = complex(hues[part].sum() / strengths.sum())
    if abs(mean) < ONE_HUE:
        return Seen(None, None, *_centre(part.astype(np.float64)))
    # Pixels at the edge are mixed with the background; the stronger half shows the colour itself.
    full = strengths[strengths >= np.median(strengths)].mean()
    cover = np.where(around, (hues * mean.conjugate()).real / (abs(mean) * full), 0.0).clip(0, 1.5)
    return Seen(_shape(cover), _color(mean), *_centre(cover))


def _centre(cover: Floats) -> tuple[float, float]:
    axis = np.arange(0.5, len(cover))
    return float(cover.sum(0) @ axis / cover.sum()), float(cover.sum(1) @ axis / cover.sum())


def _color(mean: complex) -> str | None:
    distances = {name: abs(np.angle(mean / hue)) for name, hue in HUES.items()}
    nearest = min(distances, key=distances.__getitem__)
    return nearest if distances[nearest] < NEAR_HUE else None


def _shape(cover: Floats) -> Shape | None:
    """The shape whose drawing of the same centre and area is most like the cover, if it is like enough."""
    widths = {shape: math.sqrt(cover.sum() / share) for shape, share in AREAS.items()}
    likeness = {shape: _likeness(cover, shape, width) for shape, width in widths.items()}
    best = max(SHAPES, key=likeness.__getitem__)
    return best if 1 - likeness[best] < UNLIKE / widths[best] else None


def _likeness(cover: Floats, shape: Shape, width: float) -> float:
    x, y = _centre(cover)
    # A triangle's centre of mass lies a sixth of its height below the centre of its box.
    middle = y - width / 6 if shape == "triangle" else y
    drawing = _ndimage().gaussian_filter(coverage(shape, x, middle, width, len(cover)), SOFT)
    return float((cover * drawing).sum() / (np.linalg.norm(cover) * np.linalg.norm(drawing)))
