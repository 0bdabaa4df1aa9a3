"""deploy/helm: the chart passes the checks of deploy/kubernetes, makes the same objects, and rejects wrong values."""

import copy
import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml

import app
from app.api.gate.api_keys import ApiKeys
from app.cli.tuning.search import RUNTIME
from app.cli.tuning.switches import PLAINEST
from app.cli.tuning.tuned_file import write_tuned
from app.settings import PREFIX, Settings
from tests.deploy.manifests import SHIPPED, need_renderer, only, pod
from tests.documents.markdown import document
from tools import chart_values
from tools.kubernetes import __main__ as check_deploy
from tools.kubernetes import helm, kustomize
from tools.kubernetes.checks import GRACE_S, complaints
from tools.kubernetes.helm import CHART, Values, render
from tools.kubernetes.rendering import RenderError
from tools.kubernetes.schemas import VERSIONS, Manifest

ROOT = Path(__file__).parents[2]

RELEASES = dict(helm.releases())

_MOST = {name.partition(" + ")[0]: name.count(" + ") for name in sorted(RELEASES, key=lambda name: name.count(" + "))}

COMPARED = [name for name in RELEASES if name.count(" + ") in (0, 1, _MOST[name.partition(" + ")[0]])]
"""Every overlay alone, with each component, and with all that go together. `make check-deploy` checks every choice."""


# The checks.


@pytest.mark.parametrize("name", COMPARED)
def test_the_chart_is_right_for_every_overlay_alone_with_each_component_and_with_all(name: str) -> None:
    manifests = RELEASES[name]()
    assert {"Deployment", "Service", "ConfigMap"} <= {one["kind"] for one in manifests}
    assert not list(complaints(manifests))


BREAKS = {
    "readinessProbe: asks for /ready, and has to ask for /healthz/ready": ("path: /healthz/ready", "path: /ready"),
    "ports: are [8080], and the service listens on 8000": ("containerPort: 8000", "containerPort: 8080"),
    "service/sdxl-turbo-server: ports: the pods have no port web": ("targetPort: http", "targetPort: web"),
    "there is no ConfigMap sdxl-turbo-server-setting": ("$fullname }}-settings}", "$fullname }}-setting}"),
    "nothing pulls TURBO_MODEL=hf:stabilityai/sdxl-turbo": ("args: [pull]", "args: [doctor]"),
    "env: no setting reads TURBO_DRAIN; TURBO_DRAIN_S?": ("{name: TURBO_DRAIN_S", "{name: TURBO_DRAIN"),
    "terminationGracePeriodSeconds: 65 is less than": ("add 10", "add 5"),
    "strategy: an update waits for a spare device": ("maxSurge: 0", "maxSurge: 1"),
    "is not one device for TURBO_DEVICE=cuda": (".resource 1", ".resource 2"),
    "Additional properties are not allowed ('livenesProbe'": ("livenessProbe:", "livenesProbe:"),
    "cannot be rendered: unable to parse YAML": ("kind: Deployment", "kind: [Deployment"),
    "NetworkPolicies do not let out both names (UDP 53) and HTTPS": ("port: 443", "port: 80"),
}
"""Each complaint, and the change of the templates that causes it."""


@pytest.mark.parametrize("complaint", BREAKS)
def test_a_broken_chart_is_named(
    complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = shutil.copytree(CHART, tmp_path / "helm")
    was, becomes = BREAKS[complaint]
    files = [file for file in (copied / "templates").iterdir() if was in file.read_text(encoding="utf-8")]
    assert files
    for file in files:
        file.write_text(file.read_text(encoding="utf-8").replace(was, becomes), encoding="utf-8")
    (tmp_path / "cuda.yaml").write_text("target: cuda", encoding="utf-8")
    monkeypatch.setattr(helm, "CHART", copied)
    assert check_deploy.main([str(tmp_path / "cuda.yaml")]) == 1
    assert complaint in capsys.readouterr().out


def test_values_of_one_s_own_are_checked_without_a_program_that_renders_overlays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    ours = tmp_path / "ours.yaml"
    ours.write_text("settings: {TURBO_WARM_UP_SIZES: 512}", encoding="utf-8")
    assert check_deploy.main([str(ours)]) == 1
    ours.write_text("settings: {TURBO_WARM_UP_SIZES: 512x512}", encoding="utf-8")
    assert check_deploy.main([str(ours)]) == 0
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == ["ours.yaml"] * 2


# The same objects as deploy/kubernetes.

LABELS = ("helm.sh/chart", "app.kubernetes.io/instance", "app.kubernetes.io/managed-by", "app.kubernetes.io/version")
"""Labels that Helm's conventions ask for, and kustomize's objects lack. `instance` lets several releases share a
namespace, where kustomize needs a namespace for each."""

KEYS = {"containers": "name", "initContainers": "name", "env": "name", "volumes": "name", "volumeMounts": "mountPath"}
"""Lists that Kubernetes merges by a key, so their order has no meaning here; kustomize puts a patch's items first."""


def normalized(manifests: list[Manifest]) -> dict[str, Manifest]:
    """The objects by kind and name, without the differences that the two tools must have."""
    text = json.dumps(manifests)
    # kustomize puts the settings' hash into the ConfigMap's name, and Helm into an annotation of the pods.
    text = re.sub(r"(sdxl-turbo-server-settings)-[a-z0-9]{10}\b", r"\1", text)
    objects = json.loads(text)
    for one in objects:
        if one["kind"] == "Deployment":
            metadata = one["spec"]["template"]["metadata"]
            metadata.get("annotations", {}).pop("checksum/settings", None)
            if not metadata.get("annotations", True):
                del metadata["annotations"]
            one["spec"]["template"]["spec"].setdefault("initContainers", [])  # kustomize leaves an empty list
        # Helm labels every object with the chart's name, kustomize only those that others select by it.
        if one["kind"] not in ("Service", "ServiceMonitor"):
            one["metadata"].get("labels", {}).pop("app.kubernetes.io/name", None)
        _normalize(one)
        if not one["metadata"].get("labels", True):
            del one["metadata"]["labels"]
    return {f"{one['kind']}/{one['metadata']['name']}": one for one in objects}


def _normalize(value: Any) -> None:
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _normalize(one)
    if isinstance(value, dict):
        for label in LABELS:
            value.pop(label, None)
        for name in KEYS.keys() & value.keys():
            value[name].sort(key=lambda item: item[KEYS[name]])


@pytest.mark.parametrize("name", COMPARED)
def test_the_chart_makes_the_objects_that_kustomize_makes(name: str) -> None:
    need_renderer()
    overlay, *components = name.removeprefix("helm ").split(" + ")
    folders = [kustomize.KUBERNETES / "components" / one for one in components]
    theirs = normalized(kustomize.render_with(kustomize.KUBERNETES / "overlays" / overlay, folders))
    # The overlays have the tag that the documents build, and the chart has that of a release.
    values = helm.values_of(overlay, components) | {"image": {"tag": overlay.partition("-")[0]}}
    assert normalized(render(values)) == theirs


def test_the_chart_has_the_values_for_every_overlay_and_every_component() -> None:
    assert list(helm.OVERLAYS) == [overlay.name for overlay in SHIPPED]
    assert helm.COMPONENTS.keys() == {one.name for one in (kustomize.KUBERNETES / "components").iterdir()}


# Values.


def test_the_schema_has_the_service_s_settings_and_the_readme_every_value() -> None:
    assert chart_values.SCHEMA.read_text(encoding="utf-8") == chart_values.schema(), "run `make docs`"
    assert chart_values.README.read_text(encoding="utf-8") == chart_values.readme(), "run `make docs`"


def test_every_setting_is_a_value_or_the_chart_sets_it_itself() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    settings = {name.removeprefix(PREFIX).lower() for name in schema["properties"]["settings"]["properties"]}
    assert settings | chart_values.OWNED.keys() == Settings.model_fields.keys()
    assert not settings & chart_values.OWNED.keys()


def test_the_schema_describes_exactly_the_values_of_values_yaml() -> None:
    def names(group: dict[str, Any]) -> Any:
        groups = {name: one for name, one in group["properties"].items() if name != "settings"}
        return {name: names(one) if "properties" in one else None for name, one in groups.items()} | {"settings": None}

    def shape(described: Any, values: Any) -> Iterator[str]:
        assert described.keys() - {"settings"} == values.keys() - {"settings"}
        for name in values.keys() - {"settings"}:
            if described[name] is not None:
                yield from shape(described[name], values[name])

    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    for name in ("global", "enabled"):  # for charts that have this one as a subchart
        del schema["properties"][name]
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    assert not list(shape(names(schema), values))


def test_null_is_rejected_if_the_default_is_not_empty_and_else_changes_nothing() -> None:
    """In YAML, a name has the value null if the lines below it are comments."""

    def nulls(group: dict[str, Any], defaults: Values) -> Values:
        described = {name: group["properties"][name] for name in defaults}
        groups = {name for name, one in described.items() if "properties" in one} - {"settings"}
        free = {name for name in described.keys() - groups if isinstance(defaults[name], dict)}
        needed = groups | {name for name in described.keys() - free if defaults[name]}
        assert set(group.get("required", ())) == needed
        nested = {name: nulls(described[name], defaults[name]) for name in groups}
        return nested | {name: None for name in described.keys() - needed if not (name in free and defaults[name])}

    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    values = nulls(schema, yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8")))
    values["serviceMonitor"]["enabled"] = True
    assert values["podLabels"] is values["settings"] is values["serviceMonitor"]["labels"] is None
    assert render(values) == render({"serviceMonitor": {"enabled": True}})


WRONG: dict[str, Values] = {
    "'/target': value must be one of 'cpu', 'cuda', 'npu'": {"target": "gpu"},
    "'/settings': additional properties 'TURBO_MODELL' not allowed": {"settings": {"TURBO_MODELL": "demo"}},
    "'/settings': additional properties 'TURBO_PORT' not allowed": {"settings": {"TURBO_PORT": 80}},
    "'/settings/TURBO_MAX_BATCH': maximum: got 65, want 64": {"settings": {"TURBO_MAX_BATCH": 65}},
    "'/settings/TURBO_MAX_BATCH': got string, want null or integer": {"settings": {"TURBO_MAX_BATCH": "1000"}},
    "'/settings/TURBO_DEADLINE_S': exclusiveMinimum: got 0, want 0": {"settings": {"TURBO_DEADLINE_S": 0}},
    "'/settings/TURBO_MAX_BODY_BYTES': minimum: got 5, want 1,024": {"settings": {"TURBO_MAX_BODY_BYTES": 5}},
    "'/settings/TURBO_PROMPT_CACHE_BYTES': '16 quux'": {"settings": {"TURBO_PROMPT_CACHE_BYTES": "16 quux"}},
    "'/settings/TURBO_COMPILE': value must be one of 'off', 'on'": {"settings": {"TURBO_COMPILE": True}},
    "additional properties 'tags' not allowed": {"image": {"tags": "cpu"}},
    "'/npu/driver': value must be one of 'runtime', 'host'": {"npu": {"driver": "docker"}},
    "'/cuda/resource': 'gpu' does not match pattern": {"cuda": {"resource": "gpu"}},
    "'/service/port': maximum: got 80,000, want 65,535": {"service": {"port": 80000}},
    "'/replicas': got string, want null or integer": {"replicas": "two"},
    "'/apiKeys/keys/alice': 'short' does not match pattern": {"apiKeys": {"keys": {"alice": "short"}}},
    "'/weights': missing property 'size'": {"weights": {"size": None}},
    "missing property 'weights'": {"weights": None},
    "'/extraEnv/0': missing property 'name'": {"extraEnv": [{"value": "demo"}]},
    "extraEnv must not have TURBO_MODEL": {"extraEnv": [{"name": "TURBO_MODEL", "value": "demo"}]},
    "autoscaling.minReplicas exceeds autoscaling.maxReplicas": {
        "autoscaling": {"enabled": True, "picturesPerSecond": 1, "minReplicas": 5}
    },
    "replicas and autoscaling.enabled exclude each other": {
        "replicas": 0,
        "autoscaling": {"enabled": True, "picturesPerSecond": 1},
    },
    "autoscaling.enabled requires autoscaling.picturesPerSecond": {"autoscaling": {"enabled": True}},
    "autoscaling.minReplicas=0 requires autoscaling.engine=keda": {
        "autoscaling": {"enabled": True, "picturesPerSecond": 1, "minReplicas": 0}
    },
    "autoscaling.minReplicas=0 requires a trigger": {
        "autoscaling": {"enabled": True, "engine": "keda", "picturesPerSecond": 1, "minReplicas": 0}
    },
    "autoscaling.triggers requires autoscaling.engine=keda": {"autoscaling": {"triggers": [{"type": "cron"}]}},
    "weights.image.reference and weights.existingClaim exclude each other": {
        "weights": {"existingClaim": "weights", "image": {"reference": "weights:1"}}
    },
    "'/weights/image/reference': 'registry.example:5000/weights' does not match": {
        "weights": {"image": {"reference": "registry.example:5000/weights"}}
    },
    "Several pods require weights.accessMode": {"target": "cuda", "replicas": 2},
    "ReadWriteMany if they may run on several nodes": {
        "target": "cuda",
        "autoscaling": {"enabled": True, "picturesPerSecond": 1},
    },
    "apiKeys.existingSecret and apiKeys.keys exclude each other": {
        "apiKeys": {"existingSecret": "keys", "keys": {"alice": "a-key-of-alice-s-own"}}
    },
    "TURBO_METRICS=key requires apiKeys": {"settings": {"TURBO_METRICS": "key"}},
    "autoscaling.enabled requires metrics": {
        "settings": {"TURBO_METRICS": "off"},
        "autoscaling": {"enabled": True, "picturesPerSecond": 1},
    },
    "serviceMonitor.enabled requires metrics": {
        "settings": {"TURBO_METRICS": "off"},
        "serviceMonitor": {"enabled": True},
    },
    "TURBO_METRICS=key requires serviceMonitor.authorization": {
        "settings": {"TURBO_METRICS": "key"},
        "serviceMonitor": {"enabled": True},
        "apiKeys": {"existingSecret": "keys"},
    },
}
"""Each error of Helm, and the values that cause it."""


@pytest.mark.parametrize("error", WRONG)
def test_wrong_values_are_rejected_with_the_reason(error: str) -> None:
    with pytest.raises(RenderError) as raised:
        render(WRONG[error])
    assert error in str(raised.value)


@pytest.mark.parametrize("name", ["1abc", "a.b"])
def test_a_release_that_cannot_name_a_service_is_rejected_unless_it_gets_another_name(name: str) -> None:
    with pytest.raises(RenderError, match="choose another release name, or set fullnameOverride"):
        render({}, release=name)
    assert only(render({"fullnameOverride": "turbo"}, release=name), "Service")["metadata"]["name"] == "turbo"


RIGHT: dict[str, Values] = {
    "bytes and booleans as text": {"settings": {"TURBO_MAX_BODY_BYTES": "16 MiB", "TURBO_MCP": "false"}},
    "a digest": {"image": {"repository": "registry.example:5000/sdxl-turbo-server", "digest": f"sha256:{'0' * 64}"}},
    "an image that is pulled with a secret": {"image": {"pullPolicy": "Always", "pullSecrets": ["registry"]}},
    "nodes": {
        "target": "npu",
        "nodeSelector": {"accelerator": "huawei-npu"},
        "tolerations": [{"key": "npu", "operator": "Exists"}],
        "affinity": {"podAntiAffinity": {}},
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway"}
        ],
        "schedulerName": "volcano",
        "priorityClassName": "high",
        "serviceAccountName": "pictures",
        "npu": {"resource": "huawei.com/Ascend310P", "group": 1001},
    },
    "a runtime class": {"target": "cuda", "runtimeClassName": "nvidia"},
    "a share of a GPU": {"target": "cuda", "cuda": {"resource": "volcano.sh/vgpu-number"}},
    "several pods": {"target": "cuda", "replicas": 3, "weights": {"accessMode": "ReadWriteMany"}},
    "several pods, and a claim that exists": {"target": "cuda", "replicas": 3, "weights": {"existingClaim": "weights"}},
    "a claim that exists": {"target": "cuda", "weights": {"existingClaim": "weights"}},
    "a class of storage": {"target": "cuda", "weights": {"storageClass": "nfs", "size": "1Ti"}},
    "several pods, and weights in an image": {
        "target": "cuda",
        "replicas": 3,
        "weights": {"image": {"reference": f"registry.example:5000/w@sha256:{'0' * 64}", "pullPolicy": "IfNotPresent"}},
    },
    "no pod while the ingress has no requests": {
        "autoscaling": {
            "enabled": True,
            "engine": "keda",
            "picturesPerSecond": 0.07,
            "minReplicas": 0,
            "triggers": [
                {
                    "type": "prometheus",
                    "metadata": {"serverAddress": "http://prometheus:9090", "query": "sum(x)", "threshold": "1"},
                }
            ],
        }
    },
    "a hub's VAE on CPU": {"settings": {"TURBO_VAE": "hf:madebyollin/taesdxl"}},
    "a hub's LoRA on CPU": {"settings": {"TURBO_LORA": "a.safetensors:0.8,hf:a/lora:0.5"}},
    "the way out closed": {"target": "cuda", "networkPolicy": {"hub": False}},
    "a way out to a proxy": {"target": "cuda", "networkPolicy": {"egress": [{"ports": [{"port": 3128}]}]}},
    "clients of one namespace": {"networkPolicy": {"from": [{"namespaceSelector": {}}]}},
    "no policy and no budget": {"networkPolicy": {"enabled": False}, "podDisruptionBudget": {"enabled": False}},
    "a load balancer": {
        "service": {"type": "LoadBalancer", "port": 80, "annotations": {"example.com/internal": "true"}}
    },
    "keys": {"apiKeys": {"keys": {"alice": "a-key-of-alice-s-own", "bob": "#a:key-of-bob's-own"}}},
    "metrics with a key": {
        "settings": {"TURBO_METRICS": "key"},
        "apiKeys": {"existingSecret": "keys"},
        "serviceMonitor": {
            "enabled": True,
            "labels": {"release": "prometheus"},
            "authorization": {"credentials": {"name": "metrics", "key": "key"}},
        },
    },
    "labels, annotations, variables": {
        "podLabels": {"team": "pictures"},
        "podAnnotations": {"example.com/a": "b"},
        "extraEnv": [{"name": "OTEL_EXPORTER_OTLP_ENDPOINT", "value": "http://collector:4318"}],
    },
    "a volume of one's own": {
        "settings": {"TURBO_MODEL": "/models/ours"},
        "extraVolumes": [{"name": "models", "persistentVolumeClaim": {"claimName": "models"}}],
        "extraVolumeMounts": [{"name": "models", "mountPath": "/models", "readOnly": True}],
    },
    "a longer drain": {"settings": {"TURBO_DRAIN_S": 90.5}},
    "more memory": {"resources": {"requests": {"memory": "12Gi"}, "limits": {"memory": "12Gi"}}},
    "a subchart": {"global": {"imageRegistry": "registry.example"}, "enabled": True},
}
"""Values that are right."""


@pytest.mark.parametrize("values", RIGHT.values(), ids=RIGHT)
def test_right_values_make_right_objects(values: Values) -> None:
    assert not list(complaints(render(values, release="two")))


def serve(values: Values) -> Manifest:
    """The container of the service."""
    (container,) = pod(render(values))["containers"]
    return dict(container)


def settings(values: Values) -> dict[str, str]:
    """The settings in the ConfigMap."""
    return dict(only(render(values), "ConfigMap")["data"])


def test_settings_reach_the_service_as_they_are_written() -> None:
    written = {"TURBO_MAX_BODY_BYTES": 33554432, "TURBO_DEADLINE_S": 0.5, "TURBO_MCP": False, "TURBO_MODEL": "fake"}
    assert settings({"settings": written}) == {
        "TURBO_DEVICE": "cpu",
        "TURBO_MAX_BODY_BYTES": "33554432",
        "TURBO_DEADLINE_S": "0.5",
        "TURBO_MCP": "false",
        "TURBO_MODEL": "fake",
    }


def test_a_setting_that_is_null_is_not_set() -> None:
    unset = {
        "TURBO_MODEL": None,
        "TURBO_DTYPE": None,
        "TURBO_MAX_BATCH": None,
        "TURBO_MCP": None,
        "TURBO_DRAIN_S": None,
    }
    assert render({"settings": unset}) == render({})


def test_a_change_of_settings_and_nothing_else_replaces_the_pods() -> None:
    def template(values: Values) -> Manifest:
        return dict(only(render(values), "Deployment")["spec"]["template"])

    before = template({})
    assert template({"service": {"port": 80}}) == before
    after = template({"settings": {"TURBO_MAX_BATCH": 4}})
    assert after != before
    after["metadata"]["annotations"] = before["metadata"]["annotations"]
    assert after == before


@pytest.mark.parametrize(("drain_s", "grace_s"), [(0, 10), (90.5, 101), (120, 130)])
def test_the_grace_period_follows_the_time_to_drain(drain_s: float, grace_s: int) -> None:
    values = {"settings": {"TURBO_DRAIN_S": drain_s}}
    assert {"name": "TURBO_DRAIN_S", "value": str(drain_s)} in serve(values)["env"]
    assert "TURBO_DRAIN_S" not in settings(values)
    assert pod(render(values))["terminationGracePeriodSeconds"] == grace_s
    assert grace_s >= float(drain_s) + GRACE_S


def test_no_variable_or_annotation_is_there_twice() -> None:
    """The API server rejects two variables with one name in a server-side apply."""
    ours = {"name": "OMP_NUM_THREADS", "value": "1"}
    assert [one["name"] for one in serve({})["env"]] == ["TURBO_DRAIN_S", "OMP_NUM_THREADS"]
    assert serve({"extraEnv": [ours]})["env"][1:] == [ours]
    annotated = helm.templates({"podAnnotations": {"checksum/settings": "ours"}})["deployment.yaml"]
    assert annotated.count("checksum/settings") == 1


def test_security_contexts_can_leave_the_user_to_the_cluster() -> None:
    values = {"podSecurityContext": {"runAsUser": None, "fsGroup": 5}, "securityContext": {"privileged": False}}
    template = pod(render(values | {"target": "npu"}))
    assert template["securityContext"].keys() >= {"runAsNonRoot", "seccompProfile", "supplementalGroups"}
    assert "runAsUser" not in template["securityContext"]
    assert template["securityContext"]["fsGroup"] == 5
    for container in (*template["initContainers"], *template["containers"]):
        assert container["securityContext"].items() >= {"privileged": False, "readOnlyRootFilesystem": True}.items()


def test_an_image_is_of_the_chart_s_version_and_target_by_default_and_a_digest_precedes_a_tag() -> None:
    assert serve({"target": "npu"})["image"] == f"sdxl-turbo-server:{app.__version__}-npu"
    digest = f"sha256:{'0' * 64}"
    assert serve({"image": {"tag": "cpu", "digest": digest}})["image"] == f"sdxl-turbo-server@{digest}"


def test_an_upgrade_keeps_the_number_of_pods_unless_values_say_one() -> None:
    assert "replicas" not in only(render({}), "Deployment")["spec"]
    assert only(render({"replicas": 0}), "Deployment")["spec"]["replicas"] == 0


def test_weights_are_pulled_only_if_a_setting_names_a_hub_or_a_claim_is_given() -> None:
    kinds = {one["kind"] for one in render({"target": "cuda", "settings": {"TURBO_MODEL": "demo"}})}
    assert "PersistentVolumeClaim" not in kinds
    for name in ("a hub's VAE on CPU", "a hub's LoRA on CPU"):
        assert [one["args"] for one in pod(render(RIGHT[name]))["initContainers"]] == [["pull"]]
    assert "PersistentVolumeClaim" not in {one["kind"] for one in render(RIGHT["a claim that exists"])}
    folder = {"settings": {"TURBO_MODEL": "/weights/ours"}, "weights": {"existingClaim": "ours"}}
    assert "/weights" in {mount["mountPath"] for mount in serve(folder)["volumeMounts"]}


def test_the_access_mode_of_a_claim_does_not_depend_on_the_number_of_pods() -> None:
    """Kubernetes rejects an upgrade that changes it. Without a mode, values for several pods are `WRONG`."""
    many: Values = {"weights": {"accessMode": "ReadWriteMany"}}
    releases: list[Values] = [
        {},
        {"replicas": 1},
        many,
        many | {"replicas": 2},
        many | {"autoscaling": {"enabled": True, "picturesPerSecond": 1}},
    ]
    claims = [only(render({"target": "cuda", **values}), "PersistentVolumeClaim") for values in releases]
    assert [claim["spec"]["accessModes"] for claim in claims] == [["ReadWriteOnce"]] * 2 + [["ReadWriteMany"]] * 3


def test_keys_given_to_helm_are_the_file_that_the_service_reads(tmp_path: Path) -> None:
    manifests = render(RIGHT["keys"])
    file = tmp_path / "keys"
    secret = only(manifests, "Secret")
    file.write_text(secret["stringData"]["keys"], encoding="utf-8")
    assert ApiKeys(file).name_of("#a:key-of-bob's-own") == "bob"
    (volume,) = [one for one in pod(manifests)["volumes"] if one["name"] == "api-keys"]
    assert volume["secret"]["secretName"] == secret["metadata"]["name"]


def test_two_releases_share_a_namespace() -> None:
    one, two = render({}, release="one"), render({}, release="two")
    assert not normalized(one).keys() & normalized(two).keys()
    assert only(one, "Service")["spec"]["selector"] != only(two, "Service")["spec"]["selector"]
    assert not list(complaints([*copy.deepcopy(one), *copy.deepcopy(two)]))


@pytest.mark.parametrize("values", [{}, {"target": "npu", "npu": {"driver": "host"}, **RIGHT["keys"]}])
def test_the_notes_name_objects_that_are_there(values: Values) -> None:
    (notes,) = helm.templates(values, release="two", notes=True).values()
    there = {f"{one['kind'].lower()}/{one['metadata']['name']}" for one in render(values, release="two")}
    named = set(re.findall(r"\b(?:deployment|service)/\S+", notes))
    assert len(named) == 2
    assert named <= there
    assert ("No API key" in notes) == ("apiKeys" not in values)
    assert ("privileged" in notes) == ("npu" in values)
    assert "has the playground and the documentation" in notes


def test_the_notes_promise_only_what_is_served() -> None:
    off = {"settings": {"TURBO_PLAYGROUND": False}}
    assert "has the documentation." in helm.templates(off, notes=True)["NOTES.txt"]
    off["settings"]["TURBO_DOCS"] = False
    assert "http://127.0.0.1" not in helm.templates(off, notes=True)["NOTES.txt"]
    assert "The pods serve" not in helm.templates({"replicas": 0}, notes=True)["NOTES.txt"]


# The README.


def test_the_values_in_the_readme_are_right() -> None:
    blocks = [block for block in document("deploy/helm/README.md").blocks if block.language == "yaml"]
    assert blocks
    for block in blocks:
        assert not list(complaints(render(yaml.safe_load(block.text)))), block.where


def test_the_readme_turns_the_file_of_tune_into_values(tmp_path: Path) -> None:
    text = "\n".join(block.text for block in document("deploy/helm/README.md").blocks)
    (command,) = re.findall(r"^\{$.*?^\} > tuned.yaml$", text, re.MULTILINE | re.DOTALL)
    tuned = dict(PLAINEST) | {"allow_tf32": "true", "compile": "on", "threads": "12", "vae": "/weights/our vae"}
    write_tuned(tmp_path / "turbo.env", facts=["Device: none"], table=["none"], settings=tuned, runtime=RUNTIME)
    subprocess.run(["sh", "-euc", command], cwd=tmp_path, check=True)
    values = yaml.safe_load((tmp_path / "tuned.yaml").read_text(encoding="utf-8"))
    expected = {f"{PREFIX}{name.upper()}": text for name, text in tuned.items()}
    assert expected.items() <= settings(values).items()
    assert [{"name": name, "value": text} for name, text in RUNTIME.items()] == serve(values)["env"][-len(RUNTIME) :]


# The package.


def test_the_chart_has_the_service_s_version_on_plain_lines() -> None:
    lines = (CHART / "Chart.yaml").read_text(encoding="utf-8").splitlines()
    assert f"version: {app.__version__}" in lines
    assert f"appVersion: {app.__version__}" in lines


def test_the_packaged_chart_has_licence_and_readme_and_renders_alike(tmp_path: Path) -> None:
    archive = Path(helm_python.package(CHART, destination=tmp_path))
    assert archive.name == f"sdxl-turbo-server-{app.__version__}.tgz"
    with tarfile.open(archive) as packed:
        names = {name.removeprefix("sdxl-turbo-server/") for name in packed.getnames()}
        licence = packed.extractfile("sdxl-turbo-server/LICENSE")
        assert licence is not None
        assert licence.read() == (ROOT / "LICENSE").read_bytes()
    assert {"README.md", "values.schema.json", "values.yaml", "templates/NOTES.txt"} <= names
    with helm_python.Chart.load(archive) as packed_chart, helm_python.Chart.load(CHART) as chart:
        assert packed_chart.render({}, name="one") == chart.render({}, name="one")


def test_the_chart_needs_the_oldest_kubernetes_that_is_checked() -> None:
    text = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))["kubeVersion"]
    assert text == f">={VERSIONS[0]}.0-0"
