"""Latents as a loop sees them: a grid, a grid with a frame axis, or a row of tokens.

Pure functions; nothing here knows of pipelines.
"""

from __future__ import annotations

import math

import torch

from . import diffdiff_refusals


def pack(values: torch.Tensor, patch: int) -> torch.Tensor:
    """Cuts a grid into patches, each a token: (B, C, h, w) becomes (B, h / p * w / p, C * p * p).

    Tokens run along the rows; within one, the channel is the outermost, as Flux and Qwen-Image have it.
    """
    batch, channels, height, width = values.shape
    values = values.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return values.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * patch * patch)


def in_loop_form(values: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """Brings a grid into the form that a loop's latents have.

    Args:
        values: (B, C, h, w) with the latents' channels, or (B, 1, h, w) to count for each of them; of a video, the same
            with frames, (B, C, frames, h, w).
        latents: (B, C, h, w), (B, C, frames, h, w), or tokens (B, L, D): of one place each, D = C, or, where there are
            no frames, of square patches.

    Returns:
        Values that can be broadcast to one row of the latents.

    Raises:
        BadInputError: If latents of this shape cannot hold the grid.
    """
    height, width = values.shape[-2:]
    if values.ndim == 5:
        tokens = values.flatten(2).transpose(1, 2)
        formed = values if latents.ndim == 5 else tokens
        fits = latents.shape[2:] == values.shape[2:] if latents.ndim == 5 else latents.shape[1] == tokens.shape[1]
    elif latents.ndim == 4:
        fits, formed = latents.shape[-2:] == (height, width), values
    elif latents.ndim == 5:
        fits, formed = latents.shape[-3:] == (1, height, width), values[:, :, None]
    else:
        patch = math.isqrt(height * width // latents.shape[1]) if latents.ndim == 3 else 0
        sides = {side % patch for side in (height, width)} if patch else {1}
        fits = sides == {0} and height * width == latents.shape[1] * patch * patch and not latents.shape[2] % patch**2
        formed = pack(values.expand(-1, latents.shape[2] // patch**2, -1, -1), patch) if fits else values
    if not fits:
        raise other_grid((height, width), latents)
    return formed


def other_grid(grid: tuple[int, int], latents: torch.Tensor) -> diffdiff_refusals.BadInputError:
    """The error for latents that do not hold the original's grid."""
    return diffdiff_refusals.BadInputError(
        f"The original is encoded on a grid of {grid[0]} x {grid[1]}, and the denoising loop's latents have the shape "
        f"{tuple(latents.shape)}, which hold another one: let `height` and `width` follow the image, or say how they "
        "hold it with `layout`."
    )
