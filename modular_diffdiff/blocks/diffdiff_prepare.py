"""Right before a denoising loop, of any family: what the loop needs to follow a change map."""

from __future__ import annotations

from dataclasses import replace

import torch

from . import (
    diffdiff_block,
    diffdiff_layout,
    diffdiff_loop,
    diffdiff_map,
    diffdiff_placement,
    diffdiff_refusals,
    diffdiff_trajectory,
)


BadInputError = diffdiff_refusals.BadInputError
MAP_SETTINGS = ("invert_diffdiff_map", "strength", "diffdiff_schedule", "allow_paths")


def only_one(original: torch.Tensor | list[torch.Tensor], name: str) -> torch.Tensor:
    """The original, of an encoder that makes a list of references."""
    if not isinstance(original, list):
        return original
    if len(original) != 1:
        raise BadInputError(
            f"`{name}` holds {len(original)} encoded images, and a change map keeps one. "
            "Give one image, and say `references=True` in the family's traits where a list of images is not a batch."
        )
    return original[0]


class DiffDiffGridStep(diffdiff_block.DiffDiffBlock):
    """After the encoder: notes the grid that the original is encoded on, before anything packs it."""

    gives = ("placement",)

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.family.original, "placement")

    def run(self, components, block_state, state) -> None:
        name = self.family.original
        original = only_one(getattr(block_state, name), name)
        if original.ndim not in (4, 5):
            raise BadInputError(
                f"`{name}` has the shape {tuple(original.shape)}, which shows no grid; a change map needs it as the "
                "encoder makes it, (B, C, h, w) or (B, C, 1, h, w)."
            )
        block_state.placement = replace(block_state.placement, grid=tuple(original.shape[-2:]))


class DiffDiffPrepareStep(diffdiff_block.DiffDiffBlock):
    """Turns the change maps into release steps, and gives the loop the original with its noise and noise levels.

    The latents stay as the family's own steps have made them, noise or the noised original; the noise of the
    original's trajectory is recovered from them. Where `DiffDiffReadMapStep` has run, its `placement` counts.
    """

    takes = (*MAP_SETTINGS, "height", "width")
    gives = ("latents", *diffdiff_loop.INJECT_INPUTS, "num_inference_steps")

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.family.original, "diffdiff_map", "latents", "timesteps")

    def run(self, components, block_state, state) -> None:
        scheduler = components.scheduler
        placement = state.get("placement")
        original = self.bring_original(components, block_state, placement)
        schedule = scheduler.timesteps.to(original.device)
        begin = diffdiff_trajectory.begin_of(scheduler, block_state.timesteps[0])
        if hasattr(scheduler, "set_begin_index"):  # by its timestep, a step is not found where timesteps repeat
            scheduler.set_begin_index(begin)
        # looked up on the CPU: schedulers wait for the answer of every timestep
        levels = diffdiff_trajectory.noise_levels(scheduler, schedule.cpu(), original.dtype)
        block_state.level_alphas, block_state.level_sigmas = (values[begin:].to(original.device) for values in levels)
        block_state.noise = self.bring_noise(components, block_state, original)
        block_state.image_latents = original
        block_state.num_inference_steps = len(block_state.timesteps)

        keep = self.keep(components, block_state, placement, original)
        # second-order schedulers evaluate the model `order` times a step
        steps = schedule[:: scheduler.order].cpu()
        diffdiff_map.warn_of_lost_greys(keep, block_state.diffdiff_schedule, steps)
        release = diffdiff_map.SCHEDULES[block_state.diffdiff_schedule](keep, steps)
        diffdiff_trajectory.warn_of_correctors(scheduler, release)
        release = (release - begin // scheduler.order).clamp(min=0).to(original.device)
        on_latents = (self.family.layout(grid, block_state.latents) for grid in (release, keep.to(original.device)))
        block_state.release_steps, block_state.keep = (
            diffdiff_trajectory.for_each_output(grid, len(original)) for grid in on_latents
        )

    def bring_original(self, components, block_state, placement) -> torch.Tensor:
        """The original in the form of the loop's latents, a row for each of them."""
        latents, name = block_state.latents, self.family.original
        original = only_one(getattr(block_state, name), name).to(latents.device)
        grid = None if placement is None else placement.grid
        if grid is not None:
            check_ratio(grid, block_state.height, block_state.width)
        if original.ndim == 5 and latents.ndim != 5:
            original = original.squeeze(2)
        if original.shape[1:] != latents.shape[1:]:
            if original.ndim == 3:  # packed already
                raise diffdiff_layout.other_grid(grid or original.shape[1:], latents)
            original = self.family.layout(original, latents)
        # in the wider of both: what upstream noises in float32 must not be rounded here
        original = original.to(torch.promote_types(original.dtype, latents.dtype))
        return diffdiff_trajectory.for_each_output(original, len(latents))

    def bring_noise(self, components, block_state, original: torch.Tensor) -> torch.Tensor:
        """The noise of the original's trajectory, of the latents' shape."""
        alpha, sigma = block_state.level_alphas[0], block_state.level_sigmas[0]
        return diffdiff_trajectory.recover_noise(block_state.latents, original, alpha, sigma)

    def keep(self, components, block_state, placement, original: torch.Tensor) -> torch.Tensor:
        """`keep` on the original's grid, (maps, 1, rows, columns)."""
        grid = tuple(original.shape[-2:]) if placement is None or placement.grid is None else placement.grid
        if placement is None:
            keeps = diffdiff_map.read_maps(
                block_state.diffdiff_map, block_state.invert_diffdiff_map, block_state.strength, block_state.allow_paths
            )
            size = tuple(side * diffdiff_block.cell_of(components) for side in grid)
            diffdiff_map.warn_of_stretching(keeps, *size)
            placement = diffdiff_placement.Placement.of([], keeps, size)
        return diffdiff_map.keep_on_grid(placement.keeps_in_box(), placement.size, grid, placement.canvas)


def check_ratio(grid: tuple[int, int], height: int | None, width: int | None) -> None:
    """Refuses a run at another ratio than the original's: tokens of a transposed grid are as many."""
    if None not in (height, width) and grid[0] * width != grid[1] * height:
        raise BadInputError(
            f"The original is encoded on a grid of {grid[0]} x {grid[1]}, and the run is for {height} x {width} "
            "pixels (height x width); what is kept must lie where it was, so let `height` and `width` follow the image."
        )


class DiffDiffSkipFrozenStep(diffdiff_block.DiffDiffBlock):
    """Right before a loop: starts the run at the first step in which the change map releases anything.

    Everything computed before it would be overwritten. The run starts as image-to-image starts for its
    strength, from the original on that step's noise level. Where everything is kept, nothing is left to run.
    """

    needs = ("timesteps", "latents", *diffdiff_loop.TRAJECTORY_INPUTS)
    gives = ("timesteps", "num_inference_steps", "latents", "release_steps", "level_alphas", "level_sigmas")

    def run(self, components, block_state, state) -> None:
        scheduler = components.scheduler
        steps = -(-len(block_state.timesteps) // scheduler.order)
        skipped = min(block_state.release_steps.min().item(), steps)
        if skipped:
            evaluations = min(skipped * scheduler.order, len(block_state.timesteps))
            begin = evaluations + len(scheduler.timesteps) - len(block_state.level_alphas) + 1
            if hasattr(scheduler, "set_begin_index"):
                scheduler.set_begin_index(begin)
            block_state.timesteps = block_state.timesteps[evaluations:]
            block_state.release_steps = block_state.release_steps - skipped
            block_state.level_alphas = block_state.level_alphas[evaluations:]
            block_state.level_sigmas = block_state.level_sigmas[evaluations:]
            diffdiff_loop.put_frozen_on_level(block_state, step=-1, level=0)
        block_state.num_inference_steps = len(block_state.timesteps)
