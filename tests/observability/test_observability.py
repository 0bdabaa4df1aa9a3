"""Metrics, their table, the alerts and the dashboard: each against the service's own metrics and a real Prometheus."""

import asyncio
import json
import re
import subprocess
import threading
import time
from asyncio.subprocess import PIPE
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import promql_parser
import pytest
import yaml
from prometheus_client import Metric

from app.main import create_app
from app.observability.metrics import PICTURES_BUCKETS, SECONDS_BUCKETS
from app.pipelines.base import Mode
from app.settings import Settings
from benchmarks.support.ports import free_port
from tests.conftest import StartServer, png, program, running, until
from tests.support.gated_pipeline import GatedPipeline

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs/observability.md").read_text(encoding="utf-8")
FOLDER = ROOT / "deploy/observability"
ALERTS = [rule for group in yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"] for rule in group["rules"]]
DASHBOARD = json.loads((FOLDER / "grafana-dashboard.json").read_text(encoding="utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]

OF_PROMETHEUS = {"up": set[str](), "scrape_duration_seconds": set[str]()}
"""What Prometheus says of a target by itself."""

OF_TARGETS = {"job", "instance"}
"""Labels that Prometheus gives to all that it scrapes."""

EMPTY_IN_HEALTH = {"Errors, by code"}


@pytest.fixture
async def families() -> list[Metric]:
    """What the registry of a service shows that has been asked for pictures in every mode."""
    app = create_app(Settings(model="fake"))
    async with running(app) as client:
        assert (await client.post("/txt2img", json={"prompt": "a"})).status_code == 200
        sent = await client.post("/img2img", data={"prompt": "a"}, files={"image": png()})
        assert sent.status_code == 200
        sent = await client.post("/inpaint", data={"prompt": "a"}, files={"image": png(), "mask": png(color="white")})
        assert sent.status_code == 200
        return list(app.state.context.observability.metrics.registry.collect())


def labels_of(family: Metric) -> set[str]:
    return {label for sample in family.samples for label in sample.labels} - {"le"}


def shown_name(family: Metric) -> str:
    return family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")


# What is measured.


def test_pictures_are_counted_by_mode_and_the_guide_names_the_modes(families: list[Metric]) -> None:
    by_mode = {family.name: family for family in families if "mode" in labels_of(family)}
    counted = [sample for sample in by_mode["turbo_pictures"].samples if sample.name == "turbo_pictures_total"]
    assert {sample.labels["mode"]: sample.value for sample in counted} == dict.fromkeys(Mode, 1)
    for family in by_mode.values():
        assert {sample.labels["mode"] for sample in family.samples} == set(Mode), family.name
    assert f"`mode` is {', '.join(f'`{mode}`' for mode in list(Mode)[:-1])} or `{list(Mode)[-1]}`" in DOCUMENT


def test_the_table_of_metrics_is_what_the_service_shows(families: list[Metric]) -> None:
    rows = [
        f"| `{shown_name(family)}` | {family.type.replace('info', 'gauge')} "
        f"| {', '.join(f'`{label}`' for label in sorted(labels_of(family)))} | {family.documentation} |"
        for family in families
    ]
    head = "| metric | type | labels | meaning |\n| --- | --- | --- | --- |\n"
    _, found, rest = DOCUMENT.partition(head)
    assert found
    shown = rest.partition("\n\n")[0].strip().splitlines()
    assert shown == rows, "the table has to be:\n" + "\n".join(rows)


@pytest.mark.parametrize("bounds", [SECONDS_BUCKETS, PICTURES_BUCKETS])
def test_the_document_names_the_buckets(bounds: tuple[float, ...]) -> None:
    assert f"`{', '.join(f'{bound:g}' for bound in bounds)}`" in DOCUMENT


async def test_requests_that_arrive_wait_and_are_served_are_in_progress_and_the_queue_has_a_depth(
    pipeline: GatedPipeline,
) -> None:
    async with running(create_app(Settings(model="fake", max_queue=7), load_pipelines=pipeline.load)) as client:
        pipeline.close()
        requests = [asyncio.create_task(client.post("/txt2img", json={"prompt": "a"})) for _ in range(3)]
        await until(lambda: pipeline.calls)
        shown = (await client.get("/metrics")).text
        assert "turbo_requests_in_progress 3.0" in shown
        assert "turbo_queue_depth 2.0" in shown
        assert "turbo_queue_limit 7.0" in shown
        assert float(re.findall(r"^turbo_device_call_running_seconds (\S+)$", shown, re.MULTILINE)[0]) > 0
        busy_s = float(re.findall(r"^turbo_device_busy_seconds_total (\S+)$", shown, re.MULTILINE)[0])
        requests[2].cancel()
        pipeline.gate.set()
        await asyncio.gather(*requests, return_exceptions=True)
        shown = (await client.get("/metrics")).text
        assert "turbo_requests_in_progress 0.0" in shown
        assert "turbo_device_call_running_seconds 0.0" in shown
        assert float(re.findall(r"^turbo_device_busy_seconds_total (\S+)$", shown, re.MULTILINE)[0]) > busy_s


async def test_the_status_is_one_of_five_and_what_the_health_checks_say() -> None:
    app = create_app(Settings(model="fake"))
    async with running(app) as client:
        for status in ("ready", "draining"):
            shown = re.findall(
                r'^turbo_status\{status="(\w+)"\} (\S+)$', (await client.get("/metrics")).text, re.MULTILINE
            )
            assert sorted(shown) == [
                (word, "1.0" if word == status else "0.0")
                for word in ("device_lost", "draining", "hung", "ready", "starting")
            ]
            app.state.context.engine.admission.drain()


async def test_what_clients_choose_makes_no_new_series(client: httpx.AsyncClient) -> None:
    async def lines() -> int:
        return len((await client.get("/metrics")).text.splitlines())

    await client.get("/nothing")
    await client.request("BREW", "/nothing")
    await lines()  # itself a request that is counted
    before = await lines()
    for word in ("a", "b", "c"):
        await client.get(f"/nothing/{word}")
        await client.request(f"BREW{word}", f"/nothing/{word}")
    assert await lines() == before


def test_what_is_answered_below_the_app_is_counted_too(start_server: StartServer) -> None:
    url = start_server(model="fake").wait_until_started()
    assert httpx.get(url, headers={"X-Long": "a" * 20_000}).status_code == 431
    assert 'turbo_errors_total{code="headers_too_large"} 1.0' in httpx.get(f"{url}/metrics").text


# What is made of it.


def expressions() -> Iterator[tuple[str, str]]:
    """Every expression of the alerts and the dashboard, with the name of what has it."""
    for rule in ALERTS:
        yield rule["alert"], rule["expr"]
    for panel in PANELS:
        for target in panel["targets"]:
            yield panel["title"], filled_in(target["expr"])
    for annotation in DASHBOARD["annotations"]["list"]:
        if "expr" in annotation:
            yield annotation["name"], filled_in(annotation["expr"])


def filled_in(expression: str) -> str:
    """What Grafana makes of an expression of the dashboard, with every job and instance chosen."""
    for name, value in (("$__rate_interval", "1m"), ("$job", ".*"), ("$instance", ".*")):
        expression = expression.replace(name, value)
    assert "$" not in expression
    return expression


def asked_for(expression: str) -> tuple[dict[str, set[str]], set[str]]:
    """The metrics that an expression reads, with the labels that it chooses by; and the labels that it groups by."""
    metrics: dict[str, set[str]] = {}
    grouped: set[str] = set()

    def visit(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.MatrixSelector):
            node = node.vector_selector  # which is not visited by itself
        if isinstance(node, promql_parser.VectorSelector):
            assert node.name is not None
            metrics.setdefault(node.name, set()).update(matcher.name for matcher in node.matchers.matchers)
        elif isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            grouped.update(node.modifier.labels)

    promql_parser.walk(promql_parser.parse(expression), visit)
    return metrics, grouped


def test_alerts_and_dashboard_read_metrics_and_labels_that_there_are(families: list[Metric]) -> None:
    known = dict(OF_PROMETHEUS)
    for family in families:
        for sample in family.samples:
            known.setdefault(sample.name, set()).update(sample.labels)
    for name, expression in expressions():
        metrics, grouped = asked_for(expression)
        assert metrics, f"{name} reads no metric"
        for metric, labels in metrics.items():
            assert metric in known, f"{name} reads {metric}, which is not there"
            assert labels <= known[metric] | OF_TARGETS, f"{name} chooses {metric} by labels that it has not"
        assert grouped <= set.union(*(known[metric] for metric in metrics)) | OF_TARGETS, name


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_every_alert_says_how_bad_it_is_and_where_one_reads_what_helps(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert set(rule["annotations"]) == {"summary", "description", "runbook"}
    assert rule["annotations"]["runbook"] == f"docs/observability.md#{rule['alert'].lower()}"
    assert re.search(rf"^### {rule['alert']}$", DOCUMENT, re.MULTILINE)


def test_the_dashboard_can_be_imported_and_explains_itself() -> None:
    assert DASHBOARD["schemaVersion"] >= 39
    assert [variable["name"] for variable in DASHBOARD["templating"]["list"]] == ["datasource", "job", "instance"]
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    taken = set[tuple[int, int]]()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, f"{panel['title']} lies on another"
        assert at["x"] + at["w"] <= 24
        taken |= cells
    for panel in PANELS:
        assert panel["description"].endswith(".")
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        unit = panel["fieldConfig"]["defaults"].get("unit") or panel["options"]["yAxis"]["unit"]
        assert unit, f"{panel['title']} has no unit"


# The alerts, on made-up series: one is there for what it is for, and all others are silent.

MINUTES = 480
ASKED_AT = 46
STATUS = 'turbo_status{status="%s"}'
REQUESTS = 'turbo_requests_total{method="POST",route="/txt2img",status="%d"}'
ERRORS = 'turbo_errors_total{code="%s"}'
DURATION = 'turbo_request_duration_seconds_bucket{method="POST",route="/txt2img",status_class="2xx",le="%s"}'

HEALTHY = {
    "up": f"1x{MINUTES}",
    "scrape_duration_seconds": f"0.01x{MINUTES}",
    "process_start_time_seconds": f"0x{MINUTES}",
    "process_resident_memory_bytes": f"1000000000+100000x{MINUTES}",
    STATUS % "ready": f"1x{MINUTES}",
    STATUS % "device_lost": f"0x{MINUTES}",
    STATUS % "hung": f"0x{MINUTES}",
    "turbo_queue_depth": f"20x{MINUTES}",
    "turbo_queue_limit": f"32x{MINUTES}",
    "turbo_deadline_seconds": f"60x{MINUTES}",
    "turbo_device_call_expected_seconds": f"2x{MINUTES}",
    "turbo_device_call_running_seconds": f"2x{MINUTES}",
    REQUESTS % 200: f"0+90x{MINUTES}",
    REQUESTS % 503: f"0+1x{MINUTES}",
    ERRORS % "queue_full": f"0+5x{MINUTES}",
    ERRORS % "device_lost": f"0x{MINUTES}",
    ERRORS % "out_of_memory": f"0x{MINUTES}",
    ERRORS % "dead_picture": f"0x{MINUTES}",
    DURATION % "1.0": f"0+90x{MINUTES}",
    DURATION % "20.0": f"0+99x{MINUTES}",
    DURATION % "60.0": f"0+100x{MINUTES}",
    DURATION % "+Inf": f"0+100x{MINUTES}",
}
"""An instance that is loaded but well, a sample a minute."""

ILL: dict[str, dict[str, str]] = {
    "TurboAbsent": dict.fromkeys(HEALTHY, f"_x{MINUTES}"),
    "TurboDown": {"up": f"1x38 0x{MINUTES}"},
    "TurboNotReady": {STATUS % "ready": f"1x40 0x{MINUTES}"},
    "TurboRestarts": {"process_start_time_seconds": f"0x40 2400 2460 2520x{MINUTES}"},
    "TurboDeviceLost": {ERRORS % "device_lost": f"0x43 3x{MINUTES}"},
    "TurboDeviceCallLong": {"turbo_device_call_running_seconds": f"2x43 30 90x{MINUTES}"},
    "TurboOutOfMemory": {ERRORS % "out_of_memory": f"0x43 1x{MINUTES}"},
    "TurboDeadPictures": {ERRORS % "dead_picture": f"0x43 1x{MINUTES}"},
    "TurboErrors": {REQUESTS % 503: f"0+10x{MINUTES}"},
    "TurboOverloaded": {ERRORS % "queue_full": f"0+20x{MINUTES}"},
    "TurboQueueNearLimit": {"turbo_queue_depth": f"30x{MINUTES}"},
    "TurboSlow": {DURATION % "20.0": f"0+92x{MINUTES}"},
    "TurboScrapeSlow": {"scrape_duration_seconds": f"1.5x{MINUTES}"},
    "TurboMemoryGrows": {"process_resident_memory_bytes": f"1000000000+2000000x{MINUTES}"},
}
"""What makes each alert fire: the series that are otherwise then."""


def series(fault: Mapping[str, str]) -> list[dict[str, str]]:
    """The healthy series, with those of the fault instead of their own."""
    assert set(fault) <= set(HEALTHY)
    given = []
    for key, values in {**HEALTHY, **fault}.items():
        metric, _, labels = key.rstrip("}").partition("{")
        target = 'job="sdxl-turbo",instance="a"'
        given.append({"series": f"{metric}{{{target}{',' if labels else ''}{labels}}}", "values": values})
    return given


def test_each_alert_fires_for_what_it_is_for_and_all_are_silent_in_health(tmp_path: Path) -> None:
    assert set(ILL) == {rule["alert"] for rule in ALERTS}
    tests = [
        {
            "interval": "1m",
            "input_series": series(fault),
            "promql_expr_test": [
                {
                    "expr": 'group by (alertname) (ALERTS{alertstate="firing"})',
                    "eval_time": f"{MINUTES - 10 if alert == 'TurboMemoryGrows' else ASKED_AT}m",
                    "exp_samples": [{"labels": f'{{alertname="{alert}"}}', "value": 1}] if alert else [],
                }
            ],
        }
        for alert, fault in [("", {}), *ILL.items(), ("TurboDeviceLost", {STATUS % "hung": f"0x40 1x{MINUTES}"})]
    ]
    told = {
        "interval": "1m",
        "input_series": series(ILL["TurboErrors"]),
        "alert_rule_test": [
            {
                "alertname": "TurboErrors",
                "eval_time": "20m",
                "exp_alerts": [
                    {
                        "exp_labels": {"severity": "critical", "job": "sdxl-turbo", "instance": "a"},
                        "exp_annotations": {
                            "summary": "10% of the requests to a fail.",
                            "description": "More than 5 % were answered with 5xx for 5 minutes; "
                            "turbo_errors_total says with which codes.",
                            "runbook": "docs/observability.md#turboerrors",
                        },
                    }
                ],
            }
        ],
    }
    file = tmp_path / "tests.yml"
    file.write_text(
        json.dumps(
            {
                "rule_files": [str(FOLDER / "alerts.yml")],
                "evaluation_interval": "1m",
                "tests": [*tests, told],
            }
        )
    )
    checked = subprocess.run([program("promtool"), "test", "rules", file], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_promtool_finds_no_fault_in_what_is_shipped() -> None:
    for command in (["check", "config", "--lint-fatal"], ["check", "rules", "--lint-fatal"]):
        file = FOLDER / ("prometheus.yml" if "config" in command else "alerts.yml")
        checked = subprocess.run([program("promtool"), *command, file], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stdout + checked.stderr


async def test_promtool_finds_no_fault_in_the_metrics(client: httpx.AsyncClient) -> None:
    await client.post("/txt2img", json={"prompt": "a"})
    shown = await client.get("/metrics")
    promtool = await asyncio.create_subprocess_exec(program("promtool"), "check", "metrics", stdin=PIPE, stderr=PIPE)
    _, complaints = await promtool.communicate(shown.content)
    assert (promtool.returncode, complaints) == (0, b"")


# A real Prometheus.


class Prometheus:
    """Prometheus with the shipped configuration, of which only the targets and the times are other ones."""

    def __init__(self, folder: Path, *, open_target: str, target_with_key: str, key: str) -> None:
        program_path, self.port = program("prometheus"), free_port()
        shipped = (FOLDER / "prometheus.yml").read_text(encoding="utf-8")
        uncommented = re.sub(r"^    # (authorization:|  credentials_file:)", r"    \1", shipped, flags=re.MULTILINE)
        config, with_key = yaml.safe_load(shipped), yaml.safe_load(uncommented)
        config["global"] = {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"}
        (job,), (keyed,) = config["scrape_configs"], with_key["scrape_configs"]
        job["static_configs"][0]["targets"] = [open_target]
        (folder / "key").write_text(f"{key}\n")
        keyed["job_name"] = "with-key"
        keyed["authorization"]["credentials_file"] = str(folder / "key")
        keyed["static_configs"][0]["targets"] = [target_with_key]
        config["scrape_configs"].append(keyed)
        (folder / "alerts.yml").write_bytes((FOLDER / "alerts.yml").read_bytes())
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self.log = folder / "prometheus.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    program_path,
                    f"--config.file={folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{self.port}",
                ],
                stderr=log,
            )

    def started(self) -> bool:
        """Whether it can be asked."""
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/-/ready").status_code == 200
        except httpx.TransportError:
            return False

    def get(self, path: str, **params: str) -> Any:
        """What its API answers."""
        answer = httpx.get(f"http://127.0.0.1:{self.port}/api/v1/{path}", params=params)
        assert answer.json()["status"] == "success", (params, answer.text)
        return answer.json()["data"]

    def query(self, expression: str) -> list[Any]:
        result: list[Any] = self.get("query", query=expression)["result"]
        return result

    def wait_for(self, expression: str) -> None:
        """Wait until the expression has a result."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()
            if self.started() and self.query(expression):
                return
            time.sleep(0.1)
        raise AssertionError(f"{expression} has no result; {self.get('targets')}")


def test_prometheus_scrapes_the_service_loads_the_alerts_and_answers_the_dashboard(
    start_server: StartServer, tmp_path: Path
) -> None:
    key = "k" * 32
    (tmp_path / "keys").write_text(f"prometheus: {key}\n")
    servers = [
        start_server(model="fake"),
        start_server(model="fake", metrics="key", api_keys_file=tmp_path / "keys"),
    ]
    url, with_key = (server.wait_until_started() for server in servers)
    prometheus = Prometheus(tmp_path, open_target=url[7:], target_with_key=with_key[7:], key=key)
    over = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=url) as client:
            while not over.wait(0.02):
                client.post("/txt2img", json={"prompt": "a", "width": 64, "height": 64}).raise_for_status()
                client.post("/img2img", data={"prompt": "a"}, files={"image": png()}).raise_for_status()
                files = {"image": png(), "mask": png(color="white")}
                client.post("/inpaint", data={"prompt": "a"}, files=files).raise_for_status()

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        prometheus.wait_for('sum(rate(turbo_pictures_total{job="sdxl-turbo"}[1m])) > 0')
        prometheus.wait_for('up{job="with-key"} == 1')
        groups = prometheus.get("rules")["groups"]
        assert [rule["name"] for group in groups for rule in group["rules"]] == [rule["alert"] for rule in ALERTS]
        prometheus.wait_for('sum(rate(turbo_decode_seconds_count{job="sdxl-turbo"}[1m])) > 0')
        for panel in PANELS:
            for target in panel["targets"]:
                result = prometheus.query(filled_in(target["expr"]))
                assert result or panel["title"] in EMPTY_IN_HEALTH, f"{panel['title']} shows nothing"
        shown = {panel["title"]: prometheus.query(filled_in(panel["targets"][0]["expr"])) for panel in PANELS}
        assert {one["metric"]["status"] for one in shown["Status"]} == {"ready"}
        assert {one["metric"]["mode"] for one in shown["Pictures a second, by mode"]} == set(Mode)
        assert shown["What runs"][0]["metric"]["model"] == "fake"
        assert 0 < float(shown["p95 of successful requests"][0]["value"][1]) < 10
        assert float(shown["Failed requests"][0]["value"][1]) == 0
        groups = prometheus.get("rules")["groups"]
        assert {rule["health"] for group in groups for rule in group["rules"]} <= {"ok", "unknown"}  # unknown: not yet
        assert not [rule["name"] for group in groups for rule in group["rules"] if rule["state"] == "firing"]
    finally:
        over.set()
        asking.join()
        prometheus.process.kill()
        prometheus.process.wait()
