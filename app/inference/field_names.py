"""The right names of fields that a request calls by a wrong one."""

import difflib
from collections.abc import Mapping, Sequence

from pydantic import BaseModel

UNKNOWN_REASON = "There is no such parameter here"

MEANT: Mapping[str, Sequence[str]] = {
    "batch_size": ("num_images", "n"),
    "denoising_strength": ("strength",),
    "height": ("size",),
    "image": ("init_images",),
    "image_strength": ("strength",),
    "images": ("image", "init_images"),
    "init_image": ("image", "init_images"),
    "init_images": ("image",),
    "inputs": ("prompt",),
    "mask": ("mask_image",),
    "mask_image": ("mask",),
    "n": ("num_images",),
    "n_iter": ("num_images", "n"),
    "num_images": ("n",),
    "num_images_per_prompt": ("num_images", "n"),
    "num_steps": ("num_inference_steps", "steps"),
    "number_of_images": ("num_images", "n"),
    "num_inference_steps": ("steps",),
    "size": ("width and height",),
    "step": ("num_inference_steps", "steps"),
    "steps": ("num_inference_steps",),
    "strength": ("denoising_strength",),
    "text": ("prompt",),
    "width": ("size",),
}
"""Other services' names for the fields of this one's routes. The first that a route has is the right one."""

_OF_INPAINTING = frozenset({"extend", "feather", "fill", "mask", "mask_image", "padding"})


def meant(name: str, model: type[BaseModel]) -> str | None:
    """Return the field that another service calls by this name, if the model has it."""
    known = model.model_fields
    return next((field for field in MEANT.get(name, ()) if set(field.split(" and ")) <= known.keys()), None)


def similar(name: str, model: type[BaseModel]) -> str | None:
    """Return the field that this name may be misspelt for."""
    return next(iter(difflib.get_close_matches(name, model.model_fields, n=1, cutoff=0.75)), None)


def unknown_reason(name: str, model: type[BaseModel]) -> str:
    """Return why a name is rejected, with the right one if there is one."""
    right = meant(name, model)
    if right is None and name in _OF_INPAINTING:
        return f"{UNKNOWN_REASON}; it belongs to inpainting."
    right = right or similar(name, model)
    return f"{UNKNOWN_REASON}; say {right}." if right else f"{UNKNOWN_REASON}."
