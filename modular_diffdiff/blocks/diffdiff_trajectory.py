"""The original's trajectory: the noise levels of a schedule, and putting frozen elements on them.

Pure functions; nothing here knows of pipelines. Notation: x_i = alpha_i * x0 + sigma_i * noise before step i, where x0
is the encoded original, `image_latents`; it, its noise and the latents have one shape, and alpha and sigma are scalars.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch


NOISE = ("latents", "noise")  # what a run draws, where it is not given


def noise_levels(scheduler, timesteps: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """alpha and sigma of every level of a schedule, as the scheduler itself applies them.

    Args:
        scheduler: Any scheduler with `add_noise`, or `scale_noise` (flow matching), after `set_timesteps`. It is not
            changed.
        timesteps: (T,) all timesteps of its schedule.
        dtype: Of the latents: asked in their precision, the levels are the scheduler's to the last bit.

    Returns:
        Two (T + 1,) tensors on the timesteps' device; the last level is (1, 0), the original itself.
    """
    scheduler = copy.deepcopy(scheduler)
    ones = torch.ones(len(timesteps), dtype=dtype, device=timesteps.device)
    zeros = torch.zeros_like(ones)
    alphas, sigmas = _noise(scheduler, ones, zeros, timesteps), _noise(scheduler, zeros, ones, timesteps)
    return torch.cat([alphas, ones[:1]]), torch.cat([sigmas, zeros[:1]])


def _noise(scheduler, samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """Samples (T,), each noised to its timestep; `scheduler` forgets where it stands."""
    repeated = len(timesteps.unique()) < len(timesteps) and scheduler.order == 1
    # with an index set, schedulers answer for that index alone
    scheduler._begin_index = scheduler._step_index = None
    if hasattr(scheduler, "add_noise") and not repeated:
        return scheduler.add_noise(samples, noise, timesteps)
    noised = []
    for level in range(len(timesteps)):
        scheduler._begin_index = level if repeated else None
        scheduler._step_index = None  # FlowMatchHeun's remembers the first timestep that it is asked for
        part = slice(level, level + 1)
        if hasattr(scheduler, "add_noise"):
            noised.append(scheduler.add_noise(samples[part], noise[part], timesteps[part]))
        else:
            noised.append(scheduler.scale_noise(samples[part], timesteps[part], noise[part]))
    return torch.cat(noised)


def index_at(scheduler, share: float) -> int:
    """The index of the first timestep after this share, in [0, 1], of a scheduler's training timesteps.

    It is at a whole step of second-order schedulers: a run that stops there and one that starts there are one run.
    """
    trained = scheduler.config.num_train_timesteps
    passed = (scheduler.timesteps >= round(trained - share * trained)).sum().item()
    return min(-(-passed // scheduler.order) * scheduler.order, len(scheduler.timesteps))


def begin_of(scheduler, first: torch.Tensor) -> int:
    """The index at which a run starts, whose first timestep is `first`."""
    begin = getattr(scheduler, "begin_index", None)  # schedulers without one repeat no timestep, or start at the first
    return (scheduler.timesteps == first.to(scheduler.timesteps.device)).nonzero()[0].item() if begin is None else begin


def put_on_trajectory(
    latents: torch.Tensor,
    image_latents: torch.Tensor,
    noise: torch.Tensor,
    alpha: torch.Tensor,
    sigma: torch.Tensor,
    frozen: torch.Tensor,
) -> torch.Tensor:
    """Latents with the original at one noise level where `frozen`, (B, 1, h, w) bool, is true (paper, algorithm 1)."""
    noised = (alpha * image_latents + sigma * noise).to(latents.dtype)
    # in the latents' memory layout: with another one the model rounds differently
    return torch.where(frozen, noised, latents, out=torch.empty_like(latents))


def original_weights(frozen: torch.Tensor, keep: torch.Tensor, softness: float) -> torch.Tensor:
    """How much of the noised original enters a step: all of it where `frozen`, and elsewhere none, but for softness.

    In ComfyUI's node `DifferentialDiffusion` of strength 1 - softness, 1 minus this is the mask of the step.

    Args:
        frozen: (B, ...) bool, what the map has not released yet.
        keep: (B, ...) in [0, 1], the map.
        softness: In [0, 1].
    """
    return (1 - softness) * frozen + softness * keep


def mix_with_trajectory(
    latents: torch.Tensor,
    image_latents: torch.Tensor,
    noise: torch.Tensor,
    alpha: torch.Tensor,
    sigma: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    """Latents with the original at one noise level mixed in; where its weight, in [0, 1], is 1, it replaces them."""
    noised = (alpha * image_latents + sigma * noise).to(latents.dtype)
    return torch.lerp(latents, noised, weights.to(latents.dtype), out=torch.empty_like(latents))


def for_each_output(items: Any, outputs: int) -> Any:
    """Repeats one item, or one for each prompt, to one for each output, as a, a, b, b.

    Items are a text, a list, or the rows of a tensor, whose memory layout stays, and with it upstream's rounding.
    """
    rows = [items] if isinstance(items, str) else list(items.split(1) if isinstance(items, torch.Tensor) else items)
    rows = [row for row in rows for _ in range(outputs // len(rows))]
    return torch.cat(rows) if isinstance(items, torch.Tensor) else rows


def same_noise(generator: torch.Generator | None, count: int) -> list[torch.Generator]:
    """So many generators that draw the same numbers, the given one first; without one, they are seeded at random."""
    if generator is None:
        generator = torch.Generator().manual_seed(torch.randint(2**62, ()).item())
    copies = [torch.Generator(generator.device).set_state(generator.get_state()) for _ in range(count - 1)]
    return [generator, *copies]


def own_draws(count: int, device: torch.device) -> torch.Generator | list[torch.Generator]:
    """Generators for an encoder of so many pictures, each the same, so that those of the run stay what they are."""
    generators = [torch.Generator(device).manual_seed(0) for _ in range(count)]
    return generators if count > 1 else generators[0]


def warn_of_correctors(scheduler, release_steps: torch.Tensor) -> None:
    """Says what predictor-corrector samplers (UniPC, SA-Solver) do to a map of several levels."""
    levels = release_steps.unique()
    partly = (levels > 0) & (levels < -(-len(scheduler.timesteps) // scheduler.order))
    if hasattr(scheduler, "last_sample") and partly.any() and len(levels) > 1:
        warnings.warn(
            f"`diffdiff_map` has several levels, and {type(scheduler).__name__} corrects each step by its own record "
            "of the one before: elements that are kept in part begin to change up to a step early. What is fully kept "
            "is exact.",
            stacklevel=2,
        )


def check_finite(sums: torch.Tensor, timesteps: torch.Tensor) -> None:
    """Raises a FloatingPointError that names the first timestep after which the sum of all latents was not finite."""
    lost = (~sums.isfinite()).nonzero()
    if len(lost):
        first = lost[0].item()
        raise FloatingPointError(
            f"The model's answer at timestep {timesteps[first].item():g}, evaluation {first + 1} of {len(timesteps)}, "
            "made latents that are not finite; float16 can overflow where bfloat16 and float32 do not."
        )


def recover_noise(
    latents: torch.Tensor, image_latents: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor
) -> torch.Tensor:
    """The noise in latents = alpha * image_latents + sigma * noise, computed in float32, in the latents' dtype."""
    noise = (latents.float() - alpha.float() * image_latents.float()) / sigma.float()
    return noise.to(latents.dtype)
