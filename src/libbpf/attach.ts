// SPDX-License-Identifier: Apache-2.0
import { ERRNO } from "../libc/index.ts";
import { check } from "./error.ts";
import type { Direction } from "./link.ts";
import { listening } from "./messages.ts";
import { native } from "./native.ts";
import type { BpfProgram } from "./program.ts";
import { LAYOUT, Struct } from "./struct.ts";

export interface XdpState {
  /** null: no XDP program. With programs in several modes, the one that runs first. */
  programId: number | null;
  mode: "native" | "generic" | "offload" | null;
}

const XDP_ATTACHED_DRV = 1;
const XDP_ATTACHED_HW = 3;

/** The XDP program of an interface; none also if there is no such interface. Throws E_BPF. (bpf_xdp_query) */
export function xdpQuery(ifindex: number): XdpState {
  const opts = new Struct("bpf_xdp_query_opts");
  listening(() =>
    check(native.bpf_xdp_query(ifindex, 0, opts.bytes), () => `cannot query XDP of interface ${ifindex}`),
  );
  const [hardware, driver, skb] = [opts.u32("hw_prog_id"), opts.u32("drv_prog_id"), opts.u32("skb_prog_id")];
  if (hardware !== 0) return { programId: hardware, mode: "offload" };
  if (driver !== 0) return { programId: driver, mode: "native" };
  if (skb !== 0) return { programId: skb, mode: "generic" };
  // Kernels that name only one program give its mode apart.
  const id = opts.u32("prog_id");
  const mode = opts.bytes[LAYOUT.bpf_xdp_query_opts.attach_mode];
  if (id === 0) return { programId: null, mode: null };
  return {
    programId: id,
    mode: mode === XDP_ATTACHED_DRV ? "native" : mode === XDP_ATTACHED_HW ? "offload" : "generic",
  };
}

const TCX_ATTACH_TYPE = { ingress: 46, egress: 47 } as const;

/**
 * The ids of the TCX programs of an interface in the order in which they run; undefined where the kernel has no
 * TCX (before 6.6). Throws E_BPF: ENODEV. (bpf_prog_query)
 */
export function tcxQuery(ifindex: number, direction: Direction): number[] | undefined {
  const flags = Buffer.alloc(4);
  const count = Buffer.alloc(4);
  for (let room = 16; ; room *= 2) {
    const ids = Buffer.alloc(4 * room);
    count.writeUInt32LE(room);
    const result = native.bpf_prog_query(ifindex, TCX_ATTACH_TYPE[direction], 0, flags, ids, count);
    if (result === -ERRNO.EINVAL) return undefined;
    if (result === -ERRNO.ENOSPC) continue;
    check(result, () => `cannot query TCX of the ${direction} of interface ${ifindex}`);
    return Array.from({ length: count.readUInt32LE() }, (_, i) => ids.readUInt32LE(i * 4));
  }
}

/** One filter of the clsact qdisc. */
export interface ClsactFilter {
  ifindex: number;
  direction: Direction;
  handle: number;
  priority: number;
}

const ATTACH_POINT = { ingress: 1, egress: 2, both: 3 } as const;
const BPF_TC_F_REPLACE = 1;

/**
 * TC without TCX: a cls_bpf filter in direct-action mode on the clsact qdisc. There is no link: the filter lives
 * until it is detached, or the qdisc or the interface goes.
 */
export const clsact = {
  /** Adds the qdisc; false if it is there already. Throws E_BPF: ENODEV. (bpf_tc_hook_create) */
  create(ifindex: number): boolean {
    const attempt = () => `cannot add a clsact qdisc to interface ${ifindex}`;
    return done(() => native.bpf_tc_hook_create(hook(ifindex, "both")), [ERRNO.EEXIST], attempt);
  },

  /**
   * Removes the qdisc with everybody's filters; false if there is none. Make sure first that it is empty.
   * Throws E_BPF. (bpf_tc_hook_destroy)
   */
  destroy(ifindex: number): boolean {
    const attempt = () => `cannot remove the clsact qdisc of interface ${ifindex}`;
    return done(() => native.bpf_tc_hook_destroy(hook(ifindex, "both")), ABSENT, attempt);
  },

  /**
   * Adds a filter, or with `replace` exchanges its program without a gap. Throws E_BPF: EEXIST if the filter is
   * there and `replace` is not set, EINVAL if there is no clsact qdisc. (bpf_tc_attach)
   */
  attach(filter: ClsactFilter & { program: BpfProgram; replace?: boolean }): void {
    const { ifindex, direction, program } = filter;
    const opts = filterOpts(filter)
      .setU32("prog_fd", program.fd)
      .setU32("flags", filter.replace ? BPF_TC_F_REPLACE : 0);
    done(
      () => native.bpf_tc_attach(hook(ifindex, direction), opts.bytes),
      [],
      () => `cannot attach the program ${program.name} by clsact to the ${direction} of interface ${ifindex}`,
    );
  },

  /** The program of a filter; undefined if there is no such filter. Throws E_BPF. (bpf_tc_query) */
  query(filter: ClsactFilter): { programId: number } | undefined {
    const { ifindex, direction } = filter;
    const opts = filterOpts(filter);
    const found = done(
      () => native.bpf_tc_query(hook(ifindex, direction), opts.bytes),
      ABSENT,
      () => `cannot query clsact of the ${direction} of interface ${ifindex}`,
    );
    return found ? { programId: opts.u32("prog_id") } : undefined;
  },

  /** Removes a filter; false if there is none. Throws E_BPF. (bpf_tc_detach) */
  detach(filter: ClsactFilter): boolean {
    const { ifindex, direction } = filter;
    return done(
      () => native.bpf_tc_detach(hook(ifindex, direction), filterOpts(filter).bytes),
      ABSENT,
      () => `cannot detach the clsact filter of the ${direction} of interface ${ifindex}`,
    );
  },
};

/** No filter, no qdisc, no interface. */
const ABSENT = [ERRNO.ENOENT, ERRNO.EINVAL, ERRNO.ENODEV];

/** True if the call succeeds, false if it fails with one of these numbers; throws otherwise. */
function done(call: () => number, expected: readonly number[], attempt: () => string): boolean {
  return listening(() => {
    const result = call();
    if (expected.includes(-result)) return false;
    check(result, attempt);
    return true;
  });
}

function hook(ifindex: number, point: keyof typeof ATTACH_POINT): Buffer {
  return new Struct("bpf_tc_hook").setU32("ifindex", ifindex).setU32("attach_point", ATTACH_POINT[point])
    .bytes;
}

function filterOpts({ handle, priority }: ClsactFilter): Struct<"bpf_tc_opts"> {
  return new Struct("bpf_tc_opts").setU32("handle", handle).setU32("priority", priority);
}
