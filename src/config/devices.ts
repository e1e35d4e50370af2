// SPDX-License-Identifier: Apache-2.0
// The devices of the configuration: their keys here, what goes together in check.ts.

import { z } from "zod";
import {
  address,
  always,
  asksSomebody,
  attempts,
  interfaceGlob,
  list,
  mac,
  matching,
  name,
  oneOf,
  port,
  whole,
  zone,
} from "./fields.ts";

const PEER = /^peer:(.+)$/;

export const probe = z
  .strictObject(
    {
      kind: oneOf(["icmp", "tcp"]).describe("echo requests, or TCP connections"),
      address: address.optional().describe("whom to ask; the device's first address if left out"),
      port: port.optional().describe("of a TCP probe"),
      ...attempts(1, 1),
    },
    "a mapping with the keys of a probe",
  )
  .refine(
    ...always(
      undefined,
      (probe) => probe.kind !== "tcp" || probe.port !== undefined,
      "a TCP probe needs a port",
    ),
  )
  .refine(
    ...always(
      "port",
      (probe) => probe.kind !== "icmp" || probe.port === undefined,
      "only a TCP probe has a port",
    ),
  );

export const device = z
  .strictObject(
    {
      name: name().describe("as it is called in lists, logs and metrics"),
      macs: list(mac, "MAC addresses", 8).default([]).describe("MAC addresses that its frames come from"),
      addresses: list(address, "addresses", 4)
        .default([])
        .describe("IP addresses whose MAC is followed in the kernel's neighbour table"),
      vteps: list(address, "VTEPs", 4)
        .default([])
        .describe(
          "far ends of VXLAN tunnels that it is behind: the MACs that the forwarding tables of VXLAN uplinks have there are its own",
        ),
      interface: interfaceGlob
        .optional()
        .describe("uplinks where it is, by name or pattern; all of its zone if left out"),
      vlans: list(whole(1, 4094, "a VLAN id"), "VLAN tags", 2)
        .default([])
        .describe("VLAN tags of its frames, outer first"),
      zone,
      reply_mac: mac
        .optional()
        .describe("where replies go whichever MAC sent the request: the virtual MAC of VRRP or HSRP"),
      on_down: z
        .union(
          [
            z.enum(["route", "hold", "drop"], 'route, hold, drop or "peer:NAME"'),
            matching('route, hold, drop or "peer:NAME"', PEER).meta({ title: "`peer:NAME`" }),
          ],
          'route, hold, drop or "peer:NAME"',
        )
        .default("route")
        .describe(
          "what replies do while it is down: go by the VM's own route, go to it as before, be dropped, " +
            "or go to another device (`peer:NAME`)",
        ),
      probe: probe.optional().describe("how its health is asked for; by neighbour table alone if left out"),
    },
    "a mapping with the keys of a device",
  )
  .refine(
    ...always(
      undefined,
      ({ macs, addresses, vteps, interface: name }) =>
        macs !== undefined &&
        ([macs, addresses, vteps].some((given) => !isEmpty(given)) || name !== undefined),
      "a device needs macs, addresses or vteps; or an interface without a link layer, whose far end it is",
    ),
  )
  .refine(
    ...always(
      "probe",
      ({ probe, addresses }) => asksSomebody(probe, !isEmpty(addresses)),
      "nobody to probe: give the probe an address, or the device addresses",
    ),
  );

function isEmpty(value: unknown): boolean {
  return Array.isArray(value) && value.length === 0;
}
