// SPDX-License-Identifier: Apache-2.0

import type { CheckSpec, VmChange, VmDetails, VmEntry, VmSpecInput } from "../../ops/types.ts";
import { secondsValue, usageError, wholeNumber, zoneOption } from "../arguments.ts";
import { type CommandContext, type CommandGroup, defineCommand, printResult } from "../command.ts";
import { age, bytes } from "../format.ts";
import { factsText, table } from "../table.ts";

const CHECK = /^(neighbour|icmp|tcp|https?)(?::(\d{1,5}))?(\/.*)?$/;

function parseCheck(text: string): CheckSpec {
  const [, kind, port, path] = CHECK.exec(text) ?? [];
  if (kind === undefined) {
    throw usageError(
      `--check: "${text}" is no check`,
      "For example: --check icmp, --check tcp:443, --check http:8080/health",
    );
  }
  return {
    kind: kind as CheckSpec["kind"],
    ...(port !== undefined && { port: Number(port) }),
    ...(path !== undefined && { path }),
  };
}

const specOptions = {
  tap: { value: "IFACE", describe: "its tap; where its MAC is seen, if left out" },
  mac: {
    value: "MAC",
    describe: "MAC address of its network card; that of the first VM seen on its tap, if left out",
  },
  address: {
    value: "IP",
    describe: "its own address: its MAC is followed in the neighbour table, and checks ask it",
  },
  zone: zoneOption,
  label: {
    value: "LABEL,…",
    describe: "its guest OS, its applications: pools and associations may name them",
    many: true,
    parse: (text: string) => text.split(","),
  },
  responses: {
    value: "VM",
    describe: "VM that gets the responses to what this one forwards to servers; itself if left out",
  },
  check: {
    value: "KIND[:PORT][/PATH]",
    describe:
      "how its health is asked for: neighbour, icmp, tcp:PORT, http or https; by tap and neighbour table alone if " +
      "left out",
    parse: parseCheck,
  },
  "check-address": { value: "IP", describe: "whom the check asks; the VM's address if left out" },
  "check-host": { value: "HOST", describe: "of http and https: the Host header, and the server name" },
  "check-status": {
    value: "STATUS",
    describe: "of http and https: what the answer's status must be, as 200 or 200-399",
  },
  "check-verify": { describe: "of https: the certificate must be good for the host" },
  "check-interval": {
    value: "SECONDS",
    describe: "between two attempts",
    parse: secondsValue("check-interval"),
  },
  "check-timeout": {
    value: "SECONDS",
    describe: "how long an answer may take",
    parse: secondsValue("check-timeout"),
  },
  "check-fall": {
    value: "N",
    describe: "failures in a row that mean down",
    parse: wholeNumber("check-fall", 1, 100),
  },
  "check-rise": {
    value: "N",
    describe: "answers in a row that mean up",
    parse: wholeNumber("check-rise", 1, 100),
  },
} as const;

interface SpecArguments {
  tap: string | undefined;
  mac: string | undefined;
  address: string | undefined;
  zone: number | undefined;
  label: string[] | undefined;
  responses: string | undefined;
  check: CheckSpec | undefined;
  "check-address": string | undefined;
  "check-host": string | undefined;
  "check-status": string | undefined;
  "check-verify": boolean | undefined;
  "check-interval": number | undefined;
  "check-timeout": number | undefined;
  "check-fall": number | undefined;
  "check-rise": number | undefined;
}

/** Without what is not given. */
function given<T extends object>(values: T): { [K in keyof T]?: Exclude<T[K], undefined> } {
  return Object.fromEntries(Object.entries(values).filter(([, value]) => value !== undefined)) as never;
}

function specOf(args: SpecArguments): VmSpecInput {
  const { tap, mac, address, zone, label: labels, responses } = args;
  return given({ tap, mac, address, zone, labels, responses, check: checkOf(args) });
}

function checkOf(args: SpecArguments): CheckSpec | undefined {
  const details = given({
    address: args["check-address"],
    host: args["check-host"],
    status: args["check-status"],
    verify: args["check-verify"],
    interval_seconds: args["check-interval"],
    timeout_seconds: args["check-timeout"],
    fall: args["check-fall"],
    rise: args["check-rise"],
  });
  if (args.check !== undefined) return { ...args.check, ...details };
  if (Object.keys(details).length === 0) return undefined;
  throw usageError(
    "there is no check that this would be of",
    "Give its kind: --check icmp, --check tcp:PORT …",
  );
}

const nameWord = { name: { describe: "name of the VM" } } as const;

const listCommand = defineCommand({
  name: "list",
  describe: "List the VMs that have a name",
  examples: [["vms list", "where each is, whether it is up, and what it has to do"]],
  async run(_args, context) {
    const { listVms } = await import("../../ops/vms.ts");
    const vms = listVms(context.op);
    await printResult(context, { vms }, () => vmsText(vms));
  },
});

const showCommand = defineCommand({
  name: "show",
  describe: "Show all of one VM",
  examples: [["vms show web1", "and why it is not up, if it is not"]],
  words: nameWord,
  async run(args, context) {
    const { showVm } = await import("../../ops/vms.ts");
    const vm = showVm(context.op, args.name);
    await printResult(context, vm, () => vmText(vm));
  },
});

const addCommand = defineCommand({
  name: "add",
  describe: "Give a VM a name, so that services may have it in their pools",
  details:
    "It is found by its tap, its MAC or its address; what is not given is found out. Its check is asked while the " +
    "daemon runs. It stays until it is removed, also when the daemon restarts; not beyond a reboot.",
  examples: [
    ["vms add web1 --tap vnet3 --address 10.0.0.11 --label web,linux", "by its tap, with labels"],
    [
      "vms add web2 --mac 52:54:00:12:34:56 --address 10.0.0.12 --check http/health",
      "asked every five seconds",
    ],
    [
      "vms add fw-in --tap vnet7 --responses fw-out",
      "a firewall of two VMs: the servers' responses go to the other one",
    ],
  ],
  words: nameWord,
  options: specOptions,
  async run(args, context) {
    const { addVm } = await import("../../ops/vms.ts");
    await printChange(context, await addVm(context.op, args.name, specOf(args)));
  },
});

const removeCommand = defineCommand({
  name: "remove",
  describe: "Forget the name of a VM",
  details: "Its flows stay with it. A VM that a service names cannot be removed.",
  examples: [["vms remove web1", "no service gives it new flows"]],
  words: nameWord,
  async run(args, context) {
    const { removeVm } = await import("../../ops/vms.ts");
    await printChange(context, await removeVm(context.op, args.name));
  },
});

const drainCommand = defineCommand({
  name: "drain",
  describe: "Give a VM no new flows, and leave it those that it has",
  details:
    "For instance before it is shut down or migrated. A configured VM obeys too, also when it is reloaded.",
  examples: [["vms drain web1", "until `lasthop vms up web1`; `lasthop vms show web1` counts its flows"]],
  words: nameWord,
  async run(args, context) {
    const { drainVm } = await import("../../ops/vms.ts");
    await printChange(context, await drainVm(context.op, args.name));
  },
});

const downCommand = defineCommand({
  name: "down",
  describe: "Take a VM down, whatever is observed of it",
  details: "Its flows do at once what the on-vm-down of their service says. A configured VM obeys too.",
  examples: [["vms down web1", "until `lasthop vms up web1`"]],
  words: nameWord,
  async run(args, context) {
    const { downVm } = await import("../../ops/vms.ts");
    await printChange(context, await downVm(context.op, args.name));
  },
});

const upCommand = defineCommand({
  name: "up",
  describe: "Take `vms drain` and `vms down` back",
  examples: [["vms up web1", "its state is again what is observed"]],
  words: nameWord,
  async run(args, context) {
    const { upVm } = await import("../../ops/vms.ts");
    await printChange(context, await upVm(context.op, args.name));
  },
});

export const vmsGroup: CommandGroup = {
  name: "vms",
  describe: "The virtual machines that services distribute flows to",
  commands: [listCommand, showCommand, addCommand, removeCommand, drainCommand, downCommand, upCommand],
};

function printChange(context: CommandContext, change: VmChange): Promise<void> {
  return printResult(context, change, () => {
    const state = change.state === null ? "" : `${change.name}: ${vmStateText(change)}\n`;
    return `${change.actions.map((line) => `${line}\n`).join("")}${state}`;
  });
}

export function vmStateText({ state, cause }: { state: string | null; cause: string | null }): string {
  return cause === null ? String(state) : `${state} (${cause})`;
}

function vmsText(vms: readonly VmEntry[]): string {
  if (vms.length === 0) return "no VM has a name\n";
  return table(
    [
      { title: "VM" },
      { title: "STATE" },
      { title: "SINCE", right: true },
      { title: "TAP" },
      { title: "MAC" },
      { title: "ADDRESS" },
      { title: "ZONE", right: true },
      { title: "LABELS", optional: true },
      { title: "RESPONSES TO", optional: true },
      { title: "HEALTH" },
      { title: "ORIGIN" },
      { title: "SERVICES", right: true },
      { title: "FLOWS", right: true },
      { title: "STARTED", right: true },
      { title: "REQUESTS", right: true },
      { title: "RESPONSES", right: true },
    ],
    vms.map((vm) => [
      vm.name,
      vmStateText(vm),
      vm.changed_seconds_ago === null ? null : age(vm.changed_seconds_ago),
      vm.tap,
      vm.mac,
      vm.address,
      vm.zone,
      vm.labels.join(",") || null,
      vm.responses,
      vm.health === "unknown" ? null : vm.health,
      vm.origin,
      vm.services.length,
      vm.flows,
      vm.flows_started,
      vm.request_packets,
      vm.response_packets,
    ]),
  );
}

function vmText(vm: VmDetails): string {
  return factsText(vm.name, [
    ["state", vmStateText(vm)],
    ["why", vm.why],
    ["since", vm.changed_seconds_ago === null ? null : `${age(vm.changed_seconds_ago)} ago`],
    ["origin", vm.origin],
    ["zone", String(vm.zone)],
    ["tap", tapText(vm)],
    ["MAC", foundText(vm.mac, vm.given.mac)],
    ["address", vm.address],
    ["id", vm.id === null ? null : String(vm.id)],
    ["labels", vm.labels.join(", ") || null],
    ["responses to", vm.responses],
    ["check", checkText(vm)],
    ["health", vm.check === null ? null : vm.health],
    ["services", vm.services.join(", ") || "none"],
    ["flows", `${vm.flows} of services, ${vm.flows_started} started`],
    ["requests", `${vm.request_packets} (${bytes(vm.request_bytes)})`],
    ["responses", `${vm.response_packets} (${bytes(vm.response_bytes)})`],
    ["last frame", vm.last_frame_seconds_ago === null ? null : `${age(vm.last_frame_seconds_ago)} ago`],
  ]);
}

function tapText(vm: VmDetails): string {
  if (vm.tap === null) return "not known";
  return `${foundText(vm.tap, vm.given.tap)}${vm.attached ? "" : ", which is not attached"}`;
}

function foundText(value: string | null, wanted: string | null): string {
  if (value === null) return "not known";
  return wanted === null ? `${value} (found out)` : value;
}

function checkText({ check, address }: VmDetails): string | null {
  if (check === null) return null;
  const port = check.port === undefined ? "" : `:${check.port}`;
  const whom = check.address ?? address;
  return [
    `${check.kind}${port}${check.path ?? ""}${whom === null ? "" : ` of ${whom}`}`,
    ...(check.host === undefined ? [] : [`host ${check.host}`]),
    ...(check.status === undefined ? [] : [`status ${check.status}`]),
    ...(check.verify ? ["certificate verified"] : []),
    `every ${check.interval_seconds} s`,
    `${check.timeout_seconds} s to answer`,
    `down after ${check.fall}`,
    `up after ${check.rise}`,
  ].join(", ");
}
