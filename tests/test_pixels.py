"""Pixels: the original's come back where the map fully keeps them, and large pictures cost what changes in them."""

import io
import warnings

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from modular_diffdiff import BadInputError, SDXLDiffDiffAutoBlocks
from modular_diffdiff.blocks.diffdiff_pixels import box_around, lay_over, original_weights

from .helpers import build, diffdiff, euler, picture, seeded


HEIGHT, WIDTH = 37, 45


def run(pipe, **options):
    defaults = {
        "prompt": "a green pear",
        "image": picture(HEIGHT, WIDTH),
        "diffdiff_map": half(),
        "num_inference_steps": 2,
        "generator": seeded(),
    }
    return pipe(**(defaults | options))


def half(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Kept on the left, free on the right of column 20."""
    keep = np.ones((height, width), np.float32)
    keep[:, 20:] = 0
    return keep


def spot(height: int, width: int, box: tuple[int, int, int, int]) -> np.ndarray:
    left, top, right, bottom = box
    keep = np.ones((height, width), np.float32)
    keep[top:bottom, left:right] = 0
    return keep


def as_file(image: Image.Image) -> np.ndarray:
    """Its pixels after it was written as a PNG and read again."""
    file = io.BytesIO()
    image.save(file, "png")
    return np.asarray(Image.open(file))


# Functions


@given(data=st.data(), height=st.integers(8, 40), width=st.integers(8, 40), padding=st.integers(0, 12))
def test_a_box_holds_all_that_changes_and_no_more_than_it_must(data, height, width, padding):
    changed = torch.zeros(height, width, dtype=torch.bool)
    places = data.draw(st.lists(st.tuples(st.integers(0, height - 1), st.integers(0, width - 1)), max_size=5))
    for row, column in places:
        changed[row, column] = True
    left, top, right, bottom = box_around(changed, padding, 8)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    for side, size in ((right - left, width), (bottom - top, height)):
        assert side == size or side % 8 == 0
        assert side >= 8
    assert changed[top:bottom, left:right].sum() == changed.sum()
    if places:
        rows, columns = zip(*places, strict=True)
        assert right - left < max(columns) - min(columns) + 1 + 2 * padding + 8
        assert bottom - top < max(rows) - min(rows) + 1 + 2 * padding + 8
        # the padding is there wherever the picture has room for it
        assert left <= max(min(columns) - padding, 0)
        assert bottom >= min(max(rows) + 1 + padding, height)
    else:
        assert (right - left, bottom - top) == (8, 8)


@settings(deadline=None)
@given(data=st.data(), feather=st.integers(0, 5))
def test_the_seam_falls_with_the_distance_from_what_is_kept(data, feather):
    """The distance of a pixel, in king's moves, by brute force over all kept ones."""
    height, width = 9, 11
    flat = data.draw(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=99, max_size=99))
    keep = torch.tensor(flat).reshape(height, width)
    weights = original_weights(keep, keep == 1, feather)
    kept = (keep == 1).nonzero().tolist()
    for row in range(height):
        for column in range(width):
            moves = min((max(abs(row - r), abs(column - c)) for r, c in kept), default=99)
            # what is kept in part has its share of the original from the latents
            expected = 0.0 if keep[row, column] == 0.5 else max(0.0, 1 - moves / (feather + 1))
            assert weights[row, column].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_weight_of_one_is_the_original_and_of_zero_the_edit(dtype):
    rng = np.random.default_rng(0)
    original, edited = rng.integers(0, 256, (2, 6, 5, 3)).astype(dtype)
    weights = rng.choice([0.0, 0.25, 1.0], (6, 5)).astype(np.float32)
    result = lay_over(original, edited, weights)
    np.testing.assert_array_equal(result[weights == 1], original[weights == 1])
    np.testing.assert_array_equal(result[weights == 0], edited[weights == 0])
    blend = 0.25 * original[weights == 0.25].astype(float) + 0.75 * edited[weights == 0.25]
    np.testing.assert_allclose(result[weights == 0.25], blend, atol=0.5)


# Overlay


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
@pytest.mark.parametrize("feather", [0, 3])
def test_what_is_kept_whole_comes_back_byte_for_byte(tiny, mode, feather):
    image = picture(HEIGHT, WIDTH)
    if mode == "RGBA":
        image.putalpha(Image.fromarray(np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH), np.uint8)))
    image = image.convert(mode)
    (result,) = run(diffdiff(tiny), image=image, overlay=True, overlay_feather=feather).images
    expected = as_file(image if mode == "RGBA" else image.convert("RGB"))
    result = as_file(result)
    assert result.shape == expected.shape
    np.testing.assert_array_equal(result[:, :20], expected[:, :20])
    assert (result[:, 20 + feather :, :3] != expected[:, 20 + feather :, :3]).any()
    if mode == "RGBA":
        np.testing.assert_array_equal(result[..., 3], expected[..., 3])


def test_without_an_overlay_the_autoencoder_shows(tiny):
    (result,) = run(diffdiff(tiny)).images
    assert (as_file(result)[:, :20] != as_file(picture(HEIGHT, WIDTH))[:, :20]).any()


def test_the_changed_side_is_the_edits_own_but_for_the_seam(tiny):
    plain, laid, feathered = (
        as_file(run(diffdiff(tiny), **options).images[0])
        for options in ({}, {"overlay": True}, {"overlay": True, "overlay_feather": 4})
    )
    np.testing.assert_array_equal(laid[:, 20:], plain[:, 20:])
    np.testing.assert_array_equal(feathered[:, 24:], plain[:, 24:])
    assert (feathered[:, 20:24] != plain[:, 20:24]).any()


@pytest.mark.parametrize("feather", [0, 4])
def test_the_overlay_grows_into_what_changes(tiny, feather):
    keep, image = half(), picture(HEIGHT, WIDTH)
    keep[10:20, 20:30] = 0.5  # greys are grown over too
    options = {"diffdiff_map": keep, "image": image}
    plain = as_file(run(diffdiff(tiny), **options).images[0])
    grown = as_file(run(diffdiff(tiny), **options, overlay=True, overlay_grow=5, overlay_feather=feather).images[0])
    np.testing.assert_array_equal(grown[:, :25], as_file(image)[:, :25])
    np.testing.assert_array_equal(grown[:, 25 + feather :], plain[:, 25 + feather :])


def test_what_is_kept_in_part_is_not_blended_twice(tiny):
    keep = np.minimum(half() + 0.5, 1)
    plain = as_file(run(diffdiff(tiny), diffdiff_map=keep).images[0])
    laid = as_file(run(diffdiff(tiny), diffdiff_map=keep, overlay=True, overlay_feather=4).images[0])
    np.testing.assert_array_equal(laid[:, 20:], plain[:, 20:])


@pytest.mark.parametrize("form", ["np", "pt"])
def test_floats_come_back_as_they_were(tiny, form):
    pixels = np.random.default_rng(2).random((HEIGHT, WIDTH, 3), np.float32)
    image = pixels if form == "np" else torch.from_numpy(pixels).permute(2, 0, 1)
    images = run(diffdiff(tiny), image=image, overlay=True, output_type=form).images
    result = images[0] if form == "np" else images[0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(result[:, :20], pixels[:, :20])


def test_the_result_has_the_originals_size_whatever_the_edit_had(tiny):
    (result,) = run(diffdiff(tiny), overlay=True, height=2 * HEIGHT, width=2 * WIDTH).images
    np.testing.assert_array_equal(as_file(result)[:, :20], as_file(picture(HEIGHT, WIDTH))[:, :20])


def test_strength_and_inversion_count_for_the_overlay(tiny):
    original = as_file(picture(HEIGHT, WIDTH))
    (untouched,) = run(diffdiff(tiny), strength=0.0, overlay=True).images
    np.testing.assert_array_equal(as_file(untouched), original)
    (inverted,) = run(diffdiff(tiny), invert_diffdiff_map=True, overlay=True).images
    np.testing.assert_array_equal(as_file(inverted)[:, 20:], original[:, 20:])


@pytest.mark.parametrize("crop", [None, 4])
def test_every_output_of_a_batch_gets_its_own_original_and_map_back(tiny, crop):
    images = [picture(HEIGHT, WIDTH, seed=seed) for seed in range(2)]
    maps = [half(), spot(HEIGHT, WIDTH, (4, 4, 12, 12))]
    results = run(
        diffdiff(tiny),
        prompt=["a pear", "a cup"],
        image=images,
        diffdiff_map=maps,
        num_images_per_prompt=2,
        overlay=True,
        padding_map_crop=crop,
    ).images
    for k, result in enumerate(results):
        kept = maps[k // 2] == 1
        np.testing.assert_array_equal(as_file(result)[kept], as_file(images[k // 2])[kept])
        assert (as_file(result)[~kept] != as_file(images[k // 2])[~kept]).any()


# Crop


def test_only_the_box_is_run_and_all_else_is_as_it_was(tiny):
    image, box = picture(120, 160), (70, 30, 90, 47)
    state = run(diffdiff(tiny), image=image, diffdiff_map=spot(120, 160, box), padding_map_crop=5)
    assert state.placement.box == (65, 25, 97, 57)  # whole cells
    assert state.latents.shape[-2:] == (4, 4)
    assert state.placement.originals == [image]
    result, original = as_file(state.images[0]), as_file(image)
    outside = spot(120, 160, box) == 1
    np.testing.assert_array_equal(result[outside], original[outside])
    assert (result[~outside] != original[~outside]).any()


def test_the_box_is_edited_as_if_it_were_the_picture(tiny):
    image, box = picture(120, 160), (64, 32, 96, 64)
    keep = spot(120, 160, box)
    cropped = run(diffdiff(tiny), image=image, diffdiff_map=keep, padding_map_crop=8)
    outer = (56, 24, 104, 72)
    alone = run(diffdiff(tiny), image=image.crop(outer), diffdiff_map=keep[24:72, 56:104], overlay=True)
    np.testing.assert_array_equal(as_file(cropped.images[0].crop(outer)), as_file(alone.images[0]))


def test_height_and_width_are_those_that_the_box_is_edited_at(tiny):
    image = picture(120, 160)
    keep = spot(120, 160, (70, 30, 90, 40))
    state = run(diffdiff(tiny), image=image, diffdiff_map=keep, padding_map_crop=2, height=64, width=64)
    assert state.latents.shape[-2:] == (8, 8)
    mask = Image.fromarray(((1 - keep) * 255).astype(np.uint8))
    expected = VaeImageProcessor(vae_scale_factor=8).get_crop_region(mask, 64, 64, pad=2)
    assert tuple(state.placement.box) == tuple(expected)
    np.testing.assert_array_equal(as_file(state.images[0])[keep == 1], as_file(image)[keep == 1])


@pytest.mark.parametrize(
    ("box", "outer"), [((64, 32, 96, 64), (56, 24, 104, 72)), ((70, 31, 93, 60), (62, 23, 102, 71))]
)
def test_a_control_image_is_cut_along(tiny, controlnet, box, outer):
    pipe = build(SDXLDiffDiffAutoBlocks(), tiny | {"controlnet": controlnet}, guidance_scale=1.0)
    image, control = picture(120, 160), picture(120, 160, seed=5)
    keep = spot(120, 160, box)
    cropped = run(pipe, image=image, diffdiff_map=keep, control_image=control, padding_map_crop=8)
    assert cropped.placement.box == outer
    left, top, right, bottom = outer
    alone = run(
        pipe,
        image=image.crop(outer),
        diffdiff_map=keep[top:bottom, left:right],
        control_image=control.crop(outer),
        overlay=True,
    )
    np.testing.assert_array_equal(as_file(cropped.images[0].crop(outer)), as_file(alone.images[0]))


def test_a_control_image_that_cannot_be_cut_along_is_refused(tiny, controlnet):
    pipe = build(SDXLDiffDiffAutoBlocks(), tiny | {"controlnet": controlnet})
    with pytest.raises(BadInputError, match=r"`control_image` is .*80 x 60 pixels.*; it takes the image's 160 x 120"):
        run(
            pipe,
            image=picture(120, 160),
            diffdiff_map=spot(120, 160, (64, 32, 96, 64)),
            control_image=picture(60, 80, seed=5),
            padding_map_crop=8,
        )


@pytest.mark.parametrize("options", [{}, {"height": 64, "width": 64}])
def test_a_map_of_another_shape_is_announced_once_and_a_good_one_never(tiny, options):
    keep = spot(120, 160, (70, 30, 91, 41))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(diffdiff(tiny), image=picture(120, 160), diffdiff_map=keep, padding_map_crop=2, **options)
        assert not [w for w in caught if "stretched" in str(w.message)]
        run(diffdiff(tiny), image=picture(120, 160), diffdiff_map=keep[:100], padding_map_crop=2, **options)
    assert len([w for w in caught if "stretched" in str(w.message)]) == 1


@pytest.mark.parametrize(
    ("popped", "asked"),
    [
        ("overlay", {"padding_map_crop": 8}),
        ("crop_to_change", {"padding_map_crop": 8}),
        ("crop_to_change", {"padding_map_crop": 8, "overlay": True}),
    ],
)
def test_a_box_without_one_of_its_two_blocks_is_refused(tiny, popped, asked):
    with pytest.raises(BadInputError, match=f"`padding_map_crop` is given, but `{popped}` was popped"):
        run(diffdiff(tiny, without=(popped,)), **asked)


@pytest.mark.parametrize(
    ("popped", "gone"),
    [
        (("overlay",), {"overlay": True, "overlay_feather": 2}),
        (("crop_to_change", "overlay"), {"padding_map_crop": 8}),
    ],
)
def test_popped_blocks_take_their_inputs_along(tiny, popped, gone):
    pipe = diffdiff(tiny, without=popped)
    assert not set(gone) & set(pipe.blocks.input_names)
    with pytest.warns(UserWarning, match="Unexpected input"):
        run(pipe, **gone)


def test_latents_of_the_whole_image_do_not_go_with_a_box_of_it(tiny):
    with pytest.raises(ValueError, match="`image_latents` is given together with `padding_map_crop`"):
        run(
            diffdiff(tiny, without=("image_encoder",)),
            image_latents=torch.zeros(1, 4, 5, 6),
            overlay=True,
            padding_map_crop=8,
        )


def test_an_overlay_without_the_crop_leaves_pixels_where_they_were(tiny):
    with_crop, without = (run(diffdiff(tiny, without=without), overlay=True).images[0] for without in ((), ("crop",)))
    np.testing.assert_array_equal(as_file(without), as_file(with_crop))


def test_where_nothing_changes_the_image_comes_back_with_a_warning(tiny):
    image = picture(120, 160)
    with pytest.warns(UserWarning, match="changes nothing"):
        state = run(diffdiff(tiny), image=image, diffdiff_map=np.ones((120, 160)), padding_map_crop=16)
    np.testing.assert_array_equal(as_file(state.images[0]), as_file(image))
    assert len(state.timesteps) == 0


def test_a_map_of_another_size_is_cut_where_it_lies_on_the_image(tiny):
    keep = spot(60, 80, (32, 16, 48, 32))
    state = run(diffdiff(tiny), image=picture(120, 160), diffdiff_map=keep, padding_map_crop=0)
    assert state.placement.box == (64, 32, 96, 64)


def test_ten_edits_in_a_row_leave_every_other_pixel_as_it_was(tiny):
    image = first = picture(48, 80)
    pipe = diffdiff(tiny, scheduler=euler())
    edited = np.zeros((48, 80), bool)
    for k in range(10):
        left, top = 16 * (k % 5), 24 * (k // 5)
        box = (left, top, left + 12, top + 16)
        edited |= spot(48, 80, box) == 0
        (image,) = run(pipe, image=image, diffdiff_map=spot(48, 80, box), generator=seeded(k), overlay=True).images
    np.testing.assert_array_equal(as_file(image)[~edited], as_file(first)[~edited])
    assert (as_file(image)[edited] != as_file(first)[edited]).mean() > 0.9


# Almost white


def almost_white(height: int, width: int, box: tuple[int, int, int, int]) -> np.ndarray:
    """A map as JPEG leaves it: 252 of 255 where white was meant."""
    keep = spot(height, width, box)
    return np.where(keep == 1, 252, 0).astype(np.uint8)


@pytest.mark.parametrize("schedule", ["step", "timestep"])
@pytest.mark.parametrize("crop", [None, 4])
def test_what_the_run_never_releases_counts_as_kept(tiny, crop, schedule):
    """In latents, box and overlay alike, and as if it were white."""
    image, box = picture(120, 160), (70, 30, 90, 47)
    options = {"overlay": True, "padding_map_crop": crop, "diffdiff_schedule": schedule, "num_inference_steps": 20}
    grey, white = (
        run(diffdiff(tiny), image=image, diffdiff_map=keep, **options)
        for keep in (almost_white(120, 160, box), spot(120, 160, box))
    )
    outside = spot(120, 160, box) == 1
    np.testing.assert_array_equal(as_file(grey.images[0])[outside], as_file(image)[outside])
    if crop is None or schedule == "step":  # no noise level is known when the box is cut
        assert grey.placement.box == white.placement.box
        np.testing.assert_array_equal(as_file(grey.images[0]), as_file(white.images[0]))


def test_an_overlay_with_nothing_to_lay_over_says_what_the_map_has(tiny):
    with pytest.warns(UserWarning, match=r"`diffdiff_map` keeps nothing fully, its maximum is 0\.6"):
        run(diffdiff(tiny), image=picture(), diffdiff_map=np.full((32, 32), 0.6), overlay=True, num_inference_steps=4)


GREYS = np.linspace(0, 1, 32).astype(np.float32).repeat(32).reshape(32, 32)


@pytest.mark.filterwarnings("default::UserWarning")
@pytest.mark.parametrize(
    ("greys", "steps", "lost"),
    [
        (np.full((32, 32), 0.8), 4, "greys of 0.8 that 4 steps never release"),
        (np.array([[0.2, 0.8], [0.9, 1.0]]).repeat(16, 0).repeat(16, 1), 4, "greys of 0.8 to 0.9 that 4 steps"),
        (np.full((32, 32), 0.75), 4, None),
        (np.full((32, 32), 252 / 255), 50, None),  # JPEG's white
        (GREYS, 25, None),
    ],
)
def test_greys_that_few_steps_never_release_are_named_once(tiny, greys, steps, lost):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(diffdiff(tiny, guidance_scale=1.0), image=picture(), diffdiff_map=greys, num_inference_steps=steps)
    said = [str(warning.message) for warning in caught if "never release" in str(warning.message)]
    assert len(said) == (lost is not None)
    if lost:
        assert lost in said[0]
