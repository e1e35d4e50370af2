// SPDX-License-Identifier: Apache-2.0
// The configuration file: its keys, their types, defaults and meaning, in one place. The validator, the
// JSON Schema and docs/configuration.md are made of this. What concerns more than one entry is in check.ts.
//
// A message is what was expected, for "expected …, not …"; that of a refinement is a whole sentence.

import { z } from "zod";
import {
  LABEL_MAX,
  LABELS_PER_STACK,
  LAST_HOPS_PER_UPLINK,
  MARK_MAX,
  MTU_MAX,
  MTU_MIN,
  RELEARN_DAMPING_SECONDS,
  TIMEOUT_SECONDS,
  VMS_PER_TAP,
} from "./defaults.ts";
import { device, type probe } from "./devices.ts";
import {
  always,
  interfaceGlob,
  list,
  mac,
  matching,
  name,
  oneOf,
  port,
  prefix,
  real,
  seconds,
  whole,
  zone,
} from "./fields.ts";
import { isReservedLabel, parseListen, parsePortRange } from "./parts.ts";
import { SERVICES_MAX, service, VM_SPECS_MAX, vm } from "./services.ts";
import { TUNNELS_MAX, tunnel } from "./tunnels.ts";

const PORT_RANGE = /^\d{1,5}(?:-\d{1,5})?$/;
// A lone surrogate has no UTF-8; libvirt allows neither "/" nor control characters.
const DOMAIN = /^[^\p{Cc}\p{Cs}/]+$/u;
const DAY_SECONDS = 86_400;
const MONTH_SECONDS = 30 * DAY_SECONDS;

const label = whole(0, LABEL_MAX, "an MPLS label").refine((value) => !isReservedLabel(value), {
  error: (issue) =>
    `${issue.input} is a reserved label (RFC 3032): 16 to ${LABEL_MAX} may stand here, 0 and 2 (explicit null) as the last`,
});
const allWhole = ({ value }: { value: unknown }) =>
  Array.isArray(value) && value.every((item) => Number.isInteger(item));
const labelStack = z
  .array(label, "a list of MPLS labels, outer first")
  .max(LABELS_PER_STACK, `at most ${LABELS_PER_STACK} MPLS labels`)
  .refine((labels) => labels.length > 0, "without labels there is no request to tell by them")
  .refine((labels) => labels.slice(0, -1).every((value) => value !== 0 && value !== 2), {
    error: "0 and 2 (explicit null) may stand last only",
    when: allWhole,
  });

const exclusion = z
  .strictObject(
    {
      remote: prefix.optional().describe("addresses of the remote side; any if left out"),
      port: z
        .union(
          [port, matching('a port, or a range as "8000-8099"', PORT_RANGE).meta({ title: "range" })],
          'a port from 1 to 65535, or a range as "8000-8099"',
        )
        .optional()
        .describe('port of the VM, or a range as "8000-8099"; any if left out'),
      protocol: oneOf(["tcp", "udp", "sctp", "icmp"]).optional().describe("any if left out"),
    },
    "a mapping with remote, port or protocol",
  )
  .refine(
    ...always(
      undefined,
      (rule) => Object.values(rule).some((value) => value !== undefined),
      "this exclusion would exclude everything: give remote, port or protocol",
    ),
  )
  .refine(
    ...always(
      "port",
      ({ port }) =>
        !((typeof port === "string" && PORT_RANGE.test(port)) || typeof port === "number") ||
        parsePortRange(port) !== undefined,
      "a range of ports goes from the lower to the higher, within 1 to 65535",
    ),
  )
  .refine(
    ...always("port", (rule) => rule.protocol !== "icmp" || rule.port === undefined, "ICMP has no ports"),
  );

const exclude = list(exclusion, "exclusions an interface", 16)
  .default([])
  .describe("traffic that is left alone: not learned on an uplink, not redirected on a tap");

const uplink = z.strictObject(
  {
    name: interfaceGlob.describe("name of the interface, or a pattern of names with `*` and `?`"),
    mode: oneOf(["auto", "native", "generic", "tc"])
      .default("auto")
      .describe("hook: native or generic XDP, TC, or the best that works there"),
    zone,
    learn: oneOf(["any", "devices"])
      .default("any")
      .describe("from whom last hops are learned: from any sender, or only from configured devices"),
    relearn: oneOf(["follow", "never"])
      .default("follow")
      .describe("whether a request from another last hop moves its flow there, as after a failover"),
    pickup: z
      .boolean("true or false")
      .default(true)
      .describe("whether flows are learned from the middle of a connection too"),
    last_hops_max: whole(1, 65_536)
      .default(LAST_HOPS_PER_UPLINK)
      .describe("how many new last hops it may learn: a flood of source MACs must not take them all"),
    mtu: whole(MTU_MIN, MTU_MAX)
      .optional()
      .describe(
        "bytes of the largest IP packet on the way back; that of the interface, as it changes, if left out",
      ),
    clamp_mss: z
      .boolean("true or false")
      .default(true)
      .describe("whether TCP's maximum segment size is lowered to what fits the way back"),
    via: oneOf(["redirect", "stack"])
      .default("redirect")
      .describe("how replies leave: straight by the interface, or by the host's own routing"),
    mark: whole(0, MARK_MAX, "a mark")
      .default(0)
      .describe(
        "firewall mark of replies that go by the host's routing: with `via: stack`, and those of an IPsec policy " +
          "without an interface of its own; 0 for none",
      ),
    exclude,
  },
  "a mapping with the keys of an uplink",
);

const tap = z
  .strictObject(
    {
      name: interfaceGlob
        .optional()
        .describe("name of the interface, or a pattern of names with `*` and `?`"),
      guest_mac: mac
        .optional()
        .describe("instead of a name: MAC address of the guest's network card, wherever its tap is"),
      domain: matching('the name of a libvirt domain, without "/"', DOMAIN)
        .optional()
        .describe("instead of a name: a libvirt domain, with all its interfaces"),
      zone,
      policy: oneOf(["enforce", "observe", "off"])
        .default("enforce")
        .describe("what is done with replies: send them back, only count what would change, nothing"),
      vms_max: whole(1, 16_384)
        .default(VMS_PER_TAP)
        .describe("how many MAC addresses may appear behind it, as behind a nested bridge"),
      exclude,
    },
    "a mapping with the keys of a tap",
  )
  .refine(
    ...always(
      undefined,
      (tap) => [tap.name, tap.guest_mac, tap.domain].filter((given) => given !== undefined).length === 1,
      "a tap is given by exactly one of name, guest_mac and domain",
    ),
  );

const mpls = z.strictObject(
  {
    label_stacks: list(
      z.strictObject(
        {
          request: labelStack.describe("labels that requests come with, outer first"),
          mark: whole(1, MARK_MAX, "a mark").describe(
            "firewall mark of the replies, by which an `ip rule` leads to a route with `encap mpls`",
          ),
        },
        "a mapping with request and mark",
      ),
      "label stacks",
      1024,
    )
      .default([])
      .describe(
        "label stacks that requests may come with: labels are per direction, so the replies' are a route's",
      ),
  },
  "a mapping",
);

const timeouts = z.strictObject(
  {
    syn: seconds(1, 3600).default(TIMEOUT_SECONDS.SYN).describe("TCP and SCTP, handshake not complete"),
    tcp: seconds(10, MONTH_SECONDS).default(TIMEOUT_SECONDS.TCP).describe("TCP, established"),
    closed: seconds(1, 3600)
      .default(TIMEOUT_SECONDS.CLOSED)
      .describe("TCP and SCTP, closed: FIN both ways, RST or ABORT"),
    udp: seconds(1, DAY_SECONDS).default(TIMEOUT_SECONDS.UDP).describe("UDP, unless the VM opened it"),
    udp_provisional: seconds(1, 3600)
      .default(TIMEOUT_SECONDS.UDP_PROVISIONAL)
      .describe("UDP that the VM opened"),
    icmp: seconds(1, 3600).default(TIMEOUT_SECONDS.ICMP).describe("ICMP echo"),
    sctp: seconds(10, MONTH_SECONDS).default(TIMEOUT_SECONDS.SCTP).describe("SCTP, established"),
  },
  "a mapping of timeouts",
);

const entries = (fallback: number, what: string) => {
  return whole(1024, 67_108_864).default(fallback).describe(what);
};
const tables = z.strictObject(
  {
    flows4: entries(1_048_576, "established IPv4 flows; about 96 bytes of memory each"),
    flows6: entries(1_048_576, "established IPv6 flows; about 120 bytes of memory each"),
    embryos4: entries(65_536, "IPv4 flows that are not yet established: what a SYN flood may churn"),
    embryos6: entries(65_536, "the same of IPv6"),
  },
  "a mapping of table sizes",
);

const sweep = z.strictObject(
  {
    interval_min_seconds: seconds(1, 3600)
      .default(5)
      .describe("between two passes, when the last found much that was idle"),
    interval_max_seconds: seconds(1, DAY_SECONDS)
      .default(60)
      .describe("between two passes, when the last found little"),
    cpu_percent: real(0.1, 100, "percent").default(4).describe("of one core, at most"),
    piece_ms: real(0.1, 8, "milliseconds").default(2).describe("how long one call into the kernel may take"),
  },
  "a mapping",
);

const metrics = z.strictObject(
  {
    enabled: z.boolean("true or false").default(true).describe("whether there is a Prometheus endpoint"),
    listen: z
      .string("an IP address and a port as 127.0.0.1:9469")
      .refine((text) => parseListen(text) !== undefined, {
        error: (issue) =>
          `expected an IP address and a port as 127.0.0.1:9469 or [::1]:9469, not ${JSON.stringify(issue.input)}`,
      })
      .default("127.0.0.1:9469")
      .describe("address and port of the endpoint, an IPv6 address in brackets; port 0 is any free one"),
  },
  "a mapping",
);

const log = z.strictObject(
  {
    level: oneOf(["debug", "info", "warning", "error"])
      .default("info")
      .describe("lines below this are not written"),
    format: oneOf(["text", "json"]).default("text").describe("for people, or one JSON object a line"),
  },
  "a mapping",
);

export const configSchema = z.strictObject(
  {
    zones: z
      .record(name(), whole(0, 65_535), "a mapping of names to numbers")
      .default({ default: 0 })
      .describe("names of zones and their numbers, 0 to 65535; the zone `default` is 0 unless given here"),
    uplinks: list(uplink, "uplinks").default([]).describe("interfaces towards devices"),
    taps: list(tap, "taps").default([]).describe("interfaces towards virtual machines"),
    devices: list(device, "devices", 1024)
      .default([])
      .describe("the stateful network devices behind the uplinks: firewalls, load balancers, routers"),
    vms: list(vm, "VMs", VM_SPECS_MAX)
      .default([])
      .describe("virtual machines by name: services distribute flows to them, and their health is asked for"),
    services: list(service, "services", SERVICES_MAX)
      .default([])
      .describe("addresses and ports whose flows are distributed to VMs"),
    tunnels: list(tunnel, "tunnels", TUNNELS_MAX)
      .default([])
      .describe("tunnels that lasthop makes; `uplinks` name them like any other interface"),
    mpls: mpls.prefault({}).describe("requests that come in MPLS"),
    relearn_damping_seconds: seconds(0, 60)
      .default(RELEARN_DAMPING_SECONDS)
      .describe("how long a flow stays where it is after it has moved; 0 for no damping"),
    timeouts: timeouts.prefault({}).describe("seconds of silence after which a flow is removed"),
    tables: tables.prefault({}).describe("how many entries each table has room for"),
    sweep: sweep.prefault({}).describe("bounds of the pass that removes idle flows"),
    metrics: metrics.prefault({}).describe("the Prometheus endpoint"),
    log: log.prefault({}).describe("what the daemon says, and how"),
  },
  "a mapping, as `uplinks: …`",
);

/** The schemas of single entries, for checks that look at those that are well-formed. */
export const entrySchemas = {
  uplinks: uplink,
  taps: tap,
  devices: device,
  vms: vm,
  services: service,
  tunnels: tunnel,
  labelStacks: mpls.shape.label_stacks.unwrap().element,
};

export type Config = z.output<typeof configSchema>;
export type UplinkConfig = Config["uplinks"][number];
export type TapConfig = Config["taps"][number];
export type DeviceConfig = Config["devices"][number];
export type LabelStackConfig = Config["mpls"]["label_stacks"][number];
export type ExclusionConfig = z.output<typeof exclusion>;
export type ProbeConfig = z.output<typeof probe>;
export type {
  AssociationConfig,
  CheckConfig,
  MemberConfig,
  ServiceConfig,
  VmConfig,
} from "./services.ts";
