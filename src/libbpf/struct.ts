// SPDX-License-Identifier: Apache-2.0
import { loadFfi } from "../ffi/index.ts";

/**
 * The structs of libbpf's and the kernel's ABI that we use, laid out by hand: byte offsets of the members and
 * the bytes that we pass. Both sides accept a shorter or a longer struct than their own (the rest is zero), so
 * the sizes need not follow later versions. test/ffi/layout.test.ts compares them with the C headers.
 */
export const LAYOUT = {
  bpf_object_open_opts: {
    size: 80,
    kernel_log_buf: 56,
    kernel_log_size: 64,
  },
  bpf_map_create_opts: { size: 48, map_flags: 28 },
  bpf_map_batch_opts: { size: 24, elem_flags: 8 },
  bpf_link_create_opts: { size: 64, flags: 8, iter_info: 16, iter_info_len: 24 },
  bpf_test_run_opts: {
    size: 80,
    data_in: 8,
    data_out: 16,
    data_size_in: 24,
    data_size_out: 28,
    ctx_in: 32,
    ctx_out: 40,
    ctx_size_in: 48,
    ctx_size_out: 52,
    retval: 56,
    repeat: 60,
    duration: 64,
    flags: 68,
    cpu: 72,
    batch_size: 76,
  },
  bpf_xdp_query_opts: {
    size: 32,
    prog_id: 8,
    drv_prog_id: 12,
    hw_prog_id: 16,
    skb_prog_id: 20,
    attach_mode: 24,
  },
  bpf_tc_hook: { size: 24, ifindex: 8, attach_point: 12 },
  bpf_tc_opts: { size: 32, prog_fd: 8, flags: 12, prog_id: 16, handle: 20, priority: 24 },
  bpf_map_info: {
    size: 80,
    type: 0,
    id: 4,
    key_size: 8,
    value_size: 12,
    max_entries: 16,
    map_flags: 20,
    name: 24,
  },
  bpf_prog_info: {
    size: 224,
    type: 0,
    id: 4,
    tag: 8,
    jited_prog_len: 16,
    xlated_prog_len: 20,
    load_time: 40,
    nr_map_ids: 52,
    map_ids: 56,
    name: 64,
    run_time_ns: 192,
    run_cnt: 200,
    verified_insns: 216,
  },
  // A TCX link has {ifindex, attach_type} where an XDP link has its ifindex (kernel 6.6).
  bpf_link_info: { size: 64, type: 0, id: 4, prog_id: 8, "xdp.ifindex": 16 },
} as const;

type StructName = keyof typeof LAYOUT;
type Member<S extends StructName> = Exclude<keyof (typeof LAYOUT)[S], "size">;

/** What a struct points to must live as long as the struct's bytes are in use. */
const pointees = new WeakMap<Uint8Array, Uint8Array[]>();

/** One struct in memory. Options structs (`..._opts`, `bpf_tc_hook`) get their size as first member. */
export class Struct<S extends StructName> {
  /** Pass this to the C function. */
  readonly bytes: Buffer;
  readonly #layout: Record<string, number>;

  constructor(name: S) {
    this.#layout = LAYOUT[name];
    this.bytes = Buffer.alloc(this.#layout.size!);
    if (name.endsWith("_opts") || name === "bpf_tc_hook") {
      this.bytes.writeBigUInt64LE(BigInt(this.bytes.length), 0);
    }
  }

  u32(member: Member<S>): number {
    return this.bytes.readUInt32LE(this.#offset(member));
  }

  u64(member: Member<S>): bigint {
    return this.bytes.readBigUInt64LE(this.#offset(member));
  }

  setU32(member: Member<S>, value: number): this {
    this.bytes.writeUInt32LE(value >>> 0, this.#offset(member));
    return this;
  }

  setU64(member: Member<S>, value: bigint): this {
    this.bytes.writeBigUInt64LE(value, this.#offset(member));
    return this;
  }

  /** Stores the address of a buffer and keeps the buffer alive with the struct's bytes. */
  setPointer(member: Member<S>, target: Uint8Array): this {
    this.bytes.writeBigUInt64LE(loadFfi().addressOf(target), this.#offset(member));
    const kept = pointees.get(this.bytes);
    if (kept === undefined) pointees.set(this.bytes, [target]);
    else kept.push(target);
    return this;
  }

  /** A char array of 16, up to its NUL. */
  name(member: Member<S>): string {
    const offset = this.#offset(member);
    const field = this.bytes.subarray(offset, offset + 16);
    const end = field.indexOf(0);
    return field.toString("utf8", 0, end < 0 ? field.length : end);
  }

  #offset(member: Member<S>): number {
    return this.#layout[member as string]!;
  }
}

/** The bytes of a C string. */
export function cString(text: string): Buffer {
  return Buffer.from(`${text}\0`, "utf8");
}
