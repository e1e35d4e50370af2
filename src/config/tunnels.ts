// SPDX-License-Identifier: Apache-2.0
// The tunnels of the configuration: their keys here, what goes with which type in tunnelChecks.ts.

import { z } from "zod";
import { LABELS_MAX, TUNNELS_MAX } from "../abi/layout.gen.ts";
import { address, list, mac, matching, oneOf, port, whole } from "./fields.ts";

export { TUNNELS_MAX };

/** As the kernel takes them, without its templates (%d), our patterns, and the names of our hidden ends. */
const TUNNEL_NAME = /^(?!lh-|\.{1,2}$)[!-$&-)+-.0-9;->@-~]{1,15}$/;
const INTERFACE_NAME = /^(?!\.{1,2}$)[^\s/:*?]{1,15}$/;

/** Below are labels with a meaning of their own (RFC 3032), above there is no room in 20 bits. */
const LABEL = { first: 16, last: 0xf_ffff } as const;

const interfaceName = matching("the name of an interface (up to 15 characters)", INTERFACE_NAME).meta({
  title: "name of an interface",
});
const labels = list(whole(LABEL.first, LABEL.last, "a label"), "labels", LABELS_MAX).min(
  1,
  "at least 1 label",
);

export const tunnel = z.strictObject(
  {
    name: matching(
      "the name of an interface: up to 15 characters without spaces, /, :, %, * and ?, and not lh-… as the hidden ends are called",
      TUNNEL_NAME,
    )
      .meta({ title: "name of an interface" })
      .describe("what its interface is called"),
    type: oneOf(["vxlan", "nvgre", "gre", "ipip", "mpls"]).describe(
      "VXLAN, NVGRE (Ethernet in GRE), GRE (IP in GRE), IP-in-IP (IPv4 and IPv6, in either), or MPLS labels",
    ),
    encap: oneOf(["auto", "device", "builtin"])
      .default("auto")
      .describe(
        "who encapsulates: an interface of the kernel's driver (`device`), lasthop's own programs (`builtin`), " +
          "or (`auto`) an interface of that name that is there already, else the kernel's driver, else lasthop",
      ),
    local: address.optional().describe("own address of the outer packets"),
    remote: address.optional().describe("address of the other end, of the same IP version"),
    id: whole(0, 0xffff_ffff)
      .optional()
      .describe("VNI of VXLAN; VSID of NVGRE or key of GRE, without a key if left out; 24 bits, of GRE 32"),
    port: port.optional().describe("UDP port of VXLAN; 4789 if left out"),
    underlay: interfaceName
      .optional()
      .describe("interface by which the outer packets leave and come in; needed where lasthop encapsulates"),
    ttl: whole(1, 255).default(64).describe("TTL or hop limit of the outer packets"),
    tos: whole(0, 252)
      .default(0)
      .describe("TOS or traffic class of the outer packets, a multiple of 4; of MPLS 0 to 7"),
    mtu: whole(576, 65_535)
      .optional()
      .describe("of its interface; if left out the underlay's less the headers, and as that changes"),
    labels: z
      .strictObject(
        {
          request: labels.describe("that requests come with, outer first"),
          reply: labels.describe("that replies are given, outer first"),
        },
        "a mapping with request and reply",
      )
      .optional()
      .describe("of MPLS: labels are per direction"),
    next_hop: mac
      .optional()
      .describe("of MPLS: MAC address of the neighbour that takes the labelled packets"),
    ttl_model: oneOf(["uniform", "pipe"])
      .optional()
      .describe(
        "of MPLS (RFC 3443): `uniform`, which it is if left out, takes the TTL from the packet and gives it back; " +
          "`pipe` hides it",
      ),
  },
  "a mapping with the keys of a tunnel",
);

export type TunnelConfig = z.output<typeof tunnel>;
export type TunnelType = TunnelConfig["type"];
