"""Right before a denoising loop, of any family: what the loop needs to follow a change map."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.modular_pipelines import ModularPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import ComponentSpec, InputParam, OutputParam
from diffusers.schedulers import EulerDiscreteScheduler

from . import diffdiff_docs, diffdiff_layout, diffdiff_loop, diffdiff_map, diffdiff_pixels, diffdiff_trajectory


Layout = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class DiffDiffGridStep(ModularPipelineBlocks):
    """After the encoder: notes the grid that the original is encoded on, before anything packs it.

    Args:
        original: Name of the state entry that holds the encoded original.
    """

    def __init__(self, original: str = "image_latents"):
        self.original = original
        super().__init__()

    @property
    def description(self) -> str:
        return "Step that notes on which grid the original is encoded, and gives the image back as it was."

    @property
    def inputs(self) -> list[InputParam]:
        return [
            InputParam(self.original, required=True, type_hint=torch.Tensor, description="The encoded original."),
            diffdiff_docs.input_param("image"),
            diffdiff_docs.input_param("image_as_given"),
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [diffdiff_docs.output_param("latent_grid")]

    @torch.no_grad()
    def __call__(self, components, state):
        block_state = self.get_block_state(state)
        original = only_one(getattr(block_state, self.original), self.original)
        if original.ndim not in (4, 5):
            raise ValueError(
                f"`{self.original}` has the shape {tuple(original.shape)}, which shows no grid; a change map needs it "
                "as the encoder makes it, (B, C, h, w) or (B, C, 1, h, w)."
            )
        block_state.latent_grid = tuple(original.shape[-2:])
        if block_state.image_as_given is not None:
            block_state.image = block_state.image_as_given
        self.set_block_state(state, block_state)
        return components, state


def only_one(original: torch.Tensor | list[torch.Tensor], name: str) -> torch.Tensor:
    """The original, of an encoder that makes a list of references."""
    if not isinstance(original, list):
        return original
    if len(original) != 1:
        raise ValueError(
            f"`{name}` holds {len(original)} encoded images; a change map keeps one of them, and which is not clear. "
            "Give one image, and say `references=True` to `add_diffdiff` where a list of images is no batch."
        )
    return original[0]


class DiffDiffPrepareStep(ModularPipelineBlocks):
    """Turns the change maps into release steps, and gives the original, its noise and its levels to the loop.

    The latents stay as the family's own steps have made them, noise or the noised original; the noise of the
    original's trajectory is recovered from them.

    Args:
        original: Name of the state entry that holds the encoded original.
        layout: How a grid lies in the loop's latents, a function like `diffdiff_layout.in_loop_form`.
    """

    def __init__(self, original: str = "image_latents", layout: Layout = diffdiff_layout.in_loop_form):
        self.original = original
        self.layout = layout
        super().__init__()

    @property
    def description(self) -> str:
        return (
            "Step that prepares what the change map needs in the loop: the step at which each element is released, and "
            "the original with the noise and the noise levels of its trajectory."
        )

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return [ComponentSpec("scheduler", EulerDiscreteScheduler)]

    @property
    def inputs(self) -> list[InputParam]:
        optional = ("invert_diffdiff_map", "strength", "diffdiff_schedule", "image_size", "padded_size", "whole_map")
        optional += ("latent_grid", "height", "width", "image_as_given")
        return [
            InputParam(self.original, required=True, type_hint=torch.Tensor, description="The encoded original."),
            *(diffdiff_docs.input_param(name, required=True) for name in ("diffdiff_map", "latents", "timesteps")),
            *(diffdiff_docs.input_param(name) for name in optional),
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [diffdiff_docs.output_param(name) for name in ("latents", *diffdiff_loop.TRAJECTORY_INPUTS)]

    @torch.no_grad()
    def __call__(self, components, state):
        block_state = self.get_block_state(state)
        scheduler = components.scheduler
        original = self.bring_original(components, block_state)
        schedule = scheduler.timesteps.to(original.device)
        begin = diffdiff_trajectory.begin_of(scheduler, block_state.timesteps[0])
        # looked up on the CPU: schedulers wait for the answer of every timestep
        levels = diffdiff_trajectory.noise_levels(scheduler, schedule.cpu(), original.dtype)
        block_state.level_alphas, block_state.level_sigmas = (values[begin:].to(original.device) for values in levels)
        block_state.noise = self.bring_noise(components, block_state, original)
        block_state.image_latents = original

        keep = self.keep(components, block_state, original)
        release = diffdiff_map.SCHEDULES[block_state.diffdiff_schedule]
        # second-order schedulers evaluate the model `order` times a step
        steps = release(keep, schedule[:: scheduler.order].cpu())
        diffdiff_trajectory.warn_of_correctors(scheduler, steps)
        steps = (steps - begin // scheduler.order).clamp(min=0).to(original.device)
        steps = self.layout(steps, block_state.latents)
        block_state.release_steps = diffdiff_trajectory.for_each_output(steps, len(original))
        self.set_block_state(state, block_state)
        return components, state

    def bring_original(self, components, block_state) -> torch.Tensor:
        """The original in the form of the loop's latents, a row for each of them."""
        latents = block_state.latents
        original = only_one(getattr(block_state, self.original), self.original).to(latents.device)
        check_ratio(block_state)
        if original.ndim == 5 and latents.ndim != 5:
            original = original.squeeze(2)
        if original.shape[1:] != latents.shape[1:]:
            if original.ndim == 3:  # packed already
                raise diffdiff_layout.other_grid(block_state.latent_grid, latents)
            original = self.layout(original, latents)
        # in the wider of both: what upstream noises in float32 must not be rounded here
        original = original.to(torch.promote_types(original.dtype, latents.dtype))
        return diffdiff_trajectory.for_each_output(original, len(latents))

    def bring_noise(self, components, block_state, original: torch.Tensor) -> torch.Tensor:
        """The noise of the original's trajectory, of the latents' shape."""
        alpha, sigma = block_state.level_alphas[0], block_state.level_sigmas[0]
        return diffdiff_trajectory.recover_noise(block_state.latents, original, alpha, sigma)

    def keep(self, components, block_state, original: torch.Tensor) -> torch.Tensor:
        """`keep` on the original's grid, (maps, 1, rows, columns)."""
        grid = getattr(block_state, "latent_grid", None) or tuple(original.shape[-2:])
        canvas = getattr(block_state, "padded_size", None) or tuple(
            side * diffdiff_pixels.cell_of(components) for side in grid
        )
        size = block_state.image_size or canvas
        maps = diffdiff_map.load_maps(block_state.diffdiff_map)
        if block_state.whole_map is None:  # of a map that was cut, the whole one has been looked at
            given = getattr(block_state, "image_as_given", None)  # its ratio counts, not that of what it is brought to
            shown = size if given is None else diffdiff_pixels.size_of(diffdiff_pixels.split_images(given)[0])
            diffdiff_map.warn_of_stretching(maps, *shown)
        keep = diffdiff_map.keep_from_maps(maps, size, grid, canvas, block_state.invert_diffdiff_map)
        return diffdiff_map.turn_down(keep, block_state.strength)


def check_ratio(block_state) -> None:
    """Refuses a run at another ratio than the original's: tokens of a transposed grid are as many."""
    grid, size = block_state.latent_grid, (block_state.height, block_state.width)
    if grid is not None and None not in size and grid[0] * size[1] != grid[1] * size[0]:
        raise ValueError(
            f"The original is encoded on a grid of {grid[0]} x {grid[1]}, and the run is for {size[0]} x {size[1]} "
            "pixels (height x width); what is kept must lie where it was, so let `height` and `width` follow the image."
        )
