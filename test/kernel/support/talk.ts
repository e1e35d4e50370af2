// SPDX-License-Identifier: Apache-2.0
// Short names for the packets that rows are made of: client <-> VM 1, ports 40000 <-> 80.

import { IPPROTO, icmpEcho, type SCTP_CHUNK, type Sctp, sctp, type Tcp, tcp, udp } from "./packet.ts";
import { type Family, type FrameOptions, MAC, reply, request } from "./scene.ts";
import type { LastHopSpec, Tuple } from "./world.ts";

export const CLIENT_PORT = 40000;
export const VM_PORT = 80;
export const ECHO_ID = 0x1234;
export const CLIENT_ISN = 1000;
export const VM_ISN = 5000;

export const A: LastHopSpec = { port: "uplink_a", mac: MAC.deviceA };
export const B: LastHopSpec = { port: "uplink_b", mac: MAC.deviceB };
/** Another device on uplink A. */
export const C: LastHopSpec = { port: "uplink_a", mac: MAC.deviceC };

export const VM1 = 1;
export const VM2 = 2;

export function tupleOf(f: Family, proto: number, ports: Partial<Tuple> = {}): Tuple {
  return { local: f.vm, remote: f.client, localPort: VM_PORT, remotePort: CLIENT_PORT, proto, ...ports };
}

export const tcpTuple = (f: Family, other: Partial<Tuple> = {}) => tupleOf(f, IPPROTO.tcp, other);
export const udpTuple = (f: Family, other: Partial<Tuple> = {}) => tupleOf(f, IPPROTO.udp, other);
export const sctpTuple = (f: Family, other: Partial<Tuple> = {}) => tupleOf(f, IPPROTO.sctp, other);
/** The remote side pings. */
export const pingTuple = (f: Family) => tupleOf(f, f.icmp, { remotePort: ECHO_ID, localPort: 0 });
/** The VM pings. */
export const localPingTuple = (f: Family) => tupleOf(f, f.icmp, { remotePort: 0, localPort: ECHO_ID });

type Segment = Partial<Tcp> & { frame?: FrameOptions };

/** A TCP segment of the client. */
export function c(f: Family, flags: string, { frame, ...fields }: Segment = {}): Buffer {
  const seq = flags.includes("S") ? CLIENT_ISN : CLIENT_ISN + 1;
  const ack = flags.includes("A") ? VM_ISN + 1 : 0;
  const ports = { sourcePort: CLIENT_PORT, destinationPort: VM_PORT };
  return request(f, tcp({ ...ports, seq, ack, flags, ...fields }), frame);
}

/** A TCP segment of VM 1. */
export function v(f: Family, flags: string, { frame, ...fields }: Segment = {}): Buffer {
  const seq = flags.includes("S") ? VM_ISN : VM_ISN + 1;
  const ack = flags.includes("A") ? CLIENT_ISN + 1 : 0;
  const ports = { sourcePort: VM_PORT, destinationPort: CLIENT_PORT };
  return reply(f, tcp({ ...ports, seq, ack, flags, ...fields }), frame);
}

export function cu(f: Family, frame?: FrameOptions): Buffer {
  return request(f, udp({ sourcePort: CLIENT_PORT, destinationPort: VM_PORT }), frame);
}

export function vu(f: Family, frame?: FrameOptions): Buffer {
  return reply(f, udp({ sourcePort: VM_PORT, destinationPort: CLIENT_PORT }), frame);
}

type Chunk = keyof typeof SCTP_CHUNK;

export function cs(f: Family, chunks: Chunk | Chunk[], frame?: FrameOptions): Buffer {
  const packet: Sctp = { sourcePort: CLIENT_PORT, destinationPort: VM_PORT, chunks: [chunks].flat() };
  return request(f, sctp(packet), frame);
}

export function vs(f: Family, chunks: Chunk | Chunk[], frame?: FrameOptions): Buffer {
  const packet: Sctp = { sourcePort: VM_PORT, destinationPort: CLIENT_PORT, chunks: [chunks].flat() };
  return reply(f, sctp(packet), frame);
}

export function ce(f: Family, kind: "request" | "reply", frame?: FrameOptions): Buffer {
  return request(f, icmpEcho(f.version, kind, ECHO_ID), frame);
}

export function ve(f: Family, kind: "request" | "reply", frame?: FrameOptions): Buffer {
  return reply(f, icmpEcho(f.version, kind, ECHO_ID), frame);
}

/** From device B on uplink B. */
export const viaB: FrameOptions = { from: MAC.deviceB };
/** As VM 2 sends it. */
export const byVm2: FrameOptions = { from: MAC.vm2 };
export const toVm2: FrameOptions = { to: MAC.vm2 };
