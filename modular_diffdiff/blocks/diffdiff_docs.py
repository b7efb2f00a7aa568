"""What every input and output is, and what an input takes, once for all blocks and pipelines."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers.modular_pipelines.modular_pipeline_utils import InputParam, OutputParam

from . import diffdiff_kinds


# What an input of ours is where it is not given; the others are None then.
DEFAULTS: dict[str, Any] = {
    "invert_diffdiff_map": False,
    "overlay": False,
    "num_images_per_prompt": 1,
    "num_videos_per_prompt": 1,
    "output_type": "pil",
    "strength": 1.0,
    "diffdiff_schedule": "step",
    "diffdiff_softness": 0.0,
    "overlay_grow": 0,
    "overlay_feather": 0,
    "match_colors": False,
    "preview_map": False,
    "batch_guidance": False,
    "allow_paths": True,
    "map_levels": (0.0, 1.0),
    "map_gamma": 1.0,
    "map_grow": 0.0,
    "map_feather": 0.0,
    "map_seam": "across",
    "map_limits": (0.0, 1.0),
    "map_combine": "keep",
    "map_fill": "original",
    "fan_strengths": (0.2, 0.4, 0.6, 0.8, 1.0),
}
# What values are taken, by name.
KINDS: dict[str, diffdiff_kinds.Kind] = {}
# (type, sentences), by name: of an input they say what it takes, too.
INPUTS: dict[str, tuple[Any, str]] = {}
OUTPUTS: dict[str, tuple[Any, str]] = {}


def _describe(kind: diffdiff_kinds.Kind, /, **sentences: str) -> None:
    for name, sentence in sentences.items():
        KINDS[name] = kind
        INPUTS[name] = kind.type_hint, f"{sentence} Takes {kind.takes}." if kind.takes else sentence
        OUTPUTS[name] = kind.type_hint, sentence


_describe(
    diffdiff_kinds.texts(),
    prompt="What to draw in the changed regions, one for each image of the batch.",
    prompt_2="Text for `tokenizer_2` and `text_encoder_2`; by default `prompt`.",
    prompt_3="Text for `tokenizer_3` and `text_encoder_3`; by default `prompt`.",
    negative_prompt="What not to draw in the changed regions; used by guiders with a negative side.",
    negative_prompt_2="Negative text for `text_encoder_2`; by default `negative_prompt`.",
    negative_prompt_3="Negative text for `text_encoder_3`; by default `negative_prompt`.",
)
_describe(
    diffdiff_kinds.keywords(),
    cross_attention_kwargs="For the UNet's attention processors; `scale` is LoRA's.",
    joint_attention_kwargs="For the attention processors; `scale` is LoRA's.",
    attention_kwargs="For the attention processors; `scale` is LoRA's.",
    preprocess_kwargs="For `VaeImageProcessor.preprocess` of the image; not with a change map.",
)
_describe(
    diffdiff_kinds.whole(1),
    height="Height in pixels to resize the image to, by default its own; for latents, the height that they stand for. "
    "Edit models may have a size of their own.",
    width="Width in pixels, like `height`.",
    max_sequence_length="Number of text tokens after which a prompt is cut off.",
    num_images_per_prompt="How many images to make of each prompt.",
    num_videos_per_prompt="How many videos to make of each prompt.",
    num_frames="Number of frames of a video that is made without a change map; an edited video keeps its own.",
    num_inference_steps="Number of denoising steps. The change map's greys are shares of this schedule.",
)
_describe(
    diffdiff_kinds.whole(1, diffdiff_kinds.MOST**2),
    max_area="Area in pixels to which the output of a run without a map is resized.",
)
_describe(
    diffdiff_kinds.whole(0),
    clip_skip="How many of the text encoders' last layers are left out.",
    padding_map_crop="Edits only the box that the map changes, with this many pixels around it, and pastes the result "
    "into the image; `height` and `width` are then the box's. One box serves the batch.",
    padding_mask_crop="Inpaints only the box that the mask changes, with this many pixels around it.",
    overlay_grow="By how many pixels to extend the overlay into what changes, on every side.",
    overlay_feather="Width in pixels over which the overlay fades out, beyond `overlay_grow`, into what changes.",
)
_describe(
    diffdiff_kinds.unchecked(int),
    batch_size="Number of prompts; there are `batch_size * num_images_per_prompt` outputs.",
)
_describe(
    diffdiff_kinds.pictures(
        "PIL images, or floats in [0, 1] as arrays (H, W, 3) or tensors (3, H, W), or a list of one size; "
        "`diffusers.utils.load_image` reads paths and URLs"
    ),
    image="The image to edit, or a batch. Any size; results come back at the same size. Models that take references "
    "take one.",
    resized_image="The image at the model's own size, to encode instead of `image`. Not with a change map.",
)
_describe(
    diffdiff_kinds.videos(),
    video="The video to edit under a change map. Any size and any number of frames; results have the same.",
)
_describe(
    diffdiff_kinds.tensor("(B, C, frames, h, w)", 5),
    video_latents="The encoded original, x0, of a video. To pass it yourself, take its encoder out with "
    "`without_encoders`.",
)
_describe(
    diffdiff_kinds.pictures("PIL images, arrays or tensors, one for each IP-Adapter in a list"),
    ip_adapter_image="The image prompt, or one for each loaded IP-Adapter. It acts on what the map releases; to limit "
    "it further, pass `cross_attention_kwargs={'ip_adapter_masks': ...}`.",
)
_describe(
    diffdiff_kinds.pictures("PIL images, finite floats as arrays (H, W, 3) or tensors (3, H, W), or a list of these"),
    control_image="The ControlNet's condition (edges, depth, ...), or one for each ControlNet or control mode. It "
    "steers the regions that the map releases; what the map keeps follows the original. Resized to the image, and "
    "padded and cut like it.",
    mask_image="An inpainting mask, whose white changes; it becomes a change map. In pipelines that inpaint with one "
    "themselves, pass it as `diffdiff_map` with `invert_diffdiff_map=True` instead.",
    map_difference="The photo before `image` was painted over, of the same size, or one for each image: the more the "
    "two differ, the more may change.",
)
_describe(
    diffdiff_kinds.change_maps(
        "a PIL image, numpy array, tensor (H, W), (1, H, W) or (B, 1, H, W), path or URL, of any size; it is resized "
        "to the image"
    ),
    diffdiff_map="The change map, or one for each prompt or output: white (1) keeps the original, black (0) lets "
    "everything change, and a grey of 0.4 lets change begin after 40 % of the steps.",
)
_describe(
    diffdiff_kinds.names(),
    map_text="What may change, in words, or one text for each image. A segmenter finds it; the rest is kept.",
)
_describe(
    diffdiff_kinds.number(0, 1),
    map_text_threshold="Cuts what `map_text` finds at this probability: from it on everything may change, below it "
    "nothing. Without it, the probabilities are the strengths. It cuts what `region_texts` finds likewise.",
)
_describe(
    diffdiff_kinds.for_regions("texts", str, diffdiff_kinds.is_text),
    region_prompts="What to draw in parts of the image, a prompt for each region; `prompt` holds where no region is.",
)
_describe(
    diffdiff_kinds.change_maps("change maps as `diffdiff_map` does, one for each prompt in `region_prompts`"),
    region_maps="Where each region is: white (1) where its prompt holds, grey where it shares with others, black (0) "
    "elsewhere.",
)
_describe(
    diffdiff_kinds.for_regions("texts that are not blank", str, diffdiff_kinds.is_name),
    region_texts="Where each region is, in words, in place of `region_maps`. A segmenter finds it.",
)
_describe(
    diffdiff_kinds.listed(diffdiff_kinds.number(0, 1)),
    region_strengths="Turns the change map down in each region, as `strength` does everywhere.",
)
_describe(
    diffdiff_kinds.points(),
    map_points="Points on what may change; the rest is kept. A list of points is one object, a list of lists several.",
)
_describe(
    diffdiff_kinds.several(diffdiff_kinds.box()),
    map_boxes="Boxes (left, top, right, bottom) in pixels around what may change, one for each object; the rest is "
    "kept.",
)
_describe(
    diffdiff_kinds.depths(),
    map_depth="(kept, free): the depths between which the strength rises from 0 to 1, where 0 is the nearest in the "
    "picture and 1 the farthest; either may be the larger one.",
)
_describe(
    diffdiff_kinds.direction(),
    map_gradient="A gradient of strength from 0 to 1: the direction in which it rises, or 'radial', from the edge to "
    "the middle.",
)
_describe(
    diffdiff_kinds.choice("keep", "change"),
    map_combine="How to combine several maps: 'keep' what any of them keeps, or 'change' what any of them changes.",
)
_describe(
    diffdiff_kinds.choice("original", "blur", "noise", "color"),
    map_fill="What changed parts start from: 'original'; 'blur', what surrounds them, drawn smoothly inwards; 'noise'; "
    "or 'color', the mean colour of what is kept. It counts at strengths below 1, where the original shows through. "
    "Where the map is darkest all is filled, where it is lighter less, and what it keeps is not touched.",
)
_describe(
    diffdiff_kinds.span("two numbers in [0, 1], black below white by 0.001 or more", 0.001),
    map_levels="(black, white): greys of the map up to `black` become black, those from `white` on become white, and "
    "those in between are stretched.",
)
_describe(
    diffdiff_kinds.number(0.01, 100),
    map_gamma="Gamma of the map's greys, after `map_levels`: above 1 they get brighter and keep more, below 1 darker.",
)
_describe(
    diffdiff_kinds.number(-diffdiff_kinds.MOST, diffdiff_kinds.MOST),
    map_grow="Grows what changes by this many pixels of the image on every side; below 0 it shrinks.",
)
_describe(
    diffdiff_kinds.number(0, 1000),
    map_feather="Softens the map's edges with a Gaussian of this standard deviation in pixels of the image, after "
    "`map_grow`.",
)
_describe(
    diffdiff_kinds.choice("across", "inside", "outside"),
    map_seam="Where `map_feather` puts the soft edge: 'across' the map's edge, half on either side; 'inside' what "
    "changes, so that everything kept stays kept; or 'outside' it, so that everything that changes keeps its strength.",
)
_describe(
    diffdiff_kinds.span("two numbers in [0, 1], the first one not larger", 0),
    map_limits="(least, most): limits on the strength of anything that changes at all, where 1 is free; applied last. "
    "What the map fully keeps stays kept.",
)
_describe(
    diffdiff_kinds.function("components, step, timestep, callback_kwargs"),
    callback_on_step_end="Called after every step, as in upstream's pipelines, but with empty `callback_kwargs`. What "
    "it returns is ignored; what it raises ends the run.",
)
_describe(
    diffdiff_kinds.flag(),
    invert_diffdiff_map="Inverts the `diffdiff_map` that you pass: white then marks what changes.",
    allow_paths="Whether a `diffdiff_map` that is a string may be opened as a path or fetched as a URL. Turn it off "
    "for strings from strangers, which could reach every file and address that this machine does.",
    guess_mode="Lets the ControlNet act only on the positive side, with more weight on deeper layers.",
    overlay="Lays the original's own pixels over the result where the map is white, so that they do not pass through "
    "the autoencoder. Results then have the original's size and alpha channel.",
    match_colors="Undoes the colour shift of the autoencoder and the model: fits the colours of the whole result to "
    "the original's, judging by what the map fully keeps. Refused where nothing is.",
    preview_map="Whether to draw `map_preview`.",
    batch_guidance="Calls the model once a step, with prompt and negative prompt as one batch: faster where one "
    "picture does not fill the accelerator, with more memory, and equal up to float rounding. For guiders that only "
    "combine predictions, such as classifier-free guidance.",
    _auto_resize="Whether to resize the image to a size that the model was trained on; never with a map, because that "
    "stretches the image.",
)
_describe(
    diffdiff_kinds.schedule(int),
    timesteps="Timesteps to use instead of the scheduler's own spacing, for schedulers that take them.",
)
_describe(
    diffdiff_kinds.schedule(float),
    sigmas="Sigmas to use instead of the scheduler's own spacing, for schedulers that take them.",
)
_describe(
    diffdiff_kinds.number(),
    guidance_scale="Only for models distilled with guidance. In all others, guidance belongs to the guider: "
    "`pipe.update_components(guider=ClassifierFreeGuidance(guidance_scale=7.5))`.",
    aesthetic_score="Aesthetic score to aim for, for UNets conditioned on one (`requires_aesthetics_score`).",
    negative_aesthetic_score="Aesthetic score to avoid, for the same UNets.",
)
_describe(
    diffdiff_kinds.number(0, 1),
    eta="η of the DDIM paper, where 0 is deterministic; for schedulers that take it.",
    strength="Turns the whole map down, to 1 - strength * (1 - map). With a black map, and without a map, this is "
    "image-to-image's strength.",
    diffdiff_softness="How much of the original to keep in what the map releases: in every step the noised original is "
    "mixed in with the weight softness * map. ComfyUI's `DifferentialDiffusion` calls 1 - softness its strength.",
)
_describe(
    diffdiff_kinds.rising(2, 100),
    fan_strengths="The strengths at which to make one edit, one output for each; a last output has all of them, in "
    "strips.",
)
_describe(
    diffdiff_kinds.share(includes_all=True),
    denoising_end="Share of the schedule after which to stop; what is kept then ends at that step's noise level.",
)
_describe(
    diffdiff_kinds.share(includes_all=False),
    denoising_start="Share of the schedule at which to start: where another run stopped by its `denoising_end`. Pass "
    "that run's `latents`, `noise` and `image_latents`. The map refers to the full schedule.",
)
_describe(
    diffdiff_kinds.generators(),
    generator="Source of the random numbers, or one for each output (prompts x images per prompt), which makes each "
    "output independent of the others.",
)
_describe(
    diffdiff_kinds.tensor("as the denoising loop sees it", 3, 4, 5),
    latents="The latents to start from, made by default. For SDXL, the original's, (outputs, 4, h, w), noised to the "
    "first step's level (with `denoising_start`, those of the earlier run); for the other models, noise.",
    noise="The noise of the original's trajectory, of the latents' shape; by default SDXL draws it from `generator`.",
)
_describe(
    diffdiff_kinds.tensor("(B, C, h, w) or (B, C, 1, h, w)", 4, 5),
    image_latents="The encoded original, x0; in the loop, as the loop sees latents. To pass it yourself, take its "
    "encoder out with `without_encoders`.",
    control_image_latents="The encoded control image.",
)
_describe(
    diffdiff_kinds.tensor("(B, features)", 2),
    pooled_prompt_embeds="Pooled text embeddings.",
    negative_pooled_prompt_embeds="Pooled embeddings of the negative prompt.",
)
_describe(
    diffdiff_kinds.embeddings("(B, tokens, features)", 3),
    prompt_embeds="Text embeddings, a row for each prompt. To pass them yourself, take the text encoder out with "
    "`without_encoders`.",
    negative_prompt_embeds="Text embeddings of the negative prompt, of the same shape.",
    qwen_prompt_embeds="Qwen's text embeddings, before they are conditioned.",
    negative_qwen_prompt_embeds="Qwen's text embeddings of the negative prompt.",
    prompt_embeds_2="Embeddings of the texts that a prompt asks to write, a row for each prompt.",
    negative_prompt_embeds_2="The same for the negative prompt.",
)
_describe(
    diffdiff_kinds.tokens("(B, tokens)"),
    prompt_embeds_mask="Which tokens of the text embeddings count.",
    negative_prompt_embeds_mask="Which tokens of the negative text embeddings count.",
    qwen_attention_mask="Which tokens of Qwen's text embeddings count.",
    t5_input_ids="Tokens of the prompt, as T5 counts them.",
    t5_attention_mask="Which of these tokens count.",
    negative_qwen_attention_mask="Which tokens of Qwen's negative text embeddings count.",
    negative_t5_input_ids="Tokens of the negative prompt, as T5 counts them.",
    negative_t5_attention_mask="Which of these tokens count.",
    prompt_attention_mask="Which tokens of the text embeddings count.",
    negative_prompt_attention_mask="Which tokens of the negative text embeddings count.",
    prompt_embeds_mask_2="Which tokens of the second text embeddings count.",
    negative_prompt_embeds_mask_2="Which tokens of the second negative text embeddings count.",
)
_describe(
    diffdiff_kinds.number(0.1, 1000),
    frame_rate="Frames of the video in a second.",
)
_describe(
    diffdiff_kinds.several(diffdiff_kinds.number(0, 1)),
    decode_timestep="The timestep at which to decode, or one for each output; for autoencoders that take one.",
    decode_noise_scale="How much noise to decode with, or one for each output; `decode_timestep` by default.",
)
_describe(
    diffdiff_kinds.pair(),
    original_size="SDXL's micro-conditioning: (height, width) of the original; by default that of the latents.",
    target_size="SDXL's micro-conditioning: the (height, width) to aim for; by default that of the latents.",
    negative_original_size="`original_size` for the negative side; the same by default.",
    negative_target_size="`target_size` for the negative side; the same by default.",
    crops_coords_top_left="SDXL's micro-conditioning: where the picture was cropped.",
    negative_crops_coords_top_left="The same for the negative side: it cannot differ.",
)
_describe(
    diffdiff_kinds.choice("pil", "np", "pt", "latent"),
    output_type="Form of the results; 'latent' returns the latents themselves.",
)
_describe(
    diffdiff_kinds.choice("step", "timestep"),
    diffdiff_schedule="What the map's greys are compared with: 'step', the share of the steps done so far (the paper), "
    "or 'timestep', the noise level, t_0 to 0 (ComfyUI).",
)
_describe(
    diffdiff_kinds.several(diffdiff_kinds.whole(0)),
    control_mode="For a ControlNet-Union: the number of the control type, or one for each control image.",
)
_describe(
    diffdiff_kinds.several(diffdiff_kinds.number(0, 1)),
    control_guidance_start="Share of the steps at which the ControlNet starts to act, counted from the first step that "
    "runs.",
    control_guidance_end="Share of the steps at which the ControlNet stops acting, counted from the first step that "
    "runs; it does not steer regions released later.",
)
_describe(
    diffdiff_kinds.several(diffdiff_kinds.number()),
    controlnet_conditioning_scale="Weight of the ControlNet, or of each of them; 0 is an edit without it.",
)
_describe(
    diffdiff_kinds.box(),
    crops_coords="Box (left, top, right, bottom) in pixels to which the control image is cut, instead of being fitted "
    "to the image.",
)
_describe(
    diffdiff_kinds.tensors(),
    ip_adapter_embeds="Image embeddings for each loaded IP-Adapter.",
    negative_ip_adapter_embeds="Their negative side, of the same shapes.",
    image_cond_latents="The encoded original, x0, in a list of one.",
)
# Between blocks.
_describe(
    diffdiff_kinds.unchecked(torch.Tensor),
    release_steps="The step from which each latent element is free to change, int32, (outputs, 1, h, w) or anything "
    "that broadcasts to the latents. Counted from the first step that runs; the number of steps or more means never.",
    keep="The final map on the latents' grid, in the shape of `release_steps`: 1 where the original stays.",
    level_alphas="Factor of the original at every noise level of the schedule, and 1 last.",
    level_sigmas="Factor of the noise at every noise level of the schedule, and 0 last.",
    timestep_cond="Embedded guidance scale, for UNets distilled with one (LCM).",
    controlnet_cond="The control image, resized and repeated.",
)
_describe(
    diffdiff_kinds.unchecked(torch.Tensor),
    region_weights="How much each prompt of a picture counts for each latent element, (outputs, prompts, ...).",
)
_describe(
    diffdiff_kinds.unchecked(torch.Tensor),
    filled_latents="What changed parts start from, encoded.",
    masked_image_latents="The picture without all that the map ever releases, encoded, for inpainting UNets.",
)
_describe(
    diffdiff_kinds.unchecked(list),
    filled_image="The image as changed parts start from it.",
)
_describe(
    diffdiff_kinds.unchecked(torch.Tensor),
    conditioning_mask="Which tokens upstream's image-to-video keeps.",
    cond_latents_concat="Latents of a first frame, zeros without one.",
    mask_concat="Where there is a first frame.",
    image_embeds="Embeddings of a first frame, zeros without one.",
)
_describe(
    diffdiff_kinds.unchecked(tuple[float, float, float]),
    rope_interpolation_scale="Steps of a token's position in time, height and width.",
)
_describe(
    diffdiff_kinds.unchecked(object),
    audio_scheduler="The scheduler of the sound, a copy of `scheduler`.",
)
_describe(
    diffdiff_kinds.unchecked(list[list[PIL.Image.Image]] | np.ndarray | torch.Tensor),
    videos="The edited videos, as `output_type` says: frames of each, in [0, 1] as arrays and tensors.",
)
_describe(
    diffdiff_kinds.unchecked(list[int]),
    region_begins="The step in which each region of each picture begins to change, outputs x prompts.",
)
_describe(
    diffdiff_kinds.unchecked(list),
    condition_images="The reference as the autoencoder takes it.",
    processed_image="The image as the autoencoder takes it, a tensor or a list of them.",
    image_height="Height in pixels at which the image is encoded, or of each.",
    image_width="Width in pixels at which the image is encoded, or of each.",
)
_describe(
    diffdiff_kinds.unchecked(float | list[float]),
    conditioning_scale="The ControlNet's weight, one for each ControlNet.",
)
_describe(
    diffdiff_kinds.unchecked(list[float]),
    controlnet_keep="Whether the ControlNet acts in a step (1) or not (0), for every step.",
)
_describe(
    diffdiff_kinds.unchecked(torch.dtype), dtype="Data type of the denoiser's inputs, that of the text embeddings."
)
_describe(
    diffdiff_kinds.unchecked(object),
    placement="Where the picture lies in what the model sees: originals, maps, box, sizes and grid; a "
    "`diffdiff_placement.Placement`.",
)
_describe(
    diffdiff_kinds.unchecked(tuple[int, ...]),
    text_encoder_out_layers="The text encoder's layers whose states are the embeddings.",
)
_describe(
    diffdiff_kinds.unchecked(list[PIL.Image.Image] | np.ndarray | torch.Tensor),
    images="The edited images, as `output_type` says.",
)
OUTPUTS |= {
    "map_preview": (
        list[PIL.Image.Image],
        "Each image in grey, redder where a pixel may change more, with a scale; None without `preview_map`.",
    ),
    "latents": (torch.Tensor, "Latents, as the denoising loop sees them: noised before it, edited after it."),
    "timesteps": (torch.Tensor, "The timesteps that were run."),
    "num_inference_steps": (int, "The number of evaluations of the denoiser that were run, as guiders count them."),
    "height": (int, "Height in pixels of the run, padding included."),
    "width": (int, "Width in pixels of the run, padding included."),
}
KWARGS = {
    "denoiser_input_fields": "What else the denoiser is conditioned on: outputs of blocks that are marked so.",
    "controlnet_kwargs": "What else the ControlNet is conditioned on: outputs of blocks that are marked so.",
}


def input_param(name: str, required: bool = False) -> InputParam:
    """The input of this name, with its type, default and sentence; without them where the name is a user's own."""
    type_hint, description = INPUTS.get(name, (None, ""))
    return InputParam(name, type_hint, DEFAULTS.get(name), required, description)


def output_param(name: str) -> OutputParam:
    """The output of this name, with its type and sentence; without them where the name is a user's own."""
    type_hint, description = OUTPUTS.get(name, (None, ""))
    return OutputParam(name, type_hint, description)


def document(param: InputParam | OutputParam, sentences: dict[str, tuple[Any, str]]) -> InputParam | OutputParam:
    """An input or output of upstream's with our type and sentence, or its own, to which it may lack the full stop."""
    if param.name is None:
        return replace(param, type_hint=dict, description=KWARGS.get(param.kwargs_type, param.description))
    type_hint, sentence = sentences.get(param.name, (param.type_hint, param.description))
    return replace(param, type_hint=type_hint, description=sentence and f"{sentence.removesuffix('.')}.")


def summary(block: Any) -> str:
    """The first paragraph of a block's docstring, which describes it."""
    return " ".join(inspect.getdoc(type(block)).split("\n\n")[0].split())


class Documented:
    """Mixin of blocks whose inputs and outputs upstream has left without a type or a sentence."""

    @property
    def description(self) -> str:
        return summary(self)

    @property
    def inputs(self) -> list[InputParam]:
        return [document(param, INPUTS) for param in super().inputs]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [document(param, OUTPUTS) for param in super().intermediate_outputs]
