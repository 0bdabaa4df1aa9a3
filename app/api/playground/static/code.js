/** Ready-to-run code that requests the pictures on the stage: curl, Python and JavaScript. */

import { FACTS, requestOf } from "./service.js";

const KEY = "YOUR_API_KEY"; // not the real key, as the code may be pasted anywhere

/**
 * @typedef {ReturnType<typeof requestOf> & {url: string, name: string, file: string}} Call
 *   `name` begins the names of the files that the code writes; `file` is the name of a single one.
 */

/** Return the code for a state's pictures. @param {import("./service.js").State} state @param {string} language */
export function codeFor(state, language) {
  const request = requestOf(state);
  const url = new URL(request.path, document.baseURI).href;
  const name = state.start?.name.startsWith("turbo-") ? "next" : "turbo"; // the start picture may be a saved result
  const write = { curl, python, javascript }[language] ?? curl;
  return write({ ...request, url, name, file: `${name}-${state.seed}.png` });
}

const shell = (/** @type {unknown} */ text) => `'${String(text).replaceAll("'", `'\\''`)}'`;

// A JSON string is also a valid string of Python and JavaScript.
const quoted = JSON.stringify;

/** @param {Call} call */
function curl({ url, fields, files, several, file }) {
  const lines = [`curl --fail-with-body -o ${several ? "pictures.json" : file} ${shell(url)}`];
  if (FACTS.with_keys) lines.push(`-H 'Authorization: Bearer ${KEY}'`);
  if (several) lines.push("-H 'Accept: application/json'");
  if (files.length) {
    // Quoted because curl ends a name at a comma or semicolon; --form-string because a prompt may begin with an @.
    for (const [field, { name }] of files) lines.push(`-F ${shell(`${field}=@"${name.replace(/["\\]/g, "\\$&")}"`)}`);
    for (const [field, value] of Object.entries(fields)) lines.push(`--form-string ${shell(`${field}=${value}`)}`);
  } else {
    lines.push("-H 'Content-Type: application/json'", `--data-raw ${shell(JSON.stringify(fields))}`);
  }
  const command = lines.join(" \\\n  ");
  return several ? `${command}\n# The pictures are base64 in it: .images[].b64` : command;
}

/** @param {Call} call */
function python({ url, fields, files, several, name, file }) {
  const headers = /** @type {string[]} */ ([]);
  if (FACTS.with_keys) headers.push(`"Authorization": "Bearer ${KEY}"`);
  if (several) headers.push('"Accept": "application/json"');
  const read = files.map(([field, upload]) => `${quoted(field)}: Path(${quoted(upload.name)}).read_bytes()`).join(", ");
  const said = Object.entries(fields).map(([field, value]) => `        ${quoted(field)}: ${quoted(value)},\n`);
  const save = several
    ? `for image in response.json()["images"]:
    Path(f"${name}-{image['seed']}.png").write_bytes(base64.b64decode(image["b64"]))`
    : `Path("${file}").write_bytes(response.content)`;
  return `${several ? "import base64\n" : ""}from pathlib import Path

import httpx

response = httpx.post(
    ${quoted(url)},
${headers.length ? `    headers={${headers.join(", ")}},\n` : ""}    ${read ? "data" : "json"}={
${said.join("")}    },
${read ? `    files={${read}},\n` : ""}    timeout=120,
)
response.raise_for_status()
${save}
`;
}

/** @param {Call} call */
function javascript({ url, fields, files, several, name, file }) {
  const headers = /** @type {string[]} */ ([]);
  if (FACTS.with_keys) headers.push(`Authorization: "Bearer ${KEY}"`);
  if (several) headers.push('Accept: "application/json"');
  const isForm = files.length > 0;
  if (!isForm) headers.push('"Content-Type": "application/json"');
  const form = Object.entries(fields).map(([field, value]) => `form.append(${quoted(field)}, ${quoted(value)});\n`);
  for (const [field, upload] of files) {
    const path = quoted(upload.name);
    form.push(`form.append(${quoted(field)}, new Blob([await readFile(${path})]), ${path});\n`);
  }
  const said = Object.entries(fields).map(([field, value]) => `    ${field}: ${quoted(value)},\n`);
  const save = several
    ? `for (const { b64, seed } of (await response.json()).images) {
  await writeFile(\`${name}-\${seed}.png\`, Buffer.from(b64, "base64"));
}`
    : `await writeFile("${file}", Buffer.from(await response.arrayBuffer()));`;
  return `// node picture.mjs
import { ${isForm ? "readFile, " : ""}writeFile } from "node:fs/promises";
${
  isForm
    ? `
const form = new FormData();
${form.join("")}`
    : ""
}
const response = await fetch(${quoted(url)}, {
  method: "POST",
${headers.length ? `  headers: { ${headers.join(", ")} },\n` : ""}  body: ${isForm ? "form" : `JSON.stringify({\n${said.join("")}  })`},
});
if (!response.ok) throw new Error(await response.text());
${save}
`;
}
