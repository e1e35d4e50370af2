// SPDX-License-Identifier: Apache-2.0
// What ethtool knows about an interface: its driver, and whether it takes VLAN tags out of received frames.

import { ethtoolIoctl } from "../libc/ioctl.ts";
import { attributeText } from "./netlinkMessage.ts";

const ETHTOOL_GDRVINFO = 0x03;
const ETHTOOL_GSTRINGS = 0x1b;
const ETHTOOL_GSSET_INFO = 0x37;
const ETHTOOL_GFEATURES = 0x3a;
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
  const features = featureNames(name);
  if (!features) return null;
  const words = Math.ceil(features.length / 32);
  const data = Buffer.alloc(8 + words * 16);
  data.writeUInt32LE(ETHTOOL_GFEATURES, 0);
  data.writeUInt32LE(words, 4);
  if (ethtoolIoctl(name, data) !== 0) return null;
  return VLAN_STRIPPING_FEATURES.filter((feature) => {
    const bit = features.indexOf(feature);
    // A block is available, requested, active, never_changed.
    return bit >= 0 && ((data.readUInt32LE(8 + (bit >> 5) * 16 + 8) >>> (bit & 31)) & 1) === 1;
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
