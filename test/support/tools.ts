// SPDX-License-Identifier: Apache-2.0
// The few programs that the tests need beside the machine's: compiled when first used.

import { mkdirSync, renameSync, statSync } from "node:fs";
import { dirname } from "node:path";
import type { Namespace } from "./lab.ts";
import { repositoryPath } from "./paths.ts";
import { must } from "./run.ts";

const COMPILERS = {
  "send-frames.c": ["cc", "-O2", "-Wall", "-Werror"],
  "tun-cable.c": ["cc", "-O2", "-Wall", "-Werror"],
  // Debian keeps asm/types.h in a directory that the BPF target does not look into.
  "foreign.bpf.c": [
    ...["clang", "-target", "bpf", "-mcpu=v3", "-O2", "-g", "-Wall", "-Werror", "-c"],
    ...["x86_64", "aarch64"].map((machine) => `-I/usr/include/${machine}-linux-gnu`),
  ],
};

type Source = keyof typeof COMPILERS;

/**
 * The path of the compiled program, which `make build-tests` may have made already. Two tests at once may
 * both compile; the last rename wins.
 */
export async function tool(source: Source): Promise<string> {
  const from = repositoryPath(`test/support/${source}`);
  const to = repositoryPath(
    `build/test/support/${source.replace(/(\.bpf)?\.c$/, (_, bpf) => (bpf ? ".bpf.o" : ""))}`,
  );
  const modified = (path: string) => statSync(path, { throwIfNoEntry: false })?.mtimeMs ?? 0;
  if (modified(to) > modified(from)) return to;
  mkdirSync(dirname(to), { recursive: true });
  const draft = `${to}.${process.pid}`;
  await must([...COMPILERS[source], from, "-o", draft]);
  renameSync(draft, to);
  return to;
}

export type ForeignProgram = "count" | "drop4444" | "pop" | "push100" | "push200_100";

/** Somebody else's clsact filter. */
export async function addFilter(
  namespace: Namespace,
  device: string,
  direction: "ingress" | "egress",
  program: ForeignProgram,
  priority = 50,
): Promise<void> {
  const object = await tool("foreign.bpf.c");
  const qdiscs = await namespace.must(["tc", "qdisc", "show", "dev", device]);
  if (!qdiscs.includes("clsact")) await namespace.must(["tc", "qdisc", "add", "dev", device, "clsact"]);
  const where = ["dev", device, direction, "protocol", "all", "pref", String(priority)];
  const what = ["bpf", "direct-action", "object-file", object, "section", `tc/${program}`];
  await namespace.must(["tc", "filter", "add", ...where, ...what]);
}

export async function removeFilter(
  namespace: Namespace,
  device: string,
  direction: "ingress" | "egress",
  priority = 50,
): Promise<void> {
  await namespace.must(["tc", "filter", "del", "dev", device, direction, "pref", String(priority)]);
}

/** What the `count` program on that hook has seen. */
export async function counted(
  namespace: Namespace,
  device: string,
  direction: "ingress" | "egress",
): Promise<number> {
  const filters = await namespace.must(["tc", "filter", "show", "dev", device, direction]);
  const id = /tc\/count.*? id (\d+)/s.exec(filters)?.[1];
  if (id === undefined) throw new Error(`no counting filter on ${device}: ${filters}`);
  const program = JSON.parse(await must(["bpftool", "-j", "prog", "show", "id", id])) as {
    map_ids: number[];
  };
  for (const map of program.map_ids) {
    const cells = JSON.parse(await must(["bpftool", "-j", "map", "dump", "id", String(map)])) as {
      formatted?: { value: number };
    }[];
    const value = cells[0]?.formatted?.value;
    if (typeof value === "number") return value;
  }
  throw new Error(`program ${id} has no counter`);
}

/** XDP does not see a VLAN tag that the device has stripped, so stripping has to be off. */
export async function keepTags(namespace: Namespace, device: string): Promise<void> {
  const features = ["rx-vlan-hw-parse", "rx-vlan-stag-hw-parse"].flatMap((feature) => [feature, "off"]);
  await namespace.must(["ethtool", "-K", device, ...features]);
}

/** Sends frames out of a device as they are; answers how many went. */
export async function sendFrames(
  namespace: Namespace,
  device: string,
  frames: Iterable<Buffer>,
): Promise<number> {
  const chunks: Buffer[] = [];
  for (const frame of frames) {
    const length = Buffer.alloc(2);
    length.writeUInt16LE(frame.length);
    chunks.push(length, frame);
  }
  const output = await namespace.must([await tool("send-frames.c"), device], {
    input: Buffer.concat(chunks),
    timeoutMs: 60_000,
  });
  return Number(output);
}
