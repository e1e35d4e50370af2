// SPDX-License-Identifier: Apache-2.0
// Policy rules (`ip rule`) and IPsec policies (`ip xfrm policy`), as far as lasthop has to know of them.

import { LasthopError } from "../errors.ts";
import { hasNetlink, NETLINK_ROUTE, NetlinkSocket } from "../libc/socket.ts";
import {
  attributeU32,
  decodeAttributes,
  decodeDone,
  decodeError,
  decodeMessages,
  encodeMessage,
  NLM_F_DUMP,
  NLM_F_REQUEST,
  NLMSG_DONE,
  NLMSG_ERROR,
} from "./netlinkMessage.ts";

const NETLINK_XFRM = 6;

const RTM_NEWRULE = 32;
const RTM_GETRULE = 34;
const AF_INET = 2;
const AF_INET6 = 10;
const FRA_FWMARK = 10;
const FRA_FWMASK = 16;
const RULE_HEADER_BYTES = 12;

const XFRM_MSG_NEWPOLICY = 0x13;
const XFRM_MSG_GETPOLICY = 0x15;
/** struct xfrm_userpolicy_id; struct xfrm_userpolicy_info, with its direction (linux/xfrm.h). */
const POLICY_ID_BYTES = 64;
const POLICY_INFO_BYTES = 168;
const POLICY_DIRECTION_OFFSET = 160;
const XFRMA_IF_ID = 31;
const DIRECTIONS = ["in", "out", "fwd"] as const;

export interface MarkRule {
  family: 4 | 6;
  mark: number;
  mask: number;
}

/** Rules that look at the mark. */
export function markRules(): MarkRule[] {
  return dump("list rules", NETLINK_ROUTE, RTM_NEWRULE, (sequence) =>
    encodeMessage(RTM_GETRULE, NLM_F_REQUEST | NLM_F_DUMP, sequence, Buffer.alloc(RULE_HEADER_BYTES)),
  ).flatMap((payload) => decodeMarkRule(payload) ?? []);
}

/** Null for one that does not. */
export function decodeMarkRule(payload: Buffer): MarkRule | null {
  const family = payload.readUInt8(0);
  const attributes = decodeAttributes(payload.subarray(RULE_HEADER_BYTES));
  const mark = attributeU32(attributes, FRA_FWMARK);
  if (mark === null || (family !== AF_INET && family !== AF_INET6)) return null;
  const mask = attributeU32(attributes, FRA_FWMASK) ?? 0xffff_ffff;
  return mask === 0 ? null : { family: family === AF_INET ? 4 : 6, mark, mask };
}

/** Whether a packet with this mark meets the rule. */
export function meetsRule({ mark, mask }: Pick<MarkRule, "mark" | "mask">, packet: number): boolean {
  return ((packet ^ mark) & mask) >>> 0 === 0;
}

export interface IpsecPolicy {
  direction: (typeof DIRECTIONS)[number];
  /** Of the XFRM interface that it belongs to; 0 for none. */
  interfaceId: number;
}

/** Of this network namespace; none on a kernel without IPsec. */
export function ipsecPolicies(): IpsecPolicy[] {
  return dump("list IPsec policies", NETLINK_XFRM, XFRM_MSG_NEWPOLICY, (sequence) =>
    encodeMessage(XFRM_MSG_GETPOLICY, NLM_F_REQUEST | NLM_F_DUMP, sequence, Buffer.alloc(POLICY_ID_BYTES)),
  ).flatMap((payload) => decodeIpsecPolicy(payload) ?? []);
}

/** Null for those of sockets. */
export function decodeIpsecPolicy(payload: Buffer): IpsecPolicy | null {
  const direction = DIRECTIONS[payload.readUInt8(POLICY_DIRECTION_OFFSET)];
  if (direction === undefined) return null;
  const attributes = decodeAttributes(payload.subarray(POLICY_INFO_BYTES));
  return { direction, interfaceId: attributeU32(attributes, XFRMA_IF_ID) ?? 0 };
}

/** Payloads of the answers of one type. */
function dump(what: string, protocol: number, type: number, request: (sequence: number) => Buffer): Buffer[] {
  if (!hasNetlink(protocol)) return [];
  const socket = new NetlinkSocket(protocol);
  try {
    socket.send(request(1));
    const payloads: Buffer[] = [];
    for (;;) {
      const datagram = socket.receive();
      if (!datagram) throw new LasthopError("E_NETLINK", `cannot ${what}: the kernel did not answer in time`);
      for (const message of decodeMessages(datagram)) {
        if (message.type === type) payloads.push(message.payload);
        if (message.type !== NLMSG_DONE && message.type !== NLMSG_ERROR) continue;
        const { errno } = message.type === NLMSG_ERROR ? decodeError(message) : decodeDone(message);
        if (errno !== 0) throw new LasthopError("E_NETLINK", `cannot ${what}: errno ${errno}`);
        return payloads;
      }
    }
  } finally {
    socket.close();
  }
}
