// OpenAI's SDK for Node.
import OpenAI, { APIError } from "openai";
import { downloaded, file, main } from "./report.mjs";

const client = ({ url, key }) => new OpenAI({ baseURL: `${url}/v1`, apiKey: key, maxRetries: 0 });

const report = (answer) => ({
  pictures: answer.data.map((image) => image.b64_json),
  seeds: answer.data.map((image) => image.seed),
  size: answer.size,
  warnings: answer.warnings,
});

const cases = {
  async generate(service) {
    const { data, response } = await client(service)
      .images.generate({
        model: "gpt-image-1",
        prompt: "a fox",
        n: 2,
        size: "1536x1024",
        quality: "high",
        background: "auto",
        moderation: "low",
        output_format: "webp",
        user: "someone",
        seed: 7,
        num_inference_steps: 3,
      })
      .withResponse();
    return { ...report(data), ignored: response.headers.get("x-ignored-parameters") };
  },

  async generate_as_urls(service) {
    const answer = await client(service).images.generate({
      model: "dall-e-3",
      prompt: "a fox",
      size: "1792x1024",
      quality: "hd",
      style: "vivid",
      response_format: "url",
      seed: 7,
    });
    return { ...report(answer), pictures: await Promise.all(answer.data.map((image) => downloaded(image.url))) };
  },

  async stream(service) {
    const stream = await client(service).images.generate({
      model: "gpt-image-1",
      prompt: "a fox",
      size: "512x512",
      stream: true,
      partial_images: 1,
      seed: 7,
      num_inference_steps: 3,
    });
    const events = [];
    for await (const event of stream) events.push(event);
    return { events: events.map((event) => event.type), pictures: events.map((event) => event.b64_json) };
  },

  async edit(service, picture) {
    return report(
      await client(service).images.edit({
        model: "gpt-image-1",
        image: file(picture),
        prompt: "a fox",
        n: 2,
        size: "1024x1536",
        quality: "low",
        input_fidelity: "high",
        output_format: "jpeg",
        seed: 7,
        num_inference_steps: 3,
        strength: 0.75,
      }),
    );
  },

  async edit_by_default(service, picture) {
    return report(await client(service).images.edit({ image: file(picture), prompt: "a fox" }));
  },

  async edit_with_mask(service, picture, beside) {
    const [image, mask] = [file(picture), file(await beside("clear.png"))];
    return report(await client(service).images.edit({ model: "gpt-image-1", image, mask, prompt: "a fox" }));
  },

  async edit_with_mask_and_parameters(service, picture, beside) {
    return report(
      await client(service).images.edit({
        model: "gpt-image-1",
        image: file(picture),
        mask: file(await beside("clear.png")),
        prompt: "a fox",
        n: 2,
        size: "1024x1024",
        output_format: "webp",
        seed: 7,
        num_inference_steps: 3,
        strength: 0.75,
      }),
    );
  },
};

await main(cases, (error) => {
  if (!(error instanceof APIError)) return undefined;
  return { error: error.message, status: error.status, code: error.code, param: error.param };
});
