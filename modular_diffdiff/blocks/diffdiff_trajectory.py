"""The original's trajectory: the noise levels of a schedule, and putting frozen elements on them.

Pure functions; nothing here knows of pipelines. Notation: x_i = alpha_i * x0 + sigma_i * noise before step i.
"""

from __future__ import annotations

import copy

import torch


def noise_levels(scheduler, timesteps: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """alpha and sigma of every level of a schedule, as the scheduler's own `add_noise` applies them.

    Args:
        scheduler: Any scheduler with `add_noise`, after `set_timesteps`. It is not changed.
        timesteps: (T,) all timesteps of its schedule.
        dtype: Of the latents: asked in their precision, the levels are the scheduler's to the last bit.

    Returns:
        Two (T + 1,) tensors on the timesteps' device; the last level is (1, 0), the original itself.
    """
    scheduler = copy.deepcopy(scheduler)
    # `add_noise` with an index set would answer for that index alone
    scheduler._begin_index = scheduler._step_index = None
    ones = torch.ones(len(timesteps), dtype=dtype, device=timesteps.device)
    zeros = torch.zeros_like(ones)
    alphas = scheduler.add_noise(ones, zeros, timesteps)
    sigmas = scheduler.add_noise(zeros, ones, timesteps)
    return torch.cat([alphas, ones[:1]]), torch.cat([sigmas, zeros[:1]])


def put_on_trajectory(
    latents: torch.Tensor,
    image_latents: torch.Tensor,
    noise: torch.Tensor,
    alpha: torch.Tensor,
    sigma: torch.Tensor,
    frozen: torch.Tensor,
) -> torch.Tensor:
    """Latents whose frozen elements are the original's at one noise level (paper, algorithm 1).

    Args:
        latents: (B, C, h, w), any state of the denoising loop.
        image_latents: x0, the encoded original, of the same shape.
        noise: The noise of the original's trajectory, of the same shape.
        alpha: Scalar tensor, the level's factor on `image_latents`.
        sigma: Scalar tensor, the level's factor on `noise`.
        frozen: (B, 1, h, w) bool.
    """
    # in the latents' memory layout: with another one the model rounds differently
    return torch.where(frozen, alpha * image_latents + sigma * noise, latents, out=torch.empty_like(latents))


def for_each_output(tensor: torch.Tensor, outputs: int) -> torch.Tensor:
    """Repeats 1, B or `outputs` rows to `outputs`, as a, a, b, b: the rows of one prompt lie together.

    The memory layout stays, and with it upstream's rounding.
    """
    repeats = outputs // len(tensor)
    return torch.cat([row for row in tensor.split(1) for _ in range(repeats)])


def recover_noise(
    latents: torch.Tensor, image_latents: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor
) -> torch.Tensor:
    """The noise in latents = alpha * image_latents + sigma * noise, computed in float32, in the latents' dtype."""
    noise = (latents.float() - alpha.float() * image_latents.float()) / sigma.float()
    return noise.to(latents.dtype)
