"""The shipped cache: Debian's nginx in front of the service, which draws each picture by URL once."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlencode

import httpx
import pytest

from app.main import create_app
from app.pipelines.base import LoadedPipelines
from app.settings import Settings
from benchmarks.support.http_client import Answer, Connection
from benchmarks.support.nginx import Nginx
from benchmarks.support.ports import free_port
from tests.conftest import opened, program, serving, wait_until
from tests.support.gated_pipeline import GatedPipeline

CLIENTS, URLS = 1000, 50

CHROMIUM = "image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8"
FIREFOX = "image/avif,image/webp,image/png,image/svg+xml,image/*;q=0.8,*/*;q=0.5"


def path_of(seed: int, **fields: object) -> str:
    return "/txt2img?" + urlencode({"prompt": "a red fox", "seed": seed, "width": 64, "height": 64, **fields})


class Cache:
    """nginx with the shipped configuration, and the service behind it, which can be stopped and started anew."""

    def __init__(self, folder: Path) -> None:
        program("nginx")
        self.pipeline = GatedPipeline(max_batch=1)
        self._service_port = free_port()
        self._nginx = Nginx(folder, self._service_port)
        self.port = self._nginx.port

    @contextmanager
    def service(
        self, change: Callable[[LoadedPipelines], LoadedPipelines] = lambda loaded: loaded, **settings: object
    ) -> Iterator[None]:
        """Run the service, with nothing drawn yet. `change` makes another model of it."""
        chosen = Settings(model="fake", max_queue=CLIENTS, **settings)  # type: ignore[arg-type] # one of each type
        app = create_app(chosen, load_pipelines=lambda: change(self.pipeline.load()))
        with serving(app, port=self._service_port):
            self.pipeline.calls.clear()  # of the warm-up
            yield

    def wait_until_stale(self, *seeds: int) -> None:
        """Wait until the pictures of a second are older than that. The service does not run."""
        wait_until(lambda: all(self.ask(seed).headers["x-cache"] == "STALE" for seed in seeds))

    @property
    def drawn(self) -> Counter[int]:
        """How often each seed was drawn since the service started."""
        return Counter(params.seed for batch in self.pipeline.calls for params in batch)

    def ask(self, seed: int, accept: str | None = None, method: str = "GET", **fields: object) -> httpx.Response:
        headers = {} if accept is None else {"Accept": accept}
        with httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60) as client:
            if accept is None:
                del client.headers["Accept"]
            return client.request(method, path_of(seed, **fields), headers=headers)

    def ask_all(self) -> list[Answer]:
        """The answers to a crowd of clients, all at once, who want a few pictures."""

        async def one(number: int) -> Answer:
            async with Connection(self.port) as connection:
                return await connection.get(path_of(number % URLS))

        async def all_of_them() -> list[Answer]:
            return await asyncio.gather(*map(one, range(CLIENTS)))

        return asyncio.run(all_of_them())

    def stop(self) -> None:
        self._nginx.stop()


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    cache = Cache(tmp_path)
    yield cache
    cache.stop()


def test_a_thousand_clients_who_want_fifty_pictures_cost_fifty_device_calls(cache: Cache) -> None:
    with cache.service():
        answers = cache.ask_all()
        assert Counter(answer.status for answer in answers) == {200: CLIENTS}
        assert cache.drawn == Counter(range(URLS))
        for number, answer in enumerate(answers):
            assert answer.body == answers[number % URLS].body
        assert len({answer.body for answer in answers}) == URLS


def test_after_a_restart_the_service_confirms_its_pictures_and_draws_none_again(cache: Cache) -> None:
    with cache.service(url_cache_control="public, max-age=1"):
        before = cache.ask_all()
    cache.wait_until_stale(*range(URLS))
    with cache.service(url_cache_control="public, max-age=1"):
        after = cache.ask_all()
        assert not cache.drawn
    assert [answer.body for answer in after] == [answer.body for answer in before]
    assert {answer.headers["x-cache"] for answer in after} <= {"REVALIDATED", "UPDATING", "HIT"}


def test_another_model_draws_every_picture_anew(cache: Cache) -> None:
    with cache.service(url_cache_control="public, max-age=1"):
        before = cache.ask(1)
    cache.wait_until_stale(1)
    with cache.service(lambda loaded: replace(loaded, weights_sha256="f" * 64), url_cache_control="public, max-age=60"):
        after = cache.ask(1)
        assert cache.drawn == {1: 1}
        assert after.headers["x-cache"] == "EXPIRED"
        assert after.headers["etag"] != before.headers["etag"]
        assert cache.ask(1).headers["x-cache"] == "HIT"


def test_pictures_are_there_while_the_service_is_not(cache: Cache) -> None:
    with cache.service():
        before = cache.ask(1)
    after = cache.ask(1)
    assert (after.status_code, after.headers["x-cache"], after.content) == (200, "HIT", before.content)
    assert cache.ask(2).status_code == 502


def test_an_old_picture_is_better_than_an_error(cache: Cache) -> None:
    with cache.service(url_cache_control="public, max-age=1"):
        before = cache.ask(1)
    cache.wait_until_stale(1)
    after = cache.ask(1)
    assert (after.status_code, after.content) == (200, before.content)


def test_browsers_share_a_picture_and_each_format_is_kept_for_itself(cache: Cache) -> None:
    with cache.service():
        for accept in (CHROMIUM, FIREFOX, "image/webp"):
            assert opened(cache.ask(1, accept).content).format == "WEBP"
        assert cache.drawn == {1: 1}
        for any_type in (None, "*/*"):
            assert opened(cache.ask(1, any_type).content).format == "PNG"
        assert cache.drawn == {1: 2}
        assert cache.ask(1, "application/json, image/webp;q=0.5").json()["images"][0]["seed"] == 1
        assert len(cache.ask(1, num_images=2).json()["images"]) == 2
        assert cache.ask(1, "text/html").status_code == 406


def test_what_a_page_of_an_allowed_origin_may_read_is_not_given_to_another(cache: Cache) -> None:
    ask = f"http://127.0.0.1:{cache.port}{path_of(1)}"
    with cache.service(cors_origins="https://app.example,https://other.example"):
        for origin in ("https://app.example", "https://other.example"):
            headers = {"Origin": origin, "Sec-Fetch-Site": "cross-site"}
            assert httpx.get(ask, headers=headers).headers["access-control-allow-origin"] == origin
        refused = httpx.get(ask, headers={"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"})
        assert refused.status_code == 403


def test_a_client_cannot_write_the_key_of_another_request(cache: Cache) -> None:
    ask, allowed = f"http://127.0.0.1:{cache.port}{path_of(1)}", "https://app.example"
    with cache.service(cors_origins=allowed):
        forged = {"Accept": "application/json,", "Origin": f"text/plain, */* {allowed}"}
        drawn = httpx.get(ask, headers={**forged, "Sec-Fetch-Site": "same-origin"})
        assert (drawn.status_code, "access-control-allow-origin" in drawn.headers) == (200, False)
        page = {"Accept": "application/json, text/plain, */*", "Origin": allowed, "Sec-Fetch-Site": "cross-site"}
        assert httpx.get(ask, headers=page).headers["access-control-allow-origin"] == allowed


def test_a_prompt_as_long_as_the_service_takes_is_kept_too(cache: Cache) -> None:
    with cache.service():
        for _ in range(2):
            assert cache.ask(1, prompt="猫" * 1700).status_code == 200
        assert cache.drawn == {1: 1}


def test_head_draws_nothing_and_leaves_no_empty_picture(cache: Cache) -> None:
    with cache.service():
        assert cache.ask(1, method="HEAD").status_code == 200
        assert not cache.drawn
        assert opened(cache.ask(1).content).size == (64, 64)


def test_posts_errors_and_answers_for_keys_are_not_kept(cache: Cache, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"somebody: {'k' * 32}\n", encoding="utf-8")
    url = f"http://127.0.0.1:{cache.port}/txt2img"
    with cache.service():
        for _ in range(2):
            assert httpx.post(url, json={"prompt": "a", "seed": 1, "width": 64, "height": 64}).status_code == 200
            assert cache.ask(1, width=63).status_code == 422
        assert cache.drawn == {1: 2}
    with cache.service(api_keys_file=keys):
        for _ in range(2):
            assert httpx.get(url + "?prompt=a&seed=2", headers={"X-API-Key": "k" * 32}).status_code == 200
        assert cache.drawn == {2: 2}
        assert httpx.get(url + "?prompt=a&seed=2").status_code == 401
