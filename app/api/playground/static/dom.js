/** The page's elements, by id. */

/**
 * @typedef {object} Elements Those that are more than an HTMLElement.
 * @property {HTMLTextAreaElement} prompt
 * @property {HTMLFormElement} panel
 * @property {HTMLButtonElement} undo
 * @property {HTMLButtonElement} redo
 * @property {HTMLButtonElement} save-all
 * @property {HTMLButtonElement} forget
 * @property {HTMLAnchorElement} download
 * @property {HTMLCanvasElement} drawing
 * @property {HTMLCanvasElement} mask
 * @property {HTMLVideoElement} video
 * @property {HTMLDetailsElement} variations
 *
 * @typedef {"seed" | "key" | "file" | "strength" | "colour" | "brush-size" | "opacity" | "grow" | "feather" | "keep" |
 *   "compare-at" | "use-shortcuts"} InputId
 * @typedef {"glow" | "thumbnail" | "before" | "after" | "full-picture"} ImageId
 * @typedef {"size" | "device"} SelectId
 * @typedef {"code" | "shortcuts" | "full"} DialogId
 */

/**
 * @template {string} Id
 * @typedef {Id extends keyof Elements ? Elements[Id] : Id extends InputId ? HTMLInputElement : Id extends ImageId
 *   ? HTMLImageElement : Id extends SelectId ? HTMLSelectElement : Id extends DialogId ? HTMLDialogElement
 *   : HTMLElement
 * } ElementOf
 */

/** @template {string} Id @param {Id} id @returns {ElementOf<Id>} */
export const $ = (id) => /** @type {ElementOf<Id>} */ (document.getElementById(id));

/** All elements of a selector. @param {string} selector @returns {HTMLElement[]} */
export const all = (selector) => [...document.querySelectorAll(/** @type {"a"} */ (selector))];

/** Make a button that calls `act`. @param {string | Node} content @param {() => void} act */
export function buttonFor(content, act) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(content);
  button.addEventListener("click", act);
  return button;
}

/**
 * Keep a choice for the next visit, in a cookie: so the service writes the page as it was chosen.
 *
 * @param {string} name @param {string} value
 */
export function remember(name, value) {
  document.cookie = `turbo-${name}=${value}; max-age=31536000; samesite=strict; path=${location.pathname}`;
}

/** Save a file, as a link does. @param {Blob} file @param {string} name */
export function save(file, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(file);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** @type {ReturnType<typeof setTimeout> | undefined} */
let hiding;

/**
 * Say something for some seconds, with something that can be done about it. Null hides it.
 *
 * @param {string | null} text @param {{label: string, act: () => void} | null} [action]
 */
export function toast(text, action = null) {
  clearTimeout(hiding);
  $("toast").hidden = text === null;
  $("toast-text").textContent = text;
  const button = $("toast-act");
  button.hidden = action === null;
  if (action) button.textContent = action.label;
  button.onclick = () => {
    toast(null);
    action?.act();
  };
  if (text !== null) hiding = setTimeout(() => toast(null), action ? 12_000 : 5000);
}
