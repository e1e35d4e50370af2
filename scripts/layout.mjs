#!/usr/bin/env node
// SPDX-License-Identifier: Apache-2.0
// Writes src/abi/layout.gen.ts: what the compiler made of bpf/abi.h, read back from its BTF.
// With --check it writes nothing, and fails with the difference if the committed file is not that.
//
// Types that nothing uses leave no BTF, and macros never do. So a file is compiled that uses every
// struct and enum that abi.h names and has every macro as an enumerator; the names are all that is
// read from the text, sizes, offsets and values are the compiler's.

import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";

const ROOT = dirname(dirname(fileURLToPath(import.meta.url)));
const HEADER = join(ROOT, "bpf/abi.h");
const OUTPUT = join(ROOT, "src/abi/layout.gen.ts");
const MULTIARCH =
  { x64: "x86_64-linux-gnu", arm64: "aarch64-linux-gnu" }[process.arch] ?? `${process.arch}-linux-gnu`;

function main() {
  const text = generate(readBtf(readFileSync(HEADER, "utf8")));
  if (!process.argv.includes("--check")) {
    writeFileSync(OUTPUT, text);
    return;
  }
  const directory = mkdtempSync(join(tmpdir(), "lasthop-layout-"));
  try {
    const fresh = join(directory, "layout.gen.ts");
    writeFileSync(fresh, text);
    const name = relative(ROOT, OUTPUT);
    run("diff", ["-u", "--label", `${name} (committed)`, "--label", `${name} (from abi.h)`, OUTPUT, fresh]);
  } catch (error) {
    if (error.stdout === undefined || error.status !== 1) throw error;
    process.stdout.write(error.stdout);
    fail(
      "src/abi/layout.gen.ts is not what bpf/abi.h says: run `node scripts/layout.mjs` and commit the result",
    );
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

/** Compiles the header's types and returns {types, structs, enums, constants: names}. */
function readBtf(header) {
  const names = (pattern) => [...header.matchAll(pattern)].map((match) => match[1]).sort();
  const structs = names(/^struct (\w+) \{/gm);
  const enums = names(/^enum (\w+) \{/gm);
  const constants = names(/^#define (\w+)[ \t]+\S/gm);
  const source = [
    '#include "abi.h"',
    `enum abi_constants { ${constants.map((name) => `CONSTANT_${name} = (${name})`).join(", ")} };`,
    "struct {",
    ...structs.map((name) => `struct ${name} struct_${name};`),
    ...enums.map((name) => `enum ${name} enum_${name};`),
    "enum abi_constants constants;",
    "} abi;",
  ].join("\n");
  const directory = mkdtempSync(join(tmpdir(), "lasthop-layout-"));
  try {
    const input = join(directory, "layout.bpf.c");
    const object = join(directory, "layout.bpf.o");
    writeFileSync(input, `${source}\n`);
    run(process.env.CLANG ?? "clang", [
      ...["-target", "bpf", "-mcpu=v3", "-g", "-O2", "-Wall", "-Werror"],
      ...[`-I/usr/include/${MULTIARCH}`, `-I${dirname(HEADER)}`, "-c", input, "-o", object],
    ]);
    const dump = run(process.env.BPFTOOL ?? "bpftool", ["-j", "btf", "dump", "file", object]);
    return { types: JSON.parse(dump).types, structs, enums, constants };
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

function generate({ types, structs, enums, constants }) {
  const byId = new Map(types.map((type) => [type.id, type]));
  const find = (kind, name) =>
    types.find((type) => type.kind === kind && type.name === name) ??
    fail(`abi.h: no BTF for ${kind} ${name}`);

  const layout = { constants: {}, enums: {}, structs: {} };
  for (const name of constants) {
    const found = find("ENUM", "abi_constants").values.find((value) => value.name === `CONSTANT_${name}`);
    layout.constants[name] = found.val >>> 0;
  }
  for (const name of enums) {
    const { values, count } = enumValues(name, find("ENUM", name).values);
    layout.enums[name] = values;
    if (count) layout.constants[count.name] = count.val;
  }
  for (const name of structs) layout.structs[name] = structLayout(find("STRUCT", name), byId);
  layout.constants = Object.fromEntries(
    Object.entries(layout.constants).sort(([a], [b]) => (a < b ? -1 : 1)),
  );
  return render(layout);
}

/**
 * Enumerators without the prefix that they share with their enum's name (FLOW_NEW of flow_state is
 * NEW). A last one that is the enum's name in the plural is how many there are, not one of them.
 */
function enumValues(name, values) {
  const upper = name.toUpperCase();
  const count = values.find((value) => value.name === `${upper}S`);
  const members = values.filter((value) => value !== count);
  const parts = upper.split("_");
  const prefixes = parts.map((_, index) => `${parts.slice(0, parts.length - index).join("_")}_`);
  const prefix = prefixes.find((candidate) => members.every((value) => value.name.startsWith(candidate)));
  if (prefix === undefined) fail(`abi.h: enumerators of ${name} do not begin with a part of its name`);
  return {
    count,
    values: Object.fromEntries(members.map((value) => [value.name.slice(prefix.length), value.val])),
  };
}

function structLayout(struct, byId) {
  const fields = {};
  let end = 0;
  for (const member of struct.members) {
    const offset = member.bits_offset / 8;
    const type = fieldType(member.type_id, byId);
    if (!Number.isInteger(offset)) fail(`abi.h: bit field ${struct.name}.${member.name}`);
    if (offset !== end) fail(`abi.h: ${offset - end} bytes of padding before ${struct.name}.${member.name}`);
    fields[member.name] = { offset, ...type };
    end = offset + type.size;
  }
  if (end !== struct.size) fail(`abi.h: ${struct.size - end} bytes of padding at the end of ${struct.name}`);
  return { name: struct.name, size: struct.size, fields };
}

function fieldType(id, byId) {
  const type = byId.get(id);
  switch (type.kind) {
    case "TYPEDEF": {
      const inner = fieldType(type.type_id, byId);
      // Byte order is in the typedef's name and nowhere else.
      return type.name.startsWith("__be") ? { size: inner.size, kind: type.name.slice(2) } : inner;
    }
    case "INT":
      if (type.name === "char") return { size: 1, kind: "char" };
      return { size: type.size, kind: `u${type.size * 8}` };
    case "STRUCT":
      return { size: type.size, kind: "struct", struct: type.name };
    case "ARRAY": {
      const element = fieldType(type.type_id, byId);
      const size = element.size * type.nr_elems;
      if (element.kind === "u8") return { size, kind: "bytes" };
      if (element.kind === "char") return { size, kind: "text" };
      return { size, kind: "array", count: type.nr_elems, element };
    }
    default:
      return fail(`abi.h: a field of kind ${type.kind}`);
  }
}

function render(layout) {
  const hash = createHash("sha256").update(JSON.stringify(layout)).digest("hex").slice(0, 8);
  const lines = [
    "// SPDX-License-Identifier: Apache-2.0",
    "// Generated by scripts/layout.mjs from the BTF of bpf/abi.h. Do not edit.",
    "",
    "/** First eight digits of the SHA-256 of all that follows. */",
    `export const LAYOUT_HASH = "${hash}";`,
    "",
  ];
  const used = new Set(["LAYOUT_HASH", "ENUMS", "STRUCTS"]);
  const emit = (name, value) => {
    if (used.has(name)) fail(`abi.h: ${name} names two things`);
    used.add(name);
    lines.push(`export const ${name} = ${value};`);
  };
  for (const [name, value] of Object.entries(layout.constants)) emit(name, String(value));
  for (const [name, values] of Object.entries(layout.enums)) {
    lines.push("", `/** enum ${name} */`);
    const members = Object.entries(values).map(([key, value]) => `  ${key}: ${value},\n`);
    emit(name.toUpperCase(), `{\n${members.join("")}} as const`);
  }
  for (const [name, struct] of Object.entries(layout.structs)) {
    lines.push("", `/** struct ${name} */`);
    const fields = Object.entries(struct.fields).map(([key, field]) => `    ${key}: ${literal(field)},\n`);
    emit(
      name.toUpperCase(),
      `{\n  name: "${name}",\n  size: ${struct.size},\n  fields: {\n${fields.join("")}  },\n} as const`,
    );
  }
  const index = (names) =>
    `{\n${names.map((name) => `  ${name}: ${name.toUpperCase()},\n`).join("")}} as const`;
  lines.push("", `export const ENUMS = ${index(Object.keys(layout.enums))};`);
  lines.push("", `export const STRUCTS = ${index(Object.keys(layout.structs))};`);
  return `${lines.join("\n")}\n`;
}

function literal(value) {
  if (typeof value !== "object") return JSON.stringify(value);
  return `{ ${Object.entries(value)
    .map(([key, inner]) => `${key}: ${literal(inner)}`)
    .join(", ")} }`;
}

function run(command, args) {
  try {
    return execFileSync(command, args, {
      encoding: "utf8",
      maxBuffer: 1 << 26,
      stdio: ["ignore", "pipe", "inherit"],
    });
  } catch (error) {
    if (error.code === "ENOENT")
      fail(`${command} not found: install the packages clang, bpftool and libbpf-dev`);
    throw error;
  }
}

function fail(message) {
  throw Object.assign(new Error(message), { expected: true });
}

try {
  main();
} catch (error) {
  process.stderr.write(`layout: ${error.expected ? error.message : error.stack}\n`);
  process.exitCode = 1;
}
