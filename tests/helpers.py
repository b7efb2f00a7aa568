"""What several test files need: pipelines of tiny parts, and quiet runs of them."""

import numpy as np
import torch
from diffusers import ClassifierFreeGuidance, EulerDiscreteScheduler
from diffusers.modular_pipelines import ModularPipelineBlocks, SequentialPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import InputParam
from PIL import Image

from modular_diffdiff import IMAGE2IMAGE_BLOCKS, SDXLDiffDiffBlocks


SDXL_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def build(blocks: ModularPipelineBlocks, components: dict, guidance_scale: float = 4.0, **replaced):
    """A pipeline of these blocks and components; guidance is off at a scale of 1."""
    pipe = blocks.init_pipeline()
    parts = {name: part for name, part in (components | replaced).items() if name in pipe.component_names}
    pipe.update_components(**parts, guider=ClassifierFreeGuidance(guidance_scale=guidance_scale))
    return pipe


def diffdiff(components: dict, without: tuple[str, ...] = (), restore: bool = True, **options):
    """Our SDXL pipeline, without some of its blocks; without `restore` and `skip_frozen` it is the paper's."""
    blocks = SDXLDiffDiffBlocks()
    for name in without:
        blocks.sub_blocks.pop(name)
    if not restore:
        blocks.sub_blocks["denoise"].sub_blocks.pop("restore")
    return build(blocks, components, **options)


def image_to_image(components: dict, **options):
    """Upstream's modular image-to-image."""
    return build(SequentialPipelineBlocks.from_blocks_dict(IMAGE2IMAGE_BLOCKS), components, **options)


def picture(height: int = 32, width: int = 32, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def euler(spacing: str = "trailing", **config) -> EulerDiscreteScheduler:
    return EulerDiscreteScheduler(**SDXL_BETAS, timestep_spacing=spacing, **config)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference, in units of b's root mean square."""
    return ((a - b).abs().max() / b.square().mean().sqrt()).item()


def let_it_speak(controlnet):
    """A fresh ControlNet's outputs are zero convolutions; give them weights that show."""
    with torch.no_grad():
        for name, parameter in controlnet.named_parameters():
            if "controlnet_down_blocks" in name or "controlnet_mid_block" in name:
                parameter.normal_(std=0.3)
    return controlnet.eval()


def adapter_weights(unet, seed: int, tokens: int = 4, image_dim: int = 16) -> dict:
    """An IP-Adapter in the form that `load_ip_adapter` takes, with random weights."""
    generator = seeded(seed)
    text_dim = unet.config.cross_attention_dim

    def random(*shape):
        return 0.5 * torch.randn(*shape, generator=generator)

    attention = {}
    for index, name in enumerate(unet.attn_processors):
        if "attn2" in name:
            width = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
            attention |= {
                f"{index}.to_k_ip.weight": random(width, text_dim),
                f"{index}.to_v_ip.weight": random(width, text_dim),
            }
    projection = {
        "proj.weight": random(tokens * text_dim, image_dim),
        "proj.bias": random(tokens * text_dim),
        "norm.weight": torch.ones(text_dim),
        "norm.bias": torch.zeros(text_dim),
    }
    return {"image_proj": projection, "ip_adapter": attention}


def widen(model, seed: int = 0):
    """A fresh model says the same everywhere; larger weights make it tell pixels apart."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(0.4 * torch.randn(parameter.shape, generator=seeded(seed)))
    return model.eval().requires_grad_(False)


class Calls:
    """Counts what a model is asked."""

    def __init__(self, model):
        self.made = 0
        self.hook = model.register_forward_hook(self.count)

    def count(self, *_):
        self.made += 1

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.hook.remove()


class Overwrite(ModularPipelineBlocks):
    """Algorithm 1: before each step, what is frozen becomes the noised original of that step."""

    @property
    def inputs(self):
        names = ("latents", "image_latents", "noise", "release_steps")
        return [InputParam(name, type_hint=torch.Tensor, description=name) for name in names]

    def __call__(self, components, block_state, i, t):
        scheduler, timesteps = components.scheduler, t[None].repeat(len(block_state.latents))
        if hasattr(scheduler, "add_noise"):
            noised = scheduler.add_noise(block_state.image_latents, block_state.noise, timesteps)
        else:
            noised = scheduler.scale_noise(block_state.image_latents, timesteps, block_state.noise)
        block_state.latents = torch.where(i < block_state.release_steps, noised, block_state.latents)
        return components, block_state


def shape_of(block: ModularPipelineBlocks) -> tuple:
    """What a tree of blocks consists of."""
    return type(block), tuple((name, shape_of(child)) for name, child in block.sub_blocks.items())
