"""A worker of `tune` that speaks the protocol of `app.cli.tuning.trial` without a model: tests say what settings do.

Its argument is a JSON object: for each `NAME=VALUE` of a setting, what that does to the worker. The names:

seconds: factor of the seconds of a call; largest: levels added to one pixel; levels: levels added to all pixels;
batched: the same for pictures of a batch; dead: pictures that are dead; end: `start`, or a command that ends the
process; hang: the same, which never answers; error: the code of an error at the start; alone: an error of memory unless
the worker is alone; at_once: batch size that pays; kind: of device.

Workers write their settings to `starts.jsonl` in the folder of the variable `NOTES`, the modes that they time to
`timed.jsonl`, and lock a file there.
"""

import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

CALL_S = 0.004


def main(effects: dict[str, dict[str, Any]]) -> None:
    effect: dict[str, Any] = {"seconds": 1.0, "largest": 0, "levels": 0, "batched": 0, "dead": [], "at_once": 1}
    notes = Path(os.environ["NOTES"])
    mine = {name: text for name, text in os.environ.items() if name.startswith("TURBO_")}
    with (notes / "starts.jsonl").open("a", encoding="utf-8") as file:
        file.write(f"{json.dumps(mine)}\n")
    for setting, does in effects.items():
        name, _, text = setting.partition("=")
        if setting == "*" or mine.get(f"TURBO_{name.upper()}") == text:
            effect.update({key: effect[key] * value if key == "seconds" else value for key, value in does.items()})
    lock = (notes / f"{os.getpid()}.lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    if effect.get("alone") and not _is_alone(notes):
        _send({"error": {"code": "memory_too_small", "text": "The weights do not fit."}})
        return
    if "error" in effect:
        _send({"error": {"code": effect["error"], "text": "This device\nrefuses."}})
        return
    _misbehave(effect, "start")
    _send({"answer": _facts(effect, mine)})
    for line in sys.stdin:
        request = json.loads(line)
        command = request.pop("command")
        if command == "close":
            return
        _misbehave(effect, command)
        _send({"answer": _answer(effect, command, request)})


def _is_alone(notes: Path) -> bool:
    for path in notes.glob("*.lock"):
        if path.stem != str(os.getpid()):
            with path.open("w") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return False
    return True


def _misbehave(effect: dict[str, Any], command: str) -> None:
    if effect.get("hang") == command:
        time.sleep(3600)
    if effect.get("end") == command:
        sys.stderr.write("Fatal: the operator crashed\n")
        sys.stderr.flush()
        os.kill(os.getpid(), signal.SIGSEGV)


def _facts(effect: dict[str, Any], mine: dict[str, str]) -> dict[str, Any]:
    return {
        "kind": effect.get("kind", "npu"),
        "device": "a simulated device",
        "model": mine["TURBO_MODEL"],
        "vae": "",
        "dtypes": {"loaded": "float16", "vae": "float32"},
        "threads": 1,
        "versions": {"torch": "1"},
    }


def _answer(effect: dict[str, Any], command: str, request: dict[str, Any]) -> dict[str, Any]:
    match command:
        case "pictures":
            _save(request["file"], effect["levels"], effect["largest"])
            return {"dead": effect["dead"]}
        case "batch":
            _save(request["alone"], 0, 0)
            _save(request["together"], effect["batched"], 0)
            return {}
        case "time":
            with (Path(os.environ["NOTES"]) / "timed.jsonl").open("a", encoding="utf-8") as file:
                file.write(f"{json.dumps(request['mode'])}\n")
            return {"seconds": [effect["seconds"] * CALL_S] * request["calls"]}
        case "learn":
            return {"at_once": effect["at_once"]}
        case _:
            return {"pictures_per_s": effect["at_once"] ** 0.5 / (effect["seconds"] * CALL_S)}


def _save(file: str, levels: int, largest: int) -> None:
    pixels = np.full((8, 8, 3), 100 + levels, np.uint8)
    pixels[0, 0, 0] += largest
    np.savez(file, picture=pixels)


def _send(message: dict[str, Any]) -> None:
    sys.stdout.write(f"{json.dumps(message)}\n")
    sys.stdout.flush()


def run() -> NoReturn:
    main(json.loads(sys.argv[1]))
    os._exit(0)


if __name__ == "__main__":
    run()
