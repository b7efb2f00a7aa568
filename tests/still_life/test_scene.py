"""The renderer: pictures that are what their captions say."""

import dataclasses
import itertools

import numpy as np
import pytest

from modular_diffdiff.still_life.scene import BACKGROUNDS, COLOURS, KINDS, SIZE, Scene, render


def test_there_is_enough_to_draw():
    assert len(KINDS) >= 6
    assert len(COLOURS) >= 8
    assert len(BACKGROUNDS) >= 5


def test_a_scene_is_a_pure_function():
    scene = Scene.random(7)
    first, second = render(scene), render(dataclasses.replace(scene))
    assert first.shape == (SIZE, SIZE, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "pear"},
        {"colour": "green"},
        {"background": "checked"},
        {"position": (0.45, 0.5)},
        {"light": 0.8},
        {"seed": 1},
    ],
)
def test_every_attribute_shows(change):
    scene = Scene("apple", "red", "striped")
    difference = render(scene).astype(int) - render(dataclasses.replace(scene, **change))
    assert np.abs(difference).max() > 30


def test_an_object_moves_with_its_position():
    def centre(position):
        scene = Scene("apple", "red", "plain", position=position, light=0.0)
        pixels = render(scene).astype(float)
        red = pixels[..., 0] - pixels[..., 1] > 60
        return np.argwhere(red).mean(0)

    moved = centre((0.56, 0.6)) - centre((0.44, 0.5))
    np.testing.assert_allclose(moved, (0.1 * SIZE, 0.12 * SIZE), atol=1)


def test_the_lit_side_is_bright_and_the_shadow_falls_to_the_other():
    for light, bright, dark in ((-1.0, slice(30, 60), slice(68, 98)), (1.0, slice(68, 98), slice(30, 60))):
        scene = Scene("apple", "white", "plain", position=(0.5, 0.5), light=light)
        grey = render(scene).mean(-1)
        assert grey[55:75, bright].mean() > grey[55:75, dark].mean() + 20  # the object
        ground = render(dataclasses.replace(scene, kind="bottle")).mean(-1)
        assert ground[100:106, dark].mean() < ground[100:106, bright].mean() - 10  # the shadow


@pytest.mark.parametrize(("kind", "colour", "background"), list(itertools.product(KINDS, COLOURS, BACKGROUNDS))[::7])
def test_captions_name_what_is_there(kind, colour, background):
    caption = Scene(kind, colour, background).caption
    assert f" {colour} {kind} on " in caption
    assert caption.startswith("an orange " if colour == "orange" else f"a {colour} ")
    assert background in caption


@pytest.mark.parametrize("bad", [{"kind": "car"}, {"colour": "beige"}, {"background": "beach"}])
def test_what_cannot_be_drawn_is_refused(bad):
    (name, value), *_ = bad.items()
    with pytest.raises(ValueError, match=f"`{name}` is '{value}'; it must be one of"):
        Scene(**({"kind": "apple", "colour": "red", "background": "plain"} | bad))
