"""Entity tags (RFC 9110, section 8.8.3): names of answers' bytes that are known before a picture is drawn."""

import hashlib
import json
from collections.abc import Callable
from functools import partial

from pydantic import BaseModel

from app.images.encoding import MediaType
from app.inference.identity import identity_of
from app.inference.registry import PipelineRegistry
from app.modes.fields import Uploads
from app.pipelines.base import Mode
from app.settings import Settings

_WITHOUT_EFFECT = {"guidance_scale", "negative_prompt"}
"""Fields that may only say that nothing is wanted."""

_TAG_BYTES = 18


class HashedUploads:
    """A request's files, hashed when they are read.

    Attributes:
        reading: The functions that read the files, for the pipeline.
        sha256: The digests of the files that were read, in hexadecimal, by the names of their fields.
    """

    def __init__(self, uploads: Uploads) -> None:
        self.reading: Uploads = {name: partial(self._read, name, read) for name, read in uploads.items()}
        self.sha256: dict[str, str] = {}

    def _read(self, name: str, read: Callable[[], bytes | memoryview]) -> bytes | memoryview:
        data = read()
        self.sha256[name] = hashlib.sha256(data).hexdigest()
        return data


class EntityTags:
    """Makes the entity tags of the loaded model's answers."""

    def __init__(self, registry: PipelineRegistry, settings: Settings) -> None:
        self._registry = registry
        self._settings = settings

    def of(self, mode: Mode, fields: BaseModel, media_type: str, uploads: HashedUploads | None = None) -> str:
        """Return the tag of an answer of this media type to a request with a seed, whose `uploads` were read.

        It is strong for a picture. It is weak for JSON, which has timings, and if pictures may differ by rounding.
        """
        wanted = fields.model_dump(mode="json", exclude=_WITHOUT_EFFECT | (set(uploads.reading) if uploads else set()))
        facts = {
            "identity": identity_of(self._registry.loaded, self._settings),
            "mode": mode,
            "fields": wanted,
            "media_type": media_type,
            "uploads": uploads.sha256 if uploads else {},
        }
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).digest()[:_TAG_BYTES].hex()
        exact = media_type in set(MediaType) and self._settings.batching != "fast"
        return f'"{digest}"' if exact else f'W/"{digest}"'


def matches(if_none_match: str, tag: str) -> bool:
    """Tell whether `If-None-Match` names a tag, by the weak comparison that RFC 9110, section 13.1.2 asks for."""
    named = [one.strip().removeprefix("W/") for one in if_none_match.split(",")]
    return "*" in named or tag.removeprefix("W/") in named
