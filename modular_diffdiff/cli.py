"""What people run: `modular-diffdiff demo`, `edit`, `fan`, `map` and `publish`."""

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
  modular-diffdiff fan photo.png "a green pear" map.png

Exit codes: 0 done, 2 for a mistake in what was given, 1 for any other failure.""",
)

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist; they are refused otherwise.")]
ImageToEdit = Annotated[str, typer.Argument(metavar="IMAGE", help="Path or URL of the image, of any size; - is stdin.")]
# What is asked of a model, in every command that has one.
Negative = Annotated[str | None, typer.Option(metavar="TEXT", help="What the changed regions shall not show.")]
ModelName = Annotated[
    str,
    typer.Option(
        metavar="REPO_OR_DIR",
        help="A checkpoint of a family that is known: a name on the Hub, a folder with a model_index.json, or a "
        "small one that this package embeds: an SDXL (still-life) or a Z-Image (still-life-flow).",
    ),
]
Steps = Annotated[int, typer.Option(min=1, max=MAX_STEPS, metavar="N", help="Number of denoising steps.")]
GuidanceScale = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help="How closely to follow the prompt; 1 turns guidance off. By default 7.5 for SDXL, 2 for the embedded "
        "models, and the model's own for the others.",
    ),
]
ControlImage = Annotated[
    str | None,
    typer.Option(
        metavar="PATH_OR_URL", help="What a ControlNet follows where the map lets it, e.g. edges; scaled to IMAGE."
    ),
]
ControlMode = Annotated[
    int | None,
    typer.Option(
        min=0,
        metavar="N",
        help="What a ControlNet-Union shall take --control-image for, a number that its model card lists; with the "
        "embedded one 0 for edges, 1 for depth.",
    ),
]
ControlNet = Annotated[
    str | None,
    typer.Option(
        metavar="REPO_OR_DIR",
        help="A ControlNet or ControlNet-Union for --model; by default the one that goes with the embedded model.",
    ),
]
ControlScale = Annotated[float | None, typer.Option(metavar="X", help="How much --control-image counts, 1 by default.")]
IPAdapterImage = Annotated[
    str | None,
    typer.Option(
        metavar="PATH_OR_URL", help="An image prompt: shows what PROMPT leaves open; its middle square counts."
    ),
]
IPAdapter = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="The weights of an IP-Adapter for --model, a path or a file on the Hub (owner/name/folder/file), with "
        "a folder image_encoder beside them; by default those that go with the embedded model.",
    ),
]
IPAdapterScale = Annotated[
    float | None, typer.Option(metavar="X", help="How much --ip-adapter-image counts, 1 by default.")
]
LoRA = Annotated[
    str | None,
    typer.Option(
        metavar="REPO_OR_FILE",
        help="A LoRA for --model: a path, a name on the Hub, or a file there (owner/name/file). It needs "
        "`pip install modular-diffdiff[lora]`.",
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(min=0, max=MAX_SEED, metavar="N", help="Seed of the noise; drawn at random by default."),
]
InvertMap = Annotated[bool, typer.Option("--invert-map", help="Read the map the other way round.")]
Overlay = Annotated[
    bool,
    typer.Option(
        "--overlay",
        help="Bring IMAGE's own pixels back where the map is white: without it they go through the model's "
        "autoencoder and change a little. IMAGE's transparency comes along.",
    ),
]
Device = Annotated[
    str | None, typer.Option(metavar="D", help="Where to run, e.g. cuda, mps or cpu; an accelerator by default.")
]
DType = Annotated[
    Literal["float32", "float16", "bfloat16"] | None,
    typer.Option(help="Of the weights; by default float32 on a CPU, elsewhere float16 for SDXL, bfloat16 for others."),
]
Offload = Annotated[
    bool,
    typer.Option(
        "--offload",
        help="Keep the model in main memory and move each part to the accelerator when it runs: slower, for "
        "accelerators too small for the whole model; refused where there is none.",
    ),
]
# How a map is shaped, in every command that has one.
Grow = Annotated[
    float, typer.Option(metavar="PX", help="By how many pixels of IMAGE what changes grows; below 0 it shrinks.")
]
Feather = Annotated[
    float,
    typer.Option(metavar="PX", help="Soften the map's edges by a Gaussian of this standard deviation, in pixels."),
]
Seam = Annotated[
    Literal["across", "inside", "outside"],
    typer.Option(help="Where --feather puts the soft edge: across the map's own, inside what changes, or outside."),
]
Levels = Annotated[
    tuple[float, float],
    typer.Option(metavar="BLACK WHITE", help="Greys of the map from 0 to 1 that become black, and white."),
]
Gamma = Annotated[
    float, typer.Option(metavar="X", help="Gamma of the map's greys: above 1 they are brighter and keep more.")
]
Limits = Annotated[
    tuple[float, float],
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
    image: ImageToEdit,
    change_map: Annotated[
        str,
        typer.Argument(metavar="MAP", help="Path or URL of the change map, or -: white keeps, black changes."),
    ],
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What the changed regions shall show.")],
    negative: Negative = None,
    model: ModelName = loading.EMBEDDED,
    steps: Steps = 25,
    guidance_scale: GuidanceScale = None,
    control_image: ControlImage = None,
    control_mode: ControlMode = None,
    controlnet: ControlNet = None,
    control_scale: ControlScale = None,
    ip_adapter_image: IPAdapterImage = None,
    ip_adapter: IPAdapter = None,
    ip_adapter_scale: IPAdapterScale = None,
    lora: LoRA = None,
    seed: Seed = None,
    invert_map: InvertMap = False,
    grow: Grow = 0.0,
    feather: Feather = 0.0,
    seam: Seam = "across",
    levels: Levels = (0.0, 1.0),
    gamma: Gamma = 1.0,
    limits: Limits = (0.0, 1.0),
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
    overlay: Overlay = False,
    crop: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65_536,
            metavar="PAD",
            help="Edit only the box that MAP changes, with PAD pixels around it, and lay it into IMAGE.",
        ),
    ] = None,
    count: Annotated[
        int,
        typer.Option(
            min=1, max=MAX_COUNT, metavar="N", help="How many pictures to make, each of the seed after the last."
        ),
    ] = 1,
    device: Device = None,
    dtype: DType = None,
    offload: Offload = False,
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
    image's size (some edit models have one of their own), its colour profile and its DPI, in 8 bits a colour. Its PNG
    holds, as JSON in the text chunk "modular-diffdiff", all that it takes to repeat it: prompt, seed, model, settings
    and versions, and the SHA-256 of each picture's bytes, as read or fetched.

    \b
    Examples:
      modular-diffdiff edit photo.png map.png "a green pear" --seed 1
      modular-diffdiff edit photo.png map.png "a pear" --ip-adapter-image orange.png
      modular-diffdiff edit photo.png map.png "a snowy street" --count 4 \\
        --model stabilityai/stable-diffusion-xl-base-1.0 --offload
    """
    with _one_line_errors():
        if not prompt:
            raise loading.UserError("PROMPT is empty.")
        _check_texts({"PROMPT": prompt, "--negative": negative})
        _check_scales({"guidance": guidance_scale, "control": control_scale, "ip-adapter": ip_adapter_scale})
        controlnet, control_scale = _choose_controlnet(model, control_image, control_mode, controlnet, control_scale)
        ip_adapter, ip_adapter_scale = _choose_ip_adapter(model, ip_adapter_image, ip_adapter, ip_adapter_scale)
        if seed is not None and seed + count - 1 > MAX_SEED:
            raise loading.UserError(f"--seed {seed} with --count {count} goes beyond the last seed, {MAX_SEED}.")
        if seed is None:
            seed = secrets.randbelow(MAX_SEED + 2 - count)
        out = out or Path(f"{Path(editing.file_name(image)).stem}-edit.png")
        paths = {seed: out} if count == 1 else {n: out.with_stem(f"{out.stem}-{n}") for n in range(seed, seed + count)}
        editing.check_outputs(list(paths.values()), overwrite)
        chosen = loading.Model(model, device, dtype, offload, controlnet, ip_adapter, ip_adapter_scale, lora)
        loading.check_names(chosen)
        locations = {
            "IMAGE": image,
            "MAP": change_map,
            "--control-image": control_image,
            "--ip-adapter-image": ip_adapter_image,
        }
        pictures = editing.Pictures(*_read_pictures(locations).values())
        asked = editing.Edit(
            *(prompt, negative, steps, guidance_scale, invert_map, strength, overlay, crop),
            *(control_mode, control_scale),
            *(levels, gamma, grow, feather, seam, limits),
        )
        editing.check_inputs(asked.shaping())
        with editing.quiet_libraries():
            pipe, chosen, asked = _load(chosen, asked, pictures)
            settings = editing.describe_run(pipe, chosen, asked, pictures)
            for n, path in paths.items():
                result = editing.run_edit(pipe, asked, pictures, n)
                editing.write_png(
                    result, path, overwrite, settings | {"seed": n}, editing.kept_of(pictures.image.pixels)
                )
                typer.echo(f"{_printable(path)} (seed {n}, {chosen.title})")


def _choose_controlnet(
    model: str, image: str | None, mode: int | None, controlnet: str | None, scale: float | None
) -> tuple[str | None, float | None]:
    """The ControlNet and its weight, with what is left open filled in; None both without an image."""
    steering = {"--control-mode": mode, "--controlnet": controlnet, "--control-scale": scale}
    if not _is_used("--control-image", image, steering):
        return None, None
    if controlnet is None:
        controlnet = loading.default_for(model, "--controlnet", union=mode is not None)
    return controlnet, 1.0 if scale is None else scale


def _choose_ip_adapter(
    model: str, image: str | None, ip_adapter: str | None, scale: float | None
) -> tuple[str | None, float | None]:
    """The same for an IP-Adapter."""
    if not _is_used("--ip-adapter-image", image, {"--ip-adapter": ip_adapter, "--ip-adapter-scale": scale}):
        return None, None
    if ip_adapter is None:
        ip_adapter = loading.default_for(model, "--ip-adapter")
    return ip_adapter, 1.0 if scale is None else scale


def _load(
    model: loading.Model, asked: editing.Edit, pictures: editing.Pictures
) -> tuple[Any, loading.Model, editing.Edit]:
    """The pipeline, once all is checked that can be; the model and the edit with what was left open filled in."""
    editing.check_pictures(pictures, asked)
    model = loading.choose_device(loading.find_family(model))
    if asked.guidance_scale is None:
        asked = replace(asked, guidance_scale=loading.default_guidance_scale(model))
    editing.check_family(model, asked)
    loading.check_steering(model, asked.control_mode)
    pipe = loading.load_pipeline(model, asked.guidance_scale)
    editing.warn_of_long_texts(pipe, asked)
    return pipe, model, asked


@app.command("fan")
def make_fan(
    image: ImageToEdit,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What the changed regions show.")],
    change_map: Annotated[
        str | None,
        typer.Argument(
            metavar="MAP",
            help="Path or URL of the change map, or -: white keeps, black changes; without it, everything may change.",
        ),
    ] = None,
    strengths: Annotated[
        str, typer.Option(metavar="X,X,...", help="2 to 100 rising numbers from 0 to 1, with commas between them.")
    ] = "0.2,0.4,0.6,0.8,1.0",
    negative: Negative = None,
    model: ModelName = loading.EMBEDDED,
    steps: Steps = 25,
    guidance_scale: GuidanceScale = None,
    control_image: ControlImage = None,
    control_mode: ControlMode = None,
    controlnet: ControlNet = None,
    control_scale: ControlScale = None,
    ip_adapter_image: IPAdapterImage = None,
    ip_adapter: IPAdapter = None,
    ip_adapter_scale: IPAdapterScale = None,
    lora: LoRA = None,
    seed: Seed = None,
    invert_map: InvertMap = False,
    grow: Grow = 0.0,
    feather: Feather = 0.0,
    seam: Seam = "across",
    levels: Levels = (0.0, 1.0),
    gamma: Gamma = 1.0,
    limits: Limits = (0.0, 1.0),
    overlay: Overlay = False,
    device: Device = None,
    dtype: DType = None,
    offload: Offload = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="The .png file to write; IMAGE-fan.png in the current folder by default."),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Show one edit at several strengths, to choose the one for `edit --strength`.

    A strength turns the whole map down; without a map, it is image-to-image's. The sheet has the results in a row, all
    of the same noise, and beside them one picture cut into strips of rising strength. They are made as one batch, which
    takes as much memory as so many pictures. The PNG holds, as JSON in the text chunk "modular-diffdiff", all that it
    takes to repeat it.

    \b
    Examples:
      modular-diffdiff fan photo.png "a green pear" --seed 1
      modular-diffdiff fan photo.png "a green pear" map.png --strengths 0.3,0.5,0.7
    """
    with _one_line_errors():
        if not prompt:
            raise loading.UserError("PROMPT is empty.")
        _check_texts({"PROMPT": prompt, "--negative": negative})
        _check_scales({"guidance": guidance_scale, "control": control_scale, "ip-adapter": ip_adapter_scale})
        rising = _strengths(strengths)
        if invert_map and change_map is None:
            raise loading.UserError("--invert-map needs MAP.")
        controlnet, control_scale = _choose_controlnet(model, control_image, control_mode, controlnet, control_scale)
        ip_adapter, ip_adapter_scale = _choose_ip_adapter(model, ip_adapter_image, ip_adapter, ip_adapter_scale)
        seed = secrets.randbelow(MAX_SEED + 1) if seed is None else seed
        out = out or Path(f"{Path(editing.file_name(image)).stem}-fan.png")
        editing.check_outputs([out], overwrite)
        chosen = loading.Model(model, device, dtype, offload, controlnet, ip_adapter, ip_adapter_scale, lora)
        loading.check_names(chosen)
        asked = editing.Edit(
            *(prompt, negative, steps, guidance_scale, invert_map),
            overlay=overlay,
            control_mode=control_mode,
            control_scale=control_scale,
            map_levels=levels,
            map_gamma=gamma,
            map_grow=grow,
            map_feather=feather,
            map_seam=seam,
            map_limits=limits,
        )
        editing.check_inputs(asked.shaping() | {"fan_strengths": rising})
        locations = {"IMAGE": image, "MAP": change_map}
        locations |= {"--control-image": control_image, "--ip-adapter-image": ip_adapter_image}
        pictures = editing.Pictures(*_read_pictures(locations).values())
        with editing.quiet_libraries():
            from . import fans

            pipe, chosen, asked = _load(chosen, asked, pictures)
            with editing.spoken(pictures.titles()):
                fan = fans.fan(pipe, strengths=rising, **editing.inputs_of(pipe, asked, pictures, seed))
            settings = editing.describe_run(pipe, chosen, asked, pictures) | {"strengths": rising, "seed": seed}
        editing.write_png(fans.draw_fan(fan), out, overwrite, settings, editing.kept_of(pictures.image.pixels))
        typer.echo(f"{_printable(out)} (seed {seed}, {chosen.title})")


def _strengths(given: str) -> tuple[float, ...]:
    try:
        return tuple(map(float, given.split(",")))
    except ValueError as error:
        raise loading.UserError(f"--strengths is {given!r}; it takes numbers with commas between them.") from error


@app.command("map")
def make_map(
    image: ImageToEdit,
    text: Annotated[str | None, typer.Option(metavar="TEXT", help="What may change, in words.")] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            metavar="X", help="Probability, 0 to 1, from which on what --text finds may change wholly; soft without."
        ),
    ] = None,
    point: Annotated[
        list[str] | None,
        typer.Option(
            metavar="X,Y", help="A pixel on the object that may change; X,Y,0 is one on what is not meant. Repeatable."
        ),
    ] = None,
    box: Annotated[
        list[str] | None,
        typer.Option(metavar="L,T,R,B", help="A box in pixels around an object that may change. Repeatable."),
    ] = None,
    depth: Annotated[
        tuple[float, float] | None,
        typer.Option(
            metavar="KEPT FREE",
            help="Two depths, 0 being the nearest in IMAGE and 1 the farthest: from the first to the second, more and "
            "more may change.",
        ),
    ] = None,
    gradient: Annotated[
        str | None,
        typer.Option(
            metavar="ANGLE",
            help="In this direction, more and more may change: 0 is to the right, 90 upwards; or radial, from the edge "
            "to the middle.",
        ),
    ] = None,
    mask: Annotated[
        str | None, typer.Option(metavar="PATH_OR_URL", help="A mask as inpainting has it: what is white may change.")
    ] = None,
    difference: Annotated[
        str | None,
        typer.Option(metavar="PATH_OR_URL", help="The photo that IMAGE was painted over: what differs may change."),
    ] = None,
    combine: Annotated[
        Literal["keep", "change"],
        typer.Option(help="Of several of these, whether the map keeps or changes what any of them does."),
    ] = "keep",
    segmenter: Annotated[
        str | None, typer.Option(metavar="REPO_OR_DIR", help="A CLIPSeg for --text, e.g. CIDAS/clipseg-rd64-refined.")
    ] = None,
    mask_generator: Annotated[
        str | None,
        typer.Option(metavar="REPO_OR_DIR", help="A SAM for --point and --box, e.g. facebook/sam-vit-base."),
    ] = None,
    depth_estimator: Annotated[
        str | None,
        typer.Option(metavar="REPO_OR_DIR", help="For --depth, e.g. depth-anything/Depth-Anything-V2-Small-hf."),
    ] = None,
    grow: Grow = 0.0,
    feather: Feather = 0.0,
    seam: Seam = "across",
    levels: Levels = (0.0, 1.0),
    gamma: Gamma = 1.0,
    limits: Limits = (0.0, 1.0),
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
        inputs = {
            "map_text": text,
            "map_text_threshold": threshold,
            "map_points": point and [_numbers("--point", given, (2, 3)) for given in point],
            "map_boxes": box and [_numbers("--box", given, (4,)) for given in box],
            "map_depth": depth,
            "map_gradient": _angle(gradient),
        }
        inputs = {name: value for name, value in inputs.items() if value is not None}
        named = {"--segmenter": segmenter, "--mask-generator": mask_generator, "--depth-estimator": depth_estimator}
        models = {name: named[option] for name, option in maps.OPTIONS.items() if name in inputs}
        if not inputs.keys() - {"map_text_threshold"} and mask is None and difference is None:
            raise loading.UserError("Nothing says what may change: give --text, --gradient or another of its kind.")
        inputs |= {"map_combine": combine, "map_levels": levels, "map_gamma": gamma, "map_grow": grow}
        inputs |= {"map_feather": feather, "map_seam": seam, "map_limits": limits}
        editing.check_inputs(inputs)
        for name, location in models.items():
            if location is None:
                raise loading.UserError(f"{maps.OPTIONS[name]} is needed: it names the model that makes the map.")
        out = out or Path(f"{Path(editing.file_name(image)).stem}-map.png")
        editing.check_outputs([out, *([preview] if preview else [])], overwrite)
        read = _read_pictures({"IMAGE": image, "--mask": mask, "--difference": difference})
        pictures = {"mask_image": read["--mask"], "map_difference": read["--difference"]}
        inputs |= {name: picture for name, picture in pictures.items() if picture is not None}
        request = maps.Request(read["IMAGE"], inputs, models, invert)
        with editing.quiet_libraries():
            for name, picture in request.pictures().items():
                editing.check_picture(picture, deep=name == "mask_image", transparent=name == "image")
            made = maps.make_map(request)
        editing.write_png(maps.as_png(made), out, overwrite, maps.describe(request))
        typer.echo(_printable(out))
        if preview is not None:
            shown = maps.draw_preview(read["IMAGE"].pixels, made if invert else 1 - made)
            editing.write_png(shown, preview, overwrite)
            typer.echo(_printable(preview))


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


def _angle(given: str | None) -> float | str | None:
    try:
        return given if given in (None, "radial") else float(given)
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
