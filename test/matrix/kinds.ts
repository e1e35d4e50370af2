// SPDX-License-Identifier: Apache-2.0
// Every kind of routing interface, in the order of the ring and of the table, and which of them the kernel has.

import type { Namespace } from "../support/lab.ts";
import { must } from "../support/run.ts";
import { BUILTIN_KINDS } from "./kinds/builtin.ts";
import { ETHERNET_KINDS } from "./kinds/ethernet.ts";
import type { Kind } from "./kinds/kind.ts";
import { STACK_KINDS } from "./kinds/stack.ts";
import { TUNNEL_KINDS } from "./kinds/tunnel.ts";

export const KINDS: readonly Kind[] = [...ETHERNET_KINDS, ...TUNNEL_KINDS, ...STACK_KINDS, ...BUILTIN_KINDS];

export interface Missing {
  kind: Kind;
  reason: string;
}

/** Tries in a namespace of its own what makes each kind; what fails says why. */
export async function missingKinds(probe: Namespace): Promise<Missing[]> {
  // One `ip` a kind: at some errors it ends whatever it still had to do.
  const attempts = KINDS.map(({ probe: lines, program, kernelFunction }, index) => {
    const batch = lines.map((line) => line.replaceAll("NAME", `p${index}`)).join("\n");
    return [
      program === undefined ? "" : `command -v ${program} >/dev/null || echo "${index} it takes ${program}"`,
      `said=$(ip -n ${probe.name} -batch - 2>&1 <<'END'\n${batch}\nEND\n) || echo "${index} $(echo $said)"`,
      kernelFunction === undefined
        ? ""
        : `grep -qw ${kernelFunction} /proc/kallsyms || echo "${index} its kernel function ${kernelFunction} is missing"`,
    ].join("\n");
  });
  const script = [`ip netns add ${probe.name}`, ...attempts].join("\n");
  const stdout = await must(["sh"], { input: script, timeoutMs: 120_000 });
  const missing = new Map<Kind, Missing>();
  for (const line of stdout.split("\n").filter(Boolean)) {
    const [, index, reason] = /^(\d+) (.*)$/.exec(line)!;
    const kind = KINDS[Number(index)]!;
    if (!missing.has(kind)) missing.set(kind, { kind, reason: reason! });
  }
  return [...missing.values()];
}
