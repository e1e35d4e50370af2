// SPDX-License-Identifier: Apache-2.0
// From a file to a configuration that holds together, or to everything that is wrong with it.

import { isUtf8 } from "node:buffer";
import { closeSync, openSync, readSync } from "node:fs";
import type { z } from "zod";
import { LasthopError } from "../errors.ts";
import { crossCheck, type Entry, type Sound } from "./check.ts";
import { type Place, placeOf, readDocument } from "./document.ts";
import { ConfigError, type Finding, pathText } from "./problems.ts";
import {
  type Config,
  configSchema,
  type DeviceConfig,
  entrySchemas,
  type LabelStackConfig,
  type ServiceConfig,
  type TapConfig,
  type UplinkConfig,
  type VmConfig,
} from "./schema.ts";
import type { TunnelConfig } from "./tunnels.ts";
import { type Complaint, complaints } from "./wording.ts";

export { ConfigError, type Finding as ConfigProblem, findingText } from "./problems.ts";

/** Twice what all services take that there may be, each with every key. */
const MEBIBYTES_MAX = 8;
const BYTES_MAX = MEBIBYTES_MAX * 1024 * 1024;

/** Reads and checks a file. Throws LasthopError E_CONFIG; a ConfigError if the text is what is wrong. */
export function loadConfig(path: string): Config {
  const bytes = readBounded(path);
  if (bytes.length > BYTES_MAX) {
    throw new LasthopError(
      "E_CONFIG",
      `${path} is larger than ${MEBIBYTES_MAX} MiB: this is no configuration of lasthop`,
    );
  }
  if (!isUtf8(bytes)) throw new ConfigError(path, [notUtf8(bytes)]);
  return parseConfig(bytes.toString("utf8"), path);
}

/**
 * Checks a text; `source` is what messages call it. An empty text is a configuration of defaults.
 * Throws ConfigError (E_CONFIG) with every problem, each with its line and column.
 */
export function parseConfig(text: string, source: string): Config {
  const { config, problems } = examine(text);
  if (config === undefined) throw new ConfigError(source, problems);
  return config;
}

function examine(text: string): { config: Config | undefined; problems: Finding[] } {
  if (text.length > BYTES_MAX) {
    return {
      config: undefined,
      problems: [{ line: 1, column: 1, path: "", message: `larger than ${MEBIBYTES_MAX} MiB` }],
    };
  }
  const { data = {}, place, problems } = readDocument(text);
  const unread = problems.length > 0 && place.children.size === 0;
  if (unread) return { config: undefined, problems: ordered(problems) };
  const parsed = configSchema.safeParse(data);
  const issues = parsed.error?.issues ?? [];
  const found = [
    ...issues.flatMap((issue) => complaints(issue, data, configSchema)),
    ...crossCheck(soundParts(data)),
  ];
  const settled = new Set(problems.map((problem) => problem.path));
  for (const complaint of found) {
    const problem = located(complaint, place);
    if (settled.has(problem.path)) continue;
    if (complaint.fatal) settled.add(problem.path);
    problems.push(problem);
  }
  if (problems.length > 0 || !parsed.success) return { config: undefined, problems: ordered(problems) };
  return { config: parsed.data, problems };
}

function ordered(problems: Finding[]): Finding[] {
  return problems.sort((a, b) => a.line - b.line || a.column - b.column);
}

function located({ path, on, message }: Complaint, top: Place): Finding {
  const place = placeOf(top, path);
  const position = on === "key" ? (place.key ?? place.value) : place.value;
  return { ...position, path: pathText(path), message };
}

/** What can be checked against each other, whatever else is wrong. */
function soundParts(data: unknown): Sound {
  const top = isMapping(data) ? data : {};
  const zones = configSchema.shape.zones.safeParse(top.zones);
  const sweep = configSchema.shape.sweep.safeParse(top.sweep);
  return {
    zones: zones.success ? zones.data : null,
    uplinks: soundEntries<UplinkConfig>(entrySchemas.uplinks, top.uplinks),
    taps: soundEntries<TapConfig>(entrySchemas.taps, top.taps),
    devices: soundEntries<DeviceConfig>(entrySchemas.devices, top.devices),
    vms: soundEntries<VmConfig>(entrySchemas.vms, top.vms),
    services: soundEntries<ServiceConfig>(entrySchemas.services, top.services),
    tunnels: soundEntries<TunnelConfig>(entrySchemas.tunnels, top.tunnels),
    sweep: sweep.success ? sweep.data : null,
    labelStacks: soundEntries<LabelStackConfig>(
      entrySchemas.labelStacks,
      isMapping(top.mpls) ? top.mpls.label_stacks : undefined,
    ),
  };
}

function soundEntries<T>(schema: { shape: Record<string, z.ZodType> }, list: unknown): Entry<T>[] {
  if (!Array.isArray(list)) return [];
  return list.flatMap((item, index) => {
    if (!isMapping(item)) return [];
    const entry: Record<string, unknown> = {};
    for (const [key, value] of Object.entries(schema.shape)) {
      const parsed = value.safeParse(item[key]);
      if (parsed.success) entry[key] = parsed.data;
    }
    return [[index, entry as Partial<T>] as const];
  });
}

function isMapping(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** A little more than is allowed at most, also of what has no size: a pipe, a device. */
function readBounded(path: string): Buffer {
  let fd: number | undefined;
  try {
    fd = openSync(path, "r");
    const bytes = Buffer.alloc(BYTES_MAX + 1);
    let length = 0;
    for (let read = -1; read !== 0 && length < bytes.length; length += read) {
      read = readSync(fd, bytes, length, bytes.length - length, null);
    }
    return bytes.subarray(0, length);
  } catch (error) {
    throw unreadable(path, error as NodeJS.ErrnoException);
  } finally {
    if (fd !== undefined) closeSync(fd);
  }
}

const READ_HINTS: Record<string, string> = {
  ENOENT: "Give the path of a file; `lasthop config schema` says what may stand in it.",
  EACCES: "Run it as root, or as a user who may read the file.",
};

function unreadable(path: string, error: NodeJS.ErrnoException): LasthopError {
  const words: Record<string, string> = {
    ENOENT: `there is no file ${path}`,
    EISDIR: `${path} is a directory, not a file`,
    EACCES: `${path} may not be read by this user`,
  };
  const hint = READ_HINTS[error.code ?? ""];
  return new LasthopError("E_CONFIG", words[error.code ?? ""] ?? `${path} cannot be read: ${error.message}`, {
    cause: error,
    ...(hint !== undefined && { hint }),
  });
}

/** Points at the first byte that cannot be UTF-8. */
function notUtf8(bytes: Buffer): Finding {
  let good = 0;
  for (let bad = bytes.length; bad - good > 1; ) {
    const middle = (good + bad) >> 1;
    if (beginsUtf8(bytes.subarray(0, middle))) good = middle;
    else bad = middle;
  }
  const before = bytes.toString("utf8", 0, good).replace(/\ufffd$/, "");
  const line = before.split("\n").length;
  const column = before.length - before.lastIndexOf("\n");
  return { line, column, path: "", message: "not UTF-8: save the file in that encoding" };
}

/** Whether these bytes may be the beginning of UTF-8, though they end within a character. */
function beginsUtf8(bytes: Buffer): boolean {
  try {
    new TextDecoder("utf-8", { fatal: true }).decode(bytes, { stream: true });
    return true;
  } catch (error) {
    if (error instanceof TypeError) return false;
    throw error;
  }
}
