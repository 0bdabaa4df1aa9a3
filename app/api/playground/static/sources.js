/** The start of a picture: nothing, a picture, a drawing, a picture with a mask, or a camera. */

import { $, all } from "./dom.js";
import { part } from "./parts.js";
import { t } from "./strings.js";

/** @typedef {import("./address.js").Source} Source */
/** @typedef {import("./service.js").Upload} Upload */

/** The longest side of the canvas over a picture. The service scales the mask to the picture. */
const MOST_MASK_SIDE = 1024;

/** Sources with a canvas or a camera of their own, beside the stage. @type {readonly Source[]} */
const WITH_PANE = ["draw", "retouch", "camera"];

/** @type {Record<string, string>} */
const CAMERA_FAULTS = { NotAllowedError: "camera_refused", NotFoundError: "camera_none" };

export class Sources {
  /** @type {Source} */
  source = "text";
  /** The picture of "picture" and "retouch". @type {Upload | null} */
  picture = null;
  /** Canvas, mask and camera, once one of them was used. @type {import("./tools.js").Tools | null} */
  #tools = null;
  /** The source that was chosen last, while what it needs is loaded. @type {Source} */
  #chosen = "text";
  /** The size of the drawing. */
  #size = "";
  #on;
  /** The picture on the mask's canvas. @type {Upload | null} */
  #base = null;

  /**
   * @param {{changed: (options?: {now: boolean}) => void, switched: () => void, failed: (text: string) => void}} on
   *   Called when the start of the picture has changed; when another source is chosen; and with the reason why
   *   there is no camera.
   */
  constructor(on) {
    this.#on = on;
  }

  /** Returns the tools, or null if they cannot be loaded now. */
  async #load() {
    const loaded = await part(() => import("./tools.js"));
    if (loaded && !this.#tools) {
      this.#tools = loaded.openTools({
        changed: () => this.#on.changed({ now: true }),
        said: (what) => this.#say(what),
        stopped: () => {
          this.#describeCamera();
          this.#on.changed();
        },
        easel: () => this.easel,
      });
      this.fit(this.#size);
    }
    return this.#tools;
  }

  /** The canvas in use, or null. */
  get easel() {
    if (this.source === "draw") return this.#tools?.drawing ?? null;
    return this.source === "retouch" ? (this.#tools?.mask ?? null) : null;
  }

  /** Whether the source has what it needs for a picture. */
  get isReady() {
    if (this.source === "picture") return this.picture !== null;
    if (this.source === "retouch") return this.#base !== null && this.easel !== null && !this.easel.isInkEmpty;
    return this.source !== "camera" || this.#camera !== null;
  }

  /** The camera, if it is on. */
  get #camera() {
    return this.#tools?.camera.isOn ? this.#tools.camera : null;
  }

  /** @param {string} size "WIDTHxHEIGHT", or "" */
  read(size) {
    const { source, easel } = this;
    const camera = this.#camera;
    /** @type {{source: Source, start: Upload | null, mask: Upload | null, isLive: boolean}} */
    const read = { source, start: null, mask: null, isLive: Boolean(easel?.isDrawing) || source === "camera" };
    if (source === "picture") read.start = this.picture;
    if (source === "draw" && easel && !easel.isEmpty) read.start = uploadOf("drawing.jpg", easel);
    if (source === "retouch" && easel && this.#base) {
      read.start = this.#base;
      read.mask = uploadOf("mask.png", easel);
    }
    if (source === "camera" && camera) {
      const [width, height] = (size || "512x512").split("x").map(Number);
      const snapshot = () => camera.snapshot(width, height);
      read.start = { name: "camera.jpg", width, height, snapshot, isPrivate: true };
    }
    return read;
  }

  /** @param {Source} source */
  async choose(source) {
    const hasPane = WITH_PANE.includes(source);
    if (source !== "camera") this.stop();
    this.#chosen = source;
    if (hasPane && !(await this.#load())) return;
    if (this.#chosen !== source) return; // another one was chosen meanwhile
    this.source = source;
    const showsPicture = source === "picture" && this.picture !== null;
    for (const id of ["drop", "file"]) $(id).hidden = showsPicture;
    $("chosen").hidden = !showsPicture;
    document.body.dataset.source = source;
    for (const id of ["tools", "paper"]) $(id).hidden = !hasPane;
    for (const tab of all(".tabs [data-source]")) tab.ariaPressed = String(tab.dataset.source === source);
    if (source === "camera") {
      this.#describeCamera();
      this.#listDevices();
    }
    this.#on.switched();
    this.#on.changed();
  }

  /** Stop the camera. */
  stop() {
    this.#tools?.camera.stop();
    this.#describeCamera();
  }

  /** Show the whole canvas. */
  unzoom() {
    for (const easel of [this.#tools?.drawing, this.#tools?.mask]) easel?.zoomBy(0);
  }

  /** Start from a picture, as `lookAt` returns it; null for none. @param {Upload | null} picture */
  startFrom(picture) {
    URL.revokeObjectURL($("thumbnail").src);
    this.picture = picture;
    const wasFocused = document.activeElement === $("file");
    if (picture?.file) {
      $("thumbnail").src = URL.createObjectURL(picture.file);
      $("file-name").textContent = picture.name;
      $("file-size").textContent = `${picture.width}×${picture.height}`;
    }
    const chosen = this.choose(picture ? "picture" : "text");
    if (wasFocused && picture) $("remove").focus();
    return chosen;
  }

  /**
   * Put a picture onto the canvas to draw on.
   *
   * @param {Blob} file @param {{isAlone: boolean}} options Whether it replaces what is drawn, or lies under it.
   */
  async drawOn(file, { isAlone }) {
    const [bitmap, tools] = await Promise.all([createImageBitmap(file), this.#load()]);
    if (!tools) return;
    if (this.source !== "draw") await this.choose("draw");
    tools.drawing.place(bitmap, { isAlone });
  }

  /** Put a picture under the mask. @param {Upload} base @param {Blob | null} [mask] What is painted already. */
  async retouch(base, mask = null) {
    const { width, height } = base;
    const [bitmap, ink] = await Promise.all([base.file, mask].map((file) => file && createImageBitmap(file)));
    const tools = await this.#load();
    if (!tools || !bitmap) return;
    const scale = Math.min(1, MOST_MASK_SIDE / Math.max(width, height));
    tools.mask.resize(Math.round(width * scale), Math.round(height * scale));
    tools.mask.open(bitmap, ink ?? null);
    if (ink) $("grow").value = "0"; // it has grown already
    this.#base = base;
    await this.choose("retouch");
  }

  /** Remove what is drawn; this can be undone. */
  clear() {
    this.#tools?.drawing.clear();
  }

  get isRetouching() {
    return this.#base !== null;
  }

  /** Give the drawing the size of the pictures. @param {string} size "WIDTHxHEIGHT", or "" */
  fit(size) {
    this.#size = size;
    if (!size) return;
    const [width, height] = size.split("x").map(Number);
    this.#tools?.drawing.resize(width, height);
    $("video").style.setProperty("--aspect", String(width / height));
  }

  // The camera.

  async switchCamera() {
    const camera = this.#tools?.camera; // loaded with the pane
    if (!camera) return;
    if (camera.isOn) {
      camera.stop();
      this.#on.changed();
    } else {
      try {
        await camera.start($("device").value);
        await this.#listDevices();
        this.#setMirror();
      } catch (error) {
        const name = error instanceof DOMException ? error.name : "";
        const isCancelled = name === "NotAllowedError" && $("device").value === "screen";
        if (!isCancelled) this.#on.failed(t(CAMERA_FAULTS[name] ?? "camera_failed"));
      }
    }
    this.#describeCamera();
  }

  /** Another device: the one in use goes out at once. */
  async chooseDevice() {
    if (!this.#camera) return;
    this.stop();
    await this.switchCamera();
  }

  mirror() {
    $("mirror").ariaPressed = String($("mirror").ariaPressed !== "true");
    this.#setMirror();
  }

  /** A screen is never mirrored. */
  #setMirror() {
    const isMirrored = $("device").value !== "screen" && $("mirror").ariaPressed === "true";
    if (this.#tools) this.#tools.camera.isMirrored = isMirrored;
    this.#describeCamera();
  }

  async #listDevices() {
    const camera = this.#tools?.camera; // loaded with the pane
    if (!camera) return;
    const chosen = camera.source || $("device").value;
    const cameras = await camera.devices();
    const named = (/** @type {number} */ index) => t("camera_number", { number: index + 1 });
    const options = cameras.map(({ id, name }, index) => new Option(name || named(index), id));
    if (!options.length) options.push(new Option(t("camera_any"), ""));
    if (camera.canShareScreen) options.push(new Option(t("screen"), "screen"));
    $("device").replaceChildren(...options);
    if (options.some(({ value }) => value === chosen)) $("device").value = chosen;
    this.#describeCamera();
  }

  #describeCamera() {
    const camera = this.#tools?.camera;
    if (!camera) return;
    $("camera-switch").textContent = t(camera.isOn ? "camera_stop" : "camera_start");
    $("camera-switch").toggleAttribute("disabled", !camera.isPossible);
    $("camera-note").textContent = t(camera.isPossible ? "camera_note" : "camera_insecure");
    $("paper").classList.toggle("is-on", camera.isOn);
    $("video").classList.toggle("mirrored", camera.isMirrored);
  }

  // For screen readers.

  /** @param {string} what */
  #say(what) {
    if (!this.easel) return;
    const [x, y] = this.easel.cursor;
    $("canvas-said").textContent = what === "at" ? `${x}, ${y}` : t(what === "up" ? "pen_up" : "pen_down", { x, y });
  }

  describe() {
    this.#describeCamera();
    if (this.source === "camera") this.#listDevices();
  }
}

/** @param {string} name @param {import("./easel.js").Easel} easel @returns {Upload} */
function uploadOf(name, easel) {
  return { name, width: easel.width, height: easel.height, snapshot: () => easel.snapshot() };
}
