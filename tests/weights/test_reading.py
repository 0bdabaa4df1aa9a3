import hashlib
import json
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from app.errors import WeightsError
from app.weights.digests import Digests
from app.weights.reading import ReadAhead

MIB = 1 << 20


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tensors of many sizes: none, odd, larger than a buffer, and more in one buffer than readv takes at once."""
    numbers = np.random.default_rng(0)
    sizes = {"none": 0, "one": 1, "odd": 4097, "large": 40 * MIB, "half": 20 * MIB, "other half": 20 * MIB}
    sizes |= {f"small {number}": number for number in range(2000)}
    path = tmp_path_factory.mktemp("reading") / "tensors.safetensors"
    save_file({name: numbers.integers(0, 255, size, np.uint8) for name, size in sizes.items()}, path)
    return path


def bytes_read() -> int:
    found = re.search(r"^rchar: (\d+)$", Path("/proc/self/io").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


def test_a_file_is_read_once_and_gives_its_tensors_and_its_digest(file: Path) -> None:
    digests, found = Digests(), dict[str, bytes]()
    before = bytes_read()
    with ReadAhead([file], digests) as reading:
        for piece in reading:
            assert piece.path == file
            found |= {tensor.name: hashlib.sha256(tensor.data).digest() for tensor in piece.tensors}
    assert file.stat().st_size <= bytes_read() - before < file.stat().st_size + MIB
    assert reading.read_bytes == reading.total_bytes == file.stat().st_size
    assert digests.total({"x": file}) == hashlib.sha256(f"x {_sha256(file)}\n".encode()).hexdigest()
    assert bytes_read() - before < 2 * file.stat().st_size + MIB, "the digest needed no other reading than the test's"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert len(header) == len(found)
    for name, entry in header.items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        assert found[name] == hashlib.sha256(content[begin:end]).digest(), name


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_several_files_come_one_after_another_and_one_with_another_digest_ends_the_reading(
    file: Path, tmp_path: Path
) -> None:
    save_file({"a": np.zeros(5)}, small := tmp_path / "small.safetensors")
    digests = Digests()
    digests.expect(small, _sha256(small))
    digests.expect(file, "0" * 64)
    paths = []
    with (
        ReadAhead([small, file], digests) as reading,
        pytest.raises(WeightsError, match=f"{file.name} is damaged: its"),
    ):
        paths += [piece.path for piece in reading]
    assert small in digests


def test_a_reading_can_end_in_the_middle(file: Path) -> None:
    with ReadAhead([file, file], digests := Digests()) as reading:
        next(iter(reading))
    assert file not in digests


def test_the_buffers_are_free_after_the_reading_while_its_progress_is_still_known(file: Path) -> None:
    tracemalloc.start()
    try:
        with ReadAhead([file], Digests()) as reading:
            assert sum(1 for _ in reading) > 1
        held_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert reading.read_bytes == file.stat().st_size
    assert held_bytes < MIB


@pytest.mark.parametrize(("harm", "reason"), [("cut", "it ends too early"), ("header", "its header cannot be read")])
def test_a_file_that_is_harmed_after_its_check_is_an_error_that_says_so(
    file: Path, tmp_path: Path, harm: str, reason: str
) -> None:
    content = bytearray(file.read_bytes())
    content[8:10] = b"}}" if harm == "header" else content[8:10]
    path = tmp_path / "harmed.safetensors"
    path.write_bytes(content[:-1])
    with ReadAhead([path], Digests()) as reading, pytest.raises(WeightsError, match=reason):
        list(reading)
