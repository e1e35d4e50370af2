// SPDX-License-Identifier: Apache-2.0
// A certificate that signs itself, made of bytes: no tool needed. (RFC 5280)

import { generateKeyPairSync, randomBytes, sign } from "node:crypto";
import { isIP } from "node:net";
import { parseAddress } from "../../src/addresses.ts";

export interface Certificate {
  key: string;
  cert: string;
}

const DAY_MS = 86_400_000;

/** `names`: of the hosts that it is good for, or their addresses. Valid since yesterday, for so many days more. */
export function selfSigned(names: readonly string[], days = 1): Certificate {
  const { privateKey, publicKey } = generateKeyPairSync("ec", { namedCurve: "prime256v1" });
  const algorithm = sequence(oid("1.2.840.10045.4.3.2"));
  const subject = sequence(tagged(0x31, sequence(oid("2.5.4.3"), tagged(0x0c, Buffer.from("lasthop test")))));
  const validity = sequence(time(Date.now() - DAY_MS), time(Date.now() + days * DAY_MS));
  const alternatives = sequence(
    ...names.map((name) =>
      isIP(name) === 0 ? tagged(0x82, Buffer.from(name)) : tagged(0x87, parseAddress(name)!),
    ),
  );
  const isAuthority = sequence(tagged(0x01, Buffer.from([0xff])));
  const extensions = sequence(
    sequence(oid("2.5.29.17"), tagged(0x04, alternatives)),
    sequence(oid("2.5.29.19"), tagged(0x04, isAuthority)),
  );
  const body = sequence(
    tagged(0xa0, integer(Buffer.from([2]))),
    integer(Buffer.concat([Buffer.from([1]), randomBytes(8)])),
    ...[algorithm, subject, validity, subject],
    publicKey.export({ type: "spki", format: "der" }),
    tagged(0xa3, extensions),
  );
  const signature = tagged(0x03, Buffer.concat([Buffer.from([0]), sign("sha256", body, privateKey)]));
  return {
    key: privateKey.export({ type: "pkcs8", format: "pem" }) as string,
    cert: pem(sequence(body, algorithm, signature)),
  };
}

function pem(der: Buffer): string {
  const lines = der.toString("base64").match(/.{1,64}/g)!;
  return ["-----BEGIN CERTIFICATE-----", ...lines, "-----END CERTIFICATE-----", ""].join("\n");
}

function tagged(tag: number, value: Buffer): Buffer {
  const length = value.length;
  const size =
    length < 0x80 ? [length] : length < 0x100 ? [0x81, length] : [0x82, length >> 8, length & 0xff];
  return Buffer.concat([Buffer.from([tag, ...size]), value]);
}

const sequence = (...parts: Buffer[]) => tagged(0x30, Buffer.concat(parts));
const integer = (value: Buffer) => tagged(0x02, value);

function time(ms: number): Buffer {
  const digits = new Date(ms).toISOString().replace(/[-:T]|\.\d+/g, "");
  return tagged(0x18, Buffer.from(digits));
}

function oid(text: string): Buffer {
  const [first = 0, second = 0, ...others] = text.split(".").map(Number);
  const bytes = others.flatMap((value) => {
    const digits = [value & 0x7f];
    for (let rest = value >>> 7; rest > 0; rest >>>= 7) digits.unshift((rest & 0x7f) | 0x80);
    return digits;
  });
  return tagged(0x06, Buffer.from([first * 40 + second, ...bytes]));
}
