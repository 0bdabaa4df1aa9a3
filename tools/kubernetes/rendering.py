"""The result type of both renderers, and their error."""

from collections.abc import Callable

from tools.kubernetes.schemas import Manifest

Rendering = tuple[str, Callable[[], list[Manifest]]]
"""The name under which faults are printed, and the function that returns the objects or raises `RenderError`."""


class RenderError(Exception):
    """A renderer cannot render, or prints warnings; the text is its output in one line."""
