// SPDX-License-Identifier: Apache-2.0
// The operator's VMs, read again and again: an entry is taken apart, and its text parsed, only when it has changed.

import { decode } from "../abi/codec.ts";
import { VM_SPEC } from "../abi/layout.gen.ts";
import { parseVm } from "../config/entries.ts";
import { ChangeReader, type Tables } from "../tables/index.ts";
import type { NamedVm } from "./serviceSpec.ts";

const { text: TEXT, bytes: BYTES } = VM_SPEC.fields;
/** Entries of 2 KB. */
const BATCH = 256;

/** Null for an entry that cannot be read: whoever settles tells of it. */
export type VmReader = ChangeReader<NamedVm | null>;

export function vmReader({ guests }: Pick<Tables, "guests">): VmReader {
  return new ChangeReader(guests.specs, {
    key: "vm_name",
    batch: BATCH,
    length: (value) => TEXT.offset + Math.min(value.readUInt16LE(BYTES.offset), TEXT.size),
    take(name, value, before) {
      const spec = decode("vm_spec", value);
      if (before?.spec.text.equals(spec.text)) return { ...before, spec };
      const parsed = parseVm(name, spec.text.toString());
      return "entry" in parsed ? { name, config: parsed.entry, spec } : null;
    },
  });
}
