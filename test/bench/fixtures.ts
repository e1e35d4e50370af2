// SPDX-License-Identifier: Apache-2.0
// The typed side of drive.bpf.c.

import { BpfLink, type BpfMap, BpfObject, type BpfProgram } from "../../src/libbpf/index.ts";
import { repositoryPath } from "../support/paths.ts";
import { address4, macBytes, wordSum } from "./frames.ts";

export type Order = "random" | "sequential";

/** Which frames a driver writes: `frame` with another remote address and port for each flow. */
export interface Drive {
  /** 64 bytes, IPv4. */
  frame: Buffer;
  /** Remote address of flow 0. */
  remote: string;
  direction: "request" | "reply";
  order: Order;
  /** Random: any of so many flows. */
  flows?: number;
  /** Sequential: from this one on. */
  first?: number;
}

export interface Arrived {
  packets: number;
  bytes: number;
  otherPackets: number;
}

const FRAME_BYTES = 64;
const DRIVE_BYTES = 96;
const REDIRECT_BYTES = 24;
const ARRIVED_BYTES = 24;
const KEY_0 = Buffer.alloc(4);
const LIVE_FRAMES = 1 << 1;
const IP_OFFSET = 14;

export class Fixtures {
  readonly #object: BpfObject;
  readonly #links: BpfLink[] = [];

  private constructor(object: BpfObject) {
    this.#object = object;
  }

  static load(): Fixtures {
    const object = BpfObject.open(repositoryPath("build/test/bench/drive.bpf.o"));
    object.load();
    return new Fixtures(object);
  }

  program(name: "drive_xdp" | "drive_tc" | "inject" | "bare_xdp" | "bare_tc"): BpfProgram {
    return this.#object.program(name);
  }

  /** What drive_xdp or drive_tc hand their frames to. */
  setTarget(hook: "xdp" | "tc", program: BpfProgram): void {
    this.#object.map(`${hook}_target`).update(KEY_0, u32(program.fd));
  }

  setDrive(drive: Drive): void {
    if (drive.frame.length !== FRAME_BYTES) throw new RangeError(`a frame of ${drive.frame.length} bytes`);
    const value = Buffer.alloc(DRIVE_BYTES);
    drive.frame.copy(value);
    const header = Buffer.from(drive.frame.subarray(IP_OFFSET, IP_OFFSET + 20));
    header.fill(0, 10, 12);
    header.fill(0, drive.direction === "reply" ? 16 : 12, drive.direction === "reply" ? 20 : 16);
    value.writeUInt32LE(address4(drive.remote), 64);
    value.writeUInt32LE(wordSum(header), 68);
    value.writeUInt32LE(drive.order === "sequential" ? 1 : 0, 72);
    value.writeUInt32LE(drive.flows ?? 1, 76);
    value.writeUInt32LE(drive.first ?? 0, 80);
    value.writeUInt32LE(drive.direction === "reply" ? 1 : 0, 84);
    value.writeBigUInt64LE(BigInt(Date.now()), 88);
    this.#object.map(".data.drive").update(KEY_0, value);
  }

  /** What redirect_tc does, attached to `tap`. Call it in the namespace of both. */
  redirectAll(tap: number, uplink: number, destinationMac: string, sourceMac: string): void {
    const value = Buffer.alloc(REDIRECT_BYTES);
    value.writeUInt32LE(uplink, 0);
    macBytes(destinationMac).copy(value, 8);
    macBytes(sourceMac).copy(value, 14);
    this.#object.map(".data.redirect").update(KEY_0, value);
    this.#links.push(BpfLink.attachTcx(this.#object.program("redirect_tc"), tap, "ingress"));
  }

  /** Counts what arrives at an interface. Call it in the interface's namespace. */
  countAt(ifindex: number): void {
    const map = this.#arrivals;
    map.update(u32(ifindex), Buffer.alloc(map.valueBytes));
    this.#links.push(BpfLink.attachTcx(this.#object.program("count_tc"), ifindex, "ingress"));
  }

  arrived(ifindex: number): Arrived {
    const value = this.#arrivals.lookup(u32(ifindex));
    if (value === undefined) throw new Error(`nothing counts at interface ${ifindex}`);
    const sum: Arrived = { packets: 0, bytes: 0, otherPackets: 0 };
    for (let at = 0; at < value.length; at += ARRIVED_BYTES) {
      sum.packets += Number(value.readBigUInt64LE(at));
      sum.bytes += Number(value.readBigUInt64LE(at + 8));
      sum.otherPackets += Number(value.readBigUInt64LE(at + 16));
    }
    return sum;
  }

  /** Frames enter the stack at an interface, as if received. Call it in the interface's namespace. */
  inject(ifindex: number, frames: number): void {
    this.program("inject").testRun({
      data: Buffer.alloc(FRAME_BYTES),
      ctx: xdpContext(ifindex, FRAME_BYTES),
      repeat: frames,
      flags: LIVE_FRAMES,
    });
  }

  /** One frame as it is. Call it in the interface's namespace. */
  passFrame(ifindex: number, data: Buffer): void {
    this.program("bare_xdp").testRun({
      data,
      ctx: xdpContext(ifindex, data.length),
      repeat: 1,
      flags: LIVE_FRAMES,
    });
  }

  close(): void {
    for (const link of this.#links.splice(0)) link.close();
    this.#object.close();
  }

  get #arrivals(): BpfMap {
    return this.#object.map("arrivals");
  }
}

/** struct xdp_md */
export function xdpContext(ifindex: number, length: number): Buffer {
  const context = Buffer.alloc(24);
  context.writeUInt32LE(length, 4);
  context.writeUInt32LE(ifindex, 12);
  return context;
}

/** struct __sk_buff, with what the kernel lets a test run set of it. */
export function skbContext(ifindex: number): Buffer {
  const context = Buffer.alloc(192);
  context.writeUInt32LE(ifindex, 36);
  context.writeUInt32LE(ifindex, 40);
  return context;
}

export function u32(value: number): Buffer {
  const buffer = Buffer.alloc(4);
  buffer.writeUInt32LE(value);
  return buffer;
}
