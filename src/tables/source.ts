// SPDX-License-Identifier: Apache-2.0

import type { BpfMap } from "../libbpf/index.ts";

/** What the typed views need of a map. */
export type TableMap = Pick<
  BpfMap,
  | "info"
  | "valueBytes"
  | "lookup"
  | "lookupInto"
  | "update"
  | "delete"
  | "push"
  | "batches"
  | "deleteBatch"
  | "updateBatch"
>;

/** Where the maps come from: an instance. */
export interface TableSource {
  map(name: string): TableMap;
}

/** Entries a batch of a large table: some 100 KB, a few hundred microseconds of kernel time. */
export const BATCH_ENTRIES = 4096;
