"""Known vulnerabilities in the packages that the service installs.

python -m tools.audit [OPTIONS OF PIP-AUDIT]    asks PyPI, or what the options name

Exit code 1: there are some. 2: it cannot be told, for a package or for all.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from packaging.version import Version

from tools.dependencies import dependencies

ACCEPTED = {
    "CVE-2024-47081": "an address made for it gets requests to send away a password out of ~/.netrc. openmind-hub pins "
    "requests 2.32.2, and only `pull` from openMind Hub uses it: that hub alone could try, where there is a ~/.netrc.",
    "CVE-2026-25645": "requests unpacks a file out of a zip archive under a name that can be foretold. It does so only "
    "where certifi itself lies in an archive, and pip installs it as files.",
}
"""Vulnerabilities that are known and stay, by an id or alias that pip-audit gives, and why."""

CANARY = "pycrypto==2.6.1"
"""Abandoned, with holes. An index that says nothing of them says nothing of others either."""


def main(options: list[str]) -> int:
    """Ask, print what was found, and give the exit code."""
    pins = [f"{name}=={Version(package.version).public}" for name, package in dependencies().items()]
    answer = _ask([*pins, CANARY], options)
    if answer is None:
        return 2
    unknown = [f"{package['name']}: {package['skip_reason']}" for package in answer if "skip_reason" in package]
    found = {f"{package['name']}=={package['version']}": package["vulns"] for package in answer if "vulns" in package}
    if unknown or not found.pop(CANARY):
        print(*unknown, sep="\n", file=sys.stderr)
        print("FAILED: who was asked does not know every package, or tells of no vulnerabilities.", file=sys.stderr)
        return 2
    return 1 if _report(found) else 0


def _ask(pins: list[str], options: list[str]) -> list[dict[str, Any]] | None:
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(pins))
        file.flush()
        command = [str(Path(sys.executable).with_name("pip-audit")), "--format=json", "--progress-spinner=off"]
        done = subprocess.run(  # noqa: S603 - the options are the caller's own
            [*command, "--no-deps", "--disable-pip", f"--requirement={file.name}", *options],
            capture_output=True,
            text=True,
            check=False,
        )
    try:
        dependencies: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except ValueError:
        print(done.stderr[-2000:], file=sys.stderr)
        print("FAILED: pip-audit gave no answer. Is there a network, and does it lead to PyPI?", file=sys.stderr)
        return None
    return dependencies


def _report(found: dict[str, list[dict[str, Any]]]) -> bool:
    """Print the vulnerabilities, and tell whether there are others than those accepted."""
    bad = False
    met = set()
    for package, vulnerabilities in found.items():
        for vulnerability in vulnerabilities:
            ids = {vulnerability["id"], *vulnerability["aliases"]}
            fixed = ", ".join(vulnerability["fix_versions"]) or "no version"
            print(f"{package}: {', '.join(sorted(ids))}; fixed in {fixed}")
            if accepted := ids & ACCEPTED.keys():
                met |= accepted
                print(*(f"    accepted: {ACCEPTED[name]}" for name in accepted), sep="\n")
            else:
                bad = True
                print(f"    {vulnerability['description']}")
    for name in sorted(ACCEPTED.keys() - met):
        print(f"{name} was not found any more; ACCEPTED can do without it.")
    print(
        f"{len(found)} packages, {'FAILED: vulnerable' if bad else 'none with a vulnerability that is not accepted'}."
    )
    return bad


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
