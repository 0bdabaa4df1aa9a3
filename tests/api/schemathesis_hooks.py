"""What schemathesis has to know that the document cannot say: real pictures, rules of several fields, forms."""

from typing import Any

import schemathesis
from hypothesis import strategies as st

from app.api.schemas import MAX_SEED
from tests.conftest import PNG_MAGIC, png

PICTURES = st.sampled_from([png((64, 64)), png((200, 100), "blue")])
for media_type in ("image/png", "image/webp", "image/jpeg"):
    schemathesis.openapi.media_type(media_type, PICTURES)


@schemathesis.hook
def before_add_examples(_context: Any, examples: list[schemathesis.Case[Any]]) -> None:
    """Give the examples of the document real pictures."""
    for case in examples:
        _give_picture(case)


@schemathesis.hook
def map_case(_context: Any, case: schemathesis.Case[Any]) -> schemathesis.Case[Any]:
    """Give cases that are valid to the document real pictures."""
    if _is_positive(case):
        _give_picture(case)
    return case


@schemathesis.hook
def filter_case(_context: Any, case: schemathesis.Case[Any]) -> bool:
    """Drop cases whose validity the document and schemathesis see otherwise than the service has to."""
    body: Any = case.body
    if not isinstance(body, dict):
        return True
    if _is_positive(case):
        return _is_valid_together(body)
    # A form's fields are text: null is sent as "null", which is a prompt, and a list of one value as the value.
    is_form = "image" in body
    lists = [value for value in body.values() if isinstance(value, list)]
    return not is_form or (isinstance(body.get("prompt", ""), str) and not any(len(value) == 1 for value in lists))


def _is_valid_together(body: dict[str, Any]) -> bool:
    """Tell whether the fields keep the rules of several fields, which the unit tests of the schemas hold."""
    if (body.get("seed") or 0) + body.get("num_images", 1) - 1 > MAX_SEED:
        return False
    return "image" not in body or body.get("num_inference_steps", 2) * body.get("strength", 0.5) >= 1


def _is_positive(case: schemathesis.Case[Any]) -> bool:
    return case.meta is not None and case.meta.generation.mode is schemathesis.GenerationMode.POSITIVE


def _give_picture(case: schemathesis.Case[Any]) -> None:
    """Put a picture in place of an upload that is none: only those that are drawn by chance are pictures."""
    body: Any = case.body
    if not isinstance(body, dict) or "image" not in body:
        return
    content = getattr(body["image"], "data", body["image"])
    if not (isinstance(content, bytes) and content.startswith(PNG_MAGIC)):
        body["image"] = png()
