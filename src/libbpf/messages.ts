// SPDX-License-Identifier: Apache-2.0
import { type Library, loadFfi, type NativeCallback } from "../ffi/index.ts";
import { libc } from "../libc/index.ts";

const LIBBPF_DEBUG = 2;
const LINE_BYTES = 16 * 1024;
const KEPT_LINES = 200;

/** What libbpf said during the operation that listens; undefined while none does. */
let lines: string[] | undefined;
/** Lives as long as the process: libbpf keeps its address. */
let printer: NativeCallback | undefined;

/** Makes libbpf hand its warnings to us instead of writing them to stderr. (libbpf_set_print) */
export function captureMessages(library: Library): void {
  const vsnprintf = libc().function("vsnprintf", "i32", ["pointer", "size_t", "pointer", "pointer"]);
  const text = Buffer.alloc(LINE_BYTES);
  // A va_list argument arrives as a pointer on x86-64 (an array) and arm64 (a struct too large for registers),
  // and vsnprintf takes it the same way.
  printer = loadFfi().callback("i32", ["i32", "pointer", "pointer"], (level, format, list) => {
    if (lines !== undefined && level < LIBBPF_DEBUG) {
      const length = vsnprintf(text, LINE_BYTES, format, list);
      lines.push(text.toString("utf8", 0, Math.min(Math.max(length, 0), LINE_BYTES - 1)).trimEnd());
      if (lines.length > KEPT_LINES) lines.shift();
    }
    return 0;
  });
  library.function("libbpf_set_print", "pointer", ["pointer"])(printer.address);
}

/** Runs an operation whose own words are wanted: what libbpf says meanwhile goes into the error it throws. */
export function listening<T>(operation: () => T): T {
  lines = [];
  try {
    return operation();
  } finally {
    lines = undefined;
  }
}

/** What libbpf said so far during this operation, one message a line. */
export function messages(): string {
  return lines?.join("\n") ?? "";
}
