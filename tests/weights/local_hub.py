"""A hub on loopback that the real clients download from: openMind Hub's REST calls and the Hugging Face Hub's."""

import asyncio
import hashlib
import socket
import threading
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Literal
from urllib.parse import unquote

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

REPOSITORY = "PyTorch-NPU/sdxl-turbo"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
ALWAYS = 1_000_000
_NEXT_COMMIT = "1123456789abcdef0123456789abcdef01234567"
_LFS_BYTES = 1 << 16
_PIECE_BYTES = 1 << 20
_CREATED = "2025-01-01T00:00:00Z"


@dataclass
class Fault:
    """What goes wrong with the next so many requests whose address has `at` in it.

    A number answers with that status, `page` with a page for people. `damage` turns a byte of the file over; `cut`
    sends half of what was asked for and hangs up; `fail` does so too, and answers 503 to the next two requests for the
    file; `hold` sends half, and the rest once the hub is told to `go_on`; `whole` sends the whole file for a range;
    `redirect` sends a signed address at another host. In what the hub tells of a file, `huge` is a size for which no
    disk has room, and `move` is a commit that came after the list.
    """

    kind: int | Literal["page", "damage", "cut", "fail", "hold", "whole", "redirect", "huge", "move"]
    at: str = ""
    times: int = ALWAYS


class LocalHub:
    """Serves repositories out of folders, from `start` to `stop`, and notes what it was asked for.

    All are at one commit. Files of the first repository go by their paths in it, those of others by OWNER/NAME/PATH.
    """

    def __init__(self, folder: Path, certificate: Path | None) -> None:
        self.folder = folder
        self.folders = {REPOSITORY: folder}
        self.token: str | None = None
        """If set, every request needs it."""
        self.faults: list[Fault] = []
        self.go_on = threading.Event()
        self.stopped = False
        self.connection_bytes_per_s: int | None = None
        """If set, no answer is faster."""
        self.downloads: Counter[str] = Counter()
        """How often the bytes of each file were asked for."""
        self.sent_bytes: Counter[str] = Counter()
        """Bytes of each file that were sent to requests since this counter was set."""
        self.port = 0
        self._certificate = certificate
        self._routes = FastAPI()
        self._routes.get("/api/v1/model/{owner}/{name}")(self._openmind_model)
        self._routes.get("/api/v1/file/{owner}/{name}")(self._openmind_tree)
        self._routes.get("/api/v1/file/{owner}/{name}/info")(self._openmind_info)
        self._routes.get("/api/v1/file/{owner}/{name}/{revision}/media/{path:path}")(self._file)
        self._routes.get("/api/models/{owner}/{name}/revision/{revision}")(self._hugging_face_model)
        self._routes.head("/{owner}/{name}/resolve/{revision}/{path:path}")(self._hugging_face_head)
        self._routes.get("/{owner}/{name}/resolve/{revision}/{path:path}")(self._file)

    def start(self) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        # asyncio sets it on sockets of its own making alone; without it each answer waits 40 ms for the one before.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.port = listener.getsockname()[1]
        config = uvicorn.Config(self, log_config=None, lifespan="off", ssl_certfile=self._certificate)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listener]})
        self._thread.start()

    def stop(self) -> None:
        self.stopped = True
        self.go_on.set()
        self._server.should_exit = self._server.force_exit = True
        self._thread.join()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        address = f"{scope['path']}?{unquote(scope['query_string'].decode())}"
        answer: ASGIApp = self._routes
        if fault := self._fault(address, *range(400, 600)):
            answer = JSONResponse({"code": "", "msg": "", "data": None}, int(fault.kind))
        elif self._fault(address, "page"):
            answer = HTMLResponse("<h1>Please log in</h1>")
        elif self.token and f"Bearer {self.token}".encode() != dict(scope["headers"]).get(b"authorization"):
            answer = JSONResponse({"error": "no token"}, 401)
        elif not any(repository in address for repository in self.folders):
            answer = _not_found("repo_not_found", "RepoNotFound")
        elif "main" not in address and COMMIT not in address:
            answer = _not_found("ref_not_exist", "RevisionNotFound")
        await answer(scope, receive, send)

    def _fault(self, address: str, *kinds: object) -> Fault | None:
        for fault in self.faults:
            if fault.kind in kinds and fault.at in address and fault.times > 0:
                fault.times -= 1
                return fault
        return None

    def _size(self, file: Path) -> int:
        return 1 << 60 if self._fault(str(file), "huge") else file.stat().st_size

    def etag(self, path: str | Path) -> str:
        """The hash of a file: of a path in the first repository, or of any absolute path."""
        file = self.folder / path
        stat = file.stat()
        return _hash(file, stat.st_size, stat.st_mtime_ns)

    def _file(self, owner: str, name: str, path: str, request: Request) -> Any:
        repository = f"{owner}/{name}"
        file, noted = self.folders[repository] / path, path if repository == REPOSITORY else f"{repository}/{path}"
        self.downloads[noted] += 1
        size_bytes = file.stat().st_size
        headers = {"ETag": f'"{self.etag(file)}"', "X-Repo-Commit": COMMIT}
        fault = self._fault(noted, "damage", "cut", "fail", "hold", "whole", "redirect")
        kind = fault.kind if fault else None
        if kind == "redirect":
            return RedirectResponse("https://elsewhere.example/file?signature=secret")
        if kind == "fail":
            self.faults.append(Fault(503, at=noted, times=2))
        requested = None if kind == "whole" else request.headers.get("Range")
        first, last = (requested or "bytes=0-").removeprefix("bytes=").split("-")
        start, end = int(first), min(int(last or size_bytes) + 1, size_bytes)
        if start and start >= size_bytes:
            return Response(status_code=416)
        if requested:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size_bytes}"
        headers["Content-Length"] = str(end - start)
        return _Body(file, (start, end), 206 if requested else 200, headers, hub=self, noted=noted, fault=kind)

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

    def _openmind_tree(self, owner: str, name: str, path: str = "") -> Any:
        folder = self.folders[f"{owner}/{name}"]
        commit = {"commit_sha": COMMIT, "message": "", "created": _CREATED}
        entries: list[dict[str, Any]] = []
        for entry in sorted((folder / path).iterdir()):
            at = str(entry.relative_to(folder))
            if entry.is_dir():
                entries.append({"type": "dir", "name": entry.name, "path": at, "commit": commit})
            else:
                entries.append({"type": "file", "name": entry.name, "path": at, "commit": commit, **self._facts(entry)})
        return _data({"tree": entries, "last_commit": {"commit": commit}})

    def _openmind_info(self, owner: str, name: str, path: str) -> Any:
        file = self.folders[f"{owner}/{name}"] / path
        commit = _NEXT_COMMIT if self._fault(path, "move") else COMMIT
        return _data({"name": file.name, "path": path, "branch_last_commit": commit, **self._facts(file)})

    def _facts(self, file: Path) -> dict[str, Any]:
        etag = self.etag(file)
        return {"size": self._size(file), "etag": etag, "is_lfs": len(etag) == 64}

    # The Hugging Face Hub, as huggingface_hub 2.4 asks it.

    def _hugging_face_model(self, owner: str, name: str) -> Any:
        repository = f"{owner}/{name}"
        folder = self.folders[repository]
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        siblings = [self._sibling(str(file.relative_to(folder)), file) for file in files]
        return {"id": repository, "sha": COMMIT, "siblings": siblings}

    def _sibling(self, path: str, file: Path) -> dict[str, Any]:
        size, etag = self._size(file), self.etag(file)
        lfs = {"sha256": etag, "size": size, "pointerSize": 1}
        return {"rfilename": path, "size": size, "blobId": etag[:40], **({"lfs": lfs} if len(etag) == 64 else {})}

    def _hugging_face_head(self, owner: str, name: str, path: str) -> Response:
        file = self.folders[f"{owner}/{name}"] / path
        size = str(file.stat().st_size)
        return Response(headers={"ETag": f'"{self.etag(file)}"', "X-Repo-Commit": COMMIT, "Content-Length": size})


class _Body(Response):
    """A range of a file in two halves, with what may go wrong between them."""

    def __init__(
        self,
        file: Path,
        ends: tuple[int, int],
        status: int,
        headers: dict[str, str],
        *,
        hub: LocalHub,
        noted: str,
        fault: object,
    ) -> None:
        super().__init__(None, status, headers)
        self._file = file
        self._start, self._end = ends
        self._hub = hub
        self._sent_bytes = hub.sent_bytes  # the counter of this time: a killed client's answer may still be on its way
        self._noted = noted
        self._fault = fault

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        with self._file.open("rb") as file:
            middle = self._start + (self._end - self._start) // 2
            file.seek(self._start)
            await self._send(send, file, middle)
            if self._fault in ("cut", "fail"):
                return  # the server hangs up on an answer that was left unfinished
            while self._fault == "hold" and not self._hub.go_on.is_set():  # noqa: ASYNC110 - set by another thread
                await asyncio.sleep(0.01)
            if not self._hub.stopped:
                await self._send(send, file, self._end, last=True)

    async def _send(self, send: Send, file: BinaryIO, until: int, *, last: bool = False) -> None:
        """Send the file's bytes from its position on, piece by piece: a file may be larger than the memory."""
        while True:
            data = file.read(min(_PIECE_BYTES, until - file.tell()))
            more = file.tell() < until
            if last and not more and self._fault == "damage":
                data = data[:-1] + bytes([data[-1] ^ 255])
            await send({"type": "http.response.body", "body": data, "more_body": more or not last})
            self._sent_bytes[self._noted] += len(data)
            if self._hub.connection_bytes_per_s:
                await asyncio.sleep(len(data) / self._hub.connection_bytes_per_s)
            if not more:
                return


@lru_cache(maxsize=1000)
def _hash(file: Path, size_bytes: int, _changed_ns: int) -> str:
    with file.open("rb") as opened:
        if size_bytes > _LFS_BYTES:
            return hashlib.file_digest(opened, "sha256").hexdigest()
        content = opened.read()
    return hashlib.sha1(b"blob %d\0" % size_bytes + content, usedforsecurity=False).hexdigest()


def _data(data: Any) -> dict[str, Any]:
    return {"code": "", "msg": "", "data": data}


def _not_found(openmind_code: str, hugging_face_code: str) -> Response:
    content = {"code": openmind_code, "msg": "", "data": None}
    return JSONResponse(content, 404, {"X-Error-Code": hugging_face_code})
