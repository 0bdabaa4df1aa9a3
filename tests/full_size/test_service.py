"""Two lives of the service on the full-size model: its pictures, its bytes after a restart, its promises under load.

The tests of the first life come before those of the second, which ends it; at the end of each is the test of its end.
"""

import re
import statistics
import threading
import time
from collections import Counter

import pytest

from app.pipelines.sdxl_turbo import SPARE
from tests.full_size.conftest import LARGEST
from tests.full_size.life import REQUESTS, SEED, Life, Made, Seen, assert_real
from tests.full_size.tokens import PROMPTS, original_tokens

CLIENTS = 8
EXPECTED = {
    "256 px": (256, 1),
    "512 px": (512, 1),
    "1024 px": (1024, 1),
    "512 px, 4 steps": (512, 4),
    LARGEST: (1024, 4),
    "four at once": (384, 1),
    "image to image, 512 px": (512, 1),
    "image to image, 512 px, 4 steps": (512, 4),
    "image to image, 1024 px": (1024, 1),
    "inpainting, 512 px": (512, 4),
}
"""Side in pixels and effective steps of each request."""

ALONE = [{"width": 256, "height": 256, "seed": SEED + number, "prompt": f"house {number}"} for number in range(4)]


# The first life: pictures.


@pytest.mark.parametrize("name", REQUESTS)
def test_every_kind_of_request_gives_real_pictures_of_its_size_and_says_what_was_made(
    first_life: Life, name: str
) -> None:
    side, steps = EXPECTED[name]
    made = first_life.make(name)
    assert len(made.pictures) == REQUESTS[name].get("num_images", 1)
    for data in made.pictures:
        assert_real(data, size=(side, side))
    headers = made.response.headers
    assert (headers["x-image-size"], headers["x-steps"]) == (f"{side}x{side}", str(steps))
    assert headers["x-prompt-tokens"] == str(len(original_tokens("a lighthouse at dawn, oil on canvas")))
    assert "x-prompt-truncated" not in headers
    assert len(set(made.pictures)) == len(made.pictures)


@pytest.mark.parametrize("prompt", [prompt for prompt in PROMPTS if prompt][::5])
def test_the_token_count_is_that_of_the_original_tokenizer(first_life: Life, prompt: str) -> None:
    headers = first_life.ask({"prompt": prompt, "width": 64, "height": 64}).response.headers
    tokens = len(original_tokens(prompt))
    assert headers["x-prompt-tokens"] == str(min(tokens, 77))
    assert ("x-prompt-truncated" in headers) == (tokens > 77)


@pytest.fixture(scope="module")
def alone(first_life: Life) -> list[list[bytes]]:
    """The pictures of requests that had the device of the first life for themselves."""
    return [first_life.ask(request).pictures for request in ALONE]


def test_in_company_each_request_gets_the_bytes_that_it_gets_alone(first_life: Life, alone: list[list[bytes]]) -> None:
    assert len({data for pictures in alone for data in pictures}) == len(ALONE)
    before = first_life.metrics()
    for _ in range(2):  # the first time, a larger batch is only tried
        assert [made.pictures for made in first_life.ask_together(ALONE)] == alone
    now = first_life.metrics()
    requests, singles = (
        now[name] - before[name]
        for name in ("turbo_batch_pictures_count,mode=txt2img", "turbo_batch_pictures_bucket,le=1.0,mode=txt2img")
    )
    assert singles < requests == 2 * len(ALONE), "some were made at once"


def test_a_start_takes_no_more_memory_than_it_wants_to_be_free(weights_bytes: int, first_life: Life) -> None:
    print(f"the start took {first_life.start_peak_bytes / 1e9:.2f} GB for weights of {weights_bytes / 1e9:.2f} GB")  # noqa: T201
    assert weights_bytes < first_life.start_peak_bytes < (1 + SPARE) * weights_bytes


def test_the_process_is_live_all_the_time_and_says_so_within_the_time_of_a_picture(first_life: Life) -> None:
    assert {status for status, _ in first_life.liveness} == {200}
    assert max(seconds for _, seconds in first_life.liveness) < first_life.make("512 px").seconds


def test_a_drain_time_that_ends_before_the_picture_ends_the_process_with_1(first_life: Life) -> None:
    running = _in_background(first_life, LARGEST)
    began = time.monotonic()
    first_life.server.terminate()
    assert first_life.server.wait(60) == 1
    assert time.monotonic() - began < 2 + 5 + 10  # drain time, last bytes, and a busy machine
    assert running().response.status_code == 503
    assert running().response.json()["code"] == "draining"


# The second life: the same pictures, and a crowd.


@pytest.mark.parametrize("name", ["256 px", "512 px", "four at once", "image to image, 512 px"])
def test_after_a_restart_the_bytes_are_the_same(first_life: Life, second_life: Life, name: str) -> None:
    assert second_life.make(name).pictures == first_life.make(name).pictures


def test_after_a_restart_the_bytes_in_company_are_those_from_before_it(
    alone: list[list[bytes]], second_life: Life
) -> None:
    assert [made.pictures for made in second_life.ask_together(ALONE)] == alone


def test_a_request_that_the_device_cannot_make_by_the_deadline_is_rejected_at_once_with_the_time_it_would_take(
    first_life: Life, second_life: Life
) -> None:
    refused = second_life.ask(REQUESTS[LARGEST])
    assert (refused.response.status_code, refused.response.json()["code"]) == (422, "beyond_deadline")
    assert refused.seconds < second_life.make("512 px").seconds / 2
    would_take = re.search(r"would take ([0-9.]+) s", refused.response.json()["detail"])
    assert would_take is not None
    assert 0.5 < float(would_take[1]) / first_life.make(LARGEST).seconds < 2


@pytest.fixture(scope="module")
def metrics_before(second_life: Life) -> dict[str, float]:
    return second_life.metrics()


@pytest.fixture(scope="module")
def crowd(second_life: Life, metrics_before: dict[str, float]) -> list[Seen]:
    """The answers that eight clients get who ask for more pictures than the device can make by the deadline."""
    assert metrics_before
    seen = second_life.crowd(CLIENTS, lasting_s=1.5 * second_life.deadline_s)
    print(Counter((one.status, one.code) for one in seen), f"deadline {second_life.deadline_s:.0f} s")  # noqa: T201
    return seen


def test_under_a_crowd_some_get_pictures_and_the_others_know_at_once_that_they_must_wait(
    second_life: Life, crowd: list[Seen]
) -> None:
    statuses = Counter(one.status for one in crowd)
    assert set(statuses) <= {200, 429, 504}
    assert statuses[200] >= 3
    assert statuses[429] >= 3
    assert statuses[504] <= statuses[200] / 4
    rejections_s = [one.seconds for one in crowd if one.status == 429]
    assert statistics.median(rejections_s) < second_life.make("512 px").seconds / 2


def test_nobody_gets_a_picture_after_the_deadline(second_life: Life, crowd: list[Seen]) -> None:
    slack_s = 2  # this process is busy too
    assert max(one.seconds for one in crowd) < second_life.deadline_s + slack_s


def test_retry_after_is_the_time_that_the_admitted_requests_then_take_within_a_factor_of_2(crowd: list[Seen]) -> None:
    admitted = [one for one in crowd if one.status != 429]
    ratios = []
    for rejected in crowd:
        if rejected.status == 429 and rejected.retry_after_s is not None:
            waited_s = max(one.ended for one in admitted if one.began < rejected.ended) - rejected.ended
            ratios.append(rejected.retry_after_s / max(1, waited_s))
    print("Retry-After by what it took:", [round(ratio, 2) for ratio in sorted(ratios)])  # noqa: T201
    assert len(ratios) == sum(one.status == 429 for one in crowd)
    assert 0.5 < statistics.median(ratios) < 2


def test_the_metrics_count_what_the_clients_saw(
    second_life: Life, metrics_before: dict[str, float], crowd: list[Seen]
) -> None:
    now = second_life.metrics()
    gained = {name: value - metrics_before.get(name, 0) for name, value in now.items()}
    statuses = Counter(one.status for one in crowd)
    assert gained["turbo_errors_total,code=queue_full"] == statuses[429]
    assert gained["turbo_errors_total,code=deadline_exceeded"] == statuses[504]
    assert gained["turbo_pictures_total,mode=txt2img"] == statuses[200]
    lasted_s = max(one.ended for one in crowd) - min(one.began for one in crowd)
    assert 0.8 * lasted_s < gained["turbo_device_busy_seconds_total"] < 1.2 * lasted_s
    assert now["turbo_queue_depth"] == 0
    assert now["turbo_deadline_seconds"] == pytest.approx(second_life.deadline_s)


def test_through_the_crowd_the_process_is_live_and_afterwards_ready(second_life: Life, crowd: list[Seen]) -> None:
    assert len(crowd) > CLIENTS
    assert {status for status, _ in second_life.liveness} == {200}
    assert second_life.ready()["status"] == "ready"


def test_after_sigterm_the_accepted_request_is_answered_whole_and_new_ones_are_rejected(
    first_life: Life, second_life: Life
) -> None:
    running = _in_background(second_life, "512 px")
    second_life.server.terminate()
    second_life.server.wait_for_log("draining, 1 requests in flight")
    refused = second_life.ask({}).response
    assert (refused.status_code, refused.json()["code"]) == (503, "draining")
    assert int(refused.headers["retry-after"]) >= 1
    assert second_life.ready()["health"]["status"] == "draining"
    assert running().pictures == first_life.make("512 px").pictures
    assert second_life.server.wait(60) == 0  # the default of TURBO_DRAIN_S
    assert {status for status, _ in second_life.liveness} == {200}


class _in_background:  # noqa: N801 - called like a function
    """Send a request from a thread, and go on when the device has begun with it. Call it for the answer."""

    def __init__(self, life: Life, name: str) -> None:
        self._answers: list[Made] = []
        self._thread = threading.Thread(target=lambda: self._answers.append(life.ask(REQUESTS[name])))
        self._thread.start()
        while not life.ready()["queue"]["running_s"] > 0:
            assert self._thread.is_alive(), "the picture was made before anything else could happen"
            time.sleep(0.01)

    def __call__(self) -> Made:
        self._thread.join()
        return self._answers[0]
