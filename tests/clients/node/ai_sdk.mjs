// Vercel's AI SDK, with its providers for OpenAI and for services with OpenAI's API.
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, generateImage } from "ai";
import { encoded, main } from "./report.mjs";

globalThis.AI_SDK_LOG_WARNINGS = false;

const openai = ({ url, key }, name = "gpt-image-1") => createOpenAI({ baseURL: `${url}/v1`, apiKey: key }).image(name);

const compatible = ({ url, key }, name = "gpt-image-1") =>
  createOpenAICompatible({ name: "turbo", baseURL: `${url}/v1`, apiKey: key }).imageModel(name);

async function report(model, options) {
  const { images, warnings, responses } = await generateImage({ model, prompt: "a fox", maxRetries: 0, ...options });
  return {
    pictures: images.map((image) => encoded(image.uint8Array)),
    warnings,
    ignored: responses[0].headers["x-ignored-parameters"],
  };
}

const cases = {
  openai_by_default: (service) => report(openai(service)),

  openai_with_options: (service) =>
    report(openai(service), {
      n: 2,
      size: "1536x1024",
      seed: 7,
      providerOptions: { openai: { quality: "high", moderation: "low", outputFormat: "webp" } },
    }),

  openai_dall_e_3: (service) =>
    report(openai(service, "dall-e-3"), {
      size: "1024x1792",
      providerOptions: { openai: { quality: "hd", style: "natural" } },
    }),

  openai_edit: (service, picture) =>
    report(openai(service), {
      prompt: { text: "a fox", images: [picture] },
      size: "1024x1536",
      providerOptions: { openai: { inputFidelity: "high" } },
    }),

  openai_edit_by_default: (service, picture) => report(openai(service), { prompt: { text: "a fox", images: [picture] } }),

  openai_mask: async (service, picture, beside) =>
    report(openai(service), { prompt: { text: "a fox", images: [picture], mask: await beside("clear.png") } }),

  openai_transparent: (service) =>
    report(openai(service), { providerOptions: { openai: { background: "transparent" } } }),

  compatible_by_default: (service) => report(compatible(service)),

  compatible_dall_e_3_by_default: (service) => report(compatible(service, "dall-e-3")),

  compatible_with_options: (service) =>
    report(compatible(service, "dall-e-3"), {
      n: 3,
      size: "768x512",
      providerOptions: { turbo: { quality: "standard", num_inference_steps: 3, seed: 7 } },
    }),

  compatible_edit: (service, picture) =>
    report(compatible(service), {
      prompt: { text: "a fox", images: [picture] },
      size: "512x512",
      providerOptions: { turbo: { strength: 0.75, num_inference_steps: 3, seed: 7 } },
    }),

  compatible_mask: async (service, picture, beside) =>
    report(compatible(service), { prompt: { text: "a fox", images: [picture], mask: await beside("clear.png") } }),

  compatible_edit_by_default: (service, picture) =>
    report(compatible(service), { prompt: { text: "a fox", images: [picture] } }),

  compatible_wrong_size: (service) => report(compatible(service), { size: "100000x64" }),
};

await main(cases, (error) =>
  APICallError.isInstance(error) ? { error: error.message, status: error.statusCode } : undefined,
);
