"""What deploy/kubernetes renders to, held to Kubernetes' schemas, to itself and to the service.

python -m tools.check_deploy              every overlay, alone and with the components that it does not have yet
python -m tools.check_deploy FOLDER...    overlays of your own

A line for each fault, as in "overlay: kind/name: what is wrong". Exit code 1: there are some. 2: neither kubectl nor
kustomize is installed. Asks no cluster.
"""

import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml
from pydantic import ValidationError

from app.main import create_app
from app.settings import PREFIX, Settings, unknown_variables
from app.weights.source import HubSource, parse_source

ROOT = Path(__file__).parents[1]

KUBERNETES = ROOT / "deploy/kubernetes"

VERSIONS = ("1.27", "1.32", "1.37")
"""Of Kubernetes. The first is the oldest that takes `unhealthyPodEvictionPolicy` without a feature gate."""

HOW_TO_INSTALL = (
    "Neither kubectl nor kustomize is installed, and one of them has to render deploy/kubernetes. Install kubectl 1.27 "
    "or later (https://kubernetes.io/docs/tasks/tools/) or kustomize 5 (https://kubectl.docs.kubernetes.io/installation/)."
)

GRACE_S = 10
"""Seconds that the end takes at most beside TURBO_DRAIN_S."""

USER, WEIGHTS = 10001, "/weights"
"""The image's user and group, and where it looks for weights."""

DRIVER = (
    "/etc/ascend_install.info",
    "/usr/local/Ascend/driver/lib64",
    "/usr/local/Ascend/driver/version.info",
    "/usr/local/bin/npu-smi",
    "/usr/local/dcmi",
)
"""What may be mounted from the host, read-only: Ascend's driver, where no runtime mounts it."""

_RESTRICTED_VOLUMES = (
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
)
"""Kinds of volumes of the Pod Security Standard "restricted"."""

Manifest = dict[str, Any]


class RenderError(Exception):
    """What kustomize cannot render, or complains of; its own words."""


# Rendering.


def renderer() -> list[str] | None:
    """Return the command that renders a folder, or None where there is no such program."""
    commands = (["kubectl", "kustomize"], ["kustomize", "build"])
    return next((command for command in commands if shutil.which(command[0])), None)


def render(folder: Path) -> list[Manifest]:
    """Return the objects that an overlay's folder stands for. Needs `renderer`.

    Raises:
        RenderError: It cannot be rendered, or only with warnings.
    """
    command = renderer()
    assert command is not None, HOW_TO_INSTALL  # noqa: S101 - main looks first
    done = subprocess.run([*command, folder], capture_output=True, text=True, check=False)  # noqa: S603 - ours
    if done.returncode or done.stderr:
        raise RenderError(" ".join(done.stderr.split()) or f"{command[0]} ended with {done.returncode}")
    return list(yaml.safe_load_all(done.stdout))


def render_with(overlay: Path, components: Iterable[Path]) -> list[Manifest]:
    """Return the objects of an overlay and components on top of it.

    Raises:
        RenderError: As for `render`.
    """
    with tempfile.TemporaryDirectory() as folder:
        # kustomize takes no absolute paths, and leaves symbolic links alone.
        resources, parts = (
            [os.path.relpath(one.resolve(), Path(folder).resolve()) for one in ones] for ones in ([overlay], components)
        )
        text = yaml.safe_dump({"kind": "Kustomization", "resources": resources, "components": parts})
        (Path(folder) / "kustomization.yaml").write_text(text, encoding="utf-8")
        return render(Path(folder))


# Checks: each yields what is wrong with an object.


@dataclass(frozen=True, slots=True)
class Service:
    """What manifests name of the service: the paths of some routes, and all metrics."""

    paths: Mapping[str, str]
    metrics: Collection[str]


@functools.cache
def service() -> Service:
    """Ask the service itself; it is put together for that, and not started."""
    app = create_app(Settings.model_validate({"model": "fake"}))  # whatever the environment says
    names = {sample.name for family in app.state.context.metrics.registry.collect() for sample in family.samples}
    return Service({name: str(app.url_path_for(name)) for name in ("live", "ready", "metrics")}, names)


def complaints(manifests: list[Manifest]) -> Iterator[str]:
    """Yield "kind/name: what is wrong" for all that is wrong with the objects of one overlay."""
    for manifest in manifests:
        kind = manifest.get("kind", "")
        subject = f"{kind.lower()}/{manifest.get('metadata', {}).get('name')}"
        wrong = list(_schema(json.dumps(manifest, sort_keys=True)))
        if not wrong and kind in CHECKS:  # what has not its form cannot be looked into
            wrong = list(CHECKS[kind](manifest, manifests))
        yield from (f"{subject}: {complaint}" for complaint in wrong)


@functools.cache
def _schema(text: str) -> list[str]:
    """Return what the schemas refuse in an object, given as JSON: overlays have many in common."""
    manifest = json.loads(text)
    wrong = []
    if manifest.get("apiVersion") == "monitoring.coreos.com/v1" and manifest.get("kind") == "ServiceMonitor":
        wrong += [f"{error.json_path}: {error.message}" for error in _service_monitor().iter_errors(manifest)]
        # Its metadata is as any other object's, which its own schema leaves open.
        manifest = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": manifest["metadata"]}
    refused: dict[str, list[str]] = {}
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(manifest, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            refused.setdefault(f"{'.'.join(map(str, error.path))}: {error.message}", []).append(version)
        except (kubernetes_validate.SchemaNotFoundError, KeyError):
            unknown = f"there is no {manifest.get('apiVersion')} {manifest.get('kind')}"
            refused.setdefault(unknown, []).append(version)
    return wrong + [f"Kubernetes {', '.join(versions)}: {reason}" for reason, versions in refused.items()]


@functools.cache
def _service_monitor() -> jsonschema.Draft202012Validator:
    schema = yaml.safe_load((ROOT / "tools/service-monitor.schema.yaml").read_text(encoding="utf-8"))
    return jsonschema.Draft202012Validator(_closed(schema))


def _closed(schema: Any) -> Any:
    """Return the schema with fields refused that it does not name, as a cluster refuses them in strict mode."""
    if isinstance(schema, list):
        return [_closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {
        key: {name: _closed(one) for name, one in value.items()} if key == "properties" else _closed(value)
        for key, value in schema.items()
    }
    return closed | {"additionalProperties": False} if "properties" in schema else closed


def _deployment(deployment: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    spec, template = deployment["spec"], deployment["spec"]["template"]
    pod = template["spec"]
    if not _selects(spec["selector"], template):
        yield "selector: does not match the labels of its own pods"
    if "replicas" in spec and _find(manifests, "HorizontalPodAutoscaler"):
        yield "replicas: undoes at each apply what the autoscaler did"
    for field in ("enableServiceLinks", "automountServiceAccountToken"):
        if pod.get(field) is not False:
            yield f"{field}: has to be false"
    yield from _pod_security(pod)
    for container in containers(pod):
        for complaint in (*_container_security(container), *_container(container, pod, manifests)):
            yield f"{container['name']}: {complaint}"


def _pod_security(pod: Manifest) -> Iterator[str]:
    """Hold a pod to the Pod Security Standard "restricted", the driver's files aside, and to the image's user."""
    context = pod.get("securityContext", {})
    wanted = {"runAsNonRoot": True, "runAsUser": USER, "fsGroup": USER, "seccompProfile": {"type": "RuntimeDefault"}}
    for field, value in wanted.items():
        if context.get(field) != value:
            yield f"securityContext.{field}: is {context.get(field)}, and has to be {value}"
    for field in {"hostNetwork", "hostPID", "hostIPC"} & pod.keys():
        yield f"{field}: is not for a restricted pod"
    for volume in pod.get("volumes", ()):
        kind = next(iter(volume.keys() - {"name"}), "emptyDir")
        if kind not in _RESTRICTED_VOLUMES and not (kind == "hostPath" and volume[kind]["path"] in DRIVER):
            yield f"volumes: {volume['name']}: {kind} is not for a restricted pod"


def _container_security(container: Manifest) -> Iterator[str]:
    locked = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    if (context := container.get("securityContext")) != locked:
        yield f"securityContext: is {context}, and has to be {locked}"


def _container(container: Manifest, pod: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    if ":" not in container["image"].rpartition("/")[2]:
        yield f"image: {container['image']} has no tag"
    yield from _mounts(container, pod, manifests)
    for source in container.get("envFrom", ()):
        name = source.get("configMapRef", {}).get("name")
        if name and not _find(manifests, "ConfigMap", name):
            yield f"envFrom: there is no ConfigMap {name}"
    variables = dict(_variables(container, manifests))
    for name, near in unknown_variables(variables):
        yield f"env: no setting reads {name}" + (f"; {near}?" if near else "")
    chosen = {name.removeprefix(PREFIX).lower(): value for name, value in variables.items() if name.startswith(PREFIX)}
    known = {name: value for name, value in chosen.items() if name in Settings.model_fields}
    try:
        settings = Settings.model_validate(known)
    except ValidationError as error:
        for fault in error.errors():
            yield f"env: {PREFIX}{'_'.join(map(str, fault['loc'])).upper()}: {fault['msg']}"
        return
    command = container.get("args")
    if command == ["serve"]:
        yield from _serving(container, pod, settings)
    elif command != ["pull"]:
        yield f"args: are {command}, and have to be [serve] or [pull]"


def _mounts(container: Manifest, pod: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    volumes = {volume["name"]: volume for volume in pod.get("volumes", ())}
    for mount in container.get("volumeMounts", ()):
        volume = volumes.get(mount["name"])
        if volume is None:
            yield f"volumeMounts: there is no volume {mount['name']}"
            continue
        claim = volume.get("persistentVolumeClaim", {}).get("claimName")
        if claim and not _find(manifests, "PersistentVolumeClaim", claim):
            yield f"volumeMounts: there is no PersistentVolumeClaim {claim} for {mount['name']}"
        if "hostPath" in volume and not mount.get("readOnly"):
            yield f"volumeMounts: {mount['name']} is the host's, and can be written"


def _serving(container: Manifest, pod: Manifest, settings: Settings) -> Iterator[str]:
    ports = {port.get("name"): port["containerPort"] for port in container.get("ports", ())}
    if list(ports.values()) != [settings.port]:
        yield f"ports: are {list(ports.values())}, and the service listens on {settings.port}"
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        request = container.get(name, {}).get("httpGet")
        if request is None:
            yield f"{name}: is missing"
            continue
        path = service().paths["ready" if name == "readinessProbe" else "live"]
        if request.get("path") != path:
            yield f"{name}: asks for {request.get('path')}, and has to ask for {path}"
        if request["port"] not in (*ports, *ports.values()):
            yield f"{name}: there is no port {request['port']}"
    grace_s = pod.get("terminationGracePeriodSeconds", 30)
    if grace_s < (needed_s := settings.drain_s + GRACE_S):
        yield f"terminationGracePeriodSeconds: {grace_s} is less than {PREFIX}DRAIN_S and {GRACE_S}, {needed_s:g}"
    if isinstance(parse_source(settings.model), HubSource):
        if not any(one.get("args") == ["pull"] for one in pod.get("initContainers", ())):
            yield f"env: nothing pulls {PREFIX}MODEL={settings.model} before: the component weights does"
        if WEIGHTS not in (mount["mountPath"] for mount in container.get("volumeMounts", ())):
            yield f"volumeMounts: there is no volume on {WEIGHTS}"


def _variables(container: Manifest, manifests: list[Manifest]) -> Iterator[tuple[str, str]]:
    """Yield what a container's environment is, as far as the manifests say its values; of two the last one counts."""
    for source in container.get("envFrom", ()):
        for settings in _find(manifests, "ConfigMap", source.get("configMapRef", {}).get("name", "")):
            yield from settings.get("data", {}).items()
    for variable in container.get("env", ()):
        if "value" in variable:
            yield variable["name"], variable["value"]


def _service(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    name = manifest["metadata"]["name"].upper().replace("-", "_")
    if f"{name}_".startswith(PREFIX):
        yield f"its name would set {name}_PORT in every pod of the namespace, as if it were a setting"
    selected = _selected({"matchLabels": manifest["spec"].get("selector")}, manifests)
    if not selected:
        yield "selector: matches no pods"
    for port in manifest["spec"].get("ports", ()) if selected else ():
        if port.get("targetPort", port["port"]) not in _ports(selected):
            yield f"ports: the pods have no port {port.get('targetPort', port['port'])}"


def _disruption_budget(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    if not _selected(manifest["spec"].get("selector", {}), manifests):
        yield "selector: matches no pods, or all of the namespace"


def _network_policy(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    selected = _selected(manifest["spec"]["podSelector"], manifests)
    if not selected:
        yield "podSelector: matches no pods, or all of the namespace"
    for rule in manifest["spec"].get("ingress", ()) if selected else ():
        for port in rule.get("ports", ()):
            if port["port"] not in _ports(selected):
                yield f"ingress: the pods have no port {port['port']}"


def _autoscaler(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    target = manifest["spec"]["scaleTargetRef"]
    if not _find(manifests, target["kind"], target["name"]):
        yield f"scaleTargetRef: there is no {target['kind']} {target['name']}"
    for metric in manifest["spec"].get("metrics", ()):
        if metric["type"] == "Pods" and (name := metric["pods"]["metric"]["name"]) not in service().metrics:
            yield f"metrics: the service has no {name}"


def _monitor(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    wanted = manifest["spec"]["selector"].get("matchLabels", {}).items()
    services = [one for one in _find(manifests, "Service") if wanted <= one["metadata"].get("labels", {}).items()]
    if not wanted or not services:
        yield "selector: matches no Services, or all of the namespace"
    names = {port.get("name") for one in services for port in one["spec"].get("ports", ())}
    for endpoint in manifest["spec"]["endpoints"]:
        if services and endpoint.get("port") not in names:
            yield f"endpoints: the Services have no port {endpoint.get('port')}"
        if endpoint.get("path") != service().paths["metrics"]:
            yield f"endpoints: there are no metrics at {endpoint.get('path')}"


CHECKS: Mapping[str, Callable[[Manifest, list[Manifest]], Iterator[str]]] = {
    "Deployment": _deployment,
    "Service": _service,
    "PodDisruptionBudget": _disruption_budget,
    "NetworkPolicy": _network_policy,
    "HorizontalPodAutoscaler": _autoscaler,
    "ServiceMonitor": _monitor,
}
"""What is looked for in an object of each kind, beside its schema; with all objects of the overlay."""


def _find(manifests: list[Manifest], kind: str, name: str | None = None) -> list[Manifest]:
    return [one for one in manifests if one.get("kind") == kind and name in (None, one["metadata"]["name"])]


def _selects(selector: Manifest, template: Manifest) -> bool:
    """Tell whether a selector that says anything selects the pods of a template."""
    wanted = selector.get("matchLabels") or {}
    return bool(wanted) and wanted.items() <= template["metadata"].get("labels", {}).items()


def _selected(selector: Manifest, manifests: list[Manifest]) -> list[Manifest]:
    templates = [deployment["spec"]["template"] for deployment in _find(manifests, "Deployment")]
    return [template["spec"] for template in templates if _selects(selector, template)]


def containers(pod: Manifest) -> list[Manifest]:
    """Return a pod's containers, in the order in which they run."""
    return [*pod.get("initContainers", ()), *pod["containers"]]


def _ports(pods: list[Manifest]) -> set[str | int]:
    ports = [port for pod in pods for container in pod["containers"] for port in container.get("ports", ())]
    return {port.get("name") for port in ports} | {port["containerPort"] for port in ports}


# The command.


def main(folders: list[str]) -> int:
    """Print what is wrong with overlays, and give the exit code; by default with all that are shipped."""
    if renderer() is None:
        print(HOW_TO_INSTALL, file=sys.stderr)
        return 2
    found = 0
    for name, rendered in overlays([Path(folder) for folder in folders]):
        try:
            wrong = list(complaints(rendered()))
        except RenderError as error:
            wrong = [f"cannot be rendered: {error}"]
        found += len(wrong)
        for complaint in wrong:
            print(f"{name}: {complaint}")
        if not wrong:
            print(f"{name}: as Kubernetes {', '.join(VERSIONS)} and the service have it")
    return 1 if found else 0


def overlays(folders: list[Path] | None = None) -> Iterator[tuple[str, Callable[[], list[Manifest]]]]:
    """Yield names and renderings of overlays: the folders', or each that is shipped, alone and with all components."""
    for folder in folders or sorted(KUBERNETES.glob("overlays/*")):
        yield folder.name, partial(render, folder)
        if not folders:
            missing = [one for one in sorted(KUBERNETES.glob("components/*")) if not _has(folder, one)]
            names = " + ".join([folder.name, *(one.name for one in missing)])
            yield names, partial(render_with, folder, missing)


def _has(folder: Path, component: Path) -> bool:
    """Tell whether an overlay, or one that it builds on, has a component already."""
    text = yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))
    return any(
        (folder / one).resolve() == component or _has((folder / one).resolve(), component)
        for one in (*text.get("resources", ()), *text.get("components", ()))
        if (folder / one).is_dir()
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
