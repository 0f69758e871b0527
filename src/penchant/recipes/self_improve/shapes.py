"""The world of the self-improvement recipe: small pictures of coloured shapes, and prompts that say what is in them.

The prompts have the six tasks of GenEval (Ghosh et al. 2023, arXiv 2310.11513, section 3) and its four relations. Where
GenEval asks for at least one of a thing in every task but counting, this world asks for exactly one: its pictures hold
nothing that the prompt does not name. Lengths are in pixels, x runs right and y down from the upper left corner.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import permutations, product
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from penchant.errors import ConfigError

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
"""For each relation the unit vector (x, y) that points from the second thing to the first."""
MIRRORED: dict[Side, Side] = {"right of": "left of", "below": "above"}
"""The relations that are others told from the second thing."""
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
"""The share of its bounding box, a square, that each shape fills."""

SMALLEST, LARGEST = 16, 32
BACKGROUND, GRAIN = 0.85, 0.02
"""Mean and standard deviation of every channel where no thing is, in [-1, 1]."""
WIDTHS = (0.3, 0.42)
"""The bounds of a thing's width, in shares of the picture's."""
CROWDED = 0.62
"""Of `n` things none is wider than this by the root of `n`: four of the widest would hardly ever find room."""
MARGIN, GAP = 0.5, 2.0
"""The least distance of things from the picture's edge and from each other, in pixels."""
ATTEMPTS = 256
"""Arrangements drawn at once, of which the first that fits is taken."""


@dataclass(frozen=True)
class Thing:
    """A shape of a colour, or, where the colour is None, of any."""

    shape: Shape
    color: str | None = None

    def __str__(self) -> str:
        return self.shape if self.color is None else f"{self.color} {self.shape}"

    @property
    def plural(self) -> str:
        return f"{self}es" if self.shape == "cross" else f"{self}s"

    @property
    def with_article(self) -> str:
        return f"an {self}" if self.color == "orange" else f"a {self}"


@dataclass(frozen=True)
class Count:
    """The condition that there are exactly `number` of a thing."""

    thing: Thing
    number: int = 1


@dataclass(frozen=True)
class Relation:
    """The condition that the first thing is on a side of the second."""

    first: Thing
    side: Side
    second: Thing


Condition = Count | Relation


@dataclass(frozen=True)
class Prompt:
    """A text, and what must be seen in a picture of it."""

    task: Task
    text: str
    conditions: tuple[Condition, ...]


@dataclass(frozen=True)
class Placed:
    """A shape in a picture: its colour, and the centre and width of its bounding box."""

    shape: Shape
    color: str
    x: float
    y: float
    width: float


def prompts() -> list[Prompt]:
    """Every prompt of this world, task by task; two things of a prompt differ in shape and, where named, in colour."""
    shapes = [Thing(shape) for shape in SHAPES]
    colored = [Thing(shape, color) for shape, color in product(SHAPES, COLORS)]
    pairs = [(a, b) for a, b in permutations(colored, 2) if a.shape != b.shape and a.color != b.color]
    return [
        *(_one("single_object", thing) for thing in shapes),
        *(_both("two_object", first, second) for first, second in permutations(shapes, 2)),
        *(
            Prompt("counting", f"{word} {thing.plural}", (Count(thing, number),))
            for thing, (number, word) in product(shapes + colored, NUMBERS.items())
        ),
        *(_one("colors", thing) for thing in colored),
        *(_beside(first, side, second) for (first, second), side in product(pairs, SIDES)),
        *(_both("color_attr", first, second) for first, second in pairs),
    ]


def _one(task: Task, thing: Thing) -> Prompt:
    return Prompt(task, thing.with_article, (Count(thing),))


def _both(task: Task, first: Thing, second: Thing) -> Prompt:
    return Prompt(task, f"{first.with_article} and {second.with_article}", (Count(first), Count(second)))


def _beside(first: Thing, side: Side, second: Thing) -> Prompt:
    conditions = (Count(first), Count(second), Relation(first, side, second))
    return Prompt("position", f"{first.with_article} {side} {second.with_article}", conditions)


def distinct(told: Iterable[Prompt]) -> list[Prompt]:
    """The first prompt of each meaning: "a circle and a square" and "a square and a circle" have one.

    Of such twins, one could be held out and the other tried.
    """
    firsts: dict[frozenset[Condition], Prompt] = {}
    for prompt in told:
        firsts.setdefault(frozenset(map(_from_one_side, prompt.conditions)), prompt)
    return list(firsts.values())


def _from_one_side(condition: Condition) -> Condition:
    if isinstance(condition, Relation) and condition.side in MIRRORED:
        return Relation(condition.second, MIRRORED[condition.side], condition.first)
    return condition


def draw_prompts(n: int, seed: int) -> list[Prompt]:
    """`n` random prompts, the tasks in turn and so in equal shares; small tasks repeat theirs."""
    rng = random.Random(f"shapes {seed}")
    by_task = _by_task()
    return [rng.choice(by_task[TASKS[place % len(TASKS)]]) for place in range(n)]


@cache
def _by_task() -> dict[Task, list[Prompt]]:
    # Kept: a model from nothing is trained on thousands of draws.
    every = prompts()
    return {task: [prompt for prompt in every if prompt.task == task] for task in TASKS}


def render(prompt: Prompt, size: int, draw: np.random.Generator) -> Picture:
    """A random picture of one of `prompts`: places, widths and unnamed colours are drawn.

    Raises:
        ConfigError: the size is not within 16 to 32.
    """
    return paint(arrange(prompt, size, draw), size, draw)


def arrange(prompt: Prompt, size: int, draw: np.random.Generator) -> tuple[Placed, ...]:
    """Random things that meet the prompt's conditions and do not overlap.

    Raises:
        ConfigError: the size is not within 16 to 32.
    """
    if not SMALLEST <= size <= LARGEST:
        raise ConfigError(f"pictures of {size} pixels, expected {SMALLEST} to {LARGEST}", fix=f"use {LARGEST} pixels")
    counts = [condition for condition in prompt.conditions if isinstance(condition, Count)]
    named = [count.thing for count in counts for _ in range(count.number)]
    colors = [thing.color or str(draw.choice(list(COLORS))) for thing in named]
    sides = [SIDES[condition.side] for condition in prompt.conditions if isinstance(condition, Relation)]
    widest = min(WIDTHS[1], CROWDED / math.sqrt(len(named)))
    while True:
        widths = draw.uniform(WIDTHS[0], widest, (ATTEMPTS, len(named))) * size
        free = size - widths - 2 * MARGIN
        centres = draw.random((2, ATTEMPTS, len(named))) * free + widths / 2 + MARGIN
        fits = _apart(centres, widths) & np.all([_beyond(centres, side) for side in sides], axis=0)
        if fits.any():
            first = int(fits.argmax())
            places = zip(named, colors, *centres[:, first].tolist(), widths[first].tolist(), strict=True)
            return tuple(Placed(thing.shape, color, x, y, width) for thing, color, x, y, width in places)


def _apart(centres: Floats, widths: Floats) -> npt.NDArray[np.bool_]:
    """Of each attempt, whether the bounding boxes of its things leave the gap; centres [2, attempts, things]."""
    far = np.abs(centres[..., :, None] - centres[..., None, :]).max(axis=0)
    room = far - (widths[:, :, None] + widths[:, None, :]) / 2
    return (room >= GAP)[:, *np.triu_indices(widths.shape[1], 1)].all(axis=1)


def _beyond(centres: Floats, side: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Of each attempt, whether the first thing is within 45 degrees of that side of the second."""
    offset = centres[..., 0] - centres[..., 1]
    along = side[0] * offset[0] + side[1] * offset[1]
    return along >= np.abs(offset).max(axis=0)


def paint(scene: tuple[Placed, ...], size: int, draw: np.random.Generator) -> Picture:
    """The picture of placed things, with soft edges, on a light background with grain."""
    picture = np.full((3, size, size), BACKGROUND) + draw.normal(0, GRAIN, (3, size, size))
    for placed in scene:
        cover = coverage(placed.shape, placed.x, placed.y, placed.width, size)
        picture += cover * (np.array(COLORS[placed.color])[:, None, None] - picture)
    return picture.astype(np.float32)


def coverage(shape: Shape, x: float, y: float, width: float, size: int) -> Floats:
    """[size, size], the share of each pixel within a shape whose bounding box has this centre; edges one pixel wide."""
    axis = np.arange(0.5, size)
    across, down = np.abs(axis - x)[None, :], (axis - y)[:, None]
    return (0.5 + _depth(shape, across, down, width / 2)).clip(0, 1)


def _depth(shape: Shape, across: Floats, down: Floats, half: float) -> Floats:
    """How deep inside the shape points lie, negative outside, from their distances from its centre."""
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
