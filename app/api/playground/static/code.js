/** Ready-to-run code that requests the pictures on the stage: curl, Python and JavaScript. */

import { FACTS, requestOf } from "./service.js";

const KEY = "YOUR_API_KEY"; // not the real key, as the code may be pasted anywhere

/** Return the code for a state's pictures. */
export function codeFor(state, language) {
  const request = requestOf(state);
  request.url = new URL(request.path, document.baseURI).href;
  request.name = state.start?.name.startsWith("turbo-") ? "next" : "turbo"; // the start picture may be a saved result
  request.file = `${request.name}-${state.seed}.png`;
  return { curl, python, javascript }[language](request);
}

const shell = (text) => `'${String(text).replaceAll("'", `'\\''`)}'`;

// A JSON string is also a valid string of Python and JavaScript.
const quoted = JSON.stringify;

function curl({ url, fields, start, several, file }) {
  const lines = [`curl --fail-with-body -o ${several ? "pictures.json" : file} ${shell(url)}`];
  if (FACTS.with_keys) lines.push(`-H 'Authorization: Bearer ${KEY}'`);
  if (several) lines.push("-H 'Accept: application/json'");
  if (start) {
    // Quoted because curl ends a name at a comma or semicolon; --form-string because a prompt may begin with an @.
    lines.push(`-F ${shell(`image=@"${start.name.replace(/["\\]/g, "\\$&")}"`)}`);
    for (const [field, value] of Object.entries(fields)) lines.push(`--form-string ${shell(`${field}=${value}`)}`);
  } else {
    lines.push("-H 'Content-Type: application/json'", `--data-raw ${shell(JSON.stringify(fields))}`);
  }
  const command = lines.join(" \\\n  ");
  return several ? `${command}\n# The pictures are base64 in it: .images[].b64` : command;
}

function python({ url, fields, start, several, name, file }) {
  const headers = [];
  if (FACTS.with_keys) headers.push(`"Authorization": "Bearer ${KEY}"`);
  if (several) headers.push('"Accept": "application/json"');
  const said = Object.entries(fields).map(([field, value]) => `        ${quoted(field)}: ${quoted(value)},\n`);
  const save = several
    ? `for image in response.json()["images"]:
    Path(f"${name}-{image['seed']}.png").write_bytes(base64.b64decode(image["b64"]))`
    : `Path("${file}").write_bytes(response.content)`;
  return `${several ? "import base64\n" : ""}from pathlib import Path

import httpx

response = httpx.post(
    ${quoted(url)},
${headers.length ? `    headers={${headers.join(", ")}},\n` : ""}    ${start ? "data" : "json"}={
${said.join("")}    },
${start ? `    files={"image": Path(${quoted(start.name)}).read_bytes()},\n` : ""}    timeout=120,
)
response.raise_for_status()
${save}
`;
}

function javascript({ url, fields, start, several, name, file }) {
  const headers = [];
  if (FACTS.with_keys) headers.push(`Authorization: "Bearer ${KEY}"`);
  if (several) headers.push('Accept: "application/json"');
  if (!start) headers.push('"Content-Type": "application/json"');
  const form = Object.entries(fields).map(([field, value]) => `form.append(${quoted(field)}, ${quoted(value)});\n`);
  const said = Object.entries(fields).map(([field, value]) => `    ${field}: ${quoted(value)},\n`);
  const save = several
    ? `for (const { b64, seed } of (await response.json()).images) {
  await writeFile(\`${name}-\${seed}.png\`, Buffer.from(b64, "base64"));
}`
    : `await writeFile("${file}", Buffer.from(await response.arrayBuffer()));`;
  return `// node picture.mjs
import { ${start ? "readFile, " : ""}writeFile } from "node:fs/promises";
${
  start
    ? `
const form = new FormData();
form.append("image", new Blob([await readFile(${quoted(start.name)})]), ${quoted(start.name)});
${form.join("")}`
    : ""
}
const response = await fetch(${quoted(url)}, {
  method: "POST",
${headers.length ? `  headers: { ${headers.join(", ")} },\n` : ""}  body: ${start ? "form" : `JSON.stringify({\n${said.join("")}  })`},
});
if (!response.ok) throw new Error(await response.text());
${save}
`;
}
