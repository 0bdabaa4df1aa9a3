"""The store, which keeps results in the browser's database."""

from typing import Any

import pytest
from playwright.sync_api import Page

from tests.playground.conftest import OpenPlayground

PRELUDE = """
    const { Store } = await import("/playground/store.js");
    const opened = async (options = {}) => {
        const store = new Store({ most: 100, mostBytes: 1e6, ...options });
        await store.open();
        return store;
    };
    const entry = (at, more = {}) => ({
        id: `id ${at}`, at, favourite: false, bytes: 10, state: { prompt: `prompt ${at}`, steps: 2 },
        facts: { size: "512x512" }, blobs: [new Blob([`picture ${at}`], { type: "image/png" })], start: null,
        startName: "", ...more,
    });
    const times = async (store) => (await store.all()).map(({ at }) => at);
    const readable = async (kept) => ({
        ...kept, blobs: await Promise.all(kept.blobs.map((blob) => blob.text())),
        types: kept.blobs.map(({ type }) => type), start: kept.start && await kept.start.text(),
    });
    const databases = async () => (await indexedDB.databases()).map(({ name }) => name);
"""


def run(page: Page, script: str) -> Any:
    """Run a script in a page, with the functions of the prelude."""
    return page.evaluate(f"async () => {{ {PRELUDE} {script} }}")


def test_what_was_put_is_there_after_a_reload(open_playground: OpenPlayground) -> None:
    page = open_playground().page
    run(
        page,
        """
        const store = await opened();
        await store.put(entry(1, { favourite: true, start: new Blob(["start"]), startName: "start.png" }));
        await store.put(entry(2, { blobs: [new Blob(["one"]), new Blob(["two"])] }));
        """,
    )
    page.reload()
    two, one = run(page, "return Promise.all((await (await opened()).all()).map(readable))")
    assert one == {
        "id": "id 1",
        "at": 1,
        "favourite": True,
        "bytes": 10,
        "state": {"prompt": "prompt 1", "steps": 2},
        "facts": {"size": "512x512"},
        "blobs": ["picture 1"],
        "types": ["image/png"],
        "start": "start",
        "startName": "start.png",
    }
    assert (two["id"], two["blobs"], two["start"]) == ("id 2", ["one", "two"], None)


def test_entries_come_newest_first_and_each_is_counted_replaced_and_removed(open_playground: OpenPlayground) -> None:
    page = open_playground().page
    assert run(
        page,
        """
        const store = await opened();
        for (const at of [2, 10, 1]) await store.put(entry(at));
        await store.put(entry(2, { bytes: 15, favourite: true }));
        const before = [await times(store), await store.size()];
        await store.remove("id 10");
        await store.remove("no such");
        return [...before, await times(store), await store.size(), (await store.all())[0].favourite];
        """,
    ) == [[10, 2, 1], {"count": 3, "bytes": 35}, [2, 1], {"count": 2, "bytes": 25}, True]


@pytest.mark.parametrize("limit", ["most: 3", "mostBytes: 39"])
def test_the_oldest_entries_that_are_no_favourites_make_room(open_playground: OpenPlayground, limit: str) -> None:
    page = open_playground().page
    assert run(
        page,
        f"""
        const store = await opened({{ {limit} }});
        const kept = [];
        await store.put(entry(1, {{ favourite: true }}));
        for (const at of [5, 3, 4, 2]) {{
            kept.push(await store.put(entry(at)), await times(store));
        }}
        return kept;
        """,
    ) == [True, [5, 1], True, [5, 3, 1], True, [5, 4, 1], True, [5, 2, 1]]


def test_several_entries_make_room_for_a_large_one_and_no_more_than_needed(open_playground: OpenPlayground) -> None:
    page = open_playground().page
    assert run(
        page,
        """
        const store = await opened({ mostBytes: 50 });
        for (const at of [1, 2, 3, 4, 5]) await store.put(entry(at));
        return [await store.put(entry(6, { bytes: 30 })), await times(store), await store.size()];
        """,
    ) == [True, [6, 5, 4], {"count": 3, "bytes": 50}]


def test_an_entry_for_which_there_is_no_room_is_refused_and_nothing_goes(open_playground: OpenPlayground) -> None:
    page = open_playground().page
    assert run(
        page,
        """
        const store = await opened({ most: 3, mostBytes: 100 });
        const said = [];
        await store.put(entry(1));
        said.push(await store.put(entry(2, { bytes: 101 })), await times(store));
        await store.put(entry(3, { favourite: true }));
        await store.put(entry(4, { favourite: true }));
        said.push(await store.put(entry(5, { bytes: 81 })), await times(store));
        await store.put(entry(6, { favourite: true }));
        said.push(await store.put(entry(7)), await store.put(entry(8, { favourite: true })), await times(store));
        return said;
        """,
    ) == [False, [1], False, [4, 3, 1], False, False, [6, 4, 3]]


def test_an_entry_is_replaced_where_there_is_no_room_for_another(open_playground: OpenPlayground) -> None:
    page = open_playground().page
    assert run(
        page,
        """
        const store = await opened({ most: 2, mostBytes: 20 });
        await store.put(entry(1));
        await store.put(entry(2));
        const said = [await store.put(entry(1, { favourite: true })), await times(store)];
        await store.put(entry(2, { favourite: true }));
        said.push(await store.put(entry(1)), await store.put(entry(3)), await times(store));
        return said;
        """,
    ) == [True, [2, 1], True, True, [3, 2]]


def test_an_entry_that_cannot_be_kept_takes_no_other_entry_away(open_playground: OpenPlayground) -> None:
    page = open_playground().page
    assert run(
        page,
        """
        const store = await opened({ most: 2 });
        await store.put(entry(1));
        await store.put(entry(2));
        const isKept = await store.put(entry(3, { state: { act: () => {} } }));
        return [isKept, await times(store), await store.put(entry(4)), await times(store)];
        """,
    ) == [False, [2, 1], True, [4, 2]]


def test_forgetting_deletes_the_database_and_the_store_can_be_opened_again(open_playground: OpenPlayground) -> None:
    page = open_playground().page
    assert run(
        page,
        """
        const store = await opened();
        await store.put(entry(1));
        const before = (await databases()).length;
        await store.forget();
        const after = [await databases(), store.isOpen, await store.put(entry(2)), await store.all()];
        return [before, ...after, await store.open(), await store.all(), await store.put(entry(3)), await times(store)];
        """,
    ) == [1, [], False, False, [], True, [], True, [3]]


def test_a_store_that_is_not_open_forgets_what_an_earlier_visit_kept(open_playground: OpenPlayground) -> None:
    page = open_playground().page
    run(page, "await (await opened()).put(entry(1))")
    page.reload()
    forget = "await new Store({ most: 1, mostBytes: 1 }).forget(); return databases();"
    assert run(page, forget) == []


def test_two_tabs_share_the_entries_and_their_limits(open_playground: OpenPlayground) -> None:
    visit = open_playground()
    one, other = visit.page, visit.page.context.new_page()
    other.goto(visit.url)
    for page in (one, other):
        run(page, "window.store = await opened({ most: 5 })")
    for page, first in ((one, 100), (other, 200)):
        page.evaluate(
            f"""() => {{ window.putting = (async () => {{
                {PRELUDE}
                return Promise.all([...Array(20).keys()].map((at) => window.store.put(entry({first} + at))));
            }})(); }}"""
        )
    for page in (one, other):
        assert page.evaluate("window.putting") == [True] * 20
    kept = [run(page, "return times(window.store)") for page in (one, other)]
    assert kept[0] == kept[1]
    assert len(kept[0]) == 5


def test_a_tab_closes_its_store_when_another_forgets_everything(open_playground: OpenPlayground) -> None:
    visit = open_playground()
    one, other = visit.page, visit.page.context.new_page()
    other.goto(visit.url)
    run(one, "window.store = await opened(); await window.store.put(entry(1))")
    assert run(other, "await (await opened()).forget(); return databases();") == []
    said = "return [window.store.isOpen, await window.store.put(entry(2)), await window.store.all(), await databases()]"
    assert run(one, said) == [False, False, [], []]
    assert run(one, "await window.store.open(); await window.store.put(entry(3)); return times(window.store)") == [3]


def test_what_a_tab_keeps_open_is_forgotten_at_once_and_deleted_when_it_closes(open_playground: OpenPlayground) -> None:
    page = open_playground().page
    assert run(
        page,
        """
        const store = await opened();
        await store.put(entry(1));
        const [name] = await databases();
        const held = await new Promise((resolve) => {
            indexedDB.open(name).onsuccess = (event) => resolve(event.target.result);
        });
        const late = new Promise((resolve) => { setTimeout(() => resolve("late"), 10_000); });
        const forgot = await Promise.race([new Store({ most: 1, mostBytes: 1 }).forget(), late]);
        const [results] = held.objectStoreNames;
        const left = await new Promise((resolve) => {
            held.transaction(results).objectStore(results).count().onsuccess = (event) => resolve(event.target.result);
        });
        held.close();
        return [forgot !== "late", left, await store.open(), await store.all()];
        """,
    ) == [True, 0, True, []]


def test_a_store_opened_twice_has_one_connection(open_playground: OpenPlayground) -> None:
    page = open_playground().page
    assert run(
        page,
        """
        const store = new Store({ most: 1, mostBytes: 100 });
        const both = await Promise.all([store.open(), store.open()]);
        await store.put(entry(1));
        await store.forget();
        return [both, await databases()];
        """,
    ) == [[True, True], []]


@pytest.mark.parametrize(
    "factory",
    [
        "undefined",
        "{ open() { throw new DOMException('no', 'SecurityError') } }",
        "{ open() { const request = {}; setTimeout(() => request.onerror()); return request } }",
    ],
    ids=["missing", "forbidden", "failing"],
)
def test_without_a_database_the_store_stays_closed_and_does_nothing(
    open_playground: OpenPlayground, factory: str
) -> None:
    page = open_playground().page
    assert run(
        page,
        f"""
        Object.defineProperty(window, "indexedDB", {{ value: {factory} }});
        const store = new Store({{ most: 1, mostBytes: 100 }});
        const said = [await store.open(), store.isOpen, await store.put(entry(1)), await store.all()];
        await store.remove("id 1");
        await store.forget();
        return [...said, await store.size(), await store.open()];
        """,
    ) == [False, False, False, [], {"count": 0, "bytes": 0}, False]


def test_a_browser_that_forbids_even_to_look_for_a_database_has_none(open_playground: OpenPlayground) -> None:
    page = open_playground().page
    assert (
        run(
            page,
            """
            Object.defineProperty(window, "indexedDB", { get() { throw new DOMException("no", "SecurityError") } });
            const store = new Store({ most: 1, mostBytes: 100 });
            await store.forget();
            return store.open();
            """,
        )
        is False
    )


def test_a_full_disk_refuses_an_entry_and_keeps_the_others(open_playground: OpenPlayground) -> None:
    page = open_playground().page
    quota = {"origin": page.evaluate("location.origin"), "quotaSize": 100_000}
    page.context.new_cdp_session(page).send("Storage.overrideQuotaForOrigin", quota)
    assert run(
        page,
        """
        const store = await opened({ most: 2 });
        const isKept = [await store.put(entry(1)), await store.put(entry(2))];
        isKept.push(await store.put(entry(3, { blobs: [new Blob([new Uint8Array(1e6)])] })));
        return [isKept, await times(store)];
        """,
    ) == [[True, True, False], [2, 1]]
