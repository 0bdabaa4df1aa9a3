"""The service with the packages that its wheel requires, without those of the tests and the tools."""

import sysconfig
from pathlib import Path

import httpx

from tests.conftest import StartServer
from tools.dependencies import dependencies

ONLY = """
import sys
sys.path[:] = [path for path in sys.path if path not in {installed}] + [{folder!r}]
"""


def link_packages(folder: Path) -> None:
    """Link the modules and the metadata of the packages that the service needs to a folder."""
    folder.mkdir()
    for package in dependencies().values():
        tops = {file.parts[0] for file in package.files or ()} - {"..", "__pycache__"}
        for name in tops:
            link = folder / name
            if not link.exists():  # packages such as opentelemetry share a folder
                link.symlink_to(str(package.locate_file(name)))


def test_the_service_draws_with_the_packages_alone_that_it_requires(start_server: StartServer, tmp_path: Path) -> None:
    link_packages(tmp_path / "packages")
    installed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    prelude = ONLY.format(installed=installed, folder=str(tmp_path / "packages"))
    server = start_server(prelude=prelude, model="demo", warm_up_sizes="64x64", mcp="true")
    url = server.wait_until_started(timeout_s=110)  # no process is warm for it
    wish = {"prompt": "a fox", "width": 64, "height": 64}
    answer = httpx.post(f"{url}/txt2img", json=wish, timeout=60)
    assert answer.status_code == 200
    assert not (tmp_path / "packages/pytest").exists()
