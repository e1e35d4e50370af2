// SPDX-License-Identifier: Apache-2.0
// The interface that a user names, and whether it can be attached at all.

import { LasthopError } from "../errors.ts";
import { whyNotAttachable } from "../kernel/coexistence.ts";
import type { Netlink } from "../kernel/netlink.ts";
import type { Link } from "../kernel/rtnetlink.ts";
import { suggest } from "../suggest.ts";
import type { Role } from "./types.ts";

/** By name or alternative name. Throws E_NO_INTERFACE, with the name that was probably meant. */
export function findInterface(netlink: Netlink, name: string): Link {
  const link = netlink.link(name);
  if (link) return link;
  const names = netlink.links().map((candidate) => candidate.name);
  const meant = suggest(name, names);
  throw new LasthopError("E_NO_INTERFACE", `there is no interface ${JSON.stringify(name)} here`, {
    hint: meant
      ? `Did you mean ${meant}?`
      : "`ip -brief link` lists the interfaces of this network namespace.",
  });
}

/** Throws E_INTERFACE for what has no place in lasthop's picture of a host. */
export function requireAttachable(netlink: Netlink, link: Link, role: Role): void {
  const refusal = whyNotAttachable(netlink, link, role);
  if (refusal === null) return;
  throw new LasthopError("E_INTERFACE", `cannot attach ${link.name} as ${role}: ${refusal.why}`, {
    hint: refusal.hint,
  });
}
