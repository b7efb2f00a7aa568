"""What every input and output is, in a type and a sentence, once for all blocks and pipelines."""

from __future__ import annotations

import inspect
import os
from dataclasses import replace
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers.modular_pipelines.modular_pipeline_utils import InputParam, OutputParam


Images = PIL.Image.Image | np.ndarray | torch.Tensor | list
ChangeMap = PIL.Image.Image | np.ndarray | torch.Tensor | str | os.PathLike | list
Text = str | list[str]

# What an input of ours is where it is not given; the others are None then.
DEFAULTS: dict[str, Any] = {
    "invert_diffdiff_map": False,
    "overlay": False,
    "num_images_per_prompt": 1,
    "output_type": "pil",
    "strength": 1.0,
    "diffdiff_schedule": "step",
    "overlay_feather": 0,
}
# name: (type, sentence)
INPUTS: dict[str, tuple[Any, str]] = {}


def _describe(kind: Any, /, **sentences: str) -> None:
    INPUTS.update({name: (kind, sentence) for name, sentence in sentences.items()})


_describe(
    Text,
    prompt="What the changed regions show: a text, or one for each image of the batch.",
    prompt_2="Text for `tokenizer_2` and `text_encoder_2`; `prompt` where it is not given.",
    negative_prompt="What the changed regions do not show; used by guiders with a negative side.",
    negative_prompt_2="Negative text for `text_encoder_2`; `negative_prompt` where it is not given.",
    negative_prompt_3="Negative text for `text_encoder_3`; `negative_prompt` where it is not given.",
    prompt_3="Text for `tokenizer_3` and `text_encoder_3`; `prompt` where it is not given.",
)
_describe(
    dict,
    cross_attention_kwargs="Keyword arguments for the UNet's attention processors; `scale` is LoRA's.",
    preprocess_kwargs="Keyword arguments for `VaeImageProcessor.preprocess` of the image.",
    joint_attention_kwargs="Keyword arguments for the attention processors; `scale` is LoRA's.",
)
_describe(
    int,
    clip_skip="How many of the text encoders' last layers are left out, at least 0.",
    height="Height in pixels, at least 1, to which the image is resized, its own by default; of a picture that is "
    "given as latents, its own. Edit models may have a size of their own.",
    width="Width in pixels, at least 1; the same holds as for `height`.",
    padding_map_crop="Edits only the box that the map changes, with this many pixels around it, at least 0, and lays "
    "the rest over; `height` and `width` are then the box's. One box serves the batch.",
    batch_size="Number of prompts; there are `batch_size * num_images_per_prompt` outputs.",
    padding_mask_crop="Inpaints only the box that the mask changes, with this many pixels around it, at least 0.",
    max_sequence_length="Number of text tokens after which a prompt is cut off.",
    max_area="Area in pixels that the output of a run without a map is brought to.",
    num_images_per_prompt="How many images to make of each prompt, at least 1.",
    num_inference_steps="Number of denoising steps, at least 1; the change map's values are thresholds on this "
    "schedule.",
    overlay_feather="Width in pixels, at least 0, of the seam in which the overlay fades; it lies in what changes.",
)
_describe(
    Images,
    image="The image to edit, or a batch of equal size: PIL images, or floats in [0, 1] as numpy arrays (H, W, 3) or "
    "tensors (3, H, W). Any size; results come back at the same one. Models that take references take one.",
    ip_adapter_image="The image prompt, or one for each loaded IP-Adapter: what is released takes after it, what is "
    "kept does not. To let it act in parts only, pass `cross_attention_kwargs={'ip_adapter_masks': ...}`.",
    control_image="The ControlNet's condition (edges, depth, ...), or one for each ControlNet or control mode. It "
    "steers the regions that the map releases; what the map keeps follows the original. Resized to the image, and "
    "padded and cut as it is.",
    mask_image="The mask of inpainting, white changes. Not taken together with a change map: as one, it is a map of "
    "black and white with `invert_diffdiff_map=True`.",
    resized_image="The image at the model's own size; where it is given, it is encoded in its place.",
)
_describe(
    ChangeMap,
    diffdiff_map="The change map, or one for each image: white (1) keeps the original, black (0) lets everything "
    "change, grey (g) lets change begin after the share g of the steps. A PIL image, numpy array, tensor (H, W), (1, "
    "H, W) or (B, 1, H, W), path or URL; another size than the image's is resized to it.",
)
_describe(
    bool,
    invert_diffdiff_map="Reads the map the other way round: white marks what changes.",
    guess_mode="Lets the ControlNet act on the positive side alone, deeper layers weighing more.",
    overlay="Lays the original's own pixels over the result where the map keeps it whole, so that they have been "
    "through no autoencoder; results then have the original's size, and its alpha channel.",
    _auto_resize="Whether the image is brought to a size that the model was trained on; never with a map, as that "
    "stretches it.",
)
_describe(
    list[int] | torch.Tensor,
    timesteps="Timesteps to use instead of the scheduler's own spacing, for schedulers that take them.",
)
_describe(
    list[float] | torch.Tensor,
    sigmas="Sigmas to use instead of the scheduler's own spacing, for schedulers that take them.",
)
_describe(
    float,
    denoising_end="Share of the schedule, in (0, 1], after which to stop; kept elements then end at that step's noise "
    "level.",
    guidance_scale="Of models that were distilled with guidance. Where there is a guider, guidance belongs to it, as "
    "in `pipe.update_components(guider=ClassifierFreeGuidance(guidance_scale=7.5))`, and the call does not take this.",
    denoising_start="Share of the schedule, in (0, 1), at which to start: where another run stopped by "
    "`denoising_end`, whose `latents`, `noise` and `image_latents` go in. The map counts on the full schedule.",
    aesthetic_score="Score wanted, from 1 to 10, for UNets that are conditioned on one (`requires_aesthetics_score`).",
    negative_aesthetic_score="Score not wanted, from 1 to 10, for the same UNets.",
    eta="η of the DDIM paper, in [0, 1], 0 being deterministic; for schedulers that take it.",
    strength="Turns the whole map down, in [0, 1]: the map counts as 1 - strength * (1 - map). With a black map, and "
    "without a map, this is image-to-image's strength.",
)
_describe(
    torch.Generator | list[torch.Generator],
    generator="Source of the random numbers, or one for each output (prompts x images per prompt), which makes each "
    "output independent of the others.",
)
_describe(
    torch.Tensor,
    latents="The latents to start from, as the denoising loop sees them. SDXL takes the original's, (outputs, 4, h, "
    "w), noised to the first step's level (with `denoising_start` those of the run before), the other models noise; "
    "made where they are not given.",
    image_latents="The encoded original, x0, (B, C, h, w); in the loop, as the loop sees latents. To give it "
    "yourself, take its encoder out with `without_encoders`.",
    noise="The noise of the original's trajectory, of the latents' shape; SDXL draws it from `generator` where it is "
    "not given.",
    release_steps="The step from which each latent element is free to change, int32, (outputs, 1, h, w) or what can "
    "be broadcast to the latents; counted from the first step that runs, the number of steps or more for those that "
    "never are.",
    level_alphas="Factor on the original at every noise level of the schedule, and 1 last.",
    level_sigmas="Factor on the noise at every noise level of the schedule, and 0 last.",
    pooled_prompt_embeds="Pooled text embeddings, (B, features).",
    negative_pooled_prompt_embeds="Pooled embeddings of the negative prompt, (B, features).",
    timestep_cond="Embedded guidance scale, for UNets distilled with one (LCM).",
    prompt_embeds_mask="Which tokens of the text embeddings count.",
    negative_prompt_embeds_mask="Which tokens of the negative text embeddings count.",
    qwen_prompt_embeds="Text embeddings of Qwen, before they are conditioned.",
    qwen_attention_mask="Which of their tokens count.",
    t5_input_ids="Tokens of the prompt, as T5 counts them.",
    t5_attention_mask="Which of these tokens count.",
    negative_qwen_prompt_embeds="Text embeddings of Qwen of the negative prompt.",
    negative_qwen_attention_mask="Which of their tokens count.",
    negative_t5_input_ids="Tokens of the negative prompt, as T5 counts them.",
    negative_t5_attention_mask="Which of these tokens count.",
)
_describe(
    tuple[int, int],
    original_size="SDXL's micro-conditioning: (height, width) of the original; that of the latents where it is not "
    "given.",
    target_size="SDXL's micro-conditioning: (height, width) wanted; that of the latents where it is not given.",
    negative_original_size="`original_size` of the negative side; the same by default.",
    negative_target_size="`target_size` of the negative side; the same by default.",
    crops_coords_top_left="SDXL's micro-conditioning: where the picture was cropped.",
    negative_crops_coords_top_left="The same of the negative side: it cannot differ.",
)
_describe(
    str,
    output_type="Form of the results: 'pil', 'np', 'pt', or 'latent' for latents.",
    diffdiff_schedule="What the map's greys are compared with: 'step', the share of the steps that have been made "
    "(the paper), or 'timestep', the noise level, t_0 to 0 (ComfyUI).",
)
_describe(list[PIL.Image.Image] | np.ndarray | torch.Tensor, images="The edited images, in the form asked for.")
_describe(
    torch.Tensor | list[torch.Tensor],
    prompt_embeds="Text embeddings, a row for each prompt; to give them yourself, take the text encoder out with "
    "`without_encoders`.",
    negative_prompt_embeds="Text embeddings of the negative prompt, of the same shape.",
    controlnet_cond="The control image, resized and repeated.",
)
_describe(
    int | list[int],
    control_mode="For a ControlNet-Union: the number of the control type, at least 0, or one for each control image.",
)
_describe(
    float | list[float],
    control_guidance_start="Share of the steps, in [0, 1], at which the ControlNet starts to act, counted from the "
    "first step that runs.",
    control_guidance_end="Share of the steps, in [0, 1], at which the ControlNet stops acting, counted from the first "
    "step that runs; regions released later are not steered by it.",
    controlnet_conditioning_scale="Weight of the ControlNet, at least 0, or of each of them; 0 is an edit without it.",
    conditioning_scale="The ControlNet's weight, one for each ControlNet.",
)
_describe(
    tuple[int, int, int, int],
    crops_coords="Box (left, top, right, bottom) in pixels that the control image is cut to, instead of being fitted "
    "to the image.",
)
_describe(list[float], controlnet_keep="Whether the ControlNet acts in a step (1) or not (0), for every step.")
_describe(
    list[torch.Tensor],
    ip_adapter_embeds="Image embeddings for each loaded IP-Adapter.",
    negative_ip_adapter_embeds="Their negative side, of the same shapes.",
    image_cond_latents="The encoded original, x0, in a list of one.",
)
# Between upstream's blocks.
_describe(
    list,
    condition_images="The reference as the autoencoder takes it.",
    processed_image="The image as the autoencoder takes it, a tensor or a list of them.",
    image_height="Height in pixels at which the image is encoded, or of each.",
    image_width="Width in pixels at which the image is encoded, or of each.",
)
_describe(torch.dtype, dtype="Data type of the denoiser's inputs, that of the text embeddings.")
_describe(
    object,
    placement="Where the picture lies in what the model sees: originals, maps, box, sizes and grid; a "
    "`diffdiff_placement.Placement`.",
)
_describe(tuple[int, ...], text_encoder_out_layers="The text encoder's layers whose states are the embeddings.")
OUTPUTS: dict[str, tuple[Any, str]] = {
    "latents": (torch.Tensor, "Latents, as the denoising loop sees them: noised before it, edited behind it."),
    "timesteps": (torch.Tensor, "The timesteps that were run."),
    "num_inference_steps": (int, "The number of evaluations of the denoiser that were run, by which guiders count."),
    "height": (int, "Height in pixels of the run, padding included."),
    "width": (int, "Width in pixels of the run, padding included."),
}
KWARGS = {
    "denoiser_input_fields": "Whatever else the denoiser is conditioned on: outputs of blocks that are marked so.",
    "controlnet_kwargs": "Whatever else the ControlNet is conditioned on: outputs of blocks that are marked so.",
}


def input_param(name: str, required: bool = False) -> InputParam:
    """The input of this name, with its type, default and sentence; without them where the name is a user's own."""
    type_hint, description = INPUTS.get(name, (None, ""))
    return InputParam(name, type_hint, DEFAULTS.get(name), required, description)


def output_param(name: str) -> OutputParam:
    """The output of this name, with its type and sentence; without them where the name is a user's own."""
    type_hint, description = (INPUTS | OUTPUTS).get(name, (None, ""))
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
        return [document(param, INPUTS | OUTPUTS) for param in super().intermediate_outputs]
