"""A verifier of pictures of shapes that looks only at their pixels, in place of GenEval's detector.

Objects are detected by the strength of their colour, so any grey background works. An object's colour is its hue, and
its shape is the one whose drawing with the same centre and area is most similar. Relations are judged as in GenEval
 (Ghosh et al. 2023, arXiv 2310.11513, section 3.2): by the direction from centre to centre.
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

from penchant.api import ConfigError, require_extra
from penchant.recipes.self_improve.shapes import (
    AREAS,
    COLORS,
    SHAPES,
    SIDES,
    Condition,
    Count,
    Floats,
    ObjectSpec,
    Picture,
    Prompt,
    Relation,
    Shape,
    coverage,
    prompts,
)
from penchant.recipes.self_improve.verifying import Verdict, met_share

if TYPE_CHECKING:
    Mask = npt.NDArray[np.bool_]
    Complexes = npt.NDArray[np.complex128]

HUE_CIRCLE = np.exp(2j * math.pi / 3 * np.array([0, 1, 2]))
"""Directions of red, green and blue on the hue circle, as complex numbers; the channels of a grey cancel."""
HUES = {name: complex(HUE_CIRCLE @ np.array(color)) for name, color in COLORS.items()}

MIN_COLOR_STRENGTH = 0.55
"""Minimum colour strength of an object's pixels: a full red has 1.8 and the palest colour, green, 1.3."""
MIN_OBJECT_SHARE, MAX_SPECK_SHARE = 0.012, 0.04
"""Minimum share of the picture of an object, smaller components are specks; and maximum total share of specks."""
MAX_COLORED_SHARE = 0.75
"""Maximum share of coloured pixels in a picture; above it there is no background."""
MIN_HUE_COHERENCE = 0.95
"""Minimum length of the mean direction of an object's hues; two equal parts 36 degrees apart are just below it."""
MAX_HUE_ANGLE = math.radians(20)
"""Maximum angle between an object's hue and the nearest colour's, in radians."""
MAX_SHAPE_ERROR = 0.35
"""Maximum of 1 minus the cosine of an object and the drawing of its shape, times its width in pixels: good copies
differ at the edge, and the edge's share of an object falls with its width."""
DRAWING_BLUR = 0.5
"""Standard deviation of the Gaussian blur of the drawings, in pixels: a model's edges are rarely sharp."""
MIN_SIDE_COSINE = 0.5
"""Minimum cosine of the angle between the direction to an object and the side it is on, as in GenEval."""


@dataclass(frozen=True)
class DetectedObject:
    """An object detected in a picture: shape and colour, None if unknown, and its centre of mass in pixels."""

    shape: Shape | None
    color: str | None
    x: float
    y: float

    def matches(self, spec: ObjectSpec) -> bool:
        """Whether the object has the shape and, where one is given, the colour."""
        return self.shape == spec.shape and (spec.color is None or self.color == spec.color)


def conditions(prompt: str, image: Picture) -> Verdict:
    """The verdict of `check` for a prompt's text, as a recipe's `verifier.function`.

    Raises:
        ConfigError: the text is not a prompt of this world.
    """
    parsed_prompt = _prompts().get(prompt)
    if parsed_prompt is None:
        raise ConfigError(f"{prompt!r} is no prompt of the world of shapes", fix="draw prompts by shapes.draw_prompts")
    return check(image, parsed_prompt)


@cache
def _prompts() -> dict[str, Prompt]:
    return {prompt.text: prompt for prompt in prompts()}


def check(image: Picture, prompt: Prompt) -> Verdict:
    """The verdict on a picture, [3, size, size] in [-1, 1], from its pixels.

    Raises:
        ConfigError: scipy is missing.
        ValueError: the picture has another shape.
    """
    return judge(detect_objects(image), prompt)


def judge(objects: tuple[DetectedObject, ...], prompt: Prompt) -> Verdict:
    """The verdict on the detected objects; objects that no condition names are ignored, as in GenEval."""
    conditions_met = tuple(_is_met(condition, objects) for condition in prompt.conditions)
    critiques = [
        _critique(condition, objects)
        for condition, fine in zip(prompt.conditions, conditions_met, strict=True)
        if not fine
    ]
    return Verdict(conditions_met, met_share(conditions_met), "; ".join(critiques))


def _is_met(condition: Condition, objects: tuple[DetectedObject, ...]) -> bool:
    if isinstance(condition, Count):
        return sum(item.matches(condition.target) for item in objects) == condition.number
    subjects, anchors = (
        [item for item in objects if item.matches(spec)] for spec in (condition.subject, condition.anchor)
    )
    pairs = list(product(subjects, anchors))
    return bool(pairs) and all(_faces(a.x - b.x, a.y - b.y, SIDES[condition.side]) for a, b in pairs)


def _faces(right: float, down: float, side: tuple[int, int]) -> bool:
    return right * side[0] + down * side[1] > MIN_SIDE_COSINE * math.hypot(right, down)


def _critique(condition: Condition, objects: tuple[DetectedObject, ...]) -> str:
    if isinstance(condition, Relation):
        return f"the {condition.subject} is not {condition.side} the {condition.anchor}"
    number = sum(item.matches(condition.target) for item in objects)
    if number == 1:
        return f"there is 1 {condition.target}, expected {condition.number}"
    return f"there are {number or 'no'} {condition.target.plural}, expected {condition.number}"


def detect_objects(image: Picture) -> tuple[DetectedObject, ...]:
    """The objects in a picture, [3, size, size] in [-1, 1], from top to bottom.

    A picture with values that are not finite, with hardly any background, or with many specks has none.

    Raises:
        ConfigError: scipy is missing.
        ValueError: the picture has another shape.
    """
    if image.ndim != 3 or image.shape[0] != 3 or image.shape[1] != image.shape[2]:
        raise ValueError(f"a picture of shape {image.shape}, expected (3, size, size)")
    if not np.isfinite(image).all():
        return ()
    hues = np.tensordot(HUE_CIRCLE, image.clip(-1, 1), axes=1)
    colored = np.abs(hues) > MIN_COLOR_STRENGTH
    if colored.mean() > MAX_COLORED_SHARE:
        return ()
    parts = list(_parts(colored))
    specks = [part for part in parts if part.mean() < MIN_OBJECT_SHARE]
    if sum(part.mean() for part in specks) > MAX_SPECK_SHARE:
        return ()
    return tuple(_identify(hues, part, _with_edge(part, colored)) for part in parts if part.mean() >= MIN_OBJECT_SHARE)


def _parts(colored: Mask) -> Iterator[Mask]:
    labels, number = _ndimage().label(colored)
    return (labels == label for label in range(1, number + 1))


def _with_edge(part: Mask, colored: Mask) -> Mask:
    """A component grown by its soft edge, two pixels on all sides, without pixels next to another component."""
    grow = _ndimage().binary_dilation
    return grow(part, iterations=2) & ~grow(colored & ~part)


def _ndimage() -> Any:
    with require_extra("recipes", "looking at pictures needs scipy"):
        from scipy import ndimage
    return ndimage


def _identify(hues: Complexes, part: Mask, around: Mask) -> DetectedObject:
    strengths = np.abs(hues[part])
    mean = complex(hues[part].sum() / strengths.sum())
    if abs(mean) < MIN_HUE_COHERENCE:
        return DetectedObject(None, None, *_centre(part.astype(np.float64)))
    # Pixels at the edge are mixed with the background; the stronger half has the object's full colour.
    full = strengths[strengths >= np.median(strengths)].mean()
    cover = np.where(around, (hues * mean.conjugate()).real / (abs(mean) * full), 0.0).clip(0, 1.5)
    return DetectedObject(_shape(cover), _color(mean), *_centre(cover))


def _centre(cover: Floats) -> tuple[float, float]:
    axis = np.arange(0.5, len(cover))
    return float(cover.sum(0) @ axis / cover.sum()), float(cover.sum(1) @ axis / cover.sum())


def _color(mean: complex) -> str | None:
    distances = {name: abs(np.angle(mean / hue)) for name, hue in HUES.items()}
    nearest = min(distances, key=distances.__getitem__)
    return nearest if distances[nearest] < MAX_HUE_ANGLE else None


def _shape(cover: Floats) -> Shape | None:
    """The shape whose drawing with the same centre and area is most similar to the cover; None if none is close."""
    widths = {shape: math.sqrt(cover.sum() / share) for shape, share in AREAS.items()}
    similarities = {shape: _similarity(cover, shape, width) for shape, width in widths.items()}
    best = max(SHAPES, key=similarities.__getitem__)
    return best if 1 - similarities[best] < MAX_SHAPE_ERROR / widths[best] else None


def _similarity(cover: Floats, shape: Shape, width: float) -> float:
    x, y = _centre(cover)
    # A triangle's centre of mass lies a sixth of its height below the centre of its box.
    middle = y - width / 6 if shape == "triangle" else y
    drawing = _ndimage().gaussian_filter(coverage(shape, x, middle, width, len(cover)), DRAWING_BLUR)
    return float((cover * drawing).sum() / (np.linalg.norm(cover) * np.linalg.norm(drawing)))
