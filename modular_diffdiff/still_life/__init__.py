"""The embedded checkpoint: a small SDXL that draws still lifes, with the scenes and the script that made it."""

from pathlib import Path


# A folder in the standard SDXL form, for `from_pretrained` and `init_pipeline`.
CHECKPOINT = Path(__file__).parent / "checkpoint"
