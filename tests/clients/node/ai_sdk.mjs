// Vercel's AI SDK, with its providers for OpenAI and for services with OpenAI's API.
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, generateImage } from "ai";
import { encoded, main } from "./report.mjs";

globalThis.AI_SDK_LOG_WARNINGS = false;

const openai = (url) => createOpenAI({ baseURL: `${url}/v1`, apiKey: "none" });
const compatible = (url) => createOpenAICompatible({ name: "turbo", baseURL: `${url}/v1`, apiKey: "none" });

async function report(options) {
  const { images, warnings, responses } = await generateImage({ maxRetries: 0, ...options });
  return {
    pictures: images.map((image) => encoded(image.uint8Array)),
    warnings,
    ignored: responses[0].headers["x-ignored-parameters"],
  };
}

async function failure(options) {
  try {
    await report(options);
  } catch (error) {
    if (APICallError.isInstance(error)) return { error: error.message, status: error.statusCode };
    throw error;
  }
  return {};
}

await main({
  openai_by_default: (url) => report({ model: openai(url).image("gpt-image-1"), prompt: "a fox" }),

  openai_with_options: (url) =>
    report({
      model: openai(url).image("gpt-image-1"),
      prompt: "a fox",
      n: 2,
      size: "1536x1024",
      providerOptions: { openai: { quality: "high", moderation: "low", outputFormat: "webp" } },
    }),

  openai_dall_e_3: (url) =>
    report({
      model: openai(url).image("dall-e-3"),
      prompt: "a fox",
      size: "1024x1792",
      providerOptions: { openai: { quality: "hd", style: "natural" } },
    }),

  openai_edit: (url, picture) =>
    report({
      model: openai(url).image("gpt-image-1"),
      prompt: { text: "a fox", images: [picture] },
      size: "1024x1536",
      providerOptions: { openai: { inputFidelity: "high" } },
    }),

  openai_mask: (url, picture) =>
    failure({
      model: openai(url).image("gpt-image-1"),
      prompt: { text: "a fox", images: [picture], mask: picture },
    }),

  compatible_by_default: (url) => report({ model: compatible(url).imageModel("gpt-image-1"), prompt: "a fox" }),

  compatible_dall_e_3_by_default: (url) => report({ model: compatible(url).imageModel("dall-e-3"), prompt: "a fox" }),

  compatible_with_options: (url) =>
    report({
      model: compatible(url).imageModel("dall-e-3"),
      prompt: "a fox",
      n: 3,
      size: "768x512",
      seed: 7,
      providerOptions: { turbo: { quality: "standard", num_inference_steps: 2, seed: 7 } },
    }),

  compatible_edit: (url, picture) =>
    report({
      model: compatible(url).imageModel("gpt-image-1"),
      prompt: { text: "a fox", images: [picture] },
      size: "512x512",
      providerOptions: { turbo: { strength: 0.5, num_inference_steps: 2 } },
    }),

  compatible_wrong_size: (url) =>
    failure({ model: compatible(url).imageModel("gpt-image-1"), prompt: "a fox", size: "100000x64" }),
});
