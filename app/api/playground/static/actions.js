/** Actions on the picture on the stage, and on the strip of results. */

import { $, all, save, toast } from "./dom.js";
import { MOST_STORED_BYTES } from "./history.js";
import { part } from "./parts.js";
import { MAX_SEED, fileName } from "./service.js";
import { t, written } from "./strings.js";

/** @typedef {import("./service.js").Upload} Upload */
/** @typedef {import("./service.js").Result} Result */

const VARIATIONS = 4;

/**
 * @param {{stage: import("./stage.js").Stage, sources: import("./sources.js").Sources, mayForget: () => boolean,
 *   draw: (state: Partial<import("./service.js").State>, options: {notches?: number, keepsCanvas?: boolean}) => void
 * }} page `draw` sets the form, moves the strength by a number of notches, and asks for the picture.
 */
export function connectActions({ stage, sources, mayForget, draw }) {
  /** The picture on the stage, to start from. @returns {Upload & {file: Blob}} */
  const chosen = () => {
    const { result, picture } = stage;
    if (!result || !picture) throw new Error("The stage is empty.");
    const { naturalWidth: width, naturalHeight: height } = picture.image;
    return { file: picture.blob, name: fileName(result.state.prompt, picture), width, height };
  };
  const act = (/** @type {string} */ id, /** @type {() => void} */ does) => $(id).addEventListener("click", does);

  act("reuse", () => {
    if (sources.source === "draw") sources.drawOn(chosen().file, { isAlone: true });
    else sources.startFrom(chosen());
  });
  act("draw-on", () => sources.drawOn(chosen().file, { isAlone: true }));
  act("retouch", () => sources.retouch(chosen()));

  // Variations.

  const nextSeed = () => ((stage.picture?.seed ?? 0) + 1) % (MAX_SEED - VARIATIONS);
  const vary = (/** @type {() => void} */ does) => () => {
    $("variations").open = false;
    does();
  };
  act("four-seeds", vary(() => {
    draw({ ...stage.result?.state, seed: nextSeed(), number: VARIATIONS }, { keepsCanvas: true });
  }));
  const change = (/** @type {number} */ notches) => vary(() => {
    const { prompt, size, feather } = /** @type {Result} */ (stage.result).state;
    const start = chosen();
    draw({ prompt, size, feather, source: "picture", start, seed: nextSeed(), number: VARIATIONS }, { notches });
  });
  act("closer", change(-1));
  act("further", change(1));
  document.addEventListener("pointerdown", ({ target }) => {
    if (!$("variations").contains(/** @type {Node} */ (target))) $("variations").open = false;
  });
  $("variations").addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    $("variations").open = false;
    $("variations").querySelector("summary")?.focus();
  });

  // Views, and copies.

  act("compare", () => stage.toggleCompare());
  $("compare-at").addEventListener("input", () => {
    $("compare-view").style.setProperty("--share", `${$("compare-at").value}%`);
  });
  act("show-full", () => {
    $("full-picture").src = stage.picture?.url ?? "";
    $("full-picture").alt = stage.picture?.image.alt ?? "";
    $("full").showModal();
  });
  $("full").addEventListener("click", () => $("full").close());
  act("copy-picture", async () => {
    try {
      await navigator.clipboard.write([new ClipboardItem({ "image/png": pngOf(chosen().file) })]);
      toast(t("picture_copied"));
    } catch {
      toast(t("picture_not_copied")); // without TLS, browsers give pages of other machines no clipboard
    }
  });
  act("favourite", () => {
    if (!stage.result) return;
    stage.history.toggleFavourite(stage.result);
    stage.describe();
  });
  connectCode(stage);
  connectHistory(stage, mayForget);
  for (const button of all("[data-close]")) {
    button.addEventListener("click", () => button.closest("dialog")?.close());
  }
}

/** The picture as PNG, the only type that every clipboard takes. @param {Blob} file @returns {Promise<Blob>} */
async function pngOf(file) {
  if (file.type === "image/png") return file;
  const bitmap = await createImageBitmap(file);
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  canvas.getContext("2d")?.drawImage(bitmap, 0, 0);
  return canvas.convertToBlob();
}

/** @param {import("./stage.js").Stage} stage */
function connectCode(stage) {
  const buttons = all("[data-code]");
  const show = async (/** @type {string} */ language) => {
    const code = await part(() => import("./code.js"));
    if (!code) return false;
    for (const button of buttons) button.ariaPressed = String(button.dataset.code === language);
    if (stage.result) $("code-text").textContent = code.codeFor(stage.result.state, language);
    $("copied").textContent = "";
    return true;
  };
  for (const button of buttons) button.addEventListener("click", () => show(button.dataset.code ?? "curl"));
  $("show-code").addEventListener("click", async () => {
    const language = buttons.find((button) => button.ariaPressed === "true")?.dataset.code ?? "curl";
    if (await show(language)) $("code").showModal();
  });
  $("copy").addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText($("code-text").textContent ?? "");
      $("copied").textContent = t("copied");
    } catch {
      getSelection()?.selectAllChildren($("code-text"));
      $("copied").textContent = t("copy_by_hand");
    }
  });
}

/** @param {import("./stage.js").Stage} stage @param {() => boolean} mayForget */
function connectHistory(stage, mayForget) {
  const { history } = stage;
  history.onFull = () => toast(t("store_full", { most: written(MOST_STORED_BYTES / 1e6) }));
  $("save-all").addEventListener("click", async () => {
    const files = history.results.flatMap(({ state, pictures }) =>
      pictures.map((picture) => ({ blob: picture.blob, name: fileName(state.prompt, picture) })),
    );
    const loaded = await part(() => import("./zip.js"));
    if (loaded) save(await loaded.zip(files), "pictures.zip");
  });
  $("forget").addEventListener("click", async () => {
    if (!mayForget()) return;
    await history.forget(stage.result);
    stage.describe();
    toast(t("forgotten"));
  });
}

/** Say what the strip and the browser's database have. @param {import("./history.js").History} history */
export async function describeHistory(history) {
  $("save-all").disabled = $("forget").disabled = history.length === 0;
  $("keep").checked = history.isStoring;
  $("kept").textContent = t("kept_not");
  if (!history.isStoring) return;
  const { count, bytes } = await history.stored();
  const [size, most] = [bytes / 1e6, MOST_STORED_BYTES / 1e6].map((one) => written(Math.ceil(one)));
  $("kept").textContent = t("kept", { count, size, most });
}
