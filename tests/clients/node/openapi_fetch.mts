// openapi-fetch, with the types that openapi-typescript generates.
import createClient from "openapi-fetch";
import { encoded, file, main } from "./report.mjs";
import type { components, paths } from "./schema.d.ts";

type Answer = { data?: ArrayBuffer; error?: components["schemas"]["Problem"]; response: Response };

function report({ data, error, response }: Answer) {
  if (data === undefined) return { error: error?.detail, status: response.status };
  return { pictures: [encoded(data)], type: response.headers.get("content-type") };
}

const client = (url: string) => createClient<paths>({ baseUrl: url });

await main({
  txt2img: async (url: string) =>
    report(
      await client(url).POST("/txt2img", {
        body: { prompt: "a fox", width: 256, height: 384 },
        parseAs: "arrayBuffer",
      }),
    ),

  img2img: async (url: string, picture: Uint8Array) =>
    report(
      await client(url).POST("/img2img", {
        // The generated type of a file is string.
        body: { prompt: "a fox", image: file(picture) as unknown as string, width: 256, height: 384 },
        bodySerializer(body) {
          const form = new FormData();
          for (const [name, value] of Object.entries(body)) form.append(name, value as string | Blob);
          return form;
        },
        parseAs: "arrayBuffer",
      }),
    ),

  wrong_size: async (url: string) =>
    report(
      await client(url).POST("/txt2img", {
        body: { prompt: "a fox", width: 100000 },
        parseAs: "arrayBuffer",
      }),
    ),
});
