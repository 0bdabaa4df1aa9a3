"""deploy/kubernetes: what it renders to is right, and what is wrong with manifests is said."""

import copy
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from tests.deploy.manifests import need_renderer
from tests.documents import document
from tools import check_deploy
from tools.check_deploy import KUBERNETES, Manifest, RenderError, complaints, render, render_with, service

ROOT = Path(__file__).parents[2]

COMPONENTS = [KUBERNETES / "components" / name for name in ("api-keys", "autoscaling", "service-monitor")]


@pytest.fixture(autouse=True, scope="module")
def _renderer() -> None:
    need_renderer()


# What is shipped.


def test_every_overlay_is_right_alone_and_with_every_component(capsys: pytest.CaptureFixture[str]) -> None:
    assert check_deploy.main([]) == 0, capsys.readouterr().out
    checked = [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert len(checked) == 2 * len(list((KUBERNETES / "overlays").iterdir()))
    everything = {one.name for one in (KUBERNETES / "components").iterdir()}
    assert everything <= set(next(name for name in checked if name.startswith("cpu + ")).split(" + "))


def test_overlays_hold_kinds_of_kubernetes_itself_alone() -> None:
    for overlay in (KUBERNETES / "overlays").iterdir():
        assert not {one["apiVersion"] for one in render(overlay)} - {
            "v1",
            "apps/v1",
            "policy/v1",
            "networking.k8s.io/v1",
        }


def test_the_same_folder_renders_to_the_same_bytes() -> None:
    command = [*(check_deploy.renderer() or ()), KUBERNETES / "overlays/npu-device-plugin"]
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
    for overlay in (KUBERNETES / "overlays").iterdir():
        (image,) = {container["image"] for container in check_deploy.containers(pod(render(overlay)))}
        target = overlay.name.partition("-")[0]
        assert image == f"sdxl-turbo-server:{target}"
        assert re.search(rf"^FROM .* AS {target}$", dockerfile, re.MULTILINE)


def test_the_driver_s_files_are_those_that_compose_mounts() -> None:
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    assert set(re.findall(r"^ +- (/\S+):\1:ro$", text, re.MULTILINE)) == set(check_deploy.DRIVER)
    mounted = pod(render(KUBERNETES / "overlays/npu-device-plugin"))["containers"][0]["volumeMounts"]
    assert set(check_deploy.DRIVER) <= {mount["mountPath"] for mount in mounted}


def test_user_and_weights_folder_are_the_image_s() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert f"USER {check_deploy.USER}:{check_deploy.USER}" in dockerfile.splitlines()
    assert re.search(rf"\bTURBO_WEIGHTS_DIR={check_deploy.WEIGHTS}\b", dockerfile)


def test_the_adapter_s_rule_gives_the_autoscaler_the_metric_it_asks_for() -> None:
    (folder,) = [one for one in COMPONENTS if one.name == "autoscaling"]
    (rule,) = yaml.safe_load((folder / "prometheus-adapter.yaml").read_text(encoding="utf-8"))["rules"]["custom"]
    name = rule["seriesQuery"].partition("{")[0]
    autoscaler = only(render_with(KUBERNETES / "overlays/npu", [folder]), "HorizontalPodAutoscaler")
    assert [metric["pods"]["metric"]["name"] for metric in autoscaler["spec"]["metrics"]] == [name]
    assert name in service().metrics
    query = rule["metricsQuery"]
    for template, text in {"Series": name, "LabelMatchers": 'namespace="default"', "GroupBy": "pod"}.items():
        query = query.replace(f"<<.{template}>>", text)
    promql_parser.parse(rule["seriesQuery"])
    promql_parser.parse(query)


def test_the_overlay_of_one_s_own_in_the_readme_is_right(tmp_path: Path) -> None:
    shutil.copytree(KUBERNETES, tmp_path / "kubernetes")
    blocks = [block for block in document("deploy/kubernetes/README.md").blocks if block.language == "yaml"]
    assert blocks
    for number, block in enumerate(blocks):
        ours = tmp_path / f"kubernetes/overlays/ours-{number}"
        ours.mkdir()
        (ours / "kustomization.yaml").write_text(block.text, encoding="utf-8")
        assert not list(complaints(render(ours))), block.where


# What is wrong is said.


@pytest.fixture(scope="module")
def manifests() -> list[Manifest]:
    return render_with(KUBERNETES / "overlays/npu-device-plugin", COMPONENTS)


def only(manifests: list[Manifest], kind: str) -> Manifest:
    (one,) = [one for one in manifests if one["kind"] == kind]
    return one


def pod(manifests: list[Manifest]) -> Manifest:
    spec: Manifest = only(manifests, "Deployment")["spec"]["template"]["spec"]
    return spec


def cells(head: str) -> list[Any]:
    """The cells of a column of the README's tables."""
    found = []
    for section in document("deploy/kubernetes/README.md").sections:
        for first, *rows in section.tables:
            names = [cell.text for cell in first]
            found += [row[names.index(head)] for row in rows if head in names]
    return found


POD = "Deployment/spec/template/spec"

SERVE = f"{POD}/containers/0"

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
    "pull: env: TURBO_DEVICE: String should match": ("ConfigMap/data/TURBO_DEVICE", "tpu"),
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
    "volumeMounts: there is no PersistentVolumeClaim sdxl-turbo-server-weights for weights": (
        "PersistentVolumeClaim/metadata/name",
        "weights",
    ),
    "envFrom: there is no ConfigMap sdxl-turbo-server-settings": ("ConfigMap/metadata/name", "settings"),
    "securityContext.runAsUser: is 0, and has to be 10001": (f"{POD}/securityContext/runAsUser", 0),
    "serve: securityContext: is None": (f"{SERVE}/securityContext", GONE),
    "pull: securityContext: is None": (f"{POD}/initContainers/0/securityContext", GONE),
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
    "networkpolicy/sdxl-turbo-server: podSelector: matches no pods, or all": ("NetworkPolicy/spec/podSelector", {}),
    "ingress: the pods have no port 9000": ("NetworkPolicy/spec/ingress/0/ports/0/port", 9000),
    "scaleTargetRef: there is no Deployment other": ("HorizontalPodAutoscaler/spec/scaleTargetRef/name", "other"),
    "metrics: the service has no turbo_queue_length": (
        "HorizontalPodAutoscaler/spec/metrics/0/pods/metric/name",
        "turbo_queue_length",
    ),
    "servicemonitor/sdxl-turbo-server: selector: matches no Services": (
        "ServiceMonitor/spec/selector/matchLabels/app",
        "other",
    ),
    "endpoints: the Services have no port metrics": ("ServiceMonitor/spec/endpoints/0/port", "metrics"),
    "endpoints: there are no metrics at /metric": ("ServiceMonitor/spec/endpoints/0/path", "/metric"),
}
"""What is complained of, and what is done to manifests that are right: the way to a field, and its new value."""


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


def test_what_is_harmed_is_right_before_and_of_every_kind_that_is_checked(manifests: list[Manifest]) -> None:
    assert not list(complaints(manifests))
    assert check_deploy.CHECKS.keys() <= {where.partition("/")[0] for where, _ in HARMS.values()}


@pytest.mark.parametrize("complaint", HARMS)
def test_a_fault_is_named(complaint: str, manifests: list[Manifest]) -> None:
    harmed = copy.deepcopy(manifests)
    harm(harmed, *HARMS[complaint])
    found = list(complaints(harmed))
    assert any(complaint in one for one in found), found


def test_what_cannot_be_rendered_is_a_fault_of_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "kustomization.yaml").write_text("resources: [nowhere.yaml]\n", encoding="utf-8")
    assert check_deploy.main([str(tmp_path)]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{tmp_path.name}: cannot be rendered: ")


def test_a_warning_of_kustomize_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("commonLabels: {app: turbo}\n", encoding="utf-8")
    with pytest.raises(RenderError, match="deprecated"):
        render(tmp_path)


def test_without_kubectl_and_kustomize_the_check_says_how_to_get_them_and_does_not_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert check_deploy.main([]) == 2
    assert "Install kubectl" in capsys.readouterr().err
