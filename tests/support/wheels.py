"""Wheels with one module, for tests of what installs them."""

import zipfile
from pathlib import Path


def write_wheel(
    folder: Path, name: str, version: str = "1.0", *, requires: str = "", requires_python: str = ""
) -> Path:
    """Write a wheel to a folder, with one requirement and bounds of Python if they are not empty; return its path."""
    fields = {"Name": name, "Version": version, "Requires-Dist": requires, "Requires-Python": requires_python}
    metadata = "".join(f"{field}: {value}\n" for field, value in fields.items() if value)
    information = f"{name}-{version}.dist-info"
    file = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"{name}.py", f"VERSION = {version!r}\n")
        archive.writestr(f"{information}/METADATA", f"Metadata-Version: 2.1\n{metadata}")
        archive.writestr(f"{information}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{information}/RECORD", "")
    return file
