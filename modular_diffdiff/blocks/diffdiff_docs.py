"""What every input and output is, in a type and a sentence, once for all blocks and pipelines."""

from __future__ import annotations

import copy
import functools
import os
from dataclasses import replace
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers.modular_pipelines import ConditionalPipelineBlocks, SequentialPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import InputParam, OutputParam

from . import diffdiff_mellon, diffdiff_saving


Images = PIL.Image.Image | np.ndarray | torch.Tensor | list
ChangeMap = PIL.Image.Image | np.ndarray | torch.Tensor | str | os.PathLike | list
Text = str | list[str]

# name: (type, default, sentence)
INPUTS: dict[str, tuple[Any, Any, str]] = {
    "prompt": (Text, None, "What the changed regions shall show: a text, or one for each image of the batch."),
    "prompt_2": (Text, None, "Text for `tokenizer_2` and `text_encoder_2`; `prompt` where it is not given."),
    "negative_prompt": (Text, None, "What the changed regions shall not show; used by guiders with a negative side."),
    "negative_prompt_2": (Text, None, "Negative text for `text_encoder_2`; `negative_prompt` where it is not given."),
    "cross_attention_kwargs": (dict, None, "Keyword arguments for the UNet's attention processors; `scale` is LoRA's."),
    "clip_skip": (int, None, "How many of the text encoders' last layers are left out, at least 0."),
    "image": (
        Images,
        None,
        "The image to edit, or a batch of equal size: PIL images, numpy arrays (H, W, 3) in [0, 1], or tensors "
        "(3, H, W) in [0, 1]. Any size; results come back at the same one.",
    ),
    "height": (int, None, "Height in pixels, at least 1, to which the image is resized; its own where none is given."),
    "width": (int, None, "Width in pixels, at least 1, to which the image is resized; its own where none is given."),
    "preprocess_kwargs": (dict, None, "Keyword arguments for `VaeImageProcessor.preprocess` of the image."),
    "diffdiff_map": (
        ChangeMap,
        None,
        "The change map, or one for each image: white (1) keeps the original, black (0) lets everything change, grey "
        "(g) lets change begin after the share g of the steps. A PIL image, numpy array, tensor (H, W), (1, H, W) or "
        "(B, 1, H, W), path or URL; another size than the image's is resized to it.",
    ),
    "invert_diffdiff_map": (bool, False, "Reads the map the other way round: white marks what changes."),
    "num_images_per_prompt": (int, 1, "How many images to make of each prompt, at least 1."),
    "num_inference_steps": (
        int,
        50,
        "Number of denoising steps, at least 1; the change map's values are thresholds on this schedule.",
    ),
    "timesteps": (
        list[int] | torch.Tensor,
        None,
        "Timesteps to use instead of the scheduler's own spacing, for schedulers that take them.",
    ),
    "sigmas": (
        list[float] | torch.Tensor,
        None,
        "Sigmas to use instead of the scheduler's own spacing, for schedulers that take them.",
    ),
    "denoising_end": (
        float,
        None,
        "Share of the schedule, in (0, 1], after which to stop; kept elements then end at that step's noise level.",
    ),
    "generator": (
        torch.Generator | list[torch.Generator],
        None,
        "Source of the random numbers, or one for each output (prompts x images per prompt), which makes each output "
        "independent of the others.",
    ),
    "latents": (
        torch.Tensor,
        None,
        "The latents to start from, (outputs, 4, h, w): the original's noised to the first step's level, or with "
        "`denoising_start` those of the run before; made from the original where they are not given.",
    ),
    "image_latents": (
        torch.Tensor,
        None,
        "The encoded original, x0, (B, 4, h, w); to give it yourself, pop `image_encoder` from the blocks.",
    ),
    "image_size": (
        tuple[int, int],
        None,
        "Height and width in pixels of the original before it was padded to whole latent cells; made by "
        "`image_encoder`, to be given where `image_latents` are.",
    ),
    "padded_size": (
        tuple[int, int],
        None,
        "Height and width in pixels of the image with its padding, as it went to the encoder; once the results are rid "
        "of it, those of the image.",
    ),
    "latent_grid": (tuple[int, int], None, "Rows and columns of the grid on which the original is encoded."),
    "image_as_given": (Images, None, "The image before it was brought into the encoder's form."),
    "original_size": (
        tuple[int, int],
        None,
        "SDXL's micro-conditioning: (height, width) of the original; that of the latents where it is not given.",
    ),
    "target_size": (
        tuple[int, int],
        None,
        "SDXL's micro-conditioning: (height, width) wanted; that of the latents where it is not given.",
    ),
    "negative_original_size": (tuple[int, int], None, "`original_size` of the negative side; the same by default."),
    "negative_target_size": (tuple[int, int], None, "`target_size` of the negative side; the same by default."),
    "crops_coords_top_left": (tuple[int, int], (0, 0), "SDXL's micro-conditioning: where the picture was cropped."),
    "negative_crops_coords_top_left": (tuple[int, int], (0, 0), "The same of the negative side: it cannot differ."),
    "aesthetic_score": (
        float,
        6.0,
        "Score wanted, from 1 to 10, for UNets that are conditioned on one (`requires_aesthetics_score`).",
    ),
    "negative_aesthetic_score": (float, 2.0, "Score not wanted, from 1 to 10, for the same UNets."),
    "eta": (float, 0.0, "η of the DDIM paper, in [0, 1], 0 being deterministic; for schedulers that take it."),
    "output_type": (str, "pil", "Form of the results: 'pil', 'np', 'pt', or 'latent' for latents."),
    "guidance_scale": (
        float,
        None,
        "Not taken by the call: guidance belongs to the guider, as in "
        "`pipe.update_components(guider=ClassifierFreeGuidance(guidance_scale=7.5))`.",
    ),
    "strength": (
        float,
        1.0,
        "Turns the whole map down, in [0, 1]: the map counts as 1 - strength * (1 - map). With a black map this is "
        "image-to-image's strength.",
    ),
    "diffdiff_schedule": (
        str,
        "step",
        "What the map's greys are compared with: 'step', the share of the steps that have been made (the paper), or "
        "'timestep', the noise level, t_0 to 0 (ComfyUI).",
    ),
    "denoising_start": (
        float,
        None,
        "Share of the schedule, in (0, 1), at which to start: where another run stopped by `denoising_end`, whose "
        "`latents`, `noise` and `image_latents` go in. The map counts on the full schedule.",
    ),
    "noise": (
        torch.Tensor,
        None,
        "The noise of the original's trajectory, (outputs, 4, h, w); drawn from `generator` where it is not given.",
    ),
    "release_steps": (
        torch.Tensor,
        None,
        "The step from which each latent element is free to change, int32 (outputs, 1, h, w), counted from the first "
        "step that runs; the number of steps or more for those that never are.",
    ),
    "level_alphas": (torch.Tensor, None, "Factor on the original at every noise level of the schedule, and 1 last."),
    "level_sigmas": (torch.Tensor, None, "Factor on the noise at every noise level of the schedule, and 0 last."),
    "images": (list[PIL.Image.Image] | np.ndarray | torch.Tensor, None, "The edited images, in the form asked for."),
    "prompt_embeds": (
        torch.Tensor,
        None,
        "Text embeddings, (B, tokens, features); to give them yourself, pop `text_encoder` from the blocks.",
    ),
    "negative_prompt_embeds": (torch.Tensor, None, "Text embeddings of the negative prompt, of the same shape."),
    "pooled_prompt_embeds": (torch.Tensor, None, "Pooled text embeddings, (B, features)."),
    "negative_pooled_prompt_embeds": (torch.Tensor, None, "Pooled embeddings of the negative prompt, (B, features)."),
    "ip_adapter_image": (
        Images,
        None,
        "The image prompt, or one for each loaded IP-Adapter: what is released takes after it, what is kept does not. "
        "To let it act in parts only, pass `cross_attention_kwargs={'ip_adapter_masks': ...}`.",
    ),
    "control_image": (
        Images,
        None,
        "The ControlNet's condition (edges, depth, ...), or one for each ControlNet or control mode. It steers the "
        "regions that the map releases; what the map keeps follows the original. Resized to the latents' size in "
        "pixels, a multiple of 8.",
    ),
    "control_mode": (
        int | list[int],
        None,
        "For a ControlNet-Union: the number of the control type, at least 0, or one for each control image.",
    ),
    "control_guidance_start": (
        float | list[float],
        0.0,
        "Share of the steps, in [0, 1], at which the ControlNet starts to act, counted from the first step that runs.",
    ),
    "control_guidance_end": (
        float | list[float],
        1.0,
        "Share of the steps, in [0, 1], at which the ControlNet stops acting, counted from the first step that runs; "
        "regions released later are not steered by it.",
    ),
    "controlnet_conditioning_scale": (
        float | list[float],
        1.0,
        "Weight of the ControlNet, at least 0, or of each of them; 0 is an edit without it.",
    ),
    "guess_mode": (
        bool,
        False,
        "Lets the ControlNet act on the positive side alone, deeper layers weighing more.",
    ),
    "negative_prompt_3": (Text, None, "Negative text for `text_encoder_3`; `negative_prompt` where it is not given."),
    "prompt_3": (Text, None, "Text for `tokenizer_3` and `text_encoder_3`; `prompt` where it is not given."),
    "mask_image": (
        Images,
        None,
        "Not taken together with a change map: a mask is a map of black and white, with `invert_diffdiff_map=True`.",
    ),
    "overlay": (
        bool,
        False,
        "Lays the original's own pixels over the result where the map keeps it whole, so that they have been through "
        "no autoencoder; results then have the original's size, and its alpha channel.",
    ),
    "overlay_feather": (
        int,
        0,
        "Width in pixels, at least 0, of the seam in which the overlay fades; it lies in what changes.",
    ),
    "padding_map_crop": (
        int,
        None,
        "Edits only the box that the map changes, with this many pixels around it, at least 0, and lays the rest over; "
        "`height` and `width` are then the box's. One box serves the batch.",
    ),
    "whole_image": (Images, None, "The image before it was cut to what changes."),
    "whole_map": (ChangeMap, None, "The change map before it was cut to what changes."),
    "crops_coords": (
        tuple[int, int, int, int],
        None,
        "Box (left, top, right, bottom) in pixels that the control image is cut to; `padding_map_crop` makes it.",
    ),
    "controlnet_cond": (torch.Tensor | list[torch.Tensor], None, "The control image, resized and repeated."),
    "conditioning_scale": (float | list[float], None, "The ControlNet's weight, one for each ControlNet."),
    "controlnet_keep": (list[float], None, "Whether the ControlNet acts in a step (1) or not (0), for every step."),
    "control_type_idx": (list[int], None, "The control types in use, for a ControlNet-Union."),
    "control_type": (torch.Tensor, None, "Which control types are in use, as ones and zeros (outputs, types)."),
    "ip_adapter_embeds": (list[torch.Tensor], None, "Image embeddings for each loaded IP-Adapter."),
    "negative_ip_adapter_embeds": (list[torch.Tensor], None, "Their negative side, of the same shapes."),
    "add_time_ids": (torch.Tensor, None, "SDXL's time ids (sizes and crop), (outputs, 6)."),
    "negative_add_time_ids": (torch.Tensor, None, "SDXL's time ids of the negative side, (outputs, 6)."),
    "timestep_cond": (torch.Tensor, None, "Embedded guidance scale, for UNets distilled with one (LCM)."),
    "batch_size": (int, None, "Number of prompts; there are `batch_size * num_images_per_prompt` outputs."),
    "dtype": (torch.dtype, None, "Data type of the denoiser's inputs, that of the text embeddings."),
}
OUTPUTS: dict[str, tuple[Any, str]] = {
    "latents": (torch.Tensor, "Latents, (outputs, 4, h, w): noised after `prepare_latents`, edited after `denoise`."),
    "timesteps": (torch.Tensor, "The timesteps that were run."),
    "num_inference_steps": (int, "The number of denoising steps that were run."),
}
KWARGS = {
    "denoiser_input_fields": "Whatever else the denoiser is conditioned on: outputs of blocks that are marked so.",
    "controlnet_kwargs": "Whatever else the ControlNet is conditioned on: outputs of blocks that are marked so.",
}


# What other families than SDXL say differently, or have beside it: name: (type, sentence).
FAMILY_SENTENCES: dict[str, tuple[Any, str]] = {
    "image": (
        Images,
        "The image to edit, or a batch of equal size: PIL images, numpy arrays (H, W, 3) in [0, 1], or tensors "
        "(3, H, W) in [0, 1], which are rounded to 8 bits. Any size. Models that take references take one.",
    ),
    "height": (int, "Height in pixels, at least 1, to which the image is resized; edit models may have their own."),
    "width": (int, "Width in pixels, at least 1, to which the image is resized; edit models may have their own."),
    "strength": (
        float,
        "Turns the whole map down, in [0, 1]: the map counts as 1 - strength * (1 - map). Without a map, upstream's "
        "strength of image-to-image.",
    ),
    "latents": (torch.Tensor, "The noise to start from, as the denoising loop sees it; drawn where it is not given."),
    "image_latents": (torch.Tensor, "The encoded original, x0; in the loop, as the loop sees latents."),
    "noise": (torch.Tensor, "The noise of the original's trajectory, of the latents' shape."),
    "release_steps": (
        torch.Tensor,
        "The step from which each latent element is free to change, int32, to be broadcast to the latents; counted "
        "from the first step that runs, the number of steps or more for those that never are.",
    ),
    "guidance_scale": (float, "The guidance that the model was distilled with; it needs no guider."),
    "prompt_embeds": (torch.Tensor | list[torch.Tensor], "Text embeddings, a row for each prompt."),
    "negative_prompt_embeds": (torch.Tensor | list[torch.Tensor], "Text embeddings of the negative prompt."),
    "processed_image": (torch.Tensor | list[torch.Tensor], "The image as the autoencoder takes it."),
    "processed_mask_image": (torch.Tensor, "The mask as the inpainting workflows take it."),
    "mask_overlay_kwargs": (dict, "What the inpainting workflows lay the mask over with."),
    "resized_image": (Images, "The image at the model's own size; where it is given, it is encoded in its place."),
    "resized_cond_image": (Images, "The image at the size at which the text encoder looks at it."),
    "condition_images": (list[torch.Tensor], "The reference as the autoencoder takes it."),
    "image_cond_latents": (list[torch.Tensor], "The encoded original, x0, in a list of one."),
    "image_cond_hidden_states": (torch.Tensor, "The encoded reference as the transformer takes it."),
    "image_cond_ids": (torch.Tensor, "Positions of the reference's tokens."),
    "image_latent_ids": (torch.Tensor, "Positions of the reference's tokens."),
    "latent_ids": (torch.Tensor, "Positions of the output's tokens."),
    "img_ids": (torch.Tensor, "Positions of the image's tokens."),
    "img_shapes": (list, "Frames, rows and columns of the output and of what it is conditioned on."),
    "image_pad_mask": (torch.Tensor, "Which text tokens stand for the image."),
    "negative_image_pad_mask": (torch.Tensor, "Which tokens of the negative text stand for the image."),
    "txt_seq_lens": (list[int], "Number of tokens of each prompt."),
    "negative_txt_seq_lens": (list[int], "Number of tokens of each negative prompt."),
    "image_height": (int | list[int], "Height in pixels at which the image is encoded."),
    "image_width": (int | list[int], "Width in pixels at which the image is encoded."),
    "control_image_latents": (torch.Tensor, "The encoded control image."),
    "guidance": (torch.Tensor, "The distilled guidance of each output."),
    "noise_pred": (torch.Tensor, "The model's answer in the last step."),
    "reference_crop": (list, "Box that shows the image within what is encoded; made by `vae_encoder`."),
    "max_sequence_length": (int, "Number of text tokens after which a prompt is cut off."),
    "joint_attention_kwargs": (dict, "Keyword arguments for the attention processors; `scale` is LoRA's."),
    "text_encoder_out_layers": (tuple[int, ...], "The text encoder's layers whose states are the embeddings."),
    "max_area": (int, "Area in pixels that the output of a run without a map is brought to."),
    "_auto_resize": (
        bool,
        "Whether the image is brought to a size that the model was trained on; never with a map, as that stretches it.",
    ),
}


@functools.cache
def _documented(name: str) -> InputParam:
    type_hint, default, description = INPUTS[name]
    return InputParam(name, type_hint, default, description=description, metadata=diffdiff_mellon.metadata(name))


def input_param(name: str, required: bool = False) -> InputParam:
    """The input of this name, with its type, default and sentence."""
    param = copy.copy(_documented(name))  # blocks are asked for their inputs many times a run
    param.required = required
    return param


def output_param(name: str) -> OutputParam:
    """The output of this name, with its type and sentence."""
    type_hint, description = OUTPUTS.get(name) or (INPUTS[name][0], INPUTS[name][2])
    return OutputParam(name=name, type_hint=type_hint, description=description)


SDXL_SENTENCES = {name: (type_hint, sentence) for name, (type_hint, _, sentence) in INPUTS.items()}


class Documented:
    """Mixin of blocks whose inputs and outputs upstream has left without a type or a sentence.

    Attributes:
        input_sentences: By name, (type, sentence) of inputs; somebody else's speak for themselves.
        output_sentences: The same of outputs.
    """

    input_sentences = SDXL_SENTENCES
    output_sentences = SDXL_SENTENCES | OUTPUTS

    @property
    def inputs(self) -> list[InputParam]:
        return [self._document_input(param) for param in super().inputs]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [self._document_output(param) for param in super().intermediate_outputs]

    def _document_input(self, param: InputParam) -> InputParam:
        if param.name is None:
            return replace(param, type_hint=dict, description=KWARGS.get(param.kwargs_type, param.description))
        type_hint, sentence = self.input_sentences.get(param.name, (param.type_hint, param.description))
        metadata = diffdiff_mellon.metadata(param.name) or param.metadata
        return replace(param, type_hint=type_hint, description=sentence, metadata=metadata)

    def _document_output(self, param: OutputParam) -> OutputParam:
        type_hint, sentence = self.output_sentences.get(param.name, (param.type_hint, param.description))
        return replace(param, type_hint=type_hint, description=sentence)


class DocumentedSequentialBlocks(diffdiff_saving.SavedWithCode, Documented, SequentialPipelineBlocks):
    """Sequential blocks: every input and output has a type and a sentence, and they are saved with their code."""

    @property
    def description(self) -> str:
        return "Differential diffusion: every pixel of an edit has its own strength, given by a change map."

    @property
    def inputs(self) -> list[InputParam]:
        required = self.required_inputs
        return [replace(param, required=param.name in required) for param in super().inputs]

    @property
    def required_inputs(self) -> list[str]:
        """What a block needs, has no default for, and no earlier block makes; upstream's list has the latter too."""
        required, made = [], set()
        for block in self.sub_blocks.values():
            needed, taken, makes = set(block.required_inputs), block.input_names, block.intermediate_output_names
            if "prompt" in taken and "prompt_embeds" in makes:
                needed.add("prompt")  # upstream declares it optional and fails without it
            required += [name for name in taken if name in needed and name not in made]
            if not (isinstance(block, ConditionalPipelineBlocks) and block.default_block_name is None):
                made.update(makes)  # of a block that always runs
        return required

    def get_execution_blocks(self, **kwargs: Any) -> DocumentedSequentialBlocks:
        """Upstream's selection of the blocks that run for these inputs, as documented as the whole."""
        return DocumentedSequentialBlocks.from_blocks_dict(super().get_execution_blocks(**kwargs).sub_blocks)
