"""What schemathesis has to know that the document cannot say: real pictures, rules of several fields, forms."""

import base64
from typing import Any

import schemathesis
from hypothesis import strategies as st

from app.inference.field_names import MEANT
from app.modes.fields import MAX_IMAGES_OF_CLIENTS, MAX_SEED
from tests.conftest import PNG_MAGIC, png

_RIGHT_SOMEWHERE = {
    "batch_size",
    "height",
    "image",
    "init_images",
    "inputs",
    "mask",
    "mask_image",
    "n",
    "n_iter",
    "num_images",
    "size",
    "steps",
    "width",
}
WRONG_NAMES = {*MEANT} - _RIGHT_SOMEWHERE - {"denoising_strength", "num_inference_steps", "strength"}
"""Names of other services for fields of this one, which the document would have to list for every route."""

WHITE = png((64, 64), "white")
"""A mask that is not refused, as a black one is."""

PICTURES = st.sampled_from([png((64, 64)), png((200, 100), "blue")])
for media_type in ("image/png", "image/webp", "image/jpeg", "application/octet-stream"):
    schemathesis.openapi.media_type(media_type, PICTURES)


@schemathesis.hook
def before_add_examples(_context: Any, examples: list[schemathesis.Case[Any]]) -> None:
    """Give the examples of the document real pictures."""
    for case in examples:
        _mend(case)


@schemathesis.hook
def map_case(_context: Any, case: schemathesis.Case[Any]) -> schemathesis.Case[Any]:
    """Give cases that are valid to the document real pictures."""
    if _is_positive(case):
        _mend(case)
    return case


@schemathesis.hook
def filter_case(_context: Any, case: schemathesis.Case[Any]) -> bool:
    """Drop cases whose validity the document and schemathesis see otherwise than the service has to."""
    body: Any = case.body
    if not isinstance(body, dict):
        return True
    is_form = "image" in body and case.media_type != "application/json"
    lists = [value for value in body.values() if isinstance(value, list)]
    if _is_positive(case):
        names = {*body, *(body.get("parameters") or {})}
        return _is_valid_together(body) and not WRONG_NAMES & names and not (is_form and lists)
    # A form's fields are text: null is sent as "null", which is a prompt, and a list of one value as the value;
    # an empty list is not sent at all, as the curl of such a case shows.
    return not is_form or (isinstance(body.get("prompt", ""), str) and not any(len(value) <= 1 for value in lists))


def _is_valid_together(body: dict[str, Any]) -> bool:
    """Tell whether the fields keep the rules of several fields, which the unit tests of the schemas hold."""
    fields = body.get("parameters") or body
    numbers = {name: value if isinstance(value, int | float) else 0 for name, value in fields.items()}
    if (numbers.get("batch_size") or 1) * (numbers.get("n_iter") or 1) > MAX_IMAGES_OF_CLIENTS:
        return False
    if numbers.get("seed", 0) + (numbers.get("num_images") or numbers.get("n") or 1) - 1 > MAX_SEED:
        return False
    return "image" not in body or body.get("num_inference_steps", 2) * body.get("strength", 0.5) >= 1


def _is_positive(case: schemathesis.Case[Any]) -> bool:
    return case.meta is not None and case.meta.generation.mode is schemathesis.GenerationMode.POSITIVE


def _mend(case: schemathesis.Case[Any]) -> None:
    """Put a picture in place of an upload that is none, and a size in place of what only looks like one."""
    body: Any = case.body
    if not isinstance(body, dict):
        return
    body.pop("model", None)  # only one is served
    if isinstance(body.get("size"), str) and body["size"] != "auto":
        body["size"] = "512x768"  # the pattern takes sides that are no multiples of 8
    if body.get("output_compression") is not None:
        body["output_format"] = "webp"  # a PNG has none
    _mend_mask(case.path, body)
    if case.path.endswith("/png-info"):
        body["image"] = base64.b64encode(png()).decode()
        return
    if "sd_model_checkpoint" in body:
        body["sd_model_checkpoint"] = "fake"
    if "inputs" in body:
        _mend_for_hugging_face(body)
    if "image" not in body:
        return
    content = getattr(body["image"], "data", body["image"])
    if not (isinstance(content, bytes) and content.startswith(PNG_MAGIC)):
        body["image"] = png()


def _mend_mask(path: str, body: dict[str, Any]) -> None:
    """Give a picture and its mask the same size, and a mask to what needs one."""
    if "init_images" in body:
        body["init_images"] = [base64.b64encode(png()).decode()]
        body.update(width=None, height=None)
        if body.get("mask"):
            body.update(mask=base64.b64encode(WHITE).decode(), inpainting_mask_invert=0)
    elif "mask" in body or path == "/inpaint":
        body["image"] = body["mask"] = WHITE
    if "extend" in body:
        body["extend"] = "0"  # several pictures may be too large together


def _mend_for_hugging_face(body: dict[str, Any]) -> None:
    """Leave the parameters that belong together, and give image to image a picture."""
    parameters = body.get("parameters") or {}
    for name in ("strength", "target_size", "width", "height"):
        parameters.pop(name, None)
    if {"extend", "feather", "fill", "mask_image", "padding"} & parameters.keys():
        parameters.update(prompt="a cat", mask_image=base64.b64encode(WHITE).decode(), extend="0")
    body["inputs"] = base64.b64encode(png()).decode() if "prompt" in parameters else "a cat"
    if parameters.get("num_inference_steps") == 1:
        parameters["num_inference_steps"] = 2
