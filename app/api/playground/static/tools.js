/** Canvas and camera with their tools: buttons and sliders, and what they change. Loaded when they are first used. */

import { Camera } from "./camera.js";
import { $, all, save } from "./dom.js";
import { Easel } from "./easel.js";

/** @typedef {{drawing: Easel, mask: Easel, camera: Camera}} Tools */

const TOOLS = all("[data-tool]");
const SWATCHES = all("[data-colour]");

/**
 * Make canvas, mask and camera, and connect the tools.
 *
 * @param {{changed: () => void, said: (what: string) => void, stopped: () => void, easel: () => Easel | null}} on
 *   Called when what is drawn or seen has changed, when the keyboard's pen has done something, and when the camera has
 *   ended; `easel` returns the canvas in use.
 * @returns {Tools}
 */
export function openTools(on) {
  const hooks = { changed: on.changed, said: on.said, picked: chooseColour };
  const drawing = new Easel($("drawing"), hooks);
  const mask = new Easel($("mask"), hooks, { isMask: true });
  const camera = new Camera($("video"), on.changed, on.stopped);
  const both = [drawing, mask];

  /** @param {string} colour */
  function chooseColour(colour) {
    drawing.colour = $("colour").value = colour;
    for (const button of SWATCHES) button.ariaPressed = String(button.dataset.colour === colour);
  }

  /** @param {string} tool */
  function chooseTool(tool) {
    for (const button of TOOLS) button.ariaPressed = String(button.dataset.tool === tool);
    for (const easel of both) {
      easel.tool = /** @type {import("./easel.js").Tool} */ (tool);
      easel.canvas.dataset.with = tool;
    }
  }

  for (const button of TOOLS) button.addEventListener("click", () => chooseTool(button.dataset.tool ?? "brush"));
  for (const button of SWATCHES) {
    button.style.setProperty("--colour", button.dataset.colour ?? "");
    button.ariaLabel = button.title = button.dataset.colour ?? "";
    button.addEventListener("click", () => chooseColour(button.dataset.colour ?? ""));
  }
  $("colour").addEventListener("input", () => chooseColour($("colour").value));
  const slide = (/** @type {import("./dom.js").InputId} */ id, /** @type {(value: number) => void} */ set) => {
    $(id).addEventListener("input", () => set(Number($(id).value)));
  };
  slide("brush-size", (value) => both.forEach((easel) => { easel.size = value; }));
  slide("opacity", (value) => { drawing.opacity = value / 100; });
  slide("grow", (value) => mask.grow(value));
  $("filled").addEventListener("click", () => {
    for (const easel of both) easel.filled = !easel.filled;
    $("filled").ariaPressed = String(drawing.filled);
  });
  const act = (/** @type {string} */ id, /** @type {(easel: Easel) => void} */ does) => {
    $(id).addEventListener("click", () => {
      const easel = on.easel();
      if (easel) does(easel);
    });
  };
  act("undo", (easel) => easel.undo());
  act("redo", (easel) => easel.redo());
  act("invert", (easel) => easel.invert());
  act("clear", (easel) => easel.clear());
  act("zoom-in", (easel) => easel.zoomBy(1.5));
  act("zoom-out", (easel) => easel.zoomBy(1 / 1.5));
  act("zoom-fit", (easel) => easel.zoomBy(0));
  act("save-drawing", async (easel) => save(await easel.snapshot(), easel === mask ? "mask.png" : "drawing.jpg"));
  chooseColour($("colour").value);
  chooseTool("brush");
  return { drawing, mask, camera };
}
