// SPDX-License-Identifier: Apache-2.0
// Devices of the operator's, and how a last hop says whose it is.
//
// Programs read neither origin, owner nor successor of a record, so these may change while the record is in use.

import { createHash } from "node:crypto";
import { decode, type StructInput, type StructValue } from "../abi/codec.ts";
import { LAST_HOP } from "../abi/layout.gen.ts";
import { ChangeReader } from "./changeReader.ts";
import { BATCH_ENTRIES, type TableMap } from "./source.ts";

export type Device = StructValue<"device">;
export type DeviceInput = StructInput<"device">;
export type DeviceAddress = Device["addresses"][number];

/** Of no device. */
export const NOBODY = 0n;

/** Where the owner stands in a record's bytes. */
export const OWNER_OFFSET = LAST_HOP.fields.owner.offset;
/** And the reference of its successor. */
export const SUCCESSOR_OFFSET = LAST_HOP.fields.successor.offset;

/** What a device is called in its last hops: names may be longer than a record has room for. Never NOBODY. */
export function ownerId(name: string): bigint {
  return createHash("sha256").update(name).digest().readBigUInt64LE(0) || 1n;
}

type Record = StructValue<"last_hop">;

export function ownerOf(record: Pick<Record, "owner">): bigint {
  return record.owner.readBigUInt64LE();
}

/** What a record says of whose it is, and of the one that took its place. */
export function ownership(owner: bigint, successor = 0): Pick<Record, "owner" | "successor"> {
  const bytes = Buffer.alloc(LAST_HOP.fields.owner.size);
  bytes.writeBigUInt64LE(owner);
  return { owner: bytes, successor };
}

const ZERO_MAC = Buffer.alloc(6);

export function isZero(bytes: Uint8Array): boolean {
  return bytes.every((byte) => byte === 0);
}

/** As the operator gave them. */
export function givenMacs(device: Device): Buffer[] {
  return device.macs.map(({ octets }) => octets).filter((mac) => !isZero(mac));
}

/** Addresses that it has, with what they last resolved to. */
export function deviceAddresses(device: Device): DeviceAddress[] {
  return device.addresses.filter(({ octets }) => !isZero(octets));
}

/** As 16 bytes each, IPv4 mapped. */
export function deviceVteps(device: Device): Buffer[] {
  return device.vteps.map(({ octets }) => octets).filter((vtep) => !isZero(vtep));
}

/** Null: each MAC is answered itself. */
export function replyMac(device: Device): Buffer | null {
  return isZero(device.reply_mac.octets) ? null : device.reply_mac.octets;
}

/** Those that its frames come from, each once: given, resolved, and the one that it is answered at. */
export function deviceMacs(device: Device): Buffer[] {
  const reply = replyMac(device);
  const resolved = deviceAddresses(device)
    .map(({ mac }) => mac)
    .filter((mac) => !mac.equals(ZERO_MAC));
  const unique = new Map<string, Buffer>();
  for (const mac of [...givenMacs(device), ...resolved, ...(reply ? [reply] : [])]) {
    unique.set(mac.toString("hex"), mac);
  }
  return [...unique.values()];
}

/**
 * It has no address of its own: it is whoever is at the other end of its interfaces, those of them that have no link
 * layer.
 */
export function isFarEnd(device: Device): boolean {
  const given = givenMacs(device).length + deviceAddresses(device).length;
  return device.interface !== "" && given === 0 && device.vteps.every(({ octets }) => isZero(octets));
}

export interface NamedDevice {
  name: string;
  /** As its last hops have it. */
  id: bigint;
  device: Device;
}

/** Reads all devices again and again: only what has changed is taken apart. */
export class DeviceReader {
  readonly #reader: ChangeReader<NamedDevice>;

  constructor(table: { map: TableMap }) {
    this.#reader = new ChangeReader(table, {
      key: "device_key",
      batch: BATCH_ENTRIES,
      take: (name, value, before) => ({
        name,
        id: before?.id ?? ownerId(name),
        device: decode("device", value),
      }),
    });
  }

  read(): NamedDevice[] {
    return [...this.#reader.read().values()];
  }
}
