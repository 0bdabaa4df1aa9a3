"""Which bytes the service gives: everything that they depend on besides the request."""

import hashlib
import json
import zlib
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from app import __version__
from app.pipelines.base import LoadedPipelines
from app.settings import Settings

DECIDING_SETTINGS = (
    "ai_label",
    "aigc_producer",
    "allow_tf32",
    "batching",
    "channels_last",
    "compile",
    "image_metadata",
    "max_batch",
    "max_pixels",
    "npu_graphs",
    "scheduler",
    "vae_dtype",
    "warm_up_sizes",
    "watermark",
)
"""Settings that change a picture's bytes and are not seen in `LoadedPipelines`. Graphs exist for the warm-up sizes,
and an upload's picture is scaled to `max_pixels`."""

_PACKAGES = (
    "diffusers",
    "invisible-watermark",
    "isal",
    "numpy",
    "opencv-python",
    "opencv-python-headless",
    "pillow",
    "pywavelets",
    "tokenizers",
    "torch",
    "torch-npu",
    "transformers",
)
"""Packages that compute a picture or encode its file."""


@cache
def installed_versions() -> Mapping[str, str]:
    """Return the versions of the installed packages that decide a picture's bytes."""
    found = {"zlib": zlib.ZLIB_RUNTIME_VERSION}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def identity_of(loaded: LoadedPipelines, settings: Settings) -> str:
    """Return a text of 64 hexadecimal digits. Services in which it is the same give the same bytes to a request.

    It covers the model and its weights, the device, the versions of this service and of its libraries, and the settings
    in `DECIDING_SETTINGS`.
    """
    facts = {
        "service": __version__,
        "packages": installed_versions(),
        "model": loaded.model,
        "vae": loaded.vae,
        "loras": loaded.loras,
        "weights": loaded.weights_sha256,
        "dtype": loaded.dtype,
        "fused_operators": sorted(loaded.fused_operators),
        "computed_by": loaded.computed_by,
        "settings": {name: getattr(settings, name) for name in DECIDING_SETTINGS},
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
