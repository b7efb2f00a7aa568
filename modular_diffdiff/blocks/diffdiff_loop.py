"""The blocks of a denoising loop under a change map, the same for every model family."""

from __future__ import annotations

from dataclasses import replace

import torch
from diffusers.modular_pipelines.modular_pipeline_utils import InputParam

from . import diffdiff_block, diffdiff_trajectory


TRAJECTORY_INPUTS = ("image_latents", "noise", "release_steps", "level_alphas", "level_sigmas")
INJECT_INPUTS = (*TRAJECTORY_INPUTS, "keep")


def put_frozen_on_level(block_state, step: int, level: int) -> None:
    """Puts the latents that are frozen during `step` on the original's trajectory at `level`."""
    block_state.latents = diffdiff_trajectory.put_on_trajectory(
        block_state.latents,
        block_state.image_latents,
        block_state.noise,
        block_state.level_alphas[level],
        block_state.level_sigmas[level],
        frozen=block_state.release_steps > step,
    )


def inject(components, block_state, i: int) -> None:
    """What is frozen enters the step as the noised original of its level (paper, algorithm 1).

    With `diffdiff_softness`, what is released keeps a share of it.
    """
    # second-order schedulers evaluate the model `order` times a step
    step, within = divmod(i, components.scheduler.order)
    if not block_state.diffdiff_softness or within:
        put_frozen_on_level(block_state, step, level=i)
        return
    frozen = block_state.release_steps > step
    block_state.latents = diffdiff_trajectory.mix_with_trajectory(
        block_state.latents,
        block_state.image_latents,
        block_state.noise,
        block_state.level_alphas[i],
        block_state.level_sigmas[i],
        diffdiff_trajectory.original_weights(frozen, block_state.keep, block_state.diffdiff_softness),
    )


class DiffDiffInjectStep(diffdiff_block.DiffDiffLoopBlock):
    """First in a denoising loop: overwrites what the change map keeps frozen with the noised original of this step.

    That is injection, the paper's algorithm 1. With `restore` it changes nothing, unless a block behind that one has
    changed the latents, or `diffdiff_softness` lets it mix the original into what is released.
    """

    needs, takes, gives = ("latents", *INJECT_INPUTS), ("diffdiff_softness",), ("latents",)

    def run_step(self, components, block_state, i: int) -> None:
        inject(components, block_state, i)


class DiffDiffRestoreStep(diffdiff_block.DiffDiffLoopBlock):
    """After the scheduler's step: puts what was frozen during it back on the original's trajectory, at the next level.

    After the last step that is the original: an element that is kept to the end comes out as the original's latent, bit
    for bit. Without this block, whatever is overwritten before a step still takes that step of the model.
    """

    needs, gives = ("latents", *TRAJECTORY_INPUTS), ("latents",)

    def run_step(self, components, block_state, i: int) -> None:
        put_frozen_on_level(block_state, step=i // components.scheduler.order, level=i + 1)


class DiffDiffCheckFiniteStep(diffdiff_block.DiffDiffLoopBlock):
    """Last in a denoising loop: latents that are not finite end the run with a FloatingPointError."""

    needs = ("latents", "timesteps")
    gives = ("latents",)  # a loop's outputs are those of its last block

    def run_step(self, components, block_state, i: int) -> None:
        block_state.sums = block_state.sums if i else []
        block_state.sums.append(block_state.latents.sum(dtype=torch.float32))
        if i + 1 == len(block_state.timesteps):  # to look at each step's sum would wait for it
            diffdiff_trajectory.check_finite(torch.stack(block_state.sums), block_state.timesteps)


class DiffDiffCallbackStep(diffdiff_block.DiffDiffLoopBlock):
    """Calls `callback_on_step_end` after every step; an exception in it ends the run."""

    takes = ("callback_on_step_end",)

    def __call__(self, components, block_state, i: int, t: torch.Tensor):
        if block_state.callback_on_step_end is not None:
            block_state.callback_on_step_end(components, i, t, {})
        return components, block_state


def with_callback(blocks):
    """The same blocks, with a `DiffDiffCallbackStep` in each denoising loop under a change map."""
    for block in blocks.sub_blocks.values():
        with_callback(block)
    names = list(blocks.sub_blocks)
    if "check_finite" in names:
        blocks.sub_blocks.insert("callback", DiffDiffCallbackStep(), names.index("check_finite"))
    return blocks


class DiffDiffLoop:
    """Mixin of a denoising loop that a change map may leave nothing to run for."""

    description = "Denoising loop, in which every latent element starts to change at its release step."

    @property
    def inputs(self) -> list[InputParam]:
        """What upstream finds, which asks every block once more for each input; here each is asked once."""
        params, required, made = list(self.loop_inputs), set(self.loop_required_inputs), set()
        for block in self.sub_blocks.values():
            for param in block.inputs:
                if param.required:
                    required.add(param.name)
                if param.name not in made and param not in params:
                    params.append(param)
            made |= {output.name for output in block.intermediate_outputs}
        return [replace(param, required=param.name in required) for param in params]

    @torch.no_grad()
    def __call__(self, components, state):
        if not len(state.get("timesteps")):  # upstream's loops expect what their steps would have made
            return components, state
        try:
            return super().__call__(components, state)
        finally:
            for name in diffdiff_block.GUIDERS:  # the next run's encoders ask them, before its first step
                if (guider := getattr(components, name, None)) is not None:
                    guider.set_state(step=None, num_inference_steps=None, timestep=None)
