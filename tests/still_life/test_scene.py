"""The renderer: pictures that are what their captions say."""

import dataclasses
import itertools

import numpy as np
import pytest

from modular_diffdiff.still_life.scene import BACKGROUNDS, COLOURS, KINDS, SIZE, Item, Scene, depth, masks, render


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
        {"beside": Item("cup", "blue")},
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
        grey = render(scene, 128).mean(-1)
        assert grey[55:75, bright].mean() > grey[55:75, dark].mean() + 20  # the object
        ground = render(dataclasses.replace(scene, kind="bottle"), 128).mean(-1)
        assert ground[100:106, dark].mean() < ground[100:106, bright].mean() - 10  # the shadow


@pytest.mark.parametrize(("kind", "colour", "background"), list(itertools.product(KINDS, COLOURS, BACKGROUNDS))[::7])
def test_captions_name_what_is_there(kind, colour, background):
    caption = Scene(kind, colour, background).caption
    assert f" {colour} {kind} on " in caption
    assert caption.startswith("an orange " if colour == "orange" else f"a {colour} ")
    assert background in caption


def test_two_objects_stand_where_and_in_the_order_that_the_caption_names_them():
    scene = Scene("apple", "red", "tabletop", (0.28, 0.55), beside=Item("cup", "orange", (0.72, 0.55)))
    assert scene.caption == "a red apple and an orange cup on a tabletop"
    columns = {word: np.argwhere(mask > 127)[:, 1] for word, mask in masks(scene).items()}
    assert columns["red"].max() < SIZE / 2 < columns["orange"].min()
    for first, second in (("red", "apple"), ("orange", "cup")):
        np.testing.assert_array_equal(masks(scene)[first], masks(scene)[second])


def test_the_masks_share_out_the_picture_and_say_where_a_word_shows():
    """A mask is what changes when the word does, but for the shadow and what shines through at the rim."""
    scene = Scene("pear", "red", "plain", (0.28, 0.55), beside=Item("lemon", "white"))
    where = masks(scene, 64)
    assert where.keys() == {"plain background", "pear", "red", "lemon", "white"}
    np.testing.assert_allclose(where["plain background"].astype(int) + where["red"] + where["white"], 255, atol=2)
    for word, other in (
        ("red", dataclasses.replace(scene, colour="blue")),
        ("white", dataclasses.replace(scene, beside=Item("lemon", "purple"))),
        ("plain background", dataclasses.replace(scene, background="checked")),
    ):
        changed = np.abs(render(scene, 64).astype(int) - render(other, 64)).max(-1) > 0
        assert not changed[where[word] == 0].any()
        assert changed[where[word] == 255].mean() > 0.5  # all but a stem, or the tone that two grounds share
    np.testing.assert_array_equal(depth(scene, 64) > 0, where["plain background"] < 255)


def test_objects_in_one_colour_share_its_mask():
    scene = Scene("pear", "red", "plain", (0.28, 0.55), beside=Item("lemon", "red"))
    where = masks(scene, 64)
    np.testing.assert_array_equal(where["red"], where["pear"] + where["lemon"])


def test_of_two_objects_that_overlap_the_second_is_in_front():
    scene = Scene("apple", "red", "plain", (0.5, 0.55), beside=Item("apple", "blue", (0.55, 0.55)))
    where = masks(scene, 64)
    np.testing.assert_array_equal(where["blue"], masks(dataclasses.replace(scene, colour="green"), 64)["blue"])
    assert where["blue"].sum() > where["red"].sum() > 0
    assert (where["blue"].astype(int) + where["red"] <= 256).all()


def test_pairs_are_as_many_as_asked_and_differ():
    scenes = [Scene.random(seed, pairs=0.2) for seed in range(2000)]
    pairs = [scene for scene in scenes if scene.beside]
    assert 0.17 < len(pairs) / len(scenes) < 0.23
    for scene in pairs:
        assert scene.kind != scene.beside.kind
        assert scene.colour != scene.beside.colour
        assert scene.position[0] < 0.5 < scene.beside.position[0]
    assert not any(Scene.random(seed).beside for seed in range(200))


@pytest.mark.parametrize("bad", [{"kind": "car"}, {"colour": "beige"}, {"background": "beach"}])
def test_what_cannot_be_drawn_is_refused(bad):
    (name, value), *_ = bad.items()
    if name != "background":
        with pytest.raises(ValueError, match=f"`{name}` is '{value}'; it must be one of"):
            Item(**({"kind": "apple", "colour": "red"} | bad))
    with pytest.raises(ValueError, match=f"`{name}` is '{value}'; it must be one of"):
        Scene(**({"kind": "apple", "colour": "red", "background": "plain"} | bad))
