"""Checks of the service's manifests against each other and against the service. Each check yields faults."""

import contextlib
import functools
import io
import json
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from app.cli import commands as command_line
from app.main import create_app
from app.server.draining import LAST_BYTES_S
from app.settings import PREFIX, Settings, unknown_variables
from app.weights.source import HubSource, parse_source, parse_vae
from tools.kubernetes.schemas import Manifest, faults_of_form, is_foreign

GRACE_S = 10
"""The longest time for stopping in addition to TURBO_DRAIN_S: preStop, the last bytes, and the shutdown."""

USER, WEIGHTS = 10001, "/weights"
"""The image's user and group, and its folder of weights."""

DRIVER = (
    "/etc/ascend_install.info",
    "/usr/local/Ascend/driver/lib64",
    "/usr/local/Ascend/driver/version.info",
    "/usr/local/bin/npu-smi",
    "/usr/local/dcmi",
)
"""Files that may be mounted from the host, read-only: Ascend's driver, if no runtime mounts it."""

_ACCELERATORS = {
    "cuda": (("nvidia.com/", "volcano.sh/vgpu-number"), "NVIDIA_VISIBLE_DEVICES"),
    "npu": (("huawei.com/",), "ASCEND_VISIBLE_DEVICES"),
}
"""For each kind of TURBO_DEVICE: prefixes of its resources, and the variable by which a runtime exposes devices."""

_UNITS = {"": 1.0, "m": 1e-3, "k": 1e3} | {
    prefix + binary: float((1024 if binary else 1000) ** power)
    for power, prefix in enumerate(("K", "M", "G", "T", "P", "E"), 1)
    for binary in ("", "i")
}
"""Suffixes of Kubernetes' quantities."""

_VOLUMES = (
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
)
"""Kinds of volumes that the Pod Security Standard "restricted" allows; `image` since Kubernetes 1.33
(https://github.com/kubernetes/kubernetes/pull/130394)."""

_POD = {
    "runAsNonRoot": True,
    "runAsUser": USER,
    "runAsGroup": USER,
    "fsGroup": USER,
    "seccompProfile": {"type": "RuntimeDefault"},
}
_CONTAINER = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
"""Security contexts of that standard, with the image's user. Containers of the service also need a read-only root."""


# Facts about the service.


@dataclass(frozen=True, slots=True)
class Service:
    """The parts of the service that manifests name: the paths of some routes, and all metrics."""

    paths: Mapping[str, str]
    metrics: Collection[str]


class _Settings(Settings):
    """Settings from manifests alone, without this process's environment."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        *_: PydanticBaseSettingsSource,
        **__: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


@functools.cache
def service() -> Service:
    """Return the facts, read from the service itself. The app is built for this, but not started."""
    app = create_app(_Settings(model="fake"))
    metrics = app.state.context.observability.metrics
    names = {sample.name for family in metrics.registry.collect() for sample in family.samples}
    return Service({name: str(app.url_path_for(name)) for name in ("live", "ready", "metrics")}, names)


# All objects.


def complaints(manifests: list[Manifest]) -> Iterator[str]:
    """Yield "kind/name: fault" for each fault in the objects of one overlay."""
    manifests = [_without_nulls(one) for one in manifests if one]
    checked = [one for one in manifests if not is_foreign(one)]
    wrong = [(one, complaint) for one in checked for complaint in _form(one)]
    if not wrong:  # the checks need well-formed objects
        checks = ((one, CHECKS[one["kind"]]) for one in checked if one["kind"] in CHECKS)
        wrong = [(one, complaint) for one, check in checks for complaint in check(one, manifests)]
    yield from (f"{subject(one)}: {complaint}" for one, complaint in wrong)


def _form(manifest: Manifest) -> list[str]:
    """Return the faults in an object's fields, without other objects."""
    refused = faults_of_form(manifest)
    if not refused and manifest["kind"] in CHECKS and not manifest.get("spec"):  # the schemas allow this
        return ["spec: is missing"]
    return refused


def subject(manifest: Manifest) -> str:
    """Return an object's kind and name as "kind/name"."""
    metadata = manifest.get("metadata") or {}
    return f"{manifest.get('kind', '').lower()}/{metadata.get('name') or metadata.get('generateName')}"


def _without_nulls(value: Any) -> Any:
    """Return an object without null fields, which count as absent."""
    if isinstance(value, list):
        return [_without_nulls(one) for one in value if one is not None]
    if isinstance(value, dict):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None}
    return value


def _those(*faults: tuple[object, str]) -> list[str]:
    """Return the texts of those faults whose condition is true."""
    return [what for is_there, what in faults if is_there]


# Pods of the service.


def _deployment(deployment: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    spec, template = deployment["spec"], deployment["spec"]["template"]
    pod = template.get("spec", {})
    if not any(_is_ours(container) for container in containers(pod)):
        return
    scalers = _scalers(deployment, manifests)
    surges = _surges(spec.get("strategy", {}))
    # Resources with a slash in their name are devices, and a node has a limited number of them.
    device = any("/" in name for one in pod["containers"] for name in _limits(one))
    yield from _those(
        (not _matches(spec["selector"], template), "selector: does not match the labels of its own pods"),
        ("replicas" in spec and scalers, "replicas: undoes at each apply the autoscaler's change"),
        (len(scalers) > 1, f"replicas: {' and '.join(map(subject, scalers))} would both set them"),
        (surges and device, "strategy: an update waits for a spare device; maxSurge must be 0"),
        (pod.get("enableServiceLinks") is not False, "enableServiceLinks: has to be false"),
        (pod.get("automountServiceAccountToken") is not False, "automountServiceAccountToken: has to be false"),
    )
    if surges or max(spec.get("replicas", 1), *map(_most, scalers), 1) > 1:
        yield from _claims_of_one_node(pod, manifests)
    yield from _pod_security(pod)
    found: dict[str, list[str]] = {}  # a fault of several containers is reported once
    for container in containers(pod):
        for complaint in _container(container, deployment, manifests):
            found.setdefault(complaint, []).append(container["name"])
    yield from (f"{', '.join(names)}: {complaint}" for complaint, names in found.items())


def _is_ours(container: Manifest) -> bool:
    image = container.get("image", "").rpartition("/")[2]
    return image.startswith("sdxl-turbo-server") or _command(container) in ("serve", "pull")


def _command(container: Manifest) -> str | None:
    return next(iter(container.get("args", ())), None)


def _scalers(deployment: Manifest, manifests: list[Manifest]) -> list[Manifest]:
    name = deployment.get("metadata", {}).get("name")
    scalers = [*_find(manifests, "HorizontalPodAutoscaler"), *_find(manifests, "ScaledObject")]
    return [one for one in scalers if one["spec"]["scaleTargetRef"]["name"] == name]


def _most(scaler: Manifest) -> int:
    spec = scaler["spec"]
    return int(spec["maxReplicas"] if scaler["kind"] == "HorizontalPodAutoscaler" else spec.get("maxReplicaCount", 100))


def _least(scaler: Manifest) -> int:
    spec = scaler["spec"]
    return int(
        spec.get("minReplicas", 1) if scaler["kind"] == "HorizontalPodAutoscaler" else spec.get("minReplicaCount", 0)
    )


def _surges(strategy: Manifest) -> bool:
    """Return whether an update temporarily runs more pods than before."""
    surge = strategy.get("rollingUpdate", {}).get("maxSurge", "25%")
    return strategy.get("type") != "Recreate" and surge not in (0, "0%")


def _limits(container: Manifest) -> Manifest:
    limits: Manifest = container.get("resources", {}).get("limits", {})
    return limits


def _requests(container: Manifest) -> Iterator[str]:
    requests, limits = container.get("resources", {}).get("requests") or {}, _limits(container)
    for name in sorted(requests.keys() & limits.keys()):
        if _amount(requests[name]) > _amount(limits[name]):
            yield f"resources: the request of {name}, {requests[name]}, exceeds the limit, {limits[name]}"


def _amount(quantity: object) -> float:
    """Return the number that a quantity such as `500m` or `4Gi` means; NaN, which nothing exceeds, if it is not one."""
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+)([A-Za-z]*)", str(quantity), re.ASCII)
    return float(found[1]) * _UNITS.get(found[2], math.nan) if found else math.nan


def _claims_of_one_node(pod: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    for volume in pod.get("volumes", ()):
        name = volume.get("persistentVolumeClaim", {}).get("claimName")
        for claim in _find(manifests, "PersistentVolumeClaim", name) if name else ():
            modes = claim["spec"].get("accessModes", [])
            if not {"ReadWriteMany", "ReadOnlyMany"} & set(modes):
                yield f"volumes: {name} is {', '.join(modes)}, and pods on a second node would wait for it forever"


def _pod_security(pod: Manifest) -> Iterator[str]:
    """Check a pod against the Pod Security Standard "restricted", except the driver's files, and the image's user."""
    context = pod.get("securityContext", {})
    for field, value in _POD.items():
        if context.get(field) != value:
            yield f"securityContext.{field}: is {context.get(field)}, and has to be {value}"
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(field):
            yield f"{field}: is not for a restricted pod"
    for volume in pod.get("volumes", ()):
        kind = next(iter(volume.keys() - {"name"}), "emptyDir")
        if kind not in _VOLUMES and not (kind == "hostPath" and volume[kind]["path"] in DRIVER):
            yield f"volumes: {volume['name']}: {kind} is not for a restricted pod"
        reference = volume.get("image", {}).get("reference", "unset:unset")
        if _tag(reference) in ("", "latest"):
            yield f"volumes: {volume['name']}: {reference} has no tag of its own"


def _container(container: Manifest, deployment: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    pod, context = deployment["spec"]["template"]["spec"], container.get("securityContext", {})
    wanted = _CONTAINER | ({"readOnlyRootFilesystem": True} if _is_ours(container) else {})
    # A container's own setting overrides its pod's.
    wanted |= {field: value for field, value in {**_POD, "privileged": False}.items() if field in context}
    for field, value in wanted.items():
        if context.get(field) != value:
            yield f"securityContext.{field}: is {context.get(field)}, and has to be {value}"
    if any("hostPort" in port for port in container.get("ports", ())):
        yield "ports: a hostPort is not for a restricted pod"
    yield from _mounts(container, pod)
    yield from _requests(container)
    if not _is_ours(container):
        return
    image = container.get("image", "")
    command = _command(container)
    yield from _those(
        (_tag(image) in ("", "latest"), f"image: {image} has no tag of its own"),
        ("command" in container, "command: takes the place of the image's entrypoint"),
        (command not in ("serve", "pull"), f"args: are {container.get('args')}, and must begin with serve or pull"),
        (not _mount(container, "/tmp", to_write=True), "volumeMounts: nothing on /tmp can be written"),  # noqa: S108
    )
    yield from _environment_faults(container, manifests)
    try:
        settings = _settings(container, manifests)
    except _SettingsError as error:
        yield from error.faults
        return
    if command == "serve":
        yield from _serving(container, pod, settings)
        yield from _network(container, deployment, settings, manifests)
        yield from _pulled_before(container, deployment, settings, manifests)
    else:
        yield from _pulling(container, settings)


def _tag(image: str) -> str:
    """Return an image's tag or digest."""
    return image.rpartition("/")[2].partition(":")[2]


def _mounts(container: Manifest, pod: Manifest) -> Iterator[str]:
    volumes = {volume["name"]: volume for volume in pod.get("volumes", ())}
    for mount in container.get("volumeMounts", ()):
        if mount["name"] not in volumes:
            yield f"volumeMounts: there is no volume {mount['name']}"
        elif "hostPath" in volumes[mount["name"]] and not mount.get("readOnly"):
            yield f"volumeMounts: {mount['name']} is the host's, and can be written; it must be read-only"


def _mount(container: Manifest, path: str, *, to_write: bool = False) -> bool:
    """Return whether a volume is mounted on a path or above it."""
    mounts = [one for one in container.get("volumeMounts", ()) if not (to_write and one.get("readOnly"))]
    return any(Path(path).is_relative_to(one["mountPath"]) for one in mounts)


# Settings.


class _SettingsError(Exception):
    """The environment and the flags of a container are not valid settings; `faults` are the reasons."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__(*faults)
        self.faults = faults


def _maps(container: Manifest, manifests: list[Manifest]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the ConfigMaps in a container's environment: the name, and the variables that it sets."""
    for source in container.get("envFrom", ()):
        if name := source.get("configMapRef", {}).get("name"):
            for settings in _find(manifests, "ConfigMap", name):
                yield name, {source.get("prefix", "") + key: text for key, text in settings.get("data", {}).items()}


def _environment_faults(container: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    for source in container.get("envFrom", ()):
        wanted = source.get("configMapRef", {"optional": True})
        if not wanted.get("optional") and not _find(manifests, "ConfigMap", wanted.get("name", "")):
            yield f"envFrom: there is no ConfigMap {wanted.get('name')}"
    own = {variable["name"].upper() for variable in container.get("env", ())}
    for name, variables in _maps(container, manifests):
        for variable in variables:
            if variable.upper() in own:
                yield f"env: {variable} of ConfigMap {name} has no effect, because the container sets it itself"
    for name, near in unknown_variables(_variables(container, manifests)):
        yield f"env: no setting reads {name}" + (f"; {near}?" if near else "")


def _variables(container: Manifest, manifests: list[Manifest]) -> dict[str, str]:
    """Return those variables of a container whose values are in the manifests."""
    variables: dict[str, str] = {}
    for _, some in _maps(container, manifests):
        variables |= some
    return variables | {one["name"]: one["value"] for one in container.get("env", ()) if "value" in one}


def _settings(container: Manifest, manifests: list[Manifest]) -> Settings:
    """Return the settings that the service reads from a container's environment and flags.

    Raises:
        _SettingsError: The service would reject them.
    """
    name, *flags = container.get("args") or ["serve"]
    chosen = {
        key.upper().removeprefix(PREFIX).lower(): text
        for key, text in _variables(container, manifests).items()
        if key.upper().startswith(PREFIX)
    }
    reasons = io.StringIO()
    try:
        with contextlib.redirect_stderr(reasons):
            given = vars(command_line._parser(name).parse(flags)) if flags else {}  # noqa: SLF001 - as main does
        known = {
            key: value for key, value in {**chosen, **given}.items() if key in Settings.model_fields and value != ""
        }
        return _Settings(**known)
    except (KeyError, SystemExit) as error:
        raise _SettingsError([f"args: {reasons.getvalue().partition(chr(10))[0]}"] if flags else []) from error
    except ValidationError as error:
        names = ["_".join([PREFIX[:-1], *map(str, fault["loc"])]).upper() for fault in error.errors()]
        raise _SettingsError(
            [
                f"env: {name}: {fault['msg']}" if fault["loc"] else f"env: {fault['msg'].removeprefix('Value error, ')}"
                for name, fault in zip(names, error.errors(), strict=True)
            ]
        ) from error


def _weights(settings: Settings) -> str:
    return str(settings.weights_dir) if "weights_dir" in settings.model_fields_set else WEIGHTS


def _serving(container: Manifest, pod: Manifest, settings: Settings) -> Iterator[str]:
    ports = {port.get("name"): port["containerPort"] for port in container.get("ports", ())}
    protocols = {port.get("protocol", "TCP") for port in container.get("ports", ())}
    keys, device = settings.api_keys_file, settings.device.partition(":")[0]
    accelerators = {name: amount for name, amount in _limits(container).items() if "/" in name}
    prefixes, _ = _ACCELERATORS.get(device, ((), ""))
    right = [str(amount) for name, amount in accelerators.items() if name.startswith(prefixes)]
    listens = "host" not in settings.model_fields_set or settings.host in ("0.0.0.0", "::")  # noqa: S104
    yield from _those(
        (
            list(ports.values()) != [settings.port] or protocols != {"TCP"},
            f"ports: are {list(ports.values())}, and the service listens on {settings.port} by TCP",
        ),
        (not listens, f"env: TURBO_HOST={settings.host}: probes and clients connect from other hosts"),
        (keys and not _mount(container, str(keys)), f"volumeMounts: there is no volume for TURBO_API_KEYS_FILE={keys}"),
        (
            device != "auto" and (right != (["1"] if prefixes else []) or len(accelerators) != len(right)),
            f"resources.limits: {accelerators} is not one device for TURBO_DEVICE={settings.device}",
        ),
    )
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        request = container.get(name, {}).get("httpGet")
        if request is None:
            yield f"{name}: is missing"
            continue
        path = service().paths["ready" if name == "readinessProbe" else "live"]
        yield from _those(
            (request.get("path") != path, f"{name}: asks for {request.get('path')}, and has to ask for {path}"),
            (request["port"] not in (*ports, *ports.values()), f"{name}: there is no port {request['port']}"),
            (request.get("scheme", "HTTP") != "HTTP" or "host" in request, f"{name}: has to ask the pod, by HTTP"),
        )
    yield from _ending(container, pod, settings)


def _ending(container: Manifest, pod: Manifest, settings: Settings) -> Iterator[str]:
    grace_s = pod.get("terminationGracePeriodSeconds", 30)
    if grace_s < (needed_s := settings.drain_s + GRACE_S):
        yield f"terminationGracePeriodSeconds: {grace_s} is less than {PREFIX}DRAIN_S and {GRACE_S}, {needed_s:g}"
    hook = container.get("lifecycle", {}).get("preStop", {})
    command = hook.get("exec", {}).get("command") or ["sleep", str(hook.get("sleep", {}).get("seconds"))]
    sleep = re.fullmatch(r"sleep\n([1-9]\d*)", "\n".join(command))
    if sleep is None:
        yield "lifecycle.preStop: has to sleep for some seconds, until the cluster's proxies send no more requests"
        return
    rest_s = int(sleep[1]) + LAST_BYTES_S + 1  # and a second for the shutdown
    if rest_s >= max(GRACE_S, grace_s - settings.drain_s):
        yield f"lifecycle.preStop: {sleep[1]} s, the drain and the last bytes together exceed the grace period"


def _pulling(container: Manifest, settings: Settings) -> Iterator[str]:
    _, variable = _ACCELERATORS.get(settings.device.partition(":")[0], ((), ""))
    void = {"name": variable, "value": "void"} in container.get("env", ())
    yield from _those(
        (variable and not void, f"env: {variable} has to be void, or a runtime may expose every device of the node"),
        (any("/" in name for name in _limits(container)), "resources.limits: needs no device"),
    )


def _pulled_before(
    serve: Manifest, deployment: Manifest, settings: Settings, manifests: list[Manifest]
) -> Iterator[str]:
    """Check that weights from a hub are pulled before the service starts."""
    if not (from_hub := _from_hub(settings)):
        return
    pod, folder = deployment["spec"]["template"]["spec"], _weights(settings)
    if not _mount(serve, folder):
        yield f"volumeMounts: there is no volume on {folder}"
    pulls = [one for one in pod.get("initContainers", ()) if _command(one) == "pull"]
    images = [one["name"] for one in pod.get("volumes", ()) if "image" in one]
    of_image = any(one["name"] in images and one["mountPath"] == folder for one in serve.get("volumeMounts", ()))
    if not pulls and not of_image:
        yield f"env: nothing pulls {' and '.join(from_hub)} first; add the component weights or weights-image"
    for pull in pulls:
        try:
            its = _settings(pull, manifests)
        except _SettingsError:
            continue  # reported for the container itself
        closed = _ways(deployment, "Egress", manifests) == []
        yield from _those(
            (pull.get("image") != serve.get("image"), f"image: is not that of {pull['name']}, {pull.get('image')}"),
            (its.model != settings.model, f"env: {pull['name']} brings {its.model}, not {settings.model}"),
            (its.vae != settings.vae, f"env: {pull['name']} brings the VAE {its.vae!r}, not {settings.vae!r}"),
            (
                _weights(its) != folder or not _mount(pull, folder, to_write=not closed),
                f"volumeMounts: {pull['name']} cannot write to {folder}",
            ),
        )


def _from_hub(settings: Settings) -> list[str]:
    """Return the settings that name weights on a hub, each with its value."""
    sources = {
        f"{PREFIX}MODEL={settings.model}": parse_source(settings.model),
        f"{PREFIX}VAE={settings.vae}": parse_vae(settings.vae),
    }
    return [setting for setting, source in sources.items() if isinstance(source, HubSource)]


# The network.


def _ways(deployment: Manifest, direction: str, manifests: list[Manifest]) -> list[Manifest] | None:
    """Return the rules that allow the pods' connections, or None if no policy restricts them."""
    template = deployment["spec"]["template"]
    policies = [
        one["spec"]
        for one in _find(manifests, "NetworkPolicy")
        if _matches(one["spec"].get("podSelector", {}), template)
    ]
    # The directions that a policy without policyTypes restricts.
    usual = [["Ingress", "Egress"] if "egress" in one else ["Ingress"] for one in policies]
    holding = [one for one, types in zip(policies, usual, strict=True) if direction in one.get("policyTypes", types)]
    return [rule for one in holding for rule in one.get(direction.lower(), ())] if holding else None


def _network(serve: Manifest, deployment: Manifest, settings: Settings, manifests: list[Manifest]) -> Iterator[str]:
    into, out = (_ways(deployment, direction, manifests) for direction in ("Ingress", "Egress"))
    names = [port["name"] for port in serve.get("ports", ()) if "name" in port]
    names_too = any(_lets(out or [], "UDP", port) for port in (53, 5353))
    shut = into is not None and not _lets(into, "TCP", settings.port, *names)
    free = into is not None and (out is None or any(not rule for rule in out))
    yield from _those(
        (shut, "NetworkPolicies do not let its port in by TCP"),
        (free, "NetworkPolicies let everything out"),
        # An empty list closes the egress, for existing weights.
        (
            _from_hub(settings) and out and not (names_too and _lets(out, "TCP", 443)),
            "NetworkPolicies do not let out both names (UDP 53) and HTTPS (TCP 443), to the hub",
        ),
    )


def _lets(rules: list[Manifest], protocol: str, *ports: str | int) -> bool:
    """Return whether the rules allow a protocol to a port, which is given by number or names."""
    return any(
        not rule.get("ports")
        or any(_covers(one, port) for one in rule["ports"] for port in ports if one.get("protocol", "TCP") == protocol)
        for rule in rules
    )


def _covers(rule: Manifest, port: str | int) -> bool:
    first = rule.get("port", port)
    if isinstance(first, int) and isinstance(port, int):
        return first <= port <= int(rule.get("endPort", first))
    return bool(first == port)


# Other objects.


def _service(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    name = manifest.get("metadata", {}).get("name", "").upper().replace("-", "_")
    if f"{name}_".startswith(PREFIX):
        yield f"its name would set {name}_PORT, which looks like a setting, in every pod of the namespace"
    spec = manifest["spec"]
    if not spec.get("selector") or spec.get("type") == "ExternalName":
        return
    selected = _selected({"matchLabels": spec["selector"]}, manifest, manifests)
    if not selected:
        yield "selector: matches no pods"
    for port in spec.get("ports", ()) if _ours(selected) else ():
        if port.get("targetPort", port["port"]) not in _ports(selected):
            yield f"ports: the pods have no port {port.get('targetPort', port['port'])}"


def _disruption_budget(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    spec = manifest["spec"]
    selected = _selected(spec.get("selector", {}), manifest, manifests)
    few = [_fewest(one, manifests) for one in _find(manifests, "Deployment") if one["spec"]["template"] in selected]
    least = spec.get("minAvailable", 0)
    all_stay = least == "100%" or (isinstance(least, int) and least >= max(1, min(few, default=1)))
    never = "never lets a pod go, so its node cannot be drained"
    yield from _those(
        (not selected, "selector: matches no pods"),
        (spec.get("maxUnavailable") in (0, "0%") or all_stay, never),
    )


def _fewest(deployment: Manifest, manifests: list[Manifest]) -> int:
    """Return the smallest number of pods that a Deployment can have."""
    return min(map(_least, _scalers(deployment, manifests)), default=int(deployment["spec"].get("replicas", 1)))


def _network_policy(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    selector = manifest["spec"].get("podSelector")
    if not selector:  # the policy applies to all pods of the namespace
        return
    selected = _selected(selector, manifest, manifests)
    if not selected:
        yield "podSelector: matches no pods"
    for rule in manifest["spec"].get("ingress", ()) if _ours(selected) else ():
        for port in rule.get("ports", ()):
            if not any(_covers(port, one) for one in _ports(selected)):
                yield f"ingress: the pods have no port {port['port']}"


def _autoscaler(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    target = manifest["spec"]["scaleTargetRef"]
    if not _find(manifests, target["kind"], target["name"]):
        yield f"scaleTargetRef: there is no {target['kind']} {target['name']}"
    for metric in manifest["spec"].get("metrics", ()):
        name = metric.get(metric["type"].lower(), {}).get("metric", {}).get("name", "")
        if (metric["type"] == "Pods" or name.startswith("turbo_")) and name not in service().metrics:
            yield f"metrics: the service has no {name}"


def _scaled_object(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    spec = manifest["spec"]
    target = {"kind": "Deployment"} | spec["scaleTargetRef"]
    if not _find(manifests, target["kind"], target["name"]):
        yield f"scaleTargetRef: there is no {target['kind']} {target['name']}"
    queries = [one["metadata"].get("query", "") for one in spec["triggers"]]
    for name in sorted({name for query in queries for name in re.findall(r"\bturbo_\w+", query)}):
        if name not in service().metrics:
            yield f"triggers: the service has no {name}"
    if _least(manifest) == 0 and all("turbo_" in query for query in queries):
        yield "minReplicaCount: is 0, and without a pod none of the triggers would start one"


def _claim(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    text = json.dumps([one for one in manifests if one.get("kind") != "PersistentVolumeClaim"])
    if f'"claimName": "{manifest.get("metadata", {}).get("name")}"' not in text:
        yield "no pod has it as a volume"


def _monitor(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    wanted = manifest["spec"]["selector"]
    services = [one for one in _find(manifests, "Service") if _matches(wanted, one)]
    if not services:
        yield "selector: matches no Services"
    selected = [
        pod for one in services for pod in _selected({"matchLabels": one["spec"].get("selector")}, one, manifests)
    ]
    if not _ours(selected):
        return
    names = {port.get("name") for one in services for port in one["spec"].get("ports", ())}
    metrics = {_metrics(pod.get("spec", {}), manifests) for pod in selected}
    for endpoint in manifest["spec"]["endpoints"]:
        path, port, target = endpoint.get("path", "/metrics"), endpoint.get("port"), endpoint.get("targetPort")
        with_key = endpoint.keys() & {"authorization", "bearerTokenSecret", "bearerTokenFile", "httpHeaders"}
        yield from _those(
            (port is not None and port not in names, f"endpoints: the Services have no port {port}"),
            (port is None and target not in _ports(selected), f"endpoints: the pods have no port {target}"),
            (path != service().paths["metrics"], f"endpoints: there are no metrics at {path}"),
            (endpoint.get("scheme", "http").lower() != "http", "endpoints: the service speaks HTTP"),
            ("off" in metrics, "endpoints: with TURBO_METRICS=off there are no metrics"),
            ("key" in metrics and not with_key, "endpoints: TURBO_METRICS=key takes authorization by key"),
        )


def _metrics(pod: Manifest, manifests: list[Manifest]) -> str | None:
    for container in pod.get("containers", ()):
        if _is_ours(container):
            with contextlib.suppress(_SettingsError):
                return _settings(container, manifests).metrics
    return None


CHECKS: Mapping[str, Callable[[Manifest, list[Manifest]], Iterator[str]]] = {
    "Deployment": _deployment,
    "Service": _service,
    "PersistentVolumeClaim": _claim,
    "PodDisruptionBudget": _disruption_budget,
    "NetworkPolicy": _network_policy,
    "HorizontalPodAutoscaler": _autoscaler,
    "ScaledObject": _scaled_object,
    "ServiceMonitor": _monitor,
}
"""The check for each kind, in addition to its schema. A check gets the object and all objects of the overlay."""


def _find(manifests: list[Manifest], kind: str, name: str | None = None) -> list[Manifest]:
    return [one for one in manifests if one.get("kind") == kind and name in (None, one.get("metadata", {}).get("name"))]


def _matches(selector: Manifest, one: Manifest) -> bool:
    """Return whether a selector matches the labels of an object or template. An empty selector matches all."""
    labels = one.get("metadata", {}).get("labels", {})
    tests: dict[str, Callable[[Manifest], bool]] = {
        "In": lambda wanted: labels.get(wanted["key"]) in wanted.get("values", ()),
        "NotIn": lambda wanted: labels.get(wanted["key"]) not in wanted.get("values", ()),
        "Exists": lambda wanted: wanted["key"] in labels,
        "DoesNotExist": lambda wanted: wanted["key"] not in labels,
    }
    expressions = selector.get("matchExpressions", ())
    return (selector.get("matchLabels") or {}).items() <= labels.items() and all(
        wanted["operator"] in tests and tests[wanted["operator"]](wanted) for wanted in expressions
    )


def _selected(selector: Manifest, of: Manifest, manifests: list[Manifest]) -> list[Manifest]:
    """Return the templates whose pods an object's selector matches, in its namespace."""
    namespace = of.get("metadata", {}).get("namespace")
    workloads = [one for kind in ("Deployment", "StatefulSet", "DaemonSet") for one in _find(manifests, kind)]
    templates = [one["spec"]["template"] for one in workloads if one.get("metadata", {}).get("namespace") == namespace]
    return [one for one in templates if _matches(selector, one)]


def containers(pod: Manifest) -> list[Manifest]:
    """Return a pod's containers in the order in which they run."""
    return [*pod.get("initContainers", ()), *pod.get("containers", ())]


def _ours(templates: list[Manifest]) -> bool:
    return any(_is_ours(container) for template in templates for container in containers(template.get("spec", {})))


def _ports(templates: list[Manifest]) -> set[str | int]:
    ports = [
        port
        for one in templates
        for container in containers(one.get("spec", {}))
        for port in container.get("ports", ())
    ]
    return {port["name"] for port in ports if "name" in port} | {port["containerPort"] for port in ports}
