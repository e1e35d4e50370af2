// SPDX-License-Identifier: Apache-2.0
import { check } from "./error.ts";
import { Handle, type Ownership, openId, openPin, readInfo } from "./handle.ts";
import { native } from "./native.ts";
import { LAYOUT, Struct } from "./struct.ts";

export interface ProgramInfo {
  id: number;
  /** enum bpf_prog_type: 3 is SCHED_CLS, 6 XDP, 26 TRACING, 31 SYSCALL. */
  type: number;
  /** The kernel cuts names after 15 bytes. */
  name: string;
  /** The kernel's hash of the instructions, 16 hex digits. */
  tag: string;
  /** Nanoseconds after boot. */
  loadTime: bigint;
  jitedBytes: number;
  xlatedBytes: number;
  /** Instructions that the verifier walked; null before Linux 5.16. */
  verifiedInsns: number | null;
  mapIds: number[];
  /** Zero unless the sysctl kernel.bpf_stats_enabled is set. */
  runCount: bigint;
  runTimeNs: bigint;
}

export interface TestRun {
  /** The packet. */
  data?: Uint8Array;
  /** Room for the packet after the run; by default the packet's length and 256 more, nothing for live frames. */
  dataOutSize?: number;
  /** struct xdp_md, __sk_buff, or the argument of a SYSCALL program, which is written back into this buffer. */
  ctx?: Uint8Array;
  /** Room for the context after the run; nothing by default. Not for SYSCALL programs. */
  ctxOutSize?: number;
  repeat?: number;
  /** BPF_F_TEST_...: see TEST_XDP_LIVE_FRAMES, TEST_RUN_ON_CPU. */
  flags?: number;
  cpu?: number;
  /** Frames a NAPI poll, for live frames. */
  batchSize?: number;
}

export interface TestRunResult {
  retval: number;
  /** Mean of one repetition. */
  durationNs: number;
  dataOut: Buffer;
  ctxOut: Buffer;
}

export const TEST_RUN_ON_CPU = 1;
/** The frames are really sent: the program's verdict decides. */
export const TEST_XDP_LIVE_FRAMES = 2;

const MAX_MAP_IDS = 64;
const NO_BYTES = Buffer.alloc(0);

/** A loaded program. */
export class BpfProgram extends Handle {
  readonly name: string;

  /** For the classes of this folder: the descriptor becomes this object's (unless borrowed). */
  constructor(fd: number, ownership: Ownership, name: string) {
    super("program", fd, name, ownership);
    this.name = name;
  }

  /** Wraps a descriptor that the caller hands over; closed here if its info cannot be read. */
  static fromFd(fd: number, label: string): BpfProgram {
    const bare = new BpfProgram(fd, "owned", label);
    try {
      return new BpfProgram(fd, "owned", bare.info().name);
    } catch (error) {
      bare.close();
      throw error;
    }
  }

  /** Opens a pin. Throws E_BPF: ENOENT if there is none. (bpf_obj_get) */
  static openPinned(path: string): BpfProgram {
    return BpfProgram.fromFd(openPin("program", path), path);
  }

  /** Opens a program by its id. Needs CAP_SYS_ADMIN. Throws E_BPF: ENOENT if there is none. (bpf_prog_get_fd_by_id) */
  static fromId(id: number): BpfProgram {
    const fd = openId("program", id, native.bpf_prog_get_fd_by_id);
    return BpfProgram.fromFd(fd, `id ${id}`);
  }

  /** What the kernel knows of it. (bpf_obj_get_info_by_fd) */
  info(): ProgramInfo {
    const mapIds = Buffer.alloc(4 * MAX_MAP_IDS);
    const info = new Struct("bpf_prog_info").setU32("nr_map_ids", MAX_MAP_IDS).setPointer("map_ids", mapIds);
    const filled = readInfo(this, info.bytes);
    const maps = Math.min(info.u32("nr_map_ids"), MAX_MAP_IDS);
    const tag = LAYOUT.bpf_prog_info.tag;
    return {
      id: info.u32("id"),
      type: info.u32("type"),
      name: info.name("name"),
      tag: info.bytes.toString("hex", tag, tag + 8),
      loadTime: info.u64("load_time"),
      jitedBytes: info.u32("jited_prog_len"),
      xlatedBytes: info.u32("xlated_prog_len"),
      verifiedInsns: filled >= LAYOUT.bpf_prog_info.verified_insns + 4 ? info.u32("verified_insns") : null,
      mapIds: Array.from({ length: maps }, (_, i) => mapIds.readUInt32LE(i * 4)),
      runCount: info.u64("run_cnt"),
      runTimeNs: info.u64("run_time_ns"),
    };
  }

  /**
   * Runs it once or often on a packet or context without any interface.
   * Throws E_BPF: ENOSPC if `dataOutSize` is too small, EINVAL for a packet or context that the type does not
   * take. (bpf_prog_test_run_opts)
   */
  testRun(run: TestRun): TestRunResult {
    const { data, ctx, flags = 0 } = run;
    const live = (flags & TEST_XDP_LIVE_FRAMES) !== 0;
    const dataOutSize = run.dataOutSize ?? (live || data === undefined ? 0 : data.length + 256);
    const dataOut = dataOutSize > 0 ? Buffer.alloc(dataOutSize) : NO_BYTES;
    const ctxOut = run.ctxOutSize ? Buffer.alloc(run.ctxOutSize) : NO_BYTES;
    const opts = new Struct("bpf_test_run_opts")
      .setU32("flags", flags)
      .setU32("repeat", run.repeat ?? 0)
      .setU32("cpu", run.cpu ?? 0)
      .setU32("batch_size", run.batchSize ?? 0);
    if (data !== undefined) opts.setPointer("data_in", data).setU32("data_size_in", data.length);
    if (ctx !== undefined) opts.setPointer("ctx_in", ctx).setU32("ctx_size_in", ctx.length);
    if (dataOut.length > 0) opts.setPointer("data_out", dataOut).setU32("data_size_out", dataOut.length);
    if (ctxOut.length > 0) opts.setPointer("ctx_out", ctxOut).setU32("ctx_size_out", ctxOut.length);
    check(
      native.bpf_prog_test_run_opts(this.fd, opts.bytes),
      () =>
        `cannot test-run the program ${this.label} (${data?.length ?? 0} bytes of data, ${ctx?.length ?? 0} of context)`,
    );
    return {
      retval: opts.u32("retval"),
      durationNs: opts.u32("duration"),
      dataOut: dataOut.subarray(0, opts.u32("data_size_out")),
      ctxOut: ctxOut.subarray(0, opts.u32("ctx_size_out")),
    };
  }
}
