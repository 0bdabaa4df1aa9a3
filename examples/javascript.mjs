// Text to image, image to image and inpainting, with fetch:  [SERVICE_KEY=KEY] node examples/javascript.mjs [URL]
//
// A web page can import `ask` and show a picture with URL.createObjectURL(await answer.blob()). If the page's origin is not the
// service's own, name it in TURBO_CORS_ORIGINS.

const ATTEMPTS = 5;

/** Send a request. If the service is busy, retry after `Retry-After`. On any other error, throw the service's reason. */
export async function ask(url, init) {
  for (let attempt = 1; ; attempt++) {
    const answer = await fetch(url, { method: "POST", ...init });
    if (answer.ok) return answer;
    const seconds = answer.headers.get("Retry-After");
    if (![429, 503].includes(answer.status) || seconds === null || attempt === ATTEMPTS) {
      const problem = await answer.json(); // application/problem+json: `detail` is for people, `code` is for programs
      throw new Error(`${problem.code}: ${problem.detail}`);
    }
    await new Promise((resolve) => setTimeout(resolve, seconds * 1000));
  }
}

async function main(url, key) {
  const { writeFile } = await import("node:fs/promises");
  const headers = key ? { "X-API-Key": key } : {};

  const made = await ask(`${url}/txt2img`, {
    headers: { ...headers, "Content-Type": "application/json" },
    body: JSON.stringify({ prompt: "a fox with a scarf", seed: 1 }),
  });
  const picture = await made.blob();
  await writeFile("one.png", Buffer.from(await picture.arrayBuffer()));
  console.log("one.png, seed", made.headers.get("X-Seed"));

  // The same fox on another background. fetch sets the form's Content-Type itself.
  const form = new FormData();
  form.append("image", picture, "one.png");
  form.append("prompt", "a fox on a blue background");
  form.append("strength", "0.5");
  form.append("num_inference_steps", "2");
  form.append("seed", "1");
  const changed = await ask(`${url}/img2img`, { headers, body: form });
  const edited = await changed.blob();
  await writeFile("two.png", Buffer.from(await edited.arrayBuffer()));
  console.log("two.png,", changed.headers.get("Server-Timing"));

  // The same picture, 256 pixels wider on both sides (top, right, bottom, left). To draw a part of a picture anew, append a
  // `mask` instead, which is white there.
  const wider = new FormData();
  wider.append("image", edited, "two.png");
  wider.append("prompt", "a fox in a wide blue room");
  wider.append("extend", "0,256,0,256");
  wider.append("seed", "1");
  const extended = await ask(`${url}/inpaint`, { headers, body: wider });
  await writeFile("three.png", Buffer.from(await extended.arrayBuffer()));
  console.log("three.png,", extended.headers.get("X-Image-Size"));
}

if (globalThis.process?.argv[1]?.endsWith("javascript.mjs")) {
  const { argv, env } = process;
  main(argv[2] ?? env.SERVICE_URL ?? "http://127.0.0.1:8000", env.SERVICE_KEY).catch((error) => {
    console.error(error.message);
    process.exitCode = 1;
  });
}
