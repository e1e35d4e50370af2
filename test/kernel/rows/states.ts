// SPDX-License-Identifier: Apache-2.0
// A TCP connection's walk through its states, and an SCTP association's.

import type { Row } from "../support/rows.ts";
import * as talk from "../support/talk.ts";
import { A, B, c, cs, VM1, v, viaB, vs } from "../support/talk.ts";
import { handshake } from "./moving.ts";

const established = { tier: "established", lastHop: A, vm: VM1 } as const;

export const stateRows: Row[] = [
  {
    description: "closed by the client: FIN, FIN",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        ...handshake(f),
        {
          at: "uplink_a",
          packet: c(f, "FA"),
          reason: "refresh",
          flow: { ...established, state: "half_closed", flags: ["FIN_REMOTE"] },
        },
        {
          at: "uplink_a",
          packet: c(f, "FA"),
          reason: "refresh",
          flow: { state: "half_closed", flags: ["FIN_REMOTE"] },
        },
        { at: "tap_1", packet: v(f, "A"), reason: "redirect", to: A, flow: { state: "half_closed" } },
        { at: "tap_1", packet: v(f, "PA"), reason: "redirect", to: A, flow: { state: "half_closed" } },
        { at: "uplink_a", packet: c(f, "A"), reason: "refresh", flow: { state: "half_closed" } },
        {
          at: "tap_1",
          packet: v(f, "FA"),
          reason: "redirect",
          to: A,
          flow: { ...established, state: "closed", flags: ["FIN_REMOTE", "FIN_LOCAL"] },
        },
        { at: "uplink_a", packet: c(f, "A"), reason: "refresh", flow: { state: "closed" } },
        { at: "tap_1", packet: v(f, "FA"), reason: "redirect", to: A, flow: { state: "closed" } },
      ],
    }),
  },
  {
    description: "closed by the VM: FIN, FIN",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        ...handshake(f),
        {
          at: "tap_1",
          packet: v(f, "FA"),
          reason: "redirect",
          to: A,
          flow: { ...established, state: "half_closed", flags: ["FIN_LOCAL"] },
        },
        { at: "uplink_a", packet: c(f, "PA"), reason: "refresh", flow: { state: "half_closed" } },
        {
          at: "uplink_a",
          packet: c(f, "FA"),
          reason: "refresh",
          flow: { ...established, state: "closed", flags: ["FIN_REMOTE", "FIN_LOCAL"] },
        },
        { at: "tap_1", packet: v(f, "A"), reason: "redirect", to: A, flow: { state: "closed" } },
      ],
    }),
  },
  {
    description: "reset by the client",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        ...handshake(f),
        { at: "uplink_a", packet: c(f, "RA"), reason: "refresh", flow: { ...established, state: "closed" } },
      ],
    }),
  },
  {
    description: "reset by the VM: the RST itself goes back to the device",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        ...handshake(f),
        {
          at: "tap_1",
          packet: v(f, "R"),
          reason: "redirect",
          to: A,
          flow: { ...established, state: "closed" },
        },
      ],
    }),
  },
  {
    description: "a VM that goes on sending shows that an RST was not accepted",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        ...handshake(f),
        { at: "uplink_a", packet: c(f, "R", { seq: 1 }), reason: "refresh", flow: { state: "closed" } },
        {
          at: "tap_1",
          packet: v(f, "PA"),
          reason: "redirect",
          to: A,
          flow: { ...established, state: "established" },
        },
      ],
    }),
  },
  {
    description: "a connection that is half closed may move to another device",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        ...handshake(f),
        { at: "tap_1", packet: v(f, "FA"), reason: "redirect", to: A },
        {
          at: "uplink_b",
          packet: c(f, "FA", { frame: viaB }),
          reason: "relearn",
          flow: { state: "closed", lastHop: B, vm: VM1 },
        },
        { at: "tap_1", packet: v(f, "A"), reason: "redirect", to: B },
      ],
    }),
  },
  {
    description: "the five-tuple is used again after both FINs",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        ...handshake(f),
        { at: "uplink_a", packet: c(f, "FA"), reason: "refresh" },
        { at: "tap_1", packet: v(f, "FA"), reason: "redirect", to: A },
        {
          at: "uplink_a",
          packet: c(f, "S", { seq: 70000 }),
          reason: "restart",
          flow: { state: "syn", flags: [] },
        },
        {
          at: "tap_1",
          packet: v(f, "SA", { seq: 80000 }),
          reason: "redirect",
          to: A,
          flow: { state: "syn_ack" },
        },
        {
          at: "uplink_a",
          packet: c(f, "A", { ack: 80001 }),
          reason: "refresh",
          flow: { ...established, state: "established", flags: [] },
        },
      ],
    }),
  },
  {
    description: "a SYN that asks for ECN is a SYN, one with data too",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        {
          at: "uplink_a",
          packet: c(f, "SEW", { payload: Buffer.from("GET") }),
          reason: "learn",
          flow: { state: "syn", flags: [] },
        },
        { at: "tap_1", packet: v(f, "SAE"), reason: "redirect", to: A, flow: { state: "syn_ack" } },
        { at: "uplink_a", packet: c(f, "A"), reason: "promote", flow: { state: "established" } },
      ],
    }),
  },
  {
    description: "both sides close at once",
    make: (f) => ({
      tuple: talk.tcpTuple(f),
      steps: [
        ...handshake(f),
        { at: "uplink_a", packet: c(f, "FA"), reason: "refresh" },
        { at: "tap_1", packet: v(f, "FA"), reason: "redirect", to: A, flow: { state: "closed" } },
        { at: "uplink_a", packet: c(f, "A"), reason: "refresh", flow: { state: "closed" } },
        { at: "tap_1", packet: v(f, "A"), reason: "redirect", to: A, flow: { state: "closed" } },
      ],
    }),
  },
  {
    description: "an SCTP association is established, and aborted",
    make: (f) => ({
      tuple: talk.sctpTuple(f),
      steps: [
        { at: "uplink_a", packet: cs(f, "init"), reason: "learn", flow: { state: "syn" } },
        { at: "tap_1", packet: vs(f, "initAck"), reason: "redirect", to: A, flow: { state: "syn_ack" } },
        {
          at: "uplink_a",
          packet: cs(f, ["cookieEcho", "data"]),
          reason: "promote",
          flow: { state: "established" },
        },
        {
          at: "tap_1",
          packet: vs(f, ["cookieAck", "sack"]),
          reason: "redirect",
          to: A,
          flow: { state: "established" },
        },
        { at: "uplink_a", packet: cs(f, "abort"), reason: "refresh", flow: { state: "closed" } },
      ],
    }),
  },
  {
    description: "an SCTP association is shut down",
    make: (f) => ({
      tuple: talk.sctpTuple(f),
      steps: [
        { at: "uplink_a", packet: cs(f, "init"), reason: "learn" },
        { at: "tap_1", packet: vs(f, "initAck"), reason: "redirect", to: A },
        { at: "uplink_a", packet: cs(f, "cookieEcho"), reason: "promote" },
        { at: "uplink_a", packet: cs(f, "shutdownComplete"), reason: "refresh", flow: { state: "closed" } },
      ],
    }),
  },
];
