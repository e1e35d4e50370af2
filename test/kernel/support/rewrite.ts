// SPDX-License-Identifier: Apache-2.0
// What a redirected frame must look like: the frame that came in, rewritten by one record. Independent of the
// programs; the fuzzer compares whole frames with it.

import type { StructValue } from "../../../src/abi/codec.ts";
import { LAST_HOP_KIND } from "../../../src/abi/layout.gen.ts";
import { internetChecksum } from "./bytes.ts";

function isTag(type: number): boolean {
  return type === 0x8100 || type === 0x88a8;
}

/**
 * `routed`: the frame was for the host's own MAC. The record's outer tag is in the metadata, not in the frame. To an
 * interface without a link layer the host always routes, and the MACs stay: the kernel takes them off.
 */
export function expectedOutput(frame: Buffer, record: StructValue<"last_hop">, routed: boolean): Buffer {
  let offset = 12;
  while (isTag(frame.readUInt16BE(offset))) {
    offset += 4;
  }
  const rest = Buffer.from(frame.subarray(offset));
  const bare = record.kind === LAST_HOP_KIND.IP;
  if (routed || bare) {
    decrementTtl(rest);
  }
  const inner = record.tags[1]!;
  const tag = Buffer.alloc(inner.proto === 0 ? 0 : 4);
  if (inner.proto !== 0) {
    tag.writeUInt16BE(inner.proto, 0);
    tag.writeUInt16BE(inner.vid, 2);
  }
  const destination = bare ? frame.subarray(0, 6) : record.mac;
  const source = routed && !bare ? record.source_mac : frame.subarray(6, 12);
  return Buffer.concat([destination, source, tag, rest]);
}

/** From the EtherType on. A wrong header checksum stays as wrong as it was: it is updated, not computed anew. */
function decrementTtl(rest: Buffer): void {
  if (rest.readUInt16BE(0) === 0x86dd) {
    rest[2 + 7] = rest[2 + 7]! - 1;
    return;
  }
  const header = rest.subarray(2, 2 + (rest[2]! & 15) * 4);
  const before = header.readUInt16BE(10);
  const wasRight = (() => {
    const copy = Buffer.from(header);
    copy.writeUInt16BE(0, 10);
    return internetChecksum(copy);
  })();
  header[8] = header[8]! - 1;
  const copy = Buffer.from(header);
  copy.writeUInt16BE(0, 10);
  const isRight = internetChecksum(copy);
  // The difference to the right sum is kept, in ones' complement arithmetic.
  let sum = before + (~wasRight & 0xffff) + isRight;
  sum = (sum & 0xffff) + (sum >>> 16);
  sum = (sum & 0xffff) + (sum >>> 16);
  // Both mean 0; the one that the kernel writes.
  header.writeUInt16BE(sum === 0xffff ? 0 : sum, 10);
}
