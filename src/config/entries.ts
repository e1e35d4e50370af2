// SPDX-License-Identifier: Apache-2.0
// A VM or a service of the configuration as text, as the tables keep it: JSON without its name, which is the table's
// key, and without what has its default value.

import type { z } from "zod";
import { type ServiceConfig, service, type VmConfig, vm } from "./services.ts";

/** What a text says, or why it says nothing. */
export type Parsed<T> = { entry: T } | { why: string };

const { name: _vm, tap: _tap, ...ofVm } = vm.parse({ name: "x", tap: "x" });
const { kind: _kind, ...ofCheck } = vm.parse({
  name: "x",
  mac: "02:00:00:00:00:01",
  address: "192.0.2.1",
  check: { kind: "neighbour" },
}).check!;
const {
  address: _address,
  pool: _pool,
  ...ofService
} = service.parse({ name: "x", address: "192.0.2.1", pool: [{ vm: "x" }] });
const VM_DEFAULTS = defaultsOf(ofVm);
const CHECK_DEFAULTS = defaultsOf(ofCheck);
const SERVICE_DEFAULTS = defaultsOf(ofService);

export function vmText(config: VmConfig): string {
  const { name: _, check, ...rest } = config;
  return JSON.stringify({ ...without(rest, VM_DEFAULTS), ...(check && { check: shortCheck(check) }) });
}

function shortCheck({ kind, ...rest }: NonNullable<VmConfig["check"]>) {
  return { kind, ...without(rest, CHECK_DEFAULTS) };
}

export function serviceText(config: ServiceConfig): string {
  const { name: _, address, pool, ...rest } = config;
  const members = pool.map(({ weight, ...target }) => (weight === 1 ? target : { ...target, weight }));
  return JSON.stringify({ address, pool: members, ...without(rest, SERVICE_DEFAULTS) });
}

/** Without the keys that say the same as the defaults. */
function without(entry: Record<string, unknown>, defaults: Defaults): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(entry).filter(([key, value]) => JSON.stringify(value) !== defaults.get(key)),
  );
}

/** By key, as JSON. */
type Defaults = ReadonlyMap<string, string>;

function defaultsOf(entry: object): Defaults {
  return new Map(Object.entries(entry).map(([key, value]) => [key, JSON.stringify(value)]));
}

/** Never throws, whatever the text is. */
export function parseVm(name: string, text: string): Parsed<VmConfig> {
  return parseEntry(vm, name, text);
}

/** Never throws, whatever the text is. */
export function parseService(name: string, text: string): Parsed<ServiceConfig> {
  return parseEntry(service, name, text);
}

function parseEntry<S extends z.ZodType>(schema: S, name: string, text: string): Parsed<z.output<S>> {
  let data: unknown;
  try {
    data = JSON.parse(text);
  } catch {
    return { why: "its text is not JSON" };
  }
  if (typeof data !== "object" || data === null || Array.isArray(data))
    return { why: "its text is no entry" };
  const parsed = schema.safeParse({ ...data, name });
  if (parsed.success) return { entry: parsed.data };
  const [first] = parsed.error.issues;
  return { why: `${first!.path.join(".") || "its text"}: ${first!.message}` };
}
