"""Every video family that a change map opens, on tiny random parts: a row each."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from diffusers import (
    AutoencoderKLHunyuanVideo15,
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    AutoencoderKLLTXVideo,
    AutoencoderKLWan,
    HunyuanVideo15Transformer3DModel,
    LTX2VideoTransformer3DModel,
    LTXVideoTransformer3DModel,
    WanTransformer3DModel,
)
from diffusers.pipelines.ltx2 import LTX2TextConnectors
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder
from torch import nn
from transformers import T5Config, T5EncoderModel

from modular_diffdiff import videos

from .families import CHANNELS, WIDTH, WORDS, Reader, WideReader, flow, words_tokenizer


MEANS, DEVIATIONS = [0.1, -0.2, 0.3, 0.0], [1.1, 0.9, 1.2, 1.0]
# HunyuanVideo 1.5 cuts off so many tokens of its system message.
HUNYUAN_TEMPLATE = (
    "{{ 'of ' * 108 }}{% for message in messages %}{% if message['role'] == 'user' %}{{ message['content'] }}"
    "{% endif %}{% endfor %}"
)


def wan_transformer() -> WanTransformer3DModel:
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        text_dim=WIDTH,
        freq_dim=16,
        ffn_dim=16,
        num_layers=1,
        rope_max_seq_len=32,
    )


def wan() -> dict[str, Any]:
    return {
        "tokenizer": words_tokenizer(),
        "text_encoder": Reader(),
        "transformer": wan_transformer(),
        "vae": AutoencoderKLWan(
            base_dim=4,
            z_dim=CHANNELS,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            latents_mean=MEANS,
            latents_std=DEVIATIONS,
        ),
        "scheduler": flow(shift=3.0),
    }


def wan22() -> dict[str, Any]:
    return wan() | {"transformer_2": wan_transformer()}


def ltx() -> dict[str, Any]:
    layers = 4
    vae = AutoencoderKLLTXVideo(
        latent_channels=CHANNELS,
        block_out_channels=(8,) * layers,
        decoder_block_out_channels=(8,) * layers,
        layers_per_block=(1,) * (layers + 1),
        decoder_layers_per_block=(1,) * (layers + 1),
        spatio_temporal_scaling=(True, True, True, False),
        decoder_spatio_temporal_scaling=(True, True, True, False),
        decoder_inject_noise=(False,) * (layers + 1),
        upsample_residual=(False,) * layers,
        upsample_factor=(1,) * layers,
        patch_size=1,
    )
    vae.latents_mean, vae.latents_std = torch.tensor(MEANS), torch.tensor(DEVIATIONS)
    return {
        "tokenizer": words_tokenizer(),
        "text_encoder": WideReader(WIDTH),
        "transformer": LTXVideoTransformer3DModel(
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            num_attention_heads=2,
            attention_head_dim=8,
            cross_attention_dim=16,
            num_layers=1,
            caption_channels=WIDTH,
        ),
        "vae": vae,
        "scheduler": flow(use_dynamic_shifting=True),
    }


def ltx2() -> dict[str, Any]:
    vae = AutoencoderKLLTX2Video(
        latent_channels=CHANNELS,
        block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, True),
        decoder_spatio_temporal_scaling=(True, True, True),
        decoder_inject_noise=(False,) * 4,
        downsample_type=("spatiotemporal",) * 3,
        upsample_residual=(False,) * 3,
        upsample_factor=(1,) * 3,
        patch_size=1,
    )
    vae.latents_mean, vae.latents_std = torch.tensor(MEANS), torch.tensor(DEVIATIONS)
    audio_vae = AutoencoderKLLTX2Audio(
        base_channels=4,
        ch_mult=(1,),
        num_res_blocks=1,
        attn_resolutions=None,
        resolution=32,
        latent_channels=2,
        mel_bins=8,
    )
    return {
        "tokenizer": words_tokenizer(),
        "text_encoder": Reader(),
        "connectors": LTX2TextConnectors(
            caption_channels=WIDTH,
            text_proj_in_factor=4,  # layers of the reader, and its embeddings
            video_connector_num_attention_heads=2,
            video_connector_attention_head_dim=8,
            video_connector_num_layers=1,
            video_connector_num_learnable_registers=None,
            audio_connector_num_attention_heads=2,
            audio_connector_attention_head_dim=8,
            audio_connector_num_layers=1,
            audio_connector_num_learnable_registers=None,
            connector_rope_base_seq_len=32,
            rope_theta=10000.0,
            rope_double_precision=False,
            causal_temporal_positioning=False,
            rope_type="split",
        ),
        "transformer": LTX2VideoTransformer3DModel(
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            num_attention_heads=2,
            attention_head_dim=8,
            cross_attention_dim=16,
            audio_in_channels=4,
            audio_out_channels=4,
            audio_num_attention_heads=2,
            audio_attention_head_dim=4,
            audio_cross_attention_dim=8,
            num_layers=1,
            caption_channels=WIDTH,
            rope_double_precision=False,
            rope_type="split",
        ),
        "vae": vae,
        "audio_vae": audio_vae,
        "vocoder": LTX2Vocoder(
            in_channels=2 * 8,
            hidden_channels=16,
            upsample_kernel_sizes=[4, 4],
            upsample_factors=[2, 2],
            resnet_kernel_sizes=[3],
            resnet_dilations=[[1, 3, 5]],
        ),
        "guider": diffusers.LTX2Guidance(guidance_scale=3.0, spatio_temporal_guidance_blocks=[0], stg_scale=1.0),
        "audio_guider": diffusers.LTX2Guidance(guidance_scale=3.0),
        "scheduler": flow(use_dynamic_shifting=True),
    }


def hunyuan() -> dict[str, Any]:
    vae = AutoencoderKLHunyuanVideo15(
        latent_channels=CHANNELS,
        block_out_channels=(16, 16, 16, 16),
        layers_per_block=1,
        spatial_compression_ratio=8,
        temporal_compression_ratio=4,
        downsample_match_channel=False,
        upsample_match_channel=False,
        scaling_factor=1.03,
    )
    vae.enable_slicing()  # without it, upstream's decoder takes one video
    tokenizer = words_tokenizer(1200)
    tokenizer.chat_template = HUNYUAN_TEMPLATE
    return {
        "tokenizer": tokenizer,
        "text_encoder": Reader(),
        "tokenizer_2": words_tokenizer(),
        "text_encoder_2": T5EncoderModel(
            T5Config(vocab_size=len(WORDS) + 8, d_model=WIDTH, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
        ),
        "transformer": HunyuanVideo15Transformer3DModel(
            in_channels=2 * CHANNELS + 1,
            out_channels=CHANNELS,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=1,
            num_refiner_layers=1,
            mlp_ratio=2.0,
            patch_size=1,
            patch_size_t=1,
            text_embed_dim=WIDTH,
            text_embed_2_dim=WIDTH,
            image_embed_dim=12,
            rope_axes_dim=(2, 2, 4),
            target_size=16,
        ),
        "vae": vae,
        "scheduler": flow(shift=7.0),
    }


@dataclass(frozen=True)
class Family:
    """A row: what a test has to know of a family.

    Attributes:
        name: Of the row.
        ours: Its blocks under a change map.
        parts: Builds its tiny components.
        every: Frames that a latent frame stands for.
        inputs: What its calls take here beside prompt and video.
        tokens: Whether its loop sees tokens, and no grid.
        strength: What a constant map equals, and how nearly.
        guided_in_one: Whether `batch_guidance` applies.
        skips: Whether steps in which nothing changes are left out.
    """

    name: str
    ours: type
    parts: Callable[[], dict[str, Any]]
    every: int = 4
    inputs: dict[str, Any] = field(default_factory=dict)
    tokens: bool = False
    strength: str = "text-to-video from the noised original, <= 1e-4"
    guided_in_one: bool = True
    skips: bool = True

    def __str__(self) -> str:
        return self.name


SHORT = {"max_sequence_length": 16}
VIDEOS = {
    family.name: family
    for family in (
        Family("wan", videos.WanDiffDiffAutoBlocks, wan, inputs=SHORT, strength="`WanVideoToVideoPipeline`, <= 1e-4"),
        Family("wan-2.2", videos.Wan22DiffDiffAutoBlocks, wan22, inputs=SHORT),
        Family("ltx", videos.LTXDiffDiffAutoBlocks, ltx, every=8, tokens=True, inputs=SHORT),
        Family(
            "ltx-2",
            videos.LTX2DiffDiffAutoBlocks,
            ltx2,
            every=8,
            tokens=True,
            strength="the paper's algorithm, <= 1e-4",
            inputs=SHORT,
            guided_in_one=False,
            skips=False,
        ),
        Family("hunyuan-video-1.5", videos.HunyuanVideo15DiffDiffAutoBlocks, hunyuan),
    )
}


@functools.cache
def parts_of(name: str) -> dict[str, Any]:
    """The components of a family, random and always the same."""
    torch.manual_seed(0)
    parts = VIDEOS[name].parts()
    for part in parts.values():
        if isinstance(part, nn.Module):
            part.eval().requires_grad_(False)
    return parts
