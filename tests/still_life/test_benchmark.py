"""The measures of the embedded checkpoint's benchmark, on pictures whose answer is known."""

import numpy as np
import pytest

from benchmarks.still_life import count_pairs_right, unevenness
from modular_diffdiff.still_life.judge import Reading
from modular_diffdiff.still_life.scene import Item, Scene


def drawn_stripes(wave: float, size: int = 256) -> np.ndarray:
    """(1, size, size, 3): leaning stripes whose edges wave by so many pixels, smooth over two pixels."""
    y, x = np.mgrid[:size, :size].astype(float)
    across = x + 0.3 * y + wave * np.sin(2 * np.pi * y / 34)
    grey = 127.5 + 100 * np.clip(8 * np.sin(2 * np.pi * across / 50), -1, 1)
    return grey.round().astype(np.uint8)[None, ..., None].repeat(3, -1)


def test_straight_edges_are_straight_to_the_grid_of_pixels():
    assert unevenness(drawn_stripes(0)) < 0.5


@pytest.mark.parametrize("wave", [2, 3])
def test_waving_edges_are_as_far_from_straight_as_they_wave(wave):
    """A sine's RMS is its amplitude over the square root of 2, and the stripes lean."""
    expected = wave / np.sqrt(2) / np.hypot(1, 0.3)
    assert unevenness(drawn_stripes(wave)) == pytest.approx(expected, rel=0.15)


def test_a_pair_is_right_where_both_are_and_in_their_order():
    scene = Scene("apple", "red", "plain", beside=Item("cup", "blue"))
    apple, cup = Reading("apple", "red", "plain"), Reading("cup", "blue", "striped")
    assert count_pairs_right([scene], [(apple, cup)]) == 1
    for wrong in ((cup, apple), (apple, cup._replace(colour="red")), (apple._replace(kind="pear"), cup)):
        assert count_pairs_right([scene], [wrong]) == 0
