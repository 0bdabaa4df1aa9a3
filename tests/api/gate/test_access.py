import json
import time
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from app.api.gate.api_keys import ApiKeys
from app.errors import KeysFileError
from app.main import create_app
from app.settings import Settings
from tests.api.test_errors import assert_is_problem
from tests.conftest import StartServer, png, running, until

ALICE, BOB = "alice-0123456789abcdef", "bob-0123456789abcdef"


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    file = tmp_path / "keys"
    file.write_text(f"# who may ask\n\nalice: {ALICE}\nbob:{BOB}\n")
    return file


@pytest.fixture
def app(keys_file: Path) -> FastAPI:
    return create_app(Settings(model="fake", api_keys_file=keys_file, metrics="key"))


def write(file: Path, text: str) -> None:
    """Write it as a mounted secret is written: by another file that takes its place; without text it goes away."""
    other = file.with_suffix(".new")
    other.write_text(text)
    other.replace(file)
    if not text:
        file.unlink()


async def ask(client: httpx.AsyncClient, **headers: str) -> httpx.Response:
    return await client.post("/txt2img", json={"prompt": "a"}, headers=headers)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


# API keys.


async def test_each_key_lets_in_as_bearer_token_and_as_x_api_key(app: FastAPI) -> None:
    async with running(app) as client:
        for headers in (bearer(ALICE), bearer(BOB), {"X-API-Key": ALICE}, {"Authorization": f"bearer {ALICE}"}):
            assert (await ask(client, **headers)).status_code == 200
        form = {"data": {"prompt": "a"}, "files": {"image": png()}}
        assert (await client.post("/img2img", headers=bearer(BOB), **form)).status_code == 200  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearer(""),
        bearer(ALICE[:-1]),
        bearer(ALICE + "x"),
        bearer("alice"),
        bearer(f"alice: {ALICE}"),
        {"Authorization": f"Basic {ALICE}"},
        {"X-API-Key": "x" * 16},
        {"Authorization": f"Bearer {ALICE.upper()}"},
    ],
)
@pytest.mark.parametrize("path", ["/txt2img", "/img2img"])
async def test_without_a_known_key_it_is_401_before_anything_is_read(
    app: FastAPI, path: str, headers: dict[str, str]
) -> None:
    async with running(app) as client:
        refused = await client.post(path, content="no body that the route takes", headers=headers)
        assert_is_problem(refused, 401, "invalid_api_key")
        assert refused.headers["www-authenticate"] == "Bearer"
        assert "bob" not in refused.text


async def test_keys_are_compared_whole_whatever_bytes_they_have(keys_file: Path) -> None:
    keys = ApiKeys(keys_file)
    assert keys.name_of(ALICE) == "alice"
    assert keys.name_of(BOB) == "bob"
    for wrong in ("", "\0", "ä" * 20, "\udcff", ALICE + "\0", "x" * 100_000):
        assert keys.name_of(wrong) is None


def test_an_editor_s_mark_and_line_ends_are_no_part_of_a_key(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_bytes(f"alice: {ALICE}\r\nbob: {BOB}\r\n".encode("utf-8-sig"))
    assert ApiKeys(file).name_of(ALICE) == "alice"


async def test_health_is_open_and_metrics_are_as_the_setting_says(app: FastAPI) -> None:
    async with running(app) as client:
        assert (await client.get("/healthz/live")).status_code == 200
        assert (await client.get("/healthz/ready")).status_code == 200
        assert_is_problem(await client.get("/metrics"), 401, "invalid_api_key")
        assert (await client.get("/metrics", headers=bearer(ALICE))).status_code == 200
    async with running(create_app(Settings(model="fake", metrics="off"))) as client:
        assert_is_problem(await client.get("/metrics"), 404, "not_found")


async def test_a_file_that_changes_changes_the_keys_without_a_restart(app: FastAPI, keys_file: Path) -> None:
    async with running(app) as client:
        assert (await ask(client, **bearer(BOB))).status_code == 200
        write(keys_file, f"alice: {ALICE}\ncarol: carol-0123456789abcdef\n")
        access = app.state.context.access
        await until(lambda: access.keys.name_of("carol-0123456789abcdef"))
        assert (await ask(client, **bearer(BOB))).status_code == 401
        assert (await ask(client, **bearer(ALICE))).status_code == 200


@pytest.mark.parametrize("text", ["", "carol: short", "carol 0123456789abcdef0123"])
async def test_a_file_that_goes_wrong_or_away_leaves_the_keys_as_they_were_and_is_complained_of_once(
    app: FastAPI, keys_file: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(app) as client:
        write(keys_file, text)
        await until(lambda: "The previous keys stay valid." in caplog.text)
        assert (await ask(client, **bearer(ALICE))).status_code == 200
        assert caplog.text.count("The previous keys stay valid.") == 1
        assert "0123456789abcdef0123" not in caplog.text


async def test_a_file_that_is_wrong_in_another_way_is_logged_again_and_so_is_its_repair(
    app: FastAPI, keys_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with running(app):
        write(keys_file, "carol")
        await until(lambda: "Line 1 of the API keys is not" in caplog.text)
        write(keys_file, "# nobody")
        await until(lambda: "contains no key. The previous keys stay valid." in caplog.text)
        write(keys_file, f"alice: {ALICE}\nbob: {BOB}\n")
        await until(lambda: "API keys: alice, bob" in caplog.text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "contains no key"),
        ("# nobody\n", "contains no key"),
        ("alice: tooshort", "Line 1"),
        (f"alice: {ALICE}\n{BOB}\n", "Line 2"),
        (f"al ice: {ALICE}", "Line 1"),
    ],
)
def test_a_file_without_usable_keys_is_refused_without_repeating_a_key(tmp_path: Path, text: str, reason: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(KeysFileError, match=reason) as caught:
        ApiKeys(file)
    assert BOB not in str(caught.value)


def test_a_start_without_the_keys_it_is_told_to_take_ends_with_one_line(start_server: StartServer) -> None:
    server = start_server(model="fake", api_keys_file="/nowhere/keys", log_format="json")
    assert server.wait() == 3
    assert "cannot start: The API keys cannot be read" in server.log
    assert "Traceback" not in server.log


def test_the_log_names_the_key_and_never_holds_it(start_server: StartServer, keys_file: Path) -> None:
    server = start_server(model="fake", api_keys_file=keys_file, log_format="json", log_level="debug")
    url = server.wait_until_started()
    httpx.post(f"{url}/txt2img", json={"prompt": "a"}, headers={**bearer(ALICE), "X-Request-ID": "id-1"})
    httpx.post(f"{url}/txt2img", json={"prompt": "a"}, headers={"X-API-Key": "x" + BOB})
    server.wait_for_log('"status": 401')
    (line,) = (entry for entry in map(json.loads, server.log.splitlines()) if entry.get("request_id") == "id-1")
    assert line["client"] == "alice"
    assert ALICE not in server.log
    assert BOB not in server.log


async def test_the_document_says_that_a_key_is_needed_where_it_is(app: FastAPI) -> None:
    async with running(app) as client:
        document = (await client.get("/openapi.json")).json()
    assert set(document["components"]["securitySchemes"]) == {"basic", "bearer", "header"}
    open_to_all = {"GET /", "GET /healthz/live", "GET /healthz/ready"}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert ("security" in operation) != (f"{method.upper()} {path}" in open_to_all)


# Rates.


async def test_a_client_that_asks_too_often_gets_429_and_others_are_served(keys_file: Path) -> None:
    settings = Settings(model="fake", api_keys_file=keys_file, rate_limit="2/second;3/hour")
    async with running(create_app(settings)) as client:
        assert [(await ask(client, **bearer(ALICE))).status_code for _ in range(2)] == [200, 200]
        refused = await ask(client, **bearer(ALICE))
        assert_is_problem(refused, 429, "rate_limited")
        assert "2 requests per 1 s" in refused.json()["detail"]
        assert refused.headers["retry-after"] == "1"
        assert (await ask(client, **bearer(BOB))).status_code == 200


async def test_after_retry_after_the_next_request_is_taken() -> None:
    async with running(create_app(Settings(model="fake", rate_limit="1/second"))) as client:
        assert (await ask(client)).status_code == 200
        refused = await ask(client)
        assert refused.status_code == 429
        time.sleep(int(refused.headers["retry-after"]))  # noqa: ASYNC251 - nobody else is here
        assert (await ask(client)).status_code == 200


async def test_health_and_metrics_are_not_counted() -> None:
    async with running(create_app(Settings(model="fake", rate_limit="1/hour"))) as client:
        for path in ("/healthz/ready", "/metrics") * 3:
            assert (await client.get(path)).status_code == 200
        assert (await ask(client)).status_code == 200
        assert (await ask(client)).status_code == 429


@pytest.mark.parametrize(
    ("first", "second", "one_client"),
    [
        ("203.0.113.1", "203.0.113.2", False),
        ("203.0.113.1", "::ffff:203.0.113.1", True),
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
    ],
)
async def test_what_is_one_client_s_of_an_address_has_one_limit(first: str, second: str, one_client: bool) -> None:
    app = create_app(Settings(model="fake", rate_limit="1/hour"))
    async with app.router.lifespan_context(app):
        statuses = []
        for address in (first, second):
            transport = httpx.ASGITransport(app=app, client=(address, 1))
            async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
                statuses.append((await ask(client)).status_code)
    assert statuses == [200, 429 if one_client else 200]


# Pages of other sites.


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"},
        {"Origin": "http://service:3000", "Sec-Fetch-Site": "same-site"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://service:8000"},
        {"Origin": "https://service", "Host": "service:80"},
        {"Origin": "ftp://service"},
        {"Origin": "service"},
        {"Origin": "http://"},
        {"Origin": "http://", "Host": ":80"},
    ],
)
async def test_a_page_of_another_site_may_not_ask(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    """A form of any page can be sent here without asking first, also to a service on the visitor's own machine."""
    for refused in (
        await ask(client, **headers),
        await client.post("/img2img", data={"prompt": "a"}, files={"image": png()}, headers=headers),
    ):
        assert_is_problem(refused, 403, "origin_not_allowed")
        assert "access-control-allow-origin" not in refused.headers


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "http://service"},
        {"Origin": "http://service", "Host": "SERVICE:80"},
        {"Origin": "https://service", "Host": "service:443"},
        {"Origin": "http://service:8000", "Host": "Service:8000"},
        {"Origin": "https://seen-through-a-proxy.example", "Sec-Fetch-Site": "same-origin"},
    ],
)
async def test_the_service_s_own_pages_and_clients_that_are_no_browsers_may_ask(
    client: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    assert (await ask(client, **headers)).status_code == 200


async def test_pages_of_an_origin_that_is_named_may_ask_and_read_the_headers(keys_file: Path) -> None:
    origin = {"Origin": "https://app.example", "Sec-Fetch-Site": "cross-site"}
    settings = Settings(model="fake", cors_origins="https://app.example", api_keys_file=keys_file)
    async with running(create_app(settings)) as client:
        asked_first = await client.options(
            "/txt2img",
            headers={
                **origin,
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "authorization, content-type, x-stainless-lang",
            },
        )
        assert asked_first.status_code == 200
        answer = await ask(client, **origin, **bearer(ALICE))
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        assert "X-Seed" in answer.headers["access-control-expose-headers"]
        refused = await ask(client, **origin)
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, "https://app.example")
        assert (await ask(client, **{**origin, "Origin": "https://evil.example"})).status_code == 403


@pytest.mark.parametrize("named", ["HTTPS://App.Example", "https://app.example:443", "https://app.example/"])
async def test_origins_are_compared_as_browsers_write_them(named: str) -> None:
    async with running(create_app(Settings(model="fake", cors_origins=f"http://localhost:3000,{named}"))) as client:
        headers = {"Origin": "https://app.example", "Sec-Fetch-Site": "cross-site"}
        answer = await ask(client, **headers)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "https://app.example")
        asked_first = await client.options("/txt2img", headers={**headers, "Access-Control-Request-Method": "POST"})
        assert asked_first.status_code == 200


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}, 403, "origin_not_allowed"),
        ({"Origin": "https://app.example", "Access-Control-Request-Method": "DELETE"}, 405, "method_not_allowed"),
        (
            {
                "Origin": "https://app.example",
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Private-Network": "true",
            },
            403,
            "origin_not_allowed",
        ),
    ],
)
async def test_a_preflight_that_is_refused_has_the_one_error_body(
    headers: dict[str, str], status: int, code: str
) -> None:
    async with running(create_app(Settings(model="fake", cors_origins="https://app.example"))) as client:
        refused = await client.options("/txt2img", headers=headers)
        assert_is_problem(refused, status, code)
        assert ("access-control-allow-origin" in refused.headers) is (headers["Origin"] == "https://app.example")
        assert "Origin" in refused.headers["vary"]
        assert refused.headers.get("allow") == ("GET, HEAD, POST" if status == 405 else None)


async def test_a_preflight_for_head_is_allowed() -> None:
    async with running(create_app(Settings(model="fake", cors_origins="*"))) as client:
        asked = {"Origin": "https://app.example", "Access-Control-Request-Method": "HEAD"}
        answer = await client.options("/healthz/ready", headers=asked)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "*")


async def test_cors_is_off_unless_it_is_set(client: httpx.AsyncClient) -> None:
    answer = await client.get("/healthz/live", headers={"Origin": "https://app.example"})
    assert not [name for name in answer.headers if name.startswith("access-control")]
    asked = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    preflight = await client.options("/txt2img", headers=asked)
    assert (preflight.status_code, preflight.headers["allow"]) == (204, "GET, HEAD, OPTIONS, POST")
    assert not [name for name in preflight.headers if name.startswith("access-control")]


# Headers and documents.


async def test_every_answer_has_the_security_headers(client: httpx.AsyncClient) -> None:
    for response in (
        await ask(client),
        await client.get("/healthz/live"),
        await client.get("/nothing"),
        await client.post("/txt2img", json={}),
        await client.get("/docs"),
    ):
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["x-frame-options"] == "DENY"
        assert "frame-ancestors 'none'" in response.headers["content-security-policy"]
        assert response.headers["referrer-policy"] == "no-referrer"


def test_no_answer_names_the_server_s_software(start_server: StartServer) -> None:
    url = start_server(model="fake").wait_until_started()
    for response in (httpx.get(f"{url}/healthz/live"), httpx.get(f"{url}/nothing")):
        assert "server" not in response.headers


async def test_the_documentation_can_be_turned_off() -> None:
    async with running(create_app(Settings(model="fake", docs=False, playground=False))) as client:
        for path in ("/docs", "/openapi.json", "/docs/assets/swagger-ui.css"):
            assert (await client.get(path)).status_code == 404
        assert (await client.get("/")).status_code == 405  # POST is Hugging Face's
        assert (await ask(client)).status_code == 200
