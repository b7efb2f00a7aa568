"""Every image family of diffusers' modular pipelines that starts from an image, on tiny random parts: a row each."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    AutoencoderKLQwenImage21,
    CosmosTransformer3DModel,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2Transformer2DModel,
    Flux3Transformer2DModel,
    FluxTransformer2DModel,
    QwenImage21Transformer2DModel,
    QwenImageControlNetModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    ZImageTransformer2DModel,
)
from diffusers.models import AnimaTextConditioner
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from torch import nn
from transformers import (
    BatchFeature,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
)

from modular_diffdiff.still_life.models import build_tokenizer


WIDTH = 16  # of every text embedding
CHANNELS = 4  # of every latent
WORDS = ["a", "green", "blue", "red", "pear", "cup", "apple", "of", "with", "no", "blurry"]
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} {% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %} {% endfor %}"
)


# Text


def words_tokenizer(max_length: int = 64) -> PreTrainedTokenizerFast:
    """A token a word; what is no word of these tests is one token too."""
    specials = ["<pad>", "<unk>", "<|image_pad|>"]
    vocabulary = {word: index for index, word in enumerate([*specials, *WORDS])}
    words = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<|image_pad|>"],
        model_max_length=max_length,
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


class Output(tuple):
    """What a text encoder answers with, by index and by name."""

    hidden_states: tuple[torch.Tensor, ...]
    last_hidden_state: torch.Tensor


class Reader(nn.Module):
    """Stands in for a large language model: each token's state depends on those before it, and on the images."""

    def __init__(self, layers: int = 3):
        super().__init__()
        self.embed = nn.Embedding(len(WORDS) + 8, WIDTH)
        self.colour = nn.Linear(3, WIDTH)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(layers))
        self.model = nn.Module()
        self.model.norm = nn.Identity()

    @property
    def dtype(self) -> torch.dtype:
        return self.embed.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.embed.weight.device

    def forward(self, input_ids, attention_mask=None, pixel_values=None, image_grid_thw=None, **_) -> Output:
        state = self.embed(input_ids)
        if pixel_values is not None:
            pictures = self.colour(pixel_values.to(self.dtype)).chunk(len(state))  # those of one text lie together
            state = state + torch.stack([picture.mean(0) for picture in pictures])[:, None]
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        state = state * mask[..., None].to(state.dtype)
        states = [state]
        for layer in self.layers:
            state = torch.tanh(layer(state.cumsum(1) / 4 + state))
            states.append(state)
        states[-1] = self.model.norm(states[-1])
        output = Output((states[-1],))
        output.last_hidden_state, output.hidden_states = states[-1], tuple(states)
        return output


class WideReader(nn.Module):
    """Stands in for T5, as wide as is asked for."""

    def __init__(self, width: int):
        super().__init__()
        self.embed = nn.Embedding(len(WORDS) + 8, width)

    @property
    def dtype(self) -> torch.dtype:
        return self.embed.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.embed.weight.device

    def forward(self, input_ids, **_) -> tuple[torch.Tensor]:
        return (torch.tanh(self.embed(input_ids).cumsum(1)),)


class Processor:
    """Stands in for a processor of texts and images: words, and an image's mean colour."""

    def __init__(self, cell: int | None = None):
        self.tokenizer = words_tokenizer(256)
        self.cell = cell  # pixels that one image token stands for

    def apply_chat_template(self, messages, tokenize=True, **kwargs):
        text = self.tokenizer.apply_chat_template(messages, tokenize=False)
        return [self.tokenizer.encode(text)] if tokenize else text

    def __call__(self, text, images=None, padding=True, return_tensors="pt", **kwargs) -> BatchFeature:
        if images is not None:
            images = images if isinstance(images, list) else [images]
            if sum(one.count("<|image_pad|>") for one in text) != len(images):
                raise ValueError("a placeholder in the text for each image")
            if self.cell is not None:
                text = [self._spread(one, images[:: len(text)]) for one in text]
        features = dict(self.tokenizer(text, padding=padding, return_tensors=return_tensors, **kwargs))
        if images is not None:
            colours = [torch.tensor(image.convert("RGB").resize((1, 1)).getpixel((0, 0))) for image in images]
            features["pixel_values"] = torch.stack(colours) / 255
            features["image_grid_thw"] = torch.ones(len(images), 3)
        return BatchFeature(features)

    def _spread(self, text: str, images: list) -> str:
        for image in images:
            slots = (image.width // self.cell) * (image.height // self.cell)
            text = text.replace("<|image_pad|>", "<slot>" * slots, 1)
        return text.replace("<slot>", "<|image_pad|>")


@functools.cache
def clip(model_class: type, hidden_size: int = WIDTH) -> tuple:
    tokenizer = build_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=16,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return tokenizer, model_class(config).eval()


# Pictures


def image_autoencoder(autoencoder_class: type = AutoencoderKL, **config) -> nn.Module:
    """Factor 8, as in SD3, Flux, Flux2 and Z-Image."""
    return autoencoder_class(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=CHANNELS,
        **config,
    ).eval()


def shifted_autoencoder() -> nn.Module:
    return image_autoencoder(scaling_factor=0.3611, shift_factor=0.1159, force_upcast=False)


def video_autoencoder() -> nn.Module:
    """Factor 8, as in Qwen-Image and Anima."""
    return AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=CHANNELS,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.1, 0.9, 1.2, 1.0],
    ).eval()


def flow(**config) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(**config)


# Families


def sdxl() -> dict[str, Any]:
    tokenizer, encoder = clip(CLIPTextModelWithProjection)
    return {
        "tokenizer": tokenizer,
        "tokenizer_2": tokenizer,
        "text_encoder": clip(CLIPTextModel)[1],
        "text_encoder_2": encoder,
        "unet": UNet2DConditionModel(
            sample_size=8,
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"],
            up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"],
            block_out_channels=(16, 32),
            layers_per_block=1,
            attention_head_dim=(2, 4),
            norm_num_groups=8,
            cross_attention_dim=2 * WIDTH,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + WIDTH,
        ),
        "vae": image_autoencoder(scaling_factor=0.13025, force_upcast=False),
        "scheduler": EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="trailing"
        ),
    }


def sd3() -> dict[str, Any]:
    tokenizer, encoder = clip(CLIPTextModelWithProjection)
    return {
        "tokenizer": tokenizer,
        "tokenizer_2": tokenizer,
        "tokenizer_3": words_tokenizer(),
        "text_encoder": encoder,
        "text_encoder_2": encoder,
        "text_encoder_3": WideReader(2 * WIDTH),
        "transformer": SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=2 * WIDTH,
            caption_projection_dim=16,
            pooled_projection_dim=2 * WIDTH,
            pos_embed_max_size=32,
        ),
        "vae": shifted_autoencoder(),
        "scheduler": flow(shift=3.0),
    }


def flux(guidance_embeds: bool = True) -> dict[str, Any]:
    tokenizer, encoder = clip(CLIPTextModel)
    return {
        "tokenizer": tokenizer,
        "tokenizer_2": words_tokenizer(),
        "text_encoder": encoder,
        "text_encoder_2": WideReader(WIDTH),
        "transformer": FluxTransformer2DModel(
            in_channels=4 * CHANNELS,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=WIDTH,
            guidance_embeds=guidance_embeds,
            axes_dims_rope=(4, 4, 8),
        ),
        "vae": shifted_autoencoder(),
        "scheduler": flow(use_dynamic_shifting=True),
    }


def qwen_transformer() -> QwenImageTransformer2DModel:
    return QwenImageTransformer2DModel(
        in_channels=4 * CHANNELS,
        out_channels=CHANNELS,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
    )


def qwen() -> dict[str, Any]:
    transformer = qwen_transformer()
    names = ("in_channels", "out_channels", "attention_head_dim", "num_attention_heads")
    names += ("joint_attention_dim", "axes_dims_rope")
    controlnet = QwenImageControlNetModel(num_layers=1, **{name: transformer.config[name] for name in names})
    for parameter in controlnet.parameters():  # fresh ones say nothing
        if not parameter.any():
            nn.init.normal_(parameter, std=0.3)
    return {
        "tokenizer": words_tokenizer(1100),
        "text_encoder": Reader(),
        "transformer": transformer,
        "controlnet": controlnet,
        "vae": video_autoencoder(),
        "scheduler": flow(use_dynamic_shifting=True),
    }


def qwen_edit() -> dict[str, Any]:
    return {
        "processor": Processor(),
        "text_encoder": Reader(),
        "transformer": qwen_transformer(),
        "vae": video_autoencoder(),
        "scheduler": flow(use_dynamic_shifting=True),
    }


def qwen21() -> dict[str, Any]:
    return {
        "processor": Processor(cell=32),
        "text_encoder": Reader(),
        "transformer": QwenImage21Transformer2DModel(
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            context_in_dim=WIDTH,
            axes_dims_rope=(4, 4, 8),
        ),
        "vae": AutoencoderKLQwenImage21(
            base_dim=8,
            decoder_base_dim=8,
            z_dim=CHANNELS,
            dim_mult=[1, 1, 1, 1, 1],
            num_res_blocks=1,
            latents_mean=[0.1, -0.2, 0.3, 0.0],
            latents_std=[1.1, 0.9, 1.2, 1.0],
        ).eval(),
        "scheduler": flow(use_dynamic_shifting=True),
    }


def z_image() -> dict[str, Any]:
    return {
        "tokenizer": words_tokenizer(),
        "text_encoder": Reader(),
        "transformer": ZImageTransformer2DModel(
            in_channels=CHANNELS,
            dim=16,
            n_layers=1,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=WIDTH,
            axes_dims=[4, 2, 2],
            axes_lens=[128, 64, 64],
        ),
        "vae": shifted_autoencoder(),
        "scheduler": flow(shift=3.0),
    }


def anima() -> dict[str, Any]:
    return {
        "tokenizer": words_tokenizer(),
        "t5_tokenizer": words_tokenizer(),
        "text_encoder": Reader(),
        "text_conditioner": AnimaTextConditioner(
            source_dim=WIDTH,
            target_dim=WIDTH,
            model_dim=WIDTH,
            num_layers=1,
            num_attention_heads=2,
            target_vocab_size=64,
            min_sequence_length=8,
        ),
        "transformer": CosmosTransformer3DModel(
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=1,
            mlp_ratio=2,
            text_embed_dim=WIDTH,
            adaln_lora_dim=4,
            max_size=(4, 32, 32),
            patch_size=(1, 2, 2),
            rope_scale=(1.0, 1.0, 1.0),
            concat_padding_mask=False,  # with it, upstream needs torchvision
            extra_pos_embed_type=None,
        ),
        "vae": video_autoencoder(),
        "scheduler": flow(shift=3.0),
    }


def flux2(guidance_embeds: bool = True) -> dict[str, Any]:
    vae = image_autoencoder(AutoencoderKLFlux2)
    nn.init.normal_(vae.bn.running_mean, std=0.3)
    nn.init.uniform_(vae.bn.running_var, 0.5, 1.5)
    return {
        "tokenizer": words_tokenizer(),
        "text_encoder": Reader(),
        "transformer": Flux2Transformer2DModel(
            in_channels=4 * CHANNELS,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=3 * WIDTH,
            timestep_guidance_channels=16,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=guidance_embeds,
        ),
        "vae": vae,
        "scheduler": flow(use_dynamic_shifting=True),
    }


def flux3(flow_map: bool = False) -> dict[str, Any]:
    processor = Processor()
    return {
        "tokenizer": processor,
        "text_encoder": Reader(),
        "transformer": Flux3Transformer2DModel(
            in_channels=4 * CHANNELS,
            cond_in_channels=4 * CHANNELS,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=3 * WIDTH,
            timestep_channels=16,
            axes_dims_rope=(4, 4, 4, 4),
            flow_map=flow_map,
        ),
        "vae": flux2()["vae"],
        "scheduler": flow(shift=6.93),
    }


@dataclass(frozen=True)
class Family:
    """A row: what a test has to know of a family.

    Attributes:
        name: Of the row.
        upstream: Class of upstream's blocks.
        parts: Builds its tiny components.
        inputs: What its calls take here beside prompt and image.
        strength: Whether its image workflow has one; edit models have none.
        references: Whether a list of images is several references, and no batch.
        popped: Blocks that these tests do without.
        layout: Of the latents in its loop.
        patch: Latent elements that an image's sides are multiples of.
        guided: Whether a guider steers it; others are distilled, or have their guidance from `guidance_scale`.
    """

    name: str
    upstream: type
    parts: Callable[[], dict[str, Any]]
    inputs: dict[str, Any] = field(default_factory=dict)
    strength: bool = True
    references: bool = False
    guided: bool = True
    popped: tuple[str, ...] = ()
    layout: str = "tokens of 2 x 2"
    patch: int = 2

    def blocks(self):
        """Upstream's blocks."""
        blocks = self.upstream()
        for name in self.popped:
            blocks.sub_blocks.pop(name)
        return blocks

    def __str__(self) -> str:
        return self.name


LAYERS = {"text_encoder_out_layers": (1, 2, 3)}
SHORT = {"max_sequence_length": 16}
FAMILIES = {
    family.name: family
    for family in (
        Family("sdxl", diffusers.StableDiffusionXLAutoBlocks, sdxl, layout="grid", patch=1),
        Family("sd3", diffusers.StableDiffusion3AutoBlocks, sd3, layout="grid"),
        Family("flux", diffusers.FluxAutoBlocks, flux, inputs=SHORT, guided=False),
        Family("qwen", diffusers.QwenImageAutoBlocks, qwen),
        Family("z-image", diffusers.ZImageAutoBlocks, z_image, inputs=SHORT, layout="grid"),
        Family("anima", diffusers.AnimaAutoBlocks, anima, layout="grid with a frame axis"),
        Family(
            "flux-kontext",
            diffusers.FluxKontextAutoBlocks,
            flux,
            {"_auto_resize": False} | SHORT,
            strength=False,
            guided=False,
        ),
        Family("qwen-edit", diffusers.QwenImageEditAutoBlocks, qwen_edit, strength=False),
        Family(
            "qwen-edit-plus",
            diffusers.QwenImageEditPlusAutoBlocks,
            qwen_edit,
            strength=False,
            references=True,
        ),
        Family(
            "qwen21",
            diffusers.QwenImage21AutoBlocks,
            qwen21,
            {"output_resolution": 64},
            strength=False,
            references=True,
            layout="tokens of 1 x 1",
        ),
        Family(
            "qwen21-turbo",
            diffusers.QwenImage21TurboAutoBlocks,
            qwen21,
            {"output_resolution": 64},
            strength=False,
            references=True,
            layout="tokens of 1 x 1",
            guided=False,
        ),
        Family(
            "flux2",
            diffusers.Flux2AutoBlocks,
            flux2,
            LAYERS | SHORT,
            strength=False,
            references=True,
            layout="tokens of 1 x 1",
            guided=False,
        ),
        Family(
            "flux2-klein",
            diffusers.Flux2KleinAutoBlocks,
            functools.partial(flux2, guidance_embeds=False),
            LAYERS | SHORT,
            strength=False,
            references=True,
            layout="tokens of 1 x 1",
            guided=False,
        ),
        Family(
            "flux2-klein-base",
            diffusers.Flux2KleinBaseAutoBlocks,
            functools.partial(flux2, guidance_embeds=False),
            LAYERS | SHORT,
            strength=False,
            references=True,
            layout="tokens of 1 x 1",
        ),
        Family(
            "flux3",
            diffusers.Flux3AutoBlocks,
            flux3,
            LAYERS,
            strength=False,
            references=True,
            layout="tokens of 1 x 1",
            popped=("prompt_upsampler",),
        ),
        Family(
            "flux3-distilled",
            diffusers.Flux3DistilledAutoBlocks,
            functools.partial(flux3, flow_map=True),
            LAYERS,
            strength=False,
            references=True,
            layout="tokens of 1 x 1",
            guided=False,
            popped=("prompt_upsampler",),
        ),
    )
}


@functools.cache
def parts_of(name: str) -> dict[str, Any]:
    """The components of a family, random and always the same."""
    torch.manual_seed(0)
    parts = FAMILIES[name].parts()
    for part in parts.values():
        if isinstance(part, nn.Module):
            part.eval().requires_grad_(False)
    return parts


def denoiser_of(name: str) -> nn.Module:
    """The model that a family's loop asks."""
    return parts_of(name).get("transformer", parts_of(name).get("unet"))


# All other families of the installed diffusers, and why they are not opened: what such blocks do.
TEXT_ONLY, MUSIC, LAYERED = "takes no image", "makes music", "makes layers of an image"
PACKED = "packs the video into one sequence with what else it is given"
IN_CHUNKS = "makes videos in chunks, each of them by a loop inside one block"
FIRST_FRAME = "shows the model a first frame, which a map may change"
NEW_NOISE = "draws new noise in every step, so that there is no trajectory to follow"
NO_ENCODER = "decodes with a diffusion model, and may have no encoder for the original"
OWN_MASKS = "has masks of its own, which a branch of the model is shown"
NOT_OPENED = {
    "Cosmos3DistilledBlocks": PACKED,
    "Cosmos3OmniBlocks": PACKED,
    "EchoBlocks": NEW_NOISE,
    "ErnieImageAutoBlocks": TEXT_ONLY,
    "HeliosAutoBlocks": IN_CHUNKS,
    "HeliosPyramidAutoBlocks": IN_CHUNKS,
    "HeliosPyramidDistilledAutoBlocks": IN_CHUNKS,
    "Ideogram4AutoBlocks": TEXT_ONLY,
    "Krea2AutoBlocks": TEXT_ONLY,
    "Krea2TurboAutoBlocks": TEXT_ONLY,
    "LTX25AutoBlocks": NO_ENCODER,
    "MiniMaxH3Blocks": PACKED,
    "MiniMaxMusic3Blocks": MUSIC,
    "QwenImageLayeredAutoBlocks": LAYERED,
    "Wan22Image2VideoBlocks": FIRST_FRAME,
    "Wan22VaceBlocks": OWN_MASKS,
    "WanAnimate2Blocks": IN_CHUNKS,
    "WanAnimate2DistilledBlocks": IN_CHUNKS,
    "WanImage2VideoAutoBlocks": FIRST_FRAME,
}
