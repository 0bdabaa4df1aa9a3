"""`make release` and the questions of the release workflow, in clones of this repository with the real git."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from app import __version__
from tests.support.clone import Clone, clone_of_this_tree
from tools.release import PLACES, Place

NEXT = "7.65.43"


@pytest.fixture(scope="module")
def shared_clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    return clone_of_this_tree(tmp_path_factory.mktemp("release"))


@pytest.fixture
def clone(shared_clone: Clone) -> Iterator[Clone]:
    """A clone as if it were new for each test."""
    before = shared_clone.git("rev-parse", "HEAD")
    yield shared_clone
    (shared_clone.folder / ".git/hooks/pre-commit").unlink(missing_ok=True)
    shared_clone.git("checkout", "--quiet", "--force", "-B", "main", before)
    shared_clone.git("clean", "--quiet", "--force", "-d")
    shared_clone.run("git", "branch", "--delete", "--force", "feature")
    shared_clone.run("git", "tag", "--delete", *shared_clone.git("tag", "--list").split())


def make_release(clone: Clone, version: str = NEXT, checks: str = "") -> subprocess.CompletedProcess[str]:
    """Run `make release` in the clone, in the environment of this test."""
    environment = Path(sys.prefix)
    return clone.run(
        *("make", "--no-print-directory", f"VENV={environment}", f"--old-file={environment}/.test"),
        *("release", f"VERSION={version}", f"CHECKS={checks}"),
    )


def assert_untouched(clone: Clone, before: str) -> None:
    assert clone.git("status", "--porcelain") == ""
    assert clone.git("rev-parse", "HEAD") == before
    assert clone.git("tag", "--list") == ""


def test_a_release_is_one_commit_with_the_version_in_every_place_and_an_annotated_tag(clone: Clone) -> None:
    before = clone.git("rev-parse", "HEAD")
    done = make_release(clone, checks="help")
    assert done.returncode == 0, done.stderr
    assert "==> make help" in done.stdout
    assert done.stdout.endswith(f"To publish it:\n  git push --atomic origin main v{NEXT}\n")
    assert clone.git("status", "--porcelain") == ""
    assert clone.git("rev-parse", "HEAD^") == before
    assert clone.git("cat-file", "-t", f"v{NEXT}") == "tag"
    assert clone.git("rev-parse", f"v{NEXT}^{{commit}}") == clone.git("rev-parse", "HEAD")
    changed = clone.git("diff", "--name-only", "HEAD^", "HEAD").splitlines()
    assert sorted(changed) == sorted({*(place.file for place in PLACES), "CHANGELOG.md"})
    assert clone.git("grep", "--count", "--fixed-strings", NEXT, "--", "deploy/helm/Chart.yaml").endswith(":2")
    assert clone.run(sys.executable, "-m", "app", "--version").stdout == f"sdxl-turbo-server {NEXT}\n"


def test_the_unreleased_lines_get_the_version_and_the_date_and_are_the_release_s_notes(
    clone: Clone,
) -> None:
    text = (clone.folder / "CHANGELOG.md").read_text(encoding="utf-8")
    lines = re.split(r"^## ", text, flags=re.MULTILINE)[1].partition("\n")[2].strip()
    make_release(clone)
    after = (clone.folder / "CHANGELOG.md").read_text(encoding="utf-8")
    _, unreleased, section, *_ = re.split(r"^## ", after, flags=re.MULTILINE)
    assert unreleased == "[Unreleased]\n\n"
    heading, _, rest = section.partition("\n")
    assert (found := re.fullmatch(rf"\[{NEXT}\] - (\d{{4}}-\d\d-\d\d)", heading))
    assert rest.strip() == lines
    assert clone.release("notes", NEXT).stdout.strip() == lines
    citation = (clone.folder / "CITATION.cff").read_text(encoding="utf-8")
    assert f'version: {NEXT}\ndate-released: "{found[1]}"\n' in citation


def test_a_second_release_replaces_the_first_one_s_version_and_date(clone: Clone) -> None:
    make_release(clone)
    clone.edit("CHANGELOG.md", "## [Unreleased]\n", "## [Unreleased]\n\n### Fixed\n\n- A fault.\n")
    clone.commit()
    assert make_release(clone, "7.66.0").returncode == 0
    assert clone.release("check", "v7.66.0").returncode == 0
    assert clone.release("notes", "7.66.0").stdout == "### Fixed\n\n- A fault.\n"
    assert (clone.folder / "CITATION.cff").read_text(encoding="utf-8").count("date-released") == 1


def test_the_first_release_may_have_the_version_that_the_code_has(clone: Clone) -> None:
    assert make_release(clone, __version__).returncode == 0
    assert clone.release("check", f"v{__version__}").returncode == 0


def change_a_file(clone: Clone) -> None:
    clone.edit("README.md", "# ", "## ")


def add_a_file(clone: Clone) -> None:
    (clone.folder / "new.py").touch()


def change_the_branch(clone: Clone) -> None:
    clone.git("switch", "--quiet", "--create", "feature")


def leave_all_branches(clone: Clone) -> None:
    clone.git("switch", "--quiet", "--detach")


def release_the_same(clone: Clone) -> None:
    clone.git("tag", f"v{NEXT}")


def release_a_later_one(clone: Clone) -> None:
    clone.git("tag", "v7.65.44")


def release_without_a_tag(clone: Clone) -> None:
    clone.edit("CHANGELOG.md", "## [Unreleased]\n", f"## [Unreleased]\n\n- A line.\n\n## [{NEXT}] - 2026-01-01\n")
    clone.commit()


def empty_the_changelog(clone: Clone) -> None:
    text = (clone.folder / "CHANGELOG.md").read_text(encoding="utf-8")
    start = text.index("## [Unreleased]")
    empty = f"{text[:start]}## [Unreleased]\n\n### Added\n"
    (clone.folder / "CHANGELOG.md").write_text(empty, encoding="utf-8")
    clone.commit()


def change_nothing(_: Clone) -> None:
    pass


@pytest.mark.parametrize(
    ("prepare", "version", "reason"),
    [
        (change_a_file, NEXT, "The tree has changes that are not committed:\nM README.md"),
        (add_a_file, NEXT, "The tree has changes that are not committed:\n?? new.py"),
        (change_the_branch, NEXT, "The branch is feature. Releases are made on main."),
        (leave_all_branches, NEXT, "No branch is checked out."),
        (release_the_same, NEXT, f"The tag v{NEXT} exists already."),
        (release_a_later_one, NEXT, f"{NEXT} is not greater than 7.65.44, which is released."),
        (release_without_a_tag, NEXT, f"{NEXT} is not greater than {NEXT}, which is released."),
        (empty_the_changelog, NEXT, "The section [Unreleased] of CHANGELOG.md is empty."),
        (change_nothing, "0.0.1", f"0.0.1 is less than {__version__}, the version in app/__init__.py."),
        *(
            (change_nothing, version, f"{version!r} is not a version of three numbers")
            for version in ("1.2", "v1.2.3", "1.02.3", "1.2.3rc1", "")
        ),
    ],
)
def test_a_release_is_refused_with_its_reason_and_changes_nothing(
    clone: Clone, prepare: Callable[[Clone], Any], version: str, reason: str
) -> None:
    prepare(clone)
    before = [clone.git("rev-parse", "HEAD"), clone.git("status", "--porcelain"), clone.git("tag", "--list")]
    done = make_release(clone, version)
    assert done.returncode != 0
    assert reason in done.stderr
    assert [clone.git("rev-parse", "HEAD"), clone.git("status", "--porcelain"), clone.git("tag", "--list")] == before


def test_all_reasons_are_given_at_once(clone: Clone) -> None:
    change_the_branch(clone)
    change_a_file(clone)
    error = make_release(clone, "1").stderr
    assert all(reason in error for reason in ("The branch is feature", "not committed", "'1' is not a version"))


def test_a_failed_check_leaves_the_tree_as_it_was(clone: Clone) -> None:
    clone.edit("Makefile", "help: ##", "failing:\n\tgrep -q __version__ app/__init__.py && exit 1\n\nhelp: ##")
    clone.commit()
    before = clone.git("rev-parse", "HEAD")
    done = make_release(clone, checks="failing help")
    assert done.returncode != 0
    assert "make failing failed. Nothing was committed, and the files are as before." in done.stderr
    assert "==> make help" not in done.stdout
    assert_untouched(clone, before)


def test_a_commit_that_a_hook_refuses_leaves_the_tree_as_it_was(clone: Clone) -> None:
    hook = clone.folder / ".git/hooks/pre-commit"
    hook.write_text("#!/bin/sh\necho the hook refuses >&2\nexit 1\n", encoding="utf-8")
    hook.chmod(0o755)
    before = clone.git("rev-parse", "HEAD")
    done = make_release(clone)
    assert done.returncode != 0
    assert "the hook refuses" in done.stderr
    assert_untouched(clone, before)


# The questions of the workflow.


@pytest.mark.parametrize("place", PLACES, ids=lambda place: f"{place.file}-{place.pattern[1:5]}")
def test_a_tag_that_is_not_the_version_of_a_place_is_refused(clone: Clone, place: Place) -> None:
    make_release(clone)
    assert clone.release("check", f"v{NEXT}").returncode == 0
    found = re.search(place.pattern, (clone.folder / place.file).read_text(encoding="utf-8"), re.MULTILINE)
    assert found
    clone.edit(place.file, found[0], found[0].replace(NEXT, "1.0.0"))
    done = clone.release("check", f"v{NEXT}")
    assert done.returncode == 1
    assert done.stderr.startswith(place.file)
    assert f"has 1.0.0, and the tag is v{NEXT}." in done.stderr


def test_a_tag_without_its_section_date_or_citation_is_refused(clone: Clone) -> None:
    make_release(clone)
    for file, old, new, reason in (
        ("CHANGELOG.md", f"## [{NEXT}]", "## [7.0.0]", f"CHANGELOG.md has no section [{NEXT}]."),
        ("CHANGELOG.md", f"## [{NEXT}] - ", f"## [{NEXT}] ", f"CHANGELOG.md has no section [{NEXT}]."),
        ("CITATION.cff", 'date-released: "2', 'date-released: "1', "The date of CITATION.cff is not 2"),
    ):
        clone.edit(file, old, new)
        done = clone.release("check", f"v{NEXT}")
        assert done.returncode == 1
        assert reason in done.stderr
        clone.git("checkout", "--quiet", "--", ".")
    for tag in (NEXT, "v1", "nightly"):
        assert "is not that of a version" in clone.release("check", tag).stderr


def test_notes_of_a_version_that_is_not_there_are_an_error(clone: Clone) -> None:
    done = clone.release("notes", NEXT)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"CHANGELOG.md has no section [{NEXT}]." in done.stderr


def test_the_names_of_image_and_charts_are_in_lower_case_as_registries_require(clone: Clone) -> None:
    done = clone.release("outputs", "v1.2.3", "Some-Owner/SDXL-Turbo-Server")
    assert done.stdout.splitlines() == [
        "version=1.2.3",
        "image=ghcr.io/some-owner/sdxl-turbo-server",
        "charts=oci://ghcr.io/some-owner/charts",
    ]


def test_the_chart_of_a_release_pulls_the_image_of_that_release(clone: Clone) -> None:
    image = "ghcr.io/some-owner/sdxl-turbo-server"
    assert clone.release("chart", image).returncode == 0
    chart = clone.folder / "deploy/helm"
    assert yaml.safe_load((chart / "values.yaml").read_text(encoding="utf-8"))["image"]["repository"] == image
    assert f"| `image.repository` | `{image}` |" in (chart / "README.md").read_text(encoding="utf-8")
    assert clone.git("diff", "--shortstat").startswith("2 files changed, 2 insertions(+), 2 deletions(-)")


def test_a_wrong_call_gets_the_usage(clone: Clone) -> None:
    assert clone.release("publish").returncode == 2
    assert "python -m tools.release cut VERSION" in clone.release().stderr


def test_the_version_is_in_no_place_that_a_release_does_not_change(clone: Clone) -> None:
    """A line that names the project and its version. Hardware reports name the measured version, locks those of
    other packages, and tags of images such as 1.2.3-npu are examples."""
    version = rf"\b{re.escape(__version__)}\b(?!-)"
    others = (":!*package-lock.json", ":!requirements", ":!docs/hardware.md")
    found = clone.git("grep", "--perl-regexp", version, "--", ".", *others)
    lines = [line.partition(":") for line in found.splitlines()]
    named = {file: line for file, _, line in lines if re.search(r"(?i)sdxl.turbo|version", line)}
    assert named.keys() <= {place.file for place in PLACES} | {"CHANGELOG.md"}, named


@pytest.mark.parametrize("passes", [True, False])
def test_files_that_are_edited_during_the_checks_are_neither_committed_nor_lost(clone: Clone, passes: bool) -> None:
    end = "true" if passes else "false"
    clone.edit("Makefile", "\nhelp:", f"\nedit:\n\techo edited >> SUPPORT.md; {end}\n\nhelp:")
    clone.commit()
    done = clone.release("cut", NEXT, "edit")
    assert done.returncode == (0 if passes else 1)
    assert clone.git("diff", "--name-only") == "SUPPORT.md"
    assert (clone.folder / "SUPPORT.md").read_text(encoding="utf-8").endswith("edited\n")


def test_a_changelog_without_headings_is_refused_with_the_reason(clone: Clone) -> None:
    (clone.folder / "CHANGELOG.md").write_text("# Changelog\n", encoding="utf-8")
    clone.commit()
    assert "[Unreleased] of CHANGELOG.md is empty" in clone.release("cut", NEXT).stderr


def test_a_release_that_is_ended_leaves_the_tree_as_it_was(clone: Clone) -> None:
    clone.edit("Makefile", "\nhelp:", "\nend:\n\tkill -TERM $$(ps -o ppid= $$PPID)\n\nhelp:")
    clone.commit()
    done = clone.release("cut", NEXT, "end")
    assert done.returncode == 1
    assert "Interrupted" in done.stderr
    assert clone.git("status", "--porcelain") == ""
