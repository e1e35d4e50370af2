// SPDX-License-Identifier: Apache-2.0
// The VMs and services of the configuration: their keys here, what goes together in serviceChecks.ts.

import { z } from "zod";
import { SERVICES_MAX, VM_SPECS_MAX } from "../abi/layout.gen.ts";
import { inPrefix, type Prefix, parsePrefix } from "../addresses.ts";
import {
  address,
  always,
  asksSomebody,
  attempts,
  list,
  mac,
  matching,
  name,
  oneOf,
  port,
  prefix,
  seconds,
  zone,
} from "./fields.ts";

export { SERVICES_MAX, VM_SPECS_MAX };

const MONTH_SECONDS = 30 * 86_400;
export const POOL_MAX = 256;
export const ASSOCIATIONS_PER_SERVICE = 256;
export const LABELS_PER_VM = 16;
export const WEIGHT_MAX = 256;

const INTERFACE_NAME = /^(?!\.{1,2}$)[^\s/:*?]{1,15}$/;
const PATH = /^\/[\x21-\x7e]{0,254}$/;
const HOST = /^[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252}[A-Za-z0-9])?(?::\d{1,5})?$/;
const STATUS = /^[1-5]\d\d(?:-[1-5]\d\d)?$/;
const ANSWER_VM = /^vm:(.+)$/;

const statusText = 'a status from 100 to 599, or a range as "200-399"';
/** A text by then, also where a number was given. (With a transformation in it the JSON Schema would lack defaults.) */
const status = z
  .union(
    [z.int(statusText).min(100, statusText).max(599, statusText), matching(statusText, STATUS)],
    statusText,
  )
  .overwrite(String)
  .refine(
    (range) => ordered(...String(range).split("-")),
    "a range of statuses goes from the lower to the higher",
  )
  .meta({ title: "status, or range" }) as z.ZodType<string>;

function ordered(low = "", high = low): boolean {
  return Number(low) <= Number(high);
}

const check = z
  .strictObject(
    {
      kind: oneOf(["neighbour", "icmp", "tcp", "http", "https"]).describe(
        "ARP or neighbour discovery, echo requests, TCP connections, or HTTP requests",
      ),
      address: address.optional().describe("whom to ask; the VM's `address` if left out"),
      port: port.optional().describe("of tcp, http (80 if left out) and https (443)"),
      path: matching('a path as "/health"', PATH).optional().describe("of http and https; `/` if left out"),
      host: matching("the name of a host", HOST)
        .optional()
        .describe(
          "of http and https: the Host header and, of https, the server name; the address if left out",
        ),
      status: status
        .optional()
        .describe("of http and https: what the answer's status must be; 200-399 if left out"),
      verify: z
        .boolean("true or false")
        .optional()
        .describe("of https: whether the certificate must be good for the host; not if left out"),
      ...attempts(5, 2),
    },
    "a mapping with the keys of a check",
  )
  .refine(
    ...always(
      undefined,
      (check) => check.kind !== "tcp" || check.port !== undefined,
      "a TCP check needs a port",
    ),
  )
  .refine(
    ...always(
      "port",
      (check) => !["neighbour", "icmp"].includes(check.kind as string) || check.port === undefined,
      "only tcp, http and https have a port",
    ),
  )
  .refine(
    ...always(
      undefined,
      (check) =>
        ["http", "https"].includes(check.kind as string) ||
        [check.path, check.host, check.status].every((given) => given === undefined),
      "path, host and status are of http and https only",
    ),
  )
  .refine(
    ...always(
      "verify",
      (check) => check.kind === "https" || check.verify === undefined,
      "only https has a certificate",
    ),
  );

export const vm = z
  .strictObject(
    {
      name: name().describe("as it is called in lists, logs and metrics"),
      zone,
      tap: matching("the name of an interface (up to 15 characters)", INTERFACE_NAME)
        .meta({ title: "name of an interface" })
        .optional()
        .describe("its tap; where its MAC is seen, if left out"),
      mac: mac
        .optional()
        .describe("MAC address of its network card; that of the first VM seen on its tap, if left out"),
      address: address
        .optional()
        .describe("its own IP address: its MAC is followed in the neighbour table, and checks ask it"),
      labels: list(name(), "labels", LABELS_PER_VM)
        .default([])
        .describe("its guest OS, its applications: pools and associations may name them"),
      responses: name()
        .optional()
        .describe("VM that gets the responses to what this one forwards to servers; itself if left out"),
      check: check
        .optional()
        .describe("how its health is asked for; by tap and neighbour table alone if left out"),
    },
    "a mapping with the keys of a VM",
  )
  .refine(
    ...always(
      undefined,
      ({ tap, mac, address }) => [tap, mac, address].some((given) => given !== undefined),
      "a VM needs a tap, a mac or an address",
    ),
  )
  .refine(
    ...always(
      "check",
      ({ check, address }) => asksSomebody(check, address !== undefined),
      "nobody to ask: give the check an address, or the VM",
    ),
  );

/** Either a VM or all that have a label. */
const target = {
  vm: name().optional().describe("name of a VM"),
  label: name().optional().describe("instead of a name: all VMs of the zone that have this label"),
};
const oneTarget = (what: string) =>
  always(
    undefined,
    ({ vm, label }: Record<string, unknown>) => (vm === undefined) !== (label === undefined),
    `${what} is given by exactly one of vm and label`,
  );

const weightText = `a weight from 1 to ${WEIGHT_MAX}`;
const weight = z
  .int(weightText)
  .min(1, {
    error: ({ input }) =>
      input === 0 ? `${weightText} (\`lasthop vms drain\` stops new flows)` : weightText,
  })
  .max(WEIGHT_MAX, weightText);

const member = z
  .strictObject(
    {
      ...target,
      weight: weight
        .default(1)
        .describe("its share of new flows; `lasthop vms drain` takes a VM out of all pools"),
    },
    "a mapping with vm or label, and weight",
  )
  .refine(...oneTarget("a member"));

const association = z
  .strictObject(
    { client: prefix.describe("addresses of clients"), ...target },
    "a mapping with client, and vm or label",
  )
  .refine(...oneTarget("an association"));

const serviceAddress = prefix
  .refine((text) => unservable(text) === undefined, { error: ({ input }) => unservable(String(input)) ?? "" })
  .meta({ title: "address or prefix" });

/** Where no service can be, and why. */
const UNSERVABLE = (
  [
    ["224.0.0.0/4", "is multicast: each flow of a service is one VM's"],
    ["ff00::/8", "is multicast: each flow of a service is one VM's"],
    ["127.0.0.0/8", "is loopback: nobody asks for it from without"],
    ["::1", "is loopback: nobody asks for it from without"],
    ["0.0.0.0/8", "is not the address of a host"],
    ["::", "is not the address of a host"],
    ["::ffff:0:0/96", "is an IPv4 address: write it as one"],
  ] as const
).map(([text, why]) => ({ within: parsePrefix(text)!, why }));
const MAPPED_IPV4 = parsePrefix("::ffff:0:0/96")!;

/** Why no request can be for such an address; undefined if one can, or if it is no address. */
function unservable(text: string): string | undefined {
  const prefix = parsePrefix(text);
  if (prefix === undefined) return undefined;
  const found = UNSERVABLE.find(({ within }) => isWithin(prefix, within));
  if (found !== undefined) return `${text} ${found.why}`;
  // In the tables IPv4 is ::ffff:a.b.c.d.
  if (!isWithin(MAPPED_IPV4, prefix)) return undefined;
  return `${text} has ::ffff:0:0/96 in it, which stands for IPv4: give a longer prefix, as 2000::/3`;
}

function isWithin(inner: Prefix, outer: Prefix): boolean {
  return inner.bits >= outer.bits && inPrefix(outer, inner.bytes);
}

export const service = z
  .strictObject(
    {
      name: name().describe("as it is called in lists, logs and metrics"),
      zone,
      address: serviceAddress.describe("its address, or a prefix"),
      port: port.optional().describe("its port; any if left out"),
      protocol: oneOf(["tcp", "udp", "sctp", "icmp", "any"])
        .default("tcp")
        .describe("its protocol; echo requests follow a service of another, unless there is one for icmp"),
      policy: oneOf(["maglev", "round-robin", "least-flows", "source-hash"])
        .default("maglev")
        .describe("how the VM of a new flow is chosen"),
      pool: list(member, "members of a pool", POOL_MAX)
        .min(1, "at least one VM or label")
        .describe("the VMs that its flows are distributed to"),
      associations: list(association, "associations", ASSOCIATIONS_PER_SERVICE)
        .default([])
        .describe("clients that have VMs of their own, whatever the policy; the longest prefix counts"),
      affinity_seconds: seconds(0, MONTH_SECONDS)
        .default(0)
        .describe("how long new flows of a client go to the VM of its last one; 0 for none"),
      on_vm_down: oneOf(["rebalance", "reset", "hold"])
        .default("rebalance")
        .describe("what becomes of the flows of a VM that is down: another VM, a TCP reset, or they wait"),
      answer: z
        .union(
          [
            z.enum(["host", "none"], 'host, none or "vm:NAME"'),
            matching('host, none or "vm:NAME"', ANSWER_VM).meta({ title: "`vm:NAME`" }),
          ],
          'host, none or "vm:NAME"',
        )
        .default("host")
        .describe(
          "with whose MAC ARP and neighbour discovery for its address are answered on uplinks: the host's, a VM's, " +
            "or not at all",
        ),
    },
    "a mapping with the keys of a service",
  )
  .refine(
    ...always(
      "answer",
      ({ address, answer }) =>
        typeof address !== "string" || answer === "none" || parsePrefix(address)?.bits !== 0,
      "every address on its uplinks would be answered for: give a longer prefix, or answer: none",
    ),
  )
  .refine(
    ...always("port", ({ port, protocol }) => protocol !== "icmp" || port === undefined, "ICMP has no ports"),
  )
  .refine(
    ...always(
      "port",
      ({ port, protocol }) => protocol !== "any" || port === undefined,
      "a port goes with one protocol: give it, or leave the port out",
    ),
  );

export type VmConfig = z.output<typeof vm>;
export type CheckConfig = NonNullable<VmConfig["check"]>;
export type ServiceConfig = z.output<typeof service>;
export type MemberConfig = ServiceConfig["pool"][number];
export type AssociationConfig = ServiceConfig["associations"][number];

/** Of `answer: vm:NAME`. */
export function answeringVm(answer: string): string | undefined {
  return ANSWER_VM.exec(answer)?.[1];
}
