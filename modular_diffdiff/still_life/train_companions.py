"""Trains what steers the still-life checkpoint: ControlNet, ControlNet-Union, image encoder and IP-Adapter.

    python -m modular_diffdiff.still_life.train_companions WORK_DIR

The base checkpoint is read and stays as it is. Stages resume as those of `train` do, and share its scenes if WORK_DIR
is the same.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, StableDiffusionXLPipeline
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import save_file
from torch import nn

from . import CHECKPOINT, COMPANIONS, IP_ADAPTER_NAME
from .controls import CONTROL_TYPES, edge_masks
from .judge import LABELS
from .models import (
    add_ip_adapter,
    build_controlnet,
    build_controlnet_union,
    build_feature_extractor,
    build_image_encoder,
    ip_adapter_weights,
)
from .scene import COLOURS, KINDS, Scene, depth, render
from .train import (
    Noised,
    cached,
    caption,
    draw_rng,
    encode,
    fit,
    in_parallel,
    noise_latents,
    render_originals,
    render_scenes,
    training_scene,
)


# Half of what is said about a scene is left to the control image, or to the image prompt.
LEFT_OPEN = 0.5
NO_IMAGE = 0.1
# A scale of 1 is to be enough for a part of a picture, whose rest speaks for something else.
VALUE_GAIN = 1.2


class Base:
    """The base checkpoint, frozen, and the latents (count, 4, H, W) that it gives scenes and their originals."""

    def __init__(self, scenes: np.ndarray, originals: np.ndarray, work: Path, device: str):
        pipeline = StableDiffusionXLPipeline.from_pretrained(CHECKPOINT, torch_dtype=torch.float32).to(device)
        for name in ("vae", "text_encoder", "text_encoder_2", "unet"):
            getattr(pipeline, name).requires_grad_(False)
        self.unet, self.device = pipeline.unet, device
        self.unet.set_attn_processor(AttnProcessor())  # its backward pass is the fastest on a CPU
        self.text = pipeline.tokenizer, pipeline.text_encoder, pipeline.text_encoder_2
        scale = pipeline.vae.config.scaling_factor
        self.latents = encode(pipeline.vae, scenes, work / "latents-of-checkpoint.pt") * scale
        self.originals = encode(pipeline.vae, originals, work / "originals-of-checkpoint.pt") * scale
        self.scenes = [training_scene(seed) for seed in range(len(scenes))]

    def draw(
        self, generator: torch.Generator, batch: int, among: torch.Tensor | None = None, left_open: float = LEFT_OPEN
    ) -> tuple[torch.Tensor, list[str], np.random.Generator]:
        """Indices (batch,) of scenes, their captions, and a generator for what is to be drawn yet.

        Args:
            among: The indices to choose from; all by default.
            left_open: How much the captions leave open, as in `caption`; by default much.
        """
        count = len(self.scenes) if among is None else len(among)
        indices = torch.randint(count, (batch,), generator=generator)
        if among is not None:
            indices = among[indices]
        rng = draw_rng(generator)
        return indices, [caption(self.scenes[i], rng, left_open) for i in indices], rng

    def noise(self, indices: torch.Tensor, captions: list[str], generator: torch.Generator) -> Noised:
        return noise_latents(self.latents[indices], self.originals[indices], captions, *self.text, generator)

    def noise_whole(self, indices: torch.Tensor, captions: list[str], generator: torch.Generator) -> Noised:
        """The same for whole scenes, beside which no original stands."""
        return noise_latents(self.latents[indices], None, captions, *self.text, generator)

    def steered_loss(self, noised: Noised, down: list[torch.Tensor], middle: torch.Tensor) -> torch.Tensor:
        """The UNet's, with a ControlNet's residuals added to its down and middle blocks."""
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        return noised.loss(self.unet(**noised.inputs, **residuals).sample)


def alone(scenes: list[Scene]) -> torch.Tensor:
    """The indices of those with one object: what an image prompt can stand for."""
    return torch.tensor([index for index, scene in enumerate(scenes) if scene.beside is None])


def _controls_of_seed(seed: int, size: int) -> np.ndarray:
    scene = training_scene(seed)
    pictures = np.stack([render(scene, size), render(replace(scene, background="plain"), size)])
    return np.concatenate([255 * edge_masks(pictures).astype(np.uint8), depth(scene, size)[None]])


def render_controls(work: Path, count: int, size: int) -> np.ndarray:
    """(count, 3, size, size) uint8: each scene's edges, the edges of its objects alone, and its depth."""
    path = work / f"controls-{count}-{size}.npy"
    return cached(path, "controls", in_parallel(partial(_controls_of_seed, size=size), count), count)


def _draw_controls(controls: np.ndarray, indices: torch.Tensor, rng: np.random.Generator) -> list[torch.Tensor]:
    """Edges and depth, each (B, 3, H, W) in [0, 1]; the edges of every other scene are its object's alone."""
    with_ground = rng.random(len(indices)) < 0.5
    edges = controls[indices.numpy(), np.where(with_ground, 0, 1)]
    chosen = edges, controls[indices.numpy(), 2]
    return [torch.from_numpy(control)[:, None].expand(-1, 3, -1, -1) / 255 for control in chosen]


def train_controlnet(base: Base, controls: np.ndarray, work: Path, steps: int, batch: int):
    """A ControlNet on edges."""
    torch.manual_seed(0)
    controlnet = build_controlnet(base.unet).to(base.device).requires_grad_(True)
    controlnet.set_attn_processor(AttnProcessor())

    def loss(generator: torch.Generator) -> torch.Tensor:
        indices, captions, rng = base.draw(generator, batch)
        edges, _ = _draw_controls(controls, indices, rng)
        noised = base.noise(indices, captions, generator)
        down, middle = controlnet(**noised.inputs, controlnet_cond=edges.to(base.device), return_dict=False)
        return base.steered_loss(noised, down, middle)

    fit("controlnet", nn.ModuleDict({"controlnet": controlnet}), loss, steps, 2e-3, work, ema_decay=0.998)
    controlnet.set_default_attn_processor()
    return controlnet


def train_controlnet_union(base: Base, controlnet, controls: np.ndarray, work: Path, steps: int, batch: int):
    """A ControlNet-Union that goes on from the ControlNet: on edges, on depth, and on both at once."""
    torch.manual_seed(0)
    union = build_controlnet_union(controlnet).to(base.device).requires_grad_(True)
    union.set_attn_processor(AttnProcessor())

    def loss(generator: torch.Generator) -> torch.Tensor:
        indices, captions, rng = base.draw(generator, batch)
        images = _draw_controls(controls, indices, rng)
        modes = [[0], [1], [0, 1]][rng.choice(3, p=[0.35, 0.45, 0.2])]
        given = torch.zeros(batch, len(CONTROL_TYPES), device=base.device)
        given[:, modes] = 1
        noised = base.noise(indices, captions, generator)
        down, middle = union(
            **noised.inputs,
            controlnet_cond=[images[mode].to(base.device) for mode in modes],
            control_type=given,
            control_type_idx=modes,
            return_dict=False,
        )
        return base.steered_loss(noised, down, middle)

    fit("controlnet_union", nn.ModuleDict({"union": union}), loss, steps, 2e-3, work, ema_decay=0.998)
    union.set_default_attn_processor()
    return union


def extract_features(feature_extractor, scenes: np.ndarray, path: Path) -> np.ndarray:
    """(count, 3, 64, 64) float16: the scenes as the image encoder takes them."""

    def features() -> Iterator[np.ndarray]:
        for scene in scenes:
            yield feature_extractor(PIL.Image.fromarray(scene), return_tensors="np").pixel_values[0].astype(np.float16)

    return cached(path, "features", features(), len(scenes))


def train_image_encoder(features: np.ndarray, work: Path, device: str, steps: int, batch: int = 128):
    """CLIP's image encoder, trained to name what the judge names; a linear layer a question is thrown away."""
    torch.manual_seed(0)
    encoder = build_image_encoder().to(device)
    heads = {name: nn.Linear(encoder.config.projection_dim, len(labels)) for name, labels in LABELS.items()}
    heads = nn.ModuleDict(heads).to(device)
    scenes = [training_scene(seed) for seed in range(len(features))]
    singles = alone(scenes)
    targets = {
        name: torch.tensor([labels.index(getattr(scene, name)) for scene in scenes]) for name, labels in LABELS.items()
    }

    def loss(generator: torch.Generator) -> torch.Tensor:
        indices = singles[torch.randint(len(singles), (batch,), generator=generator)]
        pixels = torch.from_numpy(features[indices.numpy()]).float()
        pixels += 0.1 * torch.randn(pixels.shape, generator=generator)
        embeds = encoder(pixels.to(device)).image_embeds
        return sum(F.cross_entropy(heads[name](embeds).float(), targets[name][indices].to(device)) for name in LABELS)

    fit("image_encoder", nn.ModuleDict({"encoder": encoder, "heads": heads}), loss, steps, 2e-3, work, ema_decay=0.995)
    return encoder.eval().requires_grad_(False)


class ImagePrompts:
    """Finds image prompts for captions."""

    def __init__(self, scenes: list[Scene]):
        self.scenes = scenes
        self.of = {(kind, colour): [] for kind in KINDS for colour in COLOURS}
        for index in alone(scenes).tolist():
            self.of[scenes[index].kind, scenes[index].colour].append(index)

    def choose(self, index: int, words: str, rng: np.random.Generator) -> int:
        """A scene of the same colour, and of the same kind too if the caption leaves it open or in every other case.

        So the text decides on the kind where it says one, and the image prompt on what the text does not say.
        """
        scene = self.scenes[index]
        shared = scene.kind not in words.split() or rng.random() < 0.5
        kind = scene.kind if shared else str(rng.choice(KINDS))
        return int(rng.choice(self.of[kind, scene.colour] or [index]))


def train_ip_adapter(base: Base, image_embeds: torch.Tensor, work: Path, steps: int, batch: int) -> nn.ModuleDict:
    """An IP-Adapter on image embeddings (count, 128) of all scenes; it fills in what the text leaves open."""
    torch.manual_seed(0)
    adapter = add_ip_adapter(base.unet, image_embeds.shape[1]).to(base.device)
    prompts, singles = ImagePrompts(base.scenes), alone(base.scenes)

    def loss(generator: torch.Generator) -> torch.Tensor:
        indices, captions, rng = base.draw(generator, batch, singles)
        chosen = [prompts.choose(i, words, rng) for i, words in zip(indices.tolist(), captions, strict=True)]
        shown = torch.from_numpy(rng.random((batch, 1)) >= NO_IMAGE)
        noised = base.noise(indices, captions, generator)
        noised.inputs["added_cond_kwargs"]["image_embeds"] = [(image_embeds[chosen] * shown)[:, None].to(base.device)]
        return noised.loss(base.unet(**noised.inputs).sample)

    fit("ip_adapter", adapter, loss, steps, 2e-3, work, ema_decay=0.998)
    return adapter


@torch.no_grad()
def embed(encoder, features: np.ndarray) -> torch.Tensor:
    """(count, 128) image embeddings."""
    parts = torch.from_numpy(np.array(features)).split(256)
    return torch.cat([encoder(part.float().to(encoder.device)).image_embeds.cpu() for part in parts])


def begin_stage(
    description: str, out: Path, steps: int, arguments: list[str] | None
) -> tuple[argparse.Namespace, np.ndarray, Base]:
    """What a script that trains one thing beside the base begins with: its options, the scenes, and the base.

    Args:
        out: Where the result is saved by default.
        steps: How many by default.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for scenes and checkpoints; the same folder resumes")
    parser.add_argument("--out", type=Path, default=out, help="where it is saved (default: %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--scenes", type=int, default=4_000)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--batch", type=int, default=24, help="scenes a step")
    options = parser.parse_args(arguments)
    for folder in (options.work, options.out.parent):
        folder.mkdir(parents=True, exist_ok=True)
    size = AutoencoderKL.load_config(CHECKPOINT, subfolder="vae")["sample_size"]
    scenes = render_scenes(options.work, options.scenes, size)
    originals = render_originals(options.work, options.scenes, size)
    return options, scenes, Base(scenes, originals, options.work, options.device)


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for scenes and checkpoints; the same folder resumes")
    parser.add_argument(
        "--out", type=Path, default=Path(COMPANIONS), help="where they are saved (default: %(default)s)"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--scenes", type=int, default=8_000)
    parser.add_argument("--image-encoder-steps", type=int, default=800)
    parser.add_argument("--controlnet-steps", type=int, default=800)
    parser.add_argument("--union-steps", type=int, default=450)
    parser.add_argument("--ip-adapter-steps", type=int, default=1_300)
    parser.add_argument("--batch", type=int, default=24, help="scenes a step, but for the image encoder")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = _arguments(arguments)
    work, out, device = options.work, options.out, options.device
    work.mkdir(parents=True, exist_ok=True)
    size = AutoencoderKL.load_config(CHECKPOINT, subfolder="vae")["sample_size"]
    scenes = render_scenes(work, options.scenes, size)
    controls = render_controls(work, options.scenes, size)
    base = Base(scenes, render_originals(work, options.scenes, size), work, device)

    controlnet = train_controlnet(base, controls, work, options.controlnet_steps, options.batch)
    controlnet.half().save_pretrained(out / "controlnet")
    union = train_controlnet_union(base, controlnet.float(), controls, work, options.union_steps, options.batch)
    union.half().save_pretrained(out / "controlnet_union")

    feature_extractor = build_feature_extractor()
    features = extract_features(feature_extractor, scenes, work / "features.npy")
    encoder = train_image_encoder(features, work, device, options.image_encoder_steps)
    image_embeds = embed(encoder, features)
    adapter = train_ip_adapter(base, image_embeds, work, options.ip_adapter_steps, options.batch)
    folder = out / "ip_adapter"
    encoder.half().save_pretrained(folder / "image_encoder")
    feature_extractor.save_pretrained(folder / "feature_extractor")
    weights = ip_adapter_weights(adapter.cpu())
    weights = {name: VALUE_GAIN * weight if "to_v_ip" in name else weight for name, weight in weights.items()}
    save_file({name: weight.half() for name, weight in weights.items()}, folder / IP_ADAPTER_NAME)


if __name__ == "__main__":
    main()
