// SPDX-License-Identifier: Apache-2.0

import { sizeOf } from "../abi/codec.ts";
import { REASONS, VERDICT_COUNT } from "../abi/layout.gen.ts";
import type { TableMap, TableSource } from "./source.ts";

export interface ReasonCount {
  /** enum reason */
  reason: number;
  packets: number;
  bytes: number;
}

/** Packets and bytes by an interface's slot and by reason. */
export class VerdictTable {
  readonly #map: TableMap;
  readonly #key = Buffer.alloc(4);
  readonly #values: Buffer;

  constructor(source: TableSource) {
    this.#map = source.map("verdicts");
    this.#values = Buffer.alloc(this.#map.valueBytes);
  }

  /** Summed over the CPUs, every reason, also those that never occurred. Slot 0: not attached. */
  read(slot: number): ReasonCount[] {
    return Array.from({ length: REASONS }, (_, reason) => ({
      reason,
      ...this.#sum(slot * REASONS + reason),
    }));
  }

  /** For a slot that a new interface gets. */
  clear(slot: number): void {
    const zero = Buffer.alloc(this.#map.valueBytes);
    for (let reason = 0; reason < REASONS; reason++) {
      this.#key.writeUInt32LE(slot * REASONS + reason);
      this.#map.update(this.#key, zero);
    }
  }

  #sum(row: number): { packets: number; bytes: number } {
    const { packets: packetsAt, bytes: bytesAt } = VERDICT_COUNT.fields;
    const sum = { packets: 0, bytes: 0 };
    this.#key.writeUInt32LE(row);
    if (!this.#map.lookupInto(this.#key, this.#values)) return sum;
    for (let offset = 0; offset < this.#values.length; offset += sizeOf("verdict_count")) {
      sum.packets += Number(this.#values.readBigUInt64LE(offset + packetsAt.offset));
      sum.bytes += Number(this.#values.readBigUInt64LE(offset + bytesAt.offset));
    }
    return sum;
  }
}
