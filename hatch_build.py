"""Hatchling's hook for the long description: the README with links that also work on the index's page.

SOURCE is the repository's address on a forge, as for `make site`. Without it, the README is taken as it is.
"""

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class ReadmeHook(MetadataHookInterface):
    """Sets `readme`, and with an address also `urls`."""

    def update(self, metadata: dict[str, Any]) -> None:
        readme = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        source = os.environ.get("SOURCE", "")
        metadata["urls"] = {}
        if source:
            readme = absolute(readme, source)
            changelog = f"{source}/blob/HEAD/CHANGELOG.md"
            metadata["urls"] = {"Source": source, "Changelog": changelog, "Issues": f"{source}/issues"}
        metadata["readme"] = {"content-type": "text/markdown", "text": readme}


def absolute(text: str, source: str) -> str:
    """Return Markdown whose links to files of the repository lead to its address."""

    def link(match: re.Match[str]) -> str:
        kind = "raw" if match[1] else "blob"
        return f"{match[1]}[{match[2]}]({source}/{kind}/HEAD/{match[3]})"

    return re.sub(r"(!?)\[([^\[\]]*)\]\((?!#|\w+:)([^()\s]+)\)", link, text)
