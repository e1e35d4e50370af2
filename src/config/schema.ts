// SPDX-License-Identifier: Apache-2.0
// The configuration file: its types, its defaults and its checks, in one place. The JSON Schema and
// docs/configuration.md are made of this.

import { z } from "zod";
import { parseMac, parsePrefix } from "../addresses.ts";
import { LAST_HOPS_PER_UPLINK, TIMEOUT_SECONDS, VMS_PER_TAP } from "./defaults.ts";

const NAME = /^[A-Za-z0-9][A-Za-z0-9_.-]*$/;
const INTERFACE_GLOB = /^[^\s/]{1,15}$/;

const name = (what: string) =>
  z
    .string()
    .regex(NAME, `a ${what} is letters, digits, ".", "_" and "-"`)
    .max(31, `a ${what} has 31 characters at most`);
const mac = z.string().refine((text) => parseMac(text) !== undefined, "not a MAC address");
const prefix = z.string().refine((text) => parsePrefix(text) !== undefined, "not an address or prefix");
const address = z.union([z.ipv4(), z.ipv6()], "not an IP address");
const seconds = (low: number, high: number) => z.number().min(low).max(high);
const vlan = z.int().min(1).max(4094);
const port = z.int().min(1).max(65535);
const interfaceGlob = z.string().regex(INTERFACE_GLOB, "not the name of an interface, nor a pattern of one");

const exclusion = z.strictObject({
  remote: prefix.optional().describe("addresses of the remote side; all if left out"),
  port: z
    .union([port, z.string().regex(/^\d{1,5}-\d{1,5}$/, 'a port, or a range as "8000-8099"')])
    .optional()
    .describe('port of the VM, or a range as "8000-8099"; all if left out'),
  protocol: z.enum(["tcp", "udp", "sctp", "icmp"]).optional().describe("all if left out"),
});

/** What uplinks have in common; `defaults.uplinks` sets it for all. */
const uplinkSettings = {
  mode: z.enum(["auto", "native", "generic", "tc"]).default("auto").describe("which hook"),
  zone: name("zone").default("default"),
  learn: z.enum(["any", "devices"]).default("any").describe("from whom last hops are learned"),
  relearn: z
    .enum(["follow", "never"])
    .default("follow")
    .describe("whether a request from another last hop moves its flow"),
  pickup: z.boolean().default(true).describe("whether flows are learned from the middle of a connection"),
  last_hops_max: z
    .int()
    .min(1)
    .max(65536)
    .default(LAST_HOPS_PER_UPLINK)
    .describe("new last hops that it may learn"),
  exclude: z.array(exclusion).max(16, "at most 16 exclusions an interface").default([]),
};

const uplink = z.strictObject({
  name: interfaceGlob.describe("name of the interface, or a pattern with * and ?"),
  ...uplinkSettings,
});

const tap = z
  .strictObject({
    name: interfaceGlob.optional().describe("name of the interface, or a pattern with * and ?"),
    guest_mac: mac.optional().describe("MAC address of the guest's network card"),
    domain: z.string().min(1).optional().describe("name of a libvirt domain: all its interfaces"),
    zone: name("zone").default("default"),
    policy: z.enum(["enforce", "observe", "off"]).default("enforce"),
    vms_max: z
      .int()
      .min(1)
      .max(16384)
      .default(VMS_PER_TAP)
      .describe("MAC addresses that may appear behind it"),
    exclude: z.array(exclusion).max(16, "at most 16 exclusions an interface").default([]),
  })
  .refine(
    (tap) => [tap.name, tap.guest_mac, tap.domain].filter((given) => given !== undefined).length === 1,
    "a tap is given by exactly one of name, guest_mac and domain",
  );

const probe = z.strictObject({
  kind: z.enum(["icmp", "tcp"]),
  address: address.optional().describe("the device's first address if left out"),
  port: port.optional().describe("of a TCP probe"),
  interval_seconds: seconds(0.1, 3600).default(1),
  timeout_seconds: seconds(0.05, 60).default(1),
  fall: z.int().min(1).max(100).default(3).describe("failures in a row that mean down"),
  rise: z.int().min(1).max(100).default(2).describe("answers in a row that mean up"),
});

const device = z.strictObject({
  name: name("device"),
  macs: z.array(mac).max(8).default([]),
  addresses: z.array(address).max(4).default([]).describe("the MAC follows the kernel's neighbour table"),
  interface: interfaceGlob.optional().describe("uplinks where it is; all of its zone if left out"),
  vlans: z.array(vlan).max(2).default([]).describe("802.1Q tags of its frames, outer first"),
  zone: name("zone").default("default"),
  reply_mac: mac
    .optional()
    .describe("where replies go whichever MAC sent the request: the virtual MAC of VRRP or HSRP"),
  on_down: z
    .union(
      [z.enum(["route", "hold", "drop"]), z.string().regex(/^peer:.+$/)],
      'route, hold, drop, or "peer:NAME"',
    )
    .default("route"),
  probe: probe.optional(),
});

const timeouts = z.strictObject({
  syn: seconds(1, 3600).default(TIMEOUT_SECONDS.SYN),
  tcp: seconds(10, 30 * 86400).default(TIMEOUT_SECONDS.TCP),
  closed: seconds(1, 3600).default(TIMEOUT_SECONDS.CLOSED),
  udp: seconds(1, 86400).default(TIMEOUT_SECONDS.UDP),
  udp_provisional: seconds(1, 3600).default(TIMEOUT_SECONDS.UDP_PROVISIONAL),
  icmp: seconds(1, 3600).default(TIMEOUT_SECONDS.ICMP),
  sctp: seconds(10, 30 * 86400).default(TIMEOUT_SECONDS.SCTP),
});

const entries = (fallback: number) => z.int().min(1024).max(67_108_864).default(fallback);
const tables = z.strictObject({
  flows4: entries(1_048_576),
  flows6: entries(1_048_576),
  embryos4: entries(65_536),
  embryos6: entries(65_536),
});

const sweep = z.strictObject({
  interval_min_seconds: seconds(1, 3600).default(5),
  interval_max_seconds: seconds(1, 86400).default(60),
  cpu_percent: z.number().min(0.1).max(100).default(4).describe("of one core, at most"),
  piece_ms: z.number().min(0.1).max(8).default(2).describe("how long one call into the kernel may take"),
});

const metrics = z.strictObject({
  enabled: z.boolean().default(true),
  listen: z.string().default("127.0.0.1:9469").describe("address and port of the Prometheus endpoint"),
});

const log = z.strictObject({
  level: z.enum(["debug", "info", "warning", "error"]).default("info"),
  format: z.enum(["text", "json"]).default("text"),
});

export const configSchema = z.strictObject({
  zones: z
    .record(name("zone"), z.int().min(0).max(65535))
    .default({ default: 0 })
    .describe("names of zones, and their numbers; default is 0 unless given"),
  uplinks: z.array(uplink).default([]),
  taps: z.array(tap).default([]),
  devices: z.array(device).max(1024).default([]),
  relearn_damping_seconds: seconds(0, 60)
    .default(1)
    .describe("how long a flow stays after it has moved; 0 for no damping"),
  timeouts: timeouts.prefault({}),
  tables: tables.prefault({}),
  sweep: sweep.prefault({}),
  metrics: metrics.prefault({}),
  log: log.prefault({}),
});

export type Config = z.output<typeof configSchema>;
export type UplinkConfig = Config["uplinks"][number];
export type TapConfig = Config["taps"][number];
export type DeviceConfig = Config["devices"][number];
export type ExclusionConfig = z.output<typeof exclusion>;
export type ProbeConfig = z.output<typeof probe>;
