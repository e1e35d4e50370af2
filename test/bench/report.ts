// SPDX-License-Identifier: Apache-2.0
// One table for people, one JSON document for machines.

import { readFileSync } from "node:fs";
import os from "node:os";
import { paired, type Samples, type Spread, spread } from "./stats.ts";

export interface Target {
  /** What is held against it: the value itself, or how it compares with the baseline. */
  of: "value" | "comparison";
  bound: "at_most" | "at_least";
  value: number;
}

export interface Row {
  id: string;
  group: string;
  title: string;
  unit: string;
  value: Spread;
  samples: readonly number[];
  baseline?: { title: string; value: Spread; samples: readonly number[] };
  comparison?: { kind: "difference" | "ratio"; value: Spread };
  target?: Target & { met: boolean };
}

export interface RowOptions {
  id: string;
  title: string;
  /** If it is not the group's. */
  unit?: string;
  /** Of the subject in the samples, if it is not the row's. */
  subject?: string;
  baseline?: { subject: string; title: string };
  comparison?: "difference" | "ratio";
  target?: Target;
}

export class Report {
  readonly rows: Row[] = [];

  /** Rows of one group. */
  add(group: string, unit: string, samples: Samples, rows: readonly RowOptions[]): void {
    for (const row of rows) this.rows.push(makeRow(group, unit, samples, row));
  }

  summary(elapsedSeconds: number): string {
    const judged = this.rows.filter((row) => row.target !== undefined);
    const short = judged.filter((row) => row.target?.met === false);
    const busy = loadAtStart > 0.5 ? `; load was ${loadAtStart} before: not a quiet machine` : "";
    return `${judged.length - short.length} of ${judged.length} targets met in ${Math.round(elapsedSeconds)} s${busy}`;
  }

  json(quick: boolean, seconds: number): string {
    const document = {
      machine: {
        kernel: os.release(),
        cpu: os.cpus()[0]?.model ?? null,
        cpus: os.cpus().length,
        node: process.version,
        load_before: loadAtStart,
        mitigations: mitigations(),
      },
      quick,
      seconds: Math.round(seconds),
      rows: this.rows,
    };
    return `${JSON.stringify(document, null, 2)}\n`;
  }

  text(): string {
    const cells = this.rows.map(rowCells);
    const widths = HEADINGS.map((heading, column) =>
      Math.max(heading.length, ...cells.map((line) => line[column]!.length)),
    );
    const layout = (line: readonly string[]) =>
      line
        .map((cell, column) =>
          LEFT.has(column) ? cell.padEnd(widths[column]!) : cell.padStart(widths[column]!),
        )
        .join("  ")
        .trimEnd();
    const lines = [layout(HEADINGS)];
    let group = "";
    this.rows.forEach((row, index) => {
      const heading = `${row.group}, ${row.unit}`;
      if (heading !== group) lines.push("", heading);
      group = heading;
      lines.push(layout(cells[index]!));
    });
    return `${lines.join("\n")}\n`;
  }
}

const loadAtStart = Number(readFileSync("/proc/loadavg", "utf8").split(" ")[0]);

const HEADINGS = ["", "median", "p25–p75", "baseline", "", "against it (p25–p75)", "target", ""];
/** Columns of words. */
const LEFT: ReadonlySet<number> = new Set([0, 4, 7]);

function makeRow(group: string, unit: string, samples: Samples, options: RowOptions): Row {
  const own = samplesOf(samples, options.subject ?? options.id);
  const row: Row = {
    id: options.id,
    group,
    title: options.title,
    unit: options.unit ?? unit,
    value: spread(own),
    samples: own,
  };
  if (options.baseline !== undefined) {
    const base = samplesOf(samples, options.baseline.subject);
    row.baseline = { title: options.baseline.title, value: spread(base), samples: base };
    if (options.comparison !== undefined) {
      const combine = options.comparison === "ratio" ? ratio : difference;
      row.comparison = { kind: options.comparison, value: spread(paired(own, base, combine)) };
    }
  }
  if (options.target !== undefined) row.target = { ...options.target, met: isMet(row, options.target) };
  return row;
}

function samplesOf(samples: Samples, id: string): readonly number[] {
  const found = samples.get(id);
  if (found === undefined) throw new Error(`nothing was measured as ${id}`);
  return found;
}

const ratio = (a: number, b: number): number => a / b;
const difference = (a: number, b: number): number => a - b;

function isMet(row: Row, target: Target): boolean {
  const value = target.of === "value" ? row.value.median : (row.comparison?.value.median ?? Number.NaN);
  return target.bound === "at_most" ? value <= target.value : value >= target.value;
}

function rowCells(row: Row): string[] {
  const { value, baseline, comparison, target } = row;
  const sign = comparison?.kind === "ratio" ? "×" : "+";
  const against = comparison?.value;
  const signed = (value: number): string => (value < 0 ? number(value) : `${sign}${number(value)}`);
  return [
    `  ${row.title}`,
    number(value.median),
    row.samples.length > 1 ? range(value) : "",
    baseline === undefined ? "" : number(baseline.value.median),
    baseline === undefined ? "" : baseline.title,
    against === undefined ? "" : `${signed(against.median)} (${range(against)})`,
    target === undefined
      ? ""
      : `${target.bound === "at_most" ? "≤" : "≥"} ${target.of === "comparison" ? sign : ""}${target.value.toLocaleString("en-GB")}`,
    target === undefined ? "" : target.met ? "met" : "SHORT",
  ];
}

function range(value: Spread): string {
  return `${number(value.p25)}–${number(value.p75)}`;
}

/** Three significant digits, thousands apart. */
function number(value: number): string {
  if (!Number.isFinite(value)) return String(value);
  const size = Math.abs(value);
  const digits = size >= 100 ? 0 : size >= 10 ? 1 : 2;
  return value.toLocaleString("en-GB", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

function mitigations(): string {
  const read = (name: string) =>
    readFileSync(`/sys/devices/system/cpu/vulnerabilities/${name}`, "utf8").trim();
  return `spectre_v2: ${read("spectre_v2")}; spec_store_bypass: ${read("spec_store_bypass")}`;
}
