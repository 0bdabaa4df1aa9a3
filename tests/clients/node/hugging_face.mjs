// Hugging Face's InferenceClient for JavaScript.
import { InferenceClient, InferenceClientProviderApiError } from "@huggingface/inference";
import { encoded, main } from "./report.mjs";

// The client posts each task to exactly this URL.
const client = ({ url, key }) => new InferenceClient(key, { endpointUrl: url, retry_on_error: false });

const blobOf = (picture) => new Blob([picture], { type: "image/png" });

async function report(blob) {
  return { pictures: [encoded(await blob.arrayBuffer())] };
}

const cases = {
  text_to_image: async (service) =>
    report(await client(service).textToImage({ inputs: "a fox", parameters: { seed: 7 } })),

  text_to_image_with_all_parameters: async (service) =>
    report(
      await client(service).textToImage({
        inputs: "a fox",
        parameters: {
          negative_prompt: "blurry",
          height: 256,
          width: 768,
          num_inference_steps: 30,
          guidance_scale: 7.5,
          scheduler: "EulerDiscreteScheduler",
          seed: 7,
        },
      }),
    ),

  text_to_image_as_data_url: async (service) => {
    const text = await client(service).textToImage({ inputs: "a fox" }, { outputType: "dataUrl" });
    return { pictures: [text.split(",")[1]] }; // the client calls every picture a JPEG
  },

  // The file alone, as the client sends it without parameters.
  image_to_image: async (service, picture) => report(await client(service).imageToImage({ inputs: blobOf(picture) })),

  image_to_image_with_seed: async (service, picture) =>
    report(
      await client(service).imageToImage({ inputs: blobOf(picture), parameters: { prompt: "a fox", seed: 7 } }),
    ),

  image_to_image_with_all_parameters: async (service, picture) =>
    report(
      await client(service).imageToImage({
        inputs: blobOf(picture),
        parameters: {
          prompt: "a fox",
          negative_prompt: "blurry",
          num_inference_steps: 30,
          guidance_scale: 7.5,
          target_size: { width: 256, height: 384 },
          strength: 0.75,
          seed: 7,
        },
      }),
    ),

  // The mask is a further parameter, which the client passes on.
  image_to_image_with_mask: async (service, picture, beside) =>
    report(
      await client(service).imageToImage({
        inputs: blobOf(picture),
        parameters: { prompt: "a fox", mask_image: encoded(await beside("white.png")), padding: 16, seed: 7 },
      }),
    ),

  refused: async (service) =>
    report(await client(service).textToImage({ inputs: "a fox", parameters: { width: 100000, height: 64 } })),
};

await main(cases, (error) =>
  error instanceof InferenceClientProviderApiError ? { error: error.message } : undefined,
);
