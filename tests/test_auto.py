"""Automatic blocks: a given input decides what runs, and whatever upstream's SDXL takes works under a change map."""

import copy
import re

import numpy as np
import pytest
import torch
from diffusers import (
    AdaptiveProjectedGuidance,
    AdaptiveProjectedMixGuidance,
    AutoGuidance,
    ClassifierFreeGuidance,
    ClassifierFreeZeroStarGuidance,
    FrequencyDecoupledGuidance,
    PerturbedAttentionGuidance,
    SkipLayerGuidance,
    SmoothedEnergyGuidance,
    StableDiffusionXLPipeline,
    TangentialClassifierFreeGuidance,
)
from diffusers.guiders import MagnitudeAwareGuidance
from diffusers.hooks import LayerSkipConfig, SmoothedEnergyGuidanceConfig
from diffusers.image_processor import IPAdapterMaskProcessor
from diffusers.models.controlnets.multicontrolnet import MultiControlNetModel
from diffusers.modular_pipelines import (
    ModularPipelineBlocks,
    SequentialPipelineBlocks,
    StableDiffusionXLAutoBlocks,
)
from diffusers.modular_pipelines.modular_pipeline_utils import InputParam, OutputParam
from diffusers.modular_pipelines.stable_diffusion_xl.encoders import StableDiffusionXLTextEncoderStep
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image

from modular_diffdiff import (
    DIFFDIFF_AUTO_BLOCKS,
    DIFFDIFF_BLOCKS,
    DIFFDIFF_CONTROLNET_BLOCKS,
    IMAGE2IMAGE_BLOCKS,
    TEXT2IMAGE_BLOCKS,
    BadInputError,
    SDXLDiffDiffAutoBlocks,
    SDXLDiffDiffAutoDenoiseStep,
    SDXLDiffDiffDenoiseLoop,
    SDXLDiffDiffPrepareLatentsStep,
)

from .helpers import adapter_weights, build, diffdiff, euler, image_to_image, picture, relative, seeded


HALF = torch.cat([torch.ones(32, 16), torch.zeros(32, 16)], 1)
WORKFLOWS = {
    "diffdiff": (),
    "controlnet_diffdiff": ("control_image",),
    "controlnet_union_diffdiff": ("control_image", "control_mode"),
    "ip_adapter_diffdiff": ("ip_adapter_image",),
    "ip_adapter_controlnet_diffdiff": ("ip_adapter_image", "control_image"),
    "ip_adapter_controlnet_union_diffdiff": ("ip_adapter_image", "control_image", "control_mode"),
}
BASE = [
    "text_encoder",
    "image_encoder",
    "encode_filled",
    "encode_kept",
    "input",
    "set_timesteps",
    "prepare_latents",
    "start_filled",
    "skip_frozen",
    "region_rows",
    "prepare_add_cond",
]


@pytest.fixture
def parts(tiny, image_encoder):
    """A UNet of the test's own, as adapters and guiders change it."""
    return tiny | {
        "unet": copy.deepcopy(tiny["unet"]),
        "image_encoder": image_encoder,
        "scheduler": euler(),
    }


def automatic(parts, **options):
    return build(SDXLDiffDiffAutoBlocks(), parts, **options)


def with_adapters(parts, count: int = 1, **options):
    pipe = automatic(parts, **options)
    pipe.load_ip_adapter(
        [adapter_weights(parts["unet"], seed) for seed in range(count)],
        subfolder=[""] * count,
        weight_name=[""] * count,
    )
    return pipe


def run(pipe, **options):
    defaults = {
        "prompt": "a green pear",
        "image": picture(),
        "diffdiff_map": HALF,
        "num_inference_steps": 3,
        "generator": seeded(),
        "output_type": "latent",
    }
    return pipe(**(defaults | options))


def assert_edited(state, reference=None):
    """The kept half is the original's; the released one differs from the reference."""
    assert state.latents.isfinite().all()
    assert torch.equal(state.latents[..., :2], state.image_latents[..., :2])
    if reference is not None:
        assert relative(state.latents[..., 2:], reference.latents[..., 2:]) > 1e-3


# Workflows


@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_a_workflow_runs_the_blocks_that_its_inputs_ask_for(workflow):
    blocks = SDXLDiffDiffAutoBlocks()
    given = WORKFLOWS[workflow]
    adapter, control = "ip_adapter_image" in given, "control_image" in given
    executed = blocks.get_execution_blocks(**dict.fromkeys((*given, "prompt", "image", "diffdiff_map"), True))
    assert [name.split(".")[0] for name in executed.sub_blocks] == [
        *("check_inputs", "shape_map", "read_map", "read_regions", "show_map", "crop_to_change", "fit"),
        *("region_prompts", "fill"),
        *(["fit_control"] if control else []),
        *(["ip_adapter"] if adapter else []),
        *BASE,
        *(["controlnet_input"] if control else []),
        "denoise",
        "decode",
        "crop",
        "match_colors",
        "overlay",
    ]
    classes = {type(block).__name__ for block in executed.sub_blocks.values()}
    assert ("SDXLDiffDiffControlNetDenoiseLoop" in classes) == control
    assert ("StableDiffusionXLControlNetUnionInputStep" in classes) == ("control_mode" in given)
    assert ("StableDiffusionXLIPAdapterStep" in classes) == adapter
    assert list(blocks.get_workflow(workflow).sub_blocks) == list(executed.sub_blocks)


def test_the_workflows_are_these():
    upstreams = StableDiffusionXLAutoBlocks().available_workflows
    assert set(SDXLDiffDiffAutoBlocks().available_workflows) == {*WORKFLOWS, *upstreams}
    doc = SDXLDiffDiffAutoBlocks().doc
    for workflow, inputs in WORKFLOWS.items():
        (line,) = [line for line in doc.splitlines() if f"`{workflow}`: requires" in line]
        assert {*re.findall(r"`(\w+)`", line)} == {workflow, *inputs, "prompt", "image", "diffdiff_map"}


@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_every_workflow_runs_and_shows_what_it_was_given(parts, controlnet, union, workflow):
    plain = run(automatic(parts))
    options = {}
    if "control_image" in WORKFLOWS[workflow]:
        parts["controlnet"] = union if "control_mode" in WORKFLOWS[workflow] else controlnet
        options["control_image"] = picture(seed=5)
    if "control_mode" in WORKFLOWS[workflow]:
        options["control_mode"] = 1
    if "ip_adapter_image" in WORKFLOWS[workflow]:
        pipe = with_adapters(parts)
        options["ip_adapter_image"] = picture(seed=6)
    else:
        pipe = automatic(parts)
    state = run(pipe, **options)
    assert_edited(state, plain if options else None)
    if not options:
        assert torch.equal(state.latents, run(diffdiff(parts)).latents)
    pruned = build(SDXLDiffDiffAutoBlocks().get_workflow(workflow), parts)
    assert torch.equal(run(pruned, **options).latents, state.latents)


@pytest.mark.parametrize("preset", [DIFFDIFF_BLOCKS, DIFFDIFF_CONTROLNET_BLOCKS, DIFFDIFF_AUTO_BLOCKS])
def test_a_preset_is_a_pipeline_of_its_own(parts, controlnet, preset):
    parts["controlnet"] = controlnet
    options = {"control_image": picture(seed=5)} if "controlnet_input" in preset else {}
    state = run(build(SequentialPipelineBlocks.from_blocks_dict(preset), parts), **options)
    assert torch.equal(state.latents, run(automatic(parts), **options).latents)


# ControlNet


def test_a_conditioning_scale_of_zero_is_no_controlnet(parts, controlnet, union):
    plain = run(automatic(parts))
    for net, mode in ((controlnet, None), (union, 1)):
        pipe = automatic(parts | {"controlnet": net})
        state = run(pipe, control_image=picture(seed=5), control_mode=mode, controlnet_conditioning_scale=0.0)
        assert relative(state.latents, plain.latents) < 1e-5


def test_several_controlnets_act_at_once(parts, controlnet):
    other = copy.deepcopy(controlnet)
    both = automatic(parts | {"controlnet": MultiControlNetModel([controlnet, other])})
    images = [picture(seed=5), picture(seed=6)]
    state = run(both, control_image=images, controlnet_conditioning_scale=(1, 0.5))  # as good as a list of floats
    alone = automatic(parts | {"controlnet": controlnet})
    assert_edited(state, run(alone, control_image=images[0]))
    silenced = run(both, control_image=images, controlnet_conditioning_scale=[1.0, 0.0])
    assert relative(silenced.latents, run(alone, control_image=images[0]).latents) < 1e-5


def test_a_control_window_counts_the_steps(parts, controlnet):
    pipe = automatic(parts | {"controlnet": controlnet}, guidance_scale=1.0)
    acting = []
    hook = controlnet.register_forward_hook(
        lambda module, inputs, kwargs, output: acting.append(kwargs["conditioning_scale"]), with_kwargs=True
    )
    try:
        run(
            pipe, control_image=picture(), num_inference_steps=4, control_guidance_start=0.25, control_guidance_end=0.75
        )
    finally:
        hook.remove()
    assert acting == [0.0, 1.0, 1.0, 0.0]


def test_guess_mode_leaves_the_negative_side_alone(parts, controlnet):
    pipe = automatic(parts | {"controlnet": controlnet})
    calls = []
    hook = controlnet.register_forward_hook(lambda *_: calls.append(1))
    try:
        state = run(pipe, control_image=picture(seed=5), guess_mode=True)
    finally:
        hook.remove()
    assert len(calls) == 3
    assert_edited(state)


def test_a_unions_list_stays_as_it_was_in_the_callers_hands(parts, union):
    images, modes = [picture(seed=5), picture(seed=6)], [0, 3]
    pipe = automatic(parts | {"controlnet": union})
    kept = list(images)
    state = run(pipe, control_image=images, control_mode=modes)
    assert all(one is other for one, other in zip(images, kept, strict=True))
    assert_edited(state, run(pipe, control_image=images, control_mode=[1, 2]))


def test_a_control_image_of_another_size_is_resized(parts, controlnet):
    pipe = automatic(parts | {"controlnet": controlnet})
    large = picture(seed=5).resize((64, 64), 0)
    state = run(pipe, control_image=large)
    assert state.controlnet_cond.shape[-2:] == (32, 32)
    assert_edited(state)


# IP-Adapter


def test_an_adapter_scale_of_zero_is_no_adapter(parts):
    plain = run(automatic(parts))
    pipe = with_adapters(parts)
    image = picture(seed=6)
    assert_edited(run(pipe, ip_adapter_image=image), plain)
    pipe.set_ip_adapter_scale(0.0)
    assert relative(run(pipe, ip_adapter_image=image).latents, plain.latents) < 1e-5


def test_several_adapters_have_their_own_scales(parts):
    pipe = with_adapters(parts, count=2)
    images = [picture(seed=6), picture(seed=7)]
    both = run(pipe, ip_adapter_image=images)
    pipe.set_ip_adapter_scale([1.0, 0.0])
    first = run(pipe, ip_adapter_image=images)
    assert_edited(first, both)
    swapped = run(pipe, ip_adapter_image=[images[0], images[0]])
    assert relative(first.latents, swapped.latents) < 1e-5  # the second one is silent


def test_an_adapter_mask_made_from_the_map_acts_where_change_is_allowed(parts):
    pipe = with_adapters(parts)
    options = {"ip_adapter_image": picture(seed=6), "diffdiff_map": torch.zeros(32, 32), "num_inference_steps": 1}

    def masked(mask: torch.Tensor) -> torch.Tensor:
        masks = IPAdapterMaskProcessor().preprocess(mask[None, None], height=32, width=32)
        return run(pipe, **options, cross_attention_kwargs={"ip_adapter_masks": [masks[None, 0]]}).latents

    # a change map keeps what is white, an adapter's mask acts where it is white
    allowed, swapped, nowhere = masked(1 - HALF), masked(HALF), masked(0 * HALF)
    pipe.set_ip_adapter_scale(0.0)
    off = run(pipe, **options).latents
    assert relative(nowhere, off) < 1e-5
    right, left = (
        (latents - off).abs()[..., 2:].mean() / (latents - off).abs()[..., :2].mean() for latents in (allowed, swapped)
    )
    assert right > left


def test_adapter_embeddings_stay_paired_and_the_callers_own(parts):
    pipe = with_adapters(parts)
    encoded = run(pipe, ip_adapter_image=picture(seed=6))
    embeds = {name: [getattr(encoded, name)[0]] for name in ("ip_adapter_embeds", "negative_ip_adapter_embeds")}
    before = {name: value[0] for name, value in embeds.items()}
    state = run(
        pipe,
        prompt=["a green pear", "a blue cup"],
        num_images_per_prompt=2,
        generator=[seeded(k) for k in range(4)],
        **embeds,
    )
    assert all(embeds[name][0] is before[name] for name in embeds)
    alone = run(pipe, prompt="a blue cup", generator=seeded(2), **embeds)
    assert relative(state.latents[2:3], alone.latents) < 1e-5


# Guiders

LAYERS = "mid_block.attentions.0.transformer_blocks"
GUIDERS = {
    "CFG": ClassifierFreeGuidance,
    "CFG-Zero*": ClassifierFreeZeroStarGuidance,
    "PAG": lambda: PerturbedAttentionGuidance(
        perturbed_guidance_config=LayerSkipConfig(
            indices=[0], fqn=LAYERS, skip_attention=False, skip_attention_scores=True, skip_ff=False
        ),
        perturbed_guidance_start=0.0,
        perturbed_guidance_stop=1.0,
    ),
    "SLG": lambda: SkipLayerGuidance(
        skip_layer_config=LayerSkipConfig(indices=[0], fqn=LAYERS),
        skip_layer_guidance_start=0.0,
        skip_layer_guidance_stop=1.0,
    ),
    "SEG": lambda: SmoothedEnergyGuidance(
        seg_guidance_config=SmoothedEnergyGuidanceConfig(indices=[0], fqn=LAYERS),
        seg_guidance_start=0.0,
        seg_guidance_stop=1.0,
    ),
    "APG": AdaptiveProjectedGuidance,
    "APG mix": AdaptiveProjectedMixGuidance,
    "AutoGuidance": lambda: AutoGuidance(auto_guidance_config=LayerSkipConfig(indices=[0], fqn=LAYERS), dropout=1.0),
    "TCFG": TangentialClassifierFreeGuidance,
    "FDG": lambda: FrequencyDecoupledGuidance(guidance_scales=[5.0, 2.5]),
}


@pytest.mark.parametrize("guider", GUIDERS)
def test_every_guider_that_fits_a_unet_runs(parts, guider):
    off = run(automatic(parts, guidance_scale=1.0))
    pipe = automatic(parts)
    pipe.update_components(guider=GUIDERS[guider]())
    assert_edited(run(pipe), off)


def test_magnitude_aware_guidance_fails_upstream(parts):
    """It takes a matrix norm over three dimensions; our docs say so until it does not."""
    pipe = image_to_image(parts)
    pipe.update_components(guider=MagnitudeAwareGuidance())
    with pytest.raises(RuntimeError, match="dim must be a 2-tuple"):
        pipe(prompt="a pear", image=picture(), strength=1.0, num_inference_steps=2, generator=seeded())


# What else upstream takes


@pytest.mark.parametrize(
    "option",
    [
        {"negative_prompt": "a red apple"},
        {"original_size": (512, 512)},
        {"target_size": (16, 16)},
        {"crops_coords_top_left": (40, 80)},
        {"negative_original_size": (512, 512)},
        {"negative_target_size": (16, 16)},
        {"clip_skip": 1},
        {"prompt_2": "a blue cup"},
        {"negative_prompt": "", "negative_prompt_2": "a blue cup"},
    ],
    ids=lambda option: next(iter(option)),
)
def test_conditioning_changes_what_is_released(parts, option):
    pipe = automatic(parts)
    assert_edited(run(pipe, **option), run(pipe))


@pytest.mark.parametrize(("output_type", "kind"), [("latent", torch.Tensor), ("pt", torch.Tensor), ("np", np.ndarray)])
def test_several_outputs_in_every_form(parts, output_type, kind):
    images = run(automatic(parts), output_type=output_type, num_images_per_prompt=3).images
    assert isinstance(images, kind)
    assert len(images) == 3


def test_tiling_and_slicing_of_the_autoencoder(parts):
    parts = parts | {"vae": copy.deepcopy(parts["vae"])}
    options = {
        "image": picture(64, 64),
        "diffdiff_map": torch.ones(64, 64),
        "num_images_per_prompt": 2,
        "output_type": "pt",
    }
    plain = run(automatic(parts), **options).images
    parts["vae"].enable_slicing()
    torch.testing.assert_close(run(automatic(parts), **options).images, plain, rtol=0, atol=1e-4)
    parts["vae"].enable_tiling()
    parts["vae"].tile_sample_min_size, parts["vae"].tile_latent_min_size = 32, 4
    tiles = []
    parts["vae"].decoder.register_forward_hook(lambda module, inputs, output: tiles.append(output.shape[-1]))
    assert run(automatic(parts), **options).images.shape == plain.shape
    assert len(tiles) > 4
    assert max(tiles) == 32


def test_a_compiled_unet_draws_the_same(parts):
    plain = run(automatic(parts))
    pipe = automatic(parts | {"unet": torch.compile(parts["unet"], backend="eager")})
    assert relative(run(pipe).latents, plain.latents) < 1e-5


def test_lora_weights_load_fuse_and_unload(parts, tmp_path):
    pipe = automatic(parts)
    plain = run(pipe)
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False), "made")
    layers = get_peft_model_state_dict(pipe.unet, adapter_name="made")
    StableDiffusionXLPipeline.save_lora_weights(tmp_path, unet_lora_layers=layers)
    pipe.unet.delete_adapters("made")
    assert relative(run(pipe).latents, plain.latents) < 1e-5

    pipe.load_lora_weights(tmp_path, adapter_name="read")
    loaded = run(pipe)
    assert_edited(loaded, plain)
    pipe.fuse_lora(components=["unet"])
    assert relative(run(pipe).latents, loaded.latents) < 1e-4
    pipe.unfuse_lora(components=["unet"])
    pipe.unload_lora_weights()
    assert relative(run(pipe).latents, plain.latents) < 1e-4


def test_textual_inversion_adds_a_word(parts):
    names = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    parts = parts | {name: copy.deepcopy(parts[name]) for name in names}
    pipe = automatic(parts)
    before = run(pipe, prompt="a <blob> pear")
    for number in ("", "_2"):
        pipe.load_textual_inversion(
            {"<blob>": 5 * torch.randn(16, generator=seeded(8))},
            token="<blob>",
            text_encoder=parts[f"text_encoder{number}"],
            tokenizer=parts[f"tokenizer{number}"],
        )
    assert_edited(run(pipe, prompt="a <blob> pear"), before)


# Inserting


class MapFromBrightness(ModularPipelineBlocks):
    """A user's own block: what is bright in the image is kept."""

    @property
    def description(self):
        return "Step that makes a change map of the image's brightness."

    @property
    def inputs(self):
        return [
            InputParam("image", type_hint=Image.Image, required=True, description="The image to look at."),
            InputParam("threshold", type_hint=int, default=128, description="How bright is bright."),
        ]

    @property
    def intermediate_outputs(self):
        return [OutputParam("diffdiff_map", type_hint=Image.Image, description="White where the image is bright.")]

    def __call__(self, components, state):
        block_state = self.get_block_state(state)
        threshold = block_state.threshold
        block_state.diffdiff_map = block_state.image.convert("L").point(lambda value: 255 * (value >= threshold))
        self.set_block_state(state, block_state)
        return components, state


def test_a_users_block_in_front_makes_the_map(parts):
    named = {"map_from_brightness": MapFromBrightness, "edit": SDXLDiffDiffAutoBlocks}
    blocks = SequentialPipelineBlocks.from_blocks_dict(named)
    doc = blocks.doc
    assert "threshold (`int`, *optional*, defaults to 128)" in doc
    assert "diffdiff_map" not in {param.name for param in blocks.inputs}  # it is made, no longer asked for
    image = Image.fromarray(
        np.repeat(np.where(np.arange(32) < 16, 255, 0)[None, :, None], 32, 0).repeat(3, 2).astype(np.uint8)
    )
    state = build(blocks, parts)(
        prompt="a pear", image=image, num_inference_steps=3, generator=seeded(), output_type="latent"
    )
    assert_edited(state)
    expected = run(automatic(parts), prompt="a pear", image=image)
    assert torch.equal(state.latents, expected.latents)


class Expander(ModularPipelineBlocks):
    """A user's own block: more words for a prompt."""

    @property
    def inputs(self):
        return [InputParam("prompt", type_hint=str, required=True, description="The words.")]

    @property
    def intermediate_outputs(self):
        return [OutputParam("prompt", type_hint=str, description="More words.")]

    def __call__(self, components, state):
        state.set("prompt", f"{state.get('prompt')}, high quality")
        return components, state


def test_a_users_block_goes_in_by_name_before_another(parts):
    blocks = SDXLDiffDiffAutoBlocks().get_workflow("diffdiff")
    blocks.sub_blocks.insert("expander", Expander(), list(blocks.sub_blocks).index("text_encoder"))
    state = run(build(blocks, parts))
    assert torch.equal(state.latents, run(automatic(parts), prompt="a green pear, high quality").latents)


class Inverter(ModularPipelineBlocks):
    """A user's own block: the negative of the result."""

    @property
    def inputs(self):
        return [InputParam("images", type_hint=torch.Tensor, required=True, description="The results.")]

    @property
    def intermediate_outputs(self):
        return [OutputParam("negatives", type_hint=torch.Tensor, description="Their negatives.")]

    def __call__(self, components, state):
        state.set("negatives", 1 - state.get("images"))
        return components, state


class PromptWeigher(StableDiffusionXLTextEncoderStep):
    """A user's own text encoder, which takes only the prompt."""

    def __call__(self, components, state):
        components, state = super().__call__(components, state)
        state.set("prompt_embeds", 1.5 * state.get("prompt_embeds"), "denoiser_input_fields")
        return components, state


def test_a_users_block_goes_in_after_the_others(parts):
    blocks = SDXLDiffDiffAutoBlocks().get_workflow("diffdiff")
    blocks.sub_blocks["inverter"] = Inverter()
    assert "Their negatives." in blocks.doc
    state = run(build(blocks, parts), output_type="pt")
    assert torch.equal(state.negatives, 1 - state.images)


def test_a_users_block_takes_an_encoders_place(parts):
    blocks = SDXLDiffDiffAutoBlocks()
    blocks.sub_blocks["diffdiff"].sub_blocks["text_encoder"] = PromptWeigher()
    assert_edited(run(build(blocks, parts)), run(automatic(parts)))


def test_the_pipelines_blocks_are_a_copy(parts):
    blocks = SDXLDiffDiffAutoBlocks()
    pipe = build(blocks, parts)
    blocks.sub_blocks["diffdiff"].sub_blocks.pop("crop")
    pipe.blocks.sub_blocks["diffdiff"].sub_blocks.pop("decode")
    assert {"crop", "decode"} <= set(pipe.blocks.sub_blocks["diffdiff"].sub_blocks)
    assert "crop" in SDXLDiffDiffAutoBlocks().sub_blocks["diffdiff"].sub_blocks


def test_our_blocks_go_into_upstreams_image_to_image(parts):
    blocks = SequentialPipelineBlocks.from_blocks_dict(IMAGE2IMAGE_BLOCKS)
    blocks.sub_blocks["set_timesteps"] = TEXT2IMAGE_BLOCKS["set_timesteps"]()
    blocks.sub_blocks["prepare_latents"] = SDXLDiffDiffPrepareLatentsStep()
    blocks.sub_blocks["denoise"] = SDXLDiffDiffDenoiseLoop()
    state = run(build(blocks, parts))
    assert torch.equal(state.latents, run(automatic(parts)).latents)


def test_our_loop_goes_into_upstreams_automatic_blocks(parts, controlnet):
    blocks = StableDiffusionXLAutoBlocks()
    core = blocks.sub_blocks["denoise"]
    before = SequentialPipelineBlocks.from_blocks_dict(
        {
            "set_timesteps": TEXT2IMAGE_BLOCKS["set_timesteps"],
            "prepare_latents": SDXLDiffDiffPrepareLatentsStep,
            "prepare_add_cond": IMAGE2IMAGE_BLOCKS["prepare_add_cond"],
        }
    )
    core.sub_blocks["before_denoise"] = before
    core.sub_blocks["denoise"] = SDXLDiffDiffAutoDenoiseStep()
    pipe = build(blocks, parts | {"controlnet": controlnet})
    assert torch.equal(run(pipe).latents, run(automatic(parts)).latents)
    steered = run(pipe, control_image=picture(seed=5))
    ours = run(automatic(parts | {"controlnet": controlnet}), control_image=picture(seed=5))
    assert torch.equal(steered.latents, ours.latents)


# Without a map


@pytest.mark.parametrize(
    "options",
    [
        {"image": None, "height": 32, "width": 32},
        {"strength": 0.5},
        {"mask_image": picture(seed=3).convert("L")},
        {"mask_image": picture(seed=3).convert("L"), "padding_mask_crop": 4},
        {"control_image": picture(seed=5)},
        {"ip_adapter_image": picture(seed=6)},
    ],
    ids=lambda options: next(iter(options)),
)
def test_without_a_map_the_blocks_are_upstreams_bit_for_bit(parts, controlnet, options):
    parts["controlnet"] = controlnet
    results = []
    for blocks in (SDXLDiffDiffAutoBlocks(), StableDiffusionXLAutoBlocks()):
        pipe = build(blocks, parts)
        if "ip_adapter_image" in options:
            pipe.load_ip_adapter(adapter_weights(parts["unet"], 0), subfolder="", weight_name="")
        given = {"prompt": "a green pear", "image": picture(), "num_inference_steps": 4, "generator": seeded()}
        results.append(np.asarray(pipe(**given | options, output="images")[0]))
        if "ip_adapter_image" in options:
            pipe.unload_ip_adapter()
    np.testing.assert_array_equal(*results)


# What upstream takes


def test_a_control_image_may_mark_pixels_with_minus_one(parts, controlnet):
    """As inpainting ControlNets have it; with a black map this is upstream's image-to-image with a ControlNet."""
    control = torch.rand(1, 3, 32, 32, generator=seeded(9))
    control[..., 8:24, 8:24] = -1
    parts["controlnet"] = controlnet
    ours = run(automatic(parts), diffdiff_map=torch.zeros(32, 32), control_image=control)
    theirs = build(StableDiffusionXLAutoBlocks(), parts)
    given = {"prompt": "a green pear", "image": picture(), "num_inference_steps": 3, "generator": seeded()}
    expected = theirs(**given, control_image=control, strength=1.0, output_type="latent")
    assert torch.equal(ours.latents, expected.latents)


@pytest.mark.parametrize("form", ["tensor", "array"])
def test_images_in_minus_one_to_one_are_read_with_a_warning(parts, form):
    """The whole batch is, as upstream has it: the second picture has nothing below zero."""
    pixels = torch.rand(2, 3, 37, 29, generator=seeded(9))
    pixels[1] = pixels[1] / 2 + 0.5
    images = pixels if form == "tensor" else pixels.permute(0, 2, 3, 1).numpy()
    keep = torch.cat([torch.ones(37, 15), torch.zeros(37, 14)], 1)
    options = {"prompt": ["a pear", "a cup"], "diffdiff_map": keep, "overlay": True, "output_type": "np"}
    expected = run(automatic(parts), image=images, **options)
    with pytest.warns(UserWarning, match=r"`image` has values down to -.* is read as one in \[-1, 1\]"):
        state = run(automatic(parts), image=2 * images - 1, **options)
    assert relative(state.latents, expected.latents) < 1e-3
    np.testing.assert_allclose(state.images, expected.images, atol=1e-3)


# Bad input


@pytest.mark.parametrize(
    "given",
    [
        {"overlay": True},
        {"overlay_feather": 2},
        {"invert_diffdiff_map": True},
        {"padding_map_crop": 0},
        {"diffdiff_schedule": "timestep"},
    ],
    ids=lambda given: next(iter(given)),
)
def test_what_needs_a_map_is_refused_without_one(parts, given):
    with pytest.raises(BadInputError, match=f"`{next(iter(given))}` is .*; it only applies with a `diffdiff_map`"):
        run(automatic(parts), diffdiff_map=None, **given)


def test_a_mask_beside_a_map_is_refused(parts):
    with pytest.raises(BadInputError, match="`mask_image` is given together with `diffdiff_map`"):
        run(automatic(parts), mask_image=picture().convert("L"))


def test_the_ip_adapters_block_takes_its_input_along():
    blocks = SDXLDiffDiffAutoBlocks().sub_blocks["diffdiff"]
    blocks.sub_blocks.pop("ip_adapter")
    assert "ip_adapter_image" not in blocks.input_names


@pytest.mark.parametrize(
    ("net", "bad", "says"),
    [
        (None, {"control_image": picture()}, "`control_image` is given, but no ControlNet is loaded"),
        (None, {"control_mode": 1}, "`control_mode` is 1, but there is no `control_image`"),
        ("controlnet", {"control_image": picture(), "control_mode": 1}, "a ControlNetModel has no modes"),
        ("controlnet", {"control_image": "edges.png"}, "`control_image` is 'edges.png'; it takes PIL images"),
        (
            "controlnet",
            {"control_image": [picture()] * 2},
            "`control_image` holds 2; it takes 1, as there is one prompt",
        ),
        ("controlnet", {"control_image": []}, r"`control_image` is \[\]"),
        ("union", {"control_image": picture()}, "`control_mode` is None; it takes one of the union's types, 0 to 3"),
        ("union", {"control_image": picture(), "control_mode": -1}, "`control_mode` is -1"),
        ("union", {"control_image": picture(), "control_mode": 4}, "`control_mode` is 4"),
        (
            "union",
            {"control_image": [picture()] * 2, "control_mode": [1]},
            r"`control_image` holds 2, .* \[1\]; they go",
        ),
        ("union", {"control_image": torch.zeros(3, 3, 8, 8), "control_mode": 1}, "`control_image` holds 3; it takes 1"),
        (
            "union",
            {"control_image": picture(), "control_mode": 1, "control_guidance_start": [0.0, 0.5]},
            r"`control_guidance_start` is \[0.0, 0.5\]; it takes an int or a float",
        ),
        (
            "controlnet",
            {"control_image": picture(), "controlnet_conditioning_scale": [1.0, 0.5]},
            r"`controlnet_conditioning_scale` is \[1.0, 0.5\]; it takes an int or a float",
        ),
        ("both", {"control_image": picture()}, "`control_image` holds 1; it takes 2, one for each ControlNet"),
        (
            "both",
            {"control_image": [picture()] * 2, "controlnet_conditioning_scale": [1.0]},
            r"`controlnet_conditioning_scale` is \[1.0\]; it takes a float, or 2 numbers: one for each ControlNet",
        ),
    ],
)
def test_control_that_cannot_work_is_refused(parts, controlnet, union, net, bad, says):
    nets = {"controlnet": controlnet, "union": union, "both": MultiControlNetModel([controlnet, controlnet])}
    pipe = automatic(parts | ({"controlnet": nets[net]} if net else {}))
    with pytest.raises(ValueError, match=says):
        run(pipe, **bad)


def test_an_image_prompt_without_an_adapter_is_refused(parts):
    with pytest.raises(ValueError, match="no IP-Adapter is loaded"):
        run(automatic(parts), ip_adapter_image=picture())


def test_an_adapter_without_an_image_prompt_is_refused(parts):
    pipe = with_adapters(parts)
    with pytest.raises(ValueError, match="neither `ip_adapter_image` nor `ip_adapter_embeds` is given"):
        run(pipe)
    with pytest.raises(ValueError, match="`ip_adapter_image` holds 2; it takes 1"):
        run(pipe, ip_adapter_image=[picture(), picture()])
    pipe.unload_ip_adapter()
    assert_edited(run(pipe))


def test_a_missing_image_encoder_is_named_where_it_is_needed(parts):
    parts["image_encoder"] = None
    pipe = with_adapters({name: part for name, part in parts.items() if part is not None})
    with pytest.raises(ValueError, match="not loaded: image_encoder"):
        run(pipe, ip_adapter_image=picture())
