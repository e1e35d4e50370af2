// SPDX-License-Identifier: Apache-2.0
// Plain tables: columns two spaces apart, no borders.

export interface Column {
  title: string;
  /** Numbers are set against their right edge. */
  right?: boolean;
  /** Left out where no row has anything in it. */
  optional?: boolean;
}

export type Cell = string | number | null;

const GAP = "  ";

export function table(columns: readonly Column[], rows: readonly (readonly Cell[])[]): string {
  const isShown = columns.map(({ optional }, at) => !optional || rows.some((row) => row[at] !== null));
  const shown = <T>(cells: readonly T[]): T[] => cells.filter((_, at) => isShown[at]);
  const layout = new TableLayout(shown(columns));
  for (const row of rows) layout.fit(shown(row));
  return [layout.header(), ...rows.map((row) => layout.line(shown(row)))].join("");
}

/** Column widths that grow with what is put in, for tables that are written as they are read. */
export class TableLayout {
  readonly #columns: readonly Column[];
  readonly #widths: number[];

  constructor(columns: readonly Column[]) {
    this.#columns = columns;
    this.#widths = columns.map((column) => displayWidth(column.title));
  }

  fit(row: readonly Cell[]): void {
    row.forEach((cell, index) => {
      this.#widths[index] = Math.max(this.#widths[index] ?? 0, displayWidth(text(cell)));
    });
  }

  header(): string {
    return this.line(this.#columns.map((column) => column.title));
  }

  line(row: readonly Cell[]): string {
    const cells = row.map((cell, index) => {
      const value = text(cell);
      const padding = " ".repeat(Math.max(0, (this.#widths[index] ?? 0) - displayWidth(value)));
      return this.#columns[index]?.right ? padding + value : value + padding;
    });
    return `${cells.join(GAP).trimEnd()}\n`;
  }
}

/** All of one thing: its name, and under it what is known of it. Null is left out. */
export function factsText(name: string, facts: readonly (readonly [string, string | null])[]): string {
  const known = facts.filter(([, value]) => value !== null);
  const width = Math.max(0, ...known.map(([key]) => key.length));
  const lines = known.map(([key, value]) => `  ${key.padEnd(width)}  ${printable(value!)}\n`);
  return `${printable(name)}\n${lines.join("")}`;
}

function text(cell: Cell): string {
  return cell === null ? "-" : printable(String(cell));
}

/** Control characters (an interface name may hold them) made visible, so that they cannot drive a terminal. */
export function printable(value: string): string {
  return value.replace(/\p{Cc}/gu, (character) => {
    return `\\x${character.codePointAt(0)?.toString(16).padStart(2, "0")}`;
  });
}

const ASCII = /^[\x20-\x7e]*$/;
const WIDE =
  /^[\p{Emoji_Presentation}\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\uffe0-\uffe6\u{20000}-\u{3fffd}]/u;
const graphemes = new Intl.Segmenter();

/** Columns that a text takes on a terminal: combining marks none, East Asian wide characters two. */
export function displayWidth(value: string): number {
  if (ASCII.test(value)) return value.length;
  let width = 0;
  for (const { segment } of graphemes.segment(value)) width += WIDE.test(segment) ? 2 : 1;
  return width;
}
