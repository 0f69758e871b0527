"""The world of self_improve_pictures.yaml: pictures of coloured shapes, prompts that describe them, and their verifier.

The prompts have the six tasks of GenEval (Ghosh et al. 2023, arXiv 2310.11513, section 3) and its four relations. Where
GenEval asks for at least one of an object in every task but counting, this world asks for exactly one: its pictures
have no object that the prompt does not name. Lengths are in pixels, x runs right and y down from the upper left corner.

The verifier looks only at a picture's pixels, in place of GenEval's detector. Objects are detected by the strength of
their colour, so any grey background works. An object's colour is its hue, and its shape is the one whose drawing with
the same centre and area is most similar. Relations are judged as in GenEval (section 3.2): by the direction from centre
to centre.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import permutations, product
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from penchant.api import ConfigError, require_extra
from penchant.recipes.self_improve.verifying import Verdict, met_share

if TYPE_CHECKING:
    Mask = npt.NDArray[np.bool_]
    Complexes = npt.NDArray[np.complex128]

Task = Literal["single_object", "two_object", "counting", "colors", "position", "color_attr"]
"""GenEval's names of its tasks."""
Shape = Literal["circle", "square", "triangle", "cross"]
Side = Literal["left of", "right of", "above", "below"]
Picture = npt.NDArray[np.float32]
"""[3, size, size], RGB in [-1, 1]."""
Floats = npt.NDArray[np.float64]

TASKS: tuple[Task, ...] = get_args(Task)
SHAPES: tuple[Shape, ...] = get_args(Shape)
SIDES: dict[Side, tuple[int, int]] = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
"""Unit vector (x, y) from the anchor to the subject, by relation."""
MIRRORED: dict[Side, Side] = {"right of": "left of", "below": "above"}
"""Relations mapped to the equal relation with subject and anchor exchanged."""
COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.9, -0.9, -0.9),
    "orange": (0.95, 0.05, -0.95),
    "yellow": (0.9, 0.8, -0.95),
    "green": (-0.9, 0.5, -0.7),
    "blue": (-0.9, -0.5, 0.85),
    "purple": (0.2, -0.95, 0.65),
}
"""RGB in [-1, 1]; the hues are at least 25 degrees apart."""
NUMBERS = {2: "two", 3: "three", 4: "four"}
AREAS: dict[Shape, float] = {"circle": math.pi / 4, "square": 1.0, "triangle": 0.5, "cross": 5 / 9}
"""Share of the square bounding box that each shape fills."""

SMALLEST, LARGEST = 16, 32
BACKGROUND, GRAIN = 0.85, 0.02
"""Mean and standard deviation of every channel of the background, in [-1, 1]."""
WIDTHS = (0.3, 0.42)
"""Minimum and maximum width of an object, as shares of the picture's width."""
MAX_TOTAL_WIDTH = 0.62
"""Maximum width of an object times the root of the number of objects: four of the widest would rarely fit."""
MARGIN, GAP = 0.5, 2.0
"""Minimum distance of objects from the picture's edge and from each other, in pixels."""
ATTEMPTS = 256
"""Number of arrangements drawn at once; the first one that fits is used."""


@dataclass(frozen=True)
class ObjectSpec:
    """An object's shape and colour; any colour if it is None."""

    shape: Shape
    color: str | None = None

    def __str__(self) -> str:
        return self.shape if self.color is None else f"{self.color} {self.shape}"

    @property
    def plural(self) -> str:
        """The object's name in the plural."""
        return f"{self}es" if self.shape == "cross" else f"{self}s"

    @property
    def with_article(self) -> str:
        """The object's name with an indefinite article."""
        return f"an {self}" if self.color == "orange" else f"a {self}"


@dataclass(frozen=True)
class Count:
    """The condition that a picture has exactly `number` of an object."""

    target: ObjectSpec
    number: int = 1


@dataclass(frozen=True)
class Relation:
    """The condition that the subject is on a side of the anchor."""

    subject: ObjectSpec
    side: Side
    anchor: ObjectSpec


Condition = Count | Relation


@dataclass(frozen=True)
class Prompt:
    """A prompt's text and the conditions that its picture must meet."""

    task: Task
    text: str
    conditions: tuple[Condition, ...]


@dataclass(frozen=True)
class PlacedObject:
    """An object in a picture: shape, colour, and the centre and width of its bounding box in pixels."""

    shape: Shape
    color: str
    x: float
    y: float
    width: float


def prompts() -> list[Prompt]:
    """All prompts of this world by task; two objects of a prompt differ in shape and, where named, in colour."""
    shapes = [ObjectSpec(shape) for shape in SHAPES]
    colored = [ObjectSpec(shape, color) for shape, color in product(SHAPES, COLORS)]
    pairs = [(a, b) for a, b in permutations(colored, 2) if a.shape != b.shape and a.color != b.color]
    return [
        *(_single_prompt("single_object", shape) for shape in shapes),
        *(_pair_prompt("two_object", a, b) for a, b in permutations(shapes, 2)),
        *(
            Prompt("counting", f"{word} {spec.plural}", (Count(spec, number),))
            for spec, (number, word) in product(shapes + colored, NUMBERS.items())
        ),
        *(_single_prompt("colors", spec) for spec in colored),
        *(_relation_prompt(a, side, b) for (a, b), side in product(pairs, SIDES)),
        *(_pair_prompt("color_attr", a, b) for a, b in pairs),
    ]


def _single_prompt(task: Task, object_spec: ObjectSpec) -> Prompt:
    return Prompt(task, object_spec.with_article, (Count(object_spec),))


def _pair_prompt(task: Task, first_object: ObjectSpec, second_object: ObjectSpec) -> Prompt:
    return Prompt(
        task,
        f"{first_object.with_article} and {second_object.with_article}",
        (Count(first_object), Count(second_object)),
    )


def _relation_prompt(subject: ObjectSpec, side: Side, anchor: ObjectSpec) -> Prompt:
    conditions = (Count(subject), Count(anchor), Relation(subject, side, anchor))
    return Prompt("position", f"{subject.with_article} {side} {anchor.with_article}", conditions)


def unique_prompts(candidates: Iterable[Prompt]) -> list[Prompt]:
    """The first prompt of every meaning; "a circle and a square" and "a square and a circle" have the same meaning.

    Otherwise a training prompt could have the meaning of a held-out prompt.
    """
    by_meaning: dict[frozenset[Condition], Prompt] = {}
    for prompt in candidates:
        by_meaning.setdefault(frozenset(map(_from_one_side, prompt.conditions)), prompt)
    return list(by_meaning.values())


def _from_one_side(condition: Condition) -> Condition:
    if isinstance(condition, Relation) and condition.side in MIRRORED:
        return Relation(condition.anchor, MIRRORED[condition.side], condition.subject)
    return condition


def draw_prompts(n: int, seed: int) -> list[Prompt]:
    """`n` random prompts with the tasks in turn, so in equal shares; tasks with few prompts repeat them."""
    rng = random.Random(f"shapes {seed}")
    by_task = _by_task()
    return [rng.choice(by_task[TASKS[index % len(TASKS)]]) for index in range(n)]


@cache
def _by_task() -> dict[Task, list[Prompt]]:
    # Cached, since training a new model draws thousands of prompts.
    all_prompts = prompts()
    return {task: [prompt for prompt in all_prompts if prompt.task == task] for task in TASKS}


def render(prompt: Prompt, size: int, draw: np.random.Generator) -> Picture:
    """A random picture [3, size, size] of one of `prompts`; positions, widths and unnamed colours are drawn.

    Raises:
        ConfigError: the size is not within 16 to 32.
    """
    return paint(place_objects(prompt, size, draw), size, draw)


def place_objects(prompt: Prompt, size: int, draw: np.random.Generator) -> tuple[PlacedObject, ...]:
    """Random objects that meet the prompt's conditions and do not overlap.

    Raises:
        ConfigError: the size is not within 16 to 32.
    """
    if not SMALLEST <= size <= LARGEST:
        raise ConfigError(f"pictures of {size} pixels, expected {SMALLEST} to {LARGEST}", fix=f"use {LARGEST} pixels")
    counts = [condition for condition in prompt.conditions if isinstance(condition, Count)]
    objects = [count.target for count in counts for _ in range(count.number)]
    colors = [spec.color or str(draw.choice(list(COLORS))) for spec in objects]
    sides = [SIDES[condition.side] for condition in prompt.conditions if isinstance(condition, Relation)]
    widest = min(WIDTHS[1], MAX_TOTAL_WIDTH / math.sqrt(len(objects)))
    while True:
        widths = draw.uniform(WIDTHS[0], widest, (ATTEMPTS, len(objects))) * size
        free = size - widths - 2 * MARGIN
        centres = draw.random((2, ATTEMPTS, len(objects))) * free + widths / 2 + MARGIN
        fits = _without_overlap(centres, widths) & np.all([_on_side(centres, side) for side in sides], axis=0)
        if fits.any():
            index = int(fits.argmax())
            placements = zip(objects, colors, *centres[:, index].tolist(), widths[index].tolist(), strict=True)
            return tuple(PlacedObject(spec.shape, color, x, y, width) for spec, color, x, y, width in placements)


def _without_overlap(centres: Floats, widths: Floats) -> npt.NDArray[np.bool_]:
    """[attempts] whether the bounding boxes keep the gap, from centres [2, attempts, objects] and widths."""
    far = np.abs(centres[..., :, None] - centres[..., None, :]).max(axis=0)
    room = far - (widths[:, :, None] + widths[:, None, :]) / 2
    return (room >= GAP)[:, *np.triu_indices(widths.shape[1], 1)].all(axis=1)


def _on_side(centres: Floats, side: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """[attempts] whether the first object is within 45 degrees of that side of the second."""
    offset = centres[..., 0] - centres[..., 1]
    along = side[0] * offset[0] + side[1] * offset[1]
    return along >= np.abs(offset).max(axis=0)


def paint(scene: tuple[PlacedObject, ...], size: int, draw: np.random.Generator) -> Picture:
    """The picture [3, size, size] of placed objects, with soft edges, on a light background with noise."""
    picture = np.full((3, size, size), BACKGROUND) + draw.normal(0, GRAIN, (3, size, size))
    for item in scene:
        cover = coverage(item.shape, item.x, item.y, item.width, size)
        picture += cover * (np.array(COLORS[item.color])[:, None, None] - picture)
    return picture.astype(np.float32)


def coverage(shape: Shape, x: float, y: float, width: float, size: int) -> Floats:
    """[size, size], the share of each pixel within a shape whose bounding box has this centre; edges one pixel wide."""
    axis = np.arange(0.5, size)
    across, down = np.abs(axis - x)[None, :], (axis - y)[:, None]
    return (0.5 + _depth(shape, across, down, width / 2)).clip(0, 1)


def _depth(shape: Shape, across: Floats, down: Floats, half: float) -> Floats:
    """Distance of points from the shape's edge, negative outside, from their offsets from its centre."""
    match shape:
        case "circle":
            return half - np.hypot(across, down)
        case "square":
            return half - np.maximum(across, np.abs(down))
        case "triangle":
            # The slanted sides fall two down for one across.
            return np.minimum(half - down, (half + down - 2 * across) / math.sqrt(5))
        case "cross":
            high, arm = np.abs(down), half / 3
            return np.maximum(np.minimum(half - across, arm - high), np.minimum(arm - across, half - high))


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
    parsed_prompt = _prompts_by_text().get(prompt)
    if parsed_prompt is None:
        raise ConfigError(f"{prompt!r} is no prompt of the world of shapes", fix="draw prompts by shapes.draw_prompts")
    return check(image, parsed_prompt)


@cache
def _prompts_by_text() -> dict[str, Prompt]:
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
