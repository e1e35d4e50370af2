// SPDX-License-Identifier: Apache-2.0
// The programs of shared XFRM interfaces. They need functions of the kernel's module, so they are an object of their
// own, which is loaded when there is such an interface.

import { readFileSync } from "node:fs";
import { LasthopError } from "../errors.ts";
import { BpfObject, type BpfProgram } from "../libbpf/index.ts";
import { xfrmObjectPath } from "./build.ts";
import type { Instance } from "./instance.ts";
import type { Link } from "./rtnetlink.ts";
import { XFRM_PROGRAMS, type XfrmProgram } from "./tunnelAttachment.ts";

const NEEDED = "bpf_skb_set_xfrm_info";

export function isSharedXfrm({ kind, external }: Pick<Link, "kind" | "external">): boolean {
  return kind === "xfrm" && external === true;
}

let known: boolean | undefined;

/** Whether the kernel lets programs have a packet's interface id (Linux 6.2). Ask where there is such an interface. */
export function followsInterfaceIds(): boolean {
  known ??= new RegExp(`\\b${NEEDED}\\b`).test(readFileSync("/proc/kallsyms", "latin1"));
  return known;
}

/** Of the programs that are pinned; none where there was no shared XFRM interface yet. */
export function xfrmProgramIds(instance: Instance): Map<XfrmProgram, number> {
  const names = new Set(instance.programNames());
  return new Map(
    XFRM_PROGRAMS.filter((name) => names.has(name)).map((name) => [name, instance.program(name).info().id]),
  );
}

/** Loads and pins them unless they are. Throws E_LOAD, E_BPF. */
export function pinXfrmPrograms(instance: Instance): void {
  if (xfrmProgramIds(instance).size === XFRM_PROGRAMS.length) return;
  withXfrmPrograms((name, program) => program.pin(instance.programPath(name)), xfrmProgramIds(instance));
}

/** Loads them and hands over each; those that nobody pins are gone afterwards. */
export function withXfrmPrograms(
  use: (name: XfrmProgram, program: BpfProgram) => void,
  without: ReadonlyMap<XfrmProgram, unknown> = new Map(),
): void {
  using object = BpfObject.open(xfrmObjectPath());
  try {
    object.load();
  } catch (error) {
    throw new LasthopError("E_LOAD", "cannot load the programs of shared XFRM interfaces", {
      cause: error,
      hint: `They need Linux 6.2 or later, and its module xfrm_interface with ${NEEDED} and BTF.`,
      ...(error instanceof LasthopError && error.details !== undefined && { details: error.details }),
    });
  }
  for (const name of XFRM_PROGRAMS) if (!without.has(name)) use(name, object.program(name));
}
