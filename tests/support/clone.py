"""A clone of this repository in a folder of a test, for commands that commit and tag."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import program

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Clone:
    """A repository with the branch main. `configuration` is its only configuration of git besides its own."""

    folder: Path
    configuration: Path

    def run(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the clone, and return its output, whatever its exit code is."""
        return subprocess.run(
            command, cwd=self.folder, env=self._environment(variables), capture_output=True, text=True, check=False
        )

    def git(self, *arguments: str) -> str:
        """Run git in the clone, and return its output."""
        done = self.run("git", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def release(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `python -m tools.release` of the clone."""
        return self.run(sys.executable, "-m", "tools.release", *arguments)

    def edit(self, file: str, old: str, new: str) -> None:
        """Replace the first place of a text in a file."""
        text = (self.folder / file).read_text(encoding="utf-8")
        assert old in text
        (self.folder / file).write_text(text.replace(old, new, 1), encoding="utf-8")

    def commit(self) -> None:
        """Commit all changes."""
        self.git("commit", "--quiet", "--all", "--message", "A change")

    def _environment(self, variables: dict[str, str]) -> dict[str, str]:
        # In a hook, git's variables name this repository. Under make, its variables name another make's jobs.
        kept = {name: text for name, text in os.environ.items() if not name.startswith(("GIT_", "MAKE", "MFLAGS"))}
        git = {"GIT_CONFIG_GLOBAL": str(self.configuration), "GIT_CONFIG_SYSTEM": os.devnull}
        return {**kept, **git, "PYTHONDONTWRITEBYTECODE": "1", **variables}


def clone_of_this_tree(folder: Path) -> Clone:
    """Clone this repository's last commit, with the tracked files as they are now, and without its tags."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is a copy of the files without git's history")
    program("git")
    configuration = folder / "gitconfig"
    configuration.write_text(
        "[user]\nname = A maintainer\nemail = maintainer@example.org\n[safe]\ndirectory = *\n", encoding="utf-8"
    )
    clone = Clone(folder / "clone", configuration)
    here = Clone(ROOT, configuration)
    here.git("clone", "--quiet", "--no-tags", "--shared", str(ROOT), str(clone.folder))
    clone.git("checkout", "--quiet", "-B", "main")
    if changes := here.run("git", "diff", "--binary", "HEAD").stdout:
        subprocess.run(["git", "apply", "--index"], cwd=clone.folder, input=changes, text=True, check=True)
        clone.commit()
    return clone
