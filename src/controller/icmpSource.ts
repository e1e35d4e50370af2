// SPDX-License-Identifier: Apache-2.0
// Which address of the host an ICMP error to a VM comes from: one that the VM can be expected to know. Pure.

import { parseAddress } from "../addresses.ts";
import type { Address, Link, Neighbour } from "../kernel/rtnetlink.ts";

export interface IcmpSource {
  /** As a number, in the order of the octets; 0 for none. */
  v4: number;
  v6: Buffer;
}

export const NO_ICMP_SOURCE: IcmpSource = { v4: 0, v6: Buffer.alloc(16) };

export interface SourceQuestion {
  /** Where the host's stack sees the tap's packets, and the VLAN interfaces on it. */
  l3: Link;
  others: readonly Link[];
  addresses: readonly Address[];
  /** Asked for only where there is a choice. */
  neighbours(): readonly Neighbour[];
  /** MACs of the VMs behind the tap. */
  guests(): ReadonlySet<string>;
  /** What was chosen before. */
  before: IcmpSource;
}

/**
 * Of each family the best address: valid everywhere; chosen before; in a network of the VM, as far as the neighbour
 * table knows; of the tap's own bridge; the first of its network.
 */
export function icmpSource(question: SourceQuestion): IcmpSource {
  const [v4, v6] = ([4, 6] as const).map((family) => best(question, family));
  return { v4: v4 ? v4.readUInt32BE(0) : 0, v6: v6 ?? Buffer.alloc(16) };
}

function best(question: SourceQuestion, family: 4 | 6): Buffer | undefined {
  const { l3, others, before } = question;
  const devices = [l3.ifindex, ...others.map(({ ifindex }) => ifindex)];
  const own = question.addresses.filter(
    (item) => item.family === family && item.scope !== "host" && devices.includes(item.ifindex),
  );
  if (own.length < 2) return own[0] && parseAddress(own[0].address);
  const vms = vmAddresses(question, family, devices);
  const former = family === 4 ? v4Bytes(before.v4) : before.v6;
  const ranked = own.map((item, place) => {
    const bytes = parseAddress(item.address)!;
    const knows = vms.some((vm) => samePrefix(vm, bytes, item.prefixLength));
    return {
      bytes,
      rank: [
        Number(item.scope === undefined),
        // Neighbours come and go: what was chosen once stays.
        Number(bytes.equals(former)),
        Number(knows),
        Number(item.ifindex === l3.ifindex),
        Number(item.secondary !== true),
        -place,
      ],
    };
  });
  return ranked.reduce((a, b) => (isBetter(b.rank, a.rank) ? b : a)).bytes;
}

function vmAddresses(
  { neighbours, guests }: SourceQuestion,
  family: 4 | 6,
  devices: readonly number[],
): Buffer[] {
  const macs = guests();
  if (macs.size === 0) return [];
  return neighbours().flatMap((item) => {
    const isGuest = item.family === family && devices.includes(item.ifindex) && macs.has(item.mac ?? "");
    return isGuest ? (parseAddress(item.address) ?? []) : [];
  });
}

function isBetter(a: readonly number[], b: readonly number[]): boolean {
  const place = a.findIndex((value, at) => value !== b[at]);
  return place >= 0 && a[place]! > b[place]!;
}

function v4Bytes(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
}

function samePrefix(a: Buffer, b: Buffer, bits: number): boolean {
  const whole = bits >> 3;
  if (!a.subarray(0, whole).equals(b.subarray(0, whole))) return false;
  const mask = (0xff00 >> (bits & 7)) & 0xff;
  return mask === 0 || (a[whole]! & mask) === (b[whole]! & mask);
}
