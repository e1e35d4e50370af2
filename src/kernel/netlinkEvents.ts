// SPDX-License-Identifier: Apache-2.0
// What the kernel tells of its own accord: links, addresses, neighbours and forwarding entries as they change.

import { NETLINK_ROUTE, NetlinkSocket } from "../libc/socket.ts";
import { decodeMessages, type NetlinkMessage } from "./netlinkMessage.ts";
import {
  type Address,
  AF_BRIDGE,
  decodeAddress,
  decodeFdbEntry,
  decodeLink,
  decodeNeighbour,
  type FdbEntry,
  type Link,
  type Neighbour,
  RTM_DELADDR,
  RTM_DELLINK,
  RTM_DELNEIGH,
  RTM_NEWADDR,
  RTM_NEWLINK,
  RTM_NEWNEIGH,
} from "./rtnetlink.ts";
import { decodeVxlanEntry, type VxlanEntry } from "./vxlanEntry.ts";

/** Masks of linux/rtnetlink.h. */
const RTMGRP_LINK = 0x1;
const RTMGRP_NEIGH = 0x4;
const RTMGRP_IPV4_IFADDR = 0x10;
const RTMGRP_IPV6_IFADDR = 0x100;
const GROUPS = RTMGRP_LINK | RTMGRP_NEIGH | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR;

/** Some thousand events of links, which are the largest. */
const BUFFER_BYTES = 4 * 1024 * 1024;
/** So many datagrams at once; then others of the event loop have their turn. */
const DATAGRAMS_PER_TURN = 200;

export type NetlinkEvent =
  | { kind: "link"; gone: boolean; link: Link }
  /** Something about a port of a bridge; where it stopped being one, `gone`. */
  | { kind: "port"; gone: boolean; ifindex: number }
  | { kind: "address"; gone: boolean; address: Address }
  | { kind: "neighbour"; gone: boolean; neighbour: Neighbour }
  | { kind: "fdb"; gone: boolean; entry: FdbEntry }
  /** A MAC behind a VXLAN device. */
  | { kind: "vxlan"; gone: boolean; entry: VxlanEntry };

/** Null for what we do not follow. */
export function decodeEvent({ type, payload }: NetlinkMessage): NetlinkEvent | null {
  switch (type) {
    case RTM_NEWLINK:
    case RTM_DELLINK: {
      const gone = type === RTM_DELLINK;
      // A bridge reports its ports in a form of its own: gone means that it is no port any more.
      if (payload.readUInt8(0) === AF_BRIDGE) return { kind: "port", gone, ifindex: payload.readInt32LE(4) };
      return { kind: "link", gone, link: decodeLink(payload) };
    }
    case RTM_NEWADDR:
    case RTM_DELADDR: {
      const address = decodeAddress(payload);
      return address && { kind: "address", gone: type === RTM_DELADDR, address };
    }
    case RTM_NEWNEIGH:
    case RTM_DELNEIGH: {
      const gone = type === RTM_DELNEIGH;
      const behind = decodeVxlanEntry(payload);
      if (behind) return { kind: "vxlan", gone, entry: behind };
      const entry = decodeFdbEntry(payload);
      if (entry) return { kind: "fdb", gone, entry };
      const neighbour = decodeNeighbour(payload);
      return neighbour && { kind: "neighbour", gone, neighbour };
    }
    default:
      return null;
  }
}

export interface NetlinkEventHandlers {
  event(event: NetlinkEvent): void;
  /** Events were lost: whatever was known is to be read anew. */
  overrun(): void;
  /** Nothing is followed any longer. */
  failed(error: unknown): void;
}

export interface NetlinkEventsOptions {
  bufferBytes?: number;
}

/** The events of this network namespace, until closed. Throws E_NETLINK. */
export class NetlinkEvents {
  readonly #socket: NetlinkSocket;
  readonly #handlers: NetlinkEventHandlers;
  readonly #watching: { close(): void };
  #open = true;

  constructor(handlers: NetlinkEventHandlers, options: NetlinkEventsOptions = {}) {
    this.#handlers = handlers;
    this.#socket = new NetlinkSocket(NETLINK_ROUTE, GROUPS);
    try {
      this.#socket.setReceiveBuffer(options.bufferBytes ?? BUFFER_BYTES);
      this.#watching = this.#socket.watch(() => this.#receive());
    } catch (error) {
      this.#socket.close();
      throw error;
    }
  }

  close(): void {
    if (!this.#open) return;
    this.#open = false;
    this.#watching.close();
    this.#socket.close();
  }

  #receive(): void {
    try {
      for (let count = 0; count < DATAGRAMS_PER_TURN && this.#open; count++) {
        const received = this.#socket.receiveNow();
        if (received === "empty") return;
        if (received === "overrun") this.#handlers.overrun();
        else this.#hand(received);
      }
    } catch (error) {
      this.close();
      this.#handlers.failed(error);
    }
  }

  #hand(datagram: Buffer): void {
    for (const message of decodeMessages(datagram)) {
      const event = decodeEvent(message);
      if (event) this.#handlers.event(event);
    }
  }
}
