"""What people run: `modular-diffdiff demo`, `map`, `edit`, `batch`, `fan`, `web` and `publish`."""

from __future__ import annotations

import importlib.util
import inspect
import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer

from . import asking, catalog, editing, loading, maps, options, publishing


DEMO_NAMES = ("modular-diffdiff-demo.png", "photo.png", "map.png", "mask.png", "edges.png")
# What `web` passes on to each edit.
WEB_SETTINGS = (
    *("model", "controlnet", "ip_adapter", "lora", "segmenter", "mask_generator", "depth_estimator"),
    *("device", "dtype", "offload"),
)
UsageError = typer.BadParameter.__base__  # typer has no name for it
MAX_COUNT = 10_000


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
    help="""Differential diffusion: edit an image with a grey-scale change map.

The map gives every pixel its own strength: white keeps the original, black lets everything change.

\b
Examples:
  modular-diffdiff demo
  modular-diffdiff map photo.png --gradient 90 --out map.png
  modular-diffdiff edit photo.png map.png "a green pear"
  modular-diffdiff fan photo.png "a green pear" map.png
  modular-diffdiff batch rows.jsonl --out edited
  modular-diffdiff web

Exit codes: 0 for success, 2 for a mistake in the input, 1 for any other failure.""",
)


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
    """A text with a mark in place of what is not UTF-8, as file names can be."""
    return str(text).encode(errors="replace").decode()


@app.command()
def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the pictures.")] = Path(),
    overwrite: options.Overwrite = False,
) -> None:
    """Draw a contact sheet of edits with the embedded checkpoint, and pictures to try the other commands on.

    The sheet shows edits by words, of half a picture, along a gradient and at several strengths, and edits that an
    image prompt and edges steer. Beside it are photo.png, map.png, mask.png and edges.png, which the examples of the
    documentation take. It takes less than a minute on a CPU.

    \b
    Example:
      modular-diffdiff demo --out demo --overwrite
    """
    paths = [out / name for name in DEMO_NAMES]
    with _one_line_errors():
        editing.check_outputs(paths, overwrite)
        with editing.quiet_libraries():
            from . import demo as drawn

            pictures = [drawn.make_sheet(), *drawn.draw_examples()]
        for path, picture in zip(paths, pictures, strict=True):
            editing.write_png(picture, path, overwrite)
            typer.echo(_printable(path))


@app.command()
def edit(
    ctx: typer.Context,
    image: options.ImageOrVideo,
    map_and_prompt: Annotated[
        list[str],
        typer.Argument(
            metavar="[MAP] PROMPT",
            help="Path or URL of the change map (white keeps, black changes), or - for stdin; not needed with --text, "
            "--mask and the like. For a video it is one for all frames, or a video with one for each. Then what to "
            "draw in the changed regions.",
        ),
    ],
    negative: options.Negative = None,
    model: options.ModelName = loading.EMBEDDED,
    steps: options.Steps = None,
    guidance_scale: options.GuidanceScale = None,
    control_image: options.ControlImage = None,
    control_mode: options.ControlMode = None,
    controlnet: options.ControlNet = None,
    control_scale: options.ControlScale = None,
    ip_adapter_image: options.IPAdapterImage = None,
    ip_adapter: options.IPAdapter = None,
    ip_adapter_scale: options.IPAdapterScale = None,
    lora: options.LoRA = None,
    region: options.Region = None,
    seed: options.Seed = None,
    invert_map: options.InvertMap = False,
    text: options.Text = None,
    threshold: options.Threshold = None,
    point: options.Point = None,
    box: options.Box = None,
    depth: options.Depth = None,
    gradient: options.Gradient = None,
    mask: options.Mask = None,
    difference: options.Difference = None,
    combine: options.Combine = None,
    segmenter: options.Segmenter = None,
    mask_generator: options.MaskGenerator = None,
    depth_estimator: options.DepthEstimator = None,
    grow: options.Grow = None,
    feather: options.Feather = None,
    seam: options.Seam = None,
    levels: options.Levels = None,
    gamma: options.Gamma = None,
    limits: options.Limits = None,
    softness: options.Softness = 0.0,
    fill: options.Fill = "original",
    strength: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            metavar="X",
            help="Turn the whole map down: 0 keeps everything, as a white map does.",
        ),
    ] = 1.0,
    overlay: options.Overlay = False,
    match_colors: options.MatchColors = False,
    crop: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65_536,
            metavar="PAD",
            help="Edit only the box that changes, with PAD pixels around it, and paste it into IMAGE.",
        ),
    ] = None,
    count: Annotated[
        int,
        typer.Option(min=1, max=MAX_COUNT, metavar="N", help="How many pictures to make, with consecutive seeds."),
    ] = 1,
    batch_size: options.BatchSize = 1,
    batch_guidance: options.BatchGuidance = False,
    device: options.Device = None,
    dtype: options.DType = None,
    offload: options.Offload = False,
    threads: options.Threads = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="The .png file to write, or of a video the .mp4, .mov, .mkv or .webm; IMAGE-edit.png in the current "
            "folder by default, or IMAGE-edit.mp4. With --count, the seed is added to each name.",
        ),
    ] = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Edit IMAGE towards PROMPT, each pixel as strongly as the change map allows.

    The map is MAP, or is made from --text, --mask and the like, as `modular-diffdiff map` makes it; --combine joins
    several. White parts keep the original, black parts change freely, and greys lie in between. The result has the
    image's size (some edit models have their own), its colour profile and its DPI, with 8 bits per colour. Its PNG
    holds all that it takes to repeat it, as JSON in the text chunk "modular-diffdiff": prompt, seed, how the map was
    made, model, settings and versions, and the SHA-256 of each picture's bytes.

    A video comes back with its size, frame rate and sound, as H.264, or VP9 in .webm, and holds the same JSON as its
    comment. This needs `pip install 'modular-diffdiff[video]'`.

    \b
    Examples:
      modular-diffdiff edit photo.png map.png "a green pear" --seed 1
      modular-diffdiff edit photo.png "a green pear" --mask mask.png --feather 4
      modular-diffdiff edit photo.png map.png "a pear" --ip-adapter-image orange.png
      modular-diffdiff edit photo.png map.png "a tabletop" --region "left.png=a pear" --region "the cup=a bottle"
      modular-diffdiff edit photo.png map.png "a snowy street" --count 4 \\
        --model stabilityai/stable-diffusion-xl-base-1.0 --offload
      modular-diffdiff edit clip.mp4 map.png "a green pear" --model Wan-AI/Wan2.1-T2V-1.3B-Diffusers
    """
    with _one_line_errors():
        change_map, prompt = _split(map_and_prompt)
        asking.check_words(prompt, ctx.params)
        if change_map is None and not maps.are_asked(ctx.params):
            raise loading.UserError(
                "Nothing says what may change: give MAP before PROMPT, or use --text, --mask or the like."
            )
        if seed is not None and seed + count - 1 > options.MAX_SEED:
            raise loading.UserError(
                f"--seed {seed} with --count {count} goes beyond the largest seed, {options.MAX_SEED}."
            )
        if seed is None:
            seed = secrets.randbelow(options.MAX_SEED + 2 - count)
        kind = asking.kind_of(editing.file_name(image), ctx.params)
        out = out or editing.name_output(image, kind)
        seeds = range(seed, seed + count)
        paths = {seed: out} if count == 1 else {n: out.with_stem(f"{out.stem}-{n}") for n in seeds}
        editing.check_outputs(list(paths.values()), overwrite, kind.suffixes)
        chosen, asked = asking.ask_edit(prompt, ctx.params)
        pictures, request = asking.ask_pictures(change_map, ctx.params, kind)
        pictures.image.check_output(out.suffix, f"--out {str(out)!r}")
        with editing.quiet_libraries():
            from .encodings import encode_once

            pipe, chosen, asked, keep = _load(chosen, asked, pictures, request)
            settings = maps.describe(request) | editing.describe_run(pipe, chosen, asked, pictures)
            regions = maps.make_regions(request)
            with encode_once(pipe):
                for start in range(0, count, batch_size):
                    together = seeds[start : start + batch_size]
                    results = editing.run_edits(pipe, asked, pictures, keep, together, regions)
                    for place, (n, result) in enumerate(zip(together, results, strict=True)):
                        told = settings | {"seed": n} | editing.describe_place(len(together), place)
                        data = pictures.image.encode(result, told, paths[n].suffix)
                        editing.write_file(data, paths[n], overwrite, kind.suffixes)
                        typer.echo(f"{_printable(paths[n])} (seed {n}, {chosen.title})")


def _with_options_of(command: Callable, **changed: Any) -> Callable[[Callable], Callable]:
    """Gives a command the options of another that it does not have itself, with other defaults where they are given.

    The command takes them as `**options`, and typer reads them from the signature.
    """

    def decorate(function: Callable) -> Callable:
        own, others = (inspect.signature(each, eval_str=True).parameters for each in (function, command))
        added = [
            param.replace(kind=param.KEYWORD_ONLY, default=changed.get(name, param.default))
            for name, param in others.items()
            if name not in {*own, "count", "overwrite"} and param.default is not param.empty
        ]
        kept = [param for param in own.values() if param.kind is not param.VAR_KEYWORD]
        function.__signature__ = inspect.Signature([*kept, *added])
        function.__annotations__ = {param.name: param.annotation for param in (*kept, *added)}
        return function

    return decorate


@app.command()
@_with_options_of(edit, threads=1)
def batch(
    manifest: Annotated[
        Path,
        typer.Argument(
            metavar="MANIFEST",
            help="A .jsonl, .csv or .parquet file, a row for each edit: id, image, prompt, map, or a source of one "
            "(text, gradient, ...), and the other options below that are about one picture, by their names (steps, "
            "guidance_scale, ...). Paths are relative to its folder.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write; one of an earlier run goes on.")],
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option(
            help="Processes on this machine, or Ray: the cluster at RAY_ADDRESS, or this machine. Ray needs "
            "`pip install 'ray[data]'`."
        ),
    ] = "local",
    workers: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="How many copies of the model work; by default one per accelerator."),
    ] = None,
    batch_size: Annotated[
        int,
        typer.Option(
            min=1,
            max=1000,
            metavar="N",
            help="How many rows of one size and the same settings may share a call of the model. That is faster, and "
            "changes pixels by 1/255 at most.",
        ),
    ] = 1,
    with_maps: Annotated[bool, typer.Option("--maps", help="Write each row's change map too, to DIR/maps.")] = False,
    retry_errors: Annotated[bool, typer.Option("--retry-errors", help="Do rows again that have failed.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Do at most N rows now.")] = None,
    timeout: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="End if no row ends for so long: something hangs.")
    ] = 3600,
    **edit_options: Any,
) -> None:
    """Edit thousands of pictures: a manifest in, pictures and a table out.

    DIR gets images/ID.png, or videos/ID.mp4 of a video, and results.parquet and results.jsonl with a row for each of
    MANIFEST: its status, error, path, SHA-256 and more. A row that cannot be edited is a row with an error, and the
    others go on. Killed at any point, the same command goes on where it was; rows whose files, settings or model have
    changed are done anew. Options are what holds for rows that say nothing else. A row without a seed has one that
    follows from its id.

    \b
    Examples:
      modular-diffdiff batch photos.jsonl --out edited
      modular-diffdiff batch photos.csv --out edited --steps 30 --workers 4
      modular-diffdiff batch photos.parquet --out edited --engine ray \\
        --model stabilityai/stable-diffusion-xl-base-1.0

    Exit codes: 0 all rows are done, 1 some failed or the job could not go on, 2 for a mistake in what was given, 130 or
    143 if it was stopped.
    """
    with _one_line_errors():
        from . import batch_command

        batch_command.run(
            manifest,
            out,
            engine=engine,
            workers=workers,
            batch_size=batch_size,
            with_maps=with_maps,
            retry_errors=retry_errors,
            limit=limit,
            timeout=timeout,
            **edit_options,
        )


def _split(map_and_prompt: list[str]) -> tuple[str | None, str]:
    """MAP, None without one, and PROMPT."""
    if len(map_and_prompt) > 2:
        raise loading.UserError(f"{map_and_prompt[2]!r} is one argument too many, after MAP and PROMPT.")
    return (None, *map_and_prompt) if len(map_and_prompt) == 1 else tuple(map_and_prompt)


def _load(
    model: loading.Model, asked: editing.Edit, pictures: editing.Pictures, request: maps.Request
) -> tuple[Any, loading.Model, editing.Edit, np.ndarray]:
    """The pipeline, the model and the edit that are settled on, and the map, which is made first."""
    model, settled = asking.settle(model, asked, pictures, request)
    if said := asking.tell_recipe(model, asked, settled):
        typer.echo(said, err=True)
    loading.set_threads(model)
    keep = maps.make_maps(request)
    pipe = loading.load_pipeline(model, settled.guidance_scale)
    editing.warn_of_long_texts(pipe, settled)
    return pipe, model, settled, keep


@app.command("fan")
def make_fan(
    ctx: typer.Context,
    image: options.ImageToEdit,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to draw in the changed regions.")],
    change_map: Annotated[
        str | None,
        typer.Argument(
            metavar="MAP",
            help="Path or URL of the change map (white keeps, black changes), or - for stdin; without it, and without "
            "--text, --mask and the like, everything may change.",
        ),
    ] = None,
    strengths: Annotated[
        str, typer.Option(metavar="X,X,...", help="2 to 100 rising numbers from 0 to 1, separated by commas.")
    ] = "0.2,0.4,0.6,0.8,1.0",
    negative: options.Negative = None,
    model: options.ModelName = loading.EMBEDDED,
    steps: options.Steps = None,
    guidance_scale: options.GuidanceScale = None,
    control_image: options.ControlImage = None,
    control_mode: options.ControlMode = None,
    controlnet: options.ControlNet = None,
    control_scale: options.ControlScale = None,
    ip_adapter_image: options.IPAdapterImage = None,
    ip_adapter: options.IPAdapter = None,
    ip_adapter_scale: options.IPAdapterScale = None,
    lora: options.LoRA = None,
    seed: options.Seed = None,
    invert_map: options.InvertMap = False,
    text: options.Text = None,
    threshold: options.Threshold = None,
    point: options.Point = None,
    box: options.Box = None,
    depth: options.Depth = None,
    gradient: options.Gradient = None,
    mask: options.Mask = None,
    difference: options.Difference = None,
    combine: options.Combine = None,
    segmenter: options.Segmenter = None,
    mask_generator: options.MaskGenerator = None,
    depth_estimator: options.DepthEstimator = None,
    grow: options.Grow = None,
    feather: options.Feather = None,
    seam: options.Seam = None,
    levels: options.Levels = None,
    gamma: options.Gamma = None,
    limits: options.Limits = None,
    softness: options.Softness = 0.0,
    fill: options.Fill = "original",
    overlay: options.Overlay = False,
    match_colors: options.MatchColors = False,
    batch_guidance: options.BatchGuidance = False,
    device: options.Device = None,
    dtype: options.DType = None,
    offload: options.Offload = False,
    threads: options.Threads = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="The .png file to write; IMAGE-fan.png in the current folder by default."),
    ] = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Show one edit at several strengths, to choose the one for `edit --strength`.

    A strength turns the whole map down; without a map, it is image-to-image's. The sheet shows the results in a row,
    all from the same noise, and beside them one picture in strips of rising strength. They are made as one batch, which
    takes the memory of as many pictures. The PNG holds all that it takes to repeat it, as JSON in the text chunk
    "modular-diffdiff".

    \b
    Examples:
      modular-diffdiff fan photo.png "a green pear" --seed 1
      modular-diffdiff fan photo.png "a green pear" map.png --strengths 0.3,0.5,0.7
    """
    with _one_line_errors():
        asking.check_words(prompt, ctx.params)
        rising = asking.strengths(strengths)
        editing.check_inputs({"fan_strengths": rising})
        seed = secrets.randbelow(options.MAX_SEED + 1) if seed is None else seed
        out = out or Path(f"{Path(editing.file_name(image)).stem}-fan.png")
        editing.check_outputs([out], overwrite)
        chosen, asked = asking.ask_edit(prompt, ctx.params)
        pictures, request = asking.ask_pictures(change_map, ctx.params)
        with editing.quiet_libraries():
            from . import fans

            pipe, chosen, asked, keep = _load(chosen, asked, pictures, request)
            with editing.spoken(pictures.titles()):
                fan = fans.fan(pipe, strengths=rising, **editing.inputs_of(pipe, asked, pictures, keep, seed))
            settings = maps.describe(request) | editing.describe_run(pipe, chosen, asked, pictures)
        settings |= {"strengths": rising, "seed": seed}
        editing.write_png(fans.draw_fan(fan), out, overwrite, settings, editing.kept_of(pictures.image.pixels))
        typer.echo(f"{_printable(out)} (seed {seed}, {chosen.title})")


@app.command("map")
def make_map(
    ctx: typer.Context,
    image: options.ImageToEdit,
    text: options.Text = None,
    threshold: options.Threshold = None,
    point: options.Point = None,
    box: options.Box = None,
    depth: options.Depth = None,
    gradient: options.Gradient = None,
    mask: options.Mask = None,
    difference: options.Difference = None,
    combine: options.Combine = None,
    segmenter: options.Segmenter = None,
    mask_generator: options.MaskGenerator = None,
    depth_estimator: options.DepthEstimator = None,
    grow: options.Grow = None,
    feather: options.Feather = None,
    seam: options.Seam = None,
    levels: options.Levels = None,
    gamma: options.Gamma = None,
    limits: options.Limits = None,
    invert: Annotated[
        bool, typer.Option("--invert", help="Write it inverted, as an inpainting mask: white where IMAGE changes.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="The .png file to write; IMAGE-map.png in the current folder by default."),
    ] = None,
    preview: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="A .png file to show it in: IMAGE in grey, redder where it may change more."),
    ] = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Make a change map for IMAGE: white where it is kept, black where it changes.

    At least one of --text, --point, --box, --depth, --gradient, --mask and --difference says what may change. The PNG
    has 16 bits per pixel, and holds all that it takes to repeat it, as JSON in the text chunk "modular-diffdiff".

    \b
    Examples:
      modular-diffdiff map photo.png --gradient 90 --preview shown.png
      modular-diffdiff map photo.png --mask mask.png --grow 8 --feather 4
      modular-diffdiff map photo.png --text "a dog" --segmenter CIDAS/clipseg-rd64-refined
    """
    with _one_line_errors():
        asking.check_texts({"--text": text})
        if not maps.are_asked(ctx.params):
            raise loading.UserError("Nothing says what may change: use --text, --mask or the like.")
        inputs, models = asking.ask_map(ctx.params)
        out = out or Path(f"{Path(editing.file_name(image)).stem}-map.png")
        editing.check_outputs([out, *([preview] if preview else [])], overwrite)
        read = asking.read_pictures({"IMAGE": image, "--mask": mask, "--difference": difference})
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


@app.command()
def web(
    ctx: typer.Context,
    model: options.ModelName = loading.EMBEDDED,
    controlnet: options.ControlNet = None,
    ip_adapter: options.IPAdapter = None,
    lora: options.LoRA = None,
    segmenter: options.Segmenter = None,
    mask_generator: options.MaskGenerator = None,
    depth_estimator: options.DepthEstimator = None,
    device: options.Device = None,
    dtype: options.DType = None,
    offload: options.Offload = False,
    port: Annotated[
        int | None, typer.Option(min=1, max=65_535, metavar="N", help="By default, the first free one from 7860 on.")
    ] = None,
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="Where to listen: by default only this machine can reach the page, with 0.0.0.0 others can too.",
        ),
    ] = "127.0.0.1",
    auth: Annotated[
        str | None, typer.Option(metavar="USER:PASSWORD", help="Ask visitors to log in with these.")
    ] = None,
    mcp: Annotated[
        bool,
        typer.Option("--mcp", help="Also offer edits, maps and fans as MCP tools; needs `pip install 'gradio[mcp]'`."),
    ] = False,
) -> None:
    """Open a page on this machine to paint what may change, see it, and edit.

    It needs `pip install 'gradio>=6.31'`. What visitors upload is deleted when they leave.

    \b
    Examples:
      modular-diffdiff web
      modular-diffdiff web --model stabilityai/stable-diffusion-xl-base-1.0 --segmenter CIDAS/clipseg-rd64-refined
    """
    with _one_line_errors():
        settings = {name: ctx.params[name] for name in WEB_SETTINGS if ctx.params[name] is not None}
        if auth is not None and not all(auth.partition(":")):
            raise loading.UserError(f"--auth is {auth!r}; it takes USER:PASSWORD.")
        if auth is not None and mcp:
            raise loading.UserError("--mcp takes no --auth: its clients cannot log in.")
        try:
            from . import web as page
        except ModuleNotFoundError as error:
            raise loading.UserError("The page needs gradio: pip install 'gradio>=6.31'.") from error
        if mcp and importlib.util.find_spec("mcp") is None:
            raise loading.UserError("--mcp needs gradio's extra of that name: pip install 'gradio[mcp]'.")
        if host not in ("127.0.0.1", "localhost"):
            known = (
                "and knows the password can open the page" if auth else "can open the page; --auth asks for a password"
            )
            typer.echo(f"Anybody who can reach this machine at {host} {known}.", err=True)
        password = auth and tuple(auth.split(":", 1))
        page.serve(settings, server_name=host, server_port=port, auth=password, mcp_server=mcp)


@app.command()
def publish(
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="The repository, owner/name, without a dot.")],
    family: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help=f"Model family to publish: one of {', '.join(catalog.FAMILIES)}; sdxl by default."
        ),
    ] = None,
    checkpoint: Annotated[
        bool,
        typer.Option("--checkpoint", help="Publish the embedded checkpoint and its companions, instead of the blocks."),
    ] = False,
    block: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Publish one block that makes or shapes change maps, e.g. map-text."),
    ] = None,
    space: Annotated[
        bool, typer.Option("--space", help="Publish the page as a Space, for --family or for the embedded model.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write the folder and stop; no network is used.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The folder that --dry-run writes; the name of REPO_ID by default."),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a private repository.")] = False,
    revision: Annotated[
        str | None, typer.Option(metavar="BRANCH", help="The branch to commit to; created if it does not exist.")
    ] = None,
) -> None:
    """Publish the blocks of a model family, or the page, as a repository on the Hugging Face Hub.

    It is assembled, loaded in a fresh process (a Space is started and makes an edit), listed with its files' sizes,
    and sent in one commit, with the token of `hf auth login` or HF_TOKEN. Unchanged files are not sent again, and files
    of an earlier version that are no longer part of it are deleted. A repository that holds anything else is refused.
    If sending fails, nothing changes.

    \b
    Examples:
      modular-diffdiff publish ada/diffdiff-sdxl --dry-run
      modular-diffdiff publish ada/diffdiff-sdxl --private
      modular-diffdiff publish ada/diffdiff-flux --family flux
      modular-diffdiff publish ada/still-life --checkpoint
      modular-diffdiff publish ada/map-text --block map-text
      modular-diffdiff publish ada/page --space --family sdxl
    """
    with _one_line_errors(), tempfile.TemporaryDirectory() as temporary:
        contents = {"--family": family and not space, "--space": space, "--checkpoint": checkpoint, "--block": block}
        _check_publish(contents, {"--private": private, "--revision": revision} if dry_run else {"--out": out})
        content = _content(family, checkpoint, block, space)
        publishing.check_repo_id(repo_id, holds_code=not (checkpoint or space))
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


def _content(family: str | None, checkpoint: bool, block: str | None, space: bool) -> publishing.Content:
    if family is not None and family not in catalog.FAMILIES:
        raise loading.UserError(f"--family is {family!r}; it takes one of {', '.join(catalog.FAMILIES)}.")
    if space:
        return publishing.space_of(family)
    if checkpoint:
        return publishing.still_life()
    return publishing.blocks_of(family or "sdxl") if block is None else publishing.block_of(block)


def _check_publish(contents: dict[str, Any], unused: dict[str, Any]) -> None:
    named = [option for option, value in contents.items() if value]
    if len(named) > 1:
        raise loading.UserError(f"{' and '.join(named)} name several repositories; publish one after the other.")
    for option, value in unused.items():
        if value:
            raise loading.UserError("--out needs --dry-run." if option == "--out" else f"--dry-run takes no {option}.")


def main() -> None:
    """The entry point `modular-diffdiff`."""
    app(prog_name="modular-diffdiff")


if __name__ == "__main__":
    main()
