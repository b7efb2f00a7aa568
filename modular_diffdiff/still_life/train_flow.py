"""Trains the flow-matching still-life checkpoint, a small Z-Image, on the latents of the other one's autoencoder.

    python -m modular_diffdiff.still_life.train_flow WORK_DIR

That autoencoder's weights are read and saved again as they are. The stage resumes as those of `train` do, and shares
their scenes if WORK_DIR is the same.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, ZImagePipeline
from torch import nn

from . import CHECKPOINT, FLOW_CHECKPOINT
from .flow import (
    CAPTION_TOKENS,
    build_flow_scheduler,
    build_flow_text_encoder,
    build_flow_tokenizer,
    build_transformer,
)
from .train import caption, draw_rng, encode, fit, render_scenes, training_scene


# Guidance needs a model that also knows the empty prompt.
NO_PROMPT = 0.1
# Spread of the timesteps' logits: most of them in the middle, where the picture is decided (arXiv 2403.03206).
TIME_SPREAD = 1.2


class PlainAttention:
    """Z-Image's attention in real numbers and plain matrix products: its backward pass is the fastest on a CPU."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, freqs_cis=None):
        """(B, L, C) to (B, L, C); `freqs_cis` are the (1, L, C / heads / 2) complex turns of each token."""
        parts = (project(hidden_states) for project in (attn.to_q, attn.to_k, attn.to_v))
        query, key, value = (part.unflatten(-1, (attn.heads, -1)) for part in parts)
        cos, sin = freqs_cis.real[:, :, None], freqs_cis.imag[:, :, None]

        def turn(x: torch.Tensor) -> torch.Tensor:
            a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
            return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).to(value.dtype).transpose(1, 2)

        query, key = turn(attn.norm_q(query)), turn(attn.norm_k(key))
        weights = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1).to(value.dtype)
        return attn.to_out[0]((weights @ value.transpose(1, 2)).transpose(1, 2).flatten(2))


def use_plain_attention(transformer) -> None:
    for layer in [*transformer.noise_refiner, *transformer.context_refiner, *transformer.layers]:
        layer.attention.set_processor(PlainAttention())


def as_template(tokenizer, prompts: list[str]) -> list[str]:
    """The prompts as Z-Image's pipelines hand them to the tokenizer."""
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True, enable_thinking=True
        )
        for prompt in prompts
    ]


def encode_prompts(tokenizer, text_encoder, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states (B, CAPTION_TOKENS, 96), and which of them belong to the prompt (B, CAPTION_TOKENS)."""
    tokens = tokenizer(
        as_template(tokenizer, prompts),
        padding="max_length",
        max_length=CAPTION_TOKENS,
        truncation=True,
        return_tensors="pt",
    ).to(text_encoder.device)
    # no mask: the attention is causal, so padding on the right is seen by padding alone
    hidden = text_encoder(tokens.input_ids, output_hidden_states=True).hidden_states[-2]
    return hidden, tokens.attention_mask.bool()


def denoise(
    transformer, latents: torch.Tensor, times: torch.Tensor, features: torch.Tensor, given: torch.Tensor
) -> torch.Tensor:
    """The transformer's forward pass on tensors: upstream's takes lists and pads each of their members.

    Args:
        latents: (B, 4, H, W); the number of patches must be a multiple of 32.
        times: (B,), 0 for noise and 1 for data.
        features: (B, L, 96) of captions; L must be a multiple of 32.
        given: (B, L), false for padding.

    Returns:
        (B, 4, H, W): the velocity towards the data.
    """
    batch, channels, height, width = latents.shape
    rows, columns, length = height // 2, width // 2, features.shape[1]
    device = latents.device
    caption_ids = torch.cartesian_prod(torch.arange(1, length + 1), torch.tensor([0]), torch.tensor([0]))
    patch_ids = torch.cartesian_prod(torch.tensor([length + 1]), torch.arange(rows), torch.arange(columns))
    caption_rope = transformer.rope_embedder(caption_ids.to(device))[None]
    patch_rope = transformer.rope_embedder(patch_ids.to(device))[None]
    modulation = transformer.t_embedder(times * transformer.t_scale)

    patches = latents.unflatten(3, (columns, 2)).unflatten(2, (rows, 2)).permute(0, 2, 4, 3, 5, 1)
    patches = transformer.all_x_embedder["2-1"](patches.flatten(3).flatten(1, 2))
    for layer in transformer.noise_refiner:
        patches = layer(patches, None, patch_rope, modulation)
    captions = transformer.cap_embedder(features)
    captions = torch.where(given[..., None], captions, transformer.cap_pad_token.to(captions.dtype))
    for layer in transformer.context_refiner:
        captions = layer(captions, None, caption_rope)
    both, rope = torch.cat([patches, captions], 1), torch.cat([patch_rope, caption_rope], 1)
    for layer in transformer.layers:
        both = layer(both, None, rope, modulation)
    patches = transformer.all_final_layer["2-1"](both[:, : rows * columns], c=modulation)
    patches = patches.view(batch, rows, columns, 2, 2, channels)
    return patches.permute(0, 5, 1, 3, 2, 4).reshape(latents.shape)


def draw_times(count: int, generator: torch.Generator) -> torch.Tensor:
    """(count,) logit-normal times in (0, 1), one out of each of `count` parts of equal probability, shuffled."""
    share = (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count
    return torch.sigmoid(TIME_SPREAD * torch.special.ndtri(share.clamp(1e-4, 1 - 1e-4)))


def flow_loss(
    predict: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    x0: torch.Tensor,
    times: torch.Tensor,
    generator: torch.Generator,
) -> torch.Tensor:
    """Rectified flow (Liu et al., arXiv 2209.03003) in Z-Image's direction: the velocity is data - noise.

    Args:
        predict: Takes latents (B, 4, H, W) on the straight line from noise to data, and `times` (B,); gives velocities.
        x0: (B, 4, H, W), the data.
        times: (B,), 0 for noise and 1 for data.
    """
    noise = torch.randn(x0.shape, generator=generator).to(x0.device)
    line = torch.lerp(noise, x0, times[:, None, None, None])
    return F.mse_loss(predict(line, times).float(), x0 - noise)


def train_transformer(latents: torch.Tensor, work: Path, device: str, steps: int, batch: int, compiled: bool):
    """The denoiser and its text encoder, trained together on captioned latents (count, 4, H, W)."""
    torch.manual_seed(0)
    tokenizer = build_flow_tokenizer()
    text_encoder = build_flow_text_encoder(tokenizer).to(device)
    transformer = build_transformer().to(device)
    text_encoder.set_attn_implementation("eager")
    use_plain_attention(transformer)
    forward = torch.compile(denoise) if compiled else denoise
    scenes = [training_scene(seed) for seed in range(len(latents))]

    def loss(generator: torch.Generator) -> torch.Tensor:
        indices = torch.randint(len(latents), (batch,), generator=generator)
        rng = draw_rng(generator)
        captions = ["" if rng.random() < NO_PROMPT else caption(scenes[i], rng) for i in indices]
        text = encode_prompts(tokenizer, text_encoder, captions)
        times = draw_times(batch, generator).to(device)
        return flow_loss(lambda x, t: forward(transformer, x, t, *text), latents[indices].to(device), times, generator)

    modules = nn.ModuleDict({"text_encoder": text_encoder, "transformer": transformer})
    fit("flow", modules, loss, steps, 4e-3, work, ema_decay=0.999)
    return tokenizer, text_encoder, transformer


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for scenes and checkpoints; the same folder resumes")
    parser.add_argument("--out", default=FLOW_CHECKPOINT, help="where the pipeline is saved (default: %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--scenes", type=int, default=8_000)
    parser.add_argument("--steps", type=int, default=2_200)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--compile", action="store_true", help="compile the forward pass: nearly twice as fast")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = _arguments(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    vae = AutoencoderKL.from_pretrained(CHECKPOINT, subfolder="vae", torch_dtype=torch.float32).to(options.device)
    scenes = render_scenes(options.work, options.scenes, vae.config.sample_size)
    latents = encode(vae, scenes, options.work / "latents-of-checkpoint.pt") * vae.config.scaling_factor
    tokenizer, text_encoder, transformer = train_transformer(
        latents, options.work, options.device, options.steps, options.batch, options.compile
    )
    # Z-Image's pipelines subtract a shift, SDXL's know none; and no path of this machine is to be saved
    vae.register_to_config(shift_factor=0.0, _name_or_path=Path(CHECKPOINT).name)
    pipeline = ZImagePipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=transformer,
        scheduler=build_flow_scheduler(),
    )
    pipeline.to("cpu", torch.float16).save_pretrained(options.out)


if __name__ == "__main__":
    main()
