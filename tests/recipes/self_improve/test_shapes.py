from __future__ import annotations

import math
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penchant.errors import ConfigError
from penchant.recipes.self_improve import shapes
from penchant.recipes.self_improve.shapes import Count, Placed, Prompt, Relation, Shape, Thing

ALL = shapes.prompts()
PER_TASK = {
    "single_object": 4,
    "two_object": 4 * 3,
    "counting": (4 + 4 * 6) * 3,
    "colors": 4 * 6,
    "position": (4 * 3) * (6 * 5) * 4,
    "color_attr": (4 * 3) * (6 * 5),
}


@pytest.mark.parametrize(
    ("task", "text", "conditions"),
    [
        ("single_object", "a cross", (Count(Thing("cross")),)),
        ("two_object", "a circle and a square", (Count(Thing("circle")), Count(Thing("square")))),
        ("counting", "two red circles", (Count(Thing("circle", "red"), 2),)),
        ("counting", "three squares", (Count(Thing("square"), 3),)),
        ("counting", "four orange crosses", (Count(Thing("cross", "orange"), 4),)),
        ("colors", "a green triangle", (Count(Thing("triangle", "green")),)),
        ("colors", "an orange square", (Count(Thing("square", "orange")),)),
        (
            "position",
            "a red circle left of a blue square",
            (
                Count(Thing("circle", "red")),
                Count(Thing("square", "blue")),
                Relation(Thing("circle", "red"), "left of", Thing("square", "blue")),
            ),
        ),
        (
            "position",
            "a purple triangle above an orange cross",
            (
                Count(Thing("triangle", "purple")),
                Count(Thing("cross", "orange")),
                Relation(Thing("triangle", "purple"), "above", Thing("cross", "orange")),
            ),
        ),
        (
            "color_attr",
            "a blue circle and a yellow square",
            (Count(Thing("circle", "blue")), Count(Thing("square", "yellow"))),
        ),
    ],
)
def test_prompts_and_conditions_by_hand(task: str, text: str, conditions: tuple[Count | Relation, ...]) -> None:
    (prompt,) = (prompt for prompt in ALL if prompt.text == text)
    assert prompt.task == task
    assert prompt.conditions == conditions


def test_every_combination_is_there_once() -> None:
    assert Counter(prompt.task for prompt in ALL) == PER_TASK
    assert len({prompt.text for prompt in ALL}) == len({prompt.conditions for prompt in ALL}) == len(ALL) == 1924
    assert shapes.prompts() == ALL


def _meaning(prompt: Prompt) -> tuple[object, ...]:
    """Counts as a set, and a relation as both ways of telling it."""
    counts = frozenset(condition for condition in prompt.conditions if isinstance(condition, Count))
    relations = [condition for condition in prompt.conditions if isinstance(condition, Relation)]
    ways = frozenset(
        way
        for told in relations
        for (x, y) in [shapes.SIDES[told.side]]
        for way in ((told.first, told.second, x, y), (told.second, told.first, -x, -y))
    )
    return counts, ways


def test_of_prompts_with_one_meaning_the_first_is_kept() -> None:
    single = shapes.distinct(ALL)
    assert Counter(prompt.task for prompt in single) == PER_TASK | {"two_object": 6, "position": 720, "color_attr": 180}
    assert len(single) == 1018
    firsts: dict[tuple[object, ...], Prompt] = {}
    for prompt in ALL:
        firsts.setdefault(_meaning(prompt), prompt)
    assert single == list(firsts.values())
    named = {prompt.text: prompt for prompt in ALL}
    for one, other in (
        ("a circle and a square", "a square and a circle"),
        ("a red circle left of a blue square", "a blue square right of a red circle"),
        ("a red circle below a blue square", "a blue square above a red circle"),
    ):
        assert shapes.distinct([named[other], named[one]]) == [named[other]]
        assert shapes.distinct([named[one], named[other]]) == [named[one]]
    apart = [named[text] for text in ("a red circle left of a blue square", "a red circle right of a blue square")]
    assert shapes.distinct(apart) == apart


def test_drawn_prompts_take_the_tasks_in_turn_and_depend_on_the_seed_alone() -> None:
    drawn = shapes.draw_prompts(600, 3)
    assert set(Counter(prompt.task for prompt in drawn).values()) == {100}
    assert drawn == shapes.draw_prompts(600, 3)
    assert drawn[:7] == shapes.draw_prompts(7, 3)
    assert drawn != shapes.draw_prompts(600, 4)
    # Pinned: recorded runs are only comparable with the same prompts.
    assert [prompt.text for prompt in shapes.draw_prompts(6, 0)] == [
        "a triangle",
        "a circle and a square",
        "three purple crosses",
        "an orange triangle",
        "a blue cross right of an orange triangle",
        "a yellow circle and an orange triangle",
    ]


def _meets(scene: tuple[Placed, ...], prompt: Prompt) -> bool:
    """Whether the labels meet the prompt, said again without the verifier."""
    for condition in prompt.conditions:
        if isinstance(condition, Count):
            if sum(_is(placed, condition.thing) for placed in scene) != condition.number:
                return False
        else:
            first, second = (next(p for p in scene if _is(p, thing)) for thing in (condition.first, condition.second))
            right, down = first.x - second.x, first.y - second.y
            angle = math.degrees(math.atan2(down, right)) % 360
            wanted = {"right of": 0, "below": 90, "left of": 180, "above": 270}[condition.side]
            if min((angle - wanted) % 360, (wanted - angle) % 360) > 45 + 1e-9:
                return False
    return True


def _is(placed: Placed, thing: Thing) -> bool:
    return placed.shape == thing.shape and thing.color in (None, placed.color)


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(ALL), st.integers(16, 32), st.integers(0, 2**32 - 1))
def test_arranged_things_meet_their_prompt_lie_within_the_picture_and_keep_apart(
    prompt: Prompt, size: int, seed: int
) -> None:
    scene = shapes.arrange(prompt, size, np.random.default_rng(seed))
    assert _meets(scene, prompt)
    assert len(scene) == sum(c.number for c in prompt.conditions if isinstance(c, Count))
    for placed in scene:
        assert 0.3 * size <= placed.width <= 0.42 * size
        assert min(placed.x, placed.y) >= placed.width / 2 + 0.5 - 1e-9
        assert max(placed.x, placed.y) <= size - placed.width / 2 - 0.5 + 1e-9
    for one, other in combinations(scene, 2):
        reach = (one.width + other.width) / 2
        assert max(abs(one.x - other.x), abs(one.y - other.y)) - reach >= 2 - 1e-9


def test_what_the_prompt_leaves_open_is_random() -> None:
    (prompt,) = (prompt for prompt in ALL if prompt.text == "three squares")
    draw = np.random.default_rng(0)
    scenes = [shapes.arrange(prompt, 32, draw) for _ in range(400)]
    colors = Counter(placed.color for scene in scenes for placed in scene)
    assert set(colors) == set(shapes.COLORS)
    # 1200 draws among 6: five standard deviations of 200 are 65.
    assert all(abs(number - 200) < 65 for number in colors.values())
    assert sum(len({placed.color for placed in scene}) == 3 for scene in scenes) / 400 == pytest.approx(5 / 9, abs=0.1)
    # Every quarter of the picture gets its share of centres.
    quarters = Counter((placed.x > 16, placed.y > 16) for scene in scenes for placed in scene)
    assert all(abs(number - 300) < 75 for number in quarters.values())


@pytest.mark.parametrize("size", [15, 33, 0])
def test_sizes_out_of_bounds_are_refused(size: int) -> None:
    with pytest.raises(ConfigError, match=f"pictures of {size} pixels, expected 16 to 32") as refused:
        shapes.render(ALL[0], size, np.random.default_rng(0))
    assert refused.value.fix == "use 32 pixels"


@pytest.mark.parametrize("size", [16, 21, 32])
def test_a_picture_is_a_function_of_its_generator_and_in_range(size: int) -> None:
    first, again, other = (shapes.render(ALL[100], size, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.shape == (3, size, size)
    assert first.dtype == np.float32
    assert -1 <= first.min() < -0.5 < 0.8 < first.max() <= 1


def test_the_background_is_light_with_little_grain() -> None:
    blank = shapes.paint((), 32, np.random.default_rng(0))
    assert blank.mean() == pytest.approx(0.85, abs=0.002)
    assert blank.std() == pytest.approx(0.02, abs=0.001)


@pytest.mark.parametrize("color", list(shapes.COLORS))
def test_a_things_inside_is_its_colour(color: str) -> None:
    picture = shapes.paint((Placed("square", color, 8.0, 10.0, 6.0),), 16, np.random.default_rng(0))
    inside = picture[:, 7:13, 5:11].reshape(3, -1)
    np.testing.assert_allclose(inside, np.tile(shapes.COLORS[color], (36, 1)).T, atol=1e-6)
    outside = np.ones((16, 16), dtype=bool)
    outside[7:13, 5:11] = False
    assert abs(picture[:, outside] - 0.85).max() < 0.1


@pytest.mark.parametrize("shape", shapes.SHAPES)
@pytest.mark.parametrize("width", [4.8, 6.7, 9.6, 13.4])
def test_coverage_has_the_stated_area_box_and_symmetry(shape: Shape, width: float) -> None:
    cover = shapes.coverage(shape, 16, 16, width, 32)
    assert cover.sum() == pytest.approx(shapes.AREAS[shape] * width**2, rel=0.06)
    assert cover == pytest.approx(cover[:, ::-1], abs=1e-12)
    assert (shape == "triangle") == (not np.allclose(cover, cover[::-1]))
    rows, columns = np.nonzero(cover > 0.5)
    for low, high in ((columns.min(), columns.max() + 1), (rows.min(), rows.max() + 1)):
        assert 16 - low <= width / 2 + 0.5
        assert high - 16 <= width / 2 + 0.5
        assert high - low >= width - 2.5
    moved = shapes.coverage(shape, 18, 13, width, 32)
    assert moved == pytest.approx(np.roll(cover, (-3, 2), (0, 1)), abs=1e-12)


def test_coverage_by_hand() -> None:
    # The row through the middle: a cross's arms, a circle's and a square's width, half of a triangle's.
    rows = {shape: shapes.coverage(shape, 8.0, 8.5, 6.0, 16)[8].sum() for shape in shapes.SHAPES}
    assert rows["square"] == rows["cross"] == 6.0
    assert rows["circle"] == pytest.approx(6.0)
    assert rows["triangle"] == pytest.approx(3.0, abs=0.15)
    top = {shape: shapes.coverage(shape, 8.0, 8.0, 6.0, 16)[5].sum() for shape in shapes.SHAPES}
    assert top["square"] == 6.0
    assert top["cross"] == 2.0
    assert 2.0 < top["circle"] < 4.0
    assert 0.3 < top["triangle"] < 1.0


def test_the_colours_are_far_apart_in_hue() -> None:
    angles = []
    for red, green, blue in shapes.COLORS.values():
        angles.append(math.degrees(math.atan2(math.sqrt(3) * (green - blue) / 2, red - (green + blue) / 2)))
    gaps = [min((a - b) % 360, (b - a) % 360) for a, b in combinations(angles, 2)]
    assert min(gaps) >= 25


def test_a_relations_unit_vectors_are_opposite_in_pairs() -> None:
    left, right, above, below = shapes.SIDES.values()
    assert left == tuple(np.negative(right))
    assert above == tuple(np.negative(below))
