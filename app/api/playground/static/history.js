/** The strip of the last results, in memory, and in the browser's database if the user wants that. */

import { buttonFor } from "./dom.js";
import { part } from "./parts.js";
import { decoded, release, requestOf } from "./service.js";
import { t } from "./strings.js";

/** Results that are no favourites, in the strip. */
const MOST = 30;

/** In the strip and in the browser's database, if results are kept there. */
const MOST_STORED = 100;
export const MOST_STORED_BYTES = 100e6;

/** @typedef {import("./service.js").Result} Result */
/** @typedef {{id: string, at: number, result: Result, isFavourite: boolean, item: HTMLElement}} Entry */

/** Whether two states make the same pictures. @param {Result} one @param {Result} other */
function isEqual({ state: one }, { state: other }) {
  if (one.start?.file !== other.start?.file || one.mask?.file !== other.mask?.file) return false;
  const [fields, others] = [one, other].map((state) => JSON.stringify(requestOf(state).fields));
  return fields === others;
}

export class History {
  #list;
  #show;
  #changed;
  /** Newest first, as in the list. @type {Entry[]} */
  #entries = [];
  /** Null until the user wants it. @type {import("./store.js").Store | null} */
  #store = null;
  #isStoring = false;

  /**
   * @param {HTMLElement} list The element that contains the results.
   * @param {(result: Result) => void} show Shows a result again.
   * @param {() => void} changed
   */
  constructor(list, show, changed) {
    this.#list = list;
    this.#show = show;
    this.#changed = changed;
  }

  /** @param {Result} result */
  has(result) {
    return this.#find(result) !== undefined;
  }

  get length() {
    return this.#entries.length;
  }

  get hasFavourites() {
    return this.#entries.some(({ isFavourite }) => isFavourite);
  }

  get results() {
    return this.#entries.map(({ result }) => result);
  }

  /** @param {Result} result */
  isFavourite(result) {
    return this.#find(result)?.isFavourite ?? false;
  }

  /** @param {Result} result */
  #find(result) {
    return this.#entries.find((entry) => entry.result === result);
  }

  /** Keep the result that is on the stage, instead of an equal one. @param {Result} result */
  add(result) {
    const equal = this.#entries.find((entry) => isEqual(entry.result, result));
    const entry = this.#insert(result, Date.now(), equal?.isFavourite ?? false);
    if (equal) this.#drop(equal);
    const most = this.#isStoring ? MOST_STORED : MOST;
    const old = this.#entries.filter((one) => !one.isFavourite).slice(most);
    for (const one of old) this.#drop(one);
    this.#save(entry);
    this.#changed();
  }

  /** @param {Result} result @param {number} at @param {boolean} isFavourite @param {string} [id] */
  #insert(result, at, isFavourite, id = crypto.getRandomValues(new Uint32Array(2)).join("-")) {
    const thumbnail = new Image();
    thumbnail.src = result.pictures[0].url;
    thumbnail.alt = "";
    const button = buttonFor(thumbnail, () => this.#show(result));
    if (result.pictures.length > 1) button.dataset.number = String(result.pictures.length);
    button.classList.toggle("favourite", isFavourite);
    const item = document.createElement("li");
    item.append(button);
    const entry = { id, at, result, isFavourite, item };
    const place = this.#entries.findIndex((other) => other.at <= at);
    this.#entries.splice(place < 0 ? this.#entries.length : place, 0, entry);
    this.#list.insertBefore(item, this.#list.children[place] ?? null);
    return entry;
  }

  /** @param {Entry} entry */
  #drop(entry) {
    this.#entries.splice(this.#entries.indexOf(entry), 1);
    entry.item.remove();
    release(entry.result);
    this.#store?.remove(entry.id);
  }

  /** Mark a result, or not any more. It joins the strip if it is not there. @param {Result} result */
  toggleFavourite(result) {
    if (!this.has(result)) this.add(result);
    const entry = /** @type {Entry} */ (this.#find(result));
    entry.isFavourite = !entry.isFavourite;
    entry.item.firstElementChild?.classList.toggle("favourite", entry.isFavourite);
    this.#save(entry);
  }

  /** Describe each result in the current language, and mark the one on the stage. @param {Result | null} shown */
  describe(shown) {
    for (const { result, isFavourite, item } of this.#entries) {
      const button = /** @type {HTMLButtonElement} */ (item.firstElementChild);
      const { prompt } = result.state;
      const text = t("history_item", { prompt, seed: result.pictures[0].seed });
      button.ariaLabel = isFavourite ? `${text}, ${t("favourite")}` : text;
      button.title = prompt;
      if (result === shown) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
    }
  }

  // The browser's database.

  /** Called if a result does not fit into the database. */
  onFull = () => {};

  get isStoring() {
    return this.#isStoring;
  }

  /** What the database has: {count, bytes}. */
  async stored() {
    return this.#store?.size() ?? { count: 0, bytes: 0 };
  }

  /** Keep results in the database from now on, and show those that it has. Returns whether the browser allows it. */
  async keep() {
    const store = await this.#open();
    if (!store || !this.#isStoring) return false;
    const here = new Set(this.#entries.map(({ id }) => id));
    for (const entry of [...this.#entries]) await this.#save(entry);
    for (const stored of await store.all()) {
      if (here.has(stored.id)) continue;
      const result = await restored(stored).catch(() => null); // a browser may have lost the file
      if (result) this.#insert(result, stored.at, stored.favourite, stored.id);
    }
    this.#changed();
    return true;
  }

  async #open() {
    const loaded = await part(() => import("./store.js"));
    if (!loaded) return null;
    this.#store ??= new loaded.Store({ most: MOST_STORED, mostBytes: MOST_STORED_BYTES });
    this.#isStoring = await this.#store.open();
    return this.#store;
  }

  /** Keep no more results in the database, and delete those that it has. */
  async keepNot() {
    this.#isStoring = false;
    await this.#store?.forget();
    this.#changed();
  }

  /** Forget all results, here and in the database. @param {Result | null} shown Its pictures stay on the stage. */
  async forget(shown) {
    for (const { item, result } of this.#entries.splice(0)) {
      item.remove();
      if (result !== shown) release(result);
    }
    await this.#store?.forget();
    if (this.#isStoring) await this.#open();
    this.#changed();
  }

  /** @param {Entry} entry */
  async #save({ id, at, result, isFavourite }) {
    if (!this.#isStoring || !this.#store) return;
    if (!this.#store.isOpen) await this.#store.open(); // another tab has forgotten all, and this one goes on
    const { state, pictures, startedAt: _, ...facts } = result;
    const { start, mask, isLive: _isLive, ...plain } = state;
    // Frames of a camera are never stored.
    const isCamera = start?.isPrivate === true;
    const blobs = pictures.map(({ blob }) => blob);
    if (mask?.file && !isCamera) blobs.push(mask.file);
    const startFile = (!isCamera && start?.file) || null;
    const bytes = [...blobs, startFile].reduce((sum, blob) => sum + (blob?.size ?? 0), 0);
    const seeds = pictures.map(({ seed }) => seed);
    const size = start && { width: start.width, height: start.height };
    const entry = {
      id, at, favourite: isFavourite, bytes, blobs, start: startFile, startName: start?.name ?? "",
      state: { ...plain, ...(isCamera && { source: "text" }) }, facts: { ...facts, seeds, startSize: size },
    };
    if (!(await this.#store.put(entry))) this.onFull();
    this.#changed();
  }
}

/** @param {import("./store.js").Entry} entry @returns {Promise<Result>} */
async function restored(entry) {
  const { blobs, start, startName } = entry;
  const state = /** @type {import("./service.js").State} */ (entry.state);
  const { seeds, startSize, ...facts } = /** @type {any} */ (entry.facts);
  const files = seeds.map((/** @type {number} */ seed, /** @type {number} */ index) => ({ blob: blobs[index], seed }));
  const mask = blobs[seeds.length];
  return /** @type {Result} */ ({
    ...facts,
    startedAt: 0,
    pictures: await Promise.all(files.map((/** @type {any} */ file) => decoded(file, state.prompt))),
    state: {
      ...state,
      start: start && { file: start, name: startName, ...startSize },
      mask: start && mask ? { file: mask, name: "mask.png", ...startSize } : null,
    },
  });
}
