"""What schemathesis has to know that the document cannot say: real pictures, and the rules of several fields."""

from typing import Any

import schemathesis
from hypothesis import strategies as st

from app.api.schemas import MAX_SEED
from tests.conftest import PNG_MAGIC, png

PICTURES = st.sampled_from([png((64, 64)), png((200, 100), "blue")])
for media_type in ("image/png", "image/webp", "image/jpeg"):
    schemathesis.openapi.media_type(media_type, PICTURES)


@schemathesis.hook
def filter_case(_context: Any, case: schemathesis.Case[Any]) -> bool:
    """Drop cases that are valid to the document and not to the service: see the functions below."""
    positive = case.meta is not None and case.meta.generation.mode is schemathesis.GenerationMode.POSITIVE
    if not positive or not isinstance(case.body, dict):
        return True
    return _has_picture(case.body) and _is_valid_together(case.body)


def _has_picture(body: dict[str, Any]) -> bool:
    """Tell whether an upload is a picture: the fixed examples bring empty files, the drawn ones bring pictures."""
    if "image" not in body:
        return True
    content = getattr(body["image"], "data", body["image"])
    return isinstance(content, bytes) and content.startswith(PNG_MAGIC)


def _is_valid_together(body: dict[str, Any]) -> bool:
    """Tell whether the fields keep the rules of several fields, which the unit tests of the schemas hold."""
    if (body.get("seed") or 0) + body.get("num_images", 1) - 1 > MAX_SEED:
        return False
    return "image" not in body or body.get("num_inference_steps", 2) * body.get("strength", 0.5) >= 1
