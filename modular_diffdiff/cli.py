"""What people run: `modular-diffdiff demo`, `map`, `edit` and `publish`."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from . import catalog, editing, loading, maps, publishing


DEMO_NAME = "modular-diffdiff-demo.png"
UsageError = typer.BadParameter.__base__  # typer has no name for it
MAX_SEED = 2**32 - 1
MAX_COUNT = MAX_STEPS = 10_000
MAX_SCALE = 1000  # far beyond what models are used with


class OneLineGroup(typer.core.TyperGroup):
    """Mistakes in the options end in a line too, without the usage above it."""

    def make_context(self, name, args, *rest, **extra):
        if not args:  # shows the help
            return super().make_context(name, args, *rest, **extra)
        with _without_usage():
            return super().make_context(name, args, *rest, **extra)

    def invoke(self, ctx):
        with _without_usage():
            return super().invoke(ctx)


@contextmanager
def _without_usage() -> Iterator[None]:
    try:
        yield
    except UsageError as error:
        error.ctx = None
        raise


app = typer.Typer(
    cls=OneLineGroup,
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
  modular-diffdiff map photo.png --gradient 90 --out map.png
  modular-diffdiff edit photo.png map.png "a green pear"

Exit codes: 0 done, 2 for a mistake in what was given, 1 for any other failure.""",
)

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist; they are refused otherwise.")]
ImageToEdit = Annotated[str, typer.Argument(metavar="IMAGE", help="Path or URL of the image, of any size; - is stdin.")]
# Where a map comes from and how it is shaped, in every command that has one; `_ask_map` reads them.
Text = Annotated[str | None, typer.Option(metavar="TEXT", help="What may change, in words.")]
Threshold = Annotated[
    float | None,
    typer.Option(
        metavar="X", help="Probability, 0 to 1, from which on what --text finds may change wholly; soft without."
    ),
]
Point = Annotated[
    list[str] | None,
    typer.Option(
        metavar="X,Y", help="A pixel on the object that may change; X,Y,0 is one on what is not meant. Repeatable."
    ),
]
Box = Annotated[
    list[str] | None,
    typer.Option(metavar="L,T,R,B", help="A box in pixels around an object that may change. Repeatable."),
]
Depth = Annotated[
    tuple[float, float] | None,
    typer.Option(
        metavar="KEPT FREE",
        help="Two depths, 0 being the nearest in IMAGE and 1 the farthest: from the first to the second, more and more "
        "may change.",
    ),
]
Gradient = Annotated[
    str | None,
    typer.Option(
        metavar="ANGLE",
        help="In this direction, more and more may change: 0 is to the right, 90 upwards; or radial, from the edge to "
        "the middle.",
    ),
]
Mask = Annotated[
    str | None, typer.Option(metavar="PATH_OR_URL", help="A mask as inpainting has it: what is white may change.")
]
Difference = Annotated[
    str | None,
    typer.Option(metavar="PATH_OR_URL", help="The photo that IMAGE was painted over: what differs may change."),
]
Combine = Annotated[
    Literal["keep", "change"] | None,
    typer.Option(help="Of several maps, whether to keep (the default) or to change what any of them does."),
]
Segmenter = Annotated[
    str | None, typer.Option(metavar="REPO_OR_DIR", help="A CLIPSeg for --text, e.g. CIDAS/clipseg-rd64-refined.")
]
MaskGenerator = Annotated[
    str | None, typer.Option(metavar="REPO_OR_DIR", help="A SAM for --point and --box, e.g. facebook/sam-vit-base.")
]
DepthEstimator = Annotated[
    str | None,
    typer.Option(metavar="REPO_OR_DIR", help="For --depth, e.g. depth-anything/Depth-Anything-V2-Small-hf."),
]
Grow = Annotated[
    float | None,
    typer.Option(metavar="PX", help="By how many pixels of IMAGE what changes grows; below 0 it shrinks."),
]
Feather = Annotated[
    float | None,
    typer.Option(metavar="PX", help="Soften the map's edges by a Gaussian of this standard deviation, in pixels."),
]
Seam = Annotated[
    Literal["across", "inside", "outside"] | None,
    typer.Option(
        help="Where --feather puts the soft edge: across the map's own (the default), inside what changes, or outside."
    ),
]
Levels = Annotated[
    tuple[float, float] | None,
    typer.Option(metavar="BLACK WHITE", help="Greys of the map from 0 to 1 that become black, and white."),
]
Gamma = Annotated[
    float | None, typer.Option(metavar="X", help="Gamma of the map's greys: above 1 they are brighter and keep more.")
]
Limits = Annotated[
    tuple[float, float] | None,
    typer.Option(metavar="LEAST MOST", help="How strongly, from 0 to 1, anything that changes at all may change."),
]


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Ends the command with a line on stderr: with 2 for the user's mistakes, with 1 for what failed on the way.

    What nobody foresaw keeps its traceback.
    """
    try:
        yield
    except (loading.UserError, OSError, FloatingPointError) as error:
        typer.echo(f"Error: {_printable(' '.join(str(error).split()))}", err=True)
        raise typer.Exit(2 if isinstance(error, loading.UserError) else 1) from error


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"modular-diffdiff {editing.find_version('modular-diffdiff')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def _split(map_and_prompt: list[str]) -> tuple[str | None, str]:
    """MAP, None without one, and PROMPT."""
    if len(map_and_prompt) > 2:
        raise loading.UserError(f"{map_and_prompt[2]!r} is one argument too many, behind MAP and PROMPT.")
    return (None, *map_and_prompt) if len(map_and_prompt) == 1 else tuple(map_and_prompt)


def _printable(text: Any) -> str:
    """A text with a mark in place of what is no UTF-8, as file names can be."""
    return str(text).encode(errors="replace").decode()


@app.command()
def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the sheet.")] = Path(),
    overwrite: Overwrite = False,
) -> None:
    """Draw a contact sheet of edits with the embedded checkpoint.

    One object of two, half a picture, a gradient, a ramp of strengths, and edits that an image prompt and edges steer,
    each with its original. It takes less than a minute on a CPU.

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
    typer.echo(_printable(path))


@app.command()
def edit(
    ctx: typer.Context,
    image: ImageToEdit,
    map_and_prompt: Annotated[
        list[str],
        typer.Argument(
            metavar="[MAP] PROMPT",
            help="Path or URL of the change map, or -: white keeps, black changes; without one, --text and others of "
            "its kind make it. Then what the changed regions show.",
        ),
    ],
    negative: Annotated[str | None, typer.Option(metavar="TEXT", help="What the changed regions do not show.")] = None,
    model: Annotated[
        str,
        typer.Option(
            metavar="REPO_OR_DIR",
            help="A checkpoint of a family that is known: a name on the Hub, a folder with a model_index.json, or a "
            "small one that this package embeds: an SDXL (still-life) or a Z-Image (still-life-flow).",
        ),
    ] = loading.EMBEDDED,
    steps: Annotated[int, typer.Option(min=1, max=MAX_STEPS, metavar="N", help="Number of denoising steps.")] = 25,
    guidance_scale: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="How closely to follow the prompt; 1 turns guidance off. By default 7.5 for SDXL, 2 for the embedded "
            "models, and the model's own for the others.",
        ),
    ] = None,
    control_image: Annotated[
        str | None,
        typer.Option(
            metavar="PATH_OR_URL", help="What a ControlNet follows where the map lets it, e.g. edges; scaled to IMAGE."
        ),
    ] = None,
    control_mode: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="What a ControlNet-Union takes --control-image for, a number that its model card lists; with the "
            "embedded one 0 for edges, 1 for depth.",
        ),
    ] = None,
    controlnet: Annotated[
        str | None,
        typer.Option(
            metavar="REPO_OR_DIR",
            help="A ControlNet or ControlNet-Union for --model; by default the one that goes with the embedded model.",
        ),
    ] = None,
    control_scale: Annotated[
        float | None, typer.Option(metavar="X", help="How much --control-image counts, 1 by default.")
    ] = None,
    ip_adapter_image: Annotated[
        str | None,
        typer.Option(
            metavar="PATH_OR_URL", help="An image prompt: shows what PROMPT leaves open; its middle square counts."
        ),
    ] = None,
    ip_adapter: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="The weights of an IP-Adapter for --model, a path or a file on the Hub (owner/name/folder/file), with "
            "a folder image_encoder beside them; by default those that go with the embedded model.",
        ),
    ] = None,
    ip_adapter_scale: Annotated[
        float | None, typer.Option(metavar="X", help="How much --ip-adapter-image counts, 1 by default.")
    ] = None,
    lora: Annotated[
        str | None,
        typer.Option(
            metavar="REPO_OR_FILE",
            help="A LoRA for --model: a path, a name on the Hub, or a file there (owner/name/file). It needs "
            "`pip install modular-diffdiff[lora]`.",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=MAX_SEED, metavar="N", help="Seed of the noise; drawn at random by default."),
    ] = None,
    invert_map: Annotated[bool, typer.Option("--invert-map", help="Read the map the other way round.")] = False,
    text: Text = None,
    threshold: Threshold = None,
    point: Point = None,
    box: Box = None,
    depth: Depth = None,
    gradient: Gradient = None,
    mask: Mask = None,
    difference: Difference = None,
    combine: Combine = None,
    segmenter: Segmenter = None,
    mask_generator: MaskGenerator = None,
    depth_estimator: DepthEstimator = None,
    grow: Grow = None,
    feather: Feather = None,
    seam: Seam = None,
    levels: Levels = None,
    gamma: Gamma = None,
    limits: Limits = None,
    softness: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            metavar="X",
            help="How much of IMAGE stays in what the map releases, more where it is lighter.",
        ),
    ] = 0.0,
    strength: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            metavar="X",
            help="Turns the whole map down. At 0, as under a white map, IMAGE only goes through the autoencoder: "
            "that changes pixels a little, and --overlay brings them back.",
        ),
    ] = 1.0,
    overlay: Annotated[
        bool,
        typer.Option(
            "--overlay",
            help="Bring IMAGE's own pixels back where the map is white: without it they go through the model's "
            "autoencoder and change a little. IMAGE's transparency comes along.",
        ),
    ] = False,
    match_colors: Annotated[
        bool,
        typer.Option(
            "--match-colors",
            help="Fit the result's colours to IMAGE's where the map is white, and change all of it so: what the model "
            "has shifted comes back.",
        ),
    ] = False,
    crop: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65_536,
            metavar="PAD",
            help="Edit only the box that the map changes, with PAD pixels around it, and lay it into IMAGE.",
        ),
    ] = None,
    count: Annotated[
        int,
        typer.Option(
            min=1, max=MAX_COUNT, metavar="N", help="How many pictures to make, each of the seed after the last."
        ),
    ] = 1,
    device: Annotated[
        str | None, typer.Option(metavar="D", help="Where to run, e.g. cuda, mps or cpu; an accelerator by default.")
    ] = None,
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"] | None,
        typer.Option(
            help="Of the weights; by default float32 on a CPU, elsewhere float16 for SDXL, bfloat16 for others."
        ),
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
    """Edit IMAGE towards PROMPT, each pixel as strongly as the change map lets it.

    The map is MAP, or made of --text and others of its kind, as `modular-diffdiff map` makes it; several join by
    --combine. White parts of it keep the original, black parts change freely, and greys lie between. The result has
    the image's size (some edit models have one of their own), its colour profile and its DPI, in 8 bits a colour. Its
    PNG holds, as JSON in the text chunk "modular-diffdiff", all that it takes to repeat it: prompt, seed, how the map
    was made, model, settings and versions, and the SHA-256 of each picture's bytes, as read or fetched.

    \b
    Examples:
      modular-diffdiff edit photo.png map.png "a green pear" --seed 1
      modular-diffdiff edit photo.png "a green pear" --mask mask.png --feather 4
      modular-diffdiff edit photo.png map.png "a pear" --ip-adapter-image orange.png
      modular-diffdiff edit photo.png map.png "a snowy street" --count 4 \\
        --model stabilityai/stable-diffusion-xl-base-1.0 --offload
    """
    with _one_line_errors():
        change_map, prompt = _split(map_and_prompt)
        if not prompt:
            raise loading.UserError("PROMPT is empty.")
        _check_texts({"PROMPT": prompt, "--negative": negative, "--text": text})
        if change_map is None and invert_map:
            raise loading.UserError("--invert-map needs MAP, which it inverts.")
        if change_map is None and not maps.are_asked(ctx.params):
            raise loading.UserError(
                "Nothing says what may change: give MAP before PROMPT, or --text, --gradient or another of their kind."
            )
        _check_scales({"guidance": guidance_scale, "control": control_scale, "ip-adapter": ip_adapter_scale})
        steering = {"--control-mode": control_mode, "--controlnet": controlnet, "--control-scale": control_scale}
        if _is_used("--control-image", control_image, steering):
            if controlnet is None:
                controlnet = loading.default_for(model, "--controlnet", union=control_mode is not None)
            control_scale = 1.0 if control_scale is None else control_scale
        steering = {"--ip-adapter": ip_adapter, "--ip-adapter-scale": ip_adapter_scale}
        if _is_used("--ip-adapter-image", ip_adapter_image, steering):
            if ip_adapter is None:
                ip_adapter = loading.default_for(model, "--ip-adapter")
            ip_adapter_scale = 1.0 if ip_adapter_scale is None else ip_adapter_scale
        if seed is not None and seed + count - 1 > MAX_SEED:
            raise loading.UserError(f"--seed {seed} with --count {count} goes beyond the last seed, {MAX_SEED}.")
        if seed is None:
            seed = secrets.randbelow(MAX_SEED + 2 - count)
        out = out or Path(f"{Path(editing.file_name(image)).stem}-edit.png")
        paths = {seed: out} if count == 1 else {n: out.with_stem(f"{out.stem}-{n}") for n in range(seed, seed + count)}
        editing.check_outputs(list(paths.values()), overwrite)
        chosen = loading.Model(model, device, dtype, offload, controlnet, ip_adapter, ip_adapter_scale, lora)
        loading.check_names(chosen)
        inputs, models = _ask_map(ctx.params)
        read = _read_pictures(
            {
                **{"IMAGE": image, "MAP": change_map, "--mask": mask, "--difference": difference},
                **{"--control-image": control_image, "--ip-adapter-image": ip_adapter_image},
            }
        )
        pictures = editing.Pictures(*(read[name] for name in ("IMAGE", "--control-image", "--ip-adapter-image")))
        request = maps.Request(read["IMAGE"], inputs | maps.pictures_of(read), models)
        asked = editing.Edit(
            *(prompt, negative, steps, guidance_scale, softness, strength, overlay, match_colors, crop),
            *(control_mode, control_scale),
        )
        with editing.quiet_libraries():
            editing.check_pictures(pictures, asked)
            maps.check_pictures(request)
            chosen = loading.choose_device(loading.find_family(chosen))
            if guidance_scale is None:
                asked = replace(asked, guidance_scale=loading.default_guidance_scale(chosen))
            editing.check_family(chosen, asked)
            loading.check_steering(chosen, control_mode)
            keep = maps.make_map(request)
            pipe = loading.load_pipeline(chosen, asked.guidance_scale)
            editing.warn_of_long_texts(pipe, asked)
            settings = maps.describe(request) | editing.describe_run(pipe, chosen, asked, pictures)
            for n, path in paths.items():
                result = editing.run_edit(pipe, asked, pictures, keep, n)
                editing.write_png(
                    result, path, overwrite, settings | {"seed": n}, editing.kept_of(pictures.image.pixels)
                )
                typer.echo(f"{_printable(path)} (seed {n}, {chosen.title})")


@app.command("map")
def make_map(
    ctx: typer.Context,
    image: ImageToEdit,
    text: Text = None,
    threshold: Threshold = None,
    point: Point = None,
    box: Box = None,
    depth: Depth = None,
    gradient: Gradient = None,
    mask: Mask = None,
    difference: Difference = None,
    combine: Combine = None,
    segmenter: Segmenter = None,
    mask_generator: MaskGenerator = None,
    depth_estimator: DepthEstimator = None,
    grow: Grow = None,
    feather: Feather = None,
    seam: Seam = None,
    levels: Levels = None,
    gamma: Gamma = None,
    limits: Limits = None,
    invert: Annotated[
        bool, typer.Option("--invert", help="Write it the other way round, as a mask: white where IMAGE changes.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="The .png file to write; IMAGE-map.png in the current folder by default."),
    ] = None,
    preview: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="A .png file that shows it: IMAGE in grey, redder the more may change."),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Make the change map of IMAGE: white where it is kept, black where it changes.

    At least one of --text, --point, --box, --depth, --gradient, --mask and --difference says what may change. The PNG
    has 16 bits a pixel, and holds, as JSON in the text chunk "modular-diffdiff", all that it takes to make it again.

    \b
    Examples:
      modular-diffdiff map photo.png --gradient 90 --preview shown.png
      modular-diffdiff map photo.png --mask mask.png --grow 8 --feather 4
      modular-diffdiff map photo.png --text "a dog" --segmenter CIDAS/clipseg-rd64-refined
    """
    with _one_line_errors():
        _check_texts({"--text": text})
        if not maps.are_asked(ctx.params):
            raise loading.UserError("Nothing says what may change: give --text, --gradient or another of its kind.")
        inputs, models = _ask_map(ctx.params)
        out = out or Path(f"{Path(editing.file_name(image)).stem}-map.png")
        editing.check_outputs([out, *([preview] if preview else [])], overwrite)
        read = _read_pictures({"IMAGE": image, "--mask": mask, "--difference": difference})
        request = maps.Request(read["IMAGE"], inputs | maps.pictures_of(read), models, invert)
        with editing.quiet_libraries():
            editing.check_picture(read["IMAGE"], transparent=True)
            maps.check_pictures(request)
            keep = maps.make_map(request)
        editing.write_png(maps.as_png(1 - keep if invert else keep), out, overwrite, maps.describe(request))
        typer.echo(_printable(out))
        if preview is not None:
            from .blocks.diffdiff_preview import draw_preview

            editing.write_png(draw_preview(read["IMAGE"].pixels, 1 - keep), preview, overwrite)
            typer.echo(_printable(preview))


def _ask_map(params: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """What the options of a command ask of a map, pictures aside: the blocks' inputs, and the models for some of them.

    Args:
        params: The command's, by their names here; what is None is not asked for.
    """
    given = {key: value for key, value in params.items() if value not in (None, (), []) and value is not False}
    _is_used("--text", params["text"], {"--threshold": params["threshold"]})
    inputs = {name: given[key] for key, name in maps.INPUTS.items() if key in given}
    if "map_points" in inputs:
        inputs["map_points"] = [_numbers("--point", given, (2, 3)) for given in inputs["map_points"]]
    if "map_boxes" in inputs:
        inputs["map_boxes"] = [_numbers("--box", given, (4,)) for given in inputs["map_boxes"]]
    if "map_gradient" in inputs:
        inputs["map_gradient"] = _angle(inputs["map_gradient"])
    editing.check_inputs(inputs)
    models = {}
    for name in maps.OPTIONS.keys() & inputs.keys():
        option = maps.OPTIONS[name]
        models[name] = given.get(option.removeprefix("--").replace("-", "_"))
        if models[name] is None:
            raise loading.UserError(f"{option} is needed: it names the model that makes the map.")
    return inputs, models


def _read_pictures(locations: dict[str, str | None]) -> dict[str, editing.Picture | None]:
    """The pictures of these arguments, None where nothing is given."""
    piped = [argument for argument, location in locations.items() if location == editing.STDIN]
    if len(piped) > 1:
        raise loading.UserError(f"{' and '.join(piped)} are both -, and stdin can be read once.")
    return {
        argument: None if location is None else editing.read_picture(location, argument)
        for argument, location in locations.items()
    }


def _numbers(option: str, given: str, counts: tuple[int, ...]) -> tuple[int, ...]:
    parts = given.split(",")
    if len(parts) not in counts or not all(part.strip().isdecimal() for part in parts):
        wanted = " or ".join(map(str, counts))
        raise loading.UserError(f"{option} is {given!r}; it takes {wanted} whole numbers with commas between them.")
    return tuple(map(int, parts))


def _angle(given: str) -> float | str:
    try:
        return given if given == "radial" else float(given)
    except ValueError as error:
        raise loading.UserError(f"--gradient is {given!r}; it takes an angle in degrees, or radial.") from error


@app.command()
def publish(
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="Where to, owner/name; without a dot in it.")],
    family: Annotated[
        str | None,
        typer.Option(metavar="NAME", help=f"Whose blocks: one of {', '.join(catalog.FAMILIES)}; sdxl by default."),
    ] = None,
    checkpoint: Annotated[
        bool,
        typer.Option("--checkpoint", help="Publish the embedded checkpoint and its companions, instead of the blocks."),
    ] = False,
    block: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Publish one block that makes or shapes change maps, e.g. map-text."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write the folder and stop; no network is used.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The folder that --dry-run writes; the name of REPO_ID by default."),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a repository that only its owner sees.")] = False,
    revision: Annotated[
        str | None, typer.Option(metavar="BRANCH", help="The branch to commit to; made where there is none.")
    ] = None,
) -> None:
    """Publish the blocks of a model family as a repository on the Hugging Face Hub.

    The repository is assembled, loaded in a fresh process, listed with its files' sizes, and sent in one commit; what
    has not changed is not sent again, and what an earlier version had and this has not is deleted. A repository that
    holds anything else is refused. If sending fails, nothing changes. The token is that of `hf auth login` or HF_TOKEN.

    \b
    Examples:
      modular-diffdiff publish ada/diffdiff-sdxl --dry-run
      modular-diffdiff publish ada/diffdiff-sdxl --private
      modular-diffdiff publish ada/diffdiff-flux --family flux
      modular-diffdiff publish ada/still-life --checkpoint
      modular-diffdiff publish ada/map-text --block map-text
    """
    with _one_line_errors(), tempfile.TemporaryDirectory() as temporary:
        contents = {"--family": family, "--checkpoint": checkpoint, "--block": block}
        _check_publish(contents, {"--private": private, "--revision": revision} if dry_run else {"--out": out})
        content = _content(family, checkpoint, block)
        publishing.check_repo_id(repo_id, holds_code=not checkpoint)
        name = repo_id.split("/")[1]
        folder = (out or Path(name)) if dry_run else Path(temporary, name)
        if not dry_run:
            publishing.check_target(content, repo_id, private, revision)
        with editing.quiet_libraries():
            said = publishing.assemble(content, repo_id, folder)
            files = publishing.list_files(folder)
            for path, size in files:
                typer.echo(f"{size:>12,}  {path}")
            typer.echo(f"{sum(size for _, size in files):>12,}  in {len(files)} files; {said}")
            typer.echo(folder if dry_run else publishing.upload(content, repo_id, folder, private, revision))


def _content(family: str | None, checkpoint: bool, block: str | None) -> publishing.Content:
    if checkpoint:
        return publishing.still_life()
    return publishing.blocks_of(family or "sdxl") if block is None else publishing.block_of(block)


def _check_publish(contents: dict[str, Any], unused: dict[str, Any]) -> None:
    family = contents["--family"]
    if family is not None and family not in catalog.FAMILIES:
        raise loading.UserError(f"--family is {family!r}; it takes one of {', '.join(catalog.FAMILIES)}.")
    named = [option for option, value in contents.items() if value]
    if len(named) > 1:
        raise loading.UserError(f"{' and '.join(named)} name several repositories; publish one after the other.")
    for option, value in unused.items():
        if value:
            raise loading.UserError("--out needs --dry-run." if option == "--out" else f"--dry-run takes no {option}.")


def _check_texts(texts: dict[str, str | None]) -> None:
    for name, text in texts.items():
        try:
            (text or "").encode()
        except UnicodeEncodeError as error:
            raise loading.UserError(f"{name} is not UTF-8: {text[error.start : error.end]!r}.") from error


def _check_scales(scales: dict[str, float | None]) -> None:
    for name, scale in scales.items():
        if scale is not None and not 0 <= scale <= MAX_SCALE:
            raise loading.UserError(f"--{name}-scale is {scale}; it takes a number from 0 to {MAX_SCALE}.")


def _is_used(option: str, value: str | None, others: dict[str, Any]) -> bool:
    """Whether an option is given; the others mean nothing without it."""
    lost = [name for name, other in others.items() if other is not None]
    if value is None and lost:
        raise loading.UserError(f"{lost[0]} needs {option}.")
    return value is not None


def main() -> None:
    """The entry point `modular-diffdiff`."""
    app(prog_name="modular-diffdiff")


if __name__ == "__main__":
    main()
