// SPDX-License-Identifier: Apache-2.0

import type { BpfMap, BpfProgram } from "../libbpf/index.ts";

/** What the typed views need of a map. */
export type TableMap = Pick<
  BpfMap,
  | "info"
  | "valueBytes"
  | "lookup"
  | "lookupInto"
  | "update"
  | "delete"
  | "takeInto"
  | "push"
  | "batches"
  | "updateBatch"
>;

/** Where the maps come from: an instance. */
export interface TableSource {
  map(name: string): TableMap;
  /** For what only a program may do to a table. */
  program?(name: string): Pick<BpfProgram, "testRun">;
}

/** Entries a batch of a large table: some 100 KB, a few hundred microseconds of kernel time. */
export const BATCH_ENTRIES = 4096;
