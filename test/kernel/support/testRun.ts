// SPDX-License-Identifier: Apache-2.0
// The contexts that BPF_PROG_TEST_RUN takes (net/bpf/test_run.c), and what return values mean.

/** What the kernel does with each return value. */
export const XDP_VERDICT: Record<number, Verdict> = {
  0: "aborted",
  1: "drop",
  2: "pass",
  3: "tx",
  4: "redirect",
};
export const TC_VERDICT: Record<number, Verdict> = { [-1 >>> 0]: "pass", 2: "drop", 7: "redirect" };
export type Verdict = "pass" | "redirect" | "drop" | "tx" | "aborted" | "other";

export interface RunOptions {
  /** Of a GSO frame: payload bytes of each segment. */
  gsoSize?: number;
  gsoSegments?: number;
  /** That the packet has already. */
  mark?: number;
  /** What a program before has left in skb->cb: up to five words. */
  cb?: readonly number[];
}

/** struct xdp_md */
export function xdpContext(ifindex: number, length: number): Buffer {
  const context = Buffer.alloc(24);
  context.writeUInt32LE(length, 4); // data_end
  context.writeUInt32LE(ifindex, 12); // ingress_ifindex
  return context;
}

export const SKB_CONTEXT_BYTES = 192;
const MARK_OFFSET = 8;
const CB_OFFSET = 48;
const CB_WORDS = 5;

/** struct __sk_buff; the kernel wants zeros in all that a test run cannot set (VLAN metadata is of these). */
export function skbContext(ifindex: number, options: RunOptions): Buffer {
  const context = Buffer.alloc(SKB_CONTEXT_BYTES);
  context.writeUInt32LE(options.mark ?? 0, MARK_OFFSET);
  context.writeUInt32LE(ifindex, 36); // ingress_ifindex
  context.writeUInt32LE(ifindex, 40); // ifindex
  for (const [index, word] of (options.cb ?? []).entries()) {
    context.writeUInt32LE(word, CB_OFFSET + index * 4);
  }
  context.writeUInt32LE(options.gsoSegments ?? 0, 164);
  context.writeUInt32LE(options.gsoSize ?? 0, 176);
  return context;
}

/** Of the context that comes out of a test run. */
export function markOf(context: Buffer): number {
  return context.readUInt32LE(MARK_OFFSET);
}

export function cbOf(context: Buffer): number[] {
  return Array.from({ length: CB_WORDS }, (_, index) => context.readUInt32LE(CB_OFFSET + index * 4));
}
