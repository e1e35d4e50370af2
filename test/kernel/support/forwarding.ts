// SPDX-License-Identifier: Apache-2.0
// The client's packet as a VM sends it on to a server, and the server's answer, which device B brings.

import { IPPROTO, type Tcp, tcp, udp } from "./packet.ts";
import type { Step } from "./rows.ts";
import { type Family, type FrameOptions, MAC, reply, request } from "./scene.ts";
import { handed, passed } from "./serviceSteps.ts";
import { TO_VM1 } from "./services.ts";
import { CLIENT_PORT, viaB } from "./talk.ts";
import type { Tuple } from "./world.ts";

// The client's packet as a VM sends it on, and the server's answer, which device B brings.
export const CLIENT = CLIENT_PORT;
export const SERVER = 8080;

export const between = (f: Family, proto: number, ports: Partial<Tuple> = {}): Tuple => ({
  ...{ local: f.client, remote: f.client2, localPort: CLIENT, remotePort: SERVER, proto },
  ...ports,
});
export const forwarded = (f: Family) => between(f, IPPROTO.tcp);
export const forwardedUdp = (f: Family) => between(f, IPPROTO.udp);

type Fields = Partial<Tcp> & { frame?: FrameOptions };

export function sent(f: Family, flags: string, { frame, ...fields }: Fields = {}): Buffer {
  const segment = tcp({ sourcePort: CLIENT, destinationPort: SERVER, flags, ...fields });
  return reply(f, segment, { source: f.client, destination: f.client2, ...frame });
}

/** Addressed to whom the server's side thinks the client is behind: device A. */
export const elsewhere = (f: Family): FrameOptions => ({
  ...viaB,
  ...{ source: f.client2, destination: f.client, to: MAC.deviceA },
});

export function answer(f: Family, flags: string, { frame, ...fields }: Fields = {}): Buffer {
  const segment = tcp({ sourcePort: SERVER, destinationPort: CLIENT, flags, ...fields });
  return request(f, segment, { ...elsewhere(f), ...frame });
}

export const sentUdp = (f: Family, frame: FrameOptions = {}) =>
  reply(f, udp({ sourcePort: CLIENT, destinationPort: SERVER }), {
    source: f.client,
    destination: f.client2,
    ...frame,
  });
export const answerUdp = (f: Family, frame: FrameOptions = {}) =>
  request(f, udp({ sourcePort: SERVER, destinationPort: CLIENT }), { ...elsewhere(f), ...frame });

export const opens = (packet: Buffer, more: Partial<Step> = {}): Step => ({
  at: "tap_1",
  packet,
  reason: "local_origin",
  ...more,
});
export const handedB = (packet: Buffer, to = TO_VM1, more: Partial<Step> = {}) =>
  handed(packet, "deliver", to, { at: "uplink_b", ...more });
export const passedB = (packet: Buffer, reason: Step["reason"], more: Partial<Step> = {}) =>
  passed(packet, reason, { at: "uplink_b", ...more });
