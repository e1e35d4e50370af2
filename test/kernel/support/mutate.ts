// SPDX-License-Identifier: Apache-2.0
// Damages frames: what a broken sender, a broken network or an attacker may put on the wire.

import { macBytes } from "./bytes.ts";
import { PORTS } from "./devices.ts";
import { ETH_P } from "./packet.ts";
import type { Random } from "./random.ts";
import { MAC } from "./scene.ts";

const MACS = [...Object.values(MAC), ...Object.values(PORTS).map(({ mac }) => mac)].map(macBytes);
const TAG_TYPES = [0x8100, 0x88a8, 0x9100];
/** Those that the rows use, and others. */
const LABELS = [100, 200, 300, 1, 2, 3, 4, 0, 0xfffff];
/** Numbers at which lengths, offsets and counters turn over. */
const EDGES = [0, 1, 2, 3, 4, 5, 7, 8, 15, 16, 19, 20, 39, 40, 64, 127, 128, 254, 255];
/** Next headers and protocols that somebody parses. */
const PROTOCOLS = [0, 1, 2, 6, 17, 43, 44, 47, 50, 51, 58, 59, 60, 132, 135, 253];
const MAX_BYTES = 3000;

type Mutation = (frame: Buffer, random: Random, another: () => Buffer) => Buffer;

/** A place among the headers rather than in the payload, mostly. */
function place(frame: Buffer, random: Random): number {
  return random.below(random.chance(4) ? frame.length : Math.min(frame.length, 100));
}

const MUTATIONS: Mutation[] = [
  function flipBit(frame, random) {
    const at = place(frame, random);
    frame[at] = frame[at]! ^ (1 << random.below(8));
    return frame;
  },
  function setByte(frame, random) {
    frame[place(frame, random)] = random.chance(2) ? random.pick(EDGES) : random.below(256);
    return frame;
  },
  function setProtocol(frame, random) {
    frame[place(frame, random)] = random.pick(PROTOCOLS);
    return frame;
  },
  function setWord(frame, random) {
    const at = place(frame, random);
    if (at + 2 <= frame.length) {
      frame.writeUInt16BE(
        random.chance(2) ? random.pick(EDGES) * random.pick([1, 256, 257]) : random.below(65536),
        at,
      );
    }
    return frame;
  },
  function lengthOfFrame(frame, random) {
    // A length field that is right or nearly right for what follows it.
    const at = place(frame, random);
    if (at + 2 <= frame.length) {
      frame.writeUInt16BE(Math.max(0, frame.length - random.below(60)) & 0xffff, at);
    }
    return frame;
  },
  function truncate(frame, random) {
    return frame.subarray(0, 14 + random.below(Math.max(1, frame.length - 14)));
  },
  function extend(frame, random) {
    return Buffer.concat([frame, Buffer.alloc(random.below(100), random.below(256))]);
  },
  function cutOut(frame, random) {
    const at = place(frame, random);
    return Buffer.concat([frame.subarray(0, at), frame.subarray(at + 1 + random.below(20))]);
  },
  function repeat(frame, random) {
    const at = place(frame, random);
    return Buffer.concat([frame.subarray(0, at + random.below(24)), frame.subarray(at)]);
  },
  function splice(frame, random, another) {
    const other = another();
    return Buffer.concat([frame.subarray(0, place(frame, random)), other.subarray(place(other, random))]);
  },
  function tag(frame, random) {
    const bytes = Buffer.alloc(4);
    bytes.writeUInt16BE(random.pick(TAG_TYPES), 0);
    bytes.writeUInt16BE(random.below(65536), 2);
    return Buffer.concat([frame.subarray(0, 12), bytes, frame.subarray(12)]);
  },
  function label(frame, random) {
    // Behind the MACs, whatever else stands there; its bottom bit is set or not.
    const bytes = Buffer.alloc(2 + 4 * (1 + random.below(5)));
    bytes.writeUInt16BE(ETH_P.mpls);
    for (let at = 2; at < bytes.length; at += 4) {
      const bottom = random.chance(4) || at + 4 === bytes.length ? 0x100 : 0;
      bytes.writeUInt32BE(((random.pick(LABELS) << 12) | bottom | random.below(256)) >>> 0, at);
    }
    return Buffer.concat([frame.subarray(0, 12), bytes, frame.subarray(14)]);
  },
  function bare(frame, random) {
    // As an interface without a link layer has it: with luck its first bytes still say IP.
    return random.chance(2) ? frame.subarray(14) : frame;
  },
  function destinationMac(frame, random) {
    random.pick(MACS).copy(frame, 0);
    return frame;
  },
  function sourceMac(frame, random) {
    random.pick(MACS).copy(frame, 6);
    return frame;
  },
];

/** A damaged copy, at least as long as an Ethernet header and a byte. `another` gives a frame to splice with. */
export function mutate(frame: Buffer, times: number, random: Random, another: () => Buffer): Buffer {
  let result = Buffer.from(frame);
  for (let count = 0; count < times; count++) {
    result = Buffer.from(random.pick(MUTATIONS)(result, random, another));
  }
  result = result.subarray(0, MAX_BYTES);
  return result.length >= 15 ? result : Buffer.concat([result, Buffer.alloc(15 - result.length)]);
}
