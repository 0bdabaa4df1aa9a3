"""Clients that openapi-python-client and openapi-typescript generate from the service's OpenAPI document."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.own_routes import WRONG_KEY, Service
from tests.clients.programs import (
    NODE,
    Report,
    drawn,
    finished,
    node_program,
    python_program,
    run_node,
    run_python,
    seeds,
)

Run = Callable[[str, Service, Path], Report]


@pytest.fixture(scope="module")
def generated(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the package that openapi-python-client generates."""
    program, folder = python_program("programs", "openapi-python-client"), tmp_path_factory.mktemp("generated")
    target = folder / "generated"
    path = f"{program.parent}:/usr/bin:/bin"  # it formats the package with its own Ruff
    finished(
        program,
        "generate",
        "--url",
        f"{service.url}/openapi.json",
        "--output-path",
        target,
        "--meta",
        "none",
        "--fail-on-warning",
        variables={"PATH": path},
    )
    return folder


@pytest.fixture(scope="module")
def types(service: Service) -> Path:
    """The types that openapi-typescript generates, where the script imports them."""
    file = NODE / "schema.d.ts"
    program = [node_program("node"), node_program("openapi-typescript")]
    finished(*program, f"{service.url}/openapi.json", "--output", file)
    return file


@pytest.fixture(params=["python", "typescript"])
def run(request: pytest.FixtureRequest) -> Run:
    def in_python(case: str, service: Service, picture: Path) -> Report:
        folder = request.getfixturevalue("generated")
        return run_python("openapi_client", case, service, picture, variables={"PYTHONPATH": str(folder)})

    def in_typescript(case: str, service: Service, picture: Path) -> Report:
        return run_node("openapi_fetch.mts", case, service, picture)

    return in_python if request.param == "python" else in_typescript


def test_a_generated_client_sends_all_parameters(run: Run, service: Service, picture: Path) -> None:
    fields = {"width": 256, "height": 384, "num_inference_steps": 3}
    assert drawn(run("txt2img", service, picture)) == [service.from_text(7, **fields)]


def test_a_generated_client_sends_its_defaults(run: Run, service: Service, picture: Path) -> None:
    report = run("txt2img_by_default", service, picture)
    (seed,) = seeds(report)
    assert drawn(report) == [service.from_text(seed)]


def test_a_generated_client_sends_all_parameters_of_edits(run: Run, service: Service, picture: Path) -> None:
    fields = {"width": 256, "height": 384, "num_inference_steps": 3, "strength": 0.75}
    assert drawn(run("img2img", service, picture)) == [service.from_picture(picture, 7, **fields)]


def test_a_generated_client_keeps_a_pictures_aspect_by_default(run: Run, service: Service, picture: Path) -> None:
    report = run("img2img_by_default", service, picture)
    (drawing,), (seed,) = drawn(report), seeds(report)
    assert drawing.size == (664, 400)
    assert drawing == service.from_picture(picture, seed)


def test_a_generated_client_sends_a_mask_with_its_parameters(run: Run, service: Service, picture: Path) -> None:
    fields = {"padding": 16, "feather": 8, "extend": "8,0,16,0", "num_inference_steps": 3}
    (drawing,) = drawn(run("inpaint", service, picture))
    assert drawing.size == (320, 216)
    assert drawing == service.from_mask(picture, 7, **fields)


def test_a_generated_client_reads_why_a_request_is_refused(run: Run, service: Service, picture: Path) -> None:
    report = run("wrong_size", service, picture)
    assert report["status"] == 422
    assert report["error"] == "width: Input should be less than or equal to 2048"


def test_a_generated_client_reads_that_the_key_is_wrong(run: Run, with_wrong_key: Service, picture: Path) -> None:
    report = run("txt2img", with_wrong_key, picture)
    assert report["status"] == 401
    assert report["error"] == WRONG_KEY


def test_every_generated_module_can_be_imported(generated: Path) -> None:
    modules = [".".join(path.relative_to(generated).with_suffix("").parts) for path in generated.rglob("*.py")]
    assert "generated.api.generation.txt2img" in modules
    imports = "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]"
    variables = {"PYTHONPATH": str(generated), "PYTHONWARNINGS": "error"}
    finished(python_program("programs", "python"), "-c", imports, *modules, variables=variables)


@pytest.mark.usefixtures("types")
def test_the_generated_types_fit_the_script(service: Service, picture: Path) -> None:
    run_node("openapi_fetch.mts", "txt2img", service, picture)  # copies the script
    options = ["--noEmit", "--strict", "--allowJs", "--skipLibCheck", "--allowImportingTsExtensions"]
    modules = ["--module", "nodenext", "--target", "es2022", "--lib", "es2023,dom,dom.iterable"]
    finished(node_program("node"), node_program("tsc"), *options, *modules, "openapi_fetch.mts", folder=NODE)
