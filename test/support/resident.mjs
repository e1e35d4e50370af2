// SPDX-License-Identifier: Apache-2.0
// A process on the host that carries out command lines, {id, args} -> {id, status, stdout, stderr}, as if each were a
// process of its own, and asks what modules answer, {id, module, args} -> {id, answer}; a line each. Where starting a
// process is slow, this is many times as fast. It ends with its stdin. Plain JavaScript, because it runs by itself on
// Node 20. Its argument is the folder of a build.

import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const dist = process.argv[2];

function capture() {
  const chunks = [];
  const write = async (data) => {
    chunks.push(Buffer.from(data));
  };
  return {
    output: { isTerminal: false, columns: 80, write },
    text: () => Buffer.concat(chunks).toString(),
  };
}

async function command(args) {
  const { main } = await import(pathToFileURL(`${dist}/cli/cli.js`).href);
  const [stdout, stderr] = [capture(), capture()];
  const { signal } = new AbortController();
  const status = await main(args, { stdout: stdout.output, stderr: stderr.output, signal });
  return { status, stdout: stdout.text(), stderr: stderr.text() };
}

async function ask(module, args) {
  const { default: answer } = await import(pathToFileURL(module).href);
  return { answer: await answer(dist, ...args) };
}

for await (const line of createInterface({ input: process.stdin })) {
  const { id, module, args } = JSON.parse(line);
  const result = module === undefined ? await command(args) : await ask(module, args);
  process.stdout.write(`${JSON.stringify({ id, ...result })}\n`);
}
