"""deploy/kubernetes: the rendered manifests are correct, and the checks name each fault."""

import copy
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from app.cli.tuning.tuned_file import write_tuned
from tests.deploy.manifests import SHIPPED, need_renderer, only, pod
from tests.documents.markdown import document
from tools.kubernetes import __main__ as check_deploy
from tools.kubernetes import checks as kubernetes_checks
from tools.kubernetes import helm, kustomize
from tools.kubernetes.checks import complaints, service
from tools.kubernetes.kustomize import KUBERNETES, render, render_with
from tools.kubernetes.rendering import RenderError
from tools.kubernetes.schemas import Manifest

ROOT = Path(__file__).parents[2]

COMPONENTS, OTHER_COMPONENTS = (
    [KUBERNETES / "components" / name for name in names]
    for names in (("api-keys", "autoscaling", "service-monitor"), ("weights-image", "keda"))
)


@pytest.fixture(autouse=True, scope="module")
def _renderer() -> None:
    need_renderer()


# The shipped manifests.


def test_every_overlay_is_right_alone_and_with_every_component(capsys: pytest.CaptureFixture[str]) -> None:
    assert check_deploy.main([str(overlay) for overlay in SHIPPED]) == 0, capsys.readouterr().out
    everything = {one.name for one in (KUBERNETES / "components").iterdir()}
    for overlay in SHIPPED:
        renderings = dict(kustomize.with_components(overlay))
        for name, rendered in renderings.items():
            assert not list(complaints(rendered())), name
        assert everything <= {*" + ".join(renderings).split(" + "), *(["weights"] if overlay.name != "cpu" else [])}


def test_the_check_goes_through_overlays_of_one_s_own_and_leaves_alone_what_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = tmp_path / "kubernetes"
    for part in ("base", "components", "overlays/cpu"):
        shutil.copytree(KUBERNETES / part, copied / part)
    (copied / "overlays/notes.txt").write_text("plain")
    (copied / "overlays/empty").mkdir()
    for number, name in enumerate(("kustomization.yml", "Kustomization")):
        (copied / f"overlays/ours-{number}").mkdir()
        (copied / f"overlays/ours-{number}" / name).write_text(
            "resources: [../cpu]\ncomponents: [../../components/api-keys]"
        )
    monkeypatch.setattr(kustomize, "KUBERNETES", copied)
    monkeypatch.setattr(helm, "OVERLAYS", {})  # test_helm.py has the chart
    assert check_deploy.main([]) == 0
    checked = [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()]
    others = ("weights + service-monitor + autoscaling", "weights-image + service-monitor + keda")
    assert checked == [
        "cpu",
        *(f"cpu + {these} + api-keys" for these in others),
        *(one for ours in ("ours-0", "ours-1") for one in (ours, *(f"{ours} + {these}" for these in others))),
    ]


def test_overlays_hold_kinds_of_kubernetes_itself_alone() -> None:
    for overlay in SHIPPED:
        assert not {one["apiVersion"] for one in render(overlay)} - {
            "v1",
            "apps/v1",
            "policy/v1",
            "networking.k8s.io/v1",
        }


def test_the_same_folder_renders_to_the_same_bytes() -> None:
    command = [*(kustomize.renderer() or ()), KUBERNETES / "overlays/npu-device-plugin"]
    assert subprocess.check_output(command) == subprocess.check_output(command)


def test_the_cpu_overlay_downloads_nothing_and_connects_to_nowhere() -> None:
    manifests = render(KUBERNETES / "overlays/cpu")
    assert not [one for one in manifests if one["kind"] == "PersistentVolumeClaim"]
    assert "initContainers" not in pod(manifests)
    assert only(manifests, "ConfigMap")["data"]["TURBO_MODEL"] == "demo"
    assert only(manifests, "NetworkPolicy")["spec"]["egress"] == []


@pytest.mark.parametrize("overlay", ["cuda", "npu", "npu-device-plugin"])
def test_an_accelerator_is_asked_for_once_and_its_name_stands_in_one_place(overlay: str) -> None:
    resources = pod(render(KUBERNETES / "overlays" / overlay))["containers"][0]["resources"]
    (name,) = [one for one in resources["limits"] if "/" in one]
    assert resources["limits"][name] == 1
    lines = [line for file in KUBERNETES.rglob("*.yaml") for line in file.read_text(encoding="utf-8").splitlines()]
    assert len([line for line in lines if name in line]) == 1
    assert name in {cell.text.strip("`") for cell in cells("resource")}


def test_an_overlay_has_one_image_for_all_its_containers_and_the_dockerfile_its_target() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    for overlay in SHIPPED:
        (image,) = {container["image"] for container in kubernetes_checks.containers(pod(render(overlay)))}
        target = overlay.name.partition("-")[0]
        assert image == f"sdxl-turbo-server:{target}"
        assert re.search(rf"^FROM .* AS {target}$", dockerfile, re.MULTILINE)


def test_the_driver_s_files_are_those_that_compose_mounts() -> None:
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    assert set(re.findall(r"^ +- (/\S+):\1:ro$", text, re.MULTILINE)) == set(kubernetes_checks.DRIVER)
    mounted = pod(render(KUBERNETES / "overlays/npu-device-plugin"))["containers"][0]["volumeMounts"]
    assert set(kubernetes_checks.DRIVER) <= {mount["mountPath"] for mount in mounted}


def test_user_and_weights_folder_are_the_image_s() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert f"USER {kubernetes_checks.USER}:{kubernetes_checks.USER}" in dockerfile.splitlines()
    assert re.search(rf"\bTURBO_WEIGHTS_DIR={kubernetes_checks.WEIGHTS}\b", dockerfile)


def test_the_adapter_s_rule_gives_the_autoscaler_the_metric_that_keda_reads_itself() -> None:
    (folder,) = [one for one in COMPONENTS if one.name == "autoscaling"]
    (rule,) = yaml.safe_load((folder / "prometheus-adapter.yaml").read_text(encoding="utf-8"))["rules"]["external"]
    autoscaler = only(render_with(KUBERNETES / "overlays/npu", [folder]), "HorizontalPodAutoscaler")["spec"]
    scaled = only(render_with(KUBERNETES / "overlays/npu", OTHER_COMPONENTS), "ScaledObject")["spec"]
    (metric,), (trigger,) = autoscaler["metrics"], scaled["triggers"]
    assert metric["external"]["metric"]["name"] == rule["name"]["as"]
    selected = {"namespace": "default", **metric["external"]["metric"]["selector"]["matchLabels"]}
    labels = ",".join(f'{name}="{value}"' for name, value in selected.items())
    query = rule["metricsQuery"].replace("<<.LabelMatchers>>", labels)
    assert trigger["metadata"]["query"] == query
    assert set(re.findall(r"\bturbo_\w+", query)) <= set(service().metrics)
    promql_parser.parse(rule["seriesQuery"])
    promql_parser.parse(query)
    assert trigger["metadata"]["threshold"] == metric["external"]["target"]["averageValue"]
    assert (scaled["minReplicaCount"], scaled["maxReplicaCount"]) == (
        autoscaler["minReplicas"],
        autoscaler["maxReplicas"],
    )
    assert scaled["advanced"]["horizontalPodAutoscalerConfig"]["behavior"] == autoscaler["behavior"]


def test_the_overlay_of_one_s_own_in_the_readme_is_right(tmp_path: Path) -> None:
    shutil.copytree(KUBERNETES, tmp_path / "kubernetes")
    blocks = [block for block in document("deploy/kubernetes/README.md").blocks if block.language == "yaml"]
    assert blocks
    for number, block in enumerate(blocks):
        ours = tmp_path / f"kubernetes/overlays/ours-{number}"
        ours.mkdir()
        (ours / "kustomization.yaml").write_text(block.text, encoding="utf-8")
        write_tuned(ours / "turbo.env", facts=["Device: none"], table=["none"], settings={"max_batch": "4"})
        assert not list(complaints(render(ours))), block.where


# Faulty manifests.


@pytest.fixture(scope="module")
def manifests() -> list[Manifest]:
    return render_with(KUBERNETES / "overlays/npu-device-plugin", COMPONENTS)


@pytest.fixture(scope="module")
def other_manifests() -> list[Manifest]:
    return render_with(KUBERNETES / "overlays/npu", OTHER_COMPONENTS)


def cells(head: str) -> list[Any]:
    """The cells below this heading in the README's tables."""
    found = []
    for section in document("deploy/kubernetes/README.md").sections:
        for first, *rows in section.tables:
            names = [cell.text for cell in first]
            found += [row[names.index(head)] for row in rows if head in names]
    return found


POD = "Deployment/spec/template/spec"

SERVE, PULL = f"{POD}/containers/0", f"{POD}/initContainers/0"

GONE = object()

HARMS: dict[str, tuple[str, object]] = {
    "Kubernetes 1.27, 1.32, 1.37: spec.template.spec.containers.0: Additional properties": (
        f"{SERVE}/livenesProbe",
        {},
    ),
    "Kubernetes 1.27, 1.32, 1.37: spec.maxUnavailable: [1] is not valid": (
        "PodDisruptionBudget/spec/maxUnavailable",
        [1],
    ),
    "there is no policy/v1beta1 PodDisruptionBudget": ("PodDisruptionBudget/apiVersion", "policy/v1beta1"),
    "$.spec.endpoints[0]: Additional properties are not allowed ('intervall'": (
        "ServiceMonitor/spec/endpoints/0/intervall",
        "15s",
    ),
    "metadata: Additional properties are not allowed ('label'": ("ServiceMonitor/metadata/label", {}),
    "serve: readinessProbe: asks for /healthz/live, and has to ask for /healthz/ready": (
        f"{SERVE}/readinessProbe/httpGet/path",
        "/healthz/live",
    ),
    "startupProbe: is missing": (f"{SERVE}/startupProbe", GONE),
    "livenessProbe: there is no port web": (f"{SERVE}/livenessProbe/httpGet/port", "web"),
    "ports: are [8080], and the service listens on 8000": (f"{SERVE}/ports/0/containerPort", 8080),
    "env: no setting reads TURBO_MODELL; TURBO_MODEL?": ("ConfigMap/data/TURBO_MODELL", "demo"),
    "env: TURBO_MAX_QUEUE: Input should be a valid integer": ("ConfigMap/data/TURBO_MAX_QUEUE", "many"),
    "pull, serve: env: TURBO_DEVICE: String should match": ("ConfigMap/data/TURBO_DEVICE", "tpu"),
    "terminationGracePeriodSeconds: 60 is less than TURBO_DRAIN_S and 10, 70": (
        f"{POD}/terminationGracePeriodSeconds",
        60,
    ),
    "nothing pulls TURBO_MODEL=openmind:PyTorch-NPU/sdxl-turbo": (f"{POD}/initContainers", GONE),
    "serve: volumeMounts: there is no volume on /weights": (f"{SERVE}/volumeMounts", GONE),
    "args: are ['server']": (f"{SERVE}/args/0", "server"),
    "image: registry:5000/sdxl-turbo-server has no tag": (f"{SERVE}/image", "registry:5000/sdxl-turbo-server"),
    "volumeMounts: there is no volume cache": (f"{SERVE}/volumeMounts/-", {"name": "cache", "mountPath": "/cache"}),
    "volumeMounts: dcmi is the host's, and can be written": (
        f"{SERVE}/volumeMounts/-",
        {"name": "dcmi", "mountPath": "/dcmi"},
    ),
    "persistentvolumeclaim/weights: no pod has it": ("PersistentVolumeClaim/metadata/name", "weights"),
    "volumes: sdxl-turbo-server-weights is ReadWriteOnce, and pods on a second node": (
        "PersistentVolumeClaim/spec/accessModes/0",
        "ReadWriteOnce",
    ),
    "envFrom: there is no ConfigMap sdxl-turbo-server-settings": ("ConfigMap/metadata/name", "settings"),
    "securityContext.runAsUser: is 0, and has to be 10001": (f"{POD}/securityContext/runAsUser", 0),
    "serve: securityContext.readOnlyRootFilesystem: is None": (f"{SERVE}/securityContext", GONE),
    "pull: securityContext.capabilities: is None": (f"{PULL}/securityContext", GONE),
    "serve: securityContext.runAsUser: is 0": (f"{SERVE}/securityContext/runAsUser", 0),
    "serve: securityContext.privileged: is True": (f"{SERVE}/securityContext/privileged", True),
    "securityContext.runAsGroup: is 0": (f"{POD}/securityContext/runAsGroup", 0),
    "serve: ports: a hostPort is not": (f"{SERVE}/ports/0/hostPort", 8000),
    "by TCP": (f"{SERVE}/ports/0/protocol", "UDP"),
    "serve: command: takes the place": (f"{SERVE}/command", ["sh"]),
    "args: unrecognized arguments: --log-leve": (f"{SERVE}/args/-", "--log-leve=debug"),
    "serve: livenessProbe: has to ask the pod, by HTTP": (f"{SERVE}/livenessProbe/httpGet/scheme", "HTTPS"),
    "serve: lifecycle.preStop: has to sleep": (f"{SERVE}/lifecycle", GONE),
    "serve: lifecycle.preStop: 4 s, the drain and the last bytes": (f"{SERVE}/lifecycle/preStop/exec/command/1", "4"),
    "serve: volumeMounts: nothing on /tmp can be written": (f"{SERVE}/volumeMounts", GONE),
    "pull: volumeMounts: nothing on /tmp can be written": (
        f"{PULL}/volumeMounts/0",
        {"name": "tmp", "mountPath": "/t"},
    ),
    "volumeMounts: pull cannot write to /weights": (f"{PULL}/volumeMounts/1/readOnly", True),
    "image: is not that of pull, sdxl-turbo-server:cpu": (f"{PULL}/image", "sdxl-turbo-server:cpu"),
    "env: pull brings demo, not openmind:": (f"{PULL}/env/-", {"name": "turbo_model", "value": "demo"}),
    "env: pull brings the VAE 'hf:a/vae', not ''": (f"{PULL}/env/-", {"name": "TURBO_VAE", "value": "hf:a/vae"}),
    "env: TURBO_DRAIN_S of ConfigMap": ("ConfigMap/data/TURBO_DRAIN_S", "30"),
    "pull, serve: env: TURBO_METRICS=key requires TURBO_API_KEYS_FILE": ("ConfigMap/data", {"TURBO_METRICS": "key"}),
    "there is no volume for TURBO_API_KEYS_FILE=/keys": ("ConfigMap/data/TURBO_API_KEYS_FILE", "/keys"),
    "env: TURBO_HOST=127.0.0.1": ("ConfigMap/data/turbo_host", "127.0.0.1"),
    "pull: env: ASCEND_VISIBLE_DEVICES has to be void": (f"{PULL}/env", GONE),
    "pull: env: NVIDIA_VISIBLE_DEVICES has to be void": ("ConfigMap/data/TURBO_DEVICE", "cuda"),
    "pull: resources.limits: needs no device": (f"{PULL}/resources/limits", {"huawei.com/Ascend910": 1}),
    "'huawei.com/Ascend910': 1} is not one device for TURBO_DEVICE=cpu": ("ConfigMap/data/TURBO_DEVICE", "cpu"),
    "'nvidia.com/gpu': 1} is not one device for TURBO_DEVICE=npu": (f"{SERVE}/resources/limits", {"nvidia.com/gpu": 1}),
    "{} is not one device for TURBO_DEVICE=npu": (f"{SERVE}/resources/limits", {}),
    "serve: resources: the request of memory, 16Gi, exceeds the limit, 900M": (
        f"{SERVE}/resources/limits/memory",
        "900M",
    ),
    "strategy: an update waits for a spare device": ("Deployment/spec/strategy/rollingUpdate/maxSurge", 1),
    "hostNetwork: is not for a restricted pod": (f"{POD}/hostNetwork", True),
    "volumes: host: hostPath is not for a restricted pod": (
        f"{POD}/volumes/-",
        {"name": "host", "hostPath": {"path": "/"}},
    ),
    "enableServiceLinks: has to be false": (f"{POD}/enableServiceLinks", GONE),
    "automountServiceAccountToken: has to be false": (f"{POD}/automountServiceAccountToken", True),
    "replicas: undoes at each apply": ("Deployment/spec/replicas", 2),
    "deployment/sdxl-turbo-server: selector: does not match": ("Deployment/spec/selector/matchLabels/app", "other"),
    "service/sdxl-turbo-server: selector: matches no pods": ("Service/spec/selector/app", "other"),
    "service/sdxl-turbo-server: ports: the pods have no port web": ("Service/spec/ports/0/targetPort", "web"),
    "service/turbo: its name would set TURBO_PORT": ("Service/metadata/name", "turbo"),
    "service/turbo-metrics: its name would set TURBO_METRICS_PORT": ("Service/metadata/name", "turbo-metrics"),
    "poddisruptionbudget/sdxl-turbo-server: selector: matches no pods": (
        "PodDisruptionBudget/spec/selector/matchLabels/app",
        "other",
    ),
    "poddisruptionbudget/sdxl-turbo-server: never lets a pod go": ("PodDisruptionBudget/spec/maxUnavailable", 0),
    "networkpolicy/sdxl-turbo-server: podSelector: matches no pods": (
        "NetworkPolicy/spec/podSelector/matchLabels/app",
        "other",
    ),
    "serve: NetworkPolicies do not let its port in": ("NetworkPolicy/spec/ingress/0/ports/0/protocol", "UDP"),
    "serve: NetworkPolicies let everything out": ("NetworkPolicy/spec/egress/0", {}),
    "NetworkPolicies do not let out both names (UDP 53) and": ("NetworkPolicy/spec/egress/0/ports/0/port", 54),
    "and HTTPS (TCP 443), to the hub": ("NetworkPolicy/spec/egress/0/ports/2/port", 80),
    "ingress: the pods have no port 9000": ("NetworkPolicy/spec/ingress/0/ports/0/port", 9000),
    "scaleTargetRef: there is no Deployment other": ("HorizontalPodAutoscaler/spec/scaleTargetRef/name", "other"),
    "metrics: the service has no turbo_queue_length": (
        "HorizontalPodAutoscaler/spec/metrics/0",
        {"type": "Pods", "pods": {"metric": {"name": "turbo_queue_length"}, "target": {"type": "AverageValue"}}},
    ),
    "servicemonitor/sdxl-turbo-server: selector: matches no Services": (
        "ServiceMonitor/spec/selector/matchLabels/app",
        "other",
    ),
    "endpoints: the Services have no port metrics": ("ServiceMonitor/spec/endpoints/0/port", "metrics"),
    "endpoints: with TURBO_METRICS=off": ("ConfigMap/data/TURBO_METRICS", "off"),
    "endpoints: TURBO_METRICS=key takes authorization": ("ConfigMap/data/TURBO_METRICS", "key"),
    "endpoints: the service speaks HTTP": ("ServiceMonitor/spec/endpoints/0/scheme", "https"),
    "endpoints: there are no metrics at /metric": ("ServiceMonitor/spec/endpoints/0/path", "/metric"),
}
"""Each complaint, and the change to correct manifests that causes it: the path of a field, and its new value."""


SCALED, IMAGE = "ScaledObject/spec", f"{POD}/volumes/0"

OTHER_HARMS: dict[str, tuple[str, object]] = {
    "$.spec: Additional properties are not allowed ('minReplicas'": (f"{SCALED}/minReplicas", 1),
    "$.spec.triggers: [] should be non-empty": (f"{SCALED}/triggers", []),
    "scaledobject/sdxl-turbo-server: scaleTargetRef: there is no Deployment other": (
        f"{SCALED}/scaleTargetRef/name",
        "other",
    ),
    "triggers: the service has no turbo_queue_length": (f"{SCALED}/triggers/0/metadata/query", "turbo_queue_length"),
    "minReplicaCount: is 0, and without a pod": (f"{SCALED}/minReplicaCount", 0),
    "minReplicaCount: is 0": (f"{SCALED}/minReplicaCount", GONE),
    "Kubernetes 1.35, 1.37: spec.template.spec.volumes.0": (f"{IMAGE}/image/tag", "1"),
    "volumes: weights: registry.example:5000/weights has no tag": (
        f"{IMAGE}/image/reference",
        "registry.example:5000/weights",
    ),
    "nothing pulls TURBO_MODEL=openmind:PyTorch-NPU/sdxl-turbo first": (IMAGE, {"name": "weights", "emptyDir": {}}),
}
"""The same for the components that an overlay takes instead."""


def harm(manifests: list[Manifest], where: str, value: object) -> None:
    kind, *path, last = where.split("/")
    field: Any = only(manifests, kind)
    for step in path:
        field = field[int(step) if isinstance(field, list) else step]
    if last == "-":
        field.append(value)
    elif value is GONE:
        del field[last]
    else:
        field[int(last) if isinstance(field, list) else last] = value


def test_what_is_harmed_is_right_before_and_of_every_kind_that_is_checked(
    manifests: list[Manifest], other_manifests: list[Manifest]
) -> None:
    assert not [*complaints(manifests), *complaints(other_manifests)]
    every = {**HARMS, **OTHER_HARMS}
    assert kubernetes_checks.CHECKS.keys() <= {where.partition("/")[0] for where, _ in every.values()}


@pytest.mark.parametrize("complaint", [*HARMS, *OTHER_HARMS])
def test_a_fault_is_named(complaint: str, manifests: list[Manifest], other_manifests: list[Manifest]) -> None:
    harmed = copy.deepcopy(manifests if complaint in HARMS else other_manifests)
    harm(harmed, *{**HARMS, **OTHER_HARMS}[complaint])
    found = list(complaints(harmed))
    assert any(complaint in one for one in found), found


def test_two_autoscalers_of_one_deployment_are_a_fault(
    manifests: list[Manifest], other_manifests: list[Manifest]
) -> None:
    both = [*manifests, only(other_manifests, "ScaledObject")]
    found = list(complaints(both))
    names = "horizontalpodautoscaler/sdxl-turbo-server and scaledobject/sdxl-turbo-server"
    assert any(f"replicas: {names} would both set them" in one for one in found), found


def test_no_pod_is_no_fault_if_something_outside_of_the_pods_counts_requests(other_manifests: list[Manifest]) -> None:
    to_zero = copy.deepcopy(other_manifests)
    harm(to_zero, f"{SCALED}/minReplicaCount", 0)
    metadata = {"serverAddress": "http://prometheus:9090", "query": "sum(rate(nginx_requests[2m]))", "threshold": "1"}
    harm(to_zero, f"{SCALED}/triggers/-", {"type": "prometheus", "metadata": metadata})
    assert not list(complaints(to_zero))


def test_a_vae_from_a_hub_needs_a_pull_even_if_the_model_does_not() -> None:
    manifests = render(KUBERNETES / "overlays/cpu")
    harm(manifests, "ConfigMap/data/TURBO_VAE", "hf:madebyollin/taesdxl")
    assert any("nothing pulls TURBO_VAE=hf:madebyollin/taesdxl first" in one for one in complaints(manifests))


HARMLESS: dict[str, tuple[str, object]] = {
    "a label that a selector has as an expression": (
        "PodDisruptionBudget/spec/selector",
        {"matchExpressions": [{"key": "app.kubernetes.io/name", "operator": "In", "values": ["sdxl-turbo-server"]}]},
    ),
    "any port of a protocol": ("NetworkPolicy/spec/ingress/0/ports/0", {"protocol": "TCP"}),
    "a range of ports": ("NetworkPolicy/spec/ingress/0/ports/0", {"port": 7000, "endPort": 9000}),
    "names of OpenShift": ("NetworkPolicy/spec/egress/0/ports/0/port", 5353),
    "the way out closed": ("NetworkPolicy/spec/egress", []),
    "flags": (f"{SERVE}/args", ["serve", "--log-level", "debug"]),
    "what the pod says, said again": (f"{SERVE}/securityContext/runAsNonRoot", True),
    "a ConfigMap that may not be there": (f"{SERVE}/envFrom/-", {"configMapRef": {"name": "site", "optional": True}}),
    "a claim that is there already": (
        f"{POD}/volumes/-",
        {"name": "there", "persistentVolumeClaim": {"claimName": "there"}},
    ),
    "null": (f"{POD}/nodeSelector", None),
    "metrics where they are": ("ServiceMonitor/spec/endpoints/0", {"port": "http"}),
    "metrics of a port of the pods": ("ServiceMonitor/spec/endpoints/0", {"targetPort": 8000, "path": "/metrics"}),
    "a sidecar": (
        f"{POD}/containers/-",
        {
            "name": "proxy",
            "image": "envoy:1",
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        },
    ),
}
"""Changes to correct manifests that leave them correct."""

OTHERS = """
{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: other}, spec: {}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: deny},
 spec: {podSelector: {}, policyTypes: [Ingress]}}
---
{apiVersion: v1, kind: ConfigMap, metadata: {generateName: other-}, data: null}
---
{apiVersion: v1, kind: Service, metadata: {name: external}, spec: {type: ExternalName, externalName: example.com}}
---
{apiVersion: v1, kind: Service, metadata: {name: by-hand}, spec: {ports: [{port: 80}]}}
---
{apiVersion: apps/v1, kind: Deployment, metadata: {name: other}, spec: {selector: {matchLabels: {app: other}},
 template: {metadata: {labels: {app: other}}, spec: {containers: [{name: other, image: other}]}}}}
---
"""
"""Objects that are allowed beside the service; the last document is empty."""


@pytest.mark.parametrize("change", HARMLESS)
def test_what_is_no_fault_is_not_named(change: str, manifests: list[Manifest]) -> None:
    changed = copy.deepcopy(manifests)
    harm(changed, *HARMLESS[change])
    assert not list(complaints(changed))


def test_what_stands_beside_the_service_is_no_fault_and_kinds_of_others_are_said_to_be_unchecked(
    manifests: list[Manifest], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not list(complaints([*manifests, *yaml.safe_load_all(OTHERS)]))
    (tmp_path / "others.yaml").write_text(OTHERS.partition("---")[0], encoding="utf-8")
    (tmp_path / "kustomization.yaml").write_text("resources: [others.yaml]", encoding="utf-8")
    assert check_deploy.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.endswith("; not checked: httproute/other\n")


def test_metrics_that_take_a_key_are_scraped_with_one(manifests: list[Manifest]) -> None:
    keyed = copy.deepcopy(manifests)
    harm(keyed, "ConfigMap/data/TURBO_METRICS", "key")
    credentials = {"name": "sdxl-turbo-server-metrics", "key": "key"}
    harm(keyed, "ServiceMonitor/spec/endpoints/0/authorization", {"credentials": credentials})
    assert not list(complaints(keyed))


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (f"{POD}/securityContext", None),
        ("Deployment/spec/template/metadata", None),
        ("HorizontalPodAutoscaler/spec/metrics", [{"type": "Pods"}]),
        ("Service/metadata", None),
        ("Service/spec", {}),
        ("NetworkPolicy/spec", None),
        (POD, None),
        (f"{SERVE}/args", []),
        (f"{SERVE}/image", None),
        (f"{SERVE}/ports/0", None),
        (f"{SERVE}/lifecycle/preStop/exec/command", ["sleep 3"]),
    ],
)
def test_what_is_odd_is_a_fault_and_no_traceback(where: str, value: object, manifests: list[Manifest]) -> None:
    odd = copy.deepcopy(manifests)
    harm(odd, where, value)
    assert list(complaints(odd))


def test_what_cannot_be_rendered_is_a_fault_of_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "kustomization.yaml").write_text("resources: [nowhere.yaml]\n", encoding="utf-8")
    assert check_deploy.main([str(tmp_path)]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{tmp_path.name}: cannot be rendered: ")


def test_a_warning_of_kustomize_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("commonLabels: {app: turbo}\n", encoding="utf-8")
    with pytest.raises(RenderError, match="deprecated"):
        render(tmp_path)
