// SPDX-License-Identifier: Apache-2.0

import { describe, expect, it } from "vitest";
import { LasthopError } from "../../src/errors.ts";
import { formatTuple, parseTuple } from "../../src/tuple.ts";

const good: { input: string | string[]; formatted: string }[] = [
  { input: "tcp 198.51.100.7:40000 10.0.0.5:443", formatted: "tcp 198.51.100.7:40000 -> 10.0.0.5:443" },
  {
    input: ["tcp", "198.51.100.7:40000", "10.0.0.5:443"],
    formatted: "tcp 198.51.100.7:40000 -> 10.0.0.5:443",
  },
  { input: "TCP 198.51.100.7:1 -> 10.0.0.5:65535", formatted: "tcp 198.51.100.7:1 -> 10.0.0.5:65535" },
  { input: ["tcp 198.51.100.7:1->10.0.0.5:2"], formatted: "tcp 198.51.100.7:1 -> 10.0.0.5:2" },
  { input: ["udp", "198.51.100.7:1", "->", "10.0.0.5:2"], formatted: "udp 198.51.100.7:1 -> 10.0.0.5:2" },
  { input: "  sctp   1.2.3.4:5\t6.7.8.9:10 ", formatted: "sctp 1.2.3.4:5 -> 6.7.8.9:10" },
  {
    input: "tcp [2001:DB8:0:0:0:0:0:7]:40000 [2001:db8:1::5]:443",
    formatted: "tcp [2001:db8::7]:40000 -> [2001:db8:1::5]:443",
  },
  { input: "tcp [::1]:1 [::]:2", formatted: "tcp [::1]:1 -> [::]:2" },
  { input: "icmp 198.51.100.7 10.0.0.5 4711", formatted: "icmp 198.51.100.7 -> 10.0.0.5 4711" },
  { input: "icmp 198.51.100.7 -> 10.0.0.5 0", formatted: "icmp 198.51.100.7 -> 10.0.0.5 0" },
  { input: "icmp 2001:db8::1 [2001:db8::2] 0xFFFF", formatted: "icmp 2001:db8::1 -> 2001:db8::2 65535" },
];

const bad: { input: string | string[]; message: string }[] = [
  { input: "", message: "the five-tuple is empty" },
  { input: [], message: "the five-tuple is empty" },
  {
    input: "icmp6 ::1 ::2 3",
    message: 'unknown protocol "icmp6": it is tcp, udp, sctp or icmp (for IPv6 too)',
  },
  {
    input: "1.2.3.4:5 6.7.8.9:10",
    message: 'unknown protocol "1.2.3.4:5": it is tcp, udp, sctp or icmp (for IPv6 too)',
  },
  { input: "tcp", message: "the remote side is missing" },
  { input: "tcp 1.2.3.4:5", message: "the local side is missing" },
  {
    input: ["tcp", "1.2.3.4:5", "-"],
    message: 'the local side is missing: put "->" in quotes or leave it out',
  },
  { input: "icmp 1.2.3.4 5.6.7.8", message: "the identifier is missing" },
  { input: "tcp 1.2.3.4:5 6.7.8.9:10 zone 3", message: '"zone 3" is too much at the end' },
  { input: "icmp 1.2.3.4 5.6.7.8 9 10", message: '"10" is too much at the end' },
  { input: "tcp -> 1.2.3.4:5 6.7.8.9:10", message: '"->" stands between the remote and the local side only' },
  {
    input: "tcp 1.2.3.4:5 -> -> 6.7.8.9:10",
    message: '"->" stands between the remote and the local side only',
  },
  { input: "tcp 1.2.3.4:0 6.7.8.9:10", message: 'the remote port "0" is not a number from 1 to 65535' },
  { input: "tcp 1.2.3.4:1 6.7.8.9:65536", message: 'the local port "65536" is not a number from 1 to 65535' },
  { input: "tcp 1.2.3.4:1 6.7.8.9:http", message: 'the local port "http" is not a number from 1 to 65535' },
  { input: "tcp 1.2.3.4:1 6.7.8.9:", message: 'the local port "" is not a number from 1 to 65535' },
  { input: "tcp 1.2.3.4:-1 6.7.8.9:1", message: 'the remote port "-1" is not a number from 1 to 65535' },
  { input: "tcp 1.2.3.4:1e3 6.7.8.9:1", message: 'the remote port "1e3" is not a number from 1 to 65535' },
  { input: "tcp 1.2.3.4 6.7.8.9:1", message: 'the remote side "1.2.3.4" has no port: write 1.2.3.4:PORT' },
  {
    input: "tcp 2001:db8::1:80 [2001:db8::2]:80",
    message: 'the remote side "2001:db8::1:80" has no port, or lacks brackets: write [2001:db8::1:80]:PORT',
  },
  { input: "tcp 1.2.3.4:1 [2001:db8::2]", message: 'the local side "[2001:db8::2]" is not [ADDRESS]:PORT' },
  {
    input: "tcp 2001:db8:0:0:0:0:0:1:80 [::2]:80",
    message: 'the remote side "2001:db8:0:0:0:0:0:1:80" is not [ADDRESS]:PORT',
  },
  {
    input: "tcp [1.2.3.4]:5 6.7.8.9:1",
    message: 'the remote side "[1.2.3.4]:5": brackets are for IPv6 only',
  },
  { input: "tcp 1.2.3:5 6.7.8.9:1", message: 'the remote address "1.2.3" is neither IPv4 nor IPv6' },
  { input: "tcp 1.2.3.04:5 6.7.8.9:1", message: 'the remote address "1.2.3.04" is neither IPv4 nor IPv6' },
  {
    input: "tcp example.org:5 6.7.8.9:1",
    message: 'the remote address "example.org" is neither IPv4 nor IPv6',
  },
  { input: "tcp [::g]:5 [::1]:1", message: 'the remote address "::g" is neither IPv4 nor IPv6' },
  { input: "tcp 1.2.3.4:5 [2001:db8::2]:1", message: "the remote side is IPv4 and the local side is IPv6" },
  { input: "icmp 2001:db8::2 1.2.3.4 5", message: "the remote side is IPv6 and the local side is IPv4" },
  {
    input: "tcp [fe80::1%eth0]:5 [fe80::2]:1",
    message: 'the remote address "fe80::1%eth0" has a zone id: leave out "%eth0"',
  },
  {
    input: "icmp fe80::1 fe80::2%2 1",
    message: 'the local address "fe80::2%2" has a zone id: leave out "%2"',
  },
  {
    input: "tcp [::ffff:192.0.2.1]:5 6.7.8.9:1",
    message: 'the remote address "::ffff:192.0.2.1" is IPv4 on the wire: write 192.0.2.1',
  },
  { input: "icmp 1.2.3.4 5.6.7.8 65536", message: 'the identifier "65536" is not a number from 0 to 65535' },
  { input: "icmp 1.2.3.4:5 5.6.7.8 1", message: 'the remote address "1.2.3.4:5" is neither IPv4 nor IPv6' },
];

describe("five-tuples", () => {
  for (const { input, formatted } of good) {
    it(`reads ${JSON.stringify(input)}`, () => {
      const tuple = parseTuple(input);
      expect(formatTuple(tuple)).toBe(formatted);
      expect(parseTuple(formatted)).toEqual(tuple);
    });
  }
  for (const { input, message } of bad) {
    it(`refuses ${JSON.stringify(input)}`, () => {
      let error: unknown;
      try {
        parseTuple(input);
      } catch (thrown) {
        error = thrown;
      }
      expect(error).toBeInstanceOf(LasthopError);
      expect(error).toMatchObject({ code: "E_TUPLE", message });
      expect((error as LasthopError).hint).toMatch(/^for example: /);
    });
  }
});
