"""What is SDXL's own in differential diffusion."""

from __future__ import annotations

import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.modular_pipelines import AutoPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import ComponentSpec, InputParam, OutputParam
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
from diffusers.modular_pipelines.stable_diffusion_xl.encoders import StableDiffusionXLVaeEncoderStep
from diffusers.utils.torch_utils import randn_tensor

from . import diffdiff_docs, diffdiff_loop, diffdiff_pixels, diffdiff_prepare, diffdiff_trajectory


class SDXLDiffDiffVaeEncoderStep(diffdiff_docs.Documented, StableDiffusionXLVaeEncoderStep):
    """Upstream's encoder step for images of any size, and for one generator an output."""

    @property
    def description(self) -> str:
        return (
            "Step that encodes the image into latents. Its size need not fill whole latent cells: it is padded on the "
            "right and below, by reflection."
        )

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [diffdiff_docs.output_param("image_latents"), diffdiff_docs.output_param("image_size")]

    @torch.no_grad()
    def __call__(self, components, state):
        block_state = self.get_block_state(state)
        dtype = block_state.dtype if block_state.dtype is not None else components.vae.dtype
        # upstream's rounds sizes down to whole cells, and does not convert greyscale images
        processor = VaeImageProcessor.from_config(
            components.image_processor.config, vae_scale_factor=1, do_convert_rgb=True
        )
        pixels = processor.preprocess(
            block_state.image, block_state.height, block_state.width, **(block_state.preprocess_kwargs or {})
        )
        block_state.image_size = tuple(pixels.shape[-2:])
        pixels = diffdiff_pixels.pad_to_multiple(pixels, components.vae_scale_factor)
        if isinstance(block_state.generator, list):
            pixels = diffdiff_trajectory.for_each_output(pixels, len(block_state.generator))
        block_state.image_latents = self._encode_vae_image(
            components, pixels.to(components._execution_device, dtype), block_state.generator
        )
        self.set_block_state(state, block_state)
        return components, state


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
    def description(self) -> str:
        return "Step that sets the scheduler's timesteps: the whole schedule, or its part between two shares of it."

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
        state.set("num_inference_steps", -(-len(timesteps) // scheduler.order))
        return components, state


class SDXLDiffDiffPrepareLatentsStep(diffdiff_prepare.DiffDiffPrepareStep):
    """Noises the original to the first level and turns the change maps into release steps.

    In SDXL, the latents that a user gives are noised already, and nothing has been drawn where none are given.
    """

    model_name = "stable-diffusion-xl"

    @property
    def description(self) -> str:
        return (
            "Step that noises the original's latents to the first level, and prepares what the change map needs in the "
            "loop: the step at which each element is released, and the noise levels of the original's trajectory."
        )

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return StableDiffusionXLImg2ImgPrepareLatentsStep().expected_components

    @property
    def inputs(self) -> list[InputParam]:
        optional = (
            "invert_diffdiff_map",
            "strength",
            "diffdiff_schedule",
            "image_size",
            "whole_map",
            "latents",
            "noise",
            "generator",
            "num_images_per_prompt",
        )
        required = ("diffdiff_map", "image_latents", "timesteps", "batch_size", "dtype")
        return [
            *(diffdiff_docs.input_param(name, required=True) for name in required),
            *(diffdiff_docs.input_param(name) for name in optional),
        ]

    def bring_original(self, components, block_state) -> torch.Tensor:
        original = block_state.image_latents.to(components._execution_device, block_state.dtype)
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


class SDXLDiffDiffLoopBeforeDenoiser(StableDiffusionXLLoopBeforeDenoiser):
    """Injection: what is frozen enters the step as the noised original of its level (paper, algorithm 1)."""

    @property
    def description(self) -> str:
        return (
            "Step within the denoising loop that overwrites the elements which the change map keeps frozen with the "
            "noised original of this step, and scales the latents for the denoiser."
        )

    @property
    def inputs(self) -> list[InputParam]:
        names = ("latents", *diffdiff_loop.TRAJECTORY_INPUTS)
        return [diffdiff_docs.input_param(name, required=True) for name in names]

    @torch.no_grad()
    def __call__(self, components, block_state, i: int, t: torch.Tensor):
        diffdiff_loop.inject(components, block_state, i)
        return super().__call__(components, block_state, i=i, t=t)


class SDXLDiffDiffDenoiseLoop(
    diffdiff_docs.Documented, diffdiff_loop.DiffDiffLoop, StableDiffusionXLDenoiseLoopWrapper
):
    """SDXL's denoising loop under a change map."""

    block_classes = [
        SDXLDiffDiffLoopBeforeDenoiser,
        StableDiffusionXLLoopDenoiser,
        StableDiffusionXLLoopAfterDenoiser,
        diffdiff_loop.DiffDiffRestoreStep,
    ]
    block_names = ["before_denoiser", "denoiser", "after_denoiser", "restore"]

    @property
    def description(self) -> str:
        return (
            "Denoising loop in which every latent element starts to change at the step that the change map gives it. "
            "Each step runs `before_denoiser`, `denoiser`, `after_denoiser` and `restore`; without `restore` it is the "
            "paper's algorithm."
        )


class SDXLDiffDiffControlNetDenoiseLoop(SDXLDiffDiffDenoiseLoop):
    """The same loop, with upstream's ControlNet denoiser; serves ControlNet and ControlNet-Union."""

    block_classes = [
        SDXLDiffDiffLoopBeforeDenoiser,
        StableDiffusionXLControlNetLoopDenoiser,
        StableDiffusionXLLoopAfterDenoiser,
        diffdiff_loop.DiffDiffRestoreStep,
    ]

    @property
    def description(self) -> str:
        return f"{super().description} What is released is steered by a ControlNet or ControlNet-Union."


class SDXLDiffDiffAutoDenoiseStep(diffdiff_docs.Documented, AutoPipelineBlocks):
    """The loop with a ControlNet where there is a control image, and the plain one elsewhere."""

    block_classes = [SDXLDiffDiffControlNetDenoiseLoop, SDXLDiffDiffDenoiseLoop]
    block_names = ["controlnet_denoise", "denoise"]
    block_trigger_inputs = ["controlnet_cond", None]

    @property
    def description(self) -> str:
        return (
            "Denoising loop under a change map: `SDXLDiffDiffControlNetDenoiseLoop` with a control image, "
            "`SDXLDiffDiffDenoiseLoop` otherwise."
        )
