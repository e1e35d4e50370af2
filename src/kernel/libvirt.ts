// SPDX-License-Identifier: Apache-2.0
// The running domains of libvirt, from the status files that its qemu driver keeps (src/conf/domain_conf.c,
// virDomainObjFormat): no connection to its daemon, which starts after us.

import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { formatMac, parseMac } from "../addresses.ts";

export const LIBVIRT_DIRECTORY = "/run/libvirt/qemu";

export interface LibvirtInterface {
  /** Name of the host's interface; null before libvirt has made it. */
  target: string | null;
  /** Of the guest's network card, lower case. */
  mac: string | null;
}

export interface LibvirtDomain {
  name: string;
  interfaces: LibvirtInterface[];
}

export interface LibvirtDomains {
  domains: LibvirtDomain[];
  /** Files that say nothing, and why. */
  unreadable: { path: string; why: string }[];
}

/** None where libvirt does not run. LASTHOP_LIBVIRT names another directory. */
export function readDomains(directory = process.env.LASTHOP_LIBVIRT || LIBVIRT_DIRECTORY): LibvirtDomains {
  const found: LibvirtDomains = { domains: [], unreadable: [] };
  const names = attempt(directory, () => readdirSync(directory), found) ?? [];
  for (const name of names.filter((name) => name.endsWith(".xml")).sort()) {
    const path = join(directory, name);
    const text = attempt(path, () => readFileSync(path, "utf8"), found);
    if (text === undefined) continue;
    const domain = parseDomain(text);
    if (domain) found.domains.push(domain);
    else found.unreadable.push({ path, why: "it is not the status of a domain" });
  }
  return found;
}

/** A domain may end while its file is read. */
function attempt<T>(path: string, read: () => T, found: LibvirtDomains): T | undefined {
  try {
    return read();
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    if (code === undefined) throw error;
    if (code !== "ENOENT") found.unreadable.push({ path, why: message });
    return undefined;
  }
}

const DOMAIN = ["domain", "domstatus/domain"];

/** From a status file, or from what `virsh dumpxml` prints. Undefined if it is neither, or not well-formed. */
export function parseDomain(xml: string): LibvirtDomain | undefined {
  const interfaces: LibvirtInterface[] = [];
  let name: string | undefined;
  const wellFormed = walk(xml, {
    element(path, attributes) {
      const within = domainPath(path);
      if (within === "devices/interface") interfaces.push({ target: null, mac: null });
      const last = interfaces.at(-1);
      if (within === "devices/interface/target" && last) last.target = attributes.get("dev") ?? null;
      if (within === "devices/interface/mac" && last) last.mac = macOf(attributes.get("address"));
    },
    text(path, text) {
      if (domainPath(path) === "name") name = (name ?? "") + text;
    },
  });
  return wellFormed && name !== undefined && name !== "" ? { name, interfaces } : undefined;
}

/** Where an element is within the domain; undefined outside of it. */
function domainPath(path: string): string | undefined {
  const root = DOMAIN.find((root) => path.startsWith(`${root}/`));
  return root === undefined ? undefined : path.slice(root.length + 1);
}

function macOf(text: string | undefined): string | null {
  const bytes = text === undefined ? undefined : parseMac(text);
  return bytes ? formatMac(bytes) : null;
}

export interface Visitor {
  element(path: string, attributes: ReadonlyMap<string, string>): void;
  text(path: string, text: string): void;
}

/** Comment, character data, processing instruction or declaration, tag, text: whatever comes next. */
const TOKEN =
  /<!--[\s\S]*?-->|<!\[CDATA\[([\s\S]*?)\]\]>|<\?[\s\S]*?\?>|<(\/?)([^\s<>/="'!?]+)((?:\s+[^\s<>/="']+\s*=\s*(?:"[^"<]*"|'[^'<]*'))*)\s*(\/?)>|([^<]+)/y;
const ATTRIBUTE = /([^\s<>/="']+)\s*=\s*(?:"([^"]*)"|'([^']*)')/g;

/** XML as libvirt writes it: without document type. False if it is not well-formed. */
export function walk(xml: string, visitor: Visitor): boolean {
  const open: string[] = [];
  let roots = 0;
  TOKEN.lastIndex = 0;
  while (TOKEN.lastIndex < xml.length) {
    const token = TOKEN.exec(xml);
    if (!token) return false;
    const [, data, closing, name, attributes = "", empty, text] = token;
    if (name === undefined) {
      const characters = data ?? (text === undefined ? "" : unescapeText(text));
      if (open.length === 0 && characters.trim() !== "" && characters !== "\uFEFF") return false;
      if (characters !== "") visitor.text(open.join("/"), characters);
    } else if (closing) {
      if (open.pop() !== name) return false;
    } else {
      if (open.length === 0 && ++roots > 1) return false;
      open.push(name);
      visitor.element(open.join("/"), attributesOf(attributes));
      if (empty) open.pop();
    }
  }
  return open.length === 0 && roots === 1;
}

function attributesOf(text: string): Map<string, string> {
  const found = new Map<string, string>();
  for (const [, name, double, single] of text.matchAll(ATTRIBUTE)) {
    found.set(name!, unescapeText(double ?? single ?? ""));
  }
  return found;
}

const ENTITIES: Readonly<Record<string, string>> = { lt: "<", gt: ">", amp: "&", quot: '"', apos: "'" };

function unescapeText(text: string): string {
  return text.replace(/&(?:#x([0-9a-f]{1,6})|#(\d{1,7})|(\w+));/gi, (whole, hex, decimal, name) => {
    if (name !== undefined) return ENTITIES[name] ?? whole;
    const code = hex === undefined ? Number(decimal) : Number.parseInt(hex, 16);
    return code <= 0x10ffff ? String.fromCodePoint(code) : whole;
  });
}
