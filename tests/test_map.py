"""Change maps: what they may be, and what becomes of them."""

import functools
import http.server
import math
import threading
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from modular_diffdiff import BadInputError
from modular_diffdiff.blocks.diffdiff_map import (
    SCHEDULES,
    average_over_grid,
    keep_on_grid,
    load_maps,
    read_maps,
    release_by_step,
    release_by_timestep,
    resize_map,
    warn_of_stretching,
)
from modular_diffdiff.blocks.diffdiff_trajectory import original_weights

from .helpers import diffdiff, picture


GREY = np.array([[0, 51, 102], [153, 204, 255]], np.uint8)
EXPECTED = torch.tensor([[0.0, 0.2, 0.4], [0.6, 0.8, 1.0]])


def in_every_form() -> dict:
    rgb = Image.fromarray(GREY).convert("RGB")
    opaque = rgb.copy()
    opaque.putalpha(255)
    return {
        "PIL L": Image.fromarray(GREY),
        "PIL RGB": rgb,
        "PIL RGBA, opaque": opaque,
        "PIL palette": Image.fromarray(GREY).convert("P"),
        "PIL CMYK": rgb.convert("CMYK"),
        "PIL 16 bit": Image.fromarray(GREY.astype(np.uint16) * 257),
        "PIL float": Image.fromarray(EXPECTED.numpy(), mode="F"),
        "uint8": GREY,
        "uint16": GREY.astype(np.uint16) * 257,
        "uint16, big-endian": (GREY.astype(np.uint16) * 257).astype(">u2"),
        "float64": GREY / 255,
        "uint8 (H, W, 1)": GREY[..., None],
        "uint8 (H, W, 3)": np.repeat(GREY[..., None], 3, -1),
        "float (H, W, 3)": np.repeat(GREY[..., None] / 255, 3, -1),
        "uint8 (H, W, 2), opaque": np.stack([GREY, np.full_like(GREY, 255)], -1),
        "tensor (H, W)": EXPECTED,
        "tensor (1, H, W)": EXPECTED[None].double(),
        "tensor (B, 1, H, W)": EXPECTED[None, None],
    }


@pytest.mark.parametrize("form", in_every_form())
def test_a_map_means_the_same_in_every_form(form):
    (values,) = load_maps(in_every_form()[form])
    assert values.shape == (1, 1, 2, 3)
    torch.testing.assert_close(values[0, 0], EXPECTED, rtol=0, atol=1e-6)


@pytest.mark.parametrize("form", ["PIL RGB", "float (H, W, 3)", "uint8 (H, W, 3)"])
def test_grey_as_colour_is_the_grey_exactly(form):
    (values,) = load_maps(in_every_form()[form])
    assert torch.equal(values[0, 0], torch.from_numpy((GREY / 255).astype(np.float32)))


@pytest.mark.parametrize("form", [np.array([[True, False]]), torch.tensor([[True, False]]), Image.new("1", (1, 1), 1)])
def test_booleans_are_one_and_zero(form):
    (values,) = load_maps(form)
    assert values.flatten().tolist() in ([1.0, 0.0], [1.0])


def test_colour_counts_by_luma():
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    (values,) = load_maps(colours)
    # ITU-R BT.601, the standard's numbers
    torch.testing.assert_close(values.flatten(), torch.tensor([0.299, 0.587, 0.114]))


def test_lists_and_batches_keep_their_order():
    batch = torch.rand(2, 1, 4, 4)
    mixed = [batch, Image.new("L", (5, 3), 255), np.zeros((2, 2))]
    maps = load_maps(mixed)
    assert [tuple(values.shape) for values in maps] == [(1, 1, 4, 4), (1, 1, 4, 4), (1, 1, 3, 5), (1, 1, 2, 2)]
    assert torch.equal(torch.cat(maps[:2]), batch)


@pytest.fixture
def server(tmp_path):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_paths_and_urls_are_read_to_the_last_bit(tmp_path, server):
    deep = np.array([[0, 1, 257, 65535]], np.uint16)
    Image.fromarray(deep).save(tmp_path / "map.png")
    expected = torch.from_numpy((deep / 65535).astype(np.float32))
    for source in (tmp_path / "map.png", str(tmp_path / "map.png"), f"{server}/map.png"):
        (values,) = load_maps(source)
        assert torch.equal(values[0, 0], expected)


def transparent() -> Image.Image:
    image = Image.new("RGBA", (4, 4), (255, 255, 255, 255))
    image.putpixel((1, 1), (255, 255, 255, 254))
    return image


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (None, "`diffdiff_map` is missing"),
        ([], "`diffdiff_map` is an empty list"),
        (3, "of type int"),
        ([Image.new("L", (4, 4)), 3], r"`diffdiff_map\[1\]` is of type int"),
        ("no such file.png", "'no such file.png', which cannot be read"),
        (__file__, "cannot be read as an image"),
        (np.zeros((4, 4), np.int64), "dtype int64"),
        (np.zeros((4, 4, 5), np.uint8), r"shape \(4, 4, 5\)"),
        (np.zeros(4, np.uint8), r"shape \(4,\)"),
        (np.zeros((0, 4), np.uint8), "holds no values"),
        (np.full((2, 2), 1.5), "from 1.5 to 1.5"),
        (torch.zeros(4, 4, dtype=torch.uint8), "dtype torch.uint8"),
        (torch.zeros(3, 4, 4), r"shape \(3, 4, 4\)"),
        (torch.zeros(2, 3, 4, 4), r"shape \(2, 3, 4, 4\)"),
        (torch.tensor([[0.0, -0.1]]), "from -0.1 to 0"),
        (torch.tensor([[0.0, float("nan")]]), "must be numbers in"),
        (torch.tensor([[0.0, float("inf")]]), "to inf"),
        (transparent(), "transparent in places"),
        (np.zeros((4, 4, 4), np.uint8), "transparent in places"),
    ],
)
def test_what_is_no_map_is_refused_by_name(bad, says):
    with pytest.raises(ValueError, match=says) as error:
        load_maps(bad)
    assert "diffdiff_map" in str(error.value)


def brute_force_mean(values: np.ndarray, top: Fraction, left: Fraction, bottom: Fraction, right: Fraction) -> float:
    """The mean of a piecewise constant picture over a rectangle, pixel by pixel."""
    total = area = Fraction(0)
    for row in range(values.shape[0]):
        for column in range(values.shape[1]):
            high = max(Fraction(0), min(bottom, row + 1) - max(top, row))
            wide = max(Fraction(0), min(right, column + 1) - max(left, column))
            total += Fraction(float(values[row, column])) * high * wide
            area += high * wide
    return float(total / area)


maps = arrays.arrays(np.float32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.floats(0, 1, width=32))


@settings(max_examples=40, deadline=None)
@given(values=maps, height=st.integers(1, 9), width=st.integers(1, 9))
def test_resizing_is_the_mean_over_the_area(values, height, width):
    resized = resize_map(torch.from_numpy(values)[None, None], height, width)[0, 0]
    high, wide = Fraction(values.shape[0], height), Fraction(values.shape[1], width)
    expected = [
        [brute_force_mean(values, r * high, c * wide, (r + 1) * high, (c + 1) * wide) for c in range(width)]
        for r in range(height)
    ]
    torch.testing.assert_close(resized, torch.tensor(expected), rtol=0, atol=1e-6)
    assert resized.min() >= values.min() - 1e-6
    assert resized.max() <= values.max() + 1e-6


def cells_of(size, cell: int) -> tuple[int, int]:
    return tuple(math.ceil(side / cell) for side in size)


@settings(max_examples=40, deadline=None)
@given(values=maps, cell=st.integers(1, 5))
def test_a_cell_is_the_mean_of_the_pixels_that_it_has(values, cell):
    rows, columns = grid = cells_of(values.shape, cell)
    averaged = average_over_grid(torch.from_numpy(values)[None, None], grid, (cell * rows, cell * columns))[0, 0]
    expected = [
        [values[r * cell : (r + 1) * cell, c * cell : (c + 1) * cell].mean(dtype=np.float64) for c in range(columns)]
        for r in range(rows)
    ]
    torch.testing.assert_close(averaged, torch.tensor(expected, dtype=torch.float32), rtol=0, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(values=maps, rows=st.integers(1, 9), columns=st.integers(1, 9), padding=st.tuples(*[st.integers(0, 9)] * 2))
def test_a_padded_canvas_is_averaged_over_the_pixels_that_there_are(values, rows, columns, padding):
    """Brute force: the shares of the cell's pixels; where it has none, those of the nearest row and column."""
    height, width = values.shape
    canvas = (height + padding[0], width + padding[1])
    averaged = average_over_grid(torch.from_numpy(values)[None, None], (rows, columns), canvas)[0, 0]

    def span(index, cells, side, size):
        low, high = Fraction(index * side, cells), Fraction((index + 1) * side, cells)
        return (low, min(high, size)) if low < size - 1 else (min(low, size - 1), min(high, size))

    expected = [
        [
            brute_force_mean(values, r0, c0, r1, c1)
            for c0, c1 in (span(c, columns, canvas[1], width) for c in range(columns))
        ]
        for r0, r1 in (span(r, rows, canvas[0], height) for r in range(rows))
    ]
    torch.testing.assert_close(averaged, torch.tensor(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(1000, 1000), (517, 389), (8, 8), (125, 9)])
@pytest.mark.parametrize("value", [0.0, 0.7, 1.0])
def test_a_constant_map_stays_constant_at_any_size(size, value):
    height, width = size
    rows, columns = grid = cells_of(size, 8)
    keep = keep_on_grid([torch.full((1, 1, 2 * height, 2 * width), value)], size, grid, (8 * rows, 8 * columns))
    assert keep.shape == (1, 1, rows, columns)
    torch.testing.assert_close(keep, torch.full_like(keep, value), rtol=0, atol=1e-7)


def test_inverting_swaps_the_roles():
    values = torch.rand(16, 24)
    (kept,), (changed,) = (read_maps(values, invert) for invert in (False, True))
    torch.testing.assert_close(kept + changed, torch.ones_like(kept))


def test_a_map_of_another_shape_is_stretched_with_a_warning():
    with pytest.warns(UserWarning, match="40 x 20 pixels and the image 30 x 30"):
        warn_of_stretching([torch.zeros(1, 1, 20, 40)], 30, 30)


@pytest.mark.parametrize("map_size", [(100, 200), (33, 67), (517, 1033)])
def test_a_map_of_the_same_ratio_is_resized_without_a_word(map_size):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_stretching([torch.zeros(1, 1, *map_size)], 50, 100)


@given(keep=st.fractions(0, 1, max_denominator=255), num_steps=st.integers(1, 200))
def test_an_element_is_frozen_while_its_keep_exceeds_the_share_of_steps(keep, num_steps):
    released = release_by_step(torch.tensor(float(keep)), torch.arange(num_steps)).item()
    frozen_steps = [i for i in range(num_steps) if keep > Fraction(i, num_steps)]
    assert released == len(frozen_steps)


@given(
    keep=st.fractions(0, 1, max_denominator=255),
    timesteps=st.lists(st.integers(0, 999), min_size=1, max_size=40, unique=True).filter(any),
)
def test_by_timestep_an_element_is_released_by_the_rule_of_comfyui(keep, timesteps):
    """Its mask says what changes; a step changes what has a mask of at least (t - t_end) / (t_start - t_end)."""
    timesteps = sorted(timesteps, reverse=True)
    mask = 1 - keep
    changes = [mask >= Fraction(t - 0, timesteps[0] - 0) for t in timesteps]
    expected = len(timesteps) if keep == 1 or not any(changes) else changes.index(True)
    assert release_by_timestep(torch.tensor(float(keep)), torch.tensor(timesteps)).item() == expected


@given(
    keep=st.fractions(0, Fraction(254, 255), max_denominator=255),
    softness=st.fractions(0, 1, max_denominator=20),
    timesteps=st.lists(st.integers(1, 999), min_size=1, max_size=20, unique=True),
    schedule=st.sampled_from(["step", "timestep"]),
)
def test_the_weights_of_every_step_are_those_of_comfyuis_node(keep, softness, timesteps, schedule):
    """Of strength s, its mask of a step is s * (mask >= threshold) + (1 - s) * mask; the original has the rest."""
    timesteps, mask, s = sorted(timesteps, reverse=True), 1 - keep, 1 - softness
    by_step = [1 - Fraction(i, len(timesteps)) for i in range(len(timesteps))]
    thresholds = by_step if schedule == "step" else [Fraction(t, timesteps[0]) for t in timesteps]
    expected = [float(1 - (s * (mask >= threshold) + (1 - s) * mask)) for threshold in thresholds]
    kept = torch.tensor([float(keep)])
    release = SCHEDULES[schedule](kept, torch.tensor(timesteps))
    weights = [original_weights(release > i, kept, float(softness)).item() for i in range(len(timesteps))]
    assert weights == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("release", [release_by_step, release_by_timestep])
def test_what_is_kept_whole_is_never_released_and_what_is_not_kept_is_free_from_the_start(release):
    timesteps = torch.tensor([999, 500, 0])  # where the node's threshold reaches 0
    assert release(torch.tensor([1.0, 0.0]), timesteps).tolist() == [3, 0]


@given(keep=st.floats(0, 1, width=32), strength=st.floats(0, 1), invert=st.booleans())
def test_strength_turns_the_change_down_after_it_was_inverted(keep, strength, invert):
    (turned,) = read_maps(torch.full((1, 1), keep), invert, strength)
    change = keep if invert else 1 - keep
    assert 1 - turned.item() == pytest.approx(strength * change, abs=1e-6)


@pytest.mark.parametrize("num_steps", range(1, 41))
def test_a_constant_map_is_released_where_image_to_image_starts(num_steps):
    """On the step grid, where strength is a whole number of steps."""
    for run in range(num_steps + 1):
        keep = torch.full((1, 1, 3, 3), 1 - run / num_steps)
        averaged = average_over_grid(resize_map(keep, 20, 20), (3, 3), (24, 24))
        assert release_by_step(averaged, torch.arange(num_steps)).unique().tolist() == [num_steps - run]


@pytest.mark.parametrize("form", [str, Path, lambda path: path.as_uri(), lambda path: [path]])
def test_paths_can_be_turned_off(tiny, tmp_path, form):
    path = tmp_path / "map.png"
    Image.new("L", (8, 8)).save(path)
    pipe = diffdiff(tiny)
    with pytest.raises(BadInputError, match=r"`diffdiff_map(\[0\])?` is .*`allow_paths` is False"):
        pipe(prompt="a pear", image=picture(), diffdiff_map=form(path), num_inference_steps=1, allow_paths=False)


def test_of_a_file_with_several_pictures_the_first_counts(tmp_path):
    white, black = (Image.new("L", (8, 8), grey) for grey in (255, 0))
    white.save(tmp_path / "map.gif", save_all=True, append_images=[black])
    with pytest.warns(UserWarning, match=r"`diffdiff_map` is .*map.gif.*2 pictures: only the first"):
        (values,) = load_maps(str(tmp_path / "map.gif"))
    assert (values == 1).all()
