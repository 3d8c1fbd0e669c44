"""Recordings as phones and browsers write them, made with PyAV."""

import av
import numpy as np


def write_recording(path, codec, seconds=3.0, rate=48_000, channels=1):
    """A tone that gets louder, its frequency 440 Hz."""
    times = np.arange(round(seconds * rate)) / rate
    samples = (0.5 * times / seconds * np.sin(2 * np.pi * 440 * times)).astype(np.float32)
    layout = "mono" if channels == 1 else "stereo"
    format_name = {".m4a": "mp4", ".aac": "adts", ".mka": "matroska", ".wma": "asf"}
    with av.open(str(path), "w", format=format_name.get(path.suffix)) as container:
        stream = container.add_stream(codec, rate=rate, layout=layout, bit_rate=64_000)
        frame = av.AudioFrame.from_ndarray(
            np.repeat(samples[np.newaxis], channels, axis=0), format="fltp", layout=layout
        )
        frame.sample_rate, frame.pts = rate, 0
        resampler = av.AudioResampler(
            stream.format.name, layout, rate, frame_size=stream.codec_context.frame_size or 1024
        )
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return samples
