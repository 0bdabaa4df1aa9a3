/** A drawing: a list of operations, the last of which may be undone. Uses nothing of the browser. */

/** Operations that can be undone. Older ones are final. */
const MOST_UNDO = 100;

/**
 * @typedef {[x: number, y: number, pressure: number]} Point Pixels of the canvas; pressure from 0 to 1.
 * @typedef {{size: number, colour: string, opacity: number}} Ink Size in pixels of the canvas, opacity from 0 to 1.
 * @typedef {Ink & {kind: "stroke", erases: boolean, points: Point[]}} Stroke
 * @typedef {Ink & {kind: "line" | "rectangle" | "ellipse", filled: boolean, from: Point, to: Point}} Shape
 * @typedef {Ink & {kind: "fill", at: Point, painted?: any}} Fill What it has covered stays, whatever the canvas's size.
 * @typedef {{kind: "picture", picture: any, x: number, y: number, width: number, height: number,
 *   isAlone: boolean}} Placed
 *   A picture under the ink; x and y are its corner. If it is alone, the ink before it goes.
 * @typedef {{kind: "clear"} | {kind: "wipe"} | {kind: "invert"}} Whole Wiping removes the ink, and leaves the picture.
 * @typedef {Stroke | Shape | Fill | Placed | Whole} Operation
 */

export class Drawing {
  /** The operation that is being drawn, or null. @type {Operation | null} */
  live = null;
  /** @type {Operation[]} */
  #operations = [];
  #done = 0;
  /** The picture under the ink that the final operations left. @type {Placed | null} */
  #finalPicture = null;
  #isFinalEmpty = true;
  #onFinal;

  /**
   * @param {(operation: Operation) => void} [onFinal] Called with each operation that cannot be undone any more.
   * @param {Placed | null} [picture] A picture under the ink from the beginning.
   */
  constructor(onFinal = () => {}, picture = null) {
    this.#onFinal = onFinal;
    this.#finalPicture = picture;
  }

  /** The operations to draw, oldest first, without the live one and those that are final. */
  get operations() {
    return this.#operations.slice(0, this.#done);
  }

  get canUndo() {
    return this.#done > 0;
  }

  get canRedo() {
    return this.#done < this.#operations.length;
  }

  /** The picture under the ink, where the live operation moves it to. @returns {Placed | null} */
  get picture() {
    for (const operation of [this.live, ...this.operations.reverse()]) {
      if (operation?.kind === "picture") return operation;
      if (operation?.kind === "clear") return null;
    }
    return this.#finalPicture;
  }

  /** Whether nothing is drawn, and no picture lies under it. */
  get isEmpty() {
    if (this.live) return false;
    const last = this.#operations[this.#done - 1];
    return last ? last.kind === "clear" : this.#isFinalEmpty;
  }

  /** Do an operation at once. It takes the place of the undone ones. @param {Operation} operation */
  add(operation) {
    this.#operations.length = this.#done;
    this.#operations.push(operation);
    if (this.#operations.length > MOST_UNDO) this.#makeFinal(/** @type {Operation} */ (this.#operations.shift()));
    this.#done = this.#operations.length;
  }

  /** @param {Operation} operation */
  #makeFinal(operation) {
    if (operation.kind === "picture") this.#finalPicture = operation;
    if (operation.kind === "clear") this.#finalPicture = null;
    this.#isFinalEmpty = operation.kind === "clear";
    this.#onFinal(operation);
  }

  /** Begin an operation that `extend` changes and `end` adds. @param {Operation} operation */
  begin(operation) {
    this.live = operation;
  }

  /** Lead the live stroke on to a point, a shape's end to it, or a picture's middle. @param {Point} point */
  extend(point) {
    const { live } = this;
    if (live?.kind === "stroke") live.points.push(point);
    else if (live && "to" in live) live.to = point;
    else if (live?.kind === "picture") {
      live.x = point[0] - live.width / 2;
      live.y = point[1] - live.height / 2;
    }
  }

  /** Add the live operation, unless it draws nothing. Returns whether it was added. */
  end() {
    const { live } = this;
    this.live = null;
    const isDot = live && "to" in live && live.from[0] === live.to[0] && live.from[1] === live.to[1];
    if (!live || isDot) return false;
    this.add(live);
    return true;
  }

  /** Drop the live operation. */
  cancel() {
    this.live = null;
  }

  /** Returns whether there was something to undo. */
  undo() {
    if (this.live) this.cancel();
    else if (this.canUndo) this.#done -= 1;
    else return false;
    return true;
  }

  /** Returns whether there was something to redo. */
  redo() {
    if (!this.canRedo || this.live) return false;
    this.#done += 1;
    return true;
  }

  /** Remove everything; this can be undone. Returns whether there was something. */
  clear() {
    this.cancel();
    if (this.isEmpty) return false;
    this.add({ kind: "clear" });
    return true;
  }
}

/**
 * The end of a line at the nearest eighth of a turn, or of a square or circle.
 *
 * @param {Point} from @param {Point} to @param {boolean} isLine @returns {Point}
 */
export function constrained(from, to, isLine) {
  const [dx, dy] = [to[0] - from[0], to[1] - from[1]];
  if (!isLine) {
    const side = Math.max(Math.abs(dx), Math.abs(dy));
    return [from[0] + side * (Math.sign(dx) || 1), from[1] + side * (Math.sign(dy) || 1), to[2]];
  }
  const angle = (Math.round((Math.atan2(dy, dx) * 4) / Math.PI) * Math.PI) / 4;
  const length = dx * Math.cos(angle) + dy * Math.sin(angle);
  return [from[0] + length * Math.cos(angle), from[1] + length * Math.sin(angle), to[2]];
}
