"""Differential diffusion with every image family, one mechanism: laws of the method on tiny random parts."""

import copy
import functools
import inspect
import math

import diffusers
import numpy as np
import pytest
import torch
from diffusers import ClassifierFreeGuidance, FlowMatchHeunDiscreteScheduler, UniPCMultistepScheduler
from diffusers.modular_pipelines import (
    LoopSequentialPipelineBlocks,
    ModularPipeline,
    ModularPipelineBlocks,
    SequentialPipelineBlocks,
)
from diffusers.modular_pipelines.modular_pipeline_utils import InputParam
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image

from modular_diffdiff import (
    BadInputError,
    FamilyTraits,
    SDXLDiffDiffAutoBlocks,
    SDXLDiffDiffBlocks,
    add_diffdiff,
    catalog,
    families,
)
from modular_diffdiff.blocks.diffdiff_match import to_lab
from modular_diffdiff.blocks.diffdiff_pixels import size_and_canvas
from modular_diffdiff.blocks.diffdiff_sources import linear_gradient

from . import families as table
from .families import FAMILIES, NOT_OPENED, SHORT, denoiser_of, flow, parts_of
from .helpers import Calls, Overwrite, adapter_weights, picture, relative, seeded, shape_of
from .helpers import build as build_sdxl
from .videos import VIDEOS


STRENGTH = [name for name, family in FAMILIES.items() if family.strength]
EDITS = [name for name, family in FAMILIES.items() if not family.strength]
BATCHES = [name for name, family in FAMILIES.items() if not family.references]
GUIDED = [name for name, family in FAMILIES.items() if family.guided]
TEXT2IMAGE = [name for name, family in FAMILIES.items() if "text2image" in (family.upstream._workflow_map or {})]
# these bring every image to a size of their own, here 64 x 64 pixels
SIZING = ["qwen-edit", "qwen-edit-plus", "qwen21", "qwen21-turbo"]

# workflows that open beside "diffdiff"
CONTROLLED = ("controlnet_diffdiff", "controlnet_union_diffdiff")
WITH_CONTROL = {
    "qwen": ("controlnet_diffdiff",),
    "sdxl": (*CONTROLLED, "ip_adapter_diffdiff", *(f"ip_adapter_{name}" for name in CONTROLLED)),
}

OF_UPSTREAM = {family.blocks_class.upstream: family.blocks_class for family in catalog.FAMILIES.values()}
CLASSES = {name: OF_UPSTREAM[family.upstream] for name, family in FAMILIES.items()}
HALF = torch.cat([torch.ones(64, 32), torch.zeros(64, 32)], 1)
# kept, free from the start, and from the second and the third of four steps
LEVELS = torch.tensor([1.0, 0.0, 0.25, 0.5]).repeat_interleave(16).repeat(64, 1)


@pytest.fixture(autouse=True)
def small_edits(monkeypatch):
    """Qwen-Image-Edit brings every image to a million pixels; here to 64 x 64."""
    from diffusers.modular_pipelines.qwenimage import encoders

    calculate = encoders.calculate_dimensions
    monkeypatch.setattr(encoders, "calculate_dimensions", lambda area, ratio: calculate(64 * 64, ratio))


def build(blocks: ModularPipelineBlocks, name: str, **replaced):
    """A pipeline of these blocks and a family's tiny parts, that shows no progress."""
    pipe = blocks.init_pipeline()
    parts = parts_of(name) | replaced
    pipe.update_components(**{key: part for key, part in parts.items() if key in pipe.component_names})
    return pipe


@functools.cache
def workflow(name: str, workflow_name: str = "diffdiff") -> ModularPipelineBlocks:
    blocks = CLASSES[name]().get_workflow(workflow_name)
    for popped in FAMILIES[name].popped:
        blocks.sub_blocks.pop(popped)
    return blocks


def tree(name: str) -> ModularPipelineBlocks:
    """All of a family's blocks, those that these tests do without left out."""
    blocks = CLASSES[name]()
    for branch in blocks.sub_blocks.values():
        for popped in FAMILIES[name].popped:
            branch.sub_blocks.pop(popped)
    return blocks


def loop_of(blocks: ModularPipelineBlocks) -> LoopSequentialPipelineBlocks:
    return next(block for block in blocks.sub_blocks.values() if isinstance(block, LoopSequentialPipelineBlocks))


def ours(name: str, without: tuple[str, ...] = (), **replaced):
    """A family's workflow with a change map, without some of the blocks of ours."""
    blocks = copy.deepcopy(workflow(name))
    for sub_blocks in (blocks.sub_blocks, loop_of(blocks).sub_blocks):
        for key in list(sub_blocks):
            if key.split(".")[-1] in without:
                sub_blocks.pop(key)
    return build(blocks, name, **replaced)


def theirs(name: str, **replaced):
    """Upstream's workflow that starts from an image."""
    blocks = FAMILIES[name].blocks().get_execution_blocks(prompt=True, image=True)
    return build(blocks, name, **replaced)


def undecoded(pipe):
    """Without the blocks behind the loop and its unpacking: some of upstream's decoders write into the latents."""
    for key in list(pipe.blocks.sub_blocks):
        if key.split(".")[0] in ("decode", "crop", "match_colors", "overlay"):
            pipe._blocks.sub_blocks.pop(key)
    return pipe


def grid_of(latents: torch.Tensor) -> torch.Tensor:
    """Latents without a frame axis."""
    return latents.squeeze(2) if latents.ndim == 5 else latents


def run(pipe, name: str, **options):
    """A short run of either; every option can be replaced."""
    defaults = {
        "prompt": "a green pear",
        "image": picture(64, 64),
        "num_inference_steps": 4,
        "generator": seeded(),
        "output_type": "pt",
    }
    if "diffdiff_map" in pipe.blocks.input_names:
        defaults["diffdiff_map"] = HALF
    elif FAMILIES[name].strength or name == "flux-kontext":
        defaults |= {"height": 64, "width": 64}
    if "max_area" in pipe.blocks.input_names:
        defaults["max_area"] = 64 * 64
    options = defaults | FAMILIES[name].inputs | options
    taken = pipe.blocks.input_names
    return pipe(**{key: value for key, value in options.items() if key in taken or key not in defaults})


def unpacked(pipe, state, values: torch.Tensor) -> torch.Tensor:
    """Values of the loop's shape on their grid, by upstream's own blocks behind the loop: (B, C, h, w)."""
    state = copy.deepcopy(state)
    keys = list(pipe.blocks.sub_blocks)
    loop = next(key for key in keys if isinstance(pipe.blocks.sub_blocks[key], LoopSequentialPipelineBlocks))
    state.set("latents", values)
    for key in keys[keys.index(loop) + 1 :]:
        if key.startswith("denoise."):
            pipe.blocks.sub_blocks[key](pipe, state)
    return grid_of(state.latents)


# The parts


@pytest.mark.parametrize("name", TEXT2IMAGE)
def test_upstream_draws_with_these_parts(name):
    pipe = build(FAMILIES[name].blocks(), name)
    state = run(pipe, name, image=None, height=64, width=64)
    assert state.images.shape[2:] == (64, 64)
    assert state.images.isfinite().all()


@pytest.mark.parametrize("name", FAMILIES)
def test_upstream_edits_with_these_parts(name):
    options = {"strength": 0.5} if FAMILIES[name].strength else {}
    first, second = (run(theirs(name), name, image=picture(64, 64, seed), **options).images for seed in (0, 1))
    assert first.shape[2:] == (64, 64)
    assert first.isfinite().all()
    assert not torch.equal(first, second)  # it looks at the image


# The paper's algorithm


def through_loop(name: str, loop: LoopSequentialPipelineBlocks | None, **options):
    """The latents that leave a loop, in its own layout: ours without `restore`, or another one in its place."""
    pipe = ours(name, without=("restore", "skip_frozen"))
    blocks = pipe._blocks.sub_blocks
    keys = list(blocks)
    place = keys.index(next(key for key in keys if isinstance(blocks[key], LoopSequentialPipelineBlocks)))
    for key in keys[place + 1 :]:
        blocks.pop(key)
    blocks[keys[place]] = loop or blocks[keys[place]]
    return run(pipe, name, **options)


@pytest.mark.parametrize("name", FAMILIES)
def test_without_restore_the_loop_is_the_papers_algorithm(name):
    plain = copy.deepcopy(loop_of(theirs(name).blocks))
    plain.sub_blocks.insert("overwrite", Overwrite(), 0)
    expected = through_loop(name, plain, diffdiff_map=LEVELS)
    assert len(expected.release_steps.unique()) == 4
    assert relative(through_loop(name, None, diffdiff_map=LEVELS).latents, expected.latents) < 1e-5


@pytest.mark.parametrize("name", FAMILIES)
def test_without_restore_what_is_kept_leaks(name):
    pipe = undecoded(ours(name, without=("restore", "skip_frozen")))
    state = run(pipe, name)
    original = unpacked(pipe, state, state.image_latents)
    kept = original.shape[-1] // 2
    latents = grid_of(state.latents)
    assert relative(latents[..., :kept], original[..., :kept]) > 0.01


# Keep law


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_kept_ends_as_the_encoded_original_bit_for_bit(name, steps):
    """The oracle is upstream's own encoder: the state right after it, and the grid before anything packs it."""
    pipe = undecoded(ours(name))
    state = run(pipe, name, num_inference_steps=steps)
    latents = grid_of(state.latents)
    original = encoded(name)
    kept = latents.shape[-1] // 2
    assert latents.isfinite().all()
    assert torch.equal(latents[..., :kept], original[..., :kept])
    assert relative(latents[..., kept:], original[..., kept:]) > 0.1


@functools.cache
def encoded(name: str) -> torch.Tensor:
    """The original as upstream's encoder leaves it, on its grid."""
    pipe = theirs(name)
    blocks = pipe._blocks.sub_blocks
    entry = CLASSES[name].family.original
    maker = next(place for place, block in enumerate(blocks.values()) if entry in block.intermediate_output_names)
    for key in list(blocks)[maker + 1 :]:
        blocks.pop(key)
    original = run(pipe, name).get(entry)
    original = original[0] if isinstance(original, list) else original
    return grid_of(original)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_original_in_the_loop_is_the_encoded_one(name):
    pipe = undecoded(ours(name))
    state = run(pipe, name)
    assert torch.equal(unpacked(pipe, state, state.image_latents), encoded(name))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_white_map_is_the_round_trip_of_the_autoencoder(name):
    pipe = undecoded(ours(name))
    with Calls(denoiser_of(name)) as calls:
        state = run(pipe, name, diffdiff_map=torch.ones(64, 64))
    latents = grid_of(state.latents)
    assert calls.made == 0
    assert torch.equal(latents, encoded(name))


# Where the map lies


@pytest.mark.parametrize("spot", [(1, 2), (3, 1)])
@pytest.mark.parametrize("name", FAMILIES)
def test_each_element_is_released_where_the_map_says(name, spot):
    """Brute force on the grid, and upstream's own unpacking."""
    row, column = spot
    keep = torch.full((64, 64), 0.5)
    keep[16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = 1.0
    keep[0:8, 56:64] = 0.25
    pipe = undecoded(ours(name, without=("skip_frozen",)))
    state = run(pipe, name, diffdiff_map=keep)
    released = unpacked(pipe, state, state.release_steps.expand_as(state.image_latents).float())
    rows, columns = released.shape[-2:]
    high, wide = 64 // rows, 64 // columns
    for r in range(rows):
        for c in range(columns):
            mean = keep[r * high : (r + 1) * high, c * wide : (c + 1) * wide].mean().item()
            assert (released[0, :, r, c] == int(np.ceil(4 * mean - 1e-6))).all(), (r, c)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_loop_has_the_layout_that_the_row_says(name):
    state = run(ours(name), name, num_inference_steps=1)
    latents, (rows, columns) = state.image_latents, state.placement.grid or state.image_latents.shape[-2:]
    if latents.ndim == 3:
        patch = math.isqrt(rows * columns // latents.shape[1])
        assert FAMILIES[name].layout == f"tokens of {patch} x {patch}"
    else:
        assert FAMILIES[name].layout == {4: "grid", 5: "grid with a frame axis"}[latents.ndim]


# Strength law

# steps in all, and those of them that run
GRID = [(1, 1), (3, 2), (8, 3), (8, 7)]


def strength(steps: int, runs: int, name: str = "flux") -> float:
    if name == "sdxl":
        return (
            (runs + 0.01) / steps if runs < steps else 1.0
        )  # rounds the number of steps down, flow families their start
    return min((runs - 0.01) / steps, 1.0) if runs < steps else 1.0


@pytest.mark.parametrize(("steps", "runs"), GRID)
@pytest.mark.parametrize("name", STRENGTH)
def test_a_constant_map_is_upstreams_image_to_image(name, steps, runs):
    keep = torch.full((64, 64), (steps - runs) / steps)
    state = run(ours(name), name, diffdiff_map=keep, num_inference_steps=steps)
    expected = run(theirs(name), name, num_inference_steps=steps, strength=strength(steps, runs, name))
    assert len(state.timesteps) == len(expected.timesteps) == runs
    assert relative(state.latents, expected.latents) < 1e-5
    if runs == steps:
        assert torch.equal(state.images, expected.images)


@pytest.mark.parametrize("name", STRENGTH)
def test_a_black_map_turned_down_is_image_to_image_at_that_strength(name):
    state = run(ours(name), name, diffdiff_map=torch.zeros(64, 64), strength=0.5, num_inference_steps=8)
    expected = run(theirs(name), name, num_inference_steps=8, strength=strength(8, 4, name))
    assert relative(state.latents, expected.latents) < 1e-5


@pytest.mark.parametrize("runs", [2, 4])
@pytest.mark.parametrize("name", STRENGTH)
def test_in_bfloat16_too(name, runs):
    parts = copy.deepcopy(parts_of(name))
    results = []
    for pipe, options in (
        (ours(name, **parts), {"diffdiff_map": torch.full((64, 64), 1 - runs / 4)}),
        (theirs(name, **parts), {"strength": strength(4, runs, name)}),
    ):
        pipe.to(dtype=torch.bfloat16)
        results.append(run(pipe, name, **options).latents.float())
    # Z-Image noises in the autoencoder's precision, and keeps the latents in float32
    assert relative(*results) <= (0.05 if name == "z-image" and runs < 4 else 0)


@pytest.mark.parametrize("name", EDITS)
def test_a_black_map_is_the_edit_model_bit_for_bit(name):
    state = run(ours(name), name, diffdiff_map=torch.zeros(64, 64))
    assert torch.equal(state.images, run(theirs(name), name).images)


SHIFTS = {"static": {"shift": 3.0}, "dynamic": {"use_dynamic_shifting": True}}


@pytest.mark.parametrize(
    ("name", "shift"),
    # Anima's steps give no `mu`, which dynamic shifting needs
    [
        (name, shift)
        for name in STRENGTH
        for shift in SHIFTS
        if name != "sdxl" and (name, shift) != ("anima", "dynamic")
    ],
)
def test_with_either_shift_of_the_schedule(name, shift):
    shift = SHIFTS[shift]
    pipe = undecoded(ours(name, scheduler=flow(**shift)))
    state = run(pipe, name, diffdiff_map=LEVELS)
    original = encoded(name)
    latents = grid_of(state.latents)
    assert torch.equal(latents[..., :2], original[..., :2])
    state = run(ours(name, scheduler=flow(**shift)), name, diffdiff_map=torch.full((64, 64), 0.5))
    expected = run(theirs(name, scheduler=flow(**shift)), name, strength=strength(4, 2, name))
    assert relative(state.latents, expected.latents) < 1e-5


# Guidance


@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize("name", GUIDED)
def test_a_guider_counts_with_the_steps_that_run(name, scale):
    pipe = undecoded(ours(name, guider=ClassifierFreeGuidance(guidance_scale=scale)))
    with Calls(denoiser_of(name)) as calls:
        state = run(pipe, name, diffdiff_map=torch.full((64, 64), 0.5))
    assert calls.made == 2 * (1 if scale == 1 else 2)
    assert len(state.timesteps) == state.num_inference_steps == 2


@pytest.mark.parametrize("name", ["flux", "flux-kontext", "flux2"])
def test_distilled_guidance_reaches_what_is_released_alone(name):
    low, high = (run(undecoded(ours(name)), name, guidance_scale=scale).latents for scale in (1.0, 9.0))
    kept = low.shape[-1] // 2
    assert torch.equal(low[..., :kept], high[..., :kept])
    assert not torch.equal(low, high)


@pytest.mark.parametrize("name", ["sd3", "qwen", "anima"])
def test_guidance_holds_to_the_end_of_second_order_schedules(name):
    with Calls(denoiser_of(name)) as calls:
        pipe = undecoded(ours(name, scheduler=Heun(), guider=ClassifierFreeGuidance(guidance_scale=4.0)))
        state = run(pipe, name, num_inference_steps=3)
    latents = grid_of(state.latents)
    assert calls.made == 2 * 5
    assert torch.equal(latents[..., :4], encoded(name)[..., :4])


class Heun(FlowMatchHeunDiscreteScheduler):
    """Qwen-Image's and Anima's steps ask for sigmas, which Heun's schedule does not take."""

    def set_timesteps(self, num_inference_steps=None, device=None, sigmas=None, mu=None):
        super().set_timesteps(num_inference_steps or len(sigmas), device)


@pytest.mark.parametrize("name", ["flux", "qwen-edit"])
def test_by_timestep_the_noise_level_decides(name):
    """A shifted schedule stays noisy for long: half the noise is reached after more than half the steps."""
    pipe = undecoded(ours(name, scheduler=flow(shift=3.0)))
    keep = torch.full((64, 64), 0.5)
    first = [
        run(pipe, name, diffdiff_map=keep, num_inference_steps=8, diffdiff_schedule=schedule).timesteps[0].item()
        for schedule in ("step", "timestep")
    ]
    timesteps = 1000 * 3 * torch.linspace(1, 1 / 8, 8) / (1 + 2 * torch.linspace(1, 1 / 8, 8))
    assert first[0] == pytest.approx(timesteps[4].item(), rel=1e-4)
    assert first[1] == pytest.approx(timesteps[timesteps <= 500][0].item(), rel=1e-4)


# Skipping


@pytest.mark.parametrize(("darkest", "runs"), [(0.25, 6), (0.8, 1)])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_darkest_value_decides_how_many_steps_run(name, darkest, runs):
    keep = torch.ones(64, 64)
    keep[:, :32] = darkest
    pipe = undecoded(ours(name, **({"guider": ClassifierFreeGuidance(guidance_scale=1.0)} if name in GUIDED else {})))
    with Calls(denoiser_of(name)) as calls:
        state = run(pipe, name, diffdiff_map=keep, num_inference_steps=8)
    assert calls.made == len(state.timesteps) == runs


@pytest.mark.parametrize("name", FAMILIES)
def test_skipping_changes_no_latents(name):
    keep = LEVELS.clamp(min=0.25)
    skipped, whole = (
        run(undecoded(ours(name, without)), name, diffdiff_map=keep) for without in ((), ("skip_frozen",))
    )
    assert len(skipped.timesteps) < len(whole.timesteps)
    assert relative(skipped.latents, whole.latents) < 1e-5


# Batches


PROMPTS = ["a green pear", "a blue cup"]
MAPS = [HALF, 1 - HALF]


@functools.cache
def alone(name: str, prompt: int, image: int, seed: int) -> torch.Tensor:
    """An output of a run of its own."""
    options = {"prompt": PROMPTS[prompt], "image": picture(64, 64, image), "diffdiff_map": MAPS[image]}
    return run(undecoded(ours(name)), name, generator=seeded(seed), **options).latents


@pytest.mark.parametrize(("num_prompts", "per_prompt", "num_images"), [(2, 1, 1), (1, 2, 1), (2, 2, 2)])
@pytest.mark.parametrize("name", BATCHES)
def test_each_output_of_a_batch_is_the_one_of_its_own_run(name, num_prompts, per_prompt, num_images):
    outputs = num_prompts * per_prompt
    state = run(
        undecoded(ours(name)),
        name,
        prompt=PROMPTS if num_prompts > 1 else PROMPTS[0],
        image=[picture(64, 64, seed) for seed in range(num_images)],
        diffdiff_map=MAPS[:num_images],
        num_images_per_prompt=per_prompt,
        generator=[seeded(k) for k in range(outputs)],
    )
    assert len(state.latents) == outputs
    for k in range(outputs):
        prompt = k // per_prompt
        expected = alone(name, prompt, min(prompt, num_images - 1), k)
        assert relative(state.latents[k : k + 1], expected) < 1e-4


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.references])
def test_several_outputs_of_one_reference(name):
    state = run(undecoded(ours(name)), name, num_images_per_prompt=2, generator=[seeded(k) for k in range(2)])
    for k in range(2):
        assert relative(state.latents[k : k + 1], alone(name, 0, 0, k)) < 1e-4


@pytest.mark.parametrize("name", ["qwen", "z-image"])
def test_a_run_leaves_the_callers_lists_alone(name):
    """Z-Image's text encoder writes the chat into the list that it is given."""
    prompt, image, maps = list(PROMPTS), [picture(64, 64)], [HALF.clone()]
    run(ours(name), name, prompt=prompt, image=image, diffdiff_map=maps)
    assert prompt == PROMPTS
    assert image[0].size == (64, 64)
    assert torch.equal(maps[0], HALF)


# Sizes


@pytest.mark.parametrize("size", [(37, 61), (9, 17)])
@pytest.mark.parametrize("name", FAMILIES)
def test_pictures_of_any_size_come_back_at_their_size(name, size):
    keep = torch.ones(size)
    keep[:, size[1] // 2 :] = 0
    state = run(ours(name), name, image=picture(*size), diffdiff_map=keep, num_inference_steps=2, overlay=True)
    assert state.images.shape[2:] == size
    if name not in SIZING:
        images = run(ours(name), name, image=picture(*size), diffdiff_map=keep, num_inference_steps=2).images
        assert images.shape[2:] == size


@pytest.mark.parametrize("size", [(37, 61), (7, 32)])
@pytest.mark.parametrize("name", STRENGTH)
def test_floats_go_in_at_full_precision(name, size):
    """With a black map this is upstream's image-to-image of the same floats, reflected to whole patches."""
    cell = 8 * FAMILIES[name].patch
    pixels = torch.rand(*size, 3, generator=seeded(4)).numpy()
    reflected = np.pad(pixels, ((0, -size[0] % cell), (0, -size[1] % cell), (0, 0)), mode="reflect")
    height, width = reflected.shape[:2]
    reflected = torch.from_numpy(reflected).permute(2, 0, 1)[None]
    expected = run(theirs(name), name, image=reflected, strength=1.0, height=height, width=width)
    black = np.zeros(size)
    for image in (pixels, torch.from_numpy(pixels).permute(2, 0, 1)):
        assert torch.equal(run(ours(name), name, image=image, diffdiff_map=black).latents, expected.latents)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in SIZING])
def test_padding_leaves_pixels_where_they_were(name):
    """With everything kept, an odd size is the round trip of the picture reflected at its right and lower edges."""
    pixels = np.asarray(picture(69, 75))
    cell = 8 * FAMILIES[name].patch
    reflected = np.pad(pixels, ((0, -69 % cell), (0, -75 % cell), (0, 0)), mode="reflect")
    odd, padded = (
        run(ours(name), name, image=Image.fromarray(array), diffdiff_map=np.ones(array.shape[:2])).images
        for array in (pixels, reflected)
    )
    assert torch.equal(odd, padded[..., :69, :75])


@pytest.mark.parametrize("name", STRENGTH)
def test_height_and_width_are_the_size_that_the_image_is_brought_to(name):
    state = run(ours(name), name, diffdiff_map=torch.zeros(64, 64), height=48, width=80)
    expected = run(theirs(name), name, height=48, width=80, strength=1.0)
    assert torch.equal(state.latents, expected.latents)


@pytest.mark.parametrize(("name", "largest"), [("flux2", 1024 * 1024), ("flux3", 4 * 1024 * 1024)])
def test_what_upstream_would_make_smaller_is_made_smaller_before_it_is_padded(name, largest):
    for size in [(1500, 1000), (2900, 2333), (900, 1200), (4096, 4096)]:
        smaller, canvas = size_and_canvas(*size, 16, CLASSES[name].family.least_side, CLASSES[name].family.largest_area)
        assert canvas[0] * canvas[1] <= largest
        assert all(side % 16 == 0 and 0 <= side - own < 16 for side, own in zip(canvas, smaller, strict=True))
        assert smaller[0] / smaller[1] == pytest.approx(size[0] / size[1], rel=5e-3)
        assert smaller == size or canvas[0] * canvas[1] > 0.95 * largest


# Pixels


@pytest.mark.parametrize("name", FAMILIES)
def test_an_overlay_brings_the_pixels_back(name):
    image = picture(64, 64)
    (result,) = run(ours(name), name, overlay=True, output_type="pil").images
    np.testing.assert_array_equal(np.asarray(result)[:, :32], np.asarray(image)[:, :32])
    assert (np.asarray(result)[:, 32:] != np.asarray(image)[:, 32:]).mean() > 0.9


@pytest.mark.parametrize("name", FAMILIES)
def test_softness_leaves_what_is_kept_exact(name):
    keep = torch.ones(64, 64)
    keep[:, 32:] = 0.4
    hard, soft = (
        grid_of(run(undecoded(ours(name)), name, diffdiff_map=keep, diffdiff_softness=softness).latents)
        for softness in (0.0, 0.6)
    )
    half = encoded(name).shape[-1] // 2
    assert torch.equal(soft[..., :half], encoded(name)[..., :half])
    assert relative(soft[..., half:], hard[..., half:]) > 1e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_colours_are_matched_and_the_map_is_shown(name):
    state = run(ours(name), name, match_colors=True, preview_map=True)
    result = state.images[0].permute(1, 2, 0).double().numpy()
    found, wanted = (to_lab(image[:, :32]).mean((0, 1)) for image in (result, np.asarray(picture(64, 64)) / 255))
    np.testing.assert_allclose(found, wanted, atol=0.01)
    assert [shown.width for shown in state.map_preview] == [64]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_box_of_a_large_picture_is_edited_alone(name):
    image, keep = picture(300, 400), np.ones((300, 400))
    keep[100:140, 200:240] = 0
    (result,) = run(ours(name), name, image=image, diffdiff_map=keep, padding_map_crop=12, output_type="pil").images
    np.testing.assert_array_equal(np.asarray(result)[keep == 1], np.asarray(image)[keep == 1])
    assert (np.asarray(result)[keep == 0] != np.asarray(image)[keep == 0]).mean() > 0.9


# Without a map, and upstream's trees


@pytest.mark.parametrize("name", FAMILIES)
def test_upstreams_trees_stay_as_they_are(name):
    family = FAMILIES[name]
    given = family.blocks()
    before, fresh = shape_of(given), shape_of(family.upstream())
    add_diffdiff(given, CLASSES[name].family)
    CLASSES[name]()
    assert shape_of(given) == before
    assert shape_of(family.upstream()) == fresh


@pytest.mark.parametrize("name", FAMILIES)
def test_without_a_map_a_pipeline_is_upstreams_bit_for_bit(name):
    family = FAMILIES[name]
    both = build(add_diffdiff(family.blocks(), CLASSES[name].family), name)
    images = [None, picture(64, 64)] if name in TEXT2IMAGE else [picture(64, 64)]
    for image in images:
        options = {"image": image, "height": 64, "width": 64} if image is None or family.strength else {"image": image}
        if name == "flux-kontext":
            options |= {"height": 64, "width": 64}
        result, expected = (
            run(pipe, name, **options, **more).images
            for pipe, more in ((both, {"diffdiff_map": None}), (build(family.blocks(), name), {}))
        )
        assert torch.equal(result, expected)


@pytest.mark.parametrize("given", [{"overlay": True}, {"invert_diffdiff_map": True}, {"padding_map_crop": 8}])
@pytest.mark.parametrize("name", FAMILIES)
def test_what_needs_a_map_is_refused_without_one(name, given):
    blocks = tree(name)
    with pytest.raises(BadInputError, match=f"`{next(iter(given))}` is .*; it only applies with a `diffdiff_map`"):
        run(build(blocks, name), name, diffdiff_map=None, **given)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_whole_tree_with_a_map_is_its_workflow(name):
    blocks = tree(name)
    assert torch.equal(run(build(blocks, name), name, diffdiff_map=HALF).images, run(ours(name), name).images)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_makes_a_map_is_as_good_as_the_map(name):
    pipe, change_map = build(tree(name), name), linear_gradient(30, 64, 64)
    expected = run(pipe, name, diffdiff_map=change_map).latents
    assert torch.equal(run(pipe, name, diffdiff_map=None, map_gradient=30).latents, expected)
    if "mask_image" not in FAMILIES[name].blocks().input_names:
        assert torch.equal(run(pipe, name, diffdiff_map=None, mask_image=1 - change_map).latents, expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_upstreams_workflows_are_kept_and_those_that_start_from_an_image_open(name):
    upstream = FAMILIES[name].upstream._workflow_map or {}
    blocks = CLASSES[name]()
    opened = {"diffdiff", *WITH_CONTROL.get(name, ())}
    assert set(blocks.available_workflows) == set(upstream) | opened
    for workflow_name in upstream:
        expected = FAMILIES[name].upstream().get_workflow(workflow_name)
        assert shape_of(blocks.get_workflow(workflow_name))[1][1:] == shape_of(expected)[1]  # behind our check
    for workflow_name in opened:
        assert {"image", "diffdiff_map"} <= set(blocks.get_workflow(workflow_name).required_inputs)
    with pytest.raises(ValueError, match=r"Workflow .inpaint. not found"):
        blocks.get_workflow("inpaint")


@pytest.mark.parametrize("name", FAMILIES)
def test_pipelines_are_the_familys_own(name):
    expected = type(FAMILIES[name].upstream().init_pipeline())
    assert type(CLASSES[name]().init_pipeline()) is expected
    assert type(CLASSES[name]().get_workflow("diffdiff").init_pipeline()) is expected


@pytest.mark.parametrize("name", ["sd3", "flux-kontext"])
def test_a_familys_blocks_are_saved_with_their_code(name, tmp_path):
    CLASSES[name]().save_pretrained(tmp_path)
    assert {"families.py", "blocks", "modular_config.json"} <= {path.name for path in tmp_path.iterdir()}
    loaded = ModularPipelineBlocks.from_pretrained(str(tmp_path), trust_remote_code=True)
    assert type(loaded).__name__ == CLASSES[name].__name__


# ControlNet, LoRA, IP-Adapter


@pytest.mark.parametrize("window", [(0.0, 1.0), (0.0, 0.5), (0.5, 1.0)])
@pytest.mark.parametrize("runs", [2, 4])
def test_qwens_controlnet_steers_as_in_image_to_image(runs, window):
    """A window of control counts the steps that run, as it does there."""
    start, end = window
    options = {"control_image": picture(64, 64, 5), "control_guidance_start": start, "control_guidance_end": end}
    keep = torch.full((64, 64), 1 - runs / 4)
    state = run(build(workflow("qwen", "controlnet_diffdiff"), "qwen"), "qwen", diffdiff_map=keep, **options)
    upstream = FAMILIES["qwen"].blocks().get_workflow("controlnet_image2image")
    expected = run(build(upstream, "qwen"), "qwen", strength=strength(4, runs), **options)
    assert state.controlnet_keep == expected.controlnet_keep
    assert relative(state.latents, expected.latents) < 1e-5
    assert relative(state.latents, run(ours("qwen"), "qwen", diffdiff_map=keep).latents) > 1e-3


def test_a_control_image_is_cut_and_padded_along():
    """A box at the upper left, so that nothing moves: as the cut picture alone, with its map and its control image."""
    pipe = build(workflow("qwen", "controlnet_diffdiff"), "qwen")
    image, control, keep = picture(120, 90), picture(120, 90, 5), np.ones((120, 90))
    keep[:37, :50] = 0
    whole = run(pipe, "qwen", image=image, control_image=control, diffdiff_map=keep, padding_map_crop=0)
    left, top, right, bottom = whole.placement.box
    assert (left, top) == (0, 0)
    alone = run(
        pipe,
        "qwen",
        image=image.crop(whole.placement.box),
        control_image=control.crop(whole.placement.box),
        diffdiff_map=keep[:bottom, :right],
    )
    assert torch.equal(whole.latents, alone.latents)
    with pytest.raises(ValueError, match=r"`control_image` is .*64 x 64 pixels.*; it takes the image's 90 x 120"):
        run(pipe, "qwen", image=image, control_image=picture(64, 64), diffdiff_map=keep, padding_map_crop=0)


def test_each_output_has_its_own_control_image():
    pipe = build(workflow("qwen", "controlnet_diffdiff"), "qwen")
    controls = [picture(64, 64, 5), picture(64, 64, 6)]
    generators = [seeded(k) for k in range(4)]
    state = run(pipe, "qwen", prompt=PROMPTS, control_image=controls, num_images_per_prompt=2, generator=generators)
    for k in range(4):
        alone = run(pipe, "qwen", prompt=PROMPTS[k // 2], control_image=controls[k // 2], generator=seeded(k))
        assert relative(state.latents[k : k + 1], alone.latents) < 1e-4


@pytest.mark.parametrize("name", [*STRENGTH, "flux-kontext", "qwen-edit", "qwen21", "flux2", "flux3"])
def test_a_lora_acts_where_the_map_releases(name):
    part = "unet" if name == "sdxl" else "transformer"
    transformer = copy.deepcopy(denoiser_of(name))
    linear = [key.split(".")[-1] for key, module in transformer.named_modules() if isinstance(module, torch.nn.Linear)]
    targets = sorted({key for key in linear if key.startswith(("to_q", "to_v", "to_qkv"))})
    torch.manual_seed(1)
    transformer.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    weights = {f"{part}.{key}": value for key, value in get_peft_model_state_dict(transformer).items()}

    pipe = undecoded(ours(name, **{part: copy.deepcopy(denoiser_of(name))}))
    plain = grid_of(run(pipe, name).latents)
    pipe.load_lora_weights(weights)
    with_lora = grid_of(run(pipe, name).latents)
    pipe.unload_lora_weights()
    kept = plain.shape[-1] // 2
    assert torch.equal(with_lora[..., :kept], plain[..., :kept])
    assert relative(with_lora[..., kept:], plain[..., kept:]) > 1e-3
    assert torch.equal(grid_of(run(pipe, name).latents), plain)


@pytest.mark.parametrize("name", STRENGTH)
def test_a_lora_is_image_to_images(name):
    denoiser = copy.deepcopy(denoiser_of(name))
    denoiser.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    replaced = {"unet" if name == "sdxl" else "transformer": denoiser}
    state = run(ours(name, **replaced), name, diffdiff_map=torch.full((64, 64), 0.5))
    expected = run(theirs(name, **replaced), name, strength=strength(4, 2, name))
    assert relative(state.latents, expected.latents) < 1e-5


# SDXL by the same door


def test_sdxl_opened_by_the_same_door_is_our_sdxl(tiny):
    blocks = add_diffdiff(diffusers.StableDiffusionXLAutoBlocks()).get_workflow("diffdiff")
    options = {
        "prompt": "a green pear",
        "image": picture(64, 64),
        "num_inference_steps": 4,
        "diffdiff_map": LEVELS,
        "output_type": "latent",
    }
    opened, own = (
        build_sdxl(one, tiny)(generator=seeded(), **options).latents for one in (blocks, SDXLDiffDiffBlocks())
    )
    assert torch.equal(opened[..., :2], own[..., :2])
    assert relative(opened, own) < 1e-4


def test_with_ip_adapter_and_controlnet_too(tiny, controlnet, image_encoder):
    blocks = add_diffdiff(diffusers.StableDiffusionXLAutoBlocks())
    assert set(SDXLDiffDiffAutoBlocks().available_workflows) == set(blocks.available_workflows)
    unet = copy.deepcopy(tiny["unet"])
    parts = tiny | {"unet": unet, "controlnet": controlnet, "image_encoder": image_encoder}
    weights = adapter_weights(unet, seed=0)
    results = []
    for workflow_blocks in (blocks.get_workflow("ip_adapter_controlnet_diffdiff"), SDXLDiffDiffAutoBlocks()):
        pipe = build_sdxl(workflow_blocks, parts)
        pipe.load_ip_adapter(weights, subfolder="", weight_name="")
        results.append(
            pipe(
                prompt="a green pear",
                image=picture(64, 64),
                ip_adapter_image=picture(64, 64, 7),
                control_image=picture(64, 64, 5),
                diffdiff_map=LEVELS,
                num_inference_steps=4,
                generator=seeded(),
                output_type="latent",
            ).latents
        )
        pipe.unload_ip_adapter()
    assert relative(*results) < 1e-4


# Blocks of one's own


def test_a_plain_sequence_opens_too():
    flat = FAMILIES["flux"].blocks().get_workflow("image2image")
    opened = build(add_diffdiff(flat).get_workflow("diffdiff"), "flux")
    assert torch.equal(run(opened, "flux").images, run(ours("flux"), "flux").images)


def test_a_whole_pipeline_in_one_block_opens_too():
    nested = SequentialPipelineBlocks.from_blocks_dict({"draw": FAMILIES["sd3"].blocks()})
    opened = build(add_diffdiff(nested).get_workflow("diffdiff"), "sd3")
    assert torch.equal(run(opened, "sd3").images, run(ours("sd3"), "sd3").images)


def test_a_layout_can_be_told():
    """Flux's own packing, as upstream has it."""
    seen = []

    def layout(values, latents):
        seen.append(values.shape)
        grid = values.expand(-1, latents.shape[2] // 4, -1, -1)
        return diffusers.FluxPipeline._pack_latents(grid, *grid.shape)

    opened = build(
        add_diffdiff(FAMILIES["flux"].blocks(), FamilyTraits(layout=layout)).get_workflow("diffdiff"), "flux"
    )
    assert torch.equal(
        run(opened, "flux", diffdiff_map=LEVELS).images, run(ours("flux"), "flux", diffdiff_map=LEVELS).images
    )
    assert seen == [(1, 1, 8, 8)] * 2  # the release steps, and the map


class Strides(ModularPipelineBlocks):
    """A layout that nobody has heard of: every second token is missing."""

    @property
    def inputs(self):
        return [InputParam("latents", required=True, type_hint=torch.Tensor, description="Latents.")]

    def __call__(self, components, state):
        block_state = self.get_block_state(state)
        block_state.latents = block_state.latents[:, ::3]
        self.set_block_state(state, block_state)
        return components, state


def test_a_layout_that_is_not_known_is_asked_for():
    flat = FAMILIES["flux2"].blocks().get_workflow("image_conditioned")
    flat.sub_blocks.insert("strides", Strides(), list(flat.sub_blocks).index("denoise.denoise"))
    pipe = build(add_diffdiff(flat, FamilyTraits(references=True)).get_workflow("diffdiff"), "flux2")
    with pytest.raises(ValueError, match=r"grid of 4 x 4, and .* shape \(1, 6, 16\), .*`layout`"):
        run(pipe, "flux2")


@pytest.mark.parametrize(
    ("blocks", "arguments", "error", "says"),
    [
        (lambda: diffusers.FluxAutoBlocks, {}, TypeError, "it takes an instance of modular blocks"),
        (
            diffusers.FluxAutoBlocks,
            {"original": "x0"},
            ValueError,
            "makes `x0`: .* `original` .*made are image_latents",
        ),
        (diffusers.FluxAutoBlocks, {"triggers": ("prompt",)}, ValueError, "With `prompt`, no block .*`triggers`"),
        (diffusers.Krea2AutoBlocks, {}, ValueError, "no block before the denoising loop makes `image_latents`"),
        (diffusers.Flux3AutoBlocks, {}, ValueError, "made are image_cond_latents"),
        (lambda: FAMILIES["sd3"].blocks().sub_blocks["vae_encoder"], {}, ValueError, "0 denoising loops run"),
        (lambda: add_named("crop"), {}, ValueError, "one named `crop` already"),
        (SDXLDiffDiffBlocks, {}, ValueError, "take a `diffdiff_map` already"),
    ],
)
def test_what_cannot_be_opened_is_refused_with_what_would_help(blocks, arguments, error, says):
    with pytest.raises(error, match=says):
        add_diffdiff(blocks(), FamilyTraits(**arguments))


def add_named(name: str) -> SequentialPipelineBlocks:
    blocks = FAMILIES["sd3"].blocks()
    blocks.sub_blocks.insert(name, Strides(), 0)
    return blocks


class Touched(SequentialPipelineBlocks):
    """Somebody's pipeline, with a name of their own for the workflow that starts from an image."""

    block_classes, block_names = [diffusers.FluxAutoBlocks], ["flux"]
    _workflow_map = {"touch up": {"prompt": True, "image": True}}


def test_workflows_with_names_of_their_own_stay_and_open_too():
    blocks = add_diffdiff(Touched())
    assert set(blocks.available_workflows) == {"touch up", "touch up_diffdiff", "diffdiff"}
    assert "diffdiff_map" not in blocks.get_workflow("touch up").input_names
    for name in ("touch up_diffdiff", "diffdiff"):
        assert "diffdiff_map" in blocks.get_workflow(name).required_inputs


def test_kontext_does_not_stretch_an_image_to_the_sizes_that_it_was_trained_on():
    """Upstream would, by default."""
    pipe = build(workflow("flux-kontext"), "flux-kontext")
    result = pipe(
        prompt="a green pear",
        image=picture(48, 80),
        diffdiff_map=torch.ones(48, 80),
        num_inference_steps=2,
        output_type="pt",
        output="images",
        **SHORT,
    )
    assert result.shape[2:] == (48, 80)


# Bad input


@pytest.fixture
def no_model_runs(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a model ran before the input was refused")

    for name in ("sd3", "flux2"):
        for part in ("text_encoder", "transformer"):
            monkeypatch.setattr(parts_of(name)[part], "forward", refuse)
        monkeypatch.setattr(parts_of(name)["vae"], "encode", refuse)


@pytest.mark.usefixtures("no_model_runs")
@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"diffdiff_map": None}, "`diffdiff_map` is missing; it takes"),
        ({"image": None}, "`image` is missing; it takes PIL"),
        ({"diffdiff_map": torch.zeros(2, 1, 64, 64)}, "`diffdiff_map` holds 2; it takes 1, as there is one prompt"),
        ({"image": [picture(64, 64)] * 3, "prompt": ["a", "b"]}, "`image` holds 3; it takes 1 or 2"),
        ({"image": torch.full((3, 64, 64), 255.0)}, "must lie in"),
        ({"image": "photo.png"}, "`image` is 'photo.png'"),
        ({"prompt": []}, r"`prompt` is \[\]"),
        ({"prompt": ["a", 3]}, "`prompt` is"),
        ({"prompt": ["a", "b"], "prompt_2": ["a"]}, "`prompt_2` holds 1; it takes a text, or 2"),
        ({"negative_prompt": ("a",)}, "`negative_prompt` is"),
        ({"strength": 1.5}, "`strength` is 1.5; it takes a number in"),
        ({"diffdiff_schedule": "sigma"}, "`diffdiff_schedule` is 'sigma'"),
        ({"num_inference_steps": 0}, "`num_inference_steps` is 0; it takes a whole number"),
        ({"num_images_per_prompt": 0}, "`num_images_per_prompt` is 0"),
        ({"generator": [torch.Generator()] * 3}, "`generator` is a list of 3; it takes one generator, or 1"),
        ({"generator": 42}, "`generator` is 42"),
        ({"height": 2.5}, "`height` is 2.5"),
        ({"overlay": "yes"}, "`overlay` is 'yes'"),
        ({"output_type": "pill"}, "`output_type` is 'pill'"),
        ({"overlay": True, "output_type": "latent"}, "`overlay` needs pictures"),
        ({"padding_map_crop": -1}, "`padding_map_crop` is -1"),
    ],
)
def test_bad_input_is_refused_by_name(bad, says):
    with pytest.raises(ValueError, match=says):
        run(ours("sd3"), "sd3", **bad)


@pytest.mark.parametrize(
    ("control", "says"),
    [
        (torch.full((3, 64, 64), float("nan")), "`control_image` is .*finite floats"),
        (np.full((64, 64, 3), 200, dtype=np.uint8), "`control_image` is .ndarray of uint8"),
        (picture(64, 64).convert("I"), "`control_image` is .* mode 'I'"),
        ("edges.png", "`control_image` is 'edges.png'"),
    ],
)
def test_control_images_of_another_range_are_refused(control, says):
    with pytest.raises(ValueError, match=says):
        run(build(workflow("qwen", "controlnet_diffdiff"), "qwen"), "qwen", control_image=control)


def test_a_control_image_without_a_controlnet_is_refused():
    pipe = build(workflow("qwen", "controlnet_diffdiff"), "qwen")
    pipe.update_components(controlnet=None)
    with pytest.raises(ValueError, match="no ControlNet is loaded"):
        run(pipe, "qwen", control_image=picture(64, 64))


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.references])
def test_several_references_are_refused(name):
    with pytest.raises(ValueError, match="`image` holds 2, which this model takes as references"):
        run(ours(name), name, image=[picture(64, 64), picture(64, 64, 1)])


def test_references_that_nobody_has_told_of_are_refused_later():
    pipe = build(add_diffdiff(FAMILIES["flux2"].blocks()).get_workflow("diffdiff"), "flux2")
    with pytest.raises(ValueError, match=r"`image_latents` holds 2 encoded images, .*`references=True`"):
        run(pipe, "flux2", prompt=PROMPTS, image=[picture(64, 64), picture(64, 64, 1)])


@pytest.mark.parametrize("component", ["transformer", "vae", "scheduler"])
def test_a_component_that_was_not_loaded_is_named(component):
    with pytest.raises(ValueError, match=f"not loaded: {component}"):
        run(ours("sd3", **{component: None}), "sd3")


def test_kontext_without_its_class_says_that_the_size_must_follow():
    pipe = build(add_diffdiff(FAMILIES["flux-kontext"].blocks()).get_workflow("diffdiff"), "flux-kontext")
    with pytest.raises(ValueError, match=r"grid of 8 x 12, and the run is for 1024 x 1024 pixels"):
        run(pipe, "flux-kontext", image=picture(64, 96), diffdiff_map=torch.ones(64, 96), max_area=1024 * 1024)


@pytest.mark.parametrize("name", ["flux-kontext", "qwen-edit"])
def test_samplers_that_rewrite_their_past_are_announced(name):
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    pipe = undecoded(ours(name, scheduler=scheduler))
    with pytest.warns(UserWarning, match="several levels, and UniPCMultistepScheduler"):
        state = run(pipe, name, diffdiff_map=LEVELS)
    assert torch.equal(grid_of(state.latents)[..., :2], encoded(name)[..., :2])


# All families of the installed diffusers

INSTALLED = {
    member.default_blocks_name
    for member in (getattr(diffusers, name) for name in dir(diffusers) if name.endswith("ModularPipeline"))
    if member is not ModularPipeline
}


def test_the_table_knows_every_family_of_the_installed_diffusers():
    opened = {family.upstream.__name__ for family in [*CLASSES.values(), *(row.ours for row in VIDEOS.values())]}
    assert not opened & set(NOT_OPENED)
    assert opened | set(NOT_OPENED) == INSTALLED


@pytest.mark.parametrize(("name", "reason"), NOT_OPENED.items())
def test_what_is_not_opened_is_not_for_its_reason(name, reason):
    blocks = getattr(diffusers, name)()
    takes, makes = set(blocks.input_names), set(blocks.intermediate_output_names)
    executed = blocks.get_execution_blocks(prompt=True, num_frames=True).sub_blocks
    loops = [step for step in executed.values() if isinstance(step, LoopSequentialPipelineBlocks)]
    inside = [step for loop in loops for step in loop.sub_blocks.values()]
    facts = {
        table.TEXT_ONLY: "images" in makes and "image" not in takes,
        table.MUSIC: not {"images", "videos"} & makes,
        table.LAYERED: "layers" in takes,
        table.PACKED: any("pack" in f"{key} {step.description}" for key, step in executed.items()),
        table.IN_CHUNKS: all("i" not in inspect.signature(step.__call__).parameters for step in inside),
        table.FIRST_FRAME: any("image_condition_latents" in loop.input_names for loop in loops),
        table.NEW_NOISE: any("generator" in step.input_names for step in inside),
        table.NO_ENCODER: "diffusion_decoder" in blocks.component_names,
        table.OWN_MASKS: "mask" in takes,
    }
    assert facts[reason]
    assert len(facts) == len(set(NOT_OPENED.values()))


def test_every_family_of_the_module_is_tested():
    classes = {member for name, member in vars(families).items() if name.endswith("DiffDiffAutoBlocks")}
    assert classes - {families.FamilyDiffDiffAutoBlocks} | {SDXLDiffDiffAutoBlocks} == set(CLASSES.values())
