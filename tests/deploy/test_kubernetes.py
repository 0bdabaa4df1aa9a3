"""The Kubernetes manifests, held to the service."""

from app.api import health
from app.settings import Settings
from tests.deploy.manifests import manifests


def test_the_pod_is_probed_on_the_right_paths_and_allowed_nothing_that_it_does_not_need() -> None:
    (deployment,) = manifests()
    pod = deployment["spec"]["template"]["spec"]
    (serve,) = pod["containers"]
    paths = {probe: serve[probe]["httpGet"]["path"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert paths == {
        "startupProbe": health.router.url_path_for("live"),
        "readinessProbe": health.router.url_path_for("ready"),
        "livenessProbe": health.router.url_path_for("live"),
    }
    assert deployment["spec"]["selector"]["matchLabels"] == deployment["spec"]["template"]["metadata"]["labels"]
    assert pod["enableServiceLinks"] is False
    assert pod["securityContext"].items() >= {"runAsNonRoot": True, "runAsUser": 10001}.items()
    volumes = {volume["name"] for volume in pod["volumes"]}
    for container in (serve, *pod["initContainers"]):
        locked = {"readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}, "allowPrivilegeEscalation": False}
        assert container["securityContext"] == locked
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert mounts.keys() == {"/tmp", "/weights"}  # noqa: S108 - the pod's own
        assert set(mounts.values()) <= volumes
        settings = {one["name"].removeprefix("TURBO_").lower(): one["value"] for one in container["env"]}
        assert settings.keys() <= Settings.model_fields.keys()
        Settings.model_validate(settings)
    npus = [name for name in serve["resources"]["limits"] if name.startswith("huawei.com/")]
    assert [serve["resources"]["requests"][name] for name in npus] == [1]
