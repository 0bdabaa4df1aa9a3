/** A canvas that one draws on, with mouse, finger, pen or keys: the start picture, or the mask over a picture. */

import { Drawing, constrained } from "./drawing.js";
import { colourOf, grow, layer, paint } from "./paint.js";

/** Steps of the keyboard's pen, in pixels of the canvas: usual, with Shift, with Alt. */
const KEY_STEPS = { usual: 8, large: 32, small: 1 };
const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

const MASK_TINT = "#e0402a";
const MASK_ALPHA = 0.55;
const PAPER = "#ffffff";
const MOST_ZOOM = 8;

/** Turns of the wheel within this time are one. */
const BURST_MS = 400;

/** How much a turn of the wheel scales, by its size: trackpads turn a little and often. @param {WheelEvent} event */
const scaleOf = ({ deltaY }) => Math.exp(-Math.max(-100, Math.min(100, deltaY)) / 500);

/** @typedef {"brush" | "eraser" | "fill" | "line" | "rectangle" | "ellipse" | "pick" | "move"} Tool */
/** @typedef {import("./drawing.js").Point} Point */

export class Easel {
  /** @type {Tool} */
  tool = "brush";
  size = 24;
  colour = "#222222";
  opacity = 1;
  filled = true;
  zoom = 1;
  /** Pixels by which a mask is larger than what is painted. */
  #grown = 0;
  #isMask;
  #screen;
  #on;
  #drawing;
  /** The ink that cannot be undone any more. @type {CanvasRenderingContext2D} */
  #base;
  /** The ink without the live operation. @type {CanvasRenderingContext2D} */
  #ink;
  #isInkOld = false;
  /** The ink with the live operation. @type {CanvasRenderingContext2D} */
  #shown;
  /** @type {CanvasRenderingContext2D} */
  #scratch;
  /** Whether the next frame of the screen will show what has changed. */
  #isAwaited = false;
  /** @type {number | null} The pointer that draws. */
  #pointer = null;
  /** @type {Map<number, [number, number]>} Fingers on the canvas, by pointer, in pixels of the screen. */
  #fingers = new Map();
  /** @type {[number, number]} The keyboard's pen. */
  #cursor = [0, 0];
  #isCursorShown = false;
  #scaledAt = -Infinity;
  /** @type {[number, number]} From the pointer to the middle of the picture that it moves. */
  #grip = [0, 0];

  /**
   * @param {HTMLCanvasElement} canvas Its size is that of the drawing. It is in an element that scrolls.
   * @param {{changed: () => void, picked: (colour: string) => void, said: (what: string) => void}} on Called when the
   *   drawing has changed, a colour was picked, and the keyboard's pen has done something: "down", "up" or "at".
   * @param {{isMask?: boolean}} [options] A mask is drawn over a picture, in one colour.
   */
  constructor(canvas, on, { isMask = false } = {}) {
    this.#screen = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d", { willReadFrequently: true }));
    this.#on = on;
    this.#isMask = isMask;
    const { width, height } = canvas;
    [this.#base, this.#ink, this.#shown, this.#scratch] = [0, 1, 2, 3].map(() => layer(width, height));
    this.#drawing = this.#newDrawing();
    this.#cursor = [width / 2, height / 2];
    this.#redraw();
    canvas.addEventListener("pointerdown", (event) => this.#down(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    for (const type of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(type, (event) => this.#up(/** @type {PointerEvent} */ (event)));
    }
    canvas.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    canvas.addEventListener("keydown", (event) => this.#key(event));
    canvas.addEventListener("blur", () => {
      this.#isCursorShown = false;
      if (this.isDrawing && this.#pointer === null) this.#end();
      this.#redraw();
    });
  }

  get canvas() {
    return this.#screen.canvas;
  }

  get width() {
    return this.canvas.width;
  }

  get height() {
    return this.canvas.height;
  }

  get isEmpty() {
    return this.#drawing.isEmpty;
  }

  get isDrawing() {
    return this.#drawing.live !== null;
  }

  get canUndo() {
    return this.#drawing.canUndo;
  }

  get canRedo() {
    return this.#drawing.canRedo;
  }

  get cursor() {
    return this.#cursor;
  }

  /** Change the canvas's size. The drawing stays in place. @param {number} width @param {number} height */
  resize(width, height) {
    if (width === this.width && height === this.height) return;
    const { canvas } = this.#base; // never made smaller, so that nothing is lost
    const base = layer(Math.max(width, canvas.width), Math.max(height, canvas.height));
    base.drawImage(this.#base.canvas, 0, 0);
    this.#base = base;
    [this.#ink, this.#shown, this.#scratch] = [0, 1, 2].map(() => layer(width, height));
    Object.assign(this.canvas, { width, height });
    this.canvas.style.setProperty("--aspect", String(width / height));
    this.#cursor = [width / 2, height / 2];
    this.#inkChanged();
  }

  /**
   * Begin a mask anew over a picture, with nothing to undo.
   *
   * @param {ImageBitmap} picture @param {ImageBitmap | null} ink A mask whose light parts are painted already.
   */
  open(picture, ink) {
    const { width, height } = this;
    this.#drawing = this.#newDrawing({ kind: "picture", picture, x: 0, y: 0, width, height, isAlone: false });
    this.#base.clearRect(0, 0, width, height);
    if (ink) {
      this.#base.drawImage(ink, 0, 0, width, height);
      const pixels = this.#base.getImageData(0, 0, width, height);
      for (let index = 3; index < pixels.data.length; index += 4) pixels.data[index] = pixels.data[index - 1];
      this.#base.putImageData(pixels, 0, 0);
      this.#grown = 0; // it has grown already
    }
    this.#inkChanged();
  }

  /** @param {import("./drawing.js").Placed | null} [picture] */
  #newDrawing(picture = null) {
    return new Drawing((operation) => this.#paint(this.#base, operation), picture);
  }

  /**
   * Put a picture under the ink, as large as the canvas allows.
   *
   * @param {ImageBitmap} picture @param {{isAlone: boolean}} options Whether the ink goes.
   */
  place(picture, { isAlone }) {
    const scale = Math.min(this.width / picture.width, this.height / picture.height);
    const [width, height] = [picture.width * scale, picture.height * scale];
    const [x, y] = [(this.width - width) / 2, (this.height - height) / 2];
    this.#drawing.add({ kind: "picture", picture, x, y, width, height, isAlone });
    this.#repaint();
  }

  undo() {
    if (this.#drawing.undo()) this.#repaint();
  }

  redo() {
    if (this.#drawing.redo()) this.#repaint();
  }

  clear() {
    if (this.#isMask) this.#drawing.add({ kind: "wipe" });
    else if (!this.#drawing.clear()) return;
    this.#repaint();
  }

  invert() {
    this.#drawing.add({ kind: "invert" });
    this.#repaint();
  }

  /** The ink has changed otherwise than by the live operation. */
  #repaint() {
    this.#inkChanged();
    this.#on.changed();
  }

  /** Make a mask larger than what is painted. @param {number} pixels */
  grow(pixels) {
    this.#grown = pixels;
    this.#refresh();
  }

  /** Whether a mask has no ink. */
  get isInkEmpty() {
    this.#update();
    const { data } = this.#shown.getImageData(0, 0, this.width, this.height);
    for (let index = 3; index < data.length; index += 4) if (data[index] > 127) return false;
    return true;
  }

  /**
   * The picture that is drawn, or the mask: white is to be changed.
   *
   * @returns {Promise<Blob>} PNG for a mask, else JPEG.
   */
  snapshot() {
    this.#update();
    const out = layer(this.width, this.height);
    if (this.#isMask) {
      out.fillStyle = "#000";
      out.fillRect(0, 0, this.width, this.height);
      out.drawImage(this.#maskIn("#fff"), 0, 0);
    } else {
      this.#compose(out, this.#shown);
    }
    const type = this.#isMask ? "image/png" : "image/jpeg";
    return new Promise((resolve) => {
      out.canvas.toBlob((blob) => resolve(/** @type {Blob} */ (blob)), type, 0.92);
    });
  }

  /** The mask as it is sent, in one colour. @param {string} colour */
  #maskIn(colour) {
    const mask = layer(this.width, this.height);
    mask.drawImage(this.#shown.canvas, 0, 0);
    grow(mask, this.#grown, this.#scratch);
    mask.globalCompositeOperation = "source-in";
    mask.fillStyle = colour;
    mask.fillRect(0, 0, this.width, this.height);
    return mask.canvas;
  }

  // Layers.

  #inkChanged() {
    this.#isInkOld = true;
    this.#redraw();
  }

  #redraw() {
    if (this.#isAwaited) return;
    this.#isAwaited = true;
    requestAnimationFrame(() => {
      this.#isAwaited = false;
      this.#update();
      this.#paintScreen();
    });
  }

  /** Bring the layers up to date. */
  #update() {
    const { width, height } = this;
    if (this.#isInkOld) {
      this.#ink.clearRect(0, 0, width, height);
      this.#ink.drawImage(this.#base.canvas, 0, 0);
      for (const operation of this.#drawing.operations) this.#paint(this.#ink, operation);
      this.#isInkOld = false;
    }
    this.#shown.clearRect(0, 0, width, height);
    this.#shown.drawImage(this.#ink.canvas, 0, 0);
    if (this.#drawing.live) this.#paint(this.#shown, this.#drawing.live);
  }

  /** @param {CanvasRenderingContext2D} ink @param {import("./drawing.js").Operation} operation */
  #paint(ink, operation) {
    paint(ink, operation, this.#scratch, () => {
      if (this.#isMask) return ink.getImageData(0, 0, this.width, this.height);
      const seen = layer(this.width, this.height);
      this.#compose(seen, ink);
      return seen.getImageData(0, 0, this.width, this.height);
    });
  }

  /** Paper, picture and ink. @param {CanvasRenderingContext2D} out @param {CanvasRenderingContext2D | null} ink */
  #compose(out, ink) {
    const under = this.#drawing.picture;
    out.fillStyle = PAPER;
    out.fillRect(0, 0, this.width, this.height);
    if (under) out.drawImage(under.picture, under.x, under.y, under.width, under.height);
    if (ink) out.drawImage(ink.canvas, 0, 0);
  }

  #paintScreen() {
    if (this.#isMask) {
      this.#compose(this.#screen, null);
      this.#screen.globalAlpha = MASK_ALPHA;
      this.#screen.drawImage(this.#maskIn(MASK_TINT), 0, 0);
      this.#screen.globalAlpha = 1;
    } else {
      this.#compose(this.#screen, this.#shown);
    }
    if (this.#isCursorShown) this.#paintCursor();
  }

  #paintCursor() {
    const [x, y] = this.#cursor;
    for (const [colour, width] of /** @type {[string, number][]} */ ([["#fff", 4], ["#000", 1.5]])) {
      Object.assign(this.#screen, { strokeStyle: colour, lineWidth: width });
      this.#screen.beginPath();
      this.#screen.arc(x, y, Math.max(5, this.size / 2), 0, 2 * Math.PI);
      for (const [dx, dy] of [[1, 0], [0, 1]]) {
        this.#screen.moveTo(x - 12 * dx, y - 12 * dy);
        this.#screen.lineTo(x + 12 * dx, y + 12 * dy);
      }
      this.#screen.stroke();
    }
  }

  // Drawing.

  /** @param {Point} point */
  #begin(point) {
    const { size, opacity, filled } = this;
    const tool = this.#isMask && (this.tool === "pick" || this.tool === "move") ? "brush" : this.tool; // not for masks
    const colour = this.#isMask ? "#ffffff" : this.colour;
    const ink = { size, colour, opacity: this.#isMask ? 1 : opacity };
    if (tool === "pick") {
      const out = layer(this.width, this.height);
      this.#compose(out, this.#shown);
      this.#on.picked(colourOf(out.getImageData(...this.#pixel(point), 1, 1).data));
    } else if (tool === "fill") {
      this.#drawing.add({ kind: "fill", at: point, ...ink });
      this.#repaint();
    } else if (tool === "move") {
      const under = this.#drawing.picture;
      if (!under) return;
      this.#grip = [under.x + under.width / 2 - point[0], under.y + under.height / 2 - point[1]];
      this.#drawing.begin({ ...under, isAlone: false });
    } else if (tool === "brush" || tool === "eraser") {
      this.#drawing.begin({ kind: "stroke", erases: tool === "eraser", points: [point], ...ink });
    } else {
      this.#drawing.begin({ kind: tool, filled, from: point, to: point, ...ink });
    }
    if (this.isDrawing) this.#refresh();
  }

  /** @param {Point} point @param {boolean} [isConstrained] */
  #extend(point, isConstrained = false) {
    const { live } = this.#drawing;
    if (live?.kind === "picture") this.#drawing.extend([point[0] + this.#grip[0], point[1] + this.#grip[1], 1]);
    else if (isConstrained && live && "from" in live) {
      this.#drawing.extend(constrained(live.from, point, live.kind === "line"));
    } else this.#drawing.extend(point);
    this.#refresh();
  }

  /** The ink of the finished operations is the same, and the picture is not. */
  #refresh() {
    this.#redraw();
    this.#on.changed();
  }

  #end() {
    const { live } = this.#drawing;
    if (this.#drawing.end() && live && live.kind !== "picture") {
      if (this.#isInkOld) this.#update();
      else this.#paint(this.#ink, live);
    }
    this.#refresh();
  }

  /** @param {Point} point @returns {[number, number]} */
  #pixel([x, y]) {
    const [left, top] = [Math.floor(x), Math.floor(y)];
    return [Math.max(0, Math.min(this.width - 1, left)), Math.max(0, Math.min(this.height - 1, top))];
  }

  // Pointers. One finger draws; two move and zoom the view.

  /** @param {PointerEvent} event @returns {Point} */
  #pointOf(event) {
    const box = this.canvas.getBoundingClientRect();
    const x = ((event.clientX - box.left) * this.width) / box.width;
    const y = ((event.clientY - box.top) * this.height) / box.height;
    return [x, y, event.pointerType === "pen" ? event.pressure : 1];
  }

  /** @param {PointerEvent} event */
  #down(event) {
    if (event.button !== 0) return;
    event.preventDefault();
    // Another pointer draws, such as a pen beside which the hand lies; two fingers zoom.
    if (this.#pointer !== null && !this.#fingers.has(this.#pointer)) return;
    if (this.isDrawing && this.#pointer === null) this.#end(); // the keyboard's pen
    this.canvas.focus({ preventScroll: true });
    this.#isCursorShown = false;
    this.canvas.setPointerCapture(event.pointerId);
    if (event.pointerType === "touch") this.#fingers.set(event.pointerId, [event.clientX, event.clientY]);
    if (this.#fingers.size > 1) {
      if (this.isDrawing) this.#drawing.cancel();
      this.#pointer = null;
      this.#refresh();
      return;
    }
    this.#pointer = event.pointerId;
    if (!this.#waits(event)) this.#begin(this.#pointOf(event));
  }

  /** Fill and eyedropper act when a finger is lifted: a second one may come. @param {PointerEvent} event */
  #waits({ pointerType }) {
    return pointerType === "touch" && (this.tool === "fill" || this.tool === "pick");
  }

  /** @param {PointerEvent} event */
  #move(event) {
    if (this.#fingers.size > 1 && this.#fingers.has(event.pointerId)) this.#pinch(event);
    if (event.pointerId !== this.#pointer) return;
    if (this.tool === "pick" && !this.#waits(event)) this.#begin(this.#pointOf(event));
    if (!this.isDrawing) return;
    const all = event.getCoalescedEvents?.() ?? [];
    for (const one of all.length ? all : [event]) this.#extend(this.#pointOf(one), event.shiftKey);
  }

  /** @param {PointerEvent} event */
  #up(event) {
    this.#fingers.delete(event.pointerId);
    if (event.pointerId !== this.#pointer) return;
    this.#pointer = null;
    if (this.#waits(event) && event.type === "pointerup") this.#begin(this.#pointOf(event));
    if (this.isDrawing) this.#end();
  }

  /** @param {PointerEvent} event */
  #pinch(event) {
    const before = [...this.#fingers.values()];
    this.#fingers.set(event.pointerId, [event.clientX, event.clientY]);
    const after = [...this.#fingers.values()];
    const [wide, wider] = [before, after].map(([[ax, ay], [bx, by]]) => Math.hypot(ax - bx, ay - by));
    const middle = ([[ax, ay], [bx, by]] = after) => [(ax + bx) / 2, (ay + by) / 2];
    const [[x0, y0], [x1, y1]] = [middle(before), middle(after)];
    if (wide > 0) this.#zoomTo((this.zoom * wider) / wide, x1, y1);
    this.#frameElement.scrollBy(x0 - x1, y0 - y1);
  }

  /** @param {WheelEvent} event */
  #wheel(event) {
    if (this.tool === "move" && this.#drawing.picture) {
      event.preventDefault();
      this.#scalePicture(scaleOf(event), this.#pointOf(/** @type {any} */ (event)));
    } else if (event.ctrlKey) {
      event.preventDefault();
      this.#zoomTo(this.zoom * scaleOf(event), event.clientX, event.clientY);
    }
  }

  /** Scale the picture under the ink about a point. @param {number} factor @param {Point} about */
  #scalePicture(factor, [x, y]) {
    const under = this.#drawing.picture;
    if (!under || under.width * factor < 16 || under.width * factor > this.width * 16) return;
    const now = performance.now();
    if (now - this.#scaledAt < BURST_MS) this.#drawing.undo(); // one turn of the wheel is one operation
    this.#scaledAt = now;
    const [left, top] = [x + (under.x - x) * factor, y + (under.y - y) * factor];
    const [width, height] = [under.width * factor, under.height * factor];
    this.#drawing.add({ ...under, x: left, y: top, width, height, isAlone: false });
    this.#refresh();
  }

  get #frameElement() {
    return /** @type {HTMLElement} */ (this.canvas.parentElement);
  }

  /** Zoom the view by a factor about its middle. @param {number} factor 0 shows the whole canvas. */
  zoomBy(factor) {
    const { left, top, width, height } = this.#frameElement.getBoundingClientRect();
    this.#zoomTo(this.zoom * factor, left + width / 2, top + height / 2);
  }

  /** Zoom, and keep what is at a point of the screen there. @param {number} zoom @param {number} x @param {number} y */
  #zoomTo(zoom, x, y) {
    const before = this.canvas.getBoundingClientRect();
    this.zoom = Math.max(1, Math.min(MOST_ZOOM, zoom));
    this.canvas.style.setProperty("--zoom", String(this.zoom));
    const after = this.canvas.getBoundingClientRect();
    const scale = after.width / before.width;
    const [dx, dy] = [(x - before.left) * scale - (x - after.left), (y - before.top) * scale - (y - after.top)];
    this.#frameElement.scrollBy(dx, dy);
  }

  // Keys.

  /** @param {KeyboardEvent} event */
  #key(event) {
    const way = KEYS[/** @type {keyof typeof KEYS} */ (event.key)];
    if (way && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      const step = KEY_STEPS[event.shiftKey ? "large" : event.altKey ? "small" : "usual"];
      this.#cursor = this.#pixel([this.#cursor[0] + way[0] * step, this.#cursor[1] + way[1] * step, 1]);
      this.#isCursorShown = true;
      if (this.isDrawing) this.#extend([...this.#cursor, 1]);
      this.#redraw();
      this.#on.said("at");
    } else if (event.key === " " || event.key === "Enter") {
      event.preventDefault();
      if (event.repeat || this.#pointer !== null) return;
      this.#isCursorShown = true;
      if (this.isDrawing) {
        this.#end();
        this.#on.said("up");
      } else {
        this.#begin([...this.#cursor, 1]);
        this.#on.said(this.isDrawing ? "down" : "up");
      }
    } else if ((event.key === "+" || event.key === "-") && this.tool === "move" && this.#drawing.picture) {
      event.preventDefault();
      this.#scalePicture(event.key === "+" ? 1.1 : 1 / 1.1, [...this.#cursor, 1]);
    } else if (event.key === "Escape" && this.isDrawing) {
      event.preventDefault();
      this.#drawing.cancel();
      this.#refresh();
    }
  }
}
