// The Model Context Protocol's own SDK for TypeScript, over streamable HTTP.
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StreamableHTTPClientTransport, StreamableHTTPError } from "@modelcontextprotocol/sdk/client/streamableHttp.js";
import { encoded, main } from "./report.mjs";

async function connected({ url, key }, use) {
  const client = new Client({ name: "test", version: "1" });
  const requestInit = { headers: { Authorization: `Bearer ${key}` } };
  await client.connect(new StreamableHTTPClientTransport(new URL(`${url}/mcp`), { requestInit }));
  try {
    return await use(client);
  } finally {
    await client.close();
  }
}

async function call(service, name, args) {
  const result = await connected(service, (client) => client.callTool({ name, arguments: args }));
  const images = result.content.filter((part) => part.type === "image");
  return {
    pictures: images.map((part) => part.data),
    types: images.map((part) => part.mimeType),
    texts: result.content.filter((part) => part.type === "text").map((part) => part.text),
    is_error: result.isError ?? false,
  };
}

const cases = {
  list_tools: (service) =>
    connected(service, async (client) => ({ tools: (await client.listTools()).tools.map(({ name }) => name) })),

  text_to_image: (service) =>
    call(service, "text_to_image", { prompt: "a fox", width: 256, height: 384, num_inference_steps: 3, seed: 7 }),

  text_to_png: (service) => call(service, "text_to_image", { prompt: "a fox", seed: 7, format: "png" }),

  image_to_image: (service, picture) =>
    call(service, "image_to_image", {
      prompt: "a fox",
      image: encoded(picture),
      num_inference_steps: 3,
      strength: 0.75,
      seed: 7,
    }),

  wrong_size: (service) => call(service, "text_to_image", { prompt: "a fox", width: 100000, height: 64 }),
};

await main(cases, (error) => (error instanceof StreamableHTTPError ? { error: error.message } : undefined));
