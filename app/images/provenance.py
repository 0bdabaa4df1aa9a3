"""What a picture's file says about its making: the parameters, and the labels of pictures that are made by AI.

All of it follows from the picture and its parameters: no clock, host, chance or request id.
"""

import hashlib
import html
import json
import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import ExifTags

from app.pipelines.base import GenerationParams, Img2ImgParams

_XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about=""{namespaces}>{properties}</rdf:Description>'
    "</rdf:RDF></x:xmpmeta>"
    '<?xpacket end="r"?>'
)

_NAMESPACES = {
    "Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
    "TC260": "http://www.tc260.org.cn/ns/AIGC/1.0/",
}

_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""IPTC's "created using generative AI", for both modes. Its other term, compositeWithTrainedAlgorithmicMedia, is for a
picture of which a part was made so, as by inpainting; image to image draws every pixel anew, and whether the upload was
a photograph, or what of it is left, nobody here knows. This one never says too little."""

_GENERATED = "1"
"""Made by AI, as opposed to `2`, which may be, and `3`, which is suspected to be (GB 45438-2025, annex E)."""

_USER_COMMENT_CODE = b"UNICODE\0"
_EXIF_LONG, _EXIF_UNDEFINED = 4, 7
"""Types of values (Exif 2.32, section 4.6.2). Pillow would write a comment as bytes, which piexif does not take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What goes into a picture's file beside the picture. What is None is left out."""

    parameters: str | None = None
    """As stable-diffusion-webui writes them, which its tools read: in a PNG under `parameters`, else in EXIF."""
    xmp: bytes | None = None
    """An XMP packet with the labels, in UTF-8: some hundred bytes."""


def provenance_of(
    params: GenerationParams,
    pixels: npt.NDArray[np.uint8],
    *,
    model: str,
    tell_parameters: bool,
    ai_label: bool,
    aigc_producer: str,
) -> Provenance:
    """Say how a picture was made. Reads all pixels: call it in a thread.

    Args:
        params: What was asked for.
        pixels: What was made of it, of shape (height, width, 3).
        model: The model's name.
        tell_parameters: Whether the prompt, the seed and the other parameters are told.
        ai_label: Whether IPTC's Digital Source Type is.
        aigc_producer: Who says so in the label of GB 45438-2025, in the characters that it allows: ASCII without space,
            quotation mark and backslash (annex E). Empty for no such label.
    """
    parameters = parameters_text(params, model=model) if tell_parameters else None
    properties = {}
    if ai_label:
        properties["Iptc4xmpExt:DigitalSourceType"] = _SOURCE_TYPE
    if aigc_producer:
        properties["TC260:AIGC"] = _aigc(aigc_producer, _produce_id(pixels, parameters))
    return Provenance(parameters=parameters, xmp=_xmp(properties) if properties else None)


def parameters_text(params: GenerationParams, *, model: str) -> str:
    """Write a picture's parameters as stable-diffusion-webui does, so that the tools that read its files read ours."""
    fields = {
        "Steps": params.num_inference_steps,
        "Sampler": "Euler a",
        "CFG scale": 0,
        "Seed": params.seed,
        "Size": f"{params.width}x{params.height}",
        "Model": model,
    }
    if isinstance(params, Img2ImgParams):
        fields["Denoising strength"] = params.strength
    return f"{params.prompt}\n" + ", ".join(f"{name}: {value}" for name, value in fields.items())


def user_comment(text: str) -> bytes:
    """Return EXIF data with a comment, as stable-diffusion-webui writes it by piexif: UTF-16, big-endian all through.

    Without a byte order mark, which its reader would take for a part of the text.
    """
    comment = _USER_COMMENT_CODE + text.encode("utf-16-be")
    return b"".join(
        [
            b"Exif\0\0",
            struct.pack(">2sHI", b"MM", 42, 8),  # the first directory begins behind this
            struct.pack(">HHHIII", 1, ExifTags.IFD.Exif, _EXIF_LONG, 1, 26, 0),  # its one entry leads to the second
            struct.pack(">HHHIII", 1, ExifTags.Base.UserComment, _EXIF_UNDEFINED, len(comment), 44, 0),
            comment,
        ]
    )


def _produce_id(pixels: npt.NDArray[np.uint8], parameters: str | None) -> str:
    """Return a picture's number: the digest of what its file tells, the pixels as they were made and the parameters.

    Never of parameters that are not told. From a digest of those alone a prompt could be guessed: all seeds of one can
    be tried in a second, whereas what depends on the pixels too takes making each picture.
    """
    height, width, _ = pixels.shape
    digest = hashlib.sha256(f"{width}x{height}\n".encode())
    digest.update(pixels.ravel().data)
    digest.update((parameters or "").encode())
    return digest.hexdigest()


def _aigc(producer: str, produce_id: str) -> str:
    """Write the implicit label of GB 45438-2025, annex E: seven strings.

    Who makes a picture is also the first to pass it on, and those who pass it on later put themselves there.
    """
    label = {
        "Label": _GENERATED,
        "ContentProducer": producer,
        "ProduceID": produce_id,
        "ReservedCode1": "",
        "ContentPropagator": producer,
        "PropagateID": produce_id,
        "ReservedCode2": "",
    }
    return json.dumps(label, separators=(",", ":"))


def _xmp(properties: dict[str, str]) -> bytes:
    """Write a packet that is not meant to be changed in place (XMP specification, part 1, section 7.3).

    The label of GB 45438-2025 stands in XMP in every format, as guide TC260-PG-20259A wants it, and nowhere else: a
    file has one such label only (GB 45438-2025, section 6.1).
    """
    prefixes = [name.partition(":")[0] for name in properties]
    packet = _XMP.format(
        namespaces="".join(f' xmlns:{prefix}="{_NAMESPACES[prefix]}"' for prefix in prefixes),
        properties="".join(f"<{name}>{html.escape(value)}</{name}>" for name, value in properties.items()),
    )
    return packet.encode()
