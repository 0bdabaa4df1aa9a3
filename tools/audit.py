"""Checks the packages of the service, of its tests and of its tools for known vulnerabilities.

python -m tools.audit [OPTIONS OF PIP-AUDIT]    uses PyPI, or the service that the options name

Exit code 1: there are vulnerabilities. 2: the check is not possible, for one package or for all.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name
from packaging.version import Version

from tools.dependencies import applies, dependencies
from tools.pins import locked

ACCEPTED = {
    "CVE-2024-47081": "a crafted URL makes requests send a password from ~/.netrc to another host. openmind-hub pins "
    "requests 2.32.2, and only `pull` from openMind Hub uses it. So only that hub could exploit it, given a ~/.netrc.",
    "CVE-2026-25645": "requests extracts a file from a zip archive under a predictable name. It does so only if "
    "certifi itself is in an archive, and pip installs certifi as files.",
}
"""Accepted vulnerabilities, by an id or alias that pip-audit reports, with the reason."""

CANARY = "pycrypto==2.6.1"
"""An abandoned package with known vulnerabilities. A source that does not report them cannot be trusted."""


def main(options: list[str]) -> int:
    """Run pip-audit, and print the vulnerabilities; return the exit code."""
    pins = [pin for pin in locked("test") if applies(pin)]
    versions: dict[str, str] = {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in pins}
    versions |= {name: Version(package.version).public for name, package in dependencies().items()}
    answer = _ask([*(f"{name}=={version}" for name, version in versions.items()), CANARY], options)
    if answer is None:
        return 2
    unknown = [f"{package['name']}: {package['skip_reason']}" for package in answer if "skip_reason" in package]
    found = {f"{package['name']}=={package['version']}": package["vulns"] for package in answer if "vulns" in package}
    if unknown or not found.pop(CANARY):
        print(*unknown, sep="\n", file=sys.stderr)
        print("FAILED: the source does not know every package, or reports no vulnerabilities at all.", file=sys.stderr)
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
        print("FAILED: pip-audit gave no answer. Check the network connection to PyPI.", file=sys.stderr)
        return None
    return dependencies


def _report(found: dict[str, list[dict[str, Any]]]) -> bool:
    """Print the vulnerabilities, and return whether there are any besides the accepted ones."""
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
        print(f"{name} was not found any more; remove it from ACCEPTED.")
    print(f"{len(found)} packages, {'FAILED: vulnerable' if bad else 'no vulnerabilities besides the accepted ones'}.")
    return bad


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
