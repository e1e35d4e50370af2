// SPDX-License-Identifier: Apache-2.0
import { readSync } from "node:fs";
import { ERRNO } from "../libc/index.ts";
import { check } from "./error.ts";
import { Handle, openId, openPin, readInfo } from "./handle.ts";
import type { BpfMap } from "./map.ts";
import { native } from "./native.ts";
import type { BpfProgram } from "./program.ts";
import { LAYOUT, Struct } from "./struct.ts";

/** enum bpf_attach_type, as far as we attach. */
const BPF_TRACE_ITER = 28;
const BPF_XDP = 37;
const BPF_TCX = { ingress: 46, egress: 47 } as const;

/** Relative to nothing: before all (linux/bpf.h). */
const BPF_F_BEFORE = 1 << 3;

const XDP_FLAGS = { generic: 1 << 1, native: 1 << 2 } as const;

/** enum bpf_link_type. Our own list: libbpf 1.1 does not know the later ones. */
const LINK_TYPES = [
  "unspec",
  "raw_tracepoint",
  "tracing",
  "cgroup",
  "iter",
  "netns",
  "xdp",
  "perf_event",
  "kprobe_multi",
  "struct_ops",
  "netfilter",
  "tcx",
  "uprobe_multi",
  "netkit",
  "sockmap",
] as const;

export type LinkType = (typeof LINK_TYPES)[number] | "unknown";
export type Direction = keyof typeof BPF_TCX;
export type XdpMode = keyof typeof XDP_FLAGS;

export interface LinkInfo {
  id: number;
  type: LinkType;
  programId: number;
  /** Of XDP and TCX links, otherwise null. 0: the interface is gone, and the link does nothing any more. */
  ifindex: number | null;
  /** enum bpf_attach_type of a TCX link, otherwise null. */
  attachType: number | null;
  /** Of a TCX link, otherwise null. */
  direction: Direction | null;
}

/** An attached program. Unless it is pinned, closing the last descriptor detaches it. */
export class BpfLink extends Handle {
  private constructor(fd: number, label: string) {
    super("link", fd, label, "owned");
  }

  /**
   * Attaches a SCHED_CLS program behind those already there, or before them. Throws E_BPF: ENODEV if there is no such interface,
   * EINVAL on kernels before 6.6 (use clsact there). (bpf_link_create)
   */
  static attachTcx(
    program: BpfProgram,
    ifindex: number,
    direction: Direction,
    place: "first" | "last" = "last",
  ): BpfLink {
    // libbpf 1.1 knows nothing of TCX: type and flags it hands through to the kernel, nothing else.
    const opts =
      place === "first" ? new Struct("bpf_link_create_opts").setU32("flags", BPF_F_BEFORE).bytes : null;
    const fd = check(
      native.bpf_link_create(program.fd, ifindex, BPF_TCX[direction], opts),
      () => `cannot attach the program ${program.name} by TCX to the ${direction} of interface ${ifindex}`,
    );
    return new BpfLink(fd, `${program.name} on ${ifindex}`);
  }

  /**
   * Attaches an XDP program. Throws E_BPF: EBUSY if the interface has an XDP link, EEXIST if it has one in the
   * other mode, EOPNOTSUPP if the driver has no native XDP, EINVAL if there is no such interface. (bpf_link_create)
   */
  static attachXdp(program: BpfProgram, ifindex: number, mode: XdpMode): BpfLink {
    const opts = new Struct("bpf_link_create_opts").setU32("flags", XDP_FLAGS[mode]);
    const fd = check(
      native.bpf_link_create(program.fd, ifindex, BPF_XDP, opts.bytes),
      () => `cannot attach the program ${program.name} by ${mode} XDP to interface ${ifindex}`,
    );
    return new BpfLink(fd, `${program.name} on ${ifindex}`);
  }

  /** Binds a map-element iterator program to a map; `iter()` runs it. Throws E_BPF. (bpf_link_create) */
  static attachIter(program: BpfProgram, map: BpfMap): BpfLink {
    const target = Buffer.alloc(16); // union bpf_iter_link_info: map_fd first
    target.writeUInt32LE(map.fd);
    const opts = new Struct("bpf_link_create_opts")
      .setPointer("iter_info", target)
      .setU32("iter_info_len", target.length);
    const fd = check(
      native.bpf_link_create(program.fd, 0, BPF_TRACE_ITER, opts.bytes),
      () => `cannot attach the iterator ${program.name} to the map ${map.label}`,
    );
    return new BpfLink(fd, `${program.name} over ${map.label}`);
  }

  /** Opens a pin. Throws E_BPF: ENOENT if there is none. (bpf_obj_get) */
  static openPinned(path: string): BpfLink {
    return new BpfLink(openPin("link", path), path);
  }

  /** Opens a link by its id. Needs CAP_SYS_ADMIN. Throws E_BPF: ENOENT if there is none. (bpf_link_get_fd_by_id) */
  static fromId(id: number): BpfLink {
    const fd = openId("link", id, native.bpf_link_get_fd_by_id);
    return new BpfLink(fd, `id ${id}`);
  }

  /** What the kernel knows of it. (bpf_obj_get_info_by_fd) */
  info(): LinkInfo {
    const info = new Struct("bpf_link_info");
    readInfo(this, info.bytes);
    const type = LINK_TYPES[info.u32("type")] ?? "unknown";
    const attachType =
      type === "tcx" ? info.bytes.readUInt32LE(LAYOUT.bpf_link_info["xdp.ifindex"] + 4) : null;
    return {
      id: info.u32("id"),
      type,
      programId: info.u32("prog_id"),
      ifindex: type === "xdp" || type === "tcx" ? info.u32("xdp.ifindex") : null,
      attachType,
      direction: attachType === BPF_TCX.ingress ? "ingress" : attachType === BPF_TCX.egress ? "egress" : null,
    };
  }

  /**
   * Exchanges the program without a gap. Throws E_BPF: ENOLINK if the interface is gone, EEXIST if the same TCX hook
   * has this program in another link. (bpf_link_update)
   */
  update(program: BpfProgram): void {
    check(
      native.bpf_link_update(this.fd, program.fd, null),
      () => `cannot put the program ${program.name} into the link ${this.label}`,
    );
  }

  /** Detaches now, whatever pins and descriptors there are; the link stays as an empty shell. (bpf_link_detach) */
  detach(): void {
    check(native.bpf_link_detach(this.fd), () => `cannot detach the link ${this.label}`);
  }

  /** Starts one walk of an iterator link. (bpf_iter_create) */
  iter(): BpfIter {
    return new BpfIter(
      check(native.bpf_iter_create(this.fd), () => `cannot start the iterator ${this.label}`),
      this.label,
    );
  }
}

/** One walk of an iterator program. */
export class BpfIter extends Handle {
  /** For BpfLink.iter(). */
  constructor(fd: number, label: string) {
    super("iterator", fd, label, "owned");
  }

  /** Runs the program until it has written something or the walk is over; returns the bytes, 0 at the end. */
  read(buffer: Uint8Array): number {
    for (;;) {
      try {
        return readSync(this.fd, buffer, 0, buffer.length, null);
      } catch (error) {
        // After a million elements without output the kernel gives way and wants to be called again.
        if ((error as NodeJS.ErrnoException).errno !== -ERRNO.EAGAIN) throw error;
      }
    }
  }
}
