"""The invisible watermark that Stability AI's own code embeds in SDXL's pictures; off by default."""

import numpy as np
import numpy.typing as npt

from app.errors import StartError, first_line
from app.pipelines.base import Watermark

_MIN_PIXELS = 256 * 256
"""The library does not mark smaller pictures."""


def load_watermark() -> Watermark:
    """Import the library that marks pictures, which takes a second.

    The message is the one that diffusers embeds. diffusers embeds it in the model's output, this code in the finished
    levels: the library's decoder reads levels, and would read many messages inverted otherwise.

    Raises:
        StartError: The library is not installed, or cannot be imported.
    """
    try:
        # sdxl_turbo.py turns diffusers' own watermark off, which the installed package alone would turn on.
        from diffusers.pipelines.stable_diffusion_xl.watermark import WATERMARK_BITS  # noqa: PLC0415
        from imwatermark import WatermarkEncoder  # noqa: PLC0415
    except ImportError as error:
        raise StartError(
            f"TURBO_WATERMARK needs the package invisible-watermark ({first_line(error)}). Install "
            "`sdxl-turbo-server[watermark]`. If OpenCV lacks libGL, install the system's libgl1, or replace "
            "opencv-python by opencv-python-headless."
        ) from error
    encoder = WatermarkEncoder()
    encoder.set_watermark("bits", WATERMARK_BITS)

    def mark(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        height, width, _ = pixels.shape
        if height * width < _MIN_PIXELS:
            return pixels
        blue_green_red = np.ascontiguousarray(pixels[..., ::-1])
        marked: npt.NDArray[np.uint8] = encoder.encode(blue_green_red, "dwtDct")[..., ::-1]
        return marked

    return mark
