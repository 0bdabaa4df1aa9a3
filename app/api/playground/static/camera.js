/** A camera or a screen as the start picture. Frames stay in the page, except those that are sent to the service. */

/** Asked of the camera: pictures have 512 pixels a side, mostly, and small frames cost less to scale. */
const WIDTH = 960;

const SCREEN = "screen";

export class Camera {
  isMirrored = true;
  #video;
  #onFrame;
  #onStop;
  /** @type {MediaStream | null} */
  #stream = null;
  #source = "";
  /** Counts starts and stops: a start that is waiting for the user is void after another one. */
  #starts = 0;
  #canvas = document.createElement("canvas");

  /**
   * @param {HTMLVideoElement} video Shows what the camera sees.
   * @param {() => void} onFrame Called at each new frame.
   * @param {() => void} onStop Called when the browser or the device has ended it.
   */
  constructor(video, onFrame, onStop) {
    this.#video = video;
    this.#onFrame = onFrame;
    this.#onStop = onStop;
  }

  get isOn() {
    return this.#stream !== null;
  }

  /** Whether a camera can be had here: browsers give one to secure pages only. */
  get isPossible() {
    return Boolean(navigator.mediaDevices?.getUserMedia);
  }

  get canShareScreen() {
    return Boolean(navigator.mediaDevices?.getDisplayMedia);
  }

  /** The cameras, {id, name}. Browsers tell their names only once one is allowed. */
  async devices() {
    const all = this.isPossible ? await navigator.mediaDevices.enumerateDevices() : [];
    const cameras = all.filter(({ kind, deviceId }) => kind === "videoinput" && deviceId);
    return cameras.map(({ deviceId, label }) => ({ id: deviceId, name: label }));
  }

  /**
   * Begin, after the browser has asked the user.
   *
   * @param {string} source A device's id, "screen", or "" for the browser's choice.
   * @throws DOMException if the user or the browser refuses it, or there is none.
   */
  async start(source) {
    this.stop();
    const start = this.#starts;
    const devices = navigator.mediaDevices;
    const video = { width: { ideal: WIDTH }, ...(source ? { deviceId: { exact: source } } : { facingMode: "user" }) };
    const stream = await (source === SCREEN
      ? devices.getDisplayMedia({ video: { frameRate: { max: 15 } }, audio: false })
      : devices.getUserMedia({ video, audio: false }));
    if (start !== this.#starts) { // stopped, or another one started, while the browser asked
      for (const one of stream.getTracks()) one.stop();
      return;
    }
    this.#stream = stream;
    this.#source = source;
    const [track] = stream.getVideoTracks();
    track.addEventListener("ended", () => {
      if (this.#stream !== stream) return;
      this.stop();
      this.#onStop();
    });
    this.#video.srcObject = stream;
    await this.#video.play().catch(() => {}); // it rejects if it is stopped at once
    this.#watch(stream);
  }

  /** The id of the device that is in use, or "screen"; "" if it is off. */
  get source() {
    return this.#stream ? this.#source || (this.#stream.getVideoTracks()[0].getSettings().deviceId ?? "") : "";
  }

  /** @param {MediaStream} stream */
  #watch(stream) {
    const next = () => {
      if (this.#stream !== stream) return;
      if (!document.hidden) this.#onFrame();
      if (this.#video.requestVideoFrameCallback) this.#video.requestVideoFrameCallback(next);
      else requestAnimationFrame(next);
    };
    next();
  }

  /** Stop at once; the device's light goes out. */
  stop() {
    this.#starts += 1;
    for (const track of this.#stream?.getTracks() ?? []) track.stop();
    this.#stream = null;
    this.#video.srcObject = null;
  }

  /**
   * The frame of now, scaled to cover a size and cropped about its middle.
   *
   * @param {number} width @param {number} height @returns {Promise<Blob>} JPEG
   */
  snapshot(width, height) {
    const { videoWidth, videoHeight } = this.#video;
    if (!videoWidth) return Promise.reject(new Error("The camera is off."));
    const scale = Math.max(width / videoWidth, height / videoHeight);
    Object.assign(this.#canvas, { width, height });
    const context = /** @type {CanvasRenderingContext2D} */ (this.#canvas.getContext("2d"));
    if (this.isMirrored) {
      context.translate(width, 0);
      context.scale(-1, 1);
    }
    const [w, h] = [videoWidth * scale, videoHeight * scale];
    context.drawImage(this.#video, (width - w) / 2, (height - h) / 2, w, h);
    return new Promise((resolve, reject) => {
      this.#canvas.toBlob((blob) => {
        if (blob) resolve(blob);
        else reject(new Error("The frame is empty."));
      }, "image/jpeg", 0.85);
    });
  }
}
