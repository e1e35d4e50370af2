// SPDX-License-Identifier: Apache-2.0

import type {
  DeviceChange,
  DeviceDetails,
  DeviceEntry,
  DeviceSpec,
  OnDown,
  ProbeSpec,
} from "../../ops/types.ts";
import { secondsValue, usageError, wholeNumber, zoneOption } from "../arguments.ts";
import { type CommandContext, type CommandGroup, defineCommand, printResult } from "../command.ts";
import { age, bytes } from "../format.ts";
import { printable, table } from "../table.ts";
import { lastHopsText } from "./lastHops.ts";

const NONE = "none";

/** Items with commas between; `none` for an empty list. */
const items = (text: string): string[] => (text === NONE ? [] : text.split(","));
const orNone = (text: string): string | null => (text === NONE ? null : text);

function parseProbe(text: string): Partial<ProbeSpec> | null {
  if (text === NONE) return null;
  if (text === "icmp") return { kind: "icmp", port: null };
  const [, port] = /^tcp:(\d{1,5})$/.exec(text) ?? [];
  if (port !== undefined) return { kind: "tcp", port: Number(port) };
  throw usageError(`--probe: "${text}" is not icmp, tcp:PORT or none`);
}

const specOptions = {
  mac: { value: "MAC,…", describe: "MAC addresses that its frames come from", parse: items },
  address: {
    value: "IP,…",
    describe: "IP addresses whose MAC is followed in the neighbour table",
    parse: items,
  },
  vtep: {
    value: "IP,…",
    describe: "far ends of VXLAN tunnels: the MACs that the forwarding tables have there are its own",
    parse: items,
    many: true,
  },
  interface: {
    value: "IFACE",
    describe: "uplinks where it is, a name or a pattern as 'eth*'; none: all of its zone",
    parse: orNone,
  },
  vlan: {
    value: "VID,…",
    describe: "VLAN tags of its frames, outer first",
    parse: (text: string) => items(text).map(wholeNumber("vlan", 1, 4094)),
  },
  zone: zoneOption,
  "reply-mac": {
    value: "MAC",
    describe: "where replies go whichever MAC asked: the virtual MAC of VRRP or HSRP",
    parse: orNone,
  },
  "on-down": {
    value: "route|hold|drop|peer:NAME",
    describe:
      "its replies while it is down: by the VM's own route, to it as before, nowhere, to another device",
  },
  probe: { value: "icmp|tcp:PORT|none", describe: "how its health is asked for", parse: parseProbe },
  "probe-address": {
    value: "IP",
    describe: "whom the probe asks; none: the device's first address",
    parse: orNone,
  },
  interval: { value: "SECONDS", describe: "between two probes", parse: secondsValue("interval") },
  timeout: { value: "SECONDS", describe: "how long an answer may take", parse: secondsValue("timeout") },
  fall: { value: "N", describe: "failures in a row that mean down", parse: wholeNumber("fall", 1, 100) },
  rise: { value: "N", describe: "answers in a row that mean up", parse: wholeNumber("rise", 1, 100) },
} as const;

interface SpecArguments {
  mac: string[] | undefined;
  address: string[] | undefined;
  vtep: string[] | undefined;
  interface: string | null | undefined;
  vlan: number[] | undefined;
  zone: number | undefined;
  "reply-mac": string | null | undefined;
  "on-down": string | undefined;
  probe: Partial<ProbeSpec> | null | undefined;
  "probe-address": string | null | undefined;
  interval: number | undefined;
  timeout: number | undefined;
  fall: number | undefined;
  rise: number | undefined;
}

function specOf(args: SpecArguments): DeviceSpec {
  const given = {
    macs: args.mac,
    addresses: args.address,
    vteps: args.vtep,
    interface: args.interface,
    vlans: args.vlan,
    zone: args.zone,
    reply_mac: args["reply-mac"],
    on_down: args["on-down"] as OnDown | undefined,
    probe: probeSpec(args),
  };
  return Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined));
}

function probeSpec(args: SpecArguments): DeviceSpec["probe"] | undefined {
  const details = Object.fromEntries(
    Object.entries({
      address: args["probe-address"],
      interval_seconds: args.interval,
      timeout_seconds: args.timeout,
      fall: args.fall,
      rise: args.rise,
    }).filter(([, value]) => value !== undefined),
  );
  const hasDetails = Object.keys(details).length > 0;
  if (args.probe === null && hasDetails) {
    throw usageError("--probe none excludes what says how to probe");
  }
  if (args.probe === null || (args.probe === undefined && !hasDetails)) return args.probe;
  return { ...args.probe, ...details };
}

const nameWord = { name: { describe: "name of the device" } } as const;

const listCommand = defineCommand({
  name: "list",
  describe: "List the devices",
  examples: [["devices list", "state, addresses and traffic of each"]],
  async run(_args, context) {
    const { listDevices } = await import("../../ops/devices.ts");
    const devices = listDevices(context.op);
    await printResult(context, { devices }, () => devicesText(devices));
  },
});

const showCommand = defineCommand({
  name: "show",
  describe: "Show all of one device",
  examples: [["devices show fw-a", "with its last hops, and what the neighbour table says"]],
  words: nameWord,
  async run(args, context) {
    const { showDevice } = await import("../../ops/devices.ts");
    const device = showDevice(context.op, args.name);
    await printResult(context, device, () => deviceText(device));
  },
});

const addCommand = defineCommand({
  name: "add",
  describe: "Enter a device",
  details:
    "Its last hops are there before its first frame, and what it does when it is down is its own. " +
    "It stays until it is removed, also when the daemon restarts; not beyond a reboot.",
  examples: [
    ["devices add fw-a --mac 02:00:00:00:0a:01 --interface eth0", "a firewall behind eth0"],
    [
      "devices add fw-b --address 192.0.2.2,2001:db8::2 --on-down peer:fw-a",
      "its MAC is found out and followed",
    ],
    [
      "devices add pair --mac 02:00:00:00:0a:01,02:00:00:00:0a:02 --reply-mac 00:00:5e:00:01:0a",
      "a VRRP pair: whichever asks, replies go to the virtual MAC",
    ],
    [
      "devices add fw-x --vtep 192.0.2.9 --interface vxlan0",
      "a firewall behind a VXLAN tunnel: its MACs are found out",
    ],
    [
      "devices add lb --address 192.0.2.9 --probe tcp:443 --interval 2 --fall 3",
      "down when three probes fail",
    ],
  ],
  words: nameWord,
  options: specOptions,
  async run(args, context) {
    const { addDevice } = await import("../../ops/devices.ts");
    await printChange(context, await addDevice(context.op, args.name, specOf(args)));
  },
});

const setCommand = defineCommand({
  name: "set",
  describe: "Change a device",
  details: "What is not given stays as it is; none takes a value away.",
  examples: [
    ["devices set fw-a --mac 02:00:00:00:0c:07", "another machine: all of its flows go there at once"],
    ["devices set fw-a --on-down hold --probe none", "keep sending to it, whatever happens"],
  ],
  words: nameWord,
  options: specOptions,
  async run(args, context) {
    const spec = specOf(args);
    if (Object.keys(spec).length === 0)
      throw usageError("nothing is to be changed", "Give at least one option.");
    const { setDeviceByHand } = await import("../../ops/devices.ts");
    await printChange(context, await setDeviceByHand(context.op, args.name, spec));
  },
});

const removeCommand = defineCommand({
  name: "remove",
  describe: "Remove a device",
  details: "Its flows stay and go where they went; its last hops are as if they had been learned.",
  examples: [["devices remove fw-a", "forget the device, not its flows"]],
  words: nameWord,
  async run(args, context) {
    const { removeDeviceByHand } = await import("../../ops/devices.ts");
    await printChange(context, await removeDeviceByHand(context.op, args.name));
  },
});

const downCommand = defineCommand({
  name: "down",
  describe: "Take a device down, whatever is observed of it",
  details:
    "Its flows do at once what its on-down says, for instance before work on a firewall. A configured device obeys too.",
  examples: [["devices down fw-a", "until `lasthop devices up fw-a`"]],
  words: nameWord,
  async run(args, context) {
    const { downDevice } = await import("../../ops/devices.ts");
    await printChange(context, await downDevice(context.op, args.name));
  },
});

const upCommand = defineCommand({
  name: "up",
  describe: "Take `devices down` back",
  examples: [["devices up fw-a", "its state is again what is observed"]],
  words: nameWord,
  async run(args, context) {
    const { upDevice } = await import("../../ops/devices.ts");
    await printChange(context, await upDevice(context.op, args.name));
  },
});

export const devicesGroup: CommandGroup = {
  name: "devices",
  describe: "The firewalls, load balancers and routers behind the uplinks",
  commands: [listCommand, showCommand, addCommand, setCommand, removeCommand, downCommand, upCommand],
};

function printChange(context: CommandContext, change: DeviceChange): Promise<void> {
  return printResult(context, change, () => {
    const state = change.state === null ? "" : `${change.name}: ${stateText(change)}\n`;
    return `${change.actions.map((line) => `${line}\n`).join("")}${state}`;
  });
}

function stateText({ state, cause }: { state: string | null; cause: string | null }): string {
  return cause === null ? String(state) : `${state} (${cause})`;
}

function devicesText(devices: readonly DeviceEntry[]): string {
  if (devices.length === 0) return "there is no device\n";
  return table(
    [
      { title: "DEVICE" },
      { title: "STATE" },
      { title: "SINCE", right: true },
      { title: "MAC" },
      { title: "ADDRESS" },
      { title: "VTEP", optional: true },
      { title: "INTERFACE" },
      { title: "ZONE", right: true },
      { title: "ON DOWN" },
      { title: "ORIGIN" },
      { title: "FLAPS", right: true },
      { title: "FLOWS", right: true },
      { title: "REQUESTS", right: true },
      { title: "REPLIES", right: true },
    ],
    devices.map((device) => [
      device.name,
      stateText(device),
      device.changed_seconds_ago === null ? null : age(device.changed_seconds_ago),
      macsText(device),
      device.addresses.map(({ address }) => address).join(",") || null,
      device.vteps.join(",") || null,
      device.interface,
      device.zone,
      device.on_down,
      device.origin,
      device.flaps,
      device.flows,
      device.request_packets,
      device.reply_packets,
    ]),
  );
}

/** In a list; a VTEP may have thousands. */
const MACS_SHOWN = 4;

/** Where replies go: the reply MAC, else those that are known. */
function macsText(device: DeviceEntry): string | null {
  if (device.reply_mac !== null) return device.reply_mac;
  const resolved = device.addresses.map(({ mac }) => mac).filter((mac) => mac !== null);
  const behind = device.vtep_macs.map(({ mac }) => mac);
  const all = [...new Set([...device.macs, ...resolved, ...behind])];
  const more = all.length > MACS_SHOWN ? ` and ${all.length - MACS_SHOWN} more` : "";
  return all.slice(0, MACS_SHOWN).join(",") + more || null;
}

function deviceText(device: DeviceDetails): string {
  const lines: [string, string | null][] = [
    ["state", stateText(device)],
    ["since", device.changed_seconds_ago === null ? null : `${age(device.changed_seconds_ago)} ago`],
    ["origin", device.origin],
    ["zone", String(device.zone)],
    ["interface", device.interface ?? "all uplinks of the zone"],
    ["MACs", device.macs.join(", ") || null],
    ["reply MAC", device.reply_mac],
    ["VLANs", device.vlans.join(", ") || null],
    ["on down", device.on_down],
    ["probe", probeText(device)],
    ["flaps", String(device.flaps)],
    ["flows", String(device.flows)],
    ["requests", `${device.request_packets} (${bytes(device.request_bytes)})`],
    ["replies", `${device.reply_packets} (${bytes(device.reply_bytes)})`],
    ["relearns", String(device.relearns)],
    ...device.addresses.map(({ address, mac }): [string, string] => [
      "address",
      addressText(device, address, mac),
    ]),
    ...device.vteps.map((vtep): [string, string] => ["VTEP", vtepText(device, vtep)]),
  ];
  const facts = lines
    .filter(([, value]) => value !== null)
    .map(([key, value]) => `  ${key.padEnd(10)} ${printable(value!)}\n`);
  return `${printable(device.name)}\n${facts.join("")}\n${lastHopsText(device.last_hops)}`;
}

function addressText(device: DeviceDetails, address: string, mac: string | null): string {
  const seen = device.neighbours
    .filter((neighbour) => neighbour.address === address)
    .map((neighbour) => `${neighbour.interface}: ${neighbour.mac ?? "no MAC"}, ${neighbour.state}`);
  const known = mac === null ? "not resolved" : `at ${mac}`;
  return `${address} ${known}${seen.length === 0 ? "" : ` (${seen.join("; ")})`}`;
}

function vtepText(device: DeviceDetails, vtep: string): string {
  const behind = device.vtep_macs.filter((one) => one.vtep === vtep);
  if (behind.length === 0) return `${vtep} no MAC is known behind it`;
  const macs = behind.map(({ mac, interface: uplink, vni }) => {
    return `${mac} on ${uplink}${vni === null ? "" : ` in VNI ${vni}`}`;
  });
  return `${vtep} ${macs.join("; ")}`;
}

function probeText({ probe }: DeviceEntry): string | null {
  if (probe === null) return null;
  const kind = probe.kind === "tcp" ? `tcp:${probe.port}` : "icmp";
  const whom = probe.address === null ? "" : ` of ${probe.address}`;
  return (
    `${kind}${whom}, every ${probe.interval_seconds} s, ${probe.timeout_seconds} s to answer, ` +
    `down after ${probe.fall}, up after ${probe.rise}`
  );
}
