"""Where change maps come from: the formulas, written plainly; what models see, on tiny ones; and runs that use them."""

import math

import numpy as np
import pytest
import torch
from diffusers.modular_pipelines import ModularPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import OutputParam
from diffusers.modular_pipelines.stable_diffusion_xl import StableDiffusionXLAutoBlocks
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torch.nn import functional as F
from transformers import (
    SamConfig,
    SamHQConfig,
    SamHQModel,
    SamHQProcessor,
    SamModel,
    SamProcessor,
)
from transformers.modeling_outputs import DepthEstimatorOutput
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

import modular_diffdiff
from modular_diffdiff import BadInputError, SDXLDiffDiffAutoBlocks, SDXLDiffDiffBlocks
from modular_diffdiff.blocks.diffdiff_preview import draw_preview
from modular_diffdiff.blocks.diffdiff_sources import combine, keep_where_alike, linear_gradient, radial_gradient

from .helpers import build, diffdiff, picture, seeded, widen


SIDES = st.integers(2, 12)
MAPS = st.integers(0, 2**32 - 1).map(lambda seed: torch.rand(2, 1, 5, 7, generator=seeded(seed)))


def make(step: str, components: dict | None = None, **inputs) -> torch.Tensor:
    """The map that a block makes alone."""
    pipe = getattr(modular_diffdiff, step)().init_pipeline()
    pipe.update_components(**(components or {}))
    return pipe(**inputs, output="diffdiff_map")


# Without a model


@given(st.floats(-720, 720), SIDES, SIDES)
def test_a_linear_gradient_falls_evenly_from_1_to_0_as_one_goes_its_way(angle, height, width):
    way = [
        [x * math.cos(math.radians(angle)) - y * math.sin(math.radians(angle)) for x in range(width)]
        for y in range(height)
    ]
    expected = np.interp(way, (np.min(way), np.max(way)), (1, 0))
    np.testing.assert_allclose(linear_gradient(angle, height, width)[0, 0], expected, atol=1e-6)


def test_0_degrees_go_to_the_right_and_90_upwards():
    assert linear_gradient(0, 2, 3)[0, 0].tolist() == [[1, 0.5, 0]] * 2
    assert linear_gradient(90, 3, 2)[0, 0].tolist() == [[0, 0], [0.5, 0.5], [1, 1]]


@given(SIDES, SIDES)
def test_a_radial_gradient_is_the_distance_from_the_middle_in_half_sides(height, width):
    expected = [
        [min(math.dist(((x + 0.5) / width, (y + 0.5) / height), (0.5, 0.5)) * 2, 1) for x in range(width)]
        for y in range(height)
    ]
    np.testing.assert_allclose(radial_gradient(height, width)[0, 0], expected, atol=1e-6)


def test_a_mask_is_a_map_the_other_way_round():
    mask = picture(9, 7).convert("L")
    made = make("DiffDiffMapMaskStep", image=picture(9, 7), mask_image=mask)
    np.testing.assert_allclose(made[0, 0], 1 - np.asarray(mask) / 255, atol=1e-6)


def test_a_map_becomes_the_mask_that_it_is_made_of():
    mask = picture(9, 7).convert("L")
    change_map = make("DiffDiffMapMaskStep", image=picture(9, 7), mask_image=mask)
    pipe = modular_diffdiff.DiffDiffMapToMaskStep().init_pipeline()
    assert pipe(diffdiff_map=change_map, output="mask_image").tobytes() == mask.tobytes()
    both = pipe(diffdiff_map=change_map.repeat(2, 1, 1, 1), output="mask_image")
    assert [one.tobytes() for one in both] == [mask.tobytes()] * 2


def test_what_differs_by_so_much_may_change_so_much():
    first, second = (np.asarray(picture(6, 5, seed), np.float64) / 255 for seed in (0, 1))
    made = make("DiffDiffMapDifferenceStep", image=picture(6, 5, 0), map_difference=picture(6, 5, 1))
    for y in range(6):
        for x in range(5):
            largest = max(abs(first[y, x, c] - second[y, x, c]) for c in range(3))
            assert made[0, 0, y, x] == pytest.approx(1 - largest, abs=1e-6)
    floats = torch.from_numpy(first).permute(2, 0, 1)
    np.testing.assert_allclose(keep_where_alike(floats, second), made, atol=1e-6)


@given(MAPS, MAPS)
def test_combined_maps_keep_or_change_what_any_of_them_does(first, second):
    for how, merged in (("keep", np.maximum), ("change", np.minimum)):
        np.testing.assert_array_equal(combine(first, second, how), merged(first, second))
        np.testing.assert_array_equal(combine(first[:1], second, how), merged(first[:1], second))


def test_the_given_map_alone_is_inverted_and_brought_to_the_image_before_it_joins():
    change_map, mask = torch.tensor([[1.0, 0.0]]), Image.new("L", (4, 2), 64)
    inputs = {"image": picture(2, 4), "mask_image": mask, "diffdiff_map": change_map, "invert_diffdiff_map": True}
    kept = make("DiffDiffMapMaskStep", **inputs)
    changed = make("DiffDiffMapMaskStep", **inputs, map_combine="change")
    of_mask = 1 - 64 / 255
    np.testing.assert_allclose(kept[0, 0], [[of_mask, of_mask, 1, 1]] * 2, atol=1e-6)
    np.testing.assert_allclose(changed[0, 0], [[0, 0, of_mask, of_mask]] * 2, atol=1e-6)


# With one


@pytest.fixture(scope="module", params=["SAM", "SAM-HQ"])
def generator(request) -> dict:
    """SAM, or SAM-HQ, as small as it goes."""
    size = {"image_size": 64, "patch_size": 16}
    vision = {"hidden_size": 16, "output_channels": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"mlp_dim": 16, "global_attn_indexes": [0], "num_pos_feats": 8}
    decoder = {"hidden_size": 16, "mlp_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    decoder |= {"iou_head_hidden_dim": 16, "iou_head_depth": 2}
    classes = {"SAM": (SamConfig, SamModel, SamProcessor), "SAM-HQ": (SamHQConfig, SamHQModel, SamHQProcessor)}
    config_class, model_class, processor_class = classes[request.param]
    config = config_class(
        vision_config=vision | size,
        prompt_encoder_config=size | {"hidden_size": 16, "image_embedding_size": 4, "mask_input_channels": 4},
        mask_decoder_config=decoder | ({"vit_dim": 16} if request.param == "SAM-HQ" else {}),
    )
    images = SamImageProcessorPil(size={"longest_edge": 64}, pad_size={"height": 64, "width": 64})
    return {"mask_generator": widen(model_class(config)), "mask_generator_processor": processor_class(images)}


def test_words_are_kept_by_1_less_the_probability_that_the_segmenter_gives(segmenter):
    image = picture(40, 24)
    processor, model = segmenter["text_segmenter_processor"], segmenter["text_segmenter"]
    logits = model(**processor(text=["a pear"], images=[image], return_tensors="pt")).logits.reshape(1, 1, 32, 32)
    seen = F.interpolate(logits.sigmoid(), (40, 24), mode="bilinear", antialias=True)
    assert seen.max() > 0.5
    assert seen.max() - seen.min() > 0.1
    soft = make("DiffDiffMapTextStep", segmenter, image=image, map_text="a pear")
    torch.testing.assert_close(soft, 1 - seen)
    threshold = seen.median().item()
    hard = make("DiffDiffMapTextStep", segmenter, image=image, map_text="a pear", map_text_threshold=threshold)
    torch.testing.assert_close(hard, 1 - (seen >= threshold).float())


def test_each_image_of_a_batch_gets_what_it_gets_alone(segmenter, generator, estimator):
    images = [picture(20, 24, seed) for seed in (0, 1)]
    for step, components, of_each in (
        ("DiffDiffMapTextStep", segmenter, [{"map_text": text} for text in ("a pear", "an apple on a table")]),
        ("DiffDiffMapPointsStep", generator, [{"map_points": [(3, 4)]}] * 2),
        ("DiffDiffMapBoxesStep", generator, [{"map_boxes": (2, 3, 20, 18)}] * 2),
        ("DiffDiffMapDepthStep", estimator, [{"map_depth": (0, 1)}] * 2),
    ):
        alone = [make(step, components, image=image, **asked) for image, asked in zip(images, of_each, strict=True)]
        texts = {"map_text": [asked["map_text"] for asked in of_each]} if "map_text" in of_each[0] else of_each[0]
        together = make(step, components, image=images, **texts)
        torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)
        assert together.shape == (2, 1, 20, 24)
        assert 0 <= together.min() < together.max() <= 1


def test_points_and_boxes_are_what_sam_makes_of_each_object(generator):
    image = picture(20, 24)
    model, processor = generator["mask_generator"], generator["mask_generator_processor"]

    def probability(**prompts) -> torch.Tensor:
        inputs = processor(images=image, return_tensors="pt", **prompts)
        sizes = inputs.pop("original_sizes"), inputs.pop("reshaped_input_sizes")
        inputs = {name: value.float() if value.is_floating_point() else value for name, value in inputs.items()}
        masks = model(**inputs, multimask_output=False).pred_masks
        return processor.post_process_masks(masks, *sizes, binarize=False)[0].sigmoid()

    first = probability(input_points=[[[3, 4], [9, 9]]], input_labels=[[1, 0]])
    second = probability(input_points=[[[15, 6]]], input_labels=[[1]])
    points = [[(3, 4), (9, 9, 0)], [(15, 6)]]
    made = make("DiffDiffMapPointsStep", generator, image=image, map_points=points)
    torch.testing.assert_close(made, 1 - torch.maximum(first, second), atol=1e-5, rtol=0)
    alone = make("DiffDiffMapPointsStep", generator, image=image, map_points=points[0])
    torch.testing.assert_close(alone, 1 - first, atol=1e-5, rtol=0)
    boxes = [(1, 2, 12, 14), (10, 3, 24, 20)]
    first, second = (probability(input_boxes=[[list(box)]]) for box in boxes)
    made = make("DiffDiffMapBoxesStep", generator, image=image, map_boxes=boxes)
    torch.testing.assert_close(made, 1 - torch.maximum(first, second), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["relative", "metric"])
def test_strength_rises_from_one_depth_to_the_other(estimator, kind, monkeypatch):
    image, model = picture(20, 24), estimator["depth_estimator"]
    monkeypatch.setattr(model.config, "depth_estimation_type", kind, raising=False)
    inputs = estimator["depth_estimator_processor"](images=[image], return_tensors="pt")
    seen = F.interpolate(model(**inputs).predicted_depth[:, None], (20, 24), mode="bilinear", antialias=True)
    far = (seen - seen.min()) / (seen.max() - seen.min())
    far = (far if kind == "metric" else 1 - far).numpy()
    for kept, free in ((0.2, 0.7), (0.7, 0.2)):
        strength = np.interp(far, sorted((kept, free)), (0, 1) if kept < free else (1, 0))
        made = make("DiffDiffMapDepthStep", estimator, image=image, map_depth=(kept, free))
        np.testing.assert_allclose(made, 1 - strength, atol=1e-5)


def test_where_nothing_is_found_a_warning_says_so_and_all_is_kept(segmenter, monkeypatch):
    decode = type(segmenter["text_segmenter"].decoder).forward

    def see_little(self, *args, **kwargs):
        outputs = decode(self, *args, **kwargs)
        logits = outputs[0] if isinstance(outputs, tuple) else outputs.logits
        logits.clamp_(max=-2)
        return outputs

    monkeypatch.setattr(type(segmenter["text_segmenter"].decoder), "forward", see_little)
    with pytest.warns(UserWarning, match="`map_text` finds nothing of 'a pear': the image comes back"):
        made = make("DiffDiffMapTextStep", segmenter, image=picture(), map_text="a pear")
    assert (made == 1).all()


# In pipelines


def test_words_alone_are_an_edit_under_the_map_that_they_make(tiny, segmenter):
    inputs = {"prompt": "a green pear", "image": picture(), "num_inference_steps": 3, "output": "latents"}
    pipe = build(SDXLDiffDiffAutoBlocks(), tiny | segmenter)
    change_map = make("DiffDiffMapTextStep", segmenter, image=picture(), map_text="a pear")
    expected = pipe(**inputs, diffdiff_map=change_map, map_grow=2, generator=seeded())
    assert torch.equal(pipe(**inputs, map_text="a pear", map_grow=2, generator=seeded()), expected)


class OwnMap(ModularPipelineBlocks):
    """Somebody's block, which makes a map of its own kind."""

    @property
    def intermediate_outputs(self):
        return [OutputParam("diffdiff_map", torch.Tensor)]

    def __call__(self, components, state):
        state.set("diffdiff_map", linear_gradient(0, 32, 32))
        return components, state


def test_what_somebody_elses_block_makes_is_inverted_where_that_is_asked(tiny):
    blocks = SDXLDiffDiffBlocks()
    blocks.sub_blocks.insert("own_map", OwnMap(), 1)
    inputs = {"prompt": "a green pear", "image": picture(), "num_inference_steps": 3, "output": "latents"}
    made = build(blocks, tiny)(**inputs, invert_diffdiff_map=True, generator=seeded())
    given = build(SDXLDiffDiffBlocks(), tiny)(**inputs, map_gradient=180, generator=seeded())
    torch.testing.assert_close(made, given)


def test_a_segmenter_stands_before_upstreams_inpainting(tiny, segmenter):
    blocks = StableDiffusionXLAutoBlocks().get_workflow("inpainting")
    blocks.sub_blocks.insert("map_to_mask", modular_diffdiff.DiffDiffMapToMaskStep(), 0)
    blocks.sub_blocks.insert("map_text", modular_diffdiff.DiffDiffMapTextStep(), 0)
    inputs = {"prompt": "a green pear", "image": picture(), "num_inference_steps": 4, "output": "latents"}
    change_map = make("DiffDiffMapTextStep", segmenter, image=picture(), map_text="a pear", map_text_threshold=0.5)
    mask = Image.fromarray(255 - 255 * change_map[0, 0].numpy().astype(np.uint8))
    theirs = build(StableDiffusionXLAutoBlocks().get_workflow("inpainting"), tiny)
    expected = theirs(**inputs, mask_image=mask, generator=seeded())
    ours = build(blocks, tiny | segmenter)
    seen = ours(**inputs, map_text="a pear", map_text_threshold=0.5, generator=seeded())
    assert torch.equal(seen, expected)
    assert not torch.equal(theirs(**inputs, mask_image=ImageOps.invert(mask), generator=seeded()), expected)


def test_who_asks_for_no_words_needs_no_segmenter(tiny):
    pipe = build(SDXLDiffDiffBlocks(), tiny)
    pipe.load_components()  # upstream's way of loading whatever has a repository
    assert pipe.text_segmenter is None
    pipe(prompt="a pear", image=picture(), map_gradient="radial", num_inference_steps=1)
    with pytest.raises(BadInputError, match="`map_text` is given, but no `text_segmenter` is loaded; set it with"):
        pipe(prompt="a pear", image=picture(), map_text="a pear")
    with pytest.raises(BadInputError, match="`map_depth` is given, but no `depth_estimator` is loaded"):
        make("DiffDiffMapDepthStep", image=picture(), map_depth=(0, 1))


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"map_text": " "}, "`map_text` is ' '; it takes a text that is not blank"),
        ({"map_text": ["a pear", "a cup"]}, "`map_text` holds 2; it takes 1, as there is one prompt"),
        ({"map_text": "a pear", "prompt": 3}, "`prompt` is 3"),
        ({"map_text": "a pear", "map_text_threshold": 2}, r"`map_text_threshold` is 2; it takes a number in \[0, 1\]"),
        ({"map_gradient": 0, "map_text_threshold": 0.5}, "`map_text_threshold` is given, but there is no `map_text`"),
        ({"map_points": [(32, 3)]}, r"`map_points` is \(32, 3\); it takes points in the image's 32 x 32 pixels"),
        ({"map_points": [(3, -1)]}, "`map_points` is .*; it takes a list of points"),
        ({"map_points": [(3, 4, 2)]}, "`map_points` is .*; it takes a list of points"),
        ({"map_points": []}, "`map_points` is .*; it takes a list of points"),
        ({"map_boxes": (0, 0, 33, 8)}, r"`map_boxes` is \(0, 0, 33, 8\); it takes boxes within the image's 32 x 32"),
        ({"map_boxes": (9, 0, 3, 8)}, "`map_boxes` is .*; it takes four whole numbers with 0 <= left < right"),
        ({"map_depth": (0.5, 0.5)}, "`map_depth` is .*; it takes two numbers .* that differ"),
        ({"map_depth": (0, float("nan"))}, "`map_depth` is .*; it takes two numbers"),
        ({"map_gradient": "up"}, "`map_gradient` is 'up'; it takes an angle in degrees.*or 'radial'"),
        ({"map_gradient": 0, "map_combine": "both"}, "`map_combine` is 'both'; it takes one of keep, change"),
        ({"map_gradient": 0, "invert_diffdiff_map": True}, "but no `diffdiff_map` is given that it would invert"),
        ({"map_gradient": 0, "diffdiff_map": torch.zeros(2, 1, 8, 8)}, "`diffdiff_map` holds 2; it takes 1"),
        ({"map_difference": picture(40, 32)}, "`map_difference` is .*; it takes a picture of the image's size"),
        ({"map_difference": [picture(), picture()]}, "`map_difference` holds 2, and `image` 1"),
        ({"mask_image": np.full((32, 32), 2.0)}, r"`mask_image` has values from 2 to 2; they must be numbers in"),
        ({"mask_image": [Image.new("L", (32, 32)), "mask.png"]}, "`mask_image` is .*; it takes PIL images"),
    ],
    ids=lambda value: value if isinstance(value, str) else ", ".join(value),
)
def test_what_cannot_become_a_map_is_refused_before_a_model_runs(
    tiny, segmenter, generator, estimator, monkeypatch, bad, says
):
    models = tiny | segmenter | generator | estimator
    pipe = build(SDXLDiffDiffBlocks(), models)

    def refuse(*args, **kwargs):
        raise AssertionError("a model ran before the input was refused")

    for name in ("text_encoder", "unet", "text_segmenter", "mask_generator", "depth_estimator"):
        monkeypatch.setattr(models[name], "forward", refuse)
    with pytest.raises(BadInputError, match=says):
        pipe(**{"prompt": "a pear", "image": picture(), "num_inference_steps": 2} | bad)


def test_a_depth_that_is_not_finite_is_refused(estimator, monkeypatch):
    nowhere = torch.full((1, 32, 32), float("nan"))
    monkeypatch.setattr(
        estimator["depth_estimator"], "forward", lambda *a: DepthEstimatorOutput(predicted_depth=nowhere)
    )
    with pytest.raises(BadInputError, match=r"`map_depth` cannot be used: the depth .* is not finite"):
        make("DiffDiffMapDepthStep", estimator, image=picture(), map_depth=(0, 1))


# The preview


def test_the_preview_shows_each_map_of_a_batch_as_it_counts(tiny):
    images, maps = [picture(seed=0), picture(seed=1)], [torch.ones(32, 32), torch.zeros(16, 16)]
    state = diffdiff(tiny)(
        prompt=["a pear"] * 2,
        image=images,
        diffdiff_map=maps,
        strength=0.5,
        preview_map=True,
        num_inference_steps=1,
        generator=seeded(),
    )
    for image, shown, strength in zip(images, state.map_preview, (0.0, 0.5), strict=True):
        assert shown.height > 32 == shown.width
        np.testing.assert_array_equal(
            np.asarray(shown)[:32], np.asarray(draw_preview(image, np.full((32, 32), strength)))[:32]
        )
    assert diffdiff(tiny)(prompt="a pear", image=images[0], diffdiff_map=maps[0]).map_preview is None
