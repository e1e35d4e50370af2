// SPDX-License-Identifier: Apache-2.0
// Questions to rtnetlink, one at a time: request, all datagrams of the answer, done. The socket belongs to
// the network namespace in which it was opened. Events come in another, netlinkEvents.ts.

import { LasthopError } from "../errors.ts";
import { ERRNO, errnoText } from "../libc/errno.ts";
import { NETLINK_ROUTE, NetlinkSocket } from "../libc/socket.ts";
import {
  decodeDone,
  decodeError,
  decodeMessages,
  type NetlinkMessage,
  NLM_F_DUMP_INTR,
  NLMSG_DONE,
  NLMSG_ERROR,
  NLMSG_OVERRUN,
} from "./netlinkMessage.ts";
import {
  type Address,
  addressesRequest,
  askNeighbourRequest,
  type Bridge,
  decodeAddress,
  decodeBridge,
  decodeFdbEntry,
  decodeFilter,
  decodeLink,
  decodeNeighbour,
  decodeQdisc,
  decodeRoute,
  type FdbEntry,
  type Filter,
  fdbPort,
  fdbRequest,
  filtersRequest,
  type Link,
  linkRequest,
  type Neighbour,
  type NeighbourQuestion,
  neighbourRequest,
  neighboursRequest,
  type Qdisc,
  qdiscsRequest,
  type Route,
  type RouteQuery,
  RTM_NEWADDR,
  RTM_NEWLINK,
  RTM_NEWNEIGH,
  RTM_NEWQDISC,
  RTM_NEWROUTE,
  RTM_NEWTFILTER,
  refreshFdbRequest,
  routeRequest,
} from "./rtnetlink.ts";
import { isOfVxlan } from "./vxlanEntry.ts";

/** A table that changes all the time is read so often before we give up. */
const DUMP_ATTEMPTS = 5;
const IFNAMSIZ = 16;
const PORT_GONE: ReadonlySet<number> = new Set([ERRNO.ENODEV, ERRNO.EINVAL, ERRNO.EOPNOTSUPP]);

/** No such interface or entry, the interface is down, or the entry has no MAC. */
const NOT_ASKED: ReadonlySet<number> = new Set([ERRNO.ENODEV, ERRNO.ENOENT, ERRNO.ENETDOWN, ERRNO.EINVAL]);

/** The kernel refused a request; `errno` is positive. */
export class NetlinkError extends LasthopError {
  readonly errno: number;

  constructor(what: string, errno: number, text: string | null) {
    super("E_NETLINK", `cannot ${what}: ${errnoText(errno)}${text ? ` (${text})` : ""}`);
    this.errno = errno;
  }
}

export class Netlink {
  readonly #socket: NetlinkSocket;
  #sequence = 0;

  constructor() {
    this.#socket = new NetlinkSocket(NETLINK_ROUTE);
  }

  links(): Link[] {
    return this.#dump("list interfaces", RTM_NEWLINK, decodeLink, (sequence) => linkRequest(sequence, "all"));
  }

  /** By index, name or alternative name. */
  link(which: number | string): Link | undefined {
    const payload = this.#linkPayload(which);
    return payload && decodeLink(payload);
  }

  bridges(): Bridge[] {
    return this.#dump("list bridges", RTM_NEWLINK, decodeBridge, (sequence) => linkRequest(sequence, "all"));
  }

  /** Undefined if it is gone, or no bridge. */
  bridge(ifindex: number): Bridge | undefined {
    const payload = this.#linkPayload(ifindex);
    return (payload && decodeBridge(payload)) ?? undefined;
  }

  addresses(): Address[] {
    return this.#dump("list addresses", RTM_NEWADDR, decodeAddress, addressesRequest);
  }

  neighbours(ifindex?: number): Neighbour[] {
    const all = this.#dump("list neighbours", RTM_NEWNEIGH, decodeNeighbour, neighboursRequest);
    return ifindex === undefined ? all : all.filter((neighbour) => neighbour.ifindex === ifindex);
  }

  /** What is known of one address; undefined if nothing is, or the interface is gone. */
  neighbour(ifindex: number, address: string): Neighbour | undefined {
    try {
      const payload = this.#get(`look up the neighbour ${address}`, RTM_NEWNEIGH, (sequence) =>
        neighbourRequest(sequence, ifindex, address),
      );
      return decodeNeighbour(payload) ?? undefined;
    } catch (error) {
      if (error instanceof NetlinkError && NOT_ASKED.has(error.errno)) return undefined;
      throw error;
    }
  }

  /**
   * Has the kernel ask for an address, without waiting for the answer; see askNeighbourRequest. False if the
   * interface is gone or down, or nothing is known of the address that could be verified or forgotten.
   */
  askNeighbour(ifindex: number, address: string, question: NeighbourQuestion): boolean {
    try {
      this.#ask(
        `${question} the neighbour ${address}`,
        (sequence) => askNeighbourRequest(sequence, ifindex, address, question),
        false,
      );
      return true;
    } catch (error) {
      if (error instanceof NetlinkError && NOT_ASKED.has(error.errno)) return false;
      throw error;
    }
  }

  /** Forwarding entries of all bridges, or those of some ports; not what is behind VXLAN devices: see readVxlanFdb. */
  fdb(ports?: ReadonlySet<number>): FdbEntry[] {
    const decode = (payload: Buffer): FdbEntry | null =>
      isOfVxlan(payload) || (ports && !ports.has(fdbPort(payload))) ? null : decodeFdbEntry(payload);
    return this.#dump("list bridge forwarding entries", RTM_NEWNEIGH, decode, fdbRequest);
  }

  /** Makes a forwarding entry as young as a frame from there would; false if the port is gone. */
  refreshFdb(entry: Pick<FdbEntry, "ifindex" | "mac" | "vlan">): boolean {
    try {
      this.#ask(
        `refresh the forwarding entry of ${entry.mac}`,
        (sequence) => refreshFdbRequest(sequence, entry),
        false,
      );
      return true;
    } catch (error) {
      // Gone, no longer a port of a bridge, or no longer in that VLAN.
      if (error instanceof NetlinkError && PORT_GONE.has(error.errno)) return false;
      throw error;
    }
  }

  /** What the kernel would do with a packet; refused as unreachable it throws NetlinkError. */
  routeGet(query: RouteQuery): Route {
    return decodeRoute(
      this.#get(`look up the route to ${query.destination}`, RTM_NEWROUTE, (sequence) =>
        routeRequest(sequence, query),
      ),
    );
  }

  qdiscs(ifindex?: number): Qdisc[] {
    const all = this.#dump("list qdiscs", RTM_NEWQDISC, decodeQdisc, qdiscsRequest);
    return ifindex === undefined ? all : all.filter((qdisc) => qdisc.ifindex === ifindex);
  }

  /** Empty when there is no such qdisc. */
  filters(ifindex: number, parent: number): Filter[] {
    try {
      return this.#dump("list filters", RTM_NEWTFILTER, decodeFilter, (sequence) =>
        filtersRequest(sequence, ifindex, parent),
      );
    } catch (error) {
      if (error instanceof NetlinkError && (error.errno === ERRNO.EINVAL || error.errno === ERRNO.ENODEV))
        return [];
      throw error;
    }
  }

  /** A question of another module's making. Returns the first answer of that type. Throws NetlinkError. */
  ask(what: string, type: number, request: (sequence: number) => Buffer): Buffer {
    return this.#get(what, type, request);
  }

  /** Asks for a change and waits until it is made. `request` wants an acknowledgement. Throws NetlinkError. */
  change(what: string, request: (sequence: number) => Buffer): void {
    this.#ask(what, request, false);
  }

  close(): void {
    this.#socket.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #linkPayload(which: number | string): Buffer | undefined {
    if (typeof which === "string" && (which === "" || Buffer.byteLength(which) >= IFNAMSIZ)) return undefined;
    const wanted = typeof which === "number" ? { ifindex: which } : { name: which };
    try {
      return this.#get(`look up interface ${which}`, RTM_NEWLINK, (sequence) =>
        linkRequest(sequence, wanted),
      );
    } catch (error) {
      if (error instanceof NetlinkError && error.errno === ERRNO.ENODEV) return undefined;
      throw error;
    }
  }

  #get(what: string, type: number, request: (sequence: number) => Buffer): Buffer {
    const message = this.#ask(what, request, false).messages.find((answer) => answer.type === type);
    if (!message) throw new LasthopError("E_NETLINK", `cannot ${what}: the kernel gave no answer`);
    return message.payload;
  }

  #dump<T>(
    what: string,
    type: number,
    decode: (payload: Buffer) => T | null,
    request: (sequence: number) => Buffer,
  ): T[] {
    for (let attempt = 1; attempt <= DUMP_ATTEMPTS; attempt++) {
      const { messages, interrupted } = this.#ask(what, request, true);
      if (interrupted) continue;
      const values: T[] = [];
      for (const message of messages) {
        const value = message.type === type ? decode(message.payload) : null;
        if (value !== null) values.push(value);
      }
      return values;
    }
    throw new LasthopError(
      "E_NETLINK",
      `cannot ${what}: it changed during each of ${DUMP_ATTEMPTS} readings`,
      {
        hint: "Try again when interfaces are not being made or removed.",
      },
    );
  }

  #ask(
    what: string,
    request: (sequence: number) => Buffer,
    dump: boolean,
  ): { messages: NetlinkMessage[]; interrupted: boolean } {
    this.#sequence = (this.#sequence + 1) >>> 0;
    const sequence = this.#sequence;
    this.#socket.send(request(sequence));
    const messages: NetlinkMessage[] = [];
    let interrupted = false;
    for (;;) {
      const datagram = this.#socket.receive();
      if (!datagram) throw new LasthopError("E_NETLINK", `cannot ${what}: the kernel did not answer in time`);
      for (const message of decodeMessages(datagram)) {
        // What is left of a question that was given up.
        if (message.sequence !== sequence) continue;
        if (message.flags & NLM_F_DUMP_INTR) interrupted = true;
        if (message.type === NLMSG_ERROR || message.type === NLMSG_DONE) {
          const { errno, text } = message.type === NLMSG_ERROR ? decodeError(message) : decodeDone(message);
          if (errno !== 0) throw new NetlinkError(what, errno, text);
          return { messages, interrupted };
        }
        if (message.type === NLMSG_OVERRUN)
          throw new LasthopError("E_NETLINK", `cannot ${what}: data was lost`);
        messages.push(message);
        if (!dump) return { messages, interrupted };
      }
    }
  }
}
