// SPDX-License-Identifier: Apache-2.0
// Framing of netlink messages and their attributes; no sockets. Netlink is host order: little-endian on
// every machine that lasthop runs on.

export const NLM_F_REQUEST = 0x1;
export const NLM_F_ACK = 0x4;
export const NLM_F_DUMP_INTR = 0x10;
export const NLM_F_DUMP = 0x300;
export const NLM_F_REPLACE = 0x100;
export const NLM_F_CREATE = 0x400;
const NLM_F_CAPPED = 0x100;
const NLM_F_ACK_TLVS = 0x200;

export const NLMSG_NOOP = 1;
export const NLMSG_ERROR = 2;
export const NLMSG_DONE = 3;
export const NLMSG_OVERRUN = 4;

const NLMSGERR_ATTR_MSG = 1;

const HEADER_BYTES = 16;
const ATTRIBUTE_HEADER_BYTES = 4;
/** Without the bits NLA_F_NESTED and NLA_F_NET_BYTEORDER. */
const ATTRIBUTE_TYPE_MASK = 0x3fff;

export interface NetlinkMessage {
  type: number;
  flags: number;
  sequence: number;
  portId: number;
  payload: Buffer;
}

/** Attributes by type. A type that comes twice keeps the last; nothing that we read does. */
export type Attributes = Map<number, Buffer>;

export interface NetlinkAttribute {
  type: number;
  value: Buffer | number | string | readonly NetlinkAttribute[];
}

const align = (length: number): number => (length + 3) & ~3;

/** Numbers become u32, strings get their NUL, arrays are nested. */
export function encodeAttributes(attributes: readonly NetlinkAttribute[]): Buffer {
  return Buffer.concat(
    attributes.map(({ type, value }) => {
      const body = attributeBytes(value);
      const buffer = Buffer.alloc(align(ATTRIBUTE_HEADER_BYTES + body.length));
      buffer.writeUInt16LE(ATTRIBUTE_HEADER_BYTES + body.length, 0);
      buffer.writeUInt16LE(type, 2);
      body.copy(buffer, ATTRIBUTE_HEADER_BYTES);
      return buffer;
    }),
  );
}

function attributeBytes(value: NetlinkAttribute["value"]): Buffer {
  if (Buffer.isBuffer(value)) return value;
  if (typeof value === "string") return Buffer.from(`${value}\0`);
  if (typeof value === "number") {
    const buffer = Buffer.alloc(4);
    buffer.writeUInt32LE(value >>> 0);
    return buffer;
  }
  return encodeAttributes(value);
}

export function encodeMessage(
  type: number,
  flags: number,
  sequence: number,
  header: Buffer,
  attributes: readonly NetlinkAttribute[] = [],
): Buffer {
  const body = encodeAttributes(attributes);
  const message = Buffer.alloc(HEADER_BYTES + align(header.length) + body.length);
  message.writeUInt32LE(message.length, 0);
  message.writeUInt16LE(type, 4);
  message.writeUInt16LE(flags, 6);
  message.writeUInt32LE(sequence, 8);
  header.copy(message, HEADER_BYTES);
  body.copy(message, HEADER_BYTES + align(header.length));
  return message;
}

/** The messages of one datagram; their payloads are views of it. */
export function decodeMessages(datagram: Buffer): NetlinkMessage[] {
  const messages: NetlinkMessage[] = [];
  let offset = 0;
  while (offset + HEADER_BYTES <= datagram.length) {
    const length = datagram.readUInt32LE(offset);
    if (length < HEADER_BYTES || offset + length > datagram.length) {
      throw new RangeError(`netlink: message of ${length} bytes at ${offset} of ${datagram.length}`);
    }
    messages.push({
      type: datagram.readUInt16LE(offset + 4),
      flags: datagram.readUInt16LE(offset + 6),
      sequence: datagram.readUInt32LE(offset + 8),
      portId: datagram.readUInt32LE(offset + 12),
      payload: datagram.subarray(offset + HEADER_BYTES, offset + length),
    });
    offset += align(length);
  }
  return messages;
}

export function decodeAttributes(buffer: Buffer): Attributes {
  const attributes: Attributes = new Map();
  let offset = 0;
  while (offset + ATTRIBUTE_HEADER_BYTES <= buffer.length) {
    const length = buffer.readUInt16LE(offset);
    if (length < ATTRIBUTE_HEADER_BYTES || offset + length > buffer.length) {
      throw new RangeError(`netlink: attribute of ${length} bytes at ${offset} of ${buffer.length}`);
    }
    attributes.set(
      buffer.readUInt16LE(offset + 2) & ATTRIBUTE_TYPE_MASK,
      buffer.subarray(offset + ATTRIBUTE_HEADER_BYTES, offset + length),
    );
    offset += align(length);
  }
  return attributes;
}

/** The errno (positive; 0 for an acknowledgement) and the kernel's own words of an NLMSG_ERROR. */
export function decodeError(message: NetlinkMessage): { errno: number; text: string | null } {
  const errno = Math.abs(message.payload.readInt32LE(0));
  if ((message.flags & NLM_F_ACK_TLVS) === 0) return { errno, text: null };
  // The request's header follows, and its body too unless capped.
  const echoed = message.flags & NLM_F_CAPPED ? HEADER_BYTES : message.payload.readUInt32LE(4);
  return { errno, text: errorText(message.payload.subarray(4 + align(echoed))) };
}

/** A dump that fails says so in its NLMSG_DONE. */
export function decodeDone(message: NetlinkMessage): { errno: number; text: string | null } {
  if (message.payload.length < 4) return { errno: 0, text: null };
  const text = message.flags & NLM_F_ACK_TLVS ? errorText(message.payload.subarray(4)) : null;
  return { errno: Math.abs(message.payload.readInt32LE(0)), text };
}

function errorText(attributes: Buffer): string | null {
  const text = decodeAttributes(attributes).get(NLMSGERR_ATTR_MSG);
  return text ? attributeText(text) : null;
}

export function attributeText(value: Buffer): string {
  const end = value.indexOf(0);
  return value.toString("utf8", 0, end < 0 ? value.length : end);
}

/** A number in host order; null if there is none. */
export const attributeU32 = (attributes: Attributes, type: number): number | null =>
  attributes.get(type)?.readUInt32LE(0) ?? null;

export const attributeString = (attributes: Attributes, type: number): string | null => {
  const value = attributes.get(type);
  return value ? attributeText(value) : null;
};

/** Those within an attribute; none if it is not there. */
export const nestedAttributes = (attributes: Attributes, type: number): Attributes =>
  decodeAttributes(attributes.get(type) ?? Buffer.alloc(0));
