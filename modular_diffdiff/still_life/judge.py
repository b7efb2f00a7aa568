"""A small classifier that reads kind, colour and background off a picture, or off the visible part of one."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from .scene import BACKGROUNDS, COLOURS, KINDS


WEIGHTS = Path(__file__).parent / "judge.safetensors"
SEEN = 128  # side of the pictures that it looks at; larger ones are shrunk
LABELS = {"kind": KINDS, "colour": tuple(COLOURS), "background": tuple(BACKGROUNDS)}


class Reading(NamedTuple):
    """What the judge sees; each field is a name from `scene`."""

    kind: str
    colour: str
    background: str


def shrink(pictures: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) to (B, C, SEEN, SEEN), each pixel the mean of those that it stands for."""
    return F.adaptive_avg_pool2d(pictures, SEEN)


class Judge(nn.Module):
    """Five strided convolutions and a linear layer a question."""

    def __init__(self):
        super().__init__()
        widths = (4, 24, 48, 64, 96, 96)
        self.features = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(i, o, 3, stride=2, padding=1), nn.GroupNorm(8, o), nn.SiLU())
                for i, o in pairwise(widths)
            ),
            nn.Flatten(),
            nn.Linear(widths[-1] * 16, 192),
            nn.SiLU(),
        )
        self.heads = nn.ModuleDict({name: nn.Linear(192, len(labels)) for name, labels in LABELS.items()})

    def forward(self, pictures: torch.Tensor, visible: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits of each question.

        Args:
            pictures: (B, 3, H, W) in [-1, 1], of `SEEN` pixels a side or more.
            visible: (B, 1, H, W), 1 where the judge may look and 0 elsewhere.
        """
        pictures, visible = shrink(pictures), shrink(visible)
        features = self.features(torch.cat([pictures * visible, visible], 1))
        return {name: head(features) for name, head in self.heads.items()}

    @torch.no_grad()
    def read(self, pictures: torch.Tensor, visible: torch.Tensor | None = None) -> list[Reading]:
        """Names what each picture shows; arguments as in `forward`, `visible` everywhere by default."""
        if visible is None:
            visible = torch.ones_like(pictures[:, :1])
        answers = {name: logits.argmax(1).tolist() for name, logits in self(pictures, visible).items()}
        return [Reading(*(LABELS[name][answers[name][i]] for name in Reading._fields)) for i in range(len(pictures))]


def to_tensor(pictures) -> torch.Tensor:
    """(B, 3, H, W) in [-1, 1] of PIL images or arrays (H, W, 3) uint8, as the judge reads them."""
    return torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2) / 127.5 - 1


def load_judge() -> Judge:
    """The trained judge that ships with the checkpoint."""
    judge = Judge()
    judge.load_state_dict({name: weight.float() for name, weight in load_file(WEIGHTS).items()})
    return judge.eval()
