"""Distils the still-life checkpoint into a LoRA that draws in four steps and without guidance.

    python -m modular_diffdiff.still_life.train_lcm_lora WORK_DIR

Latent consistency distillation (Luo et al., arXiv 2310.04378 and 2311.05556): from any noise level, the model with the
LoRA is to predict what it predicts a little further down the path that the model without it takes, with guidance. The
base checkpoint stays as it is. The stage resumes as those of `train` do, and shares its scenes if WORK_DIR is the same.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import LCMScheduler, StableDiffusionXLPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model_state_dict
from torch import nn

from . import GUIDANCE_SCALE, LCM_LORA
from .models import build_scheduler
from .train import fit
from .train_companions import Base, begin_stage


RANK = 10
# The layers that the LoRA of the method's authors adapts.
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "time_emb_proj"]
TARGETS += ["conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv"]
# From a point of a path to the next: so many steps of DDIM, of so many training timesteps each. Fewer and longer links
# carry less of the model's own noise from one end of the path to the other.
LINK, STRIDE = 2, 50
HUBER = 0.001


class Schedule:
    """The noise levels of the checkpoint's schedule, and the sampler that a LoRA is made for.

    Notation: x = alpha * x0 + sigma * noise, and v = alpha * noise - sigma * x0.
    """

    def __init__(self, device: str):
        self.scheduler = LCMScheduler.from_config(build_scheduler().config)
        kept = self.scheduler.alphas_cumprod.to(device)
        self.alphas, self.sigmas = kept.sqrt(), (1 - kept).sqrt()

    def at(self, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """alpha and sigma, (B, 1, 1, 1) each, at timesteps (B,)."""
        return tuple(values[timesteps][:, None, None, None] for values in (self.alphas, self.sigmas))

    def clean(self, x: torch.Tensor, v: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """What a prediction takes for x0."""
        alpha, sigma = self.at(timesteps)
        return alpha * x - sigma * v

    def step(self, x: torch.Tensor, v: torch.Tensor, timesteps: torch.Tensor, to: torch.Tensor) -> torch.Tensor:
        """A step of DDIM, from `timesteps` down to `to`."""
        alpha, sigma = self.at(timesteps)
        next_alpha, next_sigma = self.at(to)
        return next_alpha * (alpha * x - sigma * v) + next_sigma * (sigma * x + alpha * v)

    def consistent(self, x: torch.Tensor, v: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """What `LCMScheduler` makes of a prediction: the end of the path, and at timestep 0 the input itself."""
        skip, out = self.scheduler.get_scalings_for_boundary_condition_discrete(timesteps[:, None, None, None])
        return skip * x + out * self.clean(x, v, timesteps)


def train_lcm_lora(base: Base, work: Path, steps: int, batch: int) -> dict[str, torch.Tensor]:
    """The weights of a LoRA, by their names in a UNet of diffusers."""
    torch.manual_seed(0)
    unet, schedule = base.unet, Schedule(base.device)
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS))

    @torch.no_grad()
    def guided(inputs: dict) -> torch.Tensor:
        """The prediction without the LoRA, with guidance."""
        unet.disable_adapters()
        predicted = unet(**inputs).sample.float()
        unprompted = dict(inputs, encoder_hidden_states=torch.zeros_like(inputs["encoder_hidden_states"]))
        added = inputs["added_cond_kwargs"]
        unprompted["added_cond_kwargs"] = added | {"text_embeds": torch.zeros_like(added["text_embeds"])}
        without = unet(**unprompted).sample.float()
        unet.enable_adapters()
        return without + GUIDANCE_SCALE * (predicted - without)

    def loss(generator: torch.Generator) -> torch.Tensor:
        indices, captions, _ = base.draw(generator, batch, left_open=0.0)
        inputs = base.noise(indices, captions, generator).inputs
        x, timesteps = inputs["sample"], inputs["timestep"]
        with torch.no_grad():
            ahead = inputs
            for _ in range(LINK):
                further = (ahead["timestep"] - STRIDE).clamp(min=0)
                next_x = schedule.step(ahead["sample"], guided(ahead), ahead["timestep"], further)
                ahead = ahead | {"sample": next_x, "timestep": further}
            target = schedule.consistent(next_x, unet(**ahead).sample.float(), further)
        predicted = schedule.consistent(x, unet(**inputs).sample.float(), timesteps)
        return torch.mean(((predicted - target).square() + HUBER**2).sqrt() - HUBER)

    fit("lcm_lora", nn.ModuleDict({"unet": unet}), loss, steps, 1e-3, work, ema_decay=0.99)
    return convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))


def main(arguments: list[str] | None = None) -> None:
    options, _, base = begin_stage(__doc__, LCM_LORA, 300, arguments)
    layers = train_lcm_lora(base, options.work, options.steps, options.batch)
    StableDiffusionXLPipeline.save_lora_weights(
        options.out.parent,
        unet_lora_layers={name: weight.half().cpu() for name, weight in layers.items()},
        weight_name=options.out.name,
    )


if __name__ == "__main__":
    main()
