// SPDX-License-Identifier: Apache-2.0
// Entries of what the operator named, as steps: entered, changed, removed.

import type { Step } from "./steps.ts";

interface NamedTable<S extends I, I> {
  get(key: { name: string }): S | undefined;
  set(key: { name: string }, entry: I): void;
  delete(key: { name: string }): boolean;
}

/** Enters or changes it. `make`: from what is there at that moment. */
export function setNamed<S extends I, I>(
  table: NamedTable<S, I>,
  object: string,
  name: string,
  make: (old: S | undefined) => I,
): Step[] {
  const old = table.get({ name });
  return [
    {
      done: `${object}: ${old ? "changed" : "entered"}`,
      do: () => table.set({ name }, make(table.get({ name }))),
      undo: () => {
        if (old) table.set({ name }, old);
        else table.delete({ name });
      },
    },
  ];
}

/** Nothing if it is not there. */
export function removeNamed<S extends I, I>(table: NamedTable<S, I>, object: string, name: string): Step[] {
  const old = table.get({ name });
  if (!old) return [];
  return [
    {
      done: `${object}: removed`,
      do: () => void table.delete({ name }),
      undo: () => table.set({ name }, old),
    },
  ];
}
