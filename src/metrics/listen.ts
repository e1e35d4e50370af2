// SPDX-License-Identifier: Apache-2.0

import { isIP } from "node:net";
import { LasthopError } from "../errors.ts";

export interface ListenAddress {
  /** An address, or undefined for all of IPv4 and IPv6. */
  host: string | undefined;
  /** 0 for any that is free. */
  port: number;
}

const HOST_PORT = /^(?:\[([^\]]*)\]|([^:[\]]*)):(\d{1,5})$/;

/** "127.0.0.1:9469", "[::1]:9469", "localhost:9469", or ":9469" for every address. Throws E_LISTEN. */
export function parseListen(text: string): ListenAddress {
  const [, inBrackets, plain = "", digits] = HOST_PORT.exec(text) ?? [];
  const port = Number(digits);
  const host = inBrackets ?? plain;
  const known =
    inBrackets === undefined ? host === "" || host === "localhost" || isIP(host) === 4 : isIP(host) === 6;
  if (digits === undefined || port > 65535 || !known) {
    throw new LasthopError("E_LISTEN", `"${text}" is not an address to listen on`, {
      hint: "Write an address and a port, as 127.0.0.1:9469 or [::1]:9469.",
    });
  }
  return { host: host === "" ? undefined : host, port };
}

/** As it is written in a URL and in the configuration. */
export function formatListen(address: string, port: number): string {
  return isIP(address) === 6 ? `[${address}]:${port}` : `${address}:${port}`;
}
