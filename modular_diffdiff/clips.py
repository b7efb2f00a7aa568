"""Video files: their frames and sound in, and the edited frames with the same sound out, by PyAV.

Heavy libraries are imported where they are used: a mistake in a file's name is answered before they are loaded.
"""

from __future__ import annotations

import heapq
import io
import itertools
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image

from .blocks import diffdiff_files
from .loading import UserError


if TYPE_CHECKING:
    import av
    import torch

MOST_FRAMES = 10_000
MOST_PIXELS = 2**30  # of all frames together, 3 GiB in memory
MOST_RATE = 1000  # frames a second
# What is opened: no playlists, as they lead to other files and addresses, and no files that a video names.
OPENED = {
    "format_whitelist": "mov,mp4,matroska,webm,avi,gif,mpegts,mpeg,mpegvideo,flv,ogg,asf",
    "protocol_whitelist": "none",
}
# x264's macroblock tree reads beyond its memory on small frames: the same frames then give other bits.
H264 = "libx264", {"crf": "16", "mbtree": "0"}
# How each kind of file is written: its muxer, its encoder, and the options of that.
WRITERS = {
    ".mp4": ("mp4", *H264),
    ".mov": ("mov", *H264),
    ".mkv": ("matroska", *H264),
    ".webm": ("webm", "libvpx-vp9", {"crf": "20", "b": "0", "row-mt": "1", "cpu-used": "4"}),
}
# Suffixes of files that can be nothing but videos; .gif can be either.
SUFFIXES = (*WRITERS, ".m4v", ".avi", ".mpg", ".mpeg", ".ts", ".ogv", ".wmv", ".flv")
THREADS = 4  # of an encoder, whose bits follow from them
PREROLL = Fraction(8, 100)  # seconds of sound before a video's beginning that decoders need
# ITU-T H.273's numbers for colours, and FFmpeg's for their range.
BT709, UNSPECIFIED, LIMITED = 1, 2, 1
LEAST_HD = 720  # rows from which players take BT.709 where nothing is specified
LARGEST_DENOMINATOR = 100_000  # of a frame rate that is given as a float


def is_named_video(name: str) -> bool:
    """Whether a file of this name can only be a video."""
    return Path(name).suffix.lower() in SUFFIXES


@dataclass(frozen=True)
class Video:
    """A video as it was read.

    Attributes:
        frames: In RGB, upright, all of one size.
        frame_rate: Frames a second.
        sound: The bytes of the file, whose sound `write_video` copies; None for a silent video.
    """

    frames: list[PIL.Image.Image]
    frame_rate: Fraction
    sound: bytes | None = None


def read_video(path: str | os.PathLike) -> Video:
    """A video file's frames, its frame rate and its sound; or those of a GIF.

    Frames are turned upright as the file says. It takes up to 10,000 frames, with up to 2**30 pixels together, and up
    to 1000 frames a second.

    Args:
        path: Of a file: .mp4, .mov, .mkv, .webm, .avi, .gif and others.

    Raises:
        UserError: If it cannot be read as a video with 8 bits a colour, square pixels and a constant frame rate, or if
            PyAV is not installed.
    """
    path = os.fspath(path)
    try:
        return open_video(diffdiff_files.read(path))
    except diffdiff_files.UnreadableError as error:
        raise UserError(f"{path!r} cannot be read: {error}.") from error


def write_video(
    path: str | os.PathLike,
    frames: list[PIL.Image.Image] | np.ndarray | torch.Tensor,
    frame_rate: Fraction | float,
    sound: bytes | None = None,
) -> None:
    """Writes frames as a video file, over one that exists: H.264 in .mp4, .mov and .mkv, VP9 in .webm.

    Colours have 4:2:0 chroma; but H.264 knows no odd sides there, and such frames are written with 4:4:4, which fewer
    players show. The sound is copied as it is, not encoded again, up to the end of the last frame.

    Args:
        path: Of the file; its suffix says which kind.
        frames: PIL images of one size, an array (F, H, W, 3) of uint8 or floats in [0, 1], or a tensor (F, 3, H, W).
        frame_rate: Frames a second, up to 1000.
        sound: As `Video.sound`.

    Raises:
        UserError: If the suffix, the frame rate or the sound cannot be written, or PyAV is not installed.
        BadInputError: If the frames are not a video.
        OSError: If the file cannot be written.
    """
    from .blocks import diffdiff_frames, diffdiff_pixels

    path = Path(path)
    if path.suffix.lower() not in WRITERS:
        raise UserError(f"`path` takes a file that ends in {listed(WRITERS)}, not {str(path)!r}.")
    if not 0 < frame_rate <= MOST_RATE:
        raise UserError(f"`frame_rate` is {frame_rate}; it takes a number above 0, up to {MOST_RATE}.")
    try:
        check_sound(sound, path.suffix, f"`path` is {str(path)!r}, which")
    except diffdiff_files.UnreadableError as error:
        raise UserError(f"`sound` cannot be read: {error}.") from error
    pictures = diffdiff_pixels.in_unit_range(diffdiff_frames.split_frames(frames), "frames")
    arrays = [diffdiff_pixels.to_dtype(diffdiff_pixels.as_array(frame), np.uint8) for frame in pictures]
    rate = Fraction(frame_rate).limit_denominator(LARGEST_DENOMINATOR)
    path.write_bytes(encode_video([PIL.Image.fromarray(array) for array in arrays], rate, path.suffix, sound))


# Reading


def open_video(data: bytes, most_pixels: int | None = None) -> Video:
    """A video of a file's bytes, as `read_video` reads it.

    Args:
        most_pixels: Of all frames together; `MOST_PIXELS` by default.

    Raises:
        UnreadableError: If they are no such video.
        UserError: If PyAV is not installed.
    """
    with _opened(data) as container:
        stream = next((one for one in container.streams.video if not _is_cover(one)), None)
        if stream is None:
            raise diffdiff_files.UnreadableError("it holds no video")
        most_pixels = most_pixels or MOST_PIXELS
        _check_size(stream, most_pixels)
        stream.thread_type = "AUTO"
        times, frames = [], []
        for frame in _decode(container, stream):
            times.append(frame.time)
            frames.append(_upright(frame))
            _check_amount(len(frames), frame.width * frame.height, most_pixels)
        if not frames:
            raise diffdiff_files.UnreadableError("it holds no frames")
        if len({frame.size for frame in frames}) > 1:
            raise diffdiff_files.UnreadableError("its frames have several sizes")
        return Video(frames, _rate_of(stream, times), data if container.streams.audio else None)


@contextmanager
def _opened(data: bytes) -> Iterator[av.container.InputContainer]:
    """A video's file, to read from.

    Raises:
        UnreadableError: If PyAV cannot read it, or what is done with it fails.
    """
    av = find_library()
    try:
        with av.open(io.BytesIO(data), options=OPENED) as container:
            yield container
    except av.FFmpegError as error:
        raise diffdiff_files.UnreadableError("it is damaged, or not a video") from error


def find_library() -> Any:
    """PyAV.

    Raises:
        UserError: If it is not installed.
    """
    try:
        import av
    except ModuleNotFoundError as error:
        raise UserError("Videos need PyAV: pip install 'modular-diffdiff[video]'.") from error
    return av


def _is_cover(stream: av.VideoStream) -> bool:
    """Whether this is the picture of a piece of music."""
    return bool(stream.disposition & type(stream.disposition).attached_pic)


def _check_size(stream: av.VideoStream, most_pixels: int) -> None:
    """Refuses, by what the file says of itself, what would be too much or lose something."""
    _check_amount(max(stream.frames, 1), stream.width * stream.height, most_pixels)
    if stream.sample_aspect_ratio not in (None, 0, 1):
        raise diffdiff_files.UnreadableError(
            f"its pixels are not square but {stream.sample_aspect_ratio}; scale it to square ones"
        )


def _check_amount(frames: int, pixels: int, most_pixels: int) -> None:
    if frames > MOST_FRAMES or frames * pixels > most_pixels:
        raise diffdiff_files.UnreadableError(
            f"it holds more than {MOST_FRAMES:,} frames, or {most_pixels:,} pixels in all frames; cut or scale it"
        )


def _decode(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """The frames of a stream, in the order in which they are shown."""
    for packet in container.demux(stream):
        frames = packet.decode()
        if packet.is_corrupt or any(frame.is_corrupt for frame in frames):
            raise diffdiff_files.UnreadableError("it is damaged")
        yield from frames


def _upright(frame: av.VideoFrame) -> PIL.Image.Image:
    """A frame in RGB, turned as the file says."""
    parts = frame.format.components
    if any(part.bits > 8 for part in parts):
        raise diffdiff_files.UnreadableError("it has more than 8 bits per colour; convert it to 8 bits")
    if any(part.is_alpha for part in parts) and frame.to_ndarray(format="rgba")[..., 3].min() < 255:
        raise diffdiff_files.UnreadableError("it is transparent in places; flatten it")
    unspecified = frame.colorspace == UNSPECIFIED and frame.height >= LEAST_HD
    in_rgb = frame.reformat(format="rgb24", src_colorspace=BT709 if unspecified else None)
    return PIL.Image.fromarray(in_rgb.to_ndarray()).rotate(frame.rotation, expand=True)


def _rate_of(stream: av.VideoStream, times: list[float | None]) -> Fraction:
    """The frame rate, constant to half a frame."""
    if None in times:
        raise diffdiff_files.UnreadableError("it does not say when its frames are shown")
    rates = [Fraction(rate) for rate in (stream.guessed_rate, stream.average_rate) if rate]
    if not rates:
        raise diffdiff_files.UnreadableError("it has no frame rate")
    fitting = [rate for rate in rates if _is_constant(rate, times)]
    if not fitting:
        gaps = [after - before for before, after in itertools.pairwise(times)]
        raise diffdiff_files.UnreadableError(
            f"its frame rate is not constant: frames are {min(gaps):.3g} to {max(gaps):.3g} seconds apart; convert it "
            "to a constant one"
        )
    if fitting[0] > MOST_RATE:
        raise diffdiff_files.UnreadableError(f"it has {fitting[0]} frames a second; up to {MOST_RATE} are taken")
    return fitting[0]


def _is_constant(rate: Fraction, times: list[float]) -> bool:
    """Whether frames come at this rate, each at most half a frame too early or late."""
    return all(abs((time - times[0]) * rate - place) <= 0.5 for place, time in enumerate(times))


# Writing


def check_sound(sound: bytes | None, suffix: str, title: str) -> None:
    """Refuses a kind of file that cannot hold this sound.

    Args:
        sound: As `Video.sound`.
        suffix: One of `WRITERS`.
        title: What the message begins with.

    Raises:
        UserError: Naming those that can.
    """
    if sound is None or _holds(suffix.lower(), sound):
        return
    with _opened(sound) as container:
        codecs = sorted({stream.codec_context.name for stream in container.streams.audio})
    able = [kind for kind in WRITERS if _holds(kind, sound)]
    others = f"{listed(able)} can" if able else "convert it, or take it out"
    raise UserError(f"{title} cannot hold the sound as it is ({', '.join(codecs)}); {others}.")


def _holds(suffix: str, sound: bytes) -> bool:
    """Whether a file can hold this sound, as a second of it shows."""
    try:
        encode_video([PIL.Image.new("RGB", (64, 64))], Fraction(1), suffix, sound)
    except ValueError:  # PyAV's own, or an `UnreadableError`
        return False
    return True


def encode_video(
    frames: list[PIL.Image.Image],
    frame_rate: Fraction,
    suffix: str,
    sound: bytes | None = None,
    comment: str | None = None,
) -> bytes:
    """A video file, as `write_video` writes it; the same arguments give the same bytes.

    Args:
        frames: In RGB, of one size.
        suffix: One of `WRITERS`.
        comment: What the file's metadata says.
    """
    av = find_library()
    muxer, encoder, options = WRITERS[suffix.lower()]
    data = io.BytesIO()
    how = {"fflags": "bitexact", "movflags": "use_metadata_tags"}  # .mov's other tags hold 64 KiB
    with ExitStack() as stack:
        target = stack.enter_context(av.open(data, "w", format=muxer, container_options=how))
        if comment is not None:
            target.metadata["comment"] = comment
        pictures = _add_pictures(target, encoder, options, frames[0].size, frame_rate)
        packets = [_encode(pictures, frames, frame_rate)]
        if sound is not None:
            source = stack.enter_context(_opened(sound))
            packets.append(_copy_sound(source, target, len(frames) / frame_rate))
        for packet in heapq.merge(*packets, key=lambda packet: packet.dts * packet.time_base):
            target.mux(packet)
    return data.getvalue()


def _add_pictures(target: av.container.OutputContainer, encoder: str, options: dict, size: tuple, rate: Fraction):
    """A stream for frames of this size (width, height)."""
    stream = target.add_stream(encoder, rate=rate, options=options)
    stream.width, stream.height = size
    is_odd = any(side % 2 for side in size)
    stream.pix_fmt = "yuv444p" if is_odd and encoder == "libx264" else "yuv420p"
    coding = stream.codec_context
    coding.thread_count, coding.time_base = THREADS, 1 / rate
    coding.color_primaries = coding.color_trc = coding.colorspace = BT709
    coding.color_range = LIMITED
    return stream


def _encode(stream: av.VideoStream, frames: list[PIL.Image.Image], rate: Fraction) -> Iterator[av.Packet]:
    av = find_library()
    for place, picture in enumerate(frames):
        frame = av.VideoFrame.from_image(picture).reformat(format=stream.pix_fmt, dst_colorspace=BT709)
        frame.pts, frame.time_base = place, 1 / rate
        yield from stream.encode(frame)
    yield from stream.encode()


def _copy_sound(
    source: av.container.InputContainer, target: av.container.OutputContainer, seconds: Fraction
) -> Iterator[av.Packet]:
    """The packets of all sound that is heard with the frames, which begin at 0 and take so many seconds."""
    videos = [stream for stream in source.streams.video if not _is_cover(stream)]
    begin = (videos[0].start_time or 0) * videos[0].time_base if videos else Fraction(0)
    copies = {stream.index: target.add_stream_from_template(stream) for stream in source.streams.audio}
    return _shift(source.demux(source.streams.audio), copies, begin, seconds)


def _shift(
    packets: Iterable[av.Packet], copies: dict[int, av.AudioStream], begin: Fraction, seconds: Fraction
) -> Iterator[av.Packet]:
    for packet in packets:
        if packet.dts is None or packet.stream.index not in copies:  # behind the last one, or not sound
            continue
        if -PREROLL <= packet.pts * packet.time_base - begin < seconds:
            shift = round(begin / packet.time_base)
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            packet.stream = copies[packet.stream.index]
            yield packet


def listed(names: Iterable[str]) -> str:
    """Names as a message gives them."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last
