/** Paints the operations of a drawing onto a canvas. */

/**
 * @typedef {CanvasRenderingContext2D} Context
 * @typedef {import("./drawing.js").Operation} Operation
 * @typedef {import("./drawing.js").Point} Point
 */

/** The thinnest part of a stroke, as a share of its size: at no pressure. */
const THINNEST = 0.2;

/** Colours that differ by up to this in each channel are filled as one, such as the grain of a photograph. */
const TOLERANCE = 48;

/** @param {number} width @param {number} height */
export function layer(width, height) {
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width, height });
  // Read back at each fill and each picture that is sent.
  return /** @type {Context} */ (canvas.getContext("2d", { willReadFrequently: true }));
}

/**
 * Paint an operation of the ink.
 *
 * @param {Context} ink Where to paint.
 * @param {Operation} operation
 * @param {Context} scratch An area of the same size. An operation is painted there first, as a whole: where a
 *   transparent stroke crosses itself, it would be darker otherwise.
 * @param {() => ImageData} seen The pixels that a fill sees.
 */
export function paint(ink, operation, scratch, seen) {
  const { width, height } = ink.canvas;
  const isAlone = operation.kind === "picture" && operation.isAlone;
  if (isAlone || operation.kind === "clear" || operation.kind === "wipe") ink.clearRect(0, 0, width, height);
  if (operation.kind === "invert") {
    blend(ink, "source-out", 1, () => {
      ink.fillStyle = "#fff";
      ink.fillRect(0, 0, width, height);
    });
  }
  if (!("colour" in operation)) return;
  scratch.clearRect(0, 0, width, height);
  scratch.strokeStyle = scratch.fillStyle = operation.colour;
  scratch.lineWidth = operation.size;
  scratch.lineCap = scratch.lineJoin = "round";
  if (operation.kind === "stroke") paintStroke(scratch, operation.points, operation.size);
  else if (operation.kind === "fill") paintFill(scratch, operation, seen);
  else paintShape(scratch, operation);
  const erases = operation.kind === "stroke" && operation.erases;
  blend(ink, erases ? "destination-out" : "source-over", operation.opacity, () => ink.drawImage(scratch.canvas, 0, 0));
}

/**
 * Draw with another operation and opacity than usual.
 *
 * @param {Context} context @param {GlobalCompositeOperation} operation @param {number} alpha @param {() => void} draw
 */
function blend(context, operation, alpha, draw) {
  context.globalCompositeOperation = operation;
  context.globalAlpha = alpha;
  draw();
  context.globalCompositeOperation = "source-over";
  context.globalAlpha = 1;
}

/**
 * A curve through the middles between the points.
 *
 * @param {Context} context @param {Point[]} points @param {number} size
 */
function paintStroke(context, points, size) {
  const [first] = points;
  if (points.every(([x, y]) => x === first[0] && y === first[1])) { // a path without length is not painted
    context.beginPath();
    context.arc(first[0], first[1], (size * (THINNEST + (1 - THINNEST) * first[2])) / 2, 0, 2 * Math.PI);
    context.fill();
    return;
  }
  let [x, y] = points[0];
  for (const [index, [px, py, pressure]] of points.entries()) {
    const [nx, ny] = points[index + 1] ?? points[index];
    const [mx, my] = [(px + nx) / 2, (py + ny) / 2];
    context.lineWidth = size * (THINNEST + (1 - THINNEST) * pressure);
    context.beginPath();
    context.moveTo(x, y);
    context.quadraticCurveTo(px, py, mx, my);
    context.stroke();
    [x, y] = [mx, my];
  }
}

/** @param {Context} context @param {import("./drawing.js").Shape} shape */
function paintShape(context, { kind, filled, from: [x0, y0], to: [x1, y1] }) {
  context.beginPath();
  if (kind === "line") {
    context.moveTo(x0, y0);
    context.lineTo(x1, y1);
  } else if (kind === "rectangle") {
    context.rect(Math.min(x0, x1), Math.min(y0, y1), Math.abs(x1 - x0), Math.abs(y1 - y0));
  } else {
    context.ellipse((x0 + x1) / 2, (y0 + y1) / 2, Math.abs(x1 - x0) / 2, Math.abs(y1 - y0) / 2, 0, 0, 2 * Math.PI);
  }
  if (filled && kind !== "line") context.fill();
  else context.stroke();
}

/** @param {Context} context @param {import("./drawing.js").Fill} fill @param {() => ImageData} seen */
function paintFill(context, fill, seen) {
  fill.painted ??= paintedBy(fill, seen());
  context.drawImage(fill.painted, 0, 0);
}

/**
 * The pixels that a fill covers, in its colour.
 *
 * @param {import("./drawing.js").Fill} fill @param {ImageData} seen
 */
function paintedBy({ colour, at: [x, y] }, { data, width, height }) {
  const out = layer(width, height);
  const painted = out.createImageData(width, height);
  const [red, green, blue] = rgbOf(colour);
  for (const [index, is] of flood(data, width, height, Math.floor(x), Math.floor(y)).entries()) {
    if (is) painted.data.set([red, green, blue, 255], index * 4);
  }
  out.putImageData(painted, 0, 0);
  // One pixel further: between the fill and the smooth edge of a line a seam would be left.
  for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) out.drawImage(out.canvas, dx, dy);
  return out.canvas;
}

/** @param {string} colour "#rrggbb" */
export const rgbOf = (colour) => [1, 3, 5].map((start) => parseInt(colour.slice(start, start + 2), 16));

/** @param {ArrayLike<number>} rgb */
export const colourOf = (rgb) => `#${[0, 1, 2].map((one) => rgb[one].toString(16).padStart(2, "0")).join("")}`;

/**
 * Find the connected pixels of a colour, row by row.
 *
 * @param {ArrayLike<number>} pixels RGBA, of shape (height, width, 4).
 * @param {number} width @param {number} height @param {number} x @param {number} y Where to begin.
 * @returns {Uint8Array} 1 for each of these pixels.
 */
export function flood(pixels, width, height, x, y) {
  const covered = new Uint8Array(width * height);
  if (x < 0 || y < 0 || x >= width || y >= height) return covered;
  const first = (y * width + x) * 4;
  const like = (/** @type {number} */ index) => {
    for (let channel = 0; channel < 4; channel += 1) {
      if (Math.abs(pixels[index * 4 + channel] - pixels[first + channel]) > TOLERANCE) return false;
    }
    return true;
  };
  const waiting = [y * width + x];
  while (waiting.length) {
    const index = /** @type {number} */ (waiting.pop());
    if (covered[index]) continue;
    const row = index - (index % width);
    let [left, right] = [index, index];
    while (left > row && !covered[left - 1] && like(left - 1)) left -= 1;
    while (right < row + width - 1 && !covered[right + 1] && like(right + 1)) right += 1;
    covered.fill(1, left, right + 1);
    for (const next of [-width, width]) {
      let isRun = false;
      for (let at = left + next; at <= right + next; at += 1) {
        const fits = at >= 0 && at < covered.length && !covered[at] && like(at);
        if (fits && !isRun) waiting.push(at);
        isRun = fits;
      }
    }
  }
  return covered;
}

/**
 * Grow what is painted by a number of pixels, in all directions.
 *
 * @param {Context} context @param {number} pixels @param {Context} scratch
 */
export function grow(context, pixels, scratch) {
  const { width, height } = context.canvas;
  // A ring of copies leaves no gap if it is not wider than what is painted: so each ring is twice as wide as the last.
  for (let [left, radius] = [pixels, 1]; left > 0; left -= radius, radius *= 2) {
    const reach = Math.min(radius, left);
    scratch.clearRect(0, 0, width, height);
    scratch.drawImage(context.canvas, 0, 0);
    for (let part = 0; part < 12; part += 1) {
      const angle = (part * Math.PI) / 6;
      context.drawImage(scratch.canvas, reach * Math.cos(angle), reach * Math.sin(angle));
    }
  }
}
