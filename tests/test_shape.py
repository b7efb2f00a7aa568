"""Shaping change maps: laws of the functions, with scipy as the oracle, and what a run makes of them."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage

from modular_diffdiff import BadInputError, DiffDiffShapeMapStep
from modular_diffdiff.blocks.diffdiff_shape import adjust_levels, blur, feather, grow, limit, shape

from .helpers import diffdiff, picture, seeded


MAPS = arrays.arrays(
    np.float32, st.tuples(st.integers(1, 14), st.integers(1, 14)), elements=st.floats(0, 1, width=32)
).map(lambda values: torch.from_numpy(values)[None, None])
RADII = st.floats(0, 6) | st.floats(6, 40)
SHAPINGS = st.fixed_dictionaries(
    {},
    optional={
        "map_levels": st.sampled_from([(0.0, 0.5), (0.2, 0.9), (0.4, 1.0)]),
        "map_gamma": st.floats(0.3, 3),
        "map_grow": st.floats(-5, 5),
        "map_feather": st.floats(0, 4),
        "map_seam": st.sampled_from(["across", "inside", "outside"]),
        "map_limits": st.sampled_from([(0.0, 0.5), (0.25, 1.0), (0.5, 0.5)]),
    },
)


def disc(radius: float) -> np.ndarray:
    reach = math.floor(radius)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    return x**2 + y**2 <= radius**2


@given(MAPS, RADII)
def test_growing_and_shrinking_are_scipys(keep, radius):
    values = keep[0, 0].numpy()
    grown = ndimage.grey_erosion(values, footprint=disc(radius), mode="constant", cval=1)
    shrunk = ndimage.grey_dilation(values, footprint=disc(radius), mode="constant", cval=0)
    np.testing.assert_array_equal(grow(keep, radius)[0, 0], grown)
    np.testing.assert_array_equal(grow(keep, -radius)[0, 0], shrunk)


@given(MAPS, RADII, RADII)
def test_growing_twice_is_growing_by_the_sum_to_a_pixel(keep, first, second):
    twice = grow(grow(keep, first), second)
    assert (grow(keep, first + second + 1) <= twice).all()
    assert (twice <= grow(keep, max(first + second - 1, 0))).all()


@given(MAPS, RADII)
def test_growing_never_keeps_more(keep, radius):
    assert (grow(keep, radius) <= keep).all()
    assert (grow(keep, -radius) >= keep).all()


@given(MAPS, st.floats(0.1, 5))
def test_feathering_is_scipys_gaussian(keep, sigma):
    expected = ndimage.gaussian_filter(keep[0, 0].double().numpy(), sigma, mode="nearest", radius=math.ceil(4 * sigma))
    np.testing.assert_allclose(blur(keep, sigma)[0, 0], expected, atol=1e-5)


@given(st.floats(0, 1, width=32), st.floats(0, 4), st.sampled_from(["across", "inside", "outside"]))
def test_feathering_keeps_constants(value, sigma, seam):
    keep = torch.full((1, 1, 9, 7), value)
    torch.testing.assert_close(feather(keep, sigma, seam), keep, atol=1e-6, rtol=0)


@given(st.integers(0, 90), st.floats(0.1, 8), st.sampled_from(["across", "inside", "outside"]))
def test_what_is_kept_beyond_the_feathers_reach_stays_fully_kept(column, sigma, seam):
    """Bit for bit, at any sigma: a hair less would be a change, which `map_limits` would raise to its least."""
    keep = torch.ones(1, 1, 1, 91)
    keep[..., column] = 0
    reach = math.ceil(4 * sigma) + math.ceil(2 * sigma)
    beyond = (torch.arange(91) - column).abs() > reach
    assert (limit(feather(keep, sigma, seam), 0.25, 1)[..., beyond] == 1).all()


@given(MAPS, st.floats(0, 4))
def test_a_seam_lies_on_the_side_that_is_asked_for(keep, sigma):
    assert (feather(keep, sigma, "inside") >= keep).all()
    assert (feather(keep, sigma, "outside") <= keep).all()


@pytest.mark.parametrize(("seam", "half"), [("across", 32), ("inside", 40), ("outside", 24)])
def test_a_feathered_edge_is_half_kept_where_the_seam_says(seam, half):
    """A map that keeps the left 32 columns; with sigma 4, a seam on one side begins two sigmas from its middle."""
    keep = (torch.arange(64) < 32).float().expand(1, 1, 20, 64)
    profile = feather(keep, 4, seam)[0, 0, 10]
    assert (profile.diff() <= 0).all()
    assert profile[half - 1] > 0.5 > profile[half]
    assert profile[half - 1] + profile[half] == pytest.approx(1, abs=1e-4)


@given(MAPS, st.floats(0.3, 3))
def test_levels_are_an_image_editors(keep, gamma):
    values = keep.double().numpy()
    expected = np.interp(values, [0.2, 0.7], [0, 1]) ** (1 / gamma)
    np.testing.assert_allclose(adjust_levels(keep, 0.2, 0.7, gamma), expected, atol=2e-3)


@given(MAPS)
def test_limits_hold_for_all_that_changes_and_for_nothing_else(keep):
    strength = 1 - limit(keep, 0.25, 0.75)
    assert (strength[keep == 1] == 0).all()
    assert ((strength >= 0.25) & (strength <= 0.75))[keep < 1].all()
    within = (keep <= 0.75) & (keep >= 0.25)
    torch.testing.assert_close(strength[within], (1 - keep)[within])


@settings(max_examples=200)
@given(MAPS, SHAPINGS)
def test_shaping_stays_in_range_and_commutes_with_flips(keep, asked):
    shaped = shape(keep, **asked)
    assert shaped.shape == keep.shape
    assert 0 <= shaped.min() <= shaped.max() <= 1
    for axes in ([2], [3], [2, 3]):
        torch.testing.assert_close(shape(keep.flip(axes), **asked), shaped.flip(axes), atol=1e-5, rtol=0)


def run_block(maps, size=(40, 24), **asked) -> torch.Tensor:
    """The maps that the block gives for pictures of this (height, width)."""
    pipe = DiffDiffShapeMapStep().init_pipeline()
    image = torch.zeros(3, *size)
    return pipe(image=image, diffdiff_map=maps, output="diffdiff_map", **asked)


def test_pixels_are_the_images():
    """A map of half the image's size is brought to it first."""
    keep = torch.ones(20, 12)
    keep[8:12, 4:8] = 0
    whole = keep.repeat_interleave(2, 0).repeat_interleave(2, 1)
    torch.testing.assert_close(run_block(keep, map_grow=3), run_block(whole, map_grow=3))
    assert (run_block(keep, map_grow=3)[0, 0, :, 12] < 1).nonzero().flatten().tolist() == list(range(13, 27))


def test_a_map_of_a_batch_is_shaped_as_alone():
    maps = list(torch.rand(3, 40, 24, generator=torch.Generator().manual_seed(0)))
    asked = {"map_grow": 2, "map_feather": 1.5, "map_limits": (0.1, 0.9)}
    alone = torch.cat([run_block(keep, **asked) for keep in maps])
    torch.testing.assert_close(run_block(maps, **asked), alone)


def test_what_changes_grows_whichever_way_round_the_map_is():
    keep = torch.ones(40, 24)
    keep[10:20, 5:9] = 0
    expected = run_block(keep, map_grow=2, map_feather=1)
    inverted = run_block(1 - keep, map_grow=2, map_feather=1, invert_diffdiff_map=True)
    torch.testing.assert_close(inverted, expected)


@pytest.mark.parametrize("invert", [False, True])
def test_a_shaped_map_is_the_map_of_the_run(tiny, invert):
    keep = torch.ones(32, 32)
    keep[:, 24:] = 0
    by_hand = keep.clone()
    by_hand[:, 16:] = 0

    def run(change_map: torch.Tensor, **asked) -> torch.Tensor:
        pipe = diffdiff(tiny, guidance_scale=1.0)
        given = {"prompt": "a pear", "image": picture(), "num_inference_steps": 2, "generator": seeded()}
        return pipe(diffdiff_map=change_map, output="latents", **given, **asked)

    shaped = run(1 - keep if invert else keep, map_grow=8, invert_diffdiff_map=invert)
    assert torch.equal(shaped, run(by_hand))
    assert not torch.equal(shaped, run(keep))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("map_grow", float("nan")),
        ("map_grow", "8"),
        ("map_feather", -1),
        ("map_seam", "middle"),
        ("map_levels", (0.5, 0.5)),
        ("map_levels", (0.8, 0.2)),
        ("map_gamma", 0),
        ("map_limits", (0.7, 0.3)),
        ("map_limits", (0, 1.5)),
        ("map_limits", 0.5),
    ],
)
def test_bad_settings_are_refused_by_name(tiny, name, value):
    with pytest.raises(BadInputError, match=f"`{name}` is .*; it takes"):
        diffdiff(tiny)(prompt="a pear", image=picture(), diffdiff_map=torch.zeros(32, 32), **{name: value})
