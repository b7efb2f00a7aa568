"""The embedded segmenter, mask generator and depth estimator: what they see, and an edit that words alone have placed.

Small samples of what `make benchmark` measures.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import ClassifierFreeGuidance
from PIL import Image
from scipy import ndimage
from transformers import AutoImageProcessor, AutoModelForDepthEstimation, CLIPSegForImageSegmentation, CLIPSegProcessor

from benchmarks.sources import each_overlap, find, objects_of, overlap, pick
from benchmarks.still_life import HELD_OUT
from modular_diffdiff import DiffDiffMapDepthStep, SDXLDiffDiffBlocks, still_life
from modular_diffdiff.still_life.judge import load_judge, to_tensor
from modular_diffdiff.still_life.scene import Scene, depth, masks, render
from modular_diffdiff.still_life.train import PAIRS
from modular_diffdiff.still_life.train_sources import box_of


APPLES = [replace(Scene.random(HELD_OUT + k), kind="apple") for k in range(12)]


def test_words_find_what_they_name():
    scenes = [Scene.random(HELD_OUT + k, PAIRS) for k in range(10)]
    for phrase, named in (("the {0.kind}", "kind"), ("the {0.colour} object", "colour")):
        wanted = np.stack([masks(scene)[getattr(scene, named)] for scene in scenes]) > 127
        assert overlap(find(scenes, [phrase.format(scene) for scene in scenes]), wanted) > 0.9


@pytest.fixture(scope="module")
def pairs():
    """Ten scenes of two objects, and the masks of both."""
    scenes = [Scene.random(HELD_OUT + k, pairs=1.0) for k in range(10)]
    return scenes, [objects_of(scene) for scene in scenes]


def middle_of(thing: np.ndarray) -> tuple[int, int]:
    """The pixel that is farthest from the edge."""
    y, x = np.unravel_index(ndimage.distance_transform_edt(thing).argmax(), thing.shape)
    return int(x), int(y)


@pytest.mark.parametrize("which", [0, 1], ids=["left", "right"])
def test_a_click_or_a_box_picks_one_of_two_objects(pairs, which):
    scenes, objects = pairs
    wanted = [shown[which] for shown in objects]
    clicks = [{"map_points": [middle_of(thing)]} for thing in wanted]
    boxes = [{"map_boxes": [box_of(thing).tolist()]} for thing in wanted]
    for prompts in (clicks, boxes):
        assert each_overlap(pick(scenes, prompts), wanted).mean() > 0.9


def test_several_objects_change_at_once(pairs):
    scenes, objects = pairs
    both = [first | second for first, second in objects]
    clicks = [{"map_points": [[middle_of(thing)] for thing in shown]} for shown in objects]
    boxes = [{"map_boxes": [box_of(thing).tolist() for thing in shown]} for shown in objects]
    for prompts in (clicks, boxes):
        assert each_overlap(pick(scenes, prompts), both).mean() > 0.9


def test_depth_is_the_rendered_one_but_for_its_scale():
    pipe = DiffDiffMapDepthStep().init_pipeline()
    pipe.update_components(
        depth_estimator=AutoModelForDepthEstimation.from_pretrained(still_life.DEPTH_ESTIMATOR),
        depth_estimator_processor=AutoImageProcessor.from_pretrained(still_life.DEPTH_ESTIMATOR),
    )
    for k in range(10):
        scene = Scene.random(HELD_OUT + k, PAIRS)
        kept = pipe(image=Image.fromarray(render(scene)), map_depth=(0, 1), output="diffdiff_map")[0, 0]
        assert np.corrcoef(kept.flatten(), depth(scene).flatten())[0, 1] > 0.97  # what is near is kept


def test_the_apple_becomes_a_pear_and_all_around_it_stays_byte_for_byte():
    pipe = SDXLDiffDiffBlocks().init_pipeline(still_life.CHECKPOINT)
    pipe.load_components(dtype=torch.float32)
    pipe.update_components(
        guider=ClassifierFreeGuidance(guidance_scale=still_life.GUIDANCE_SCALE),
        text_segmenter=CLIPSegForImageSegmentation.from_pretrained(still_life.TEXT_SEGMENTER),
        text_segmenter_processor=CLIPSegProcessor.from_pretrained(still_life.TEXT_SEGMENTER),
    )
    pipe.set_progress_bar_config(disable=True)
    pictures = [render(scene) for scene in APPLES]
    edited = pipe(
        prompt=[replace(scene, kind="pear").caption for scene in APPLES],
        image=[Image.fromarray(picture) for picture in pictures],
        map_text="the apple",
        map_text_threshold=0.5,
        map_grow=6,
        overlay=True,
        num_inference_steps=6,
        generator=[torch.Generator().manual_seed(scene.seed) for scene in APPLES],
        output="images",
    )
    assert sum(reading.kind == "pear" for reading in load_judge().read(to_tensor(edited))) >= 11
    two_cells = 16
    for scene, picture, result in zip(APPLES, pictures, edited, strict=True):
        beyond = ndimage.distance_transform_edt(masks(scene)["apple"] == 0) > two_cells
        np.testing.assert_array_equal(np.asarray(result)[beyond], picture[beyond])
