// SPDX-License-Identifier: Apache-2.0
// The forwarding tables of VXLAN devices. They may have ten thousands of entries, so they are read a datagram at a time.

import { LasthopError } from "../errors.ts";
import { ERRNO } from "../libc/errno.ts";
import { NETLINK_ROUTE, NetlinkSocket } from "../libc/socket.ts";
import { NetlinkError } from "./netlink.ts";
import {
  decodeDone,
  decodeError,
  decodeMessages,
  encodeMessage,
  type NetlinkAttribute,
  type NetlinkMessage,
  NLM_F_DUMP,
  NLM_F_REQUEST,
  NLMSG_DONE,
  NLMSG_ERROR,
  NLMSG_OVERRUN,
} from "./netlinkMessage.ts";
import { AF_BRIDGE, RTM_NEWNEIGH } from "./rtnetlink.ts";
import {
  decodeVxlanEntry,
  HEADER_BYTES,
  NDA_LLADDR,
  NDA_VNI,
  NTF_SELF,
  type VxlanEntry,
} from "./vxlanEntry.ts";

const RTM_GETNEIGH = 30;

/** Of one interface only: the header with which the kernel takes an interface is that of links. */
function tableRequest(sequence: number, ifindex: number): Buffer {
  const header = Buffer.alloc(16);
  header.writeUInt8(AF_BRIDGE, 0);
  header.writeInt32LE(ifindex, 4);
  return encodeMessage(RTM_GETNEIGH, NLM_F_REQUEST | NLM_F_DUMP, sequence, header);
}

function entryRequest(sequence: number, ifindex: number, mac: string, sourceVni: number | null): Buffer {
  const header = Buffer.alloc(HEADER_BYTES);
  header.writeUInt8(AF_BRIDGE, 0);
  header.writeInt32LE(ifindex, 4);
  header.writeUInt8(NTF_SELF, 10);
  const attributes: NetlinkAttribute[] = [{ type: NDA_LLADDR, value: Buffer.from(mac, "hex") }];
  if (sourceVni !== null) attributes.push({ type: NDA_VNI, value: sourceVni });
  return encodeMessage(RTM_GETNEIGH, NLM_F_REQUEST, sequence, header, attributes);
}

/**
 * The entries of a device, some hundred at a time; none if it is gone. One that changes meanwhile may come twice. Each
 * reading has a socket of its own: one that is given up in the middle would leave the socket busy.
 */
export function* readVxlanFdb(ifindex: number): Generator<VxlanEntry[], void, void> {
  const socket = new NetlinkSocket(NETLINK_ROUTE);
  try {
    socket.send(tableRequest(1, ifindex));
    for (let done = false; !done; ) {
      const entries: VxlanEntry[] = [];
      for (const message of answers(socket, "read the forwarding table of a VXLAN device", 1)) {
        if (message.type === NLMSG_DONE) done = true;
        else if (message.type === RTM_NEWNEIGH) {
          const entry = decodeVxlanEntry(message.payload);
          // To some kernels the request's interface is but a wish.
          if (entry?.ifindex === ifindex) entries.push(entry);
        }
      }
      yield entries;
    }
  } finally {
    socket.close();
  }
}

/** Looks up single entries, until closed. */
export class VxlanLookup {
  readonly #socket = new NetlinkSocket(NETLINK_ROUTE);
  #sequence = 0;

  /** `sourceVni`: of a shared device. */
  find(ifindex: number, mac: string, sourceVni: number | null): VxlanEntry | undefined {
    this.#sequence = (this.#sequence + 1) >>> 0;
    const sequence = this.#sequence;
    this.#socket.send(entryRequest(sequence, ifindex, mac, sourceVni));
    try {
      for (;;) {
        const [message] = answers(this.#socket, "look up the forwarding entry of a MAC", sequence);
        if (message) return decodeVxlanEntry(message.payload) ?? undefined;
      }
    } catch (error) {
      if (error instanceof NetlinkError && NOT_THERE.has(error.errno)) return undefined;
      throw error;
    }
  }

  close(): void {
    this.#socket.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/** Those to this question in the next datagram. */
function answers(socket: NetlinkSocket, what: string, sequence: number): NetlinkMessage[] {
  const datagram = socket.receive();
  if (!datagram) throw new LasthopError("E_NETLINK", `cannot ${what}: the kernel did not answer in time`);
  const messages = decodeMessages(datagram).filter((message) => message.sequence === sequence);
  for (const message of messages) {
    if (message.type === NLMSG_OVERRUN) throw new LasthopError("E_NETLINK", `cannot ${what}: data was lost`);
    if (message.type !== NLMSG_ERROR && message.type !== NLMSG_DONE) continue;
    const { errno, text } = message.type === NLMSG_ERROR ? decodeError(message) : decodeDone(message);
    if (errno !== 0) throw new NetlinkError(what, errno, text);
  }
  return messages;
}

/** No such entry or interface, or an interface that has no such table. */
const NOT_THERE: ReadonlySet<number> = new Set([ERRNO.ENOENT, ERRNO.ENODEV, ERRNO.EOPNOTSUPP, ERRNO.EINVAL]);
