"""Trains the still-life checkpoint and its judge from nothing but the renderer.

    python -m modular_diffdiff.still_life.train WORK_DIR

Every stage keeps its state in WORK_DIR and can be killed at any point: the same command goes on from the last
checkpoint, and as each step draws from a generator seeded by its stage and number, it ends where an unbroken run ends.
"""

from __future__ import annotations

import argparse
import math
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, StableDiffusionXLPipeline
from diffusers.models.attention_processor import AttnProcessor
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm.auto import tqdm

from . import CHECKPOINT
from .judge import LABELS, SEEN, WEIGHTS, Judge, Reading, shrink
from .models import build_scheduler, build_text_encoders, build_tokenizer, build_unet, build_vae
from .scene import BACKGROUNDS, COLOURS, KINDS, SIZE, Item, Scene, render


SAVE_EVERY = 200
PAIRS = 0.2  # the share of scenes with two objects
CROP = 128  # of what the autoencoder learns from, in pixels
# SDXL's guidance needs a model that also knows no prompt at all (zeros) and an empty one.
NO_PROMPT, EMPTY_PROMPT = 0.1, 0.03


def cached(path: Path, name: str, rows: Iterable[np.ndarray], count: int) -> np.ndarray:
    """`count` arrays of one shape, computed once and mapped from `path`."""
    if not path.exists():
        partial = path.with_suffix(".partial.npy")
        whole = None
        for index, row in enumerate(tqdm(rows, name, count)):
            if whole is None:
                whole = np.lib.format.open_memmap(partial, "w+", row.dtype, (count, *row.shape))
            whole[index] = row
        whole.flush()
        os.replace(partial, path)
    return np.load(path, mmap_mode="r")


def in_parallel(function: Callable[[int], np.ndarray], count: int) -> Iterator[np.ndarray]:
    """`function` of the seeds 0 to count - 1, in order, on all cores."""
    with get_context("spawn").Pool(initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield from pool.imap(function, range(count), chunksize=32)


def training_scene(seed: int) -> Scene:
    return Scene.random(seed, PAIRS)


def _render_seed(seed: int, size: int) -> np.ndarray:
    return render(training_scene(seed), size)


def render_scenes(work: Path, count: int, size: int) -> np.ndarray:
    """(count, size, size, 3) uint8 scenes of the seeds 0 to count - 1, cached in `work`."""
    path = work / f"scenes-{count}-{size}.npy"
    return cached(path, "scenes", in_parallel(partial(_render_seed, size=size), count), count)


def original_of(seed: int) -> Scene:
    """What an edit towards the training scene of this seed could start from.

    Another kind in another colour stands in the place of its first object; ground, light and all else are the same.
    """
    scene, rng = training_scene(seed), np.random.default_rng(seed)
    kind = rng.choice([kind for kind in KINDS if kind != scene.kind])
    colour = rng.choice([colour for colour in COLOURS if colour != scene.colour])
    return replace(scene, kind=str(kind), colour=str(colour))


def _render_original(seed: int, size: int) -> np.ndarray:
    return render(original_of(seed), size)


def render_originals(work: Path, count: int, size: int) -> np.ndarray:
    """(count, size, size, 3) uint8 pictures of `original_of` the seeds 0 to count - 1, cached in `work`."""
    path = work / f"originals-{count}-{size}.npy"
    return cached(path, "originals", in_parallel(partial(_render_original, size=size), count), count)


def scene_pixels(scenes: np.ndarray, indices: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(scenes[indices.numpy()]).permute(0, 3, 1, 2).float() / 127.5 - 1


def _crops(scenes: np.ndarray, count: int, generator: torch.Generator) -> torch.Tensor:
    """(count, 3, CROP, CROP) in [-1, 1]: a part of a scene each, mirrored in every other case."""
    last = scenes.shape[1] - CROP
    indices = torch.randint(len(scenes), (count,), generator=generator).tolist()
    corners = torch.randint(last + 1, (count, 2), generator=generator).tolist()
    parts = [scenes[i, top : top + CROP, left : left + CROP] for i, (top, left) in zip(indices, corners, strict=True)]
    pixels = torch.from_numpy(np.stack(parts)).permute(0, 3, 1, 2).float() / 127.5 - 1
    mirrored = torch.rand(count, 1, 1, 1, generator=generator) < 0.5
    return torch.where(mirrored, pixels.flip(3), pixels)


def computes_in_bfloat16(device: str) -> bool:
    """Whether autocast to bfloat16 pays: a CPU without instructions for it is 20 times faster in float32."""
    return device != "cpu" or torch.cpu.get_capabilities().get("avx512_bf16", False)


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for matrices and convolutions, AdamW for all else, under one schedule."""

    def __init__(self, weights: list[nn.Parameter], others: list[nn.Parameter], lr: float, lr_of_others: float):
        self.weights = weights
        # Muon takes matrices: of a convolution, a row is an output channel
        self.matrices = [nn.Parameter(weight.data.flatten(1)) for weight in weights]
        self.parts = []
        if others:
            self.parts.append(torch.optim.AdamW(others, lr_of_others, betas=(0.9, 0.99), weight_decay=0.01))
        if weights:
            self.parts.append(torch.optim.Muon(self.matrices, lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"))
        super().__init__(self._groups(), {})

    def _groups(self) -> list[dict]:
        return [group for part in self.parts for group in part.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        for weight in self.weights:
            weight.grad = None

    def step(self, closure=None) -> None:
        for weight, matrix in zip(self.weights, self.matrices, strict=True):
            matrix.grad = None if weight.grad is None else weight.grad.flatten(1)
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = self._groups()  # loading has made new ones


def muon_and_adamw(modules: nn.Module, lr: float) -> MuonAndAdamW:
    """Muon at `lr` for the weights of blocks and layers, AdamW at half of it for all else."""
    named = [(name, p) for name, p in modules.named_parameters() if p.requires_grad]
    inner = {name for name, p in named if p.ndim > 1 and any(part in name for part in ("block", "layers", "refiner"))}
    weights, others = ([p for name, p in named if (name in inner) == wanted] for wanted in (True, False))
    return MuonAndAdamW(weights, others, lr, lr / 2)


def fit(
    name: str,
    modules: nn.ModuleDict,
    loss: Callable[[torch.Generator], torch.Tensor],
    steps: int,
    lr: float,
    work: Path,
    ema_decay: float,
) -> None:
    """Minimises `loss` over the modules' parameters and leaves their moving average in them, rounded to float16.

    Args:
        name: Of the stage: its state is kept in `work`/name.pt until it has ended, its weights in name.safetensors
            from then on.
        loss: Takes a CPU generator, seeded by the stage and the step, from which it must draw everything random.
        lr: The highest learning rate, of Muon; that of AdamW is half of it.
    """
    ended = work / f"{name}.safetensors"
    if not ended.exists():
        _minimise(name, modules, loss, steps, lr, work / f"{name}.pt", ema_decay)
        save_file({key: weight.half() for key, weight in modules.state_dict().items()}, ended)
        (work / f"{name}.pt").unlink()
    modules.load_state_dict(load_file(ended))


def _minimise(
    name: str,
    modules: nn.ModuleDict,
    loss: Callable[[torch.Generator], torch.Tensor],
    steps: int,
    lr: float,
    path: Path,
    ema_decay: float,
) -> None:
    parameters = [p for p in modules.parameters() if p.requires_grad]
    optimizer = muon_and_adamw(modules, lr)
    schedule = get_cosine_schedule_with_warmup(optimizer, min(200, steps // 10), steps)
    average = EMAModel(parameters, decay=ema_decay, use_ema_warmup=True, power=0.75)
    parts = {"modules": modules, "optimizer": optimizer, "schedule": schedule, "average": average}
    start = 0
    if path.exists():
        state = torch.load(path, map_location="cpu")
        start = state.pop("step")
        for key, part in parts.items():
            part.load_state_dict(state[key])
    average.to(parameters[0].device)

    def save(step: int) -> None:
        torch.save({"step": step} | {key: part.state_dict() for key, part in parts.items()}, f"{path}.partial")
        os.replace(f"{path}.partial", path)

    device = parameters[0].device.type
    mixed = computes_in_bfloat16(device)
    smooth = None
    with tqdm(range(start, steps), name, initial=start, total=steps, miniters=20) as bar:
        for step in bar:
            with torch.autocast(device, torch.bfloat16, enabled=mixed):
                value = loss(torch.Generator().manual_seed(zlib.crc32(f"{name} {step}".encode())))
            optimizer.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            average.step(parameters)
            smooth = value.item() if smooth is None else 0.98 * smooth + 0.02 * value.item()
            bar.set_postfix(loss=f"{smooth:.4f}", refresh=False)
            if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
                save(step + 1)
    average.copy_to(parameters)


def _join(first: torch.Tensor, second: torch.Tensor, share: float, axis: int) -> torch.Tensor:
    """One part of `first`, `share` of its side, and the rest of `second`."""
    cut = round(share * first.shape[axis])
    return torch.cat([first.narrow(axis, 0, cut), second.narrow(axis, cut, first.shape[axis] - cut)], axis)


def train_vae(scenes: np.ndarray, work: Path, device: str, steps: int, batch: int = 16):
    """An `AutoencoderKL`, trained on parts of scenes; the scale of its latents is left to `normalize_latents`.

    Every other step joins the latents of two parts, as edits do, and asks for the two pictures joined in the same
    place: so a part of a picture hardly depends on the rest of it.
    """
    vae = build_vae().to(device)

    def loss(generator: torch.Generator) -> torch.Tensor:
        pixels = _crops(scenes, batch, generator).to(device)
        posterior = vae.encode(pixels).latent_dist
        drawn = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator).to(device)
        joined, axis = torch.randint(2, (2,), generator=generator).tolist()
        share = torch.randint(4, 13, (1,), generator=generator).item() / 16
        if joined:
            pixels, drawn = (_join(whole, whole.roll(1, 0), share, 2 + axis) for whole in (pixels, drawn))
        error = vae.decode(drawn).sample.float() - pixels
        outlines = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        divergence = posterior.kl().mean() / posterior.mean[0].numel()
        return error.abs().mean() + error.square().mean() + 0.5 * outlines + 1e-4 * divergence

    fit("vae", nn.ModuleDict({"vae": vae}), loss, steps, 3e-3, work, ema_decay=0.995)
    return vae.eval().requires_grad_(False)


@torch.no_grad()
def encode(vae, scenes: np.ndarray, path: Path) -> torch.Tensor:
    """(count, 4, H, W) posterior means of all scenes, cached in `path`."""
    if not path.exists():
        device = next(vae.parameters()).device
        batches = tqdm(torch.arange(len(scenes)).split(64), "latents")
        latents = torch.cat([vae.encode(scene_pixels(scenes, i).to(device)).latent_dist.mean.cpu() for i in batches])
        torch.save(latents, f"{path}.partial")
        os.replace(f"{path}.partial", path)
    return torch.load(path)


@torch.no_grad()
def normalize_latents(vae, latents: torch.Tensor) -> torch.Tensor:
    """Moves the latents' mean and spread into the 1 x 1 convolutions around them.

    Returns:
        The latents in the new scale, times the scaling factor: mean 0 and variance 1 a channel.
    """
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    gain = 1 / (std * vae.config.scaling_factor)
    channels = len(mean)
    device = vae.quant_conv.weight.device
    m, g = mean.to(device), gain.to(device)

    vae.quant_conv.weight[:channels] *= g[:, None, None, None]
    vae.quant_conv.bias[:channels] = (vae.quant_conv.bias[:channels] - m) * g
    vae.quant_conv.bias[channels:] += 2 * g.log()
    vae.post_quant_conv.bias += vae.post_quant_conv.weight[:, :, 0, 0] @ m
    vae.post_quant_conv.weight /= g[None, :, None, None]
    return (latents - mean[:, None, None]) / std[:, None, None]


_FRAMES = ("a photo of", "a picture of", "a painting of", "a render of", "a still life with")


def _words(item: Item, rng: np.random.Generator, left_open: float) -> str:
    colour = item.colour if rng.random() >= left_open else ""
    kind = item.kind if rng.random() >= left_open else str(rng.choice(["object", "still life", "something"]))
    words = f"{colour} {kind}".strip()
    return f"{'an' if words[0] in 'aeio' else 'a'} {words}"


def caption(scene: Scene, rng: np.random.Generator, left_open: float = 0.08) -> str:
    """The scene in words as people vary them: parts left open, other words around them, or nothing at all.

    Args:
        left_open: How often an object's colour is not said, and how often its kind is not.
    """
    if rng.random() < EMPTY_PROMPT:
        return ""
    words = " and ".join(_words(item, rng, left_open) for item in scene.items)
    if rng.random() < 0.85:
        words += f" on {BACKGROUNDS[scene.background]}"
    if rng.random() < 0.2:
        words = f"{rng.choice(_FRAMES)} {words}"
    if rng.random() < 0.1:
        strangers = ["".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), rng.integers(2, 8))) for _ in range(2)]
        words += ", " + " ".join(strangers)
    return words


@dataclass(frozen=True)
class Noised:
    """A batch on its way: what a denoiser is given, and the velocity (B, 4, H, W) that it should predict.

    Attributes:
        inputs: The arguments of a UNet's `forward`, which a ControlNet takes too.
        counts: (H, W), where the prediction matters.
    """

    inputs: dict[str, Any]
    velocity: torch.Tensor
    counts: torch.Tensor

    def loss(self, predicted: torch.Tensor) -> torch.Tensor:
        return (predicted.float() - self.velocity)[..., self.counts].square().mean()


def _draw_part(shape: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    """(H, W): all of a picture in every other case, else what lies on one side of a line across its middle half."""
    counts = torch.ones(shape, dtype=torch.bool)
    partly, axis, side = torch.randint(2, (3,), generator=generator).tolist()
    length = shape[axis]
    cut = torch.randint(length // 4, 3 * length // 4 + 1, (1,), generator=generator).item()
    if partly:
        away = (0, cut) if side else (cut, length - cut)
        counts.narrow(axis, *away).fill_(False)
    return counts


def noise_latents(
    x0: torch.Tensor,
    originals: torch.Tensor | None,
    captions: list[str],
    tokenizer,
    text_encoder,
    text_encoder_2,
    generator: torch.Generator,
) -> Noised:
    """Noises latents (B, 4, H, W) at random timesteps, and encodes their captions, some of them as no prompt.

    In every other case a part of the originals, if there are any, stands beside what counts, as it does in an edit. A
    model that has only seen whole scenes goes on with what stands there, whatever the prompt says.
    """
    counts = torch.ones(x0.shape[2:], dtype=torch.bool)
    if originals is not None:
        counts = _draw_part(x0.shape[2:], generator)
        x0 = torch.where(counts, x0, originals)
    noising = DDPMScheduler.from_config(build_scheduler().config)
    device = text_encoder.device
    tokens = tokenizer(
        captions, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    ).input_ids.to(device)
    batch = len(captions)
    noise = torch.randn(x0.shape, generator=generator).to(device)
    timesteps = torch.randint(noising.config.num_train_timesteps, (batch,), generator=generator).to(device)
    prompted = (torch.rand(batch, generator=generator) >= NO_PROMPT).to(device)
    # original size, crop and target size; scenes have no resolution, so their size must not matter
    sizes = torch.randint(64, 1100, (batch, 2), generator=generator)
    time_ids = torch.cat([sizes, torch.zeros_like(sizes), sizes], 1).to(device)

    x0 = x0.to(device)
    first = text_encoder(tokens, output_hidden_states=True)
    second = text_encoder_2(tokens, output_hidden_states=True)
    prompt_embeds = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1)
    inputs = {
        "sample": noising.add_noise(x0, noise, timesteps),
        "timestep": timesteps,
        "encoder_hidden_states": prompt_embeds * prompted[:, None, None],
        "added_cond_kwargs": {"text_embeds": second.text_embeds * prompted[:, None], "time_ids": time_ids},
    }
    return Noised(inputs, noising.get_velocity(x0, noise, timesteps), counts.to(device))


def draw_rng(generator: torch.Generator) -> np.random.Generator:
    """A NumPy generator that follows from torch's."""
    return np.random.default_rng(torch.randint(2**31, (1,), generator=generator).item())


def train_unet(latents: torch.Tensor, originals: torch.Tensor, work: Path, device: str, cycles: list[int], batch: int):
    """The denoiser and both text encoders, trained together on captioned latents (count, 4, H, W) and their originals.

    Args:
        cycles: The steps of each cycle, which begins at half the learning rate of the one before.
        batch: Latents a step; the learning rate grows with its square root (Malladi et al., arXiv 2205.10287).
    """
    lr = 3e-3 * math.sqrt(batch / 24)
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    text_encoder, text_encoder_2 = build_text_encoders(tokenizer)
    unet = build_unet()
    unet.set_attn_processor(AttnProcessor())  # its backward pass is the fastest on a CPU
    modules = nn.ModuleDict({"text_encoder": text_encoder, "text_encoder_2": text_encoder_2, "unet": unet}).to(device)
    scenes = [training_scene(seed) for seed in range(len(latents))]

    def loss(generator: torch.Generator) -> torch.Tensor:
        indices = torch.randint(len(latents), (batch,), generator=generator)
        rng = draw_rng(generator)
        captions = [caption(scenes[i], rng) for i in indices]
        pictures = latents[indices], originals[indices]
        noised = noise_latents(*pictures, captions, tokenizer, text_encoder, text_encoder_2, generator)
        return noised.loss(unet(**noised.inputs).sample)

    for cycle, steps in enumerate(cycles):
        fit(f"unet-{cycle}", modules, loss, steps, lr / 2**cycle, work, ema_decay=0.998)
    unet.set_default_attn_processor()
    return tokenizer, text_encoder, text_encoder_2, unet


def _shown(scene: Scene, generator: torch.Generator) -> tuple[slice, Item]:
    """Which columns (of SEEN) the judge may look at, and what it should see: of two objects, one at a time."""
    half = SEEN // 2
    side, cut = (torch.randint(*ends, (1,), generator=generator).item() for ends in ((0, 6), (half - 16, half + 16)))
    if scene.beside is not None:
        return (slice(0, half), scene.items[0]) if side < 3 else (slice(half, SEEN), scene.items[1])
    return {0: slice(cut, SEEN), 1: slice(0, cut)}.get(side, slice(0, SEEN)), scene.items[0]


def train_judge(scenes: np.ndarray, work: Path, device: str, steps: int, batch: int = 64) -> Judge:
    """The judge, on whole pictures and on parts of them, sharp and soft ones."""
    torch.manual_seed(0)
    judge = Judge().to(device)
    described = [training_scene(seed) for seed in range(len(scenes))]

    def loss(generator: torch.Generator) -> torch.Tensor:
        indices = torch.randint(len(scenes), (batch,), generator=generator)
        pixels = shrink(scene_pixels(scenes, indices))
        soft = F.interpolate(F.avg_pool2d(pixels, 2), scale_factor=2, mode="bilinear")
        pixels = torch.lerp(pixels, soft, torch.rand(batch, 1, 1, 1, generator=generator))
        loudness = 0.05 * torch.rand(batch, 1, 1, 1, generator=generator)
        pixels += loudness * torch.randn(pixels.shape, generator=generator)
        visible, expected = torch.zeros(batch, 1, SEEN, SEEN), []
        for k, index in enumerate(indices.tolist()):
            columns, item = _shown(described[index], generator)
            visible[k, ..., columns] = 1
            expected.append(Reading(item.kind, item.colour, described[index].background))
        answers = judge(pixels.to(device), visible.to(device))
        targets = {
            name: torch.tensor([labels.index(getattr(reading, name)) for reading in expected], device=device)
            for name, labels in LABELS.items()
        }
        return sum(F.cross_entropy(answers[name].float(), targets[name]) for name in LABELS)

    fit("judge", nn.ModuleDict({"judge": judge}), loss, steps, 4e-3, work, ema_decay=0.995)
    return judge.eval()


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for scenes and checkpoints; the same folder resumes")
    parser.add_argument(
        "--out", type=Path, default=CHECKPOINT, help="where the pipeline is saved (default: %(default)s)"
    )
    parser.add_argument(
        "--judge-out", type=Path, default=WEIGHTS, help="where the judge is saved (default: %(default)s)"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--scenes", type=int, default=8_000)
    parser.add_argument("--vae-steps", type=int, default=2_200)
    parser.add_argument("--judge-steps", type=int, default=1_200)
    parser.add_argument("--unet-steps", type=int, nargs="+", default=[2_700, 1_500, 700], help="of each cycle")
    parser.add_argument(
        "--unet-batch", type=int, default=24, help="scenes a step, in cycles that have not ended (default: %(default)s)"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = _arguments(arguments)
    work, device = options.work, options.device
    work.mkdir(parents=True, exist_ok=True)
    scenes = render_scenes(work, options.scenes, SIZE)
    torch.manual_seed(0)
    vae = train_vae(scenes, work, device, options.vae_steps)
    judge = train_judge(scenes, work, device, options.judge_steps).half().cpu()
    save_file(judge.state_dict(), options.judge_out)
    latents = normalize_latents(vae, encode(vae, scenes, work / "latents.pt"))
    originals = encode(vae, render_originals(work, options.scenes, SIZE), work / "latents-of-originals.pt")
    originals *= vae.config.scaling_factor
    tokenizer, text_encoder, text_encoder_2, unet = train_unet(
        latents, originals, work, device, options.unet_steps, options.unet_batch
    )
    pipeline = StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=text_encoder,
        text_encoder_2=text_encoder_2,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=build_scheduler(),
    )
    pipeline.to("cpu", torch.float16).save_pretrained(options.out)


if __name__ == "__main__":
    main()
