"""The embedded checkpoint: a small SDXL that draws still lifes, with the scenes and the script that made it."""

from pathlib import Path


# A folder in the standard SDXL form, for `from_pretrained` and `init_pipeline`; the latter passes over a `Path`.
CHECKPOINT = str(Path(__file__).parent / "checkpoint")
# Of classifier-free guidance; more pushes its colours out of range.
GUIDANCE_SCALE = 2.0
