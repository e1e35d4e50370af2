// SPDX-License-Identifier: Apache-2.0
// The programs of a world attached to its real devices: frames are sent at the far ends of the veth pairs, and caught
// there.

import { closeSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { expect } from "vitest";
import type { ReasonName } from "../../../src/abi/codec.ts";
import { loadFfi } from "../../../src/ffi/index.ts";
import {
  BpfLink,
  BpfObject,
  type BpfProgram,
  clsact,
  RingBuffer,
  tcxQuery,
} from "../../../src/libbpf/index.ts";
import { describeFrame } from "./decode.ts";
import { PEER_IFINDEX, PORTS, type PortName } from "./devices.ts";
import { ETH_P, type Tag } from "./packet.ts";
import { withDestination } from "./rows.ts";
import type { World } from "./world.ts";

const WIRE_PATH = fileURLToPath(new URL("../../../build/test/kernel/support/wire.bpf.o", import.meta.url));
const POLL_MS = 2;
/** How long something that must come may take, and how long nothing must come for. */
const PATIENCE_MS = 3000;
const QUIET_MS = 40;
/** What capture of wire.bpf.c tells before the bytes. */
const HEAD_OFFSET = 24;

const AF_PACKET = 17;
const SOCK_RAW = 3;

export interface Captured {
  at: PortName;
  /** As on the wire: those of the metadata and of the frame, outer first. */
  tags: Tag[];
  /** The first bytes of the frame, without tags. */
  head: Buffer;
  /** Of all of it. */
  length: number;
}

function bindLibc() {
  const library = loadFfi().open("libc.so.6");
  return {
    socket: library.function("socket", "i32", ["i32", "i32", "i32"]),
    sendto: library.function("sendto", "i64", ["i32", "pointer", "size_t", "i32", "pointer", "u32"]),
  };
}

export class Wire {
  readonly #world: World;
  readonly #libc = bindLibc();
  readonly #socket: number;
  readonly #object: BpfObject;
  readonly #ring: RingBuffer;
  readonly #links: BpfLink[] = [];
  readonly #undo: (() => void)[] = [];

  constructor(world: World) {
    this.#world = world;
    this.#socket = this.#libc.socket(AF_PACKET, SOCK_RAW, 0);
    expect(this.#socket, "packet socket").toBeGreaterThan(0);
    this.#object = BpfObject.open(WIRE_PATH);
    this.#object.load();
    this.#ring = new RingBuffer(this.#object.map("captures"));
  }

  close(): void {
    this.detachAll();
    this.#ring.close();
    this.#object.close();
    closeSync(this.#socket);
  }

  attachTc(program: BpfProgram, ifindex: number): void {
    if (tcxQuery(ifindex, "ingress") !== undefined) {
      this.#links.push(BpfLink.attachTcx(program, ifindex, "ingress"));
      return;
    }
    this.attachClsact(program, ifindex);
  }

  attachClsact(program: BpfProgram, ifindex: number): void {
    clsact.create(ifindex);
    clsact.attach({ ifindex, direction: "ingress", program, handle: 1, priority: 1, replace: true });
    this.#undo.push(() => void clsact.destroy(ifindex));
  }

  attachXdp(program: BpfProgram, ifindex: number, mode: "generic" | "native"): void {
    this.#links.push(BpfLink.attachXdp(program, ifindex, mode));
  }

  detachAll(): void {
    for (const link of this.#links.splice(0)) {
      link.close();
    }
    for (const step of this.#undo.splice(0)) {
      step();
    }
  }

  /** What comes out of these ports is caught from now on. */
  capture(ports: readonly PortName[]): void {
    for (const port of ports) {
      this.attachTc(this.#object.program("capture"), PEER_IFINDEX[port]);
    }
    this.#ring.consume(() => {});
  }

  /** A packet socket: what it sends is like a frame of another machine, also to generic XDP. */
  #sendRaw(ifindex: number, frame: Buffer): void {
    const address = Buffer.alloc(20); // struct sockaddr_ll
    address.writeUInt16LE(AF_PACKET, 0);
    address.writeUInt32LE(ifindex, 4);
    const sent = this.#libc.sendto(this.#socket, frame, frame.length, 0, address, address.length);
    expect(sent, "sent").toBe(frame.length);
  }

  /** With a tag in the metadata, as a NIC gives it that strips tags. */
  #sendTagged(ifindex: number, frame: Buffer, tag: Tag): void {
    const proto = Buffer.alloc(2);
    proto.writeUInt16BE(tag.proto ?? ETH_P.vlan);
    const tci = ((tag.priority ?? 0) << 13) | tag.vid;
    const context = Buffer.alloc(192);
    context.writeUInt32LE(ifindex, 48); // cb[0]
    context.writeUInt32LE(((proto.readUInt16LE() << 16) | tci) >>> 0, 52); // cb[1]
    const { retval } = this.#object.program("inject").testRun({ data: frame, ctx: context });
    expect(retval, "sent").toBe(0);
  }

  /**
   * Puts a frame on the wire at the far end of a port. Returns the reason that the port's program counted it by: a
   * soft interrupt later, usually of this very call.
   */
  async send(port: PortName, frame: Buffer, metadata?: Tag): Promise<ReasonName> {
    this.#world.takeCounts();
    if (metadata) {
      this.#sendTagged(PEER_IFINDEX[port], frame, metadata);
    } else {
      this.#sendRaw(PEER_IFINDEX[port], frame);
    }
    for (let waited = 0; waited < PATIENCE_MS; waited += POLL_MS) {
      const count = this.#world.takeCounts().find(({ slot }) => slot === PORTS[port].slot);
      if (count) {
        return count.reason;
      }
      await sleep(POLL_MS);
    }
    throw new Error(`no program saw the frame on ${port}`);
  }

  /** What came out of any port since the last call; the kernel's own multicast does not count. */
  async captured(wait = QUIET_MS): Promise<Captured[]> {
    const found: Captured[] = [];
    const read = () =>
      this.#ring.consume((record) => {
        const one = capturedOf(record);
        if (one) {
          found.push(one);
        }
      });
    for (let waited = 0; waited < wait && found.length === 0; waited += POLL_MS) {
      read();
      if (found.length === 0) {
        await sleep(POLL_MS);
      }
    }
    return found;
  }

  /** This frame comes out of this port and nothing else does, with another destination if one is given. */
  async expectOut(at: PortName, frame: Buffer, mac: string | null, tags: Tag[] = []): Promise<void> {
    const found = await this.captured(PATIENCE_MS);
    const wanted = mac === null ? frame : withDestination(frame, mac);
    expect(found.map((one) => one.at)).toEqual([at]);
    const { head, length } = found[0]!;
    expect(describeFrame(head)).toBe(describeFrame(wanted.subarray(0, head.length)));
    expect(head.equals(wanted.subarray(0, head.length)), describeFrame(head)).toBe(true);
    expect(length).toBe(wanted.length);
    expect(found[0]!.tags).toEqual(tags.map(({ proto, vid }) => ({ proto: proto ?? ETH_P.vlan, vid })));
  }
}

function capturedOf(record: Buffer): Captured | null {
  const ifindex = record.readUInt32LE(0);
  const at = (Object.keys(PEER_IFINDEX) as PortName[]).find((port) => PEER_IFINDEX[port] === ifindex)!;
  const tags: Tag[] = [];
  if (record.readUInt32LE(8) !== 0) {
    const proto = record.subarray(12, 14).readUInt16BE();
    tags.push({ proto, vid: record.readUInt32LE(16) & 0xfff });
  }
  const head = Buffer.from(record.subarray(HEAD_OFFSET, HEAD_OFFSET + record.readUInt32LE(20)));
  let offset = 12;
  while (head.readUInt16BE(offset) === ETH_P.vlan || head.readUInt16BE(offset) === ETH_P.qinq) {
    tags.push({ proto: head.readUInt16BE(offset), vid: head.readUInt16BE(offset + 2) & 0xfff });
    offset += 4;
  }
  if ((head[0]! & 1) === 1) {
    return null;
  }
  const untagged = Buffer.concat([head.subarray(0, 12), head.subarray(offset)]);
  return { at, tags, head: untagged, length: record.readUInt32LE(4) - (offset - 12) };
}
