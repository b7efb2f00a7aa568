"""One clear line where diffusers is too old, instead of a name that it does not have. Imported before all else."""

from importlib.metadata import version


NEEDED = "0.42"


def refuse_older(installed: str) -> None:
    """Raises an ImportError if this version of diffusers is older than `NEEDED`."""
    if tuple(map(int, installed.split(".")[:2])) < tuple(map(int, NEEDED.split("."))):
        raise ImportError(
            f"modular-diffdiff needs diffusers {NEEDED} or newer, and {installed} is installed: "
            "pip install --upgrade diffusers"
        )


refuse_older(version("diffusers"))
