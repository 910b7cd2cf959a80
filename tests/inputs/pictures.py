"""Small pictures and videos as files and as URLs, and messages that bring them."""

from __future__ import annotations

import base64
import io
import os

import av
import numpy as np
from PIL import Image

_PIXELS = {"gif": "rgb8", "jpeg2000": "rgb24", "mjpeg": "yuvj420p", "huffyuv": "yuv422p"}


def data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def saved(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture_url(width: int = 4) -> str:
    return data_url("image/png", saved(Image.new("RGB", (width, 4), "red")))


def video(frames: int = 3, size: int = 16, codec: str = "mpeg4", container_format: str = "avi") -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container_format) as container:
        stream = container.add_stream(codec, rate=25 if codec == "mpeg1video" else 10)
        stream.width, stream.height = size, size
        stream.pix_fmt = _PIXELS.get(codec, "yuv420p")
        for _ in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((size, size, 3), np.uint8))))
        container.mux(stream.encode())
    if hasattr(os, "sched_setscheduler") and os.sched_getscheduler(0) != os.SCHED_OTHER:
        # SVT-AV1 makes the thread that encodes a real-time one where it may: other processes would starve from now on.
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return buffer.getvalue()


def video_url(frames: int = 3) -> str:
    return data_url("video/avi", video(frames))


def user(*parts) -> dict:
    return {"role": "user", "content": list(parts)}


def noise(size: int = 24) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8))
