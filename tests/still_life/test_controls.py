"""Control images: Canny's edges against OpenCV-free first principles, and the renderer's own depth."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from modular_diffdiff.still_life import EDGES, controls
from modular_diffdiff.still_life.scene import KINDS, SIZE, Scene, render


def test_the_edges_of_a_square_are_its_outline():
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[20:44, 16:48] = 255
    rows, columns = np.nonzero(np.asarray(controls.edges(picture))[..., 0])
    assert len(rows) > 80
    distance = np.minimum(
        np.minimum(abs(rows - 19.5), abs(rows - 43.5)), np.minimum(abs(columns - 15.5), abs(columns - 47.5))
    )
    assert distance.max() <= 2


@pytest.mark.parametrize("grey", [0, 90, 255])
def test_a_plain_picture_has_no_edges(grey):
    assert not np.asarray(controls.edges(Image.new("RGB", (64, 48), (grey,) * 3))).any()


@pytest.mark.parametrize("kind", KINDS)
def test_an_outline_does_not_depend_on_the_background(kind):
    scene = Scene(kind, "red", "striped", seed=3)
    assert controls.outline(scene).tobytes() == controls.outline(replace(scene, background="checked")).tobytes()


def test_the_edges_in_the_package_are_a_scenes():
    drawn = controls.outline(Scene("bottle", "blue", "plain", light=0.3))
    assert Image.open(EDGES).convert("RGB").tobytes() == drawn.tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_depth_is_where_the_object_is(kind):
    """The object is what changes when its colour does."""
    red, blue = Scene(kind, "red", "plain", seed=3), Scene(kind, "blue", "plain", seed=3)
    recoloured = (render(red) != render(blue)).any(-1)
    depth = np.asarray(controls.depth(red))[..., 0] > 0
    # a stem and a cap keep their colours
    assert (recoloured & ~depth).sum() == 0
    assert recoloured.sum() > 0.8 * depth.sum()


def test_a_round_object_is_nearest_in_its_middle():
    depth = np.asarray(controls.depth(Scene("apple", "red", "plain", position=(0.5, 0.55))))[..., 0].astype(int)
    middle = depth[round(0.55 * SIZE), SIZE // 2]
    assert middle > 240
    for side in (40, 88):
        assert depth[round(0.55 * SIZE), side] < middle
