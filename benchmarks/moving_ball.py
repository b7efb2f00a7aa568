"""A ball that crosses a picture, and a model of such clips whose denoiser is known exactly.

It takes the place of a small trained video model: `docs/make_pictures.py` draws with it, and the tests ask it what a
change map over time means.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from diffusers import ClassifierFreeGuidance, FlowMatchEulerDiscreteScheduler
from diffusers.configuration_utils import FrozenDict
from diffusers.models.autoencoders.vae import DecoderOutput, IdentityDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput, Transformer2DModelOutput
from PIL import Image, ImageDraw
from torch import nn

from modular_diffdiff import without_encoders
from modular_diffdiff.videos import WanDiffDiffAutoBlocks


HEIGHT, WIDTH, FRAMES, RADIUS = 112, 224, 9, 20
SHARPER = 4  # the scene is drawn so many times as large, for smooth edges
RED, BLUE = (208, 52, 44), (44, 92, 208)
# Two colours of each background, as stripes and as squares.
STRIPES, SQUARES = ((238, 226, 200), (222, 200, 164)), ((206, 224, 214), (170, 198, 186))
CLIPS = [(RED, "stripes"), (RED, "squares"), (BLUE, "stripes"), (BLUE, "squares")]
PROMPTS = {"a red ball": (0.5, 0.5, 0.0, 0.0), "a blue ball": (0.0, 0.0, 0.5, 0.5)}  # weights of the clips
DEVIATION = 0.02


# The scene


def center(frame: int) -> tuple[float, float]:
    """x and y of the ball in pixels: from left to right, up, down and up again."""
    passed = frame / (FRAMES - 1)
    return 34 + (WIDTH - 68) * passed, HEIGHT - 34 - 44 * abs(math.sin(1.5 * math.pi * passed))


def draw_background(kind: str) -> Image.Image:
    side = 16 * SHARPER
    first, second = STRIPES if kind == "stripes" else SQUARES
    picture = Image.new("RGB", (WIDTH * SHARPER, HEIGHT * SHARPER), first)
    draw = ImageDraw.Draw(picture)
    for column in range(WIDTH // 16):
        for row in range(HEIGHT // 16):
            if (column + (row if kind == "squares" else 0)) % 2:
                corner = column * side, row * side
                draw.rectangle((*corner, corner[0] + side - 1, corner[1] + side - 1), fill=second)
    return picture


def draw_disc(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, fill) -> None:
    """A disc, in pixels of the scene."""
    draw.ellipse([SHARPER * side for side in (x - radius, y - radius, x + radius, y + radius)], fill=fill)


def draw_clip(colour: tuple[int, int, int], background: str) -> list[Image.Image]:
    """The frames of a ball with a highlight."""
    frames = []
    for frame in range(FRAMES):
        picture, (x, y) = draw_background(background), center(frame)
        draw = ImageDraw.Draw(picture)
        draw_disc(draw, x, y, RADIUS, colour)
        draw_disc(draw, x - 7, y - 7, 5, tuple(128 + part // 2 for part in colour))
        frames.append(picture.resize((WIDTH, HEIGHT), Image.Resampling.BOX))
    return frames


def ball_maps(moves: bool = True) -> np.ndarray:
    """(frames, height, width): black (0) up to 3 pixels around the ball, or around its first place; else white."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    maps = []
    for frame in range(FRAMES):
        x, y = center(frame if moves else 0)
        maps.append(np.hypot(columns - x, rows - y) > RADIUS + 3)
    return np.stack(maps).astype(np.float32)


# The model


class ClipMixture(nn.Module):
    """Stands in for Wan's transformer: the exact velocity, where clips come from a mixture of Gaussians.

    Flow matching noises a clip x0 to x = (1 - s) * x0 + s * noise, and its model predicts
    E[noise - x0 | x] = (x - E[x0 | x]) / s. For a mixture, E[x0 | x] is in closed form.

    Args:
        means: (K, C, F, h, w), the clips that its components are centered on.
        deviation: Standard deviation around them, of each element by itself.
    """

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, means: torch.Tensor, deviation: float):
        super().__init__()
        self.means, self.variance = means, deviation**2

    def denoise(self, x: torch.Tensor, sigma: float, weights: torch.Tensor) -> torch.Tensor:
        """E[x0 | x] of clips (C, F, h, w), with the weight of each component in (K,)."""
        alpha = 1 - sigma
        variance = alpha**2 * self.variance + sigma**2
        off = x - alpha * self.means
        likelihood = -off.square().flatten(1).sum(1) / (2 * variance)
        posterior = torch.softmax(weights.log() + likelihood, 0)
        denoised = self.means + alpha * self.variance / variance * off
        return torch.einsum("k,k...->...", posterior, denoised)

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_kwargs: dict | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        """The velocity at latents (B, C, F, h, w) and timesteps (B,) of 1000; prompts are weights, (B, 1, K)."""
        rows = zip(hidden_states, (timestep / 1000).tolist(), encoder_hidden_states[:, 0], strict=True)
        velocity = torch.stack([(x - self.denoise(x, sigma, weights)) / sigma for x, sigma, weights in rows])
        return Transformer2DModelOutput(velocity) if return_dict else (velocity,)


class Pixels(nn.Module):
    """Stands in for Wan's autoencoder: latents are the frames themselves, (B, 3, F, H, W) in [-1, 1]."""

    config = FrozenDict(z_dim=3, latents_mean=[0.0] * 3, latents_std=[1.0] * 3)
    temperal_downsample = ()
    dtype, device = torch.float32, torch.device("cpu")

    def encode(self, frames: torch.Tensor) -> AutoencoderKLOutput:
        return AutoencoderKLOutput(latent_dist=IdentityDistribution(frames))

    def decode(self, latents: torch.Tensor, return_dict: bool = True) -> DecoderOutput | tuple[torch.Tensor]:
        return DecoderOutput(latents) if return_dict else (latents,)


def as_latents(clip: list[Image.Image]) -> torch.Tensor:
    """(3, F, H, W) in [-1, 1]."""
    return torch.from_numpy(np.stack(clip)).permute(3, 0, 1, 2) / 127.5 - 1


def make_pipeline():
    """Wan's blocks under a change map, around these two; prompts are given as weights."""
    pipe = without_encoders(WanDiffDiffAutoBlocks().get_workflow("diffdiff"), "prompt_embeds").init_pipeline()
    pipe.update_components(
        vae=Pixels(),
        transformer=ClipMixture(torch.stack([as_latents(draw_clip(*clip)) for clip in CLIPS]), DEVIATION),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        guider=ClassifierFreeGuidance(guidance_scale=1.0),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def edit(pipe, video: list[Image.Image], maps: np.ndarray, steps: int = 10) -> list[Image.Image]:
    """The frames of "a blue ball" under these maps, (F, H, W)."""
    weights = torch.tensor(PROMPTS["a blue ball"])[None, None]
    (edited,) = pipe(
        video=video,
        diffdiff_map=maps,
        prompt_embeds=weights,
        negative_prompt_embeds=weights,  # needed, and not looked at
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(0),
        output_type="pil",
        output="videos",
    )
    return edited
