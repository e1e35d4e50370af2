// SPDX-License-Identifier: Apache-2.0
// The keys of the configuration as tables, from the JSON Schema.

import { configJsonSchema } from "../../src/config/jsonSchema.ts";

interface Schema {
  title?: string;
  type?: string;
  description?: string;
  default?: unknown;
  enum?: unknown[];
  pattern?: string;
  format?: string;
  minimum?: number;
  maximum?: number;
  maxItems?: number;
  anyOf?: Schema[];
  items?: Schema;
  properties?: Record<string, Schema>;
  additionalProperties?: Schema | boolean;
  required?: string[];
}

export interface KeyRow {
  /** As `uplinks[].exclude[].port`. */
  key: string;
  type: string;
  /** `-` for none, "required" where one must be given. */
  fallback: string;
  meaning: string;
}

export interface KeySection {
  /** Of the list or mapping; empty for the top. */
  key: string;
  meaning: string;
  rows: KeyRow[];
}

/** Every key once, in the order of the schema: a section for the top and for each mapping within it. */
export function keySections(): KeySection[] {
  const sections: KeySection[] = [];
  const add = (key: string, schema: Schema) => {
    const rows = Object.entries(schema.properties ?? {}).map(([name, value]) => ({
      key: key === "" ? name : `${key}.${name}`,
      type: typeText(value),
      fallback: schema.required?.includes(name) ? "required" : fallbackText(value),
      meaning: value.description ?? "",
    }));
    sections.push({ key, meaning: schema.description ?? "", rows });
    for (const [name, value] of Object.entries(schema.properties ?? {})) {
      const path = key === "" ? name : `${key}.${name}`;
      if (value.properties) add(path, value);
      if (value.items?.properties) add(`${path}[]`, { ...value.items, description: value.description ?? "" });
    }
  };
  add("", configJsonSchema() as Schema);
  return sections;
}

function typeText(schema: Schema): string {
  if (schema.title) return schema.title;
  if (schema.enum) return schema.enum.map((word) => `\`${word}\``).join(", ");
  if (schema.anyOf) return [...new Set(schema.anyOf.map(typeText))].join(", or ");
  if (schema.items) {
    const what = schema.items.properties ? "mappings" : plural(typeText(schema.items));
    return `list of ${schema.maxItems === undefined ? "" : `up to ${schema.maxItems} `}${what}`;
  }
  if (schema.type === "object") return schema.properties ? "mapping" : "mapping of names to numbers";
  if (schema.type === "integer") return `whole number, ${schema.minimum} to ${schema.maximum}`;
  if (schema.type === "number") return `number, ${schema.minimum} to ${schema.maximum}`;
  if (schema.type === "boolean") return "`true` or `false`";
  return "text";
}

function plural(type: string): string {
  const [first = "", ...rest] = type.split(", ");
  return [`${first}${first.endsWith("s") ? "es" : "s"}`, ...rest].join(", ");
}

function fallbackText({ default: value }: Schema): string {
  if (value === undefined) return "-";
  if (Array.isArray(value)) return value.length === 0 ? "none" : JSON.stringify(value);
  if (typeof value === "object" && value !== null) {
    const pairs = Object.entries(value).map(([name, item]) => `${name}: ${item}`);
    return pairs.length === 0 ? "see below" : `\`${pairs.join(", ")}\``;
  }
  return `\`${value}\``;
}

const BEGIN = "<!-- keys: written by `make docs` from src/config/schema.ts -->";

/** docs/configuration.md with its tables made anew; what stands before the mark is kept. */
export function configurationDocument(present: string): string {
  const [introduction, rest] = present.split(BEGIN);
  if (rest === undefined) throw new Error(`docs/configuration.md has no line ${BEGIN}`);
  const sections = keySections().map(({ key, meaning, rows }) => {
    const title = key === "" ? "### At the top" : `### \`${key}\`\n\n${sentence(meaning)}`;
    const lines = rows.map((row) => {
      return `| \`${row.key}\` | ${row.type} | ${row.fallback} | ${row.meaning} |`;
    });
    return `${title}\n\n| key | type | default | meaning |\n|---|---|---|---|\n${lines.join("\n")}\n`;
  });
  return `${introduction}${BEGIN}\n\n${sections.join("\n")}`;
}

function sentence(text: string): string {
  return `${text.charAt(0).toUpperCase()}${text.slice(1)}.`;
}
