// OpenAI's SDK for Node.
import OpenAI, { UnprocessableEntityError } from "openai";
import { downloaded, file, main } from "./report.mjs";

const client = (url) => new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });

const report = (answer) => ({
  pictures: answer.data.map((image) => image.b64_json),
  size: answer.size,
  warnings: answer.warnings,
});

await main({
  async generate(url) {
    const { data, response } = await client(url)
      .images.generate({
        model: "gpt-image-1",
        prompt: "a fox",
        n: 2,
        size: "1536x1024",
        quality: "high",
        background: "auto",
        moderation: "low",
        output_format: "webp",
        output_compression: 80,
        user: "someone",
      })
      .withResponse();
    return { ...report(data), ignored: response.headers.get("x-ignored-parameters") };
  },

  async generate_as_urls(url) {
    const answer = await client(url).images.generate({
      model: "dall-e-3",
      prompt: "a fox",
      size: "1792x1024",
      quality: "hd",
      style: "vivid",
      response_format: "url",
    });
    return { ...report(answer), pictures: await Promise.all(answer.data.map((image) => downloaded(image.url))) };
  },

  async stream(url) {
    const stream = await client(url).images.generate({
      model: "gpt-image-1",
      prompt: "a fox",
      size: "512x512",
      stream: true,
      partial_images: 1,
    });
    const events = [];
    for await (const event of stream) events.push(event);
    return { events: events.map((event) => event.type), pictures: events.map((event) => event.b64_json) };
  },

  async edit(url, picture) {
    return report(
      await client(url).images.edit({
        model: "gpt-image-1",
        image: file(picture),
        prompt: "a fox",
        size: "1024x1536",
        quality: "low",
        input_fidelity: "high",
        output_format: "jpeg",
      }),
    );
  },

  async edit_with_mask(url, picture) {
    try {
      await client(url).images.edit({
        model: "gpt-image-1",
        image: file(picture),
        mask: file(picture),
        prompt: "a fox",
      });
    } catch (error) {
      if (error instanceof UnprocessableEntityError) return { error: error.message, param: error.param };
      throw error;
    }
    return {};
  },
});
