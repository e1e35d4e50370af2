// SPDX-License-Identifier: Apache-2.0
// A YAML document as plain data, with the place of every key and value. Stricter than YAML: one document,
// version 1.2, no tags, each key once; and bounded, whatever the text is.

import {
  Composer,
  type Document,
  isAlias,
  isMap,
  isScalar,
  isSeq,
  Lexer,
  type Pair,
  type ParsedNode,
  Parser,
} from "yaml";
import { type Finding, type Position, pathText } from "./problems.ts";

/** Deeper than any configuration; deeper ones would exhaust the composer's stack. */
const PARSER_DEPTH_MAX = 24;
/** Twice as many as all services have that there may be, each with every key. */
const LIMITS = {
  /** Keys, values, punctuation, ends of lines. */
  lexemes: 4_000_000,
  /** With aliases expanded. */
  nodes: 2_000_000,
};

/** Where a value stands, and what is in it. */
export interface Place {
  value: Position;
  /** Where its key stands, for entries of a mapping. */
  key?: Position;
  children: Map<string | number, Place>;
}

export interface PlainDocument {
  /** Mappings, lists and scalars; undefined for an empty document. */
  data: unknown;
  place: Place;
  problems: Finding[];
}

type Problem = (offset: number, message: string, path?: readonly (string | number)[]) => void;

/** Reads a document. With problems in its syntax there is no data. */
export function readDocument(text: string, limits = LIMITS): PlainDocument {
  const position = positions(text);
  const problems: Finding[] = [];
  const problem: Problem = (offset, message, path = []) => {
    problems.push({ ...position(offset), path: pathText(path), message });
  };
  const top: Place = { value: { line: 1, column: 1 }, children: new Map() };
  const document = withoutStacks(() => compose(text, limits.lexemes, position, problem));
  if (document === undefined || problems.length > 0) return { data: undefined, place: top, problems };
  const node = document.contents;
  if (isNothing(node)) return { data: undefined, place: top, problems };
  const { data, place } = new Flattener(limits.nodes, position, problem).flatten(node as ParsedNode);
  return { data, place, problems };
}

/** Finds line and column of an offset. */
function positions(text: string): (offset: number) => Position {
  const starts = [0];
  for (let end = text.indexOf("\n"); end !== -1; end = text.indexOf("\n", end + 1)) starts.push(end + 1);
  return (offset) => {
    let line = 1;
    for (let after = starts.length + 1; after - line > 1; ) {
      const middle = (line + after) >> 1;
      if (starts[middle - 1]! <= offset) line = middle;
      else after = middle;
    }
    return { line, column: offset - starts[line - 1]! + 1 };
  };
}

/** The composer makes an error of each mistake, by the thousand if it must: where from is of no use. */
function withoutStacks<T>(work: () => T): T {
  const { stackTraceLimit } = Error;
  Error.stackTraceLimit = 0;
  try {
    return work();
  } finally {
    Error.stackTraceLimit = stackTraceLimit;
  }
}

function compose(
  text: string,
  lexemesMax: number,
  position: (offset: number) => Position,
  problem: Problem,
): Document.Parsed | undefined {
  const parser = new Parser();
  const tokens = [];
  let lexemes = 0;
  for (const lexeme of new Lexer().lex(text)) {
    if (++lexemes > lexemesMax) {
      problem(parser.offset, "too many entries");
      return undefined;
    }
    tokens.push(...parser.next(lexeme));
    if (parser.stack.length > PARSER_DEPTH_MAX) {
      problem(parser.offset, "nested too deeply");
      return undefined;
    }
  }
  tokens.push(...parser.end());
  const options = { prettyErrors: false, uniqueKeys: false, stringKeys: true, logLevel: "silent" } as const;
  const [document, second] = new Composer(options).compose(tokens, true, text.length);
  if (second) problem(second.range[0], "a second document: the file holds one");
  const version = document?.directives.yaml;
  if (version?.explicit && version.version !== "1.2") {
    problem(0, `YAML ${version.version}: the file is read as YAML 1.2, leave the %YAML line out`);
  }
  const seen = new Set<number>();
  for (const { pos, code, message } of [...(document?.errors ?? []), ...(document?.warnings ?? [])]) {
    // One mistake makes many errors.
    const { line } = position(pos[0]);
    if (seen.has(line)) continue;
    seen.add(line);
    problem(pos[0], SYNTAX_WORDS[code] ?? syntaxText(message));
  }
  return document;
}

const SYNTAX_WORDS: Record<string, string> = {
  NON_STRING_KEY: "a key is a word, no list, mapping or alias",
  TAG_RESOLVE_FAILED: "tags (!…) are not used here",
  TAB_AS_INDENT: "indented by a tab: use spaces",
};

function syntaxText(message: string): string {
  return `not YAML: ${message.charAt(0).toLowerCase()}${message.slice(1)}`;
}

function isNothing(node: unknown): boolean {
  return node === null || node === undefined || (isScalar(node) && node.value === null && node.source === "");
}

interface Flat {
  data: unknown;
  place: Place;
}

type Path = readonly (string | number)[];

/** Makes plain data of nodes. Aliases are resolved here, so that their number and their rings are bounded. */
class Flattener {
  readonly #nodesMax: number;
  readonly #position: (offset: number) => Position;
  readonly #problem: Problem;
  readonly #anchors = new Map<string, ParsedNode>();
  readonly #open = new Set<ParsedNode>();
  #nodes = 0;

  constructor(nodesMax: number, position: (offset: number) => Position, problem: Problem) {
    this.#nodesMax = nodesMax;
    this.#position = position;
    this.#problem = problem;
  }

  flatten(node: ParsedNode | null, path: Path = [], key?: Position): Flat {
    const place: Place = {
      value: isNothing(node) && key ? key : this.#position(node?.range[0] ?? 0),
      children: new Map(),
      ...(key && { key }),
    };
    if (++this.#nodes > this.#nodesMax) {
      if (this.#nodes === this.#nodesMax + 1) this.#problem(node?.range[0] ?? 0, "too many entries");
      return { data: null, place };
    }
    if (node === null) return { data: null, place };
    if (isAlias(node)) return this.#alias(node.source, node.range[0], path, place);
    if (node.anchor !== undefined) this.#anchors.set(node.anchor, node);
    if (isScalar(node)) return { data: node.value, place };
    this.#open.add(node);
    const data = isSeq(node) ? this.#list(node.items, path, place) : this.#mapping(node, path, place);
    this.#open.delete(node);
    return { data, place };
  }

  #alias(name: string, offset: number, path: Path, place: Place): Flat {
    const target = this.#anchors.get(name);
    if (target === undefined || this.#open.has(target)) {
      const what = target === undefined ? `no anchor &${name} stands before it` : "it would contain itself";
      this.#problem(offset, `alias *${name}: ${what}`, path);
      return { data: null, place };
    }
    const { data, place: there } = this.flatten(target, path);
    return { data, place: { ...place, children: there.children } };
  }

  #list(items: readonly ParsedNode[], path: Path, place: Place): unknown[] {
    return items.map((item, index) => {
      const flat = this.flatten(item, [...path, index]);
      place.children.set(index, flat.place);
      return flat.data;
    });
  }

  #mapping(node: ParsedNode, path: Path, place: Place): Record<string, unknown> {
    const data: Record<string, unknown> = {};
    const pairs = isMap(node) ? (node.items as Pair<ParsedNode, ParsedNode | null>[]) : [];
    for (const { key, value } of pairs) {
      const name = isScalar(key) ? String(key.value) : "";
      const offset = key.range[0];
      const here = [...path, name];
      const first = place.children.get(name);
      if (name === "__proto__") this.#problem(offset, "is not a key", here);
      else if (first?.key) this.#problem(offset, `given twice, first on line ${first.key.line}`, here);
      else {
        const flat = this.flatten(value, here, this.#position(offset));
        place.children.set(name, flat.place);
        data[name] = flat.data;
      }
    }
    return data;
  }
}

/** The place of what a path names; as far as there is one. */
export function placeOf(place: Place, path: Path): Place {
  let found = place;
  for (const step of path) {
    const next = found.children.get(step);
    if (next === undefined) break;
    found = next;
  }
  return found;
}
