// SPDX-License-Identifier: Apache-2.0

import { ROLE_NAMES } from "../abi/codec.ts";
import { reasonOf } from "../abi/reasons.ts";
import { openInstance } from "../kernel/instance.ts";
import { type InterfaceEntry, interfaceName, Tables } from "../tables/index.ts";
import type { OpContext, Role, VerdictCount } from "./types.ts";

/** Packets by interface and reason since the interface was attached; what never occurred is left out. */
export function stats(context: OpContext): VerdictCount[] {
  const instance = openInstance(context.pinRoot);
  try {
    return verdictCounts(new Tables(instance));
  } finally {
    instance.close();
  }
}

/** Where programs count packets of interfaces that are not in the table. */
const NOT_ATTACHED = { slot: 0, ifindex: 0, name: "(not attached)", role: 0 };

export function verdictCounts(tables: Tables): VerdictCount[] {
  const attached = tables.interfaces.list().filter((entry) => entry.slot !== 0);
  return [...attached, NOT_ATTACHED].flatMap((entry) =>
    tables.verdicts
      .read(entry.slot)
      .filter(({ packets }) => packets > 0)
      .map(({ reason, packets, bytes }) => {
        const { name, verdict } = reasonOf(reason);
        const { ifindex } = entry;
        return {
          interface: interfaceName(entry, ifindex),
          ifindex,
          role: roleOf(entry),
          reason: name,
          verdict,
          packets,
          bytes,
        };
      }),
  );
}

function roleOf({ role }: Pick<InterfaceEntry, "role">): Role | null {
  const name = ROLE_NAMES[role];
  return name === "uplink" || name === "tap" ? name : null;
}
