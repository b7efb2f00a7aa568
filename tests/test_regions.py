"""Regions: each part of a picture has its own prompt, in every family."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import (
    AdaptiveProjectedGuidance,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    LCMScheduler,
)
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig

from benchmarks import regions as scenes
from modular_diffdiff import BadInputError
from modular_diffdiff.blocks.diffdiff_regions import blend, weigh

from . import test_auto as sdxl
from .families import FAMILIES
from .helpers import SDXL_BETAS, picture, relative, seeded
from .test_auto import parts  # noqa: F401
from .test_families import (  # noqa: F401
    BATCHES,
    HALF,
    build,
    denoiser_of,
    grid_of,
    no_model_runs,
    ours,
    run,
    small_edits,
    tree,
    undecoded,
    workflow,
)


ALL, LEFT = torch.ones(64, 64), HALF
# their tiny text encoders read their templates, and hardly the prompt
DEAF = ("qwen-edit", "qwen-edit-plus", "qwen21", "qwen21-turbo", "flux2")
PROMPTS = ["a green pear", "a blue cup", "a red apple"]
NOWHERE_KEPT = torch.zeros(64, 64)


# The formula


@given(
    st.integers(1, 4).flatmap(
        lambda count: st.lists(st.lists(st.floats(0, 1, width=32), min_size=count, max_size=count), min_size=1)
    )
)
def test_weights_are_those_of_the_maps_and_add_up_to_one(places):
    weights = weigh(torch.tensor(places).T[None, :, :, None])[0, :, :, 0].T
    for given_here, weight in zip(places, weights.tolist(), strict=True):
        total = max(sum(given_here), 1)
        plainly = [max(1 - sum(given_here), 0) / total, *(value / total for value in given_here)]
        assert weight == pytest.approx(plainly, abs=1e-5)


def test_prompts_that_were_not_asked_for_leave_their_share_to_the_others():
    """Two pictures of three prompts on two elements; nobody was asked for the second element of the second picture."""
    weights = torch.tensor([[[0.5, 0.0], [0.25, 0.5], [0.25, 0.5]], [[0.2, 0.0], [0.4, 0.0], [0.4, 1.0]]])
    predictions = torch.tensor([[1.0, 1.0], [4.0, 2.0], [8.0, 5.0], [2.0, 7.0]])
    blended = blend(predictions, [0, 2, 3, 4], weights)
    expected = [[(0.5 * 1 + 0.25 * 4) / 0.75, 2.0], [(0.2 * 8 + 0.4 * 2) / 0.6, (5.0 + 7.0) / 2]]
    torch.testing.assert_close(blended, torch.tensor(expected))


# Every family


@pytest.mark.parametrize("name", FAMILIES)
def test_a_region_that_covers_everything_is_no_region_bit_for_bit(name):
    pipe = undecoded(ours(name))
    covered = run(pipe, name, prompt=PROMPTS[1], region_prompts=[PROMPTS[0]], region_maps=[ALL])
    assert torch.equal(covered.latents, run(pipe, name, prompt=PROMPTS[0]).latents)


@pytest.mark.parametrize("name", FAMILIES)
def test_regions_of_one_prompt_are_that_prompt_and_what_is_kept_stays(name):
    pipe = undecoded(ours(name))
    split = run(pipe, name, region_prompts=[PROMPTS[0]] * 2, region_maps=[LEFT, 0.5 * ALL])
    plain = run(pipe, name)
    assert relative(split.latents, plain.latents) < 1e-4
    kept = grid_of(plain.latents).shape[-1] // 2
    assert torch.equal(grid_of(split.latents)[..., :kept], grid_of(plain.latents)[..., :kept])


@pytest.mark.parametrize("name", ["flux3", "flux3-distilled"])
def test_prompts_that_make_no_batch_are_refused(name):
    """Its texts are padded to a multiple of 80 tokens, and the padding counts."""
    with pytest.raises(BadInputError, match=r"make `prompt_embeds` of 80, 160 tokens.*prompts of about one length"):
        run(undecoded(ours(name)), name, region_prompts=["a pear " * 50], region_maps=[LEFT])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_step_is_the_weighted_mean_of_the_prompts_own(name):
    """Euler's step is linear in the prediction. On the left 2/3 and 1/3 of the regions, on the right half of each."""
    pipe = undecoded(ours(name))
    options = {"num_inference_steps": 1, "diffdiff_map": NOWHERE_KEPT}
    alone = [grid_of(run(pipe, name, prompt=prompt, **options).latents) for prompt in PROMPTS]
    state = run(pipe, name, prompt=PROMPTS[0], region_prompts=PROMPTS[1:], region_maps=[LEFT, 0.5 * ALL], **options)
    own, first, second = alone
    expected = torch.cat([(2 * first + second) / 3, (own + second) / 2], -1)
    middle = own.shape[-1] // 2
    expected = torch.cat([expected[..., :middle], expected[..., 3 * middle :]], -1)
    assert (relative(first, own) < 1e-4) == (name in DEAF)
    assert relative(grid_of(state.latents), expected) < 1e-4


@pytest.mark.parametrize("name", BATCHES)
def test_each_picture_of_a_batch_has_its_own_regions(name):
    pipe = undecoded(ours(name))
    prompts, maps = [PROMPTS[1:], PROMPTS[:2]], [[LEFT, 0.5 * ALL], [0.2 * ALL, 1 - LEFT]]
    pictures, keeps = [picture(64, 64, seed) for seed in range(2)], [HALF, 1 - HALF]
    state = run(
        pipe,
        name,
        prompt=PROMPTS[:2],
        image=pictures,
        diffdiff_map=keeps,
        region_prompts=prompts,
        region_maps=maps,
        num_images_per_prompt=2,
        generator=[seeded(k) for k in range(4)],
    )
    for k in range(4):
        own = {"prompt": PROMPTS[k // 2], "image": pictures[k // 2], "diffdiff_map": keeps[k // 2]}
        own |= {"region_prompts": prompts[k // 2], "region_maps": maps[k // 2]}
        alone = run(pipe, name, generator=seeded(k), **own)
        assert relative(state.latents[k : k + 1], alone.latents) < 1e-4


# What a step costs


class Rows:
    """Notes how many rows a model is given, each time that it is called."""

    def __init__(self, model):
        self.counts = []
        self.hook = model.register_forward_pre_hook(self.note, with_kwargs=True)

    def note(self, model, args, kwargs):
        given = [*args, *kwargs.values()]
        self.counts.append(next(len(value) for value in given if hasattr(value, "__len__") and len(value)))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.hook.remove()


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("name", ["sdxl", "sd3", "qwen"])
def test_a_region_costs_nothing_until_it_releases_something(name, batched):
    """The left half is free from the start, the right one from the third of four steps."""
    pipe = undecoded(ours(name))
    options = {"prompt": PROMPTS[0], "region_prompts": PROMPTS[1:], "region_maps": [LEFT, 1 - LEFT]}
    with Rows(denoiser_of(name)) as rows:
        state = run(pipe, name, diffdiff_map=0.5 * (1 - LEFT), batch_guidance=batched, negative_prompt="", **options)
    assert rows.counts == [2, 2, 4, 4] if batched else [1, 1, 1, 1, 2, 2, 2, 2]
    # the same with all rows, as a guider with a momentum needs them
    pipe = undecoded(ours(name))
    pipe.guider.momentum_buffer = None
    every = run(pipe, name, diffdiff_map=0.5 * (1 - LEFT), batch_guidance=batched, negative_prompt="", **options)
    assert relative(state.latents, every.latents) < 1e-4


# Samplers and all else, on SDXL


@pytest.mark.parametrize(
    "kind", [EulerAncestralDiscreteScheduler, DPMSolverMultistepScheduler, LCMScheduler], ids=lambda kind: kind.__name__
)
def test_samplers_see_one_picture(parts, kind):  # noqa: F811
    """Whether they draw noise or look back."""
    edits = []
    for regions in ({}, {"region_prompts": PROMPTS[:1] * 2, "region_maps": [LEFT, 1 - LEFT]}):
        pipe = sdxl.automatic(parts, scheduler=kind(**SDXL_BETAS))
        edits.append(sdxl.run(pipe, num_inference_steps=4, **regions))
    assert relative(edits[1].latents, edits[0].latents) < 1e-4


def test_a_guider_with_a_momentum_has_the_same_rows_in_every_step(parts):  # noqa: F811
    edits = []
    for regions in ({}, {"region_prompts": PROMPTS[:1] * 2, "region_maps": [LEFT, 1 - LEFT]}):
        pipe = sdxl.automatic(parts)
        pipe.update_components(guider=AdaptiveProjectedGuidance(adaptive_projected_guidance_momentum=-0.5))
        keep = torch.cat([torch.zeros(32, 16), torch.full((32, 16), 0.5)], 1)
        edits.append(sdxl.run(pipe, num_inference_steps=4, diffdiff_map=keep, **regions))
    assert relative(edits[1].latents, edits[0].latents) < 1e-4


STEERED = {
    "as it is": {},
    "ControlNet": {"control_image": picture(seed=5)},
    "IP-Adapter": {"ip_adapter_image": picture(seed=6)},
    "LoRA": {"cross_attention_kwargs": {"scale": 0.5}},
    "softness": {"diffdiff_softness": 0.5},
    "batched guidance": {"batch_guidance": True, "negative_prompt": "red"},
    "two outputs": {"num_images_per_prompt": 2, "generator": [seeded(1), seeded(2)]},
    "overlay": {"overlay": True, "output_type": "pt"},
    "a box": {
        "image": picture(96, 96),
        "diffdiff_map": 1 - np.pad(np.ones((40, 32)), ((28, 28), (32, 32))),
        "padding_map_crop": 4,
        "output_type": "pt",
    },
}


@pytest.mark.parametrize("option", STEERED)
def test_regions_go_with_everything_else(parts, controlnet, option):  # noqa: F811
    """One that covers everything changes nothing, bit for bit, and two with one prompt equal it up to rounding."""
    adapted = option == "IP-Adapter"
    pipe = (sdxl.with_adapters if adapted else sdxl.automatic)(parts | {"controlnet": controlnet})
    options = STEERED[option]
    if option == "LoRA":
        pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))

    def edit(**regions):
        state = sdxl.run(pipe, **{"generator": seeded()} | options | {"prompt": "a cup"} | regions)
        return state.images if "output_type" in options else state.latents

    for generator in options.get("generator", []):
        generator.manual_seed(generator.initial_seed())
    plain = edit(prompt=PROMPTS[0])
    for generator in options.get("generator", []):
        generator.manual_seed(generator.initial_seed())
    assert torch.equal(edit(region_prompts=PROMPTS[:1], region_maps=[ALL]), plain)
    for generator in options.get("generator", []):
        generator.manual_seed(generator.initial_seed())
    split = edit(region_prompts=PROMPTS[:1] * 2, region_maps=[LEFT, 1 - LEFT])
    assert relative(split, plain) < 1e-3
    assert relative(edit(), plain) > 1e-3


def test_qwens_controlnet_sees_every_region():
    pipe = build(workflow("qwen", "controlnet_diffdiff"), "qwen")
    options = {"control_image": picture(64, 64, 5)}
    split = run(pipe, "qwen", region_prompts=PROMPTS[:1] * 2, region_maps=[LEFT, 1 - LEFT], **options)
    assert relative(split.latents, run(pipe, "qwen", **options).latents) < 1e-4


def test_strengths_turn_the_map_down_where_regions_are(parts):  # noqa: F811
    """Half white, a quarter of each region's strength 0.5, and the rest of the picture free."""
    pipe, maps = sdxl.automatic(parts), [torch.eye(2), torch.tensor([[0.0, 0.5], [0.0, 0.0]])]
    regions = {"region_prompts": ["a cup"] * 2, "region_maps": maps}
    state = sdxl.run(
        pipe, diffdiff_map=torch.zeros(2, 2), region_strengths=[0.5, 0.0], num_inference_steps=8, **regions
    )
    strength = torch.tensor([[0.5, 0.5], [1.0, 0.5]])
    expected = sdxl.run(pipe, diffdiff_map=1 - strength, num_inference_steps=8, **regions)
    assert torch.equal(state.latents, expected.latents)


def test_regions_found_by_words_are_where_the_words_are(parts, segmenter):  # noqa: F811
    pipe = sdxl.automatic(parts | segmenter)
    prompts = {"region_prompts": ["a cup", "a pear"]}
    found = [1 - sdxl.run(pipe, diffdiff_map=None, map_text=text).diffdiff_map for text in ("apple", "lemon")]
    if min(one.max() for one in found) == 0:
        pytest.fail("the segmenter of this test sees nothing")
    by_words = sdxl.run(pipe, region_texts=["apple", "lemon"], **prompts)
    by_maps = sdxl.run(pipe, region_maps=found, **prompts)
    assert relative(by_words.latents, by_maps.latents) < 1e-4


# Refusals


BLACK = torch.zeros(8, 8)
REFUSED = {
    "a prompt too many": ({"region_prompts": PROMPTS, "region_maps": [LEFT, ALL]}, r"`region_maps` go in pairs.*2, 3"),
    "a text too few": ({"region_prompts": PROMPTS, "region_texts": ["cup"]}, r"`region_texts` go in pairs.*1, 3"),
    "an empty region": ({"region_prompts": ["a"] * 2, "region_maps": [ALL, BLACK]}, r"`region_maps\[1\]` is black"),
    "no place": ({"region_prompts": ["a"]}, "neither `region_maps` nor `region_texts` says where"),
    "two places": (
        {"region_prompts": ["a"], "region_maps": [ALL], "region_texts": ["cup"]},
        "`region_maps` is given, but a block makes it, and would overwrite it",
    ),
    "no prompt": ({"region_maps": [ALL]}, "`region_maps` is given, but there are no `region_prompts`"),
    "no list": ({"region_prompts": "a", "region_maps": [ALL]}, "`region_prompts` is 'a'; it takes a list of texts"),
    "a strength of 2": (
        {"region_prompts": ["a"], "region_maps": [ALL], "region_strengths": [2]},
        r"`region_strengths` is \[2\]",
    ),
    "strengths too few": (
        {"region_prompts": ["a"] * 2, "region_maps": [ALL, LEFT], "region_strengths": [1]},
        "`region_strengths` go in pairs",
    ),
    "other lengths": (
        {"prompt": PROMPTS[:2], "region_prompts": [["a"], ["a", "b"]], "region_maps": [ALL]},
        "lists of different lengths",
    ),
    "more pictures": (
        {"region_prompts": [["a"], ["b"]], "region_maps": [ALL]},
        "`region_prompts` holds 2; it takes 1, as there is one prompt",
    ),
}


@pytest.mark.parametrize("bad", REFUSED)
@pytest.mark.usefixtures("no_model_runs")
def test_bad_regions_are_refused_before_any_model_runs(segmenter, bad):
    given, says = REFUSED[bad]
    with pytest.raises(BadInputError, match=says):
        run(build(tree("sd3"), "sd3", **segmenter), "sd3", **given)


def test_words_that_name_nothing_are_refused(parts, segmenter):  # noqa: F811
    pipe = sdxl.automatic(parts | segmenter)
    segmenter["text_segmenter"].decoder.transposed_convolution.bias.data -= 50
    try:
        with pytest.raises(BadInputError, match="`region_texts` finds nothing of 'cup'"):
            sdxl.run(pipe, region_prompts=["a"], region_texts=["cup"])
    finally:
        segmenter["text_segmenter"].decoder.transposed_convolution.bias.data += 50


# Meaning


def test_two_things_become_two_others():
    """A small sample of what `benchmarks.regions` measures."""
    assert scenes.count_right(scenes.draw_cases(2)) == 2


def test_a_placement_keeps_its_regions(parts):  # noqa: F811
    placement = sdxl.run(sdxl.automatic(parts), region_prompts=["a"], region_maps=[LEFT]).placement
    assert torch.equal(placement.regions[0][:, 0] + placement.regions[0][:, 1], torch.ones(1, 32, 32))
    assert replace(placement, regions=[]).regions == []
