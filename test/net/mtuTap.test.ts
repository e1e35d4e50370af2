// SPDX-License-Identifier: Apache-2.0
// Replies that do not fit their way back, from a guest on a real tap: the answers are right whatever the guest
// left unfinished in its frames, and whatever it takes unfinished.

import { describe, expect, it } from "vitest";
import { internetChecksum, ipBytes, onesSum, pseudoHeader } from "../kernel/support/bytes.ts";
import { decodeFrame, describeFrame } from "../kernel/support/decode.ts";
import { ethernet, IPPROTO, ipOf, ipv4, ipv6, type Tag, tcp, udp } from "../kernel/support/packet.ts";
import { type Family, mac, vmAddress } from "../support/addresses.ts";
import { Capture } from "../support/capture.ts";
import { FAMILIES, useSite } from "../support/fixture.ts";
import { type VnetHeader, VnetTap } from "../support/vnetTap.ts";

const MTU = 1400;
const TAP = "vnet0";
const GUEST = { mac: mac(0x0e, 77), address: vmAddress(77) };
const GUEST_PORT = 5000;
const IP_BYTES = { 4: 20, 6: 40 };
const ICMP = { 4: IPPROTO.icmp, 6: IPPROTO.icmp6 };
const QUOTE_BYTES = { 4: 548, 6: 1232 };

type Protocol = "tcp" | "udp";
const HEADER_BYTES = { tcp: 20, udp: 8 };
const CHECKSUM_OFFSET = { tcp: 16, udp: 6 };

const TAGS: Record<string, Tag[]> = {
  untagged: [],
  tagged: [{ vid: 5 }],
  "tagged twice": [
    { proto: 0x88a8, vid: 7 },
    { vid: 8, priority: 3 },
  ],
};

interface Sent {
  what: string;
  protocol: Protocol;
  /** From the IP header on. */
  bytes: number;
  unfinished: boolean;
  segmentBytes?: number;
}

const REPLIES: Sent[] = [
  { what: "a whole datagram", protocol: "udp", bytes: MTU + 1, unfinished: false },
  { what: "a datagram without its checksum", protocol: "udp", bytes: MTU + 1, unfinished: true },
  { what: "a whole segment", protocol: "tcp", bytes: 1500, unfinished: false },
  { what: "a segment without its checksum", protocol: "tcp", bytes: 1500, unfinished: true },
  { what: "two segments in one", protocol: "tcp", bytes: 2800, unfinished: true, segmentBytes: 1448 },
  { what: "many segments in one", protocol: "tcp", bytes: 65_000, unfinished: true, segmentBytes: 1448 },
];

describe.each([
  ["on", true],
  ["off", false],
] as const)("a tap whose reader has offloads %s", (_, offloads) => {
  let tap: VnetTap;
  const ground = useSite({ vms: 0 }, async ({ site, lasthop }) => {
    tap = await VnetTap.open(site.host, TAP, offloads);
    await site.host.ip(`link set dev ${TAP} master br`, `link set dev ${TAP} up`);
    await lasthop.attachAll(site.uplinks, [TAP]);
    for (const family of FAMILIES) {
      const neighbour = `${GUEST.address[family]} lladdr ${GUEST.mac}`;
      await site.a.namespace.ip(`neigh replace ${neighbour} dev in nud permanent`);
    }
    // The bridge and lasthop get to know the guest by any frame of its.
    tap.send(ethernet({ from: GUEST.mac, to: site.b.mac }, { etherType: 0x88b5, bytes: Buffer.alloc(46) }));
    await lasthop.must("attach", site.uplinkOf("a"), "--role", "uplink", "--mtu", String(MTU));
  });

  /** The client asks, so that there is a flow; nobody answers. Each family and protocol has a port of its own. */
  async function ask(family: Family, protocol: Protocol): Promise<number> {
    const localPort = 41_000 + family * 10 + (protocol === "tcp" ? 1 : 0);
    const target = { host: GUEST.address[family], port: GUEST_PORT, localPort, timeoutMs: 200 };
    const { agent } = ground.site.client;
    const localAddress = ground.site.client.address[family];
    const failure =
      protocol === "udp"
        ? await agent.failure("udp", { ...target, localAddress, text: "asked" })
        : await agent.failure("open", { ...target, localAddress, key: `${family}` });
    expect(failure).toBe("timeout");
    return localPort;
  }

  function build(family: Family, port: number, sent: Sent, tags: Tag[]): [Buffer, VnetHeader] {
    const [source, destination] = [GUEST.address[family], ground.site.client.address[family]];
    const payload = Buffer.alloc(sent.bytes - IP_BYTES[family] - HEADER_BYTES[sent.protocol]);
    payload.forEach((__, at) => {
      payload[at] = (at * 31) >> 3;
    });
    const ports = { sourcePort: GUEST_PORT, destinationPort: port, payload };
    const transport = sent.protocol === "udp" ? udp(ports) : tcp({ ...ports, flags: "A", seq: 1, ack: 1 });
    const network =
      family === 4
        ? ipv4({ source, destination, dontFragment: true }, transport)
        : ipv6({ source, destination }, transport);
    const frame = ethernet({ from: GUEST.mac, to: ground.site.b.mac, tags }, network);
    if (!sent.unfinished) return [frame, {}];
    const start = 14 + 4 * tags.length + IP_BYTES[family];
    const offset = CHECKSUM_OFFSET[sent.protocol];
    const protocol = IPPROTO[sent.protocol];
    const pseudo = pseudoHeader(ipBytes(source), ipBytes(destination), protocol, frame.length - start);
    frame.writeUInt16BE(onesSum(pseudo), start + offset);
    const header: VnetHeader = { checksum: { start, offset } };
    if (sent.segmentBytes)
      header.segments = {
        family,
        bytes: sent.segmentBytes,
        headerBytes: start + HEADER_BYTES[sent.protocol],
      };
    return [frame, header];
  }

  const isIcmp = (family: Family) => (frame: Buffer) => decodeFrame(frame).ip?.protocol === ICMP[family];

  describe.each(FAMILIES)("IPv%i", (family) => {
    it.each(Object.entries(TAGS))("%s", async (__, tags) => {
      const { site, lasthop } = ground;
      const ports = { udp: await ask(family, "udp"), tcp: await ask(family, "tcp") };
      const filter = tags.map(() => "vlan and").join(" ");
      const capture = await Capture.start(site.host, TAP, {
        direction: "out",
        filter: `${filter} (icmp or icmp6)`,
      });
      const before = await lasthop.packets("too_big", TAP);
      for (const sent of REPLIES) {
        const [frame, vnet] = build(family, ports[sent.protocol], sent, tags);
        tap.send(frame, vnet);
        const answer = await tap.receive(isIcmp(family), `the answer to ${sent.what}`);
        const quoteAt = 14 + 4 * tags.length + IP_BYTES[family] + 8;
        const quote = answer.frame.subarray(quoteAt);
        expect(quote.length, sent.what).toBe(QUOTE_BYTES[family]);
        expect(answer.header.segments, "one packet").toBeUndefined();
        if (offloads && sent.unfinished) {
          const start = quoteAt + IP_BYTES[family];
          expect(answer.header.checksum).toEqual({ start, offset: CHECKSUM_OFFSET[sent.protocol] });
          const sum = internetChecksum(answer.frame.subarray(start)) || 0xffff;
          answer.frame.writeUInt16BE(sum, start + CHECKSUM_OFFSET[sent.protocol]);
        } else {
          expect(answer.header.checksum, "finished").toBeUndefined();
        }
        const decoded = decodeFrame(answer.frame);
        expect(decoded, describeFrame(answer.frame)).toMatchObject({
          destination: GUEST.mac,
          source: site.b.mac,
          tags: tags.map(({ proto = 0x8100, vid, priority = 0 }) => ({ proto, vid, priority })),
          ip: { headerChecksumOk: true, destination: GUEST.address[family] },
          transport: { checksumOk: true },
        });
        expect(answer.frame.readUInt32BE(quoteAt - 4)).toBe(MTU);
        // Quoted as it was, but for a checksum that has been finished.
        const [was, is] = [ipOf(frame).subarray(0, quote.length), Buffer.from(quote)].map((bytes) => {
          const copy = Buffer.from(bytes);
          copy.writeUInt16BE(0, IP_BYTES[family] + CHECKSUM_OFFSET[sent.protocol]);
          return copy.toString("hex");
        });
        expect(is, sent.what).toBe(was);
      }
      expect(await lasthop.packets("too_big", TAP)).toBe(before + REPLIES.length);
      const packets = await capture.stop();
      expect(packets).toHaveLength(REPLIES.length);
      expect(new Set(packets.map(({ icmp_type }) => icmp_type))).toEqual(new Set([family === 4 ? 3 : 2]));
      if (!offloads) expect(new Set(packets.map(({ checksum }) => checksum))).toEqual(new Set(["good"]));
    });
  });
});
