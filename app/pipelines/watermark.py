"""The invisible watermark that Stability AI's own code works into SDXL's pictures; here only where it is asked for."""

import numpy as np
import numpy.typing as npt

from app.errors import StartError, first_line
from app.pipelines.base import Watermark

_MIN_PIXELS = 256 * 256
"""The library refuses to mark smaller pictures."""


def load_watermark() -> Watermark:
    """Import what marks pictures, which takes a second.

    The message is the one that diffusers embeds. It is embedded in the finished levels, though, and not in the model's
    output as diffusers does: the library's decoder reads levels, and finds it in many a picture upside down otherwise.

    Raises:
        StartError: It is not installed, or cannot be imported.
    """
    try:
        # diffusers would embed it by itself, merely because the package is there; sdxl_turbo.py tells it not to.
        from diffusers.pipelines.stable_diffusion_xl.watermark import WATERMARK_BITS  # noqa: PLC0415
        from imwatermark import WatermarkEncoder  # noqa: PLC0415
    except ImportError as error:
        raise StartError(
            f"TURBO_WATERMARK needs the package invisible-watermark ({first_line(error)}): install "
            "`sdxl-turbo-server[watermark]`. If it is OpenCV that lacks libGL, install the system's libgl1, or "
            "opencv-python-headless in opencv-python's place."
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
