"""The companions of the embedded checkpoint: what they are, that they steer an edit, and that the map still rules.

Small samples of what `make benchmark` measures.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, ControlNetUnionModel, StableDiffusionXLControlNetPipeline
from PIL import Image
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

from benchmarks.steering import HALF, MARGIN, edge_alignment
from benchmarks.still_life import HELD_OUT
from modular_diffdiff import loading, still_life
from modular_diffdiff.still_life import controls
from modular_diffdiff.still_life.judge import load_judge, to_tensor
from modular_diffdiff.still_life.scene import SIZE, Scene, render


APPLE = Scene("apple", "red", "striped", light=0.3, seed=HELD_OUT)
# edges are those of objects where the background has none
ON_PLAIN = replace(APPLE, background="plain")
BOTTLE = Scene("bottle", "blue", "plain", light=0.3, position=(0.56, 0.52), seed=HELD_OUT + 1)
RELEASED = slice(SIZE // 2 + MARGIN, SIZE)
COUNT = 4


def load(**steering):
    model = loading.Model(loading.EMBEDDED, "cpu", "float32", **steering)
    return loading.load_pipeline(model, still_life.GUIDANCE_SCALE)


def edit(pipe, prompt: str, scene: Scene = APPLE, keep: torch.Tensor = HALF, **inputs):
    return pipe(
        prompt=prompt,
        image=Image.fromarray(render(scene)),
        diffdiff_map=keep,
        num_inference_steps=6,
        num_images_per_prompt=COUNT,
        generator=[torch.Generator().manual_seed(seed) for seed in range(COUNT)],
        **inputs,
    )


def readings(state, keep: torch.Tensor = HALF) -> list:
    """What the judge sees where the map lets things change."""
    return load_judge().read(to_tensor(state.images), (1 - keep).expand(COUNT, 1, -1, -1))


def kept(state) -> torch.Tensor:
    return state.latents[(state.release_steps == 6).expand_as(state.latents)]


def test_upstreams_pipelines_read_them():
    controlnet = ControlNetModel.from_pretrained(
        still_life.COMPANIONS, subfolder="controlnet", torch_dtype=torch.float32
    )
    pipe = StableDiffusionXLControlNetPipeline.from_pretrained(
        still_life.CHECKPOINT, controlnet=controlnet, torch_dtype=torch.float32
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.load_ip_adapter(still_life.COMPANIONS, subfolder="ip_adapter", weight_name=still_life.IP_ADAPTER_NAME)
    picture = Image.fromarray(render(APPLE))
    result = pipe(
        "an object", image=controls.edges(picture), ip_adapter_image=picture, num_inference_steps=2, output_type="np"
    )
    assert np.isfinite(result.images).all()


def test_the_feature_extractor_is_the_one_that_goes_with_the_image_encoder():
    folder = Path(still_life.COMPANIONS, "ip_adapter")
    size = CLIPVisionModelWithProjection.from_pretrained(folder / "image_encoder").config.image_size
    saved = CLIPImageProcessor.from_pretrained(folder / "feature_extractor")
    made = CLIPImageProcessor(size=size, crop_size=size)
    picture = Image.fromarray(render(APPLE))
    np.testing.assert_array_equal(saved(picture).pixel_values[0], made(picture).pixel_values[0])


def test_the_union_knows_the_control_types():
    union = ControlNetUnionModel.from_pretrained(still_life.COMPANIONS, subfolder="controlnet_union")
    assert union.config.num_control_type == len(controls.CONTROL_TYPES)


CONTROLS = {
    "ControlNet, edges": ({"controlnet": loading.EMBEDDED}, controls.outline, {}),
    "union, edges": ({"controlnet": loading.EMBEDDED_UNION}, controls.outline, {"control_mode": 0}),
    "union, depth": ({"controlnet": loading.EMBEDDED_UNION}, controls.depth, {"control_mode": 1}),
}


@pytest.fixture(scope="module")
def unsteered():
    return load()


@pytest.fixture(scope="module")
def uncontrolled(unsteered):
    return edit(unsteered, BOTTLE.caption, ON_PLAIN)


@pytest.mark.parametrize("control", CONTROLS)
def test_the_outline_of_another_object_shows_where_it_may(uncontrolled, control):
    steering, draw, inputs = CONTROLS[control]
    outlines = [controls.outline(BOTTLE)] * COUNT
    state = edit(load(**steering), BOTTLE.caption, ON_PLAIN, control_image=draw(BOTTLE), **inputs)
    with_control = edge_alignment(state.images, outlines, RELEASED)
    without = edge_alignment(uncontrolled.images, outlines, RELEASED)
    assert with_control.min() > without.median()
    assert with_control.mean() > without.mean() + 0.1
    assert torch.equal(kept(state), kept(uncontrolled))


def test_an_image_prompt_gives_the_colour_that_the_text_leaves_open(unsteered):
    """In half a picture, beside a white half, in most cases; by chance it is one in eight."""
    orange = Image.fromarray(render(Scene("apple", "orange", "plain", seed=HELD_OUT + 2)))
    prompt = "a pear on a striped background"
    pipe, white = load(ip_adapter=loading.EMBEDDED, ip_adapter_scale=1.0), replace(APPLE, colour="white")
    state = edit(pipe, prompt, white, ip_adapter_image=orange)
    colours = [reading.colour for reading in readings(state)]
    assert colours.count("orange") > COUNT / 2, colours
    plain = edit(unsteered, prompt, white)
    assert [reading.colour for reading in readings(plain)].count("orange") <= COUNT // 3
    assert torch.equal(kept(state), kept(plain))


def test_an_image_prompt_gives_the_kind_that_the_text_leaves_open():
    cup = Image.fromarray(render(Scene("cup", "purple", "plain", seed=HELD_OUT + 3)))
    pipe = load(ip_adapter=loading.EMBEDDED, ip_adapter_scale=1.0)
    everything = torch.zeros(SIZE, SIZE)
    state = edit(pipe, "an object on a striped background", keep=everything, ip_adapter_image=cup)
    seen = [(reading.colour, reading.kind) for reading in readings(state, everything)]
    assert seen.count(("purple", "cup")) >= COUNT - 1, seen
