"""All modes, one line for each."""

from collections.abc import Mapping

from app.modes.img2img import Img2ImgParams
from app.modes.inpaint import InpaintParams
from app.modes.txt2img import Txt2ImgParams
from app.pipelines.base import GenerationParams, Mode

MODES: Mapping[Mode, type[GenerationParams]] = {
    Mode.TXT2IMG: Txt2ImgParams,
    Mode.IMG2IMG: Img2ImgParams,
    Mode.INPAINT: InpaintParams,
}
