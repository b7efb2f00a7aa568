"""The rows of what a denoiser takes: one for each output, or for each of its regions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from . import diffdiff_block


# What serves all rows, whatever its length: the schedule, and what attention processors are told.
SHARED = ("timesteps", "cross_attention_kwargs", "joint_attention_kwargs", "attention_kwargs")


def change_rows(
    value: Any, rows: int, change: Callable[[Any], Any], family: diffdiff_block.FamilyTraits, name: str = ""
) -> Any:
    """An argument of a denoiser, with `change` made to whatever has so many rows.

    Args:
        change: Takes a tensor or a list with a row for each output, and gives one with other rows.
        name: Of the argument; what the family shares has no rows.
    """
    if name in SHARED or name in family.shared:
        return value
    if isinstance(value, torch.Tensor):
        return change(value) if value.shape[:1] == (rows,) else value
    if isinstance(value, dict):
        changed = {key: change_rows(part, rows, change, family, key) for key, part in value.items()}
        # without a change it stays the same object: some of upstream's blocks write into what they are given
        return value if all(changed[key] is part for key, part in value.items()) else changed
    if not isinstance(value, (list, tuple)):
        return value
    if len(value) == rows and (family.lists or all(map(_is_grids, value))):
        return change(value)
    if family.lists:
        return value
    changed = [change_rows(part, rows, change, family) for part in value]
    same = all(new is part for new, part in zip(changed, value, strict=True))
    return value if same else type(value)(changed)


def _is_grids(value: Any) -> bool:
    """Whether this is a list of numbers, as the grids of an output's pictures."""
    return isinstance(value, list) and not any(isinstance(part, torch.Tensor) for part in value)


def repeat(times: int) -> Callable[[Any], Any]:
    """The change that gives all rows so many times."""

    def change(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            # latents have their channels last, as upstream's encoder leaves them, and with these a CPU takes longer
            return torch.cat([value] * times).contiguous()
        return value * times

    return change


def choose(places: list[int]) -> Callable[[Any], Any]:
    """The change that gives the rows at these places; all of them, in order, as they are."""

    def change(value: Any) -> Any:
        if places == list(range(len(value))):
            return value
        if isinstance(value, torch.Tensor):
            return value[places].contiguous()
        return type(value)(value[place] for place in places)

    return change
