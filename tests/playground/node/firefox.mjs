/**
 * The playground in Firefox: node --test-reporter=spec firefox.mjs URL [SCREENSHOT]
 *
 * Each test is a scenario on a page of its own, and fails if the page complains. The other browser tests are in Python
 * and use Chromium; these here find out whether Firefox differs.
 */

import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { after, before, test } from "node:test";

import puppeteer from "puppeteer-core";

const [url, screenshot] = process.argv.slice(2);

/** How long pages wait: long, as other processes may keep the processors busy. */
const PATIENCE_MS = 20_000;

/** @type {import("puppeteer-core").Browser} */
let browser;

/** @type {string} The home folder of the browser, which refuses to run as root with that of another user. */
let home;

before(async () => {
  home = await mkdtemp(path.join(tmpdir(), "firefox-"));
  browser = await puppeteer.launch({
    browser: "firefox",
    executablePath: process.env.FIREFOX ?? "/usr/bin/firefox-esr",
    headless: true,
    env: { ...process.env, HOME: home },
    defaultViewport: { width: 1280, height: 900 },
    extraPrefsFirefox: {
      "intl.accept_languages": "en",
      "media.navigator.streams.fake": true, // a camera that shows a test picture
      "media.navigator.permission.disabled": true,
    },
  });
});

after(async () => {
  await browser?.close();
  await rm(home, { recursive: true, force: true, maxRetries: 5 });
});

class Visit {
  /** What the page or the browser complained about. @type {string[]} */
  complaints = [];

  /** @param {import("puppeteer-core").Page} page */
  constructor(page) {
    this.page = page;
    page.setDefaultTimeout(PATIENCE_MS);
    page.on("console", (message) => {
      if (["error", "warn"].includes(message.type())) this.complaints.push(message.text());
    });
    page.on("pageerror", (error) => this.complaints.push(String(error)));
    page.on("response", (response) => {
      if (response.status() >= 400) this.complaints.push(`${response.status()} of ${response.url()}`);
    });
  }

  async open() {
    await this.page.goto(url);
    await this.page.waitForSelector("#examples button");
  }

  /** @param {string} prompt */
  async type(prompt) {
    await this.page.type("#prompt", prompt);
  }

  /**
   * Wait until the stage shows the picture of this prompt and no request is running.
   *
   * @param {string} prompt
   */
  async expectShown(prompt) {
    await this.page.waitForSelector(`#stage:not(.busy) #pictures img[alt=${JSON.stringify(prompt)}]`);
  }

  /**
   * Do something that makes the page ask for a picture, and wait for that request.
   *
   * @param {string} route
   * @param {() => Promise<void>} act Its error, if it fails, is the one that is thrown.
   */
  async expectRequest(route, act) {
    const sent = this.page.waitForRequest((request) => request.url().endsWith(route));
    await Promise.all([sent, act()]);
  }

  /** @param {string} css */
  text(css) {
    return this.page.$eval(css, (element) => element.textContent?.trim());
  }

  /**
   * Press the mouse's button at the first of these points of an element, move along the others, and release it.
   *
   * @param {string} css
   * @param {[number, number][]} points As shares of the element's width and height.
   */
  async drag(css, points) {
    const box = await (await this.page.waitForSelector(css, { visible: true }))?.boundingBox();
    assert.ok(box, `${css} is not visible`);
    const [first, ...others] = points.map(([x, y]) => ({ x: box.x + x * box.width, y: box.y + y * box.height }));
    const { mouse } = this.page;
    await mouse.move(first.x, first.y);
    await mouse.down();
    for (const { x, y } of others) await mouse.move(x, y, { steps: 4 });
    await mouse.up();
  }

  /**
   * Drop a PNG of one colour on the page.
   *
   * @param {string} css The element under the pointer.
   * @param {string} name
   */
  async drop(css, name) {
    await this.page.$eval(
      css,
      async (element, fileName) => {
        const canvas = new OffscreenCanvas(64, 64);
        const context = canvas.getContext("2d");
        if (!context) throw new Error("no canvas");
        context.fillStyle = "teal";
        context.fillRect(0, 0, 64, 64);
        const dataTransfer = new DataTransfer();
        dataTransfer.items.add(new File([await canvas.convertToBlob()], fileName, { type: "image/png" }));
        for (const type of ["dragenter", "dragover", "drop"]) {
          element.dispatchEvent(new DragEvent(type, { bubbles: true, cancelable: true, dataTransfer }));
        }
      },
      name,
    );
  }
}

/**
 * Test something on a new page.
 *
 * @param {string} name
 * @param {(visit: Visit) => Promise<void>} act
 */
function scenario(name, act) {
  test(name, async () => {
    const context = await browser.createBrowserContext();
    const visit = new Visit(await context.newPage());
    try {
      await visit.open();
      await act(visit);
      assert.deepEqual(visit.complaints, []);
    } catch (error) {
      if (visit.complaints.length) console.error(`${name}:`, visit.complaints); // often the cause
      throw error;
    } finally {
      await context.close();
    }
  });
}

scenario("the picture follows what is typed", async (visit) => {
  await visit.type("a fox");
  await visit.expectShown("a fox");
  await visit.type(" with a scarf");
  await visit.expectShown("a fox with a scarf");
  if (screenshot) await visit.page.screenshot({ path: /** @type {`${string}.png`} */ (screenshot) });
});

scenario("the page changes to Chinese, and the picture stays", async (visit) => {
  await visit.type("a fox");
  await visit.expectShown("a fox");
  assert.equal(await visit.text("#download"), "Download");
  await visit.page.click("#language");
  await visit.page.waitForSelector("html[lang=zh-CN]");
  assert.equal(await visit.text("#download"), "下载");
  await visit.expectShown("a fox");
});

scenario("a dropped file is the start picture of the next request", async (visit) => {
  await visit.drop("#stage", "teal.png");
  await visit.page.waitForSelector("#chosen:not([hidden])");
  assert.equal(await visit.text("#file-name"), "teal.png");
  await visit.expectRequest("/img2img", () => visit.type("a fox"));
  await visit.expectShown("a fox");
});

scenario("a stroke is a start picture, and can be undone", async (visit) => {
  await visit.type("a hill");
  await visit.expectShown("a hill");
  await visit.page.click(".tabs [data-source=draw]");
  await visit.expectRequest("/img2img", () => visit.drag("#drawing", [[0.2, 0.2], [0.8, 0.2]]));
  const colour = () => visit.page.$eval("#drawing", async (canvas) => {
    for (let frame = 0; frame < 2; frame += 1) await new Promise(requestAnimationFrame);
    const { width } = /** @type {HTMLCanvasElement} */ (canvas);
    const context = /** @type {HTMLCanvasElement} */ (canvas).getContext("2d");
    return [...(context?.getImageData(width / 2, width / 5, 1, 1).data ?? [])];
  });
  assert.deepEqual(await colour(), [34, 34, 34, 255]);
  await visit.page.click("#undo");
  assert.deepEqual(await colour(), [255, 255, 255, 255]);
  await visit.expectShown("a hill");
});

scenario("what is painted over a picture is drawn anew", async (visit) => {
  await visit.type("a hill");
  await visit.expectShown("a hill");
  await visit.page.click("#retouch");
  await visit.expectRequest("/inpaint", () => visit.drag("#mask", [[0.2, 0.2], [0.8, 0.2]]));
  await visit.expectShown("a hill");
});

scenario("the picture follows the camera until it is stopped", async (visit) => {
  await visit.type("a hill");
  await visit.expectShown("a hill");
  await visit.page.click(".tabs [data-source=camera]");
  await visit.page.waitForSelector("#camera-switch", { visible: true });
  await visit.expectRequest("/img2img", () => visit.page.click("#camera-switch"));
  await visit.expectRequest("/img2img", async () => {});
  await visit.page.click("#camera-switch");
  await visit.page.waitForFunction(() => document.querySelector("video")?.srcObject === null);
});
