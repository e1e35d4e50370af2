// SPDX-License-Identifier: Apache-2.0
// What the operator named, by its name.

import { LasthopError } from "../errors.ts";
import { suggest } from "../suggest.ts";

const NAME_BYTES_MAX = 31;
/** Commands that list them. */
const LISTS = { VM: "vms", service: "services", device: "devices" } as const;

interface Named<T> {
  get(key: { name: string }): T | undefined;
  keys(): Iterable<{ name: string }>;
}

/** Throws E_NOT_FOUND, with the name that was probably meant. */
export function findNamed<T>(table: Named<T>, what: keyof typeof LISTS, name: string): T {
  const entry = Buffer.byteLength(name) <= NAME_BYTES_MAX ? table.get({ name }) : undefined;
  if (entry) return entry;
  const meant = suggest(
    name,
    [...table.keys()].map((key) => key.name),
  );
  throw new LasthopError("E_NOT_FOUND", `there is no ${what} ${JSON.stringify(name)}`, {
    hint: meant === undefined ? `\`lasthop ${LISTS[what]} list\` shows them.` : `Did you mean ${meant}?`,
  });
}
