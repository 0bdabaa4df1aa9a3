"""What earlier pulls left of a file, in the forms that there are."""

from pathlib import Path
from threading import Event, Thread

import pytest

from app.weights.parts import PART_BYTES, RangeIgnoredError, StoppedError, finish, missing_parts, present_bytes

SIZE_BYTES = 2 * PART_BYTES + 1000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "blob.incomplete"


def test_what_one_connection_left_is_the_beginning_of_the_parts(path: Path) -> None:
    path.write_bytes(b"a" * (PART_BYTES + 5))
    second, third = missing_parts(path, SIZE_BYTES, Event())
    with second:
        assert second.missing_range == f"bytes={PART_BYTES + 5}-{2 * PART_BYTES - 1}"
        second.write(b"b" * 7)
    with third:
        third.write(b"c" * 1000)
    assert present_bytes(path, SIZE_BYTES) == PART_BYTES + 5 + 7 + 1000
    (again,) = missing_parts(path, SIZE_BYTES, Event())
    with again:
        again.write(b"d" * again.missing_bytes)
    finish(path, SIZE_BYTES)
    assert path.read_bytes() == b"a" * (PART_BYTES + 5) + b"b" * 7 + b"d" * (PART_BYTES - 12) + b"c" * 1000
    assert not missing_parts(path, SIZE_BYTES, Event())


def test_a_file_of_an_unknown_form_counts_for_nothing(path: Path) -> None:
    path.write_bytes(b"a" * (SIZE_BYTES + 1))
    assert present_bytes(path, SIZE_BYTES) == 0
    assert len(missing_parts(path, SIZE_BYTES, Event())) == 3
    assert present_bytes(path, SIZE_BYTES) == 0


def test_a_part_takes_no_byte_of_another_part_and_none_once_it_is_stopped(path: Path) -> None:
    stop = Event()
    *_, last = missing_parts(path, SIZE_BYTES, stop)
    with last:
        with pytest.raises(RangeIgnoredError):
            last.write(bytes(1001))
        with pytest.raises(RangeIgnoredError):  # huggingface_hub begins anew
            last.seek(0)
        stop.set()
        with pytest.raises(StoppedError):
            last.write(b"c")
    assert present_bytes(path, SIZE_BYTES) == 0


def test_bytes_can_be_counted_while_the_file_moves_to_its_place(path: Path) -> None:
    stop = Event()

    def move_again_and_again() -> None:
        while not stop.is_set():
            missing_parts(path, SIZE_BYTES, stop)
            path.replace(path.with_name("blob"))

    mover = Thread(target=move_again_and_again)
    mover.start()
    try:
        for _ in range(30_000):
            present_bytes(path, SIZE_BYTES)
    finally:
        stop.set()
        mover.join()
