// Hugging Face's InferenceClient for JavaScript.
import { InferenceClient, InferenceClientProviderApiError } from "@huggingface/inference";
import { encoded, main } from "./report.mjs";

// The client posts each task to exactly this URL.
const client = (url) => new InferenceClient("none", { endpointUrl: url });

async function report(blob) {
  return { pictures: [encoded(await blob.arrayBuffer())], type: blob.type };
}

await main({
  text_to_image: async (url) => report(await client(url).textToImage({ inputs: "a fox" })),

  text_to_image_with_all_parameters: async (url) =>
    report(
      await client(url).textToImage({
        inputs: "a fox",
        parameters: {
          negative_prompt: "blurry",
          height: 256,
          width: 768,
          num_inference_steps: 30,
          guidance_scale: 7.5,
          scheduler: "EulerDiscreteScheduler",
          seed: 1,
        },
      }),
    ),

  text_to_image_as_data_url: async (url) => {
    const text = await client(url).textToImage({ inputs: "a fox" }, { outputType: "dataUrl" });
    return { pictures: [text.split(",")[1]], type: text.slice(0, text.indexOf(",")) };
  },

  image_to_image: async (url, picture) =>
    report(await client(url).imageToImage({ inputs: new Blob([picture], { type: "image/png" }) })),

  image_to_image_with_all_parameters: async (url, picture) =>
    report(
      await client(url).imageToImage({
        inputs: new Blob([picture], { type: "image/png" }),
        parameters: {
          prompt: "a fox",
          negative_prompt: "blurry",
          num_inference_steps: 30,
          guidance_scale: 7.5,
          target_size: { width: 256, height: 384 },
        },
      }),
    ),

  refused: async (url) => {
    try {
      await client(url).textToImage({ inputs: "a fox", parameters: { width: 100000, height: 64 } });
    } catch (error) {
      if (error instanceof InferenceClientProviderApiError) return { error: error.message };
      throw error;
    }
    return {};
  },
});
