"""GET /txt2img: what a URL gives, and what caches and pages of other sites may do with it."""

import base64
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from app.inference import identity
from app.main import create_app
from app.settings import Settings
from tests.api.test_errors import assert_is_problem
from tests.conftest import opened, png, running
from tests.support.gated_pipeline import GatedPipeline

KEY = "k" * 32

WANTED = {"prompt": "a cat, 一只猫 & more", "seed": "7", "width": "64", "height": "64"}


async def get(client: httpx.AsyncClient, headers: dict[str, str] | None = None, **fields: object) -> httpx.Response:
    query = {name: str(value) for name, value in {**WANTED, **fields}.items() if value is not None}
    return await client.get("/txt2img", params=query, headers=headers)


async def post(client: httpx.AsyncClient, headers: dict[str, str] | None = None, **fields: object) -> httpx.Response:
    body = {**WANTED, "seed": 7, "width": 64, "height": 64, **fields}
    return await client.post("/txt2img", json=body, headers=headers)


@pytest.fixture
async def counted(pipeline: GatedPipeline) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a service whose device calls are counted from now on."""
    async with running(create_app(Settings(model="fake"), load_pipelines=pipeline.load)) as client:
        pipeline.calls.clear()
        yield client


# The picture.


async def test_a_url_gives_the_picture_of_the_post(client: httpx.AsyncClient) -> None:
    by_url, posted = await get(client), await post(client)
    assert by_url.status_code == 200
    assert by_url.headers["content-type"] == "image/png"
    assert by_url.content == posted.content
    assert by_url.headers["etag"] == posted.headers["etag"]
    assert by_url.headers["x-seed"] == "7"


async def test_every_field_of_the_post_works_in_a_url(client: httpx.AsyncClient) -> None:
    fields: dict[str, Any] = {
        "num_inference_steps": 3,
        "prompt": "a (cat:1.2)",
        "prompt_mode": "chunked",
        "prompt_syntax": "webui",
        "guidance_scale": 0,
        "negative_prompt": "",
    }
    by_url, posted = await get(client, **fields), await post(client, **fields)
    assert by_url.status_code == 200
    assert by_url.content == posted.content
    assert by_url.headers["etag"] == posted.headers["etag"]
    several = await get(client, num_images=3)
    assert [image["seed"] for image in several.json()["images"]] == [7, 8, 9]


async def test_the_format_follows_accept_as_in_the_post(client: httpx.AsyncClient) -> None:
    for accept, expected in {"image/webp": "image/webp", "image/jpeg": "image/jpeg", "image/*": "image/png"}.items():
        assert (await get(client, {"Accept": accept})).headers["content-type"] == expected
    envelope = (await get(client, {"Accept": "application/json"})).json()
    assert opened(base64.b64decode(envelope["images"][0]["b64"])).size == (64, 64)
    assert_is_problem(await get(client, {"Accept": "text/html"}), 406, "not_acceptable")


@pytest.mark.parametrize(
    ("query", "param", "reason"),
    [
        ("prompt=a", "seed", "Field required"),
        ("seed=1", "prompt", "Field required"),
        ("prompt=a&seed=", "seed", "valid integer"),
        ("prompt=a&seed=1_0", "seed", "valid integer"),
        ("prompt=a&seed=-1", "seed", "greater than or equal to 0"),
        ("prompt=a&seed=4294967295&num_images=2", "seed", "must not pass 4294967295"),
        ("prompt=a&seed=1&num_inference_steps=5", "num_inference_steps", "less than or equal to 4"),
        ("prompt=a&seed=1&width=2048&height=2048", "width", "at most 2097152"),
        ("prompt=a&seed=1&guidance_scale=7.5", "guidance_scale", "does not use guidance"),
        ("prompt=a&seed=1&steps=2", "steps", "say num_inference_steps"),
        ("prompt=a&prompt=b&seed=1", "prompt", "sent twice"),
        ("prompt=a%00b&seed=1", "prompt", "pattern"),
        ("prompt=%ff&seed=1", None, "percent-encoded in UTF-8"),
        ("&".join(f"a{number}=1" for number in range(40)), None, "at most 32 fields"),
    ],
)
async def test_a_url_that_names_no_picture_is_refused_with_the_reason(
    client: httpx.AsyncClient, query: str, param: str | None, reason: str
) -> None:
    problem = assert_is_problem(await client.get(f"/txt2img?{query}"), 422, "invalid_request")
    if param is None:
        assert reason in problem["detail"]
    else:
        assert any(field["param"] == param and reason in field["detail"] for field in problem["errors"]), problem


# What caches are told.


async def test_a_copy_that_is_still_right_is_confirmed_without_queue_and_device(
    counted: httpx.AsyncClient, pipeline: GatedPipeline
) -> None:
    tag = (await get(counted)).headers["etag"]
    assert len(pipeline.calls) == 1
    assert re.fullmatch(r'"[0-9a-f]{36}"', tag)
    pipeline.close()  # a request that reached the device would wait here for ever
    for named in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        answer = await get(counted, {"If-None-Match": named})
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["etag"] == tag
        assert answer.headers["cache-control"] == "public, max-age=86400"
        assert answer.headers["vary"] == "Accept"
        assert "content-type" not in answer.headers
    assert not pipeline.calls
    pipeline.gate.set()
    assert (await get(counted, {"If-None-Match": '"other"'})).status_code == 200


async def test_a_full_service_still_confirms_copies(pipeline: GatedPipeline) -> None:
    settings = Settings(model="fake", max_queue=0, rate_limit="1/hour")
    async with running(create_app(settings, load_pipelines=pipeline.load)) as client:
        tag = (await get(client)).headers["etag"]
        assert_is_problem(await get(client), 429, "rate_limited")
        assert (await get(client, {"If-None-Match": tag})).status_code == 304


async def test_head_has_the_headers_and_draws_nothing(counted: httpx.AsyncClient, pipeline: GatedPipeline) -> None:
    pipeline.close()
    head = await counted.head("/txt2img", params=WANTED)
    assert (head.status_code, head.content) == (200, b"")
    assert not pipeline.calls
    pipeline.gate.set()
    drawn = await get(counted)
    for name in ("etag", "cache-control", "vary", "content-type"):
        assert head.headers[name] == drawn.headers[name]
    assert "content-length" not in head.headers
    assert (await counted.head("/txt2img?prompt=a")).status_code == 422
    confirmed = await counted.head("/txt2img", params=WANTED, headers={"If-None-Match": head.headers["etag"]})
    assert confirmed.status_code == 304


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "a dog"},
        {"seed": 8},
        {"num_inference_steps": 2},
        {"width": 128},
        {"prompt_mode": "chunked"},
        {"prompt_syntax": "webui"},
    ],
    ids=lambda fields: next(iter(fields)),
)
async def test_another_picture_has_another_tag(client: httpx.AsyncClient, fields: dict[str, Any]) -> None:
    assert (await get(client, **fields)).headers["etag"] != (await get(client)).headers["etag"]


async def test_each_format_has_its_tag_and_json_a_weak_one(client: httpx.AsyncClient) -> None:
    accepts = ("image/png", "image/webp", "image/jpeg", "application/json")
    tags = [(await get(client, {"Accept": accept})).headers["etag"] for accept in accepts]
    assert len(set(tags)) == 4
    assert [tag.startswith("W/") for tag in tags] == [False, False, False, True]


async def test_where_batches_may_round_tags_are_weak() -> None:
    async with running(create_app(Settings(model="fake", batching="fast"))) as client:
        tag = (await get(client)).headers["etag"]
        assert tag.startswith("W/")
        assert (await get(client, {"If-None-Match": tag})).status_code == 304


async def test_a_new_model_version_or_setting_gives_new_tags(
    pipeline: GatedPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def tag(weights_sha256: str = "", **settings: object) -> str:
        def load() -> Any:
            return replace(pipeline.load(), weights_sha256=weights_sha256)

        chosen = Settings(model="fake", **settings)  # type: ignore[arg-type] # one of each type
        async with running(create_app(chosen, load_pipelines=load)) as client:
            return str((await get(client)).headers["etag"])

    first = await tag()
    assert await tag() == first
    others = {await tag("f" * 64), await tag(image_metadata=False)}
    monkeypatch.setattr(identity, "__version__", "99.0")
    others.add(await tag())
    assert len({first, *others}) == 4


async def test_posts_with_a_seed_have_tags_that_follow_what_was_uploaded(client: httpx.AsyncClient) -> None:
    async def tag(route: str, seed: int | None = 7, *, picture: str = "red", mask: str | None = None) -> Any:
        data = {"prompt": "a cat", "strength": "1", **({} if seed is None else {"seed": str(seed)})}
        files = {"image": png(color=picture), **({} if mask is None else {"mask": png(color=mask)})}
        answer = await client.post(route, data=data, files=files)
        assert answer.status_code == 200, answer.text
        return answer.headers.get("etag")

    assert await tag("/img2img", None) is None
    assert "etag" not in (await client.post("/txt2img", json={"prompt": "a cat"})).headers
    assert await tag("/img2img") == await tag("/img2img")
    different = [
        *(await tag("/img2img"), await tag("/img2img", 8), await tag("/img2img", picture="blue")),
        *(await tag("/inpaint", mask="white"), await tag("/inpaint", mask="grey")),
        await tag("/inpaint", picture="blue", mask="white"),
    ]
    assert None not in different
    assert len(set(different)) == 6


async def test_an_operator_chooses_how_long_copies_live() -> None:
    async with running(create_app(Settings(model="fake", url_cache_control="public, max-age=60"))) as client:
        assert (await get(client)).headers["cache-control"] == "public, max-age=60"
        assert (await post(client)).headers["cache-control"] == "no-store"


async def test_where_keys_are_needed_no_cache_keeps_a_picture_unless_it_is_private(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"somebody: {KEY}\n", encoding="utf-8")
    for chosen, expected in {"": "no-store", "private, max-age=60": "private, max-age=60"}.items():
        settings = Settings(model="fake", api_keys_file=keys, url_cache_control=chosen)
        async with running(create_app(settings)) as client:
            assert_is_problem(await get(client), 401, "invalid_api_key")
            assert_is_problem(await get(client, {"If-None-Match": "*"}), 401, "invalid_api_key")
            answer = await get(client, {"X-API-Key": KEY})
            assert (answer.status_code, answer.headers["cache-control"]) == (200, expected)
    for shared in ("public, max-age=60", "private, S-MAXAGE=60", "max-age=60", 'private="Set-Cookie", max-age=60'):
        with pytest.raises(ValidationError, match="clients without a key"):
            Settings(api_keys_file=keys, url_cache_control=shared)


async def test_an_error_is_not_kept(client: httpx.AsyncClient) -> None:
    for answer in (await get(client, width=63), await get(client, {"Accept": "text/html"})):
        assert answer.headers["cache-control"] == "no-store"
        assert "etag" not in answer.headers


# Who may ask.

FOREIGN_PAGES = [
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "image"},
    {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Dest": "image"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "iframe", "Sec-Fetch-User": "?1"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "document"},
    {"Origin": "https://evil.example"},
    {"Referer": "https://evil.example/page"},
    {"Referer": "HTTP://SERVICE:8000/"},
]


@pytest.mark.parametrize("headers", FOREIGN_PAGES)
async def test_a_page_of_another_site_may_show_pictures_only_where_the_operator_allows_it(
    headers: dict[str, str],
) -> None:
    async with running(create_app(Settings(model="fake"))) as client:
        assert_is_problem(await get(client, headers), 403, "origin_not_allowed")
        assert (await get(client)).headers["cross-origin-resource-policy"] == "same-origin"
    async with running(create_app(Settings(model="fake", url_embedding=True))) as client:
        shown = await get(client, headers)
        assert (shown.status_code, shown.headers["cross-origin-resource-policy"]) == (200, "cross-origin")
        assert (await post(client, {"Sec-Fetch-Site": "cross-site"})).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Dest": "image", "Referer": "https://proxied.example/"},
        {"Sec-Fetch-Site": "none", "Sec-Fetch-Dest": "document", "Sec-Fetch-User": "?1"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "document", "Sec-Fetch-User": "?1"},
        {"Referer": "http://service/"},
        {"Referer": "http://service/page", "Host": "SERVICE:80"},
        {"Referer": "android-app://com.example/"},
    ],
)
async def test_own_pages_links_and_clients_that_are_no_browsers_get_the_picture(
    client: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    assert (await get(client, headers)).status_code == 200


async def test_pages_of_a_named_origin_may_show_and_read_pictures() -> None:
    async with running(create_app(Settings(model="fake", cors_origins="https://app.example"))) as client:
        page = {"Origin": "https://app.example", "Sec-Fetch-Site": "cross-site"}
        read = await get(client, page)
        assert read.headers["access-control-allow-origin"] == "https://app.example"
        assert "ETag" in read.headers["access-control-expose-headers"]
        assert {"Accept", "Origin"} == set(read.headers["vary"].split(", "))
        assert (await get(client, {"Referer": "https://app.example/page"})).status_code == 200


async def test_pictures_by_url_may_have_rates_of_their_own() -> None:
    settings = Settings(model="fake", rate_limit="1/hour", url_rate_limit="2/hour")
    async with running(create_app(settings)) as client:
        first = await get(client)
        assert first.status_code == 200
        assert (await get(client, {"If-None-Match": first.headers["etag"]})).status_code == 304
        assert (await client.head("/txt2img", params=WANTED)).status_code == 200
        assert (await get(client, seed=8)).status_code == 200
        problem = assert_is_problem(await get(client, seed=9), 429, "rate_limited")
        assert "2 requests per 3600 s" in problem["detail"]
        assert (await post(client)).status_code == 200
        assert_is_problem(await post(client), 429, "rate_limited")


async def test_without_rates_of_their_own_pictures_by_url_count_with_the_others() -> None:
    async with running(create_app(Settings(model="fake", rate_limit="1/hour"))) as client:
        assert (await get(client)).status_code == 200
        assert_is_problem(await post(client), 429, "rate_limited")
