"""Clients that openapi-python-client and openapi-typescript generate from the service's OpenAPI document."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.programs import NODE, Report, drawn, finished, node_program, python_program, run_node, run_python

Run = Callable[[str, str, Path], Report]


@pytest.fixture(scope="module")
def generated(url: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the package that openapi-python-client generates."""
    program, folder = python_program("programs", "openapi-python-client"), tmp_path_factory.mktemp("generated")
    target = folder / "generated"
    path = f"{program.parent}:/usr/bin:/bin"  # it formats the package with its own Ruff
    finished(
        program,
        "generate",
        "--url",
        f"{url}/openapi.json",
        "--output-path",
        target,
        "--meta",
        "none",
        variables={"PATH": path},
    )
    return folder


@pytest.fixture(scope="module")
def types(url: str) -> Path:
    """The types that openapi-typescript generates, where the script imports them."""
    file = NODE / "schema.d.ts"
    program = [node_program("node"), node_program("openapi-typescript")]
    finished(*program, f"{url}/openapi.json", "--output", file)
    return file


@pytest.fixture(params=["python", "typescript"])
def run(request: pytest.FixtureRequest, generated: Path) -> Run:
    def in_python(case: str, url: str, picture: Path) -> Report:
        return run_python("openapi_client", case, url, picture, variables={"PYTHONPATH": str(generated)})

    def in_typescript(case: str, url: str, picture: Path) -> Report:
        return run_node("openapi_fetch.mts", case, url, picture)

    return in_python if request.param == "python" else in_typescript


def test_a_generated_client_makes_a_picture_from_a_prompt(run: Run, url: str, picture: Path) -> None:
    assert drawn(run("txt2img", url, picture)) == [("PNG", (256, 384))]


def test_a_generated_client_makes_a_picture_from_a_picture(run: Run, url: str, picture: Path) -> None:
    assert drawn(run("img2img", url, picture)) == [("PNG", (256, 384))]


def test_a_generated_client_reads_why_a_request_is_refused(run: Run, url: str, picture: Path) -> None:
    report = run("wrong_size", url, picture)
    assert report["status"] == 422
    assert report["error"] == "width: Input should be less than or equal to 2048"


def test_a_generated_client_sends_its_defaults(url: str, picture: Path, generated: Path) -> None:
    report = run_python("openapi_client", "txt2img_by_default", url, picture, variables={"PYTHONPATH": str(generated)})
    assert drawn(report) == [("PNG", (512, 512))]


@pytest.mark.usefixtures("types")
def test_the_generated_types_fit_the_script(url: str, picture: Path) -> None:
    run_node("openapi_fetch.mts", "txt2img", url, picture)  # copies the script
    options = ["--noEmit", "--strict", "--allowJs", "--skipLibCheck", "--allowImportingTsExtensions"]
    modules = ["--module", "nodenext", "--target", "es2022", "--lib", "es2023,dom,dom.iterable"]
    finished(node_program("node"), node_program("tsc"), *options, *modules, "openapi_fetch.mts", folder=NODE)
