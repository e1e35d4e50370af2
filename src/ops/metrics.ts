// SPDX-License-Identifier: Apache-2.0

import { closeSync, fchmodSync, openSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { LasthopError } from "../errors.ts";
import { openInstance } from "../kernel/instance.ts";
import { type DaemonMetrics, type FamilyData, readMetrics, renderMetrics } from "../metrics/index.ts";
import type { OpContext } from "./types.ts";

/** What the tables tell Prometheus, in its text format; with `daemon` also what that knows. Opens the tables anew. */
export async function metricsText(
  context: Pick<OpContext, "pinRoot">,
  daemon?: DaemonMetrics,
): Promise<string> {
  using instance = openInstance(context.pinRoot);
  // The instance has to stay open until it is read.
  return await renderMetrics({ instance, ...(daemon === undefined ? {} : { daemon }) });
}

/** The same as data, without a daemon's. */
export async function metricsData(context: Pick<OpContext, "pinRoot">): Promise<FamilyData[]> {
  using instance = openInstance(context.pinRoot);
  return await readMetrics(instance);
}

const READABLE_BY_ALL = 0o644;

/**
 * Puts the text in place of the file in one step: who reads it sees the old text or the new one. Throws E_OUTPUT,
 * and leaves the old file as it was.
 */
export function replaceFile(path: string, text: string): void {
  // Not *.prom: the node exporter would read it.
  const draft = join(dirname(path), `.${basename(path)}.${process.pid}`);
  try {
    const fd = openSync(draft, "w");
    try {
      writeDraft(fd, text);
      renameSync(draft, path);
    } catch (error) {
      rmSync(draft, { force: true });
      throw error;
    }
  } catch (cause) {
    throw new LasthopError("E_OUTPUT", `cannot write ${path}: ${(cause as Error).message}`, {
      cause,
      hint: "Its directory must exist and be writable; the file is replaced by renaming.",
    });
  }
}

function writeDraft(fd: number, text: string): void {
  try {
    // Whatever the umask: the node exporter is somebody else.
    fchmodSync(fd, READABLE_BY_ALL);
    writeFileSync(fd, text);
  } finally {
    closeSync(fd);
  }
}
