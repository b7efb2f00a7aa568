"""Video files for tests, made and looked into with PyAV alone."""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np


SIZE = (64, 48)  # width, height


def frame_of(place: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """(H, W, 3), uint8: a smooth picture that is another one at each place, white in its upper left corner."""
    width, height = size
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 200, width)
    pixels[..., 1] = np.linspace(40, 160, height)[:, None]
    pixels[..., 2] = 10 * place % 250
    pixels[: height // 4, : width // 4] = 255
    return pixels


def make_clip(
    frames: list[np.ndarray] | int = 9,
    rate: Fraction | int = 24,
    muxer: str = "mp4",
    encoder: str = "libx264",
    pixel_format: str = "yuv420p",
    sound: str | None = "aac",
    places: list[int] | None = None,
    begin: Fraction = Fraction(0),
    turned: int = 0,
    ratio: Fraction | None = None,
) -> bytes:
    """A video file with a sine tone that lasts a little longer than the frames.

    Args:
        frames: (H, W, 3) or (H, W, 4) of uint8, or how many of `frame_of`.
        sound: The encoder of the tone; None for silence.
        places: When each frame is shown, in frames; one after the other by default.
        begin: Seconds before the first frame, which the tone has.
        turned: Degrees, counterclockwise, that players turn the frames by.
        ratio: Width of a pixel by its height.
    """
    frames = [frame_of(place) for place in range(frames)] if isinstance(frames, int) else frames
    data, (height, width, channels) = io.BytesIO(), frames[0].shape
    with av.open(data, "w", format=muxer) as target:
        video = target.add_stream(encoder, rate=rate)
        video.width, video.height, video.pix_fmt = width, height, pixel_format
        video.codec_context.time_base = 1 / Fraction(rate)
        if ratio is not None:
            video.codec_context.sample_aspect_ratio = ratio
        if turned:
            video.set_display_rotation(turned)
        audio = target.add_stream(sound, rate=48_000, layout="mono") if sound else None
        for place, pixels in zip(places or range(len(frames)), frames, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, "rgba" if channels == 4 else "rgb24")
            frame = frame.reformat(format=pixel_format)
            frame.pts, frame.time_base = place + round(begin * rate), 1 / Fraction(rate)
            target.mux(video.encode(frame))
        target.mux(video.encode())
        if audio is not None:
            for packets in _tone(audio, float(begin + len(frames) / Fraction(rate)) + 0.5):
                target.mux(packets)
    return data.getvalue()


def _tone(stream: av.AudioStream, seconds: float):
    """The packets of a sine tone of 440 Hz."""
    wave = 8000 * np.sin(2 * np.pi * 440 * np.arange(round(48_000 * seconds)) / 48_000)
    whole = av.AudioFrame.from_ndarray(wave.astype(np.int16)[None], "s16", "mono")
    whole.sample_rate, whole.pts = 48_000, 0
    coding = stream.codec_context
    cutter = av.AudioResampler(coding.format, coding.layout, 48_000, coding.frame_size or 1024)
    for part in (*cutter.resample(whole), *cutter.resample(None)):
        yield stream.encode(part)
    yield stream.encode()


def sound_of(data: bytes) -> list[tuple[float, bytes]]:
    """The packets of a file's sound: when each is heard, in seconds to a millisecond, and its bytes."""
    with av.open(io.BytesIO(data)) as source:
        packets = [packet for packet in source.demux(source.streams.audio[0]) if packet.dts is not None]
        return [(round(float(packet.pts * packet.time_base), 3), bytes(packet)) for packet in packets]


def frames_of(data: bytes) -> np.ndarray:
    """(F, H, W, 3), uint8: the frames of a file."""
    with av.open(io.BytesIO(data)) as source:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in source.decode(video=0)])


def rate_of(data: bytes) -> Fraction:
    with av.open(io.BytesIO(data)) as source:
        return source.streams.video[0].guessed_rate


def metadata_of(data: bytes) -> dict[str, str]:
    with av.open(io.BytesIO(data)) as source:
        return {name.lower(): text for name, text in source.metadata.items()}
