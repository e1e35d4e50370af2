// SPDX-License-Identifier: Apache-2.0
// The processes behind tun netdevs: what is written there crosses the cable in UDP.

import { mkdirSync, renameSync, statSync } from "node:fs";
import { dirname } from "node:path";
import { repositoryPath } from "../support/paths.ts";
import { must } from "../support/run.ts";
import { other } from "./kinds/kind.ts";
import { TUN_RELAY_PORT } from "./kinds/tunnel.ts";
import type { Ground } from "./topology.ts";

const SOURCE = "test/matrix/tun-relay.c";

/** Compiled when first used; `make build-tests` has done it before. */
export async function relayProgram(): Promise<string> {
  const from = repositoryPath(SOURCE);
  const to = repositoryPath("build/test/matrix/tun-relay");
  const modified = (path: string) => statSync(path, { throwIfNoEntry: false })?.mtimeMs ?? 0;
  if (modified(to) > modified(from)) return to;
  mkdirSync(dirname(to), { recursive: true });
  const draft = `${to}.${process.pid}`;
  await must(["cc", "-O2", "-Wall", "-Werror", from, "-o", draft]);
  renameSync(draft, to);
  return to;
}

export async function startRelays({ stands, host }: Ground): Promise<void> {
  for (const { kind, place, namespace } of stands) {
    if (!kind.relay) continue;
    const program = await relayProgram();
    for (const side of ["host", "firewall"] as const) {
      const { [side]: near, [other(side)]: far } = place.outer;
      const relay = (side === "host" ? host : namespace).start([
        ...[program, place.device, near[4], far[4], String(TUN_RELAY_PORT)],
      ]);
      await relay.writes(/ready/);
    }
  }
}
