"""The audit with the real pip-audit, and a vulnerability service on loopback that responds like OSV."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tools import audit

ACCEPTED = next(iter(audit.ACCEPTED))


class Osv(ThreadingHTTPServer):
    """A vulnerability service; `known` has a vulnerability by the package's name."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.known = {"pycrypto": "CVE-2018-6594"}
        self.asked: dict[str, str] = {}

    @property
    def options(self) -> list[str]:
        return ["--vulnerability-service=osv", f"--osv-url=http://127.0.0.1:{self.server_port}"]


class _Answer(BaseHTTPRequestHandler):
    server: Osv

    def do_POST(self) -> None:
        query = json.loads(self.rfile.read(int(self.headers["content-length"])))
        name = query["package"]["name"]
        self.server.asked[name] = query["version"]
        answer = {}
        if name in self.server.known:
            ranges = [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "999"}]}]
            affected = [{"package": {"name": name, "ecosystem": "PyPI"}, "ranges": ranges}]
            vulnerability = {
                "id": "GHSA-0",
                "aliases": [self.server.known[name]],
                "summary": "A hole.",
                "affected": affected,
            }
            answer = {"vulns": [vulnerability]}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def osv() -> Iterator[Osv]:
    with Osv() as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_no_vulnerabilities_is_a_success_and_a_build_of_torch_counts_as_its_version(osv: Osv) -> None:
    assert audit.main(osv.options) == 0
    assert "starlette" in osv.asked
    assert {"pytest", "uv"} <= osv.asked.keys()  # the tests and tools too
    assert "+" not in osv.asked["torch"]


def test_a_vulnerability_fails_the_audit_and_is_told(osv: Osv, capsys: pytest.CaptureFixture[str]) -> None:
    osv.known["starlette"] = "CVE-2000-0001"
    assert audit.main(osv.options) == 1
    out = capsys.readouterr().out
    assert f"starlette=={osv.asked['starlette']}: CVE-2000-0001, GHSA-0; fixed in 999" in out
    assert "A hole." in out


def test_an_accepted_vulnerability_is_told_with_its_reason_and_is_no_failure(
    osv: Osv, capsys: pytest.CaptureFixture[str]
) -> None:
    osv.known["requests"] = ACCEPTED
    assert audit.main(osv.options) == 0
    assert audit.ACCEPTED[ACCEPTED] in capsys.readouterr().out


def test_a_service_that_knows_of_no_vulnerabilities_at_all_is_not_believed(
    osv: Osv, capsys: pytest.CaptureFixture[str]
) -> None:
    osv.known.clear()
    assert audit.main(osv.options) == 2
    assert "FAILED" in capsys.readouterr().err


def test_a_service_that_cannot_be_reached_is_no_success(capsys: pytest.CaptureFixture[str]) -> None:
    assert audit.main(["--vulnerability-service=osv", "--osv-url=http://127.0.0.1:9/"]) == 2
    assert "FAILED: pip-audit gave no answer" in capsys.readouterr().err
