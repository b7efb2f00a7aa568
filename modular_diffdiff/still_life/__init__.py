"""The embedded checkpoint: a small SDXL that draws still lifes."""
