"""The instructions in the documents work, and the files and names in them exist.

Every block of code runs, against a service on the fake. A document's blocks run in order and in one folder, as a reader
runs them. Shell blocks find only the programs of `REAL`, and stand-ins for commands that cannot run here. A stand-in
records its arguments and settings, and the test checks them afterwards. A block with any other command fails.

The blocks of translated documents do not run, because `test_languages.py` compares their code with the English code.
"""

import argparse
import ast
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import helm_python
import httpx
import pytest
import yaml
from PIL import Image

from app.cli import commands as command_line
from app.main import create_app
from app.settings import Settings, unknown_variables
from app.weights.source import LocalSource, parse_source
from tests.conftest import opened, program, serving
from tests.deploy.manifests import need_renderer
from tests.deploy.ray_cluster import importing_ray, read_config
from tests.documents.markdown import CHINESE, DOCUMENTS, ROOT, Block, document, resolved
from tests.support.gated_pipeline import GatedPipeline
from tools.kubernetes import checks as kubernetes_checks
from tools.kubernetes import helm, kustomize

REAL = ("bash", "cat", "chmod", "curl", "exiftool", "node", "openssl", "sed", "rm")
"""Installed programs that blocks may use."""

NOT_RUN = {
    (
        "app/weights/demo/README.md",
        "python",
    ): "tests/weights/test_demo.py loads the model with diffusers; the block is only parsed",
}
"""Blocks that do not run, by document and language: the reason, and the check instead."""


# Commands that cannot run here.


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a stand-in: its arguments, and the variables of the service that were set."""

    arguments: Sequence[str]
    variables: Mapping[str, str]


class _Options(argparse.ArgumentParser):
    """A parser for a command's options. It accepts only the options that the documents use."""

    def __init__(self, *options: str, flags: Sequence[str] = ()) -> None:
        super().__init__(add_help=False, allow_abbrev=False)
        for option in options:
            self.add_argument(option, action="append", default=[])
        for flag in flags:
            self.add_argument(flag, action="store_true")
        self.add_argument("rest", nargs=argparse.REMAINDER)

    def error(self, message: str) -> NoReturn:
        raise AssertionError(message)


def check_make(call: Call) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in call.arguments:
        assert "=" in target or re.search(rf"^{re.escape(target)}:.*## ", makefile, re.MULTILINE), f"no target {target}"


def check_python(call: Call) -> None:
    """Check `python -m`: for the service, its settings and model; for other modules, that they know the flags."""
    dash_m, module, *arguments = call.arguments
    assert dash_m == "-m", "the block would run a script"
    if module == "app":
        command, *flags = arguments
        assert command in command_line._COMMANDS, f"no command {command}"  # noqa: SLF001 - no public name has them
        assert not unknown_variables(call.variables)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in call.variables.items():
                patch.setenv(name, value)
            parser = command_line._parser(command)  # noqa: SLF001 - as above
            source = parse_source(command_line._settings(parser.parse(flags), parser).model)  # noqa: SLF001
        assert not isinstance(source, LocalSource) or source.path.is_absolute(), (
            f"{source} is a relative folder, not a model on a hub"
        )
    elif module != "venv":
        spec = importlib.util.find_spec(module)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{module}.__main__")
        assert spec is not None, f"no module {module}"
        assert spec.origin is not None
        text = Path(spec.origin).read_text(encoding="utf-8")
        for flag in (word for word in arguments if word.startswith("--")):
            assert f'"{flag}"' in text, f"{module} does not know {flag}"


def check_pip(call: Call) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    install, *requirements = call.arguments
    assert install == "install"
    for extra in re.findall(r"\[(\w+)\]", " ".join(requirements)):
        assert extra in extras


def check_one_line(call: Call) -> None:
    """`tests/installed` runs these commands with a wheel of this checkout."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert call.arguments[-1] in scripts
    assert "--torch-backend cpu" in " ".join(call.arguments) or "/whl/cpu" in " ".join(call.arguments)


def check_docker(call: Call) -> None:
    command, *arguments = call.arguments
    checks: dict[str, Callable[[Sequence[str]], None]] = {
        "build": _check_docker_build,
        "run": _check_docker_run,
        "compose": _check_docker_compose,
        "create": lambda arguments: _assert_image_of_ours(*arguments),
        "cp": _check_docker_cp,
        "tag": lambda arguments: _assert_image_of_ours(arguments[0]),
    }
    if command not in ("inspect", "push", "rm"):
        checks[command](arguments)


def _check_docker_build(arguments: Sequence[str]) -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    options = _Options("--target", "-t", "--build-arg").parse_args(arguments)
    for target in options.target:
        assert re.search(rf"^FROM .* AS {target}$", dockerfile, re.MULTILINE), f"no target {target}"
    for name in (argument.partition("=")[0] for argument in options.build_arg):
        assert re.search(rf"^ARG {name}\b", dockerfile, re.MULTILINE), f"no build argument {name}"
    _assert_image_of_ours(options.t[0])
    assert options.rest == ["."]


def _check_docker_run(arguments: Sequence[str]) -> None:
    options = _Options(
        *(
            "--stop-timeout",
            "-e",
            "-p",
            "-v",
            "--group-add",
            "--tmpfs",
            "--cap-drop",
            "--security-opt",
            "--gpus",
            "--network",
        ),
        *("--memory", "--name"),
        flags=["--rm", "-d", "--read-only"],
    ).parse_args(arguments)
    image, *command = options.rest
    _assert_image_of_ours(image)
    variables = dict(variable.split("=", 1) for variable in options.e)
    check_python(Call(["-m", "app", *(command or ["serve"])], variables))


def _check_docker_cp(arguments: Sequence[str]) -> None:
    """Check that the image has the file: the script that finishes its environment writes it."""
    source, _ = arguments
    assert source.partition(":")[2] in (ROOT / "deploy/finish-environment").read_text(encoding="utf-8")


def _assert_image_of_ours(image: str) -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
    assert image in {service["image"] for service in services.values()}


def _check_docker_compose(arguments: Sequence[str]) -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
    options = _Options("--profile").parse_args(arguments)
    known = {profile for service in services.values() for profile in service["profiles"]}
    assert set(options.profile) <= known
    command, *rest = options.rest
    if command == "up":
        names = _Options(flags=["-d"]).parse_args(rest).rest
    else:
        assert command == "run"
        run = _Options("-v", "--entrypoint", flags=["--rm", "--no-deps", "-T"]).parse_args(rest)
        name, *words = run.rest
        names = [name]
        if run.entrypoint == ["cat"]:
            assert words[0].startswith("/weights/")  # what `tune` and the doctor write into the volume
        elif run.entrypoint:
            assert (ROOT / words[0].removeprefix("/")).is_file()
        elif words:
            check_python(Call(["-m", "app", *words], {}))
    for name in names:
        assert set(options.profile) & set(services[name]["profiles"])


def check_copy(call: Call) -> None:
    *files, _ = call.arguments
    for file in files:
        assert (ROOT / file).is_file()


def check_systemctl(call: Call) -> None:
    _, *words = call.arguments
    for unit in (word for word in words if not word.startswith("-") and word not in ("haproxy", "nginx")):
        file = re.sub(r"@\d+$", "@", unit)
        assert (ROOT / f"deploy/systemd/{file}.service").is_file(), f"no unit {unit}"


def check_haproxy(call: Call) -> None:
    config = _Options("-f", flags=["-c"]).parse_args(call.arguments).f
    subprocess.run([program("haproxy"), "-c", "-f", *(ROOT / file for file in config)], check=True)


def check_nginx(call: Call) -> None:
    """Check the shipped configuration, with folders that a user may write to, where a package would include it."""
    assert call.arguments == ["-t"]
    with tempfile.TemporaryDirectory() as folder:
        shipped = (ROOT / "deploy/cache/nginx.conf").read_text(encoding="utf-8").replace("/var/cache", folder)
        config = Path(folder) / "nginx.conf"
        config.write_text(f"pid {folder}/pid; events {{}} http {{ {shipped} }}", encoding="utf-8")
        subprocess.run([program("nginx"), "-t", "-c", config], check=True)


def check_prometheus(call: Call) -> None:
    (config,) = _Options("--config.file", "--web.listen-address").parse_args(call.arguments).__dict__["config.file"]
    assert (ROOT / config).is_file()


def check_kubectl(call: Call) -> None:
    """Check that folders render without complaints, and that the named objects and Secrets are in the manifests."""
    need_renderer()
    for folder in (one for one in call.arguments if one.startswith("deploy/")):
        assert not list(kubernetes_checks.complaints(kustomize.render(ROOT / folder)))
    overlay, components = kustomize.KUBERNETES / "overlays/npu", ("api-keys", "autoscaling", "service-monitor")
    manifests = kustomize.render_with(overlay, [kustomize.KUBERNETES / "components" / one for one in components])
    names = {f"{one['kind'].lower()}/{one['metadata']['name']}" for one in manifests}
    for name in (one for one in call.arguments if re.match(r"(deployment|service|horizontalpodautoscaler)/", one)):
        assert name in names, f"no {name}"
    if call.arguments[:3] == ["create", "secret", "generic"]:
        assert f"secretName: {call.arguments[3]}" in yaml.safe_dump_all(manifests)


def check_helm(call: Call) -> None:
    """Check that files of this repository exist, and that its chart renders without complaints with the values set."""
    command, *arguments = call.arguments
    assert command in ("install", "package", "push", "rollback", "uninstall", "upgrade"), f"no command {command}"
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for option in ("--destination", "--set", "--timeout", "--values"):
        parser.add_argument(option, action="append", default=[])
    parser.add_argument("--wait", action="store_true")
    parser.add_argument("names", nargs="*")
    options = parser.parse_intermixed_args(arguments)
    for file in (one for one in (*options.names, *options.values) if one.startswith("deploy/")):
        assert (ROOT / file).exists(), f"no {file}"
    if command == "install" and "deploy/helm" in options.names:
        values = helm_python.parse_set_string(",".join(options.set))
        assert not list(kubernetes_checks.complaints(helm.render(values, release=options.names[0])))


def check_buildah(call: Call) -> None:
    """Check that the files of a build exist, and that the image that is pushed is the one that manifests name."""
    command, *arguments = call.arguments
    flags = ["--disable-compression"]
    options = _Options("--timestamp", "--file", "--ignorefile", "--tag", "--digestfile", flags=flags).parse_args(
        arguments
    )
    assert command in ("build", "push"), f"no command {command}"
    for file in (*options.file, *options.ignorefile):
        assert (ROOT / file).is_file(), f"no {file}"
    (image,) = options.tag or options.rest
    volume = (kustomize.KUBERNETES / "components/weights-image/volume.yaml").read_text(encoding="utf-8")
    assert f"reference: {image}}}" in volume


def check_ray(call: Call) -> None:
    """Check that Ray knows the command and its options."""
    with importing_ray():
        from ray.scripts.scripts import cli  # noqa: PLC0415 - the import takes a second
    name, *arguments = call.arguments
    cli.commands[name].make_context(name, arguments)


def check_serve(call: Call) -> None:
    """Check that Serve knows the command; for `deploy`, also that Ray accepts the file and its imports exist."""
    with importing_ray():
        from ray.serve.scripts import cli  # noqa: PLC0415 - the import takes a second
    name, *arguments = call.arguments
    context = cli.commands[name].make_context(name, arguments)
    if name == "deploy":
        for application in read_config(ROOT / context.params["config_or_import_path"]).applications:
            module, _, function = application.import_path.partition(":")
            assert callable(getattr(importlib.import_module(module), function))


def check_nothing(_: Call) -> None:
    """Check nothing beyond the block's syntax."""


STAND_INS: dict[str, tuple[Callable[[Call], None], str]] = {
    "make": (check_make, "installs, takes minutes, or runs this test; the targets must exist"),
    "python": (
        check_python,
        "`serve` does not end, `pull` downloads 7 GB, `bench` takes minutes; flags and model are checked",
    ),
    "python3": (check_python, "creates an environment; checked like `python`"),
    "uvx": (check_one_line, "needs the network, and does not end; the program must exist"),
    "pipx": (check_one_line, "needs the network, and does not end; the program must exist"),
    "pip": (check_pip, "needs the network; the extras must exist"),
    "docker": (
        check_docker,
        "is not installed; targets, build arguments, images, profiles, services and commands must exist",
    ),
    "git": (check_nothing, "needs a checkout to name its commit"),
    "cp": (check_copy, "writes to /etc; the file must exist"),
    "systemctl": (check_systemctl, "needs systemd; the units must exist"),
    "haproxy": (check_haproxy, "needs the configuration of this repository; runs on that file"),
    "nginx": (check_nginx, "needs the system's configuration; checks the shipped file in one of its own"),
    "ray": (check_ray, "starts a cluster that keeps running; the command and its options are checked"),
    "serve": (check_serve, "needs that cluster; options are checked, and Ray validates a configuration"),
    "prometheus": (check_prometheus, "does not end; the configuration must exist"),
    "kubectl": (check_kubectl, "needs a cluster; folders are rendered and checked, and the names must be in them"),
    "helm": (check_helm, "needs a cluster; the chart is rendered and checked, and its files must exist"),
    "buildah": (
        check_buildah,
        "needs 7 GB of weights and a registry; the files must exist, and the image be the manifests'",
    ),
    "useradd": (check_nothing, "changes the system"),
    "pre-commit": (check_nothing, "writes into .git"),
    "stat": (check_nothing, "needs an NPU's device file"),
}
"""A stand-in for each command: the check of its calls, and the reason why the command does not run."""

_REAL_COMMANDS = "doctor|pull|generate"
"""Commands of `python -m app` that really run, unless a block sets another model."""

_SHIM = f"""#!/bin/bash
name=${{0##*/}}
if [ "$name" = python ] && {{ [ "$1" != -m ] || {{ [ "$1 $2" = "-m app" ] && [[ "$3" =~ ^({_REAL_COMMANDS})$ ]] &&
  [ "$TURBO_MODEL" = fake ]; }}; }}; then
  exec {sys.executable} "$@"
fi
set -eo pipefail
PATH=/usr/bin:/bin
call=$(mktemp -p "$CALLS")
{{ printf '%s\\0' "$name" "$@"; printf '\\0'; env -0 | grep -z ^TURBO_; }} >"$call"
if [ "$name" = stat ]; then echo 1000; fi
"""

_CURL = """#!/bin/bash
[[ " $* " =~ " -f "|" --fail" ]] || set -- --fail-with-body "$@"
exec {} --silent --show-error "$@"
"""


# The blocks.


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(create_app(Settings(model="fake"))) as url:
        yield url


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs that shell blocks find."""
    folder = tmp_path_factory.mktemp("programs")
    (folder / "shim").write_text(_SHIM, encoding="utf-8")
    (folder / "shim").chmod(0o755)
    for name in STAND_INS:
        (folder / name).symlink_to("shim")
    for name in REAL:
        (folder / name).symlink_to(program(name))
    # This curl fails on an HTTP error, so the block fails too.
    (folder / "curl").unlink()
    (folder / "curl").write_text(_CURL.format(program("curl")), encoding="utf-8")
    (folder / "curl").chmod(0o755)
    return folder


class Reader:
    """Runs a document's blocks in a folder of its own."""

    def __init__(self, folder: Path, programs: Path, url: str) -> None:
        self._folder = folder
        self._programs = programs
        self._url = url
        (folder / "examples").symlink_to(ROOT / "examples")
        (folder / ".venv").mkdir()
        (folder / ".venv/bin").symlink_to(programs)

    def follow(self, block: Block) -> None:
        """Run a block, or parse it if it cannot run."""
        text = re.sub(r"http://(127\.0\.0\.1|localhost):8000", self._url, block.text)
        name = block.where.partition(":")[0]
        if (name, block.language) in NOT_RUN:
            ast.parse(text)
            return
        how: dict[str, Callable[[str], object]] = {
            "sh": self._shell,
            "python": lambda text: self._run([sys.executable, "-c", text]),
            "javascript": lambda text: self._run([program("node"), "--input-type=module", "-e", text]),
            "json": json.loads,
            "yaml": lambda text: list(yaml.safe_load_all(text)),
            "text": lambda _: None,
        }
        assert block.language in how, (
            f"{block.where} has a language that this test does not support: {block.language!r}"
        )
        how[block.language](text)

    def _shell(self, text: str) -> None:
        calls = self._folder / "calls"
        calls.mkdir(exist_ok=True)
        self._run(["bash", "-euo", "pipefail", "-c", text.replace("/opt/sdxl-turbo-server/bin", str(self._programs))])
        for file in calls.iterdir():
            arguments, _, variables = file.read_text(encoding="utf-8").partition("\0\0")
            name, *rest = arguments.split("\0")
            check, _why = STAND_INS[name]
            check(Call(rest, dict(one.split("=", 1) for one in variables.split("\0") if one)))
            file.unlink()
        for file in self._folder.glob("*.png"):
            Image.open(file).load()

    def _run(self, command: Sequence[str]) -> None:
        environment = {
            **os.environ,
            "PATH": str(self._programs),
            "HOME": str(self._folder),
            "CALLS": str(self._folder / "calls"),
            "SERVICE_URL": self._url,
            "TURBO_MODEL": "fake",
            "TURBO_PORT": "0",
        }
        done = subprocess.run(
            command, cwd=self._folder, env=environment, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, f"the command exited with {done.returncode}:\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize(
    "name", [name for name in DOCUMENTS if name not in CHINESE.values() and any(document(name).blocks)]
)
def test_what_a_document_says_can_be_done(name: str, tmp_path: Path, programs: Path, url: str) -> None:
    reader = Reader(tmp_path, programs, url)
    for block in document(name).blocks:
        try:
            reader.follow(block)
        except (Exception, SystemExit) as error:  # argparse raises SystemExit
            raise AssertionError(f"{block.where}, a block in {block.language}: {error}") from error


# The examples.

EXAMPLES = {
    "curl.sh": "bash",
    "python_httpx.py": sys.executable,
    "python_openai.py": sys.executable,
    "javascript.mjs": "node",
}
"""The program that runs each example."""


def start_example(name: str, url: str, folder: Path, *, key: str = "") -> subprocess.Popen[str]:
    interpreter = program(EXAMPLES[name])
    return subprocess.Popen(
        [interpreter, ROOT / "examples" / name, url],
        cwd=folder,
        env={**os.environ, "SERVICE_KEY": key},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_every_example_is_tried() -> None:
    assert EXAMPLES.keys() | {"README.md"} == {file.name for file in (ROOT / "examples").iterdir() if file.is_file()}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_waits_for_a_busy_service_and_then_uses_every_mode(name: str, tmp_path: Path) -> None:
    pipeline = GatedPipeline()
    app = create_app(Settings(model="fake", max_queue=0), load_pipelines=pipeline.load)
    with serving(app) as url, ThreadPoolExecutor() as threads:
        pipeline.close()
        other = threads.submit(httpx.post, f"{url}/txt2img", json={"prompt": "somebody else's"}, timeout=60)
        assert pipeline.entered.acquire(timeout=30)
        example = start_example(name, url, tmp_path)
        refused = 'turbo_errors_total{code="queue_full"} 1.0'
        while refused not in httpx.get(f"{url}/metrics").text:
            assert example.poll() is None, example.communicate()
        pipeline.gate.set()
        _, complaints = example.communicate(timeout=60)
        assert other.result().status_code == 200
    assert example.returncode == 0, complaints
    *prompts, last = pipeline.prompts
    assert prompts == ["somebody else's", "a fox with a scarf", "a fox on a blue background"]
    one, two, three = (opened((tmp_path / f"{file}.png").read_bytes()) for file in ("one", "two", "three"))
    assert one.size == two.size == (512, 512)
    if name == "python_openai.py":
        assert last == "a fox with a red coat"
        size, kept, kept_before = (512, 512), (0, 0, 512, 240), (0, 0, 512, 240)  # above the mask and its soft edge
    else:
        assert last == "a fox in a wide blue room"
        size, kept, kept_before = (1024, 512), (272, 0, 752, 512), (16, 0, 496, 512)  # within the soft edges
    assert three.size == size
    assert three.crop(kept).tobytes() == two.crop(kept_before).tobytes()


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_ends_with_the_reason_of_an_error(name: str, url: str, tmp_path: Path) -> None:
    example = start_example(name, f"{url}/nowhere", tmp_path)
    _, complaints = example.communicate(timeout=60)
    assert example.returncode == 1
    assert "There is no such route" in complaints


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_sends_the_key_that_it_is_given(name: str, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("alice: a-key-of-alice-s-own\n", encoding="utf-8")
    with serving(create_app(Settings(model="fake", api_keys_file=tmp_path / "keys"))) as url:
        refused = start_example(name, url, tmp_path)
        assert "API key" in refused.communicate(timeout=60)[1]
        example = start_example(name, url, tmp_path, key="a-key-of-alice-s-own")
        _, complaints = example.communicate(timeout=60)
    assert (refused.returncode, example.returncode) == (1, 0), complaints
    assert opened((tmp_path / "two.png").read_bytes()).size == (512, 512)
    assert (tmp_path / "three.png").exists()


# Links and names.


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_link_leads_to_a_file_or_a_heading_that_is_there(name: str) -> None:
    for link in document(name).links:
        target, anchor = resolved(link.target, name)
        if "://" in target:
            assert target.startswith("https://") or "127.0.0.1" in target, f"{link.where} leads to {target}"
            continue
        assert (ROOT / target).exists(), f"{link.where} leads to {target}, which does not exist"
        if anchor:
            assert anchor in document(target).anchors, f"{link.where}: {target} has no heading #{anchor}"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_setting_command_target_and_file_that_a_document_names_is_there(name: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for section in document(name).sections:
        for code in section.code:
            for setting in re.findall(r"\bTURBO_[A-Z_]+[A-Z]\b", code):
                assert setting.removeprefix("TURBO_").lower() in Settings.model_fields, f"{section.where}: {setting}"
            if found := re.match(r"make ([a-z-]+)", code):
                assert re.search(rf"^{found[1]}:.*## ", makefile, re.MULTILINE), f"{section.where}: {code}"
            if found := re.match(r"python -m app ([a-z]+)", code):
                assert found[1] in command_line._COMMANDS, f"{section.where}: {code}"  # noqa: SLF001 - as above
            if found := re.fullmatch(r"((?:app|benchmarks|tests|tools|training|examples|docs|deploy)/[\w./-]+)", code):
                assert any((ROOT / f"{found[1]}{end}").exists() for end in ("", ".py")), f"{section.where}: {code}"


def test_the_commands_are_those_of_the_command_line() -> None:
    text = (ROOT / "docs/command-line.md").read_text(encoding="utf-8").partition("## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == list(command_line._COMMANDS)  # noqa: SLF001
