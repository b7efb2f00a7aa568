"""What people run: `modular-diffdiff demo` and `modular-diffdiff edit`."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer

from . import editing
from .still_life import GUIDANCE_SCALE


DEMO_NAME = "modular-diffdiff-demo.png"
MAX_SEED = 2**32 - 1

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Differential diffusion: edits an image under a grey-scale change map.

The map gives every pixel its own strength: white keeps the original, black lets everything change.

\b
Examples:
  modular-diffdiff demo
  modular-diffdiff edit photo.png map.png "a green pear"

Exit codes: 0 done, 2 for a mistake in what was given, 1 for any other failure.""",
)

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist; they are refused otherwise.")]


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Ends the command with a line on stderr: with 2 for the user's mistakes, with 1 for the machine's refusals."""
    try:
        yield
    except (editing.UserError, OSError) as error:
        typer.echo(f"Error: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(2 if isinstance(error, editing.UserError) else 1) from error


@app.command()
def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the sheet.")] = Path(),
    overwrite: Overwrite = False,
) -> None:
    """Draw a contact sheet of edits with the embedded checkpoint.

    Half a map, a gradient, and a ramp of strengths, each with its original and its results. It takes seconds on a CPU.

    \b
    Example:
      modular-diffdiff demo --out sheets --overwrite
    """
    path = out / DEMO_NAME
    with _one_line_errors():
        editing.check_outputs([path], overwrite)
        with editing.quiet_libraries():
            from . import demo as contact_sheet

            sheet = contact_sheet.make_sheet()
        editing.write_png(sheet, path, overwrite)
    typer.echo(path)


@app.command()
def edit(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="Path or URL of the image; of any size.")],
    change_map: Annotated[
        str, typer.Argument(metavar="MAP", help="Path or URL of the change map: white keeps, black changes.")
    ],
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What the changed regions shall show.")],
    negative: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What the changed regions shall not show.")
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            metavar="REPO_OR_DIR",
            help="An SDXL checkpoint: a name on the Hub, a folder with a model_index.json, or the small one that this "
            "package embeds.",
        ),
    ] = editing.EMBEDDED,
    steps: Annotated[int, typer.Option(min=1, metavar="N", help="Number of denoising steps.")] = 25,
    guidance_scale: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="How closely to follow the prompt; 1 turns guidance off. 7.5 by default, 2 for the embedded model.",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=MAX_SEED, metavar="N", help="Seed of the noise; drawn at random by default."),
    ] = None,
    invert_map: Annotated[bool, typer.Option("--invert-map", help="Read the map the other way round.")] = False,
    count: Annotated[
        int, typer.Option(min=1, metavar="N", help="How many pictures to make, each of the seed after the last.")
    ] = 1,
    device: Annotated[
        str | None, typer.Option(metavar="D", help="Where to run, e.g. cuda, mps or cpu; an accelerator by default.")
    ] = None,
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"] | None,
        typer.Option(help="Of the weights; by default float32 on a CPU and float16 elsewhere."),
    ] = None,
    offload: Annotated[
        bool,
        typer.Option(
            "--offload",
            help="Keep the model in main memory and move each part to the accelerator when it runs: slower, for "
            "accelerators too small for the whole model; refused where there is none.",
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="The .png file to write; IMAGE-edit.png in the current folder by default. With --count, the seed is "
            "added to each name.",
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Edit IMAGE towards PROMPT, each pixel as strongly as MAP lets it.

    White parts of the map keep the original, black parts change freely, and greys lie between. The result has the
    image's size. Its PNG holds, as JSON in the text chunk "modular-diffdiff", all that it takes to repeat it: prompt,
    seed, model, settings and versions, and the SHA-256 of both files' bytes, as read or fetched.

    \b
    Examples:
      modular-diffdiff edit photo.png map.png "a green pear" --seed 1
      modular-diffdiff edit photo.png map.png "a snowy street" --count 4 \\
        --model stabilityai/stable-diffusion-xl-base-1.0 --offload
    """
    with _one_line_errors():
        if guidance_scale is None:
            guidance_scale = GUIDANCE_SCALE if model == editing.EMBEDDED else 7.5
        if not 0 <= guidance_scale < math.inf:
            raise editing.UserError(f"--guidance-scale is {guidance_scale}; it takes a number of at least 0.")
        if seed is None:
            seed = secrets.randbelow(MAX_SEED + 1)
        out = out or Path(f"{Path(editing.file_name(image)).stem}-edit.png")
        paths = {seed: out} if count == 1 else {n: out.with_stem(f"{out.stem}-{n}") for n in range(seed, seed + count)}
        editing.check_outputs(list(paths.values()), overwrite)
        editing.find_model(model)
        pictures = editing.read_picture(image, "IMAGE"), editing.read_picture(change_map, "MAP")
        asked = editing.Edit(prompt, negative, steps, guidance_scale, invert_map)
        with editing.quiet_libraries():
            editing.check_pictures(*pictures)
            chosen = editing.choose_model(model, device, dtype, offload)
            pipe = editing.load_pipeline(chosen, guidance_scale)
            settings = editing.describe_run(pipe, chosen, asked, *pictures)
            for n, path in paths.items():
                result = editing.run_edit(pipe, asked, *(picture.pixels for picture in pictures), n)
                editing.write_png(result, path, overwrite, settings | {"seed": n})
                typer.echo(f"{path} (seed {n})")


def main() -> None:
    """The entry point `modular-diffdiff`."""
    app(prog_name="modular-diffdiff")


if __name__ == "__main__":
    main()
