/** Results that survive a reload, in the browser's own database. Several tabs may use it at once. */

/**
 * @typedef {object} Entry
 * @property {string} id
 * @property {number} at When it was made: milliseconds since 1970.
 * @property {boolean} favourite
 * @property {number} bytes What it counts for.
 * @property {object} state
 * @property {object} facts
 * @property {Blob[]} blobs
 * @property {Blob | null} start
 * @property {string} startName
 */

const DATABASE = "turbo-playground";
const RESULTS = "results";

/** A store. Without a database, as in some private windows, it stays closed; closed, it keeps and has nothing. */
export class Store {
  #most;
  #mostBytes;
  #factory;
  /** @type {IDBDatabase | null} */
  #database = null;
  /** @type {Promise<boolean> | null} */
  #opening = null;

  /** @param {{most: number, mostBytes: number, factory?: IDBFactory}} options How many entries and bytes it keeps. */
  constructor({ most, mostBytes, factory }) {
    this.#most = most;
    this.#mostBytes = mostBytes;
    // The browser's own is looked up when it is needed: where cookies are blocked, that throws.
    this.#factory = () => factory ?? indexedDB;
  }

  /** Whether it is open. It closes when another tab forgets everything, and when the user deletes the page's data. */
  get isOpen() {
    return this.#database !== null;
  }

  /** Open it. Returns whether that was possible. @returns {Promise<boolean>} */
  open() {
    this.#opening ??= this.#open();
    return this.#opening;
  }

  async #open() {
    try {
      const request = this.#factory().open(DATABASE, 1);
      request.onupgradeneeded = () => request.result.createObjectStore(RESULTS, { keyPath: "id" });
      const database = await answer(request);
      database.onversionchange = database.onclose = () => this.#close();
      this.#database = database;
      return true;
    } catch {
      this.#opening = null;
      return false;
    }
  }

  #close() {
    this.#database?.close();
    this.#database = this.#opening = null;
  }

  /**
   * Keep an entry, in the place of the one with its id. The oldest others go if there is no room; favourites never go.
   *
   * @param {Entry} entry
   * @returns {Promise<boolean>} Whether it is kept now. If not, nothing has changed.
   */
  async put(entry) {
    const isKept = await this.#within("readwrite", async (results) => {
      const others = (await entriesOf(results)).filter(({ id }) => id !== entry.id);
      const outgoing = this.#outgoing(others, entry);
      for (const { id } of outgoing ?? []) results.delete(id);
      if (outgoing) results.put(entry);
      return outgoing !== null;
    });
    return isKept ?? false;
  }

  /**
   * Return the entries that make room for a new one; null if there is no room without favourites.
   *
   * @param {Entry[]} others Newest first.
   * @param {Entry} entry
   */
  #outgoing(others, entry) {
    let { count, bytes } = sizeOf([...others, entry]);
    const outgoing = [];
    for (const other of others.filter(({ favourite }) => !favourite).reverse()) {
      if (count <= this.#most && bytes <= this.#mostBytes) break;
      outgoing.push(other);
      count -= 1;
      bytes -= other.bytes;
    }
    return count <= this.#most && bytes <= this.#mostBytes ? outgoing : null;
  }

  /** Return all entries, newest first. @returns {Promise<Entry[]>} */
  async all() {
    return (await this.#within("readonly", entriesOf)) ?? [];
  }

  /** @returns {Promise<{count: number, bytes: number}>} */
  async size() {
    return sizeOf(await this.all());
  }

  /** @param {string} id */
  async remove(id) {
    await this.#within("readwrite", (results) => answer(results.delete(id)));
  }

  /** Delete all entries and the database, and close it, in all tabs. */
  async forget() {
    // The entries go first: the database only goes when all tabs have closed it, and one may be suspended.
    if (await this.open()) await this.#within("readwrite", (results) => answer(results.clear()));
    this.#close();
    await new Promise((resolve) => {
      try {
        const request = this.#factory().deleteDatabase(DATABASE);
        request.onsuccess = request.onerror = request.onblocked = resolve;
      } catch (error) {
        resolve(error);
      }
    });
  }

  /**
   * Do something in one transaction: all of it, or nothing if anything fails. Returns undefined then.
   *
   * @template T
   * @param {IDBTransactionMode} mode
   * @param {(results: IDBObjectStore) => Promise<T>} work Waits for the database only, else the transaction ends.
   * @returns {Promise<T | undefined>}
   */
  async #within(mode, work) {
    let transaction;
    try {
      transaction = this.#database?.transaction(RESULTS, mode);
      if (!transaction) return undefined;
      const [done] = await Promise.all([work(transaction.objectStore(RESULTS)), end(transaction)]);
      return done;
    } catch {
      try {
        transaction?.abort();
      } catch {
        // It has ended already.
      }
      return undefined;
    }
  }
}

/**
 * Wait for a request's result.
 *
 * @template T
 * @param {IDBRequest<T>} request
 * @returns {Promise<T>}
 */
function answer(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/**
 * Wait until a transaction is on the disk.
 *
 * @param {IDBTransaction} transaction
 * @returns {Promise<void>}
 */
function end(transaction) {
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve();
    transaction.onabort = () => reject(transaction.error);
  });
}

/** Newest first. @param {IDBObjectStore} results @returns {Promise<Entry[]>} */
const entriesOf = async (results) => (await answer(results.getAll())).sort((one, other) => other.at - one.at);

/** @param {Entry[]} entries */
const sizeOf = (entries) => ({
  count: entries.length,
  bytes: entries.reduce((sum, { bytes }) => sum + bytes, 0),
});
