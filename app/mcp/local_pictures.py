"""Pictures that an agent's program on this machine names: a file's path or address, base64, or a data URL."""

import base64
from pathlib import Path
from urllib.parse import unquote, urlsplit

from app.errors import InvalidImageError, InvalidRequestError

FORMS = "the path of a file on this machine, base64 or a data URL"


def read_picture(text: str, *, max_bytes: int, param: str) -> bytes:
    """Return the file that the argument `param` names or has; at most `max_bytes` of a local one. Blocks.

    Raises:
        InvalidRequestError: The file cannot be read.
        InvalidImageError: The argument is neither a file's name nor base64.
    """
    text = text.strip()
    if text[:5].lower() == "data:":
        return _decoded(text.partition(",")[2], param)
    try:
        path = Path(unquote(urlsplit(text).path) if text[:5].lower() == "file:" else text).expanduser()
        if path.is_file():  # a pipe would never end
            return _read(path, max_bytes, param)
    except (OSError, ValueError, RuntimeError):  # a name that no file can have, such as long base64
        pass
    return _decoded(text, param)


def _read(path: Path, max_bytes: int, param: str) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise InvalidRequestError(f"The file cannot be read: {error.strerror}.", param=param) from error
    if len(data) > max_bytes:
        raise InvalidRequestError(f"The file has more than {max_bytes} bytes.", param=param)
    return data


def _decoded(text: str, param: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError as error:
        reason = "There is no such file on this machine, and the text is not base64."
        raise InvalidImageError(reason, param=param) from error
