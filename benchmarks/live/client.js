/**
 * The page of the comparison: a prompt and a canvas that change all the time, and pictures that follow.
 *
 * A state changes every CHANGE_MS; whoever sends takes the newest. The canvases are drawn and encoded beforehand.
 */

const CHANGE_MS = 16;
const CANVASES = 8;
const SIDE = 512;
const LEAST_SHOWN = 4;

const canvases = [];
const sockets = new Map();

/** Draw canvases with strokes over a grainy ground, so that the pictures made from them are as large as photographs. */
window.drawCanvases = async () => {
  for (let number = 0; number < CANVASES; number += 1) {
    const canvas = new OffscreenCanvas(SIDE, SIDE);
    const context = canvas.getContext("2d");
    const ground = context.createImageData(SIDE, SIDE);
    for (let at = 0; at < ground.data.length; at += 4) {
      const level = 90 + (at / ground.data.length) * 100;
      for (let channel = 0; channel < 3; channel += 1) ground.data[at + channel] = level + Math.random() * 12;
      ground.data[at + 3] = 255;
    }
    context.putImageData(ground, 0, 0);
    context.lineWidth = 24;
    context.lineCap = "round";
    for (let stroke = 0; stroke < 6; stroke += 1) {
      context.strokeStyle = `hsl(${stroke * 60} 80% 50%)`;
      context.beginPath();
      context.moveTo(40 + stroke * 70, 60 + number * 20);
      context.bezierCurveTo(100, 200, 400, 300 - number * 10, 60 + stroke * 70, 460);
      context.stroke();
    }
    const blob = await canvas.convertToBlob({ type: "image/jpeg", quality: 0.9 });
    canvases.push({ blob, bytes: await blob.arrayBuffer() }); // a socket sends bytes faster than a blob
  }
  return canvases.map(({ blob }) => blob.size);
};

/**
 * Follow the states for `seconds` or longer, until some pictures are shown, after `warmUpSeconds` that do not count.
 *
 * @param how {socket, inFlight, mode, accept}: `socket` is "" for requests, "lockstep" for one state in flight,
 *   "push" for a state at each change, "asked" for a state when the service has room for one. `inFlight` is the number
 *   of requests, each sent when a picture is decoded.
 * @returns {shown: [{made, sent, shown, timings}], answers, sends}: times of performance.now(), pictures in the order
 *   in which they were shown. The counts include the warm-up and pictures that came too late to be shown.
 */
window.follow = async (how, seconds, warmUpSeconds) => {
  const began = performance.now();
  const counted = began + warmUpSeconds * 1000;
  const ends = counted + seconds * 1000;
  const run = { shown: [], answers: 0, sends: 0, last: 0 };

  const going = () => performance.now() < ends || run.shown.length < LEAST_SHOWN;

  const newest = () => {
    const sent = performance.now();
    const change = Math.floor((sent - began) / CHANGE_MS);
    run.sends += 1;
    const state = { id: run.sends, made: began + change * CHANGE_MS, sent, canvas: canvases[change % CANVASES] };
    state.fields = { prompt: `a red circle on a blue background, ${change}`, seed: 7 };
    if (how.mode === "img2img") {
      Object.assign(state.fields, { prompt: "a red circle", num_inference_steps: 2, strength: 0.5 });
    } else {
      state.fields.num_inference_steps = 1;
    }
    return state;
  };

  const show = async ({ id, made, sent }, blob, timings) => {
    (await createImageBitmap(blob)).close();
    const now = performance.now();
    run.answers += 1;
    if (id < run.last) return;
    run.last = id;
    if (now >= counted && going()) run.shown.push({ made, sent, shown: now, timings });
  };

  if (how.socket) await bySocket(how, going, newest, show);
  else await Promise.all(Array.from({ length: how.inFlight }, () => byRequests(how, going, newest, show)));
  return run;
};

async function byRequests({ mode, accept }, going, newest, show) {
  while (going()) {
    const state = newest();
    const headers = { Accept: accept };
    let body;
    if (mode === "img2img") {
      body = new FormData();
      for (const [name, value] of Object.entries(state.fields)) body.append(name, value);
      body.append("image", state.canvas.blob, "canvas.jpg");
    } else {
      headers["Content-Type"] = "application/json";
      body = JSON.stringify(state.fields);
    }
    const response = await fetch(`/${mode}`, { method: "POST", headers, body });
    if (!response.ok) throw new Error(await response.text());
    const said = response.headers.get("Server-Timing");
    const timings = [...said.matchAll(/(\w+);dur=([\d.]+)/g)].map(([, stage, ms]) => [stage, Number(ms)]);
    await show(state, await response.blob(), Object.fromEntries(timings));
  }
}

/** Sockets stay open between runs, as connections of requests do. */
async function opened(query) {
  if (!sockets.has(query)) {
    const socket = new WebSocket(`ws://${location.host}/live?${query}`);
    await new Promise((resolve, reject) => Object.assign(socket, { onopen: resolve, onerror: reject }));
    sockets.set(query, socket);
  }
  return sockets.get(query);
}

async function bySocket({ socket: way, mode, accept }, going, newest, show) {
  const socket = await opened(`ask=${Number(way === "asked")}`);
  const states = new Map();
  let said, sent, answered;

  const send = () => {
    const state = newest();
    states.set(state.id, state);
    sent = state.id;
    socket.send(JSON.stringify({ id: state.id, mode, accept, fields: state.fields }));
    if (mode === "img2img") socket.send(state.canvas.bytes);
  };

  await new Promise((resolve, reject) => {
    const timer = setInterval(() => {
      if (going()) {
        if (way === "push" && !socket.bufferedAmount) send();
      } else if (answered === sent) {
        clearInterval(timer);
        resolve();
      }
    }, CHANGE_MS);
    const receive = async ({ data }) => {
      if (typeof data === "string") {
        said = JSON.parse(data);
        if (said.error) throw new Error(said.error);
        if (said.next && going()) send();
        return;
      }
      const { id, timings } = said;
      await show(states.get(id), data, timings);
      answered = Math.max(id, answered ?? 0);
      if (way === "lockstep" && going()) send();
    };
    socket.onmessage = (event) => receive(event).catch(reject);
    socket.onclose = reject;
    send();
  });
}
