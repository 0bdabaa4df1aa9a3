"""nginx with the shipped cache in front of a service on loopback."""

import contextlib
import http.client
import shutil
import subprocess
import time
from pathlib import Path

from benchmarks.support.contestants import ROOT
from benchmarks.support.ports import free_port

CONFIG = ROOT / "deploy" / "cache" / "nginx.conf"

_START_LIMIT_S = 10
_TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


class Nginx:
    """A single process with the shipped configuration. Only its ports and its folders are changed.

    The service on `service_port` may be started later, and restarted.

    Raises:
        FileNotFoundError: nginx is not installed.
        TimeoutError: It did not start.
    """

    def __init__(self, folder: Path, service_port: int) -> None:
        self.port = free_port()
        text = CONFIG.read_text(encoding="utf-8")
        others = {
            "127.0.0.1:8000;": f"127.0.0.1:{service_port};",
            "127.0.0.1:8081;": f"127.0.0.1:{self.port};",
            "/var/cache/": f"{folder}/cache/",
        }
        for one, other in others.items():
            if text.count(one) != 1:
                raise ValueError(f"{CONFIG} has not one {one}")
            text = text.replace(one, other)
        (folder / "cache").mkdir(exist_ok=True)
        (folder / "cache").chmod(0o777)  # started by root, nginx takes another user
        temporary = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in _TEMPORARY)
        (folder / "nginx.conf").write_text(
            f"daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/error.log;"
            f"events {{ worker_connections 4096; }} http {{ access_log off; {temporary} {text} }}",
            encoding="utf-8",
        )
        program = shutil.which("nginx")
        if program is None:
            raise FileNotFoundError("nginx is not installed.")
        self._process = subprocess.Popen([program, "-c", folder / "nginx.conf"], stderr=subprocess.DEVNULL)
        self._wait_until_open()

    @property
    def pid(self) -> int:
        return self._process.pid

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()

    def _wait_until_open(self) -> None:
        until = time.monotonic() + _START_LIMIT_S
        while time.monotonic() < until:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_START_LIMIT_S)
            with contextlib.suppress(OSError), contextlib.closing(connection):
                connection.request("GET", "/healthz/live")
                connection.getresponse()
                return
            time.sleep(0.01)
        self.stop()
        raise TimeoutError(f"nginx did not start within {_START_LIMIT_S} s")
