"""The real architectures of SDXL, Flux and Z-Image, with random weights: nothing to download, the same work to do."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    ClassifierFreeGuidance,
    ComponentsManager,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    UNet2DConditionModel,
    ZImageTransformer2DModel,
)
from diffusers.modular_pipelines import ModularPipelineBlocks
from PIL import Image
from torch import nn

from modular_diffdiff import without_encoders
from modular_diffdiff.families import FluxDiffDiffAutoBlocks, ZImageDiffDiffAutoBlocks
from modular_diffdiff.presets import SDXLDiffDiffAutoBlocks
from modular_diffdiff.still_life.scene import Scene, render


GUIDANCE_SCALE = 5.0
AUTOENCODER = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "sample_size": 1024,
}
FLUX_AUTOENCODER = AUTOENCODER | {
    "latent_channels": 16,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
SMALL_AUTOENCODER = {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4}


@dataclass(frozen=True)
class Architecture:
    """A family at its published size.

    Attributes:
        name: For people.
        blocks: Our automatic blocks, which name upstream's.
        denoiser: Class of the model that the loop asks.
        config: Its published configuration.
        small: What a toy's has in the place of that.
        layers: Entries of the configuration that count layers, for cards that hold only some of them.
        autoencoder: The published configuration of its `AutoencoderKL`.
        scheduler: Makes it, as published.
        dtype: Half precision that people run it in.
        embed: From the denoiser's configuration and a function that draws tensors, what the text encoders would make.
        community: Class of diffusers' community pipeline.
        ask_community: From model, change map and whether guided, what that one's call takes.
        guided: Whether a guider steers it; Flux is distilled, and takes its guidance scale as an input.
    """

    name: str
    blocks: type[ModularPipelineBlocks]
    denoiser: type[nn.Module]
    config: dict[str, Any]
    small: dict[str, Any]
    layers: tuple[str, ...]
    autoencoder: dict[str, Any]
    scheduler: Callable[[], Any]
    dtype: torch.dtype
    embed: Callable[[Any, Callable], dict[str, Any]]
    community: str
    ask_community: Callable[[Model, np.ndarray, bool], dict[str, Any]]
    guided: bool = True

    def size(self, config: dict[str, Any]) -> int:
        """Parameters of such a denoiser."""
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in self.denoiser(**config).parameters())

    def fitted(self, room: float) -> dict[str, Any]:
        """The configuration with as many layers as fit into this many bytes."""
        share = min(1.0, room / (self.size(self.config) * self.dtype.itemsize))
        return self.config | {name: max(1, int(self.config[name] * share)) for name in self.layers}


def embed_for_sdxl(config, draw) -> dict[str, torch.Tensor]:
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    made = {"prompt_embeds": (1, 77, config.cross_attention_dim), "pooled_prompt_embeds": (1, pooled)}
    return {prefix + name: draw(*shape) for prefix in ("", "negative_") for name, shape in made.items()}


def embed_for_flux(config, draw) -> dict[str, torch.Tensor]:
    return {
        "prompt_embeds": draw(1, 512, config.joint_attention_dim),
        "pooled_prompt_embeds": draw(1, config.pooled_projection_dim),
    }


def embed_for_z_image(config, draw) -> dict[str, list[torch.Tensor]]:
    return {"prompt_embeds": [draw(64, config.cap_feat_dim)], "negative_prompt_embeds": [draw(16, config.cap_feat_dim)]}


def ask_sdxl(model: Model, change_map: np.ndarray, guided: bool) -> dict[str, Any]:
    pixels = torch.from_numpy(np.array(model.image)).permute(2, 0, 1)[None] / 127.5 - 1
    keep = torch.from_numpy(change_map).float()[None].to(model.device)
    scale = GUIDANCE_SCALE if guided else 1.0
    return {"image": pixels, "original_image": pixels, "map": keep, "guidance_scale": scale, **model.embeddings}


def ask_flow(model: Model, change_map: np.ndarray, guided: bool) -> dict[str, Any]:
    picture = Image.fromarray((255 * change_map).round().astype(np.uint8))
    sides = {"height": model.side, "width": model.side}
    scale = {"guidance_scale": GUIDANCE_SCALE if guided else 1.0}
    return {"image": model.image, "mask_image": picture, **sides, **scale, **model.embeddings}


SDXL = Architecture(
    name="SDXL",
    blocks=SDXLDiffDiffAutoBlocks,
    denoiser=UNet2DConditionModel,
    config={
        "sample_size": 128,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "block_out_channels": (320, 640, 1280),
        "layers_per_block": 2,
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    small={
        "block_out_channels": (16, 16, 32),
        "layers_per_block": 1,
        "transformer_layers_per_block": 1,
        "attention_head_dim": (2, 2, 4),
        "norm_num_groups": 8,
        "cross_attention_dim": 16,
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 64,
    },
    layers=(),
    autoencoder=AUTOENCODER | {"latent_channels": 4, "scaling_factor": 0.13025},
    scheduler=lambda: EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="leading",
        steps_offset=1,
    ),
    dtype=torch.float16,
    embed=embed_for_sdxl,
    community="StableDiffusionXLDifferentialImg2ImgPipeline",
    ask_community=ask_sdxl,
)
Z_IMAGE = Architecture(
    name="Z-Image",
    blocks=ZImageDiffDiffAutoBlocks,
    denoiser=ZImageTransformer2DModel,
    config={"n_layers": 30},  # all defaults are the published ones
    small={
        "n_layers": 2,
        "n_refiner_layers": 1,
        "dim": 32,
        "n_heads": 2,
        "n_kv_heads": 2,
        "cap_feat_dim": 16,
        "axes_dims": [4, 6, 6],
        "axes_lens": [256, 64, 64],
    },
    layers=("n_layers",),
    autoencoder=FLUX_AUTOENCODER,
    scheduler=lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
    dtype=torch.bfloat16,
    embed=embed_for_z_image,
    community="ZImageDifferentialImg2ImgPipeline",
    ask_community=ask_flow,
)
FLUX = Architecture(
    name="Flux",
    blocks=FluxDiffDiffAutoBlocks,
    denoiser=FluxTransformer2DModel,
    config={"num_layers": 19, "num_single_layers": 38, "guidance_embeds": True},  # dev's; the rest are defaults
    small={
        "num_layers": 1,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 16,
        "pooled_projection_dim": 16,
        "axes_dims_rope": (4, 6, 6),
    },
    layers=("num_layers", "num_single_layers"),
    autoencoder=FLUX_AUTOENCODER,
    scheduler=lambda: FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
    dtype=torch.bfloat16,
    embed=embed_for_flux,
    community="FluxDifferentialImg2ImgPipeline",
    ask_community=ask_flow,
    guided=False,
)


def seeded(seed: int) -> torch.Generator:
    """On the CPU: the same noise on every device."""
    return torch.Generator().manual_seed(seed)


@contextmanager
def made_in(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Models are made in this dtype, as `from_pretrained` makes them, and on this device."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            yield
    finally:
        torch.set_default_dtype(before)


@dataclass(frozen=True)
class Editor:
    """A pipeline that is ready to edit.

    Attributes:
        edit: Takes the number of steps, the change map, and further inputs.
        denoiser: Asked in every step.
        calls: How often.
    """

    edit: Callable[..., Any]
    denoiser: nn.Module
    calls: int = 1

    def __call__(self, steps: int, change_map: np.ndarray, **inputs: Any):
        return self.edit(steps, change_map, **inputs)


class Model:
    """An architecture on a device, and the pipelines that edit a picture with it; they share its weights.

    Args:
        architecture: A family at its published size.
        device: Where its weights are made, and stay.
        side: Of the picture, in pixels.
        dtype: By default the architecture's.
        config: Of the denoiser; by default the published one.
        autoencoder: What its configuration has in the place of the published one's entries.
    """

    def __init__(
        self,
        architecture: Architecture,
        device: torch.device,
        side: int,
        dtype: torch.dtype | None = None,
        config: dict[str, Any] | None = None,
        autoencoder: dict[str, Any] | None = None,
    ):
        self.architecture, self.device, self.side = architecture, device, side
        self.dtype = dtype or architecture.dtype
        torch.manual_seed(0)
        with made_in(self.dtype, device):
            self.denoiser = architecture.denoiser(**(config or architecture.config))
            self.autoencoder = AutoencoderKL(**(architecture.autoencoder | (autoencoder or {})))
            self.embeddings = architecture.embed(self.denoiser.config, torch.randn)
        for part in (self.denoiser, self.autoencoder):
            part.eval().requires_grad_(False)
        self.blocks = without_encoders(architecture.blocks().get_workflow("diffdiff"), "prompt_embeds")
        self.image = Image.fromarray(render(Scene("apple", "red", "striped", light=0.3))).resize((side, side))

    def parts(self) -> dict[str, Any]:
        """For a pipeline, which has a scheduler of its own: some change theirs."""
        denoiser = {"unet" if self.architecture is SDXL else "transformer": self.denoiser}
        return denoiser | {"vae": self.autoencoder, "scheduler": self.architecture.scheduler()}

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.denoiser.parameters())

    def pipeline(self, blocks, guided: bool, manager: ComponentsManager | None = None):
        """Of these blocks and the model's parts."""
        pipe = blocks.init_pipeline(components_manager=manager)
        parts = self.parts()
        if self.architecture.guided:
            parts["guider"] = ClassifierFreeGuidance(guidance_scale=GUIDANCE_SCALE if guided else 1.0)
        pipe.update_components(**parts)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def ours(
        self,
        guided: bool = False,
        batched: bool = False,
        latents: bool = False,
        manager: ComponentsManager | None = None,
    ) -> Editor:
        """Ours; with `batched` guidance, and from and to `latents` in the place of pictures."""
        blocks = without_encoders(self.blocks, "image_latents") if latents else self.blocks
        pipe = self.pipeline(blocks, guided, manager)
        fixed = {"batch_guidance": batched} if self.architecture.guided else {}
        if not latents:
            fixed["image"] = self.image

        def edit(steps: int, change_map: np.ndarray, **inputs: Any):
            inputs = {"generator": seeded(0)} | fixed | self.embeddings | inputs
            return pipe(diffdiff_map=change_map, num_inference_steps=steps, **inputs)

        return Editor(edit, self.denoiser, calls=2 if guided and not batched else 1)

    def upstream(self, guided: bool = False) -> Editor:
        """Upstream's modular image-to-image, which knows no change map, at full strength."""
        blocks = self.architecture.blocks.upstream().get_execution_blocks(prompt=True, image=True)
        pipe = self.pipeline(without_encoders(blocks, "prompt_embeds"), guided)
        fixed = {"image": self.image, "strength": 1.0, "height": self.side, "width": self.side, **self.embeddings}

        def edit(steps: int, change_map: np.ndarray):
            return pipe(num_inference_steps=steps, generator=seeded(0), **fixed)

        return Editor(edit, self.denoiser, calls=2 if guided else 1)

    def community(self, pipeline_class: type, guided: bool = False) -> Editor:
        """diffusers' community pipeline."""
        taken = inspect.signature(pipeline_class).parameters.values()
        absent = {parameter.name: None for parameter in taken if parameter.default is parameter.empty}
        pipe = pipeline_class(**(absent | self.parts()))
        pipe.set_progress_bar_config(disable=True)

        def edit(steps: int, change_map: np.ndarray):
            asked = self.architecture.ask_community(self, change_map, guided)
            generator = seeded(0)
            return pipe(strength=1.0, num_inference_steps=steps, generator=generator, **asked)

        return Editor(edit, self.denoiser)
