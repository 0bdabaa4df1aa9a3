// Shared by the scripts: run the case that the command line names, and print its report as one line of JSON.
// Each script is called with the service's URL, a key, the path of a picture and the name of a case. Beside the picture
// are masks of one part of it: clear.png is transparent there, as OpenAI's API wants it, and white.png is white.
import { readFile } from "node:fs/promises";
import { dirname, join } from "node:path";

// A case gets the service, the picture, and a function that reads a file beside it.
// `told` returns what a refusal tells the user, and nothing for another error.
export async function main(cases, told = () => undefined) {
  const [url, key, path, name] = process.argv.slice(2);
  let report;
  try {
    const beside = (file) => readFile(join(dirname(path), file));
    report = await cases[name]({ url, key }, await readFile(path), beside);
  } catch (error) {
    report = told(error);
    if (report === undefined) throw error;
  }
  console.log(JSON.stringify(report));
}

export const encoded = (bytes) => Buffer.from(bytes).toString("base64");

export async function downloaded(url) {
  return encoded(await (await fetch(url)).arrayBuffer());
}

export const file = (bytes) => new File([bytes], "picture.png", { type: "image/png" });
