"""A hub on loopback that the real clients download from: openMind Hub's REST calls and the Hugging Face Hub's.

It serves one repository, OWNER/NAME, at one commit, out of a folder. Faults are switched on by the tests.
"""

import hashlib
import re
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

REPOSITORY = "PyTorch-NPU/sdxl-turbo"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
_LFS_BYTES = 1 << 16
_CREATED = "2025-01-01T00:00:00Z"


class LocalHub:
    """The hub's state: its files, what was asked of it, and how often a file still goes out damaged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: list[str] = []
        self.damage: dict[str, int] = {}
        self.app = FastAPI()
        self.app.middleware("http")(self._note)
        self.app.get("/api/v1/model/{owner}/{name}")(self._openmind_model)
        self.app.get("/api/v1/file/{owner}/{name}")(self._openmind_tree)
        self.app.get("/api/v1/file/{owner}/{name}/info")(self._openmind_info)
        self.app.get("/api/v1/file/{owner}/{name}/{revision}/media/{path:path}")(self._openmind_media)
        self.app.get("/api/models/{owner}/{name}/revision/{revision}")(self._hugging_face_model)
        self.app.get("/api/models/{owner}/{name}/tree/{revision}")(self._hugging_face_tree)
        self.app.api_route("/{owner}/{name}/resolve/{revision}/{path:path}", methods=["GET", "HEAD"])(
            self._hugging_face_file
        )

    @property
    def downloads(self) -> set[str]:
        """The files whose bytes were asked for."""
        matches = (re.fullmatch(r"GET .*/(?:[^/]+/media|resolve/[^/]+)/(.+)", request) for request in self.requests)
        return {match[1] for match in matches if match}

    async def _note(self, request: Request, call_next: Any) -> Response:
        self.requests.append(f"{request.method} {request.url.path}")
        if REPOSITORY not in request.url.path:
            return JSONResponse({"code": "repo_not_found", "msg": "repo_not_found", "data": None}, 404)
        response: Response = await call_next(request)
        return response

    def _paths(self) -> list[str]:
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file())

    def _etag(self, path: str) -> str:
        data = (self.folder / path).read_bytes()
        if len(data) > _LFS_BYTES:
            return hashlib.sha256(data).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()

    def _content(self, path: str) -> bytes:
        data = (self.folder / path).read_bytes()
        if self.damage.get(path, 0) > 0:
            self.damage[path] -= 1
            return data[:-1] + bytes([data[-1] ^ 255])
        return data

    # openMind Hub, as openmind_hub 1.3.0 asks it.

    def _openmind_model(self, owner: str, name: str) -> Any:
        return _data(
            {
                "id": "1",
                "name": name,
                "owner": owner,
                "visibility": "public",
                "labels": {},
                "created_at": _CREATED,
                "updated_at": _CREATED,
            }
        )

    def _openmind_tree(self, path: str = "") -> Any:
        commit = {"commit_sha": COMMIT, "message": "", "created": _CREATED}
        entries: list[dict[str, Any]] = []
        for entry in sorted((self.folder / path).iterdir()):
            at = str(entry.relative_to(self.folder))
            if entry.is_dir():
                entries.append({"type": "dir", "name": entry.name, "path": at, "commit": commit})
            else:
                entries.append({"type": "file", "name": entry.name, "path": at, "commit": commit, **self._facts(at)})
        return _data({"tree": entries, "last_commit": {"commit": commit}})

    def _openmind_info(self, path: str) -> Any:
        return _data({"name": Path(path).name, "path": path, "branch_last_commit": COMMIT, **self._facts(path)})

    def _facts(self, path: str) -> dict[str, Any]:
        etag = self._etag(path)
        return {"size": (self.folder / path).stat().st_size, "etag": etag, "is_lfs": len(etag) == 64}

    def _openmind_media(self, path: str) -> Response:
        return Response(self._content(path))

    # The Hugging Face Hub, as huggingface_hub 2.4 asks it.

    def _hugging_face_model(self, owner: str, name: str) -> Any:
        return {"id": f"{owner}/{name}", "sha": COMMIT, "siblings": [{"rfilename": path} for path in self._paths()]}

    def _hugging_face_tree(self) -> Any:
        return [
            {"type": "file", "path": path, "oid": self._etag(path), "size": self._facts(path)["size"]}
            for path in self._paths()
        ]

    def _hugging_face_file(self, path: str, request: Request) -> Response:
        headers = {"ETag": f'"{self._etag(path)}"', "X-Repo-Commit": COMMIT}
        if request.method == "HEAD":
            headers["Content-Length"] = str((self.folder / path).stat().st_size)
            return Response(headers=headers)
        return Response(self._content(path), headers=headers)


def _data(data: Any) -> dict[str, Any]:
    return {"code": "", "msg": "", "data": data}
