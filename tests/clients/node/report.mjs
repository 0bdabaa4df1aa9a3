// Shared by the scripts: run the case that the command line names, and print its report as one line of JSON.
// Each script is called with the service's URL, a key, the path of a picture and the name of a case.
import { readFile } from "node:fs/promises";

// `told` returns what a refusal tells the user, and nothing for another error.
export async function main(cases, told = () => undefined) {
  const [url, key, path, name] = process.argv.slice(2);
  let report;
  try {
    report = await cases[name]({ url, key }, await readFile(path));
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
