// SPDX-License-Identifier: Apache-2.0
// Holds docs/configuration.md, docs/config.schema.json and examples/ to the validator.

import { readdirSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { parse } from "yaml";
import { z } from "zod";
import { configJsonSchema } from "../../src/config/jsonSchema.ts";
import { loadConfig, parseConfig } from "../../src/config/load.ts";
import { configSchema } from "../../src/config/schema.ts";
import { configYaml } from "../../src/config/show.ts";
import { configurationDocument, keySections } from "../support/configReference.ts";

const path = (name: string) => fileURLToPath(new URL(`../../${name}`, import.meta.url));
const read = (name: string) => readFileSync(path(name), "utf8");

/** As somebody else's validator would read it. */
const PUBLISHED = z.fromJSONSchema(JSON.parse(JSON.stringify(configJsonSchema())));

/** `make docs` writes it. */
test("docs/config.schema.json is what the code says", async () => {
  const text = `${JSON.stringify(configJsonSchema(), null, 2)}\n`;
  await expect(text).toMatchFileSnapshot("../../docs/config.schema.json");
});

/** `make docs` writes its tables. */
test("docs/configuration.md has the keys as the code has them", async () => {
  const text = configurationDocument(read("docs/configuration.md"));
  await expect(text).toMatchFileSnapshot("../../docs/configuration.md");
});

describe("docs/configuration.md", () => {
  const text = read("docs/configuration.md");

  test("has every key of a full configuration, with a type and a meaning", () => {
    const rows = keySections().flatMap((section) => section.rows);
    for (const row of rows) {
      expect(row.meaning, row.key).toMatch(/.{4}/);
      expect(row.type, row.key).not.toBe("");
    }
    const full = parseConfig(read("test/unit/fixtures/config/full.yaml"), "full.yaml");
    const known = rows.map((row) => row.key);
    for (const key of keysIn(full)) expect(known).toContain(key);
    for (const { key, type } of rows) {
      if (!type.startsWith("mapping") && !type.includes("mappings")) expect([...keysIn(full)]).toContain(key);
    }
  });

  test.each([...text.matchAll(/^```yaml\n(.*?)^```/gms)].map((match) => [match[1]!]))(
    "the example %j is right",
    (example) => {
      expect(parseConfig(example, "example").uplinks.length).toBeGreaterThan(0);
    },
  );

  test("names only files that exist", () => {
    for (const [, link] of text.matchAll(/\]\(([^)#:]+)\)/g)) {
      expect(() => readdirSync(path("docs")), link).not.toThrow();
      expect(readable(path(`docs/${link}`)), link).toBe(true);
    }
  });
});

/** Of the leaves: `uplinks[].exclude[].port`. */
function keysIn(value: unknown, key = ""): Set<string> {
  if (Array.isArray(value)) {
    const items = value.filter((item) => typeof item === "object");
    return new Set(items.length === 0 ? [key] : items.flatMap((item) => [...keysIn(item, `${key}[]`)]));
  }
  if (typeof value !== "object" || value === null || key === "zones") return new Set([key]);
  const entries = Object.entries(value);
  return new Set(entries.flatMap(([name, item]) => [...keysIn(item, key === "" ? name : `${key}.${name}`)]));
}

function readable(name: string): boolean {
  try {
    return name.endsWith("/examples") ? readdirSync(name).length > 0 : readFileSync(name).length > 0;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return false;
    throw error;
  }
}

/** Others are of other programs. */
const LASTHOP_EXAMPLES = readdirSync(path("examples")).filter((name) => {
  return name.endsWith(".yaml") && read(`examples/${name}`).includes("config.schema.json");
});

describe("examples", () => {
  test("are there", () => {
    expect(LASTHOP_EXAMPLES).toEqual(
      expect.arrayContaining(["bridged-two-firewalls.yaml", "routed.yaml", "services.yaml", "tenants.yaml"]),
    );
  });
});

describe.each(LASTHOP_EXAMPLES)("examples/%s", (name) => {
  const config = loadConfig(path(`examples/${name}`));

  test("is right, and has uplinks, taps and devices", () => {
    for (const list of [config.uplinks, config.taps, config.devices]) expect(list.length).toBeGreaterThan(0);
  });

  test("with its defaults filled in is the same", () => {
    const shown = configYaml(config);
    expect(parseConfig(shown, "shown")).toEqual(config);
    expect(configYaml(parseConfig(shown, "shown"))).toBe(shown);
  });

  test("fits the JSON Schema", () => {
    expect(PUBLISHED.safeParse(parse(read(`examples/${name}`))).error).toBeUndefined();
  });
});

describe("the JSON Schema", () => {
  test("lets everything out that has a default", () => {
    expect(PUBLISHED.safeParse({}).success).toBe(true);
    expect(configSchema.safeParse({}).success).toBe(true);
  });

  test.each([
    { uplink: [] },
    { uplinks: [{ name: "eth0", mode: "nativ" }] },
    { uplinks: [{ mode: "tc" }] },
    { taps: [{ name: "a b" }] },
    { taps: [{ guest_mac: "02:00" }] },
    { devices: [{ name: "a", macs: ["x"] }] },
    { devices: [{ name: "a", on_down: "peer:" }] },
    { vms: [{ name: "a", tap: "eth*" }] },
    { vms: [{ name: "a", tap: "t", check: { kind: "ping" } }] },
    { services: [{ name: "s", address: "192.0.2.1" }] },
    { services: [{ name: "s", address: "192.0.2.1", pool: [] }] },
    { services: [{ name: "s", address: "192.0.2.1", pool: [{ vm: "a", weight: 0 }] }] },
    { services: [{ name: "s", address: "192.0.2.1", pool: [{ vm: "a" }], answer: "vm:" }] },
    { timeouts: { tcp: 1 } },
    { log: { level: "loud" } },
    { zones: { a: -1 } },
  ])("refuses %j", (data) => {
    expect(PUBLISHED.safeParse(data).success).toBe(false);
    expect(configSchema.safeParse(data).success).toBe(false);
  });
});
