"""What is SDXL's own in differential diffusion: pairing, hand-over, latents that are noised already, and its loops."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.modular_pipelines import AutoPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import ComponentSpec, InputParam
from diffusers.modular_pipelines.stable_diffusion_xl.before_denoise import (
    StableDiffusionXLImg2ImgPrepareLatentsStep,
    StableDiffusionXLInputStep,
    StableDiffusionXLSetTimestepsStep,
)
from diffusers.modular_pipelines.stable_diffusion_xl.denoise import (
    StableDiffusionXLControlNetLoopDenoiser,
    StableDiffusionXLDenoiseLoopWrapper,
    StableDiffusionXLLoopAfterDenoiser,
    StableDiffusionXLLoopBeforeDenoiser,
    StableDiffusionXLLoopDenoiser,
)
from diffusers.utils.torch_utils import randn_tensor

from . import (
    diffdiff_block,
    diffdiff_docs,
    diffdiff_fit,
    diffdiff_guidance,
    diffdiff_inpainting,
    diffdiff_loop,
    diffdiff_prepare,
    diffdiff_regions,
    diffdiff_trajectory,
)


EMBEDDINGS = ("prompt_embeds", "pooled_prompt_embeds")
TRAITS = diffdiff_block.FamilyTraits(
    patch=1,
    sized=True,
    encodes_once=True,
    texts=("prompt", "prompt_2", "negative_prompt", "negative_prompt_2"),
    embeddings=(*EMBEDDINGS, *(f"negative_{name}" for name in EMBEDDINGS)),
)


class SDXLDiffDiffFitStep(diffdiff_fit.DiffDiffFitStep):
    """`DiffDiffFitStep` for SDXL's prompts and latents."""

    model_name = "stable-diffusion-xl"
    family = TRAITS


class SDXLDiffDiffRegionPromptsStep(diffdiff_regions.DiffDiffRegionPromptsStep):
    """`DiffDiffRegionPromptsStep` for SDXL's prompts."""

    model_name = "stable-diffusion-xl"
    family = TRAITS


class SDXLDiffDiffInputStep(diffdiff_docs.Documented, StableDiffusionXLInputStep):
    """Upstream's input step, with pooled and image embeddings paired as the text embeddings are: a, a, b, b."""

    @torch.no_grad()
    def __call__(self, components, state):
        # upstream repeats these as a, b, a, b, and image embeddings in the caller's own list
        pooled = {name: state.get(name) for name in ("pooled_prompt_embeds", "negative_pooled_prompt_embeds")}
        images = {name: state.get(name) for name in ("ip_adapter_embeds", "negative_ip_adapter_embeds")}
        for name, embeds in images.items():
            state.set(name, None if embeds is None else list(embeds))
        components, state = super().__call__(components, state)

        outputs = len(state.get("prompt_embeds"))
        for name, embeds in pooled.items():
            if embeds is not None:
                state.set(name, diffdiff_trajectory.for_each_output(embeds, outputs))
        for name, embeds in images.items():
            if embeds is not None:
                state.set(name, [diffdiff_trajectory.for_each_output(embed, outputs) for embed in embeds])
        return components, state


class SDXLDiffDiffSetTimestepsStep(diffdiff_docs.Documented, StableDiffusionXLSetTimestepsStep):
    """Text-to-image's whole schedule, or its part from `denoising_start` to `denoising_end`, at whole steps."""

    @property
    def inputs(self) -> list[InputParam]:
        return [*super().inputs, diffdiff_docs.input_param("denoising_start")]

    @torch.no_grad()
    def __call__(self, components, state):
        components, state = super().__call__(components, state)
        scheduler = components.scheduler
        start, end = state.get("denoising_start"), state.get("denoising_end")
        if start is None and end is None:
            return components, state
        # upstream's cut can fall between the two evaluations of a second-order step
        begin = 0 if start is None else diffdiff_trajectory.index_at(scheduler, start)
        stop = None if end is None else diffdiff_trajectory.index_at(scheduler, end)
        timesteps = scheduler.timesteps[begin:stop]
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(begin)
        state.set("timesteps", timesteps)
        return components, state


class SDXLDiffDiffPrepareLatentsStep(diffdiff_prepare.DiffDiffPrepareStep):
    """Noises the original to the first level and turns the change maps into release steps.

    In SDXL, the latents that a user gives are noised already, and nothing has been drawn where none are given.
    """

    model_name = "stable-diffusion-xl"

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return StableDiffusionXLImg2ImgPrepareLatentsStep().expected_components

    needs = ("diffdiff_map", "image_latents", "timesteps", "batch_size", "dtype")
    takes = (*diffdiff_prepare.MAP_SETTINGS, "latents", "noise", "generator", "num_images_per_prompt")

    def bring_original(self, components, block_state, placement) -> torch.Tensor:
        original = block_state.image_latents.to(block_state.timesteps.device, block_state.dtype)
        outputs = block_state.batch_size * block_state.num_images_per_prompt
        return diffdiff_trajectory.for_each_output(original, outputs)

    def bring_noise(self, components, block_state, original: torch.Tensor) -> torch.Tensor:
        form = {"device": original.device, "dtype": original.dtype}
        latents, noise = block_state.latents, block_state.noise
        if noise is None and latents is None:
            noise = randn_tensor(original.shape, generator=block_state.generator, **form)
        noise = None if noise is None else noise.to(**form)
        if latents is None:
            latents = components.scheduler.add_noise(original, noise, block_state.timesteps[:1].repeat(len(original)))
        block_state.latents = latents.to(**form)
        return super().bring_noise(components, block_state, original) if noise is None else noise


class SDXLDiffDiffLoopBeforeDenoiser(diffdiff_docs.Documented, StableDiffusionXLLoopBeforeDenoiser):
    """Overwrites what is frozen with the noised original (paper, algorithm 1), and scales latents for the denoiser."""

    @property
    def inputs(self) -> list[InputParam]:
        return diffdiff_loop.DiffDiffInjectStep().inputs

    def __call__(self, components, block_state, i: int, t: torch.Tensor):
        diffdiff_loop.inject(components, block_state, i)
        return super().__call__(components, block_state, i=i, t=t)


class SDXLDiffDiffLoopDenoiser(
    diffdiff_regions.DiffDiffRegionalDenoiser, diffdiff_guidance.DiffDiffBatchGuidance, StableDiffusionXLLoopDenoiser
):
    """Predicts the noise with guidance; with `batch_guidance` the UNet is called once for all conditions."""


class SDXLDiffDiffControlNetLoopDenoiser(
    diffdiff_regions.DiffDiffRegionalDenoiser,
    diffdiff_guidance.DiffDiffBatchGuidance,
    StableDiffusionXLControlNetLoopDenoiser,
):
    """Predicts the noise with guidance and a ControlNet; with `batch_guidance` both models are called once for all
    conditions."""


@functools.cache
def _parameters(function: Callable) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


class SDXLDiffDiffLoopAfterDenoiser(diffdiff_docs.Documented, StableDiffusionXLLoopAfterDenoiser):
    """Takes the scheduler's step, and looks up once which arguments that has; upstream does so at every step."""

    @staticmethod
    def prepare_extra_kwargs(func: Callable, exclude_kwargs: Sequence[str] = (), **kwargs: Any) -> dict[str, Any]:
        taken = _parameters(getattr(func, "__func__", func)) - {*exclude_kwargs}
        return {name: value for name, value in kwargs.items() if name in taken}


def _around(denoiser: type) -> list[type]:
    """The blocks of a denoising loop with this denoiser."""
    first = (SDXLDiffDiffLoopBeforeDenoiser, diffdiff_inpainting.SDXLDiffDiffInpaintingStep)
    last = (diffdiff_loop.DiffDiffRestoreStep, diffdiff_loop.DiffDiffCheckFiniteStep)
    return [*first, denoiser, SDXLDiffDiffLoopAfterDenoiser, *last]


class SDXLDiffDiffDenoiseLoop(
    diffdiff_docs.Documented, diffdiff_loop.DiffDiffLoop, StableDiffusionXLDenoiseLoopWrapper
):
    """SDXL's denoising loop, in which every latent element starts to change at its release step.

    Without `restore` it is the paper's algorithm.
    """

    block_classes = _around(SDXLDiffDiffLoopDenoiser)
    block_names = ["before_denoiser", "inpainting", "denoiser", "after_denoiser", "restore", "check_finite"]


class SDXLDiffDiffControlNetDenoiseLoop(SDXLDiffDiffDenoiseLoop):
    """The same loop, in which a ControlNet or ControlNet-Union steers what is released."""

    block_classes = _around(SDXLDiffDiffControlNetLoopDenoiser)


class SDXLDiffDiffAutoDenoiseStep(diffdiff_docs.Documented, AutoPipelineBlocks):
    """The loop with a ControlNet if there is a control image, and the plain one otherwise."""

    block_classes = [SDXLDiffDiffControlNetDenoiseLoop, SDXLDiffDiffDenoiseLoop]
    block_names = ["controlnet_denoise", "denoise"]
    block_trigger_inputs = ["controlnet_cond", None]
