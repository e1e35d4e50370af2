// SPDX-License-Identifier: Apache-2.0
// How the netdevs of tunnels are known again: by an alias that says whose they are, and until they have it by a name
// that only the one who makes them uses. Pure.

import { createHash } from "node:crypto";
import type { Link } from "./rtnetlink.ts";

/** Of an alias, with its NUL (IFALIASZ). */
const ALIAS_BYTES = 256;
const TUNNEL_PREFIX = "lasthop ";
const HIDDEN_PREFIX = "lasthop-hidden ";

export interface TunnelNames {
  /** Alias of a tunnel's interface, which the operator sees and uses. */
  alias: string;
  /** Alias of the hidden end of its pair. */
  hiddenAlias: string;
  /** Names of both in the making. */
  making: { tunnel: string; hidden: string };
}

/** Of one instance; others on the same host have others. */
export function tunnelNames(pinRoot: string): TunnelNames {
  const digest = createHash("sha256").update(pinRoot).digest("hex");
  const room = ALIAS_BYTES - 1 - HIDDEN_PREFIX.length;
  const owner = Buffer.byteLength(pinRoot) <= room ? pinRoot : digest;
  const making = `lh-${digest.slice(0, 8)}`;
  return {
    alias: TUNNEL_PREFIX + owner,
    hiddenAlias: HIDDEN_PREFIX + owner,
    making: { tunnel: `${making}-x`, hidden: `${making}-p` },
  };
}

export function hiddenName(ifindex: number): string {
  return `lh-${ifindex}`;
}

/** Of whichever instance. */
export function isHiddenEnd({ alias = "" }: Pick<Link, "alias">): boolean {
  return alias.startsWith(HIDDEN_PREFIX);
}

/** Made by lasthop, whichever instance. */
export function isMadeByLasthop({ alias = "" }: Pick<Link, "alias">): boolean {
  return alias.startsWith(TUNNEL_PREFIX) || alias.startsWith(HIDDEN_PREFIX);
}
