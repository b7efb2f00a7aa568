"""SDXL's inpainting checkpoints: UNets that are shown a mask, and the picture without what it covers (9 channels)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers.modular_pipelines.modular_pipeline_utils import ComponentSpec
from diffusers.modular_pipelines.stable_diffusion_xl.encoders import StableDiffusionXLVaeEncoderStep

from . import diffdiff_asked, diffdiff_block, diffdiff_map, diffdiff_placement, diffdiff_trajectory


def is_inpainting(components) -> bool:
    """Whether the UNet takes a mask and a picture beside its latents."""
    return components.num_channels_unet == 2 * components.num_channels_latents + 1


def shown_of(placement: diffdiff_placement.Placement, schedule: str, steps: int | None) -> torch.Tensor:
    """(maps, 1, height, width) of the canvas: 1 where a run releases nothing, and 0 elsewhere."""
    (height, width), canvas = placement.size, placement.canvas
    keeps = torch.cat([diffdiff_map.resize_map(keep, height, width) for keep in placement.keeps_in_box()])
    shown = diffdiff_placement.will_be_kept(keeps, schedule, steps).float()
    return F.pad(shown, (0, canvas[1] - width, 0, canvas[0] - height), mode="replicate")


class SDXLDiffDiffEncodeKeptStep(diffdiff_block.DiffDiffBlock):
    """With an inpainting UNet, encodes the picture without all that the map ever releases, which is grey in it.

    As upstream's inpainting does, but that the autoencoder draws from a generator of its own.
    """

    model_name = "stable-diffusion-xl"
    needs, takes = ("placement",), ("height", "width", "dtype", "diffdiff_schedule", "num_images_per_prompt")
    gives = ("masked_image_latents",)

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return StableDiffusionXLVaeEncoderStep().expected_components

    def run(self, components, block_state, state) -> None:
        block_state.masked_image_latents = None
        if not is_inpainting(components):
            return
        placement = block_state.placement
        prompts = placement.regions[0].shape[1] if placement.regions else 1
        outputs = diffdiff_asked.count_prompts(state) * block_state.num_images_per_prompt // prompts
        pixels = components.image_processor.preprocess(
            state.get("image"), height=block_state.height, width=block_state.width
        )[::prompts]
        shown = shown_of(placement, block_state.diffdiff_schedule, diffdiff_placement.steps_of(state))
        count = max(len(pixels), len(shown))
        pixels, shown = (diffdiff_trajectory.for_each_output(each, count) for each in (pixels, shown))
        kept = (pixels * shown).to(components._execution_device, block_state.dtype or components.vae.dtype)
        own = diffdiff_trajectory.own_draws(len(kept), kept.device)
        encoded = StableDiffusionXLVaeEncoderStep()._encode_vae_image(components, image=kept, generator=own)
        block_state.masked_image_latents = diffdiff_trajectory.for_each_output(encoded, outputs)


class SDXLDiffDiffInpaintingStep(diffdiff_block.DiffDiffLoopBlock):
    """With an inpainting UNet, shows it what is released in this step, and the picture without all that ever is.

    In the order of upstream's `StableDiffusionXLInpaintLoopBeforeDenoiser`: latents, mask, latents of the picture.
    """

    model_name = "stable-diffusion-xl"
    needs, takes = ("latents", "release_steps"), ("masked_image_latents",)

    def run_step(self, components, block_state, i: int) -> None:
        if block_state.masked_image_latents is None:
            return
        scaled = block_state.scaled_latents
        released = block_state.release_steps <= i // components.scheduler.order
        mask = released.to(scaled.dtype).expand(len(scaled), -1, -1, -1)
        block_state.scaled_latents = torch.cat([scaled, mask, block_state.masked_image_latents.to(scaled)], 1)
