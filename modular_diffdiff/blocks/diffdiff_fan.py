"""Front: one edit at several strengths, in one batch."""

from __future__ import annotations

import torch

from . import (
    diffdiff_asked,
    diffdiff_block,
    diffdiff_docs,
    diffdiff_map,
    diffdiff_placement,
    diffdiff_refusals,
    diffdiff_trajectory,
)


def fan_out(keep: torch.Tensor, strengths: tuple[float, ...]) -> torch.Tensor:
    """(N + 1, 1, H, W) of one `keep`, (1, 1, H, W): at each of N strengths, and at all of them in strips."""
    whole = [diffdiff_map.turn_down(keep, strength) for strength in strengths]
    return torch.cat([*whole, diffdiff_map.turn_down_in_strips(keep, strengths)])


class DiffDiffFanStep(diffdiff_block.DiffDiffBlock):
    """Makes one edit at several strengths, as one batch from the same noise.

    Each output has the change map turned down to one of `fan_strengths`. One more, the last, has all of them: its map
    is cut into upright strips, each turned down to a strength, which rises from left to right.

    It goes right before `read_map`, after whatever makes and shapes the map; without these, in front of everything.
    """

    needs = ("diffdiff_map",)
    takes = ("image", "invert_diffdiff_map", "allow_paths", "fan_strengths")
    takes += (*diffdiff_trajectory.NOISE, "generator", "num_images_per_prompt")
    # the image as it is
    gives = (
        "image",
        "diffdiff_map",
        "invert_diffdiff_map",
        *diffdiff_trajectory.NOISE,
        "generator",
        "num_images_per_prompt",
    )

    def run(self, components, block_state, state) -> None:
        strengths = block_state.fan_strengths
        if not diffdiff_docs.KINDS["fan_strengths"].accepts(strengths):  # in front of all, nobody has asked
            diffdiff_refusals.refuse("fan_strengths", strengths, diffdiff_docs.KINDS["fan_strengths"].takes)
        keeps = diffdiff_map.read_maps(
            block_state.diffdiff_map, block_state.invert_diffdiff_map, allow_paths=block_state.allow_paths
        )
        generator = block_state.generator
        generators = generator if isinstance(generator, list) else [generator]
        check_is_one(
            prompt=diffdiff_asked.count_prompts(state) or 1,
            num_images_per_prompt=block_state.num_images_per_prompt,
            diffdiff_map=len(keeps),
            generator=len(generators),
        )
        size = diffdiff_placement.size_of_picture(components, state, self.family)
        diffdiff_map.warn_of_stretching(keeps, *size)
        maps = fan_out(diffdiff_map.resize_map(keeps[0], *size), strengths)
        for name in diffdiff_trajectory.NOISE:
            if (value := getattr(block_state, name)) is not None:
                setattr(block_state, name, diffdiff_trajectory.for_each_output(value, len(maps)))
        block_state.diffdiff_map, block_state.invert_diffdiff_map = maps, False
        block_state.generator = diffdiff_trajectory.same_noise(generators[0], len(maps))
        block_state.num_images_per_prompt = len(maps)


def check_is_one(**counts: int) -> None:
    """Refuses what would make it several edits."""
    for name, count in counts.items():
        if count != 1:
            raise diffdiff_refusals.BadInputError(
                f"`{name}` is for {count}; a fan shows one edit at several strengths."
            )
