// The Model Context Protocol's own SDK for TypeScript, over streamable HTTP.
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";
import { encoded, main } from "./report.mjs";

async function connected(url, use) {
  const client = new Client({ name: "test", version: "1" });
  await client.connect(new StreamableHTTPClientTransport(new URL(`${url}/mcp`)));
  try {
    return await use(client);
  } finally {
    await client.close();
  }
}

async function call(url, name, args) {
  const result = await connected(url, (client) => client.callTool({ name, arguments: args }));
  const images = result.content.filter((part) => part.type === "image");
  return {
    pictures: images.map((part) => part.data),
    types: images.map((part) => part.mimeType),
    texts: result.content.filter((part) => part.type === "text").map((part) => part.text),
    is_error: result.isError ?? false,
  };
}

await main({
  list_tools: (url) => connected(url, async (client) => ({ tools: (await client.listTools()).tools.map(({ name }) => name) })),
  text_to_image: (url) => call(url, "text_to_image", { prompt: "a fox", width: 256, height: 384 }),
  image_to_image: (url, picture) => call(url, "image_to_image", { prompt: "a fox", image: encoded(picture) }),
  wrong_size: (url) => call(url, "text_to_image", { prompt: "a fox", width: 100000, height: 64 }),
});
