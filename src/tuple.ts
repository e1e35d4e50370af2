// SPDX-License-Identifier: Apache-2.0
// The five-tuple as a user writes it: `tcp REMOTE:PORT LOCAL:PORT` or `icmp REMOTE LOCAL ID`.

import { formatAddress, formatIpv4, isMappedIpv4, parseIpv4, parseIpv6 } from "./addresses.ts";
import { LasthopError } from "./errors.ts";
import type { Protocol, Tuple } from "./ops/types.ts";

const EXAMPLES = {
  port: "tcp 198.51.100.7:40000 10.0.0.5:443, or tcp [2001:db8::7]:40000 [2001:db8:1::5]:443",
  icmp: "icmp 198.51.100.7 10.0.0.5 4711",
} as const;

/** From one quoted argument or several words; `->` may stand between the two sides. */
export function parseTuple(input: string | readonly string[]): Tuple {
  const text = typeof input === "string" ? input : input.join(" ");
  const [first, ...rest] = text.replaceAll("->", " -> ").trim().split(/\s+/) as [string, ...string[]];
  if (first === "") throw bad("the five-tuple is empty", EXAMPLES.port);
  const protocol = parseProtocol(first);
  return protocol === "icmp"
    ? parseEcho(sides(rest, 1, EXAMPLES.icmp))
    : parsePorts(protocol, sides(rest, 0, EXAMPLES.port));
}

/** With `->` between, and IPv6 in brackets where a port follows: what parseTuple reads. */
export function formatTuple(tuple: Tuple): string {
  const { protocol, remote_address: remote, local_address: local } = tuple;
  if (protocol === "icmp") return `icmp ${remote} -> ${local} ${tuple.icmp_id}`;
  return `${protocol} ${formatEndpoint(remote, tuple.remote_port)} -> ${formatEndpoint(local, tuple.local_port)}`;
}

export function formatEndpoint(address: string, port: number): string {
  return address.includes(":") ? `[${address}]:${port}` : `${address}:${port}`;
}

function parseProtocol(word: string): Protocol {
  const protocol = word.toLowerCase();
  if (protocol === "tcp" || protocol === "udp" || protocol === "sctp" || protocol === "icmp") return protocol;
  throw bad(`unknown protocol "${word}": it is tcp, udp, sctp or icmp (for IPv6 too)`, EXAMPLES.port);
}

/** The remote side, the local side and `extra` words more, without the arrow. */
function sides(words: string[], extra: number, example: string): string[] {
  const arrow = words.indexOf("->");
  const parts = arrow === 1 ? words.toSpliced(1, 1) : words;
  if (parts.includes("->")) throw bad(`"->" stands between the remote and the local side only`, example);
  // Unquoted, the shell takes "> LOCAL" for itself and leaves the dash.
  if (parts.at(-1) === "-")
    throw bad(`the local side is missing: put "->" in quotes or leave it out`, example);
  const names = ["the remote side", "the local side", "the identifier"];
  if (parts.length < 2 + extra) throw bad(`${names[parts.length]} is missing`, example);
  if (parts.length > 2 + extra)
    throw bad(`"${parts.slice(2 + extra).join(" ")}" is too much at the end`, example);
  return parts;
}

function parsePorts(protocol: Protocol, [remoteText, localText]: string[]): Tuple {
  const remote = parseEndpoint("remote", remoteText!);
  const local = parseEndpoint("local", localText!);
  checkFamilies(remote.address, local.address, EXAMPLES.port);
  return {
    protocol,
    family: remote.address.length === 4 ? 4 : 6,
    remote_address: formatAddress(remote.address),
    local_address: formatAddress(local.address),
    remote_port: remote.port,
    local_port: local.port,
    icmp_id: null,
  };
}

function parseEcho([remoteText, localText, idText]: string[]): Tuple {
  const unbracket = (text: string) => (/^\[.*\]$/.test(text) ? text.slice(1, -1) : text);
  const remote = parseSide("remote", unbracket(remoteText!), EXAMPLES.icmp);
  const local = parseSide("local", unbracket(localText!), EXAMPLES.icmp);
  checkFamilies(remote, local, EXAMPLES.icmp);
  if (!/^(\d{1,5}|0x[0-9a-f]{1,4})$/i.test(idText!) || Number(idText) > 0xffff) {
    throw bad(`the identifier "${idText}" is not a number from 0 to 65535`, EXAMPLES.icmp);
  }
  return {
    protocol: "icmp",
    family: remote.length === 4 ? 4 : 6,
    remote_address: formatAddress(remote),
    local_address: formatAddress(local),
    remote_port: 0,
    local_port: 0,
    icmp_id: Number(idText),
  };
}

function parseEndpoint(side: "remote" | "local", text: string): { address: Buffer; port: number } {
  const example = EXAMPLES.port;
  if (parseIpv6(text.split("%")[0]!)) {
    throw bad(`the ${side} side "${text}" has no port, or lacks brackets: write [${text}]:PORT`, example);
  }
  if (parseIpv4(text)) throw bad(`the ${side} side "${text}" has no port: write ${text}:PORT`, example);
  const match = text.startsWith("[") ? /^\[([^\]]*)\]:(.*)$/.exec(text) : /^([^:]*):([^:]*)$/.exec(text);
  if (!match) {
    const form =
      text.includes("[") || text.includes("]") || text.split(":").length > 2
        ? "[ADDRESS]:PORT"
        : "ADDRESS:PORT";
    throw bad(`the ${side} side "${text}" is not ${form}`, example);
  }
  const [, addressText = "", portText = ""] = match;
  const address = parseSide(side, addressText, example);
  if (text.startsWith("[") && address.length === 4) {
    throw bad(`the ${side} side "${text}": brackets are for IPv6 only`, example);
  }
  if (!/^\d+$/.test(portText) || Number(portText) < 1 || Number(portText) > 65_535) {
    throw bad(`the ${side} port "${portText}" is not a number from 1 to 65535`, example);
  }
  return { address, port: Number(portText) };
}

function parseSide(side: "remote" | "local", text: string, example: string): Buffer {
  const zone = text.indexOf("%");
  if (zone >= 0) {
    throw bad(`the ${side} address "${text}" has a zone id: leave out "${text.slice(zone)}"`, example);
  }
  const address = parseIpv4(text) ?? parseIpv6(text);
  if (!address) throw bad(`the ${side} address "${text}" is neither IPv4 nor IPv6`, example);
  if (isMappedIpv4(address)) {
    throw bad(`the ${side} address "${text}" is IPv4 on the wire: write ${formatIpv4(address, 12)}`, example);
  }
  return address;
}

function checkFamilies(remote: Buffer, local: Buffer, example: string): void {
  if (remote.length === local.length) return;
  const family = (bytes: Buffer) => (bytes.length === 4 ? "IPv4" : "IPv6");
  throw bad(`the remote side is ${family(remote)} and the local side is ${family(local)}`, example);
}

function bad(message: string, example: string): LasthopError {
  return new LasthopError("E_TUPLE", message, { hint: `for example: ${example}` });
}
