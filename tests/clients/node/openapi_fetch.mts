// openapi-fetch, with the types that openapi-typescript generates.
import createClient from "openapi-fetch";
import { encoded, file, main } from "./report.mjs";
import type { components, paths } from "./schema.d.ts";

type Service = { url: string; key: string };
type Answer = { data?: ArrayBuffer; error?: components["schemas"]["Problem"]; response: Response };
type Txt2Img = NonNullable<paths["/txt2img"]["post"]["requestBody"]>["content"]["application/json"];
type Img2Img = NonNullable<paths["/img2img"]["post"]["requestBody"]>["content"]["multipart/form-data"];

type Inpaint = NonNullable<paths["/inpaint"]["post"]["requestBody"]>["content"]["multipart/form-data"];

function report({ data, error, response }: Answer) {
  if (data === undefined) return { error: error?.detail, status: response.status };
  return { pictures: [encoded(data)] };
}

const client = ({ url, key }: Service) =>
  createClient<paths>({ baseUrl: url, headers: { Authorization: `Bearer ${key}` } });

const made = async (service: Service, body: Txt2Img) =>
  report(await client(service).POST("/txt2img", { body, parseAs: "arrayBuffer" }));

// The generated type of a file is string.
const upload = (bytes: Uint8Array) => file(bytes) as unknown as string;

function asForm(body: object) {
  const form = new FormData();
  for (const [name, value] of Object.entries(body)) form.append(name, value as string | Blob);
  return form;
}

const edited = async (service: Service, picture: Uint8Array, fields: Omit<Img2Img, "prompt" | "image">) =>
  report(
    await client(service).POST("/img2img", {
      body: { prompt: "a fox", image: upload(picture), ...fields },
      bodySerializer: asForm,
      parseAs: "arrayBuffer",
    }),
  );

const inpainted = async (service: Service, body: Inpaint) =>
  report(await client(service).POST("/inpaint", { body, bodySerializer: asForm, parseAs: "arrayBuffer" }));

await main({
  txt2img: (service: Service) =>
    made(service, { prompt: "a fox", width: 256, height: 384, num_inference_steps: 3, seed: 7 }),

  txt2img_by_default: (service: Service) => made(service, { prompt: "a fox" }),

  img2img: (service: Service, picture: Uint8Array) =>
    edited(service, picture, { width: 256, height: 384, strength: 0.75, num_inference_steps: 3, seed: 7 }),

  img2img_by_default: (service: Service, picture: Uint8Array) => edited(service, picture, {}),

  inpaint: async (service: Service, picture: Uint8Array, beside: (name: string) => Promise<Uint8Array>) =>
    inpainted(service, {
      prompt: "a fox",
      image: upload(picture),
      mask: upload(await beside("white.png")),
      padding: 16,
      feather: 8,
      extend: "8,0,16,0",
      num_inference_steps: 3,
      seed: 7,
    }),

  wrong_size: (service: Service) => made(service, { prompt: "a fox", width: 100000 }),
});
