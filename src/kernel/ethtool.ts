// SPDX-License-Identifier: Apache-2.0
// What ethtool knows about an interface: its driver, whether it takes VLAN tags out of received frames, and what it
// does for those who send.

import { LasthopError } from "../errors.ts";
import { errnoText } from "../libc/errno.ts";
import { ethtoolIoctl } from "../libc/ioctl.ts";
import { attributeText } from "./netlinkMessage.ts";

const ETHTOOL_GDRVINFO = 0x03;
const ETHTOOL_GSTRINGS = 0x1b;
const ETHTOOL_GSSET_INFO = 0x37;
const ETHTOOL_GFEATURES = 0x3a;
const ETHTOOL_SFEATURES = 0x3b;
const ETH_SS_FEATURES = 4;
const ETH_GSTRING_LEN = 32;
const DRVINFO_BYTES = 196;

/** As the kernel names the features; `ethtool -K` takes the same names. */
export const VLAN_STRIPPING_FEATURES = ["rx-vlan-hw-parse", "rx-vlan-stag-hw-parse"] as const;
export type VlanStrippingFeature = (typeof VLAN_STRIPPING_FEATURES)[number];

/** Null if the interface has none, or is gone. */
export function driver(name: string): string | null {
  const data = Buffer.alloc(DRVINFO_BYTES);
  data.writeUInt32LE(ETHTOOL_GDRVINFO, 0);
  if (ethtoolIoctl(name, data) !== 0) return null;
  return attributeText(data.subarray(4, 36)) || null;
}

/** The stripping features that are on; null if the interface does not say. */
export function vlanStripping(name: string): VlanStrippingFeature[] | null {
  const features = readFeatures(name);
  if (!features) return null;
  const on = new Set(features.filter(({ active }) => active).map((feature) => feature.name));
  return VLAN_STRIPPING_FEATURES.filter((feature) => on.has(feature));
}

/** Segmentation and checksums, as far as they can be switched off: what is on. Null if the interface does not say. */
export function sendOffloads(name: string): string[] | null {
  const features = readFeatures(name);
  const switchable = features?.filter((feature) => feature.active && feature.changeable);
  return switchable?.map((feature) => feature.name).filter(isSendOffload) ?? null;
}

function isSendOffload(feature: string): boolean {
  return /^tx-(checksum-|gso-|.*segmentation)/.test(feature);
}

/** Throws E_TUNNEL if it cannot be done. */
export function switchFeatures(name: string, features: readonly string[], on: boolean): void {
  const known = readFeatures(name) ?? [];
  const words = Math.ceil(known.length / 32);
  const data = Buffer.alloc(8 + words * 8);
  data.writeUInt32LE(ETHTOOL_SFEATURES, 0);
  data.writeUInt32LE(words, 4);
  for (const [bit, feature] of known.entries()) {
    if (!features.includes(feature.name)) continue;
    // A block is valid, requested.
    const at = 8 + (bit >> 5) * 8;
    const mask = (1 << (bit & 31)) >>> 0;
    data.writeUInt32LE((data.readUInt32LE(at) | mask) >>> 0, at);
    if (on) data.writeUInt32LE((data.readUInt32LE(at + 4) | mask) >>> 0, at + 4);
  }
  // A positive answer of the command itself says only that not all of it was taken: what is active counts.
  const errno = ethtoolIoctl(name, data);
  const after = new Map((readFeatures(name) ?? []).map((feature) => [feature.name, feature.active]));
  const wrong = features.filter((feature) => after.get(feature) !== on);
  if (errno === 0 && wrong.length === 0) return;
  const why = errno === 0 ? `it keeps ${wrong.join(", ")}` : errnoText(errno);
  throw new LasthopError("E_TUNNEL", `cannot switch offloads of ${name} ${on ? "on" : "off"}: ${why}`);
}

interface Feature {
  name: string;
  active: boolean;
  changeable: boolean;
}

/** In the kernel's order; null if the interface does not say. */
function readFeatures(name: string): Feature[] | null {
  const names = featureNames(name);
  if (!names) return null;
  const words = Math.ceil(names.length / 32);
  const data = Buffer.alloc(8 + words * 16);
  data.writeUInt32LE(ETHTOOL_GFEATURES, 0);
  data.writeUInt32LE(words, 4);
  if (ethtoolIoctl(name, data) !== 0) return null;
  return names.map((feature, bit) => {
    // A block is available, requested, active, never_changed.
    const at = (word: number) => (data.readUInt32LE(8 + (bit >> 5) * 16 + 4 * word) >>> (bit & 31)) & 1;
    return { name: feature, active: at(2) === 1, changeable: at(0) === 1 && at(3) === 0 };
  });
}

/** True if received frames may come without their tags. */
export function rxVlanOffload(name: string): boolean | null {
  const features = vlanStripping(name);
  return features && features.length > 0;
}

function featureNames(name: string): string[] | null {
  const info = Buffer.alloc(20);
  info.writeUInt32LE(ETHTOOL_GSSET_INFO, 0);
  info.writeBigUInt64LE(1n << BigInt(ETH_SS_FEATURES), 8);
  if (ethtoolIoctl(name, info) !== 0 || info.readBigUInt64LE(8) === 0n) return null;
  const count = info.readUInt32LE(16);
  const strings = Buffer.alloc(12 + count * ETH_GSTRING_LEN);
  strings.writeUInt32LE(ETHTOOL_GSTRINGS, 0);
  strings.writeUInt32LE(ETH_SS_FEATURES, 4);
  strings.writeUInt32LE(count, 8);
  if (ethtoolIoctl(name, strings) !== 0) return null;
  return Array.from({ length: count }, (_, index) =>
    attributeText(strings.subarray(12 + index * ETH_GSTRING_LEN, 12 + (index + 1) * ETH_GSTRING_LEN)),
  );
}
