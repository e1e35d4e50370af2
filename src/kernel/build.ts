// SPDX-License-Identifier: Apache-2.0
// Which build this is, and which one's programs are pinned.

import { createHash } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { decode, encode, type StructValue, sizeOf } from "../abi/codec.ts";
import { LAYOUT, type Layout } from "../abi/convert.ts";
import { ABI_VERSION, LAYOUT_BYTES, LAYOUT_HASH } from "../abi/layout.gen.ts";
import { LasthopError } from "../errors.ts";
import type { BpfMap } from "../libbpf/index.ts";
import { packageVersion } from "../version.ts";

/** Names the layout of the tables in the pin path. */
export const ABI_NAME = `v${ABI_VERSION}-${LAYOUT_HASH}`;

const KEY = Buffer.alloc(4);

/** The compiled BPF object of this build: beside the compiled modules, or in dist/ when the sources run. */
export function objectPath(): string {
  return compiled("lasthop.bpf.o");
}

/** That of shared XFRM interfaces. */
export function xfrmObjectPath(): string {
  return compiled("xfrm.bpf.o");
}

function compiled(name: string): string {
  const candidates = [`../bpf/${name}`, `../../dist/bpf/${name}`];
  const paths = candidates.map((path) => fileURLToPath(new URL(path, import.meta.url)));
  const found = paths.find((path) => existsSync(path));
  if (found !== undefined) return found;
  throw new LasthopError("E_LOAD", `the compiled BPF object is missing (${paths[0]})`, {
    hint: "In a source tree: `make build`. Otherwise install the package again.",
  });
}

export interface Build {
  path: string;
  /** SHA-256 of the object files, hexadecimal. */
  object: string;
  /** Of the package. */
  version: string;
}

let build: Build | undefined;

/** Read once: a package that is replaced beneath a running daemon is for the next one. */
export function thisBuild(): Build {
  if (!build) {
    const path = objectPath();
    const hash = createHash("sha256").update(readFileSync(path)).update(readFileSync(xfrmObjectPath()));
    const object = hash.digest("hex");
    build = { path, object, version: packageVersion() };
  }
  return build;
}

/** Whose programs are pinned. All zero if it was never written. */
export function readIdentity(identity: Pick<BpfMap, "lookup">): StructValue<"identity"> {
  return decode("identity", identity.lookup(KEY)!);
}

/** Keeps the count of starts. */
export function writeIdentity(identity: Pick<BpfMap, "lookup" | "update">, build: Build): void {
  const { starts } = readIdentity(identity);
  const object = Buffer.from(build.object, "hex");
  identity.update(KEY, encode("identity", { object, version: build.version.slice(0, 31), starts }));
}

/** So that a later version with another layout can read these tables. */
export function writeLayout(map: Pick<BpfMap, "update">): void {
  const text = Buffer.from(JSON.stringify(LAYOUT));
  if (text.length > LAYOUT_BYTES) throw new RangeError(`the layout has ${text.length} bytes`);
  const value = Buffer.alloc(sizeOf("layout"));
  value.writeUInt32LE(text.length, 0);
  text.copy(value, 4);
  map.update(KEY, value);
}

/** Undefined if there is none, or it cannot be understood. */
export function readLayout(map: Pick<BpfMap, "lookup" | "valueBytes">): Layout | undefined {
  const value = map.lookup(KEY)!;
  const bytes = value.readUInt32LE(0);
  if (bytes === 0 || bytes > value.length - 4) return undefined;
  try {
    return JSON.parse(value.toString("utf8", 4, 4 + bytes)) as Layout;
  } catch (error) {
    if (error instanceof SyntaxError) return undefined;
    throw error;
  }
}
