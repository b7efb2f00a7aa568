"""Strength fans: each picture is the edit alone, for every family; and the sheet that shows them."""

import copy
import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image

from modular_diffdiff import (
    BadInputError,
    DiffDiffFanStep,
    SDXLDiffDiffAutoBlocks,
    SDXLDiffDiffBlocks,
    StrengthFan,
    draw_fan,
    fan,
)
from modular_diffdiff.blocks.diffdiff_map import turn_down, turn_down_in_strips
from modular_diffdiff.blocks.diffdiff_trajectory import same_noise

from . import test_families as families
from .families import FAMILIES
from .helpers import adapter_weights, build, diffdiff, image_to_image, picture, relative, seeded


small_edits = families.small_edits
STRENGTHS = (0.5, 0.75, 1.0)
RAMP = torch.linspace(0, 0.5, 64).repeat(64, 1)
EDIT = {"prompt": "a green pear", "num_inference_steps": 4, "output_type": "pt"}


def strips_by_hand(keep: torch.Tensor, strengths: tuple[float, ...]) -> torch.Tensor:
    """Column by column."""
    result = torch.empty_like(keep)
    for column in range(keep.shape[-1]):
        strength = strengths[math.floor(column * len(strengths) / keep.shape[-1])]
        result[..., column] = 1 - strength * (1 - keep[..., column])
    return result


@dataclass
class Fanned:
    """A pipeline that `families.run` can call for a fan."""

    pipe: object

    @property
    def blocks(self):
        return self.pipe.blocks

    def __call__(self, **inputs) -> StrengthFan:
        return fan(self.pipe, **inputs)


# Every picture is an edit alone


@pytest.mark.parametrize("name", FAMILIES)
def test_each_picture_is_the_edit_alone(name):
    pipe = families.ours(name)
    made = families.run(Fanned(pipe), name, diffdiff_map=RAMP, strengths=STRENGTHS)
    assert made.strengths == STRENGTHS
    assert len(made.results) == len(STRENGTHS)
    for strength, result in zip(STRENGTHS, made.results, strict=True):
        (expected,) = families.run(pipe, name, diffdiff_map=RAMP, strength=strength).images
        assert relative(result, expected) < 1e-4
    (expected,) = families.run(pipe, name, diffdiff_map=strips_by_hand(RAMP, STRENGTHS)).images
    assert relative(made.strips, expected) < 1e-4
    for first, second in itertools.combinations((*made.results, made.strips), 2):
        assert relative(first, second) > 0.01


@pytest.mark.parametrize("name", ["sdxl", "sd3"])
def test_at_strength_0_a_picture_is_the_encoded_original(name):
    """The oracle is upstream's own encoder."""
    made = families.run(Fanned(families.ours(name)), name, strengths=(0, 1), output_type="latent")
    assert torch.equal(made.results[0], families.encoded(name)[0])


def test_without_a_map_each_picture_is_upstreams_image_to_image(tiny):
    image = picture(40, 56)
    made = fan(diffdiff(tiny), image, **EDIT, strengths=STRENGTHS, generator=seeded())
    for strength, result in zip(STRENGTHS, made.results, strict=True):
        theirs = image_to_image(tiny)
        (expected,) = theirs(image=image, **EDIT, strength=strength, generator=seeded(), output="images")
        assert relative(result, expected) < 1e-4


@pytest.mark.parametrize("name", ["sdxl", "qwen-edit-plus"])
def test_the_automatic_blocks_too(name):
    pipe = families.build(families.tree(name), name)
    made = families.run(Fanned(pipe), name, diffdiff_map=RAMP, strengths=(0.5, 1.0))
    (expected,) = families.run(pipe, name, diffdiff_map=RAMP, strength=0.5).images
    assert relative(made.results[0], expected) < 1e-4


def test_a_map_is_made_and_shaped_before_it_is_turned_down(tiny):
    inputs = EDIT | {"map_gradient": 0, "map_limits": (0.5, 1.0), "map_gamma": 2.0, "overlay": True}
    pipe, image = diffdiff(tiny), picture(40, 56)
    made = fan(pipe, image, **inputs, strengths=STRENGTHS, generator=seeded())
    for strength, result in zip(STRENGTHS, made.results, strict=True):
        (expected,) = pipe(image=image, **inputs, strength=strength, generator=seeded(), output="images")
        assert relative(result, expected) < 1e-4


def test_an_inverted_map_and_one_of_another_size(tiny):
    pipe, mask = diffdiff(tiny), torch.zeros(10, 14)
    mask[:, 6:] = 1
    made = fan(
        pipe,
        picture(40, 56),
        diffdiff_map=mask,
        invert_diffdiff_map=True,
        **EDIT,
        strengths=(0.5, 1),
        generator=seeded(),
    )
    keep = (1 - mask).repeat_interleave(4, 0).repeat_interleave(4, 1)
    for diffdiff_map, result in (
        (1 - 0.5 * (1 - keep), made.results[0]),
        (strips_by_hand(keep, (0.5, 1)), made.strips),
    ):
        inputs = EDIT | {"image": picture(40, 56), "diffdiff_map": diffdiff_map}
        (expected,) = pipe(**inputs, generator=seeded(), output="images")
        assert relative(result, expected) < 1e-4


def test_what_steers_an_edit_steers_its_fan(tiny, controlnet, image_encoder):
    tiny = tiny | {"unet": copy.deepcopy(tiny["unet"]), "controlnet": controlnet, "image_encoder": image_encoder}
    pipe = build(SDXLDiffDiffAutoBlocks().get_workflow("ip_adapter_controlnet_diffdiff"), tiny)
    pipe.load_ip_adapter([adapter_weights(tiny["unet"], 0)], subfolder=None, weight_name=None)
    inputs = EDIT | {
        "image": picture(40, 56),
        "control_image": picture(40, 56, 1),
        "ip_adapter_image": picture(30, 30, 2),
    }
    made = fan(pipe, diffdiff_map=torch.zeros(40, 56), **inputs, strengths=(0.5, 1), generator=seeded())
    for strength, result in zip((0.5, 1), made.results, strict=True):
        (expected,) = pipe(
            diffdiff_map=torch.zeros(40, 56), **inputs, strength=strength, generator=seeded(), output="images"
        )
        assert relative(result, expected) < 1e-4


# The block alone


@pytest.mark.parametrize("behind", ["read_map", "check_inputs"])
def test_in_a_workflow_of_ones_own_the_block_makes_the_batch(tiny, behind):
    blocks = SDXLDiffDiffBlocks()
    blocks.sub_blocks.insert("fan", DiffDiffFanStep(), list(blocks.sub_blocks).index(behind))
    pipe = build(blocks, tiny)
    with pytest.raises(BadInputError, match=r"`fan_strengths` is 0\.5; it takes 2 to 100 rising numbers"):
        pipe(**EDIT, image=picture(), diffdiff_map=torch.zeros(32, 32), fan_strengths=0.5)
    noise = torch.randn(1, 4, 4, 4, generator=seeded())
    inputs = EDIT | {"image": picture(), "diffdiff_map": torch.zeros(32, 32)}
    state = pipe(**inputs, noise=noise, generator=seeded(1))
    assert len(state.images) == 6  # five strengths by default, and the strips
    single = diffdiff(tiny)(**inputs, strength=0.6, noise=noise, generator=seeded(1))
    assert relative(state.latents[2:3], single.latents) < 1e-4


def test_all_of_a_fan_draw_the_same_numbers():
    generator = seeded(5)
    torch.randn(3, generator=generator)
    expected = torch.randn(8, generator=generator)
    generator = seeded(5)
    torch.randn(3, generator=generator)
    made = same_noise(generator, 3)
    assert made[0] is generator
    for one in made:
        assert torch.equal(torch.randn(8, generator=one), expected)


def test_without_a_generator_the_noise_is_one_that_torchs_seed_decides():
    torch.manual_seed(0)
    first = [torch.randn(4, generator=one) for one in same_noise(None, 2)]
    other = [torch.randn(4, generator=one) for one in same_noise(None, 2)]
    torch.manual_seed(0)
    again = [torch.randn(4, generator=one) for one in same_noise(None, 2)]
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], other[0])
    assert torch.equal(first[0], again[0])


@pytest.mark.parametrize(("width", "count"), [(64, 5), (7, 3), (3, 5), (100, 2)])
def test_strips_are_of_equal_width_to_a_pixel(width, count):
    keep = torch.rand(2, 1, 4, width, generator=seeded())
    strengths = tuple(np.linspace(0.1, 1, count).tolist())
    torch.testing.assert_close(turn_down_in_strips(keep, strengths), strips_by_hand(keep, strengths))


def test_at_strength_1_a_map_is_as_it_was():
    keep = torch.rand(1, 1, 64, 64, generator=seeded())
    assert torch.equal(turn_down(keep, 1), keep)
    assert torch.equal(turn_down(keep, 0), torch.ones_like(keep))


def test_the_pipeline_stays_as_it_is(tiny):
    pipe = diffdiff(tiny)
    names = list(pipe.blocks.sub_blocks)
    fan(pipe, picture(), **EDIT, generator=seeded())
    assert list(pipe.blocks.sub_blocks) == names
    assert pipe.unet is tiny["unet"]


# What is refused


@pytest.fixture
def no_model_runs():
    hook = torch.nn.modules.module.register_module_forward_pre_hook(lambda *_: pytest.fail("a model ran"))
    yield
    hook.remove()


BAD_STRENGTHS = [
    (),
    (0.5,),
    (0.5, 0.2),
    (0.5, 0.5),
    (-0.1, 0.5),
    (0.5, 1.1),
    (0.5, math.nan),
    ("0.1", 0.5),
    0.5,
    "0.2,1",
]


@pytest.mark.usefixtures("no_model_runs")
@pytest.mark.parametrize(
    "strengths", [*BAD_STRENGTHS, tuple(np.linspace(0, 1, 101))], ids=lambda value: repr(value)[:30]
)
def test_bad_strengths_are_refused_before_a_model_runs(tiny, strengths):
    with pytest.raises(BadInputError, match=r"`fan_strengths` is .*; it takes 2 to 100 rising numbers in \[0, 1\]"):
        fan(diffdiff(tiny), picture(), "a pear", strengths=strengths)


@pytest.mark.usefixtures("no_model_runs")
@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({"prompt": ["a pear", "a cup"]}, "`prompt` is for 2; a fan shows one edit"),
        ({"num_images_per_prompt": 2}, "`num_images_per_prompt` is for 2"),
        ({"diffdiff_map": torch.zeros(2, 1, 8, 8)}, "`diffdiff_map` is for 2"),
        ({"generator": [seeded(), seeded()]}, "`generator` is a list of 2; it takes one generator"),
        ({"invert_diffdiff_map": True}, "`diffdiff_map` is missing"),
        ({"image": None}, "`image` is None; it takes PIL images"),
        ({"diffdiff_map": torch.full((8, 8), 2.0)}, "`diffdiff_map` has values from 2 to 2"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_makes_no_fan_is_refused_before_a_model_runs(tiny, inputs, says):
    with pytest.raises(BadInputError, match=says):
        fan(diffdiff(tiny), **{"image": picture(), "prompt": "a pear"} | inputs)


def test_a_pipeline_without_a_change_map_is_refused(tiny):
    with pytest.raises(
        BadInputError, match=r"`pipe` is .*SequentialPipelineBlocks.*; it takes a pipeline with a change"
    ):
        fan(image_to_image(tiny), picture(), "a pear")


# The sheet


def columns_with_ink(sheet: Image.Image, top: int, side: int) -> list[tuple[int, int]]:
    """First and last column of each label below this row; `side` is the longer one of the pictures."""
    dark = (np.asarray(sheet.convert("L"))[top:] < 128).any(0).nonzero()[0]
    blanks = np.flatnonzero(np.diff(dark) > side / 35)  # wider than a space
    return [(part[0], part[-1]) for part in np.split(dark, blanks + 1)]


def red(size: tuple[int, int], value: int) -> Image.Image:
    """A colour that no label has."""
    return Image.new("RGB", size, (value, 90, 90))


def place_of(sheet: Image.Image, value: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what is as red as this."""
    rows, columns = np.nonzero((np.asarray(sheet) == (value, 90, 90)).all(-1))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


@pytest.mark.parametrize("size", [(64, 64), (256, 256), (900, 500), (4000, 3000), (200, 4000), (20, 90)])
def test_each_result_stands_above_its_strength(size):
    reds = (150, 170, 190, 210)
    sheet = draw_fan(StrengthFan((0.5, 0.75, 0.9), [red(size, value) for value in reds[:3]], red(size, reds[3])))
    lefts, tops, rights, bottoms = zip(*(place_of(sheet, value) for value in reds), strict=True)
    assert list(lefts) == sorted(lefts)
    width, height = rights[0] - lefts[0], bottoms[0] - tops[0]
    assert len({*tops}) == len({*bottoms}) == 1
    assert {right - left for left, right in zip(lefts, rights, strict=True)} == {width}
    assert 256 <= max(width, height) <= 1024
    assert width / height == pytest.approx(size[0] / size[1], rel=0.03)
    top = bottoms[0] + max(width, height) // 40  # below the strips' edges
    labels = columns_with_ink(sheet, top, max(width, height))
    middles = [(left + right) / 2 for left, right in zip(lefts, rights, strict=True)]
    assert [(left + right) / 2 for left, right in labels[:3]] == pytest.approx(middles[:3], abs=4)
    assert labels[0][0] > 0
    assert labels[-1][1] < sheet.width - 1
    lines = (np.asarray(sheet.convert("L"))[top:] < 128).any(1)
    assert 10 <= lines.sum() < max(width, height) / 10  # one line, that can be read
    assert not lines[-1]


def test_pixels_are_as_they_were_or_enlarged_by_a_whole_factor():
    large, small = picture(300, 280), picture(40, 50, 1)
    sheet = np.asarray(draw_fan(StrengthFan((0.5, 1.0), [large, large], large)))
    left, top = 19, 19
    np.testing.assert_array_equal(sheet[top : top + 300, left : left + 280], np.asarray(large))
    sheet = np.asarray(draw_fan(StrengthFan((0.5, 1.0), [small, small], small)))
    enlarged = np.asarray(small).repeat(6, 0).repeat(6, 1)
    left, top = 19, 19
    np.testing.assert_array_equal(sheet[top : top + 240, left : left + 300], enlarged)


@pytest.mark.parametrize("count", [2, 5, 30, 100])
def test_strips_have_edges_and_labels_that_do_not_touch(count):
    strengths = tuple((np.arange(count) + 1) / count)
    sheet = draw_fan(StrengthFan(strengths, [red((300, 200), 200)] * count, red((300, 200), 150)))
    left, _, right, bottom = place_of(sheet, 150)
    below = sheet.crop((left - 10, bottom, right + 10, sheet.height))
    dark = np.asarray(below.convert("L"))[1] < 128
    edges = np.flatnonzero(dark & ~np.roll(dark, 1)) - 10
    np.testing.assert_allclose(edges, np.linspace(0, right - left - 1, count + 1), atol=1.01)
    labels = columns_with_ink(below, 8, 300)
    assert 2 <= len(labels) <= count
    if count <= 5:  # all of them, each below the middle of its strip
        middles = (np.arange(count) + 0.5) * (right - left) / count
        np.testing.assert_allclose(np.mean(labels, 1) - 10, middles, atol=3)


def test_what_is_transparent_is_white():
    glass = picture(256, 256).convert("RGBA")
    glass.putalpha(0)
    sheet = np.asarray(draw_fan(StrengthFan((0.5, 1.0), [glass, glass], glass)))
    assert (sheet[20:270] == 255).all()
