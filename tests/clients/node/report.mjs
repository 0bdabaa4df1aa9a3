// Shared by the scripts: run the case that the command line names, and print its report as one line of JSON.
// Each script is called with the service's URL, the path of a picture and the name of a case.
import { readFile } from "node:fs/promises";

export async function main(cases) {
  const [url, path, name] = process.argv.slice(2);
  console.log(JSON.stringify(await cases[name](url, await readFile(path))));
}

export const encoded = (bytes) => Buffer.from(bytes).toString("base64");

export async function downloaded(url) {
  return encoded(await (await fetch(url)).arrayBuffer());
}

export const file = (bytes) => new File([bytes], "picture.png", { type: "image/png" });
