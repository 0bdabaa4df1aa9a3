"""Checks the form of Kubernetes objects against the schemas of several versions, strictly and offline."""

import functools
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

VERSIONS = ("1.27", "1.32", "1.37")
"""Versions of Kubernetes. The first is the oldest that has `unhealthyPodEvictionPolicy` without a feature gate."""

_FOREIGN = re.compile(r"(?!((rbac\.authorization|(flowcontrol|internal)\.apiserver|[a-z]+)\.k8s\.io)/)[^/]+\.[^/]+/")
"""The beginning of every apiVersion that is not Kubernetes' own."""

_CUSTOM = {
    ("monitoring.coreos.com/v1", "ServiceMonitor"): "service-monitor.schema.yaml",
    ("keda.sh/v1alpha1", "ScaledObject"): "scaled-object.schema.yaml",
}
"""The kinds of others that are checked, and the files with their schemas."""

_IMAGE_VOLUMES = "1.35"
"""The first version with image volumes by default (KEP 4639). Objects that have one are checked from there on."""

Manifest = dict[str, Any]
"""A Kubernetes object, parsed from YAML or JSON."""


def is_foreign(manifest: Manifest) -> bool:
    """Return whether the object's kind is not Kubernetes' own. Such an object has no schema here and is not checked."""
    kind = manifest.get("apiVersion", ""), manifest.get("kind", "")
    return kind not in _CUSTOM and bool(_FOREIGN.match(kind[0]))


def versions(manifests: Iterable[Manifest]) -> tuple[str, ...]:
    """Return the versions of Kubernetes for which objects are checked."""
    if '"image": {' not in json.dumps([*manifests]):  # a container's image is a text
        return VERSIONS
    return (_IMAGE_VOLUMES, *(one for one in VERSIONS if _minor(one) > _minor(_IMAGE_VOLUMES)))


def _minor(version: str) -> int:
    return int(version.partition(".")[2])


def faults_of_form(manifest: Manifest) -> list[str]:
    """Return the reasons for which the schemas reject an object."""
    return _schema(json.dumps(manifest, sort_keys=True))


@functools.cache
def _schema(text: str) -> list[str]:
    """Return the reasons for an object as JSON text, which can be a cache key. Overlays share many objects."""
    manifest = json.loads(text)
    wrong = []
    if file := _CUSTOM.get((manifest.get("apiVersion"), manifest.get("kind"))):
        wrong += [f"{error.json_path}: {error.message}" for error in _custom(file).iter_errors(manifest)]
        # Its own schema leaves the metadata open, so the metadata is checked as a ConfigMap's.
        manifest = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": manifest.get("metadata", {})}
    refused: dict[str, list[str]] = {}
    for version in versions([manifest]):
        try:
            kubernetes_validate.validate(manifest, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            refused.setdefault(f"{'.'.join(map(str, error.path))}: {error.message}", []).append(version)
        except (kubernetes_validate.SchemaNotFoundError, KeyError):
            unknown = f"there is no {manifest.get('apiVersion')} {manifest.get('kind')}"
            refused.setdefault(unknown, []).append(version)
    return wrong + [f"Kubernetes {', '.join(versions)}: {reason}" for reason, versions in refused.items()]


@functools.cache
def _custom(file: str) -> jsonschema.Draft202012Validator:
    schema = yaml.safe_load(Path(__file__).with_name(file).read_text(encoding="utf-8"))
    return jsonschema.Draft202012Validator(_closed(schema))


def _closed(schema: Any) -> Any:
    """Return the schema with unknown fields rejected, as a cluster rejects them in strict mode."""
    if isinstance(schema, list):
        return [_closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {
        key: {name: _closed(one) for name, one in value.items()} if key == "properties" else _closed(value)
        for key, value in schema.items()
    }
    return closed | {"additionalProperties": False} if "properties" in schema else closed
