"""Builds the documentation site in English and Chinese, and checks its links.

python -m tools.site [FOLDER]    writes to build/site if no folder is named

The variable SOURCE is the repository's address on a forge, such as https://github.com/OWNER/sdxl-turbo-server. With it,
links to files that are not documents lead there. Exit code 1: a warning of Sphinx, a broken link, or a page that loads
something from another host.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tools.site import pages
from tools.site.documents import CHINESE, ENGLISH, ROOT
from tools.site.staging import LinkError, stage

_SPHINX = (sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet")


def main(site: Path) -> int:
    """Build the site in this folder, which is emptied first; return the exit code."""
    sources = site.with_name(f"{site.name}-sources")
    for folder in (site, sources):
        shutil.rmtree(folder, ignore_errors=True)
    for language, output in ((ENGLISH, site), (CHINESE, site / CHINESE)):
        staged = sources / language
        try:
            stage(language, staged, source=os.environ.get("SOURCE", ""))
        except LinkError as error:
            print(error, file=sys.stderr)
            return 1
        settings = ["-c", "tools/site", "-D", f"language={language.replace('-', '_')}"]
        doctrees = sources / f"{language}-doctrees"
        command = [*_SPHINX, *settings, "-d", str(doctrees), str(staged), str(output)]
        if subprocess.run(command, cwd=ROOT, check=False).returncode:  # noqa: S603 - our own command
            return 1
    faults = list(pages.faults(site))
    if faults:
        print(*faults, sep="\n", file=sys.stderr)
        return 1
    print(site / "index.html")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT / "build/site"))
