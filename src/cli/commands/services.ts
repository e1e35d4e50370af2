// SPDX-License-Identifier: Apache-2.0

import type {
  Answer,
  AssociationEntry,
  AssociationSpec,
  MemberSpec,
  OnVmDown,
  PoolMember,
  ServiceChange,
  ServiceDetails,
  ServiceEntry,
  ServicePolicyName,
  ServiceProtocol,
  ServiceSpecInput,
} from "../../ops/types.ts";
import { oneOf, secondsValue, usageError, wholeNumber, zoneOption } from "../arguments.ts";
import { type CommandContext, type CommandGroup, defineCommand, printResult } from "../command.ts";
import { plural } from "../format.ts";
import { factsText, table } from "../table.ts";
import { vmStateText } from "./vms.ts";

const PROTOCOLS = ["tcp", "udp", "sctp", "icmp", "any"] as const satisfies readonly ServiceProtocol[];
const POLICIES = [
  "maglev",
  "round-robin",
  "least-flows",
  "source-hash",
] as const satisfies readonly ServicePolicyName[];
const ON_VM_DOWN = ["rebalance", "reset", "hold"] as const satisfies readonly OnVmDown[];

interface Weighted {
  name: string;
  weight?: number;
}

/** `web1,web2=3`: names, and weights of those that have one. */
function members(option: string) {
  const weightOf = wholeNumber(option, 1, 256);
  return (text: string): Weighted[] =>
    text.split(",").map((item) => {
      const [, name, weight] = /^([^=]+)(?:=(.*))?$/.exec(item) ?? [];
      if (name === undefined) throw usageError(`--${option}: "${item}" is not NAME or NAME=WEIGHT`);
      return weight === undefined ? { name } : { name, weight: weightOf(weight) };
    });
}

const LABEL = "label:";

/** `10.1.0.0/16=web1`, `2001:db8::/32=label:linux`. */
function associations(text: string): AssociationSpec[] {
  return text.split(",").map((item) => {
    const [, client, target] = /^([^=]+)=([^=]+)$/.exec(item) ?? [];
    if (client === undefined || target === undefined || target === LABEL) {
      throw usageError(
        `--associate: "${item}" is not PREFIX=VM or PREFIX=label:LABEL`,
        "For example: --associate 10.1.0.0/16=web1",
      );
    }
    return target.startsWith(LABEL) ? { client, label: target.slice(LABEL.length) } : { client, vm: target };
  });
}

function parseAnswer(text: string): Answer {
  if (text === "host" || text === "none" || /^vm:./.test(text)) return text as Answer;
  throw usageError(`--answer: "${text}" is not host, none or vm:NAME`);
}

const specOptions = {
  address: { value: "PREFIX", describe: "its address, or a prefix", required: true },
  port: { value: "N", describe: "its port; any if left out", parse: wholeNumber("port", 1, 65_535) },
  protocol: {
    value: PROTOCOLS.join("|"),
    describe:
      "its protocol [default: tcp]; echo requests follow a service of another, unless there is one for icmp",
    parse: oneOf("--protocol", PROTOCOLS),
  },
  zone: zoneOption,
  policy: {
    value: POLICIES.join("|"),
    describe: "how the VM of a new flow is chosen [default: maglev]",
    parse: oneOf("--policy", POLICIES),
  },
  vm: {
    value: "NAME[=WEIGHT],…",
    describe: "VMs of its pool; one with a weight of 2 gets twice as many flows as one with 1",
    many: true,
    parse: members("vm"),
  },
  label: {
    value: "LABEL[=WEIGHT],…",
    describe: "labels of VMs: all of the zone that have one are in its pool, also those that come later",
    many: true,
    parse: members("label"),
  },
  associate: {
    value: "PREFIX=VM,…",
    describe:
      "clients that have VMs of their own, whatever the policy: PREFIX=VM or PREFIX=label:LABEL; the longest prefix " +
      "counts",
    many: true,
    parse: associations,
  },
  affinity: {
    value: "SECONDS",
    describe: "how long new flows of a client go to the VM of its last one [default: 0, they do not]",
    parse: secondsValue("affinity"),
  },
  "on-vm-down": {
    value: ON_VM_DOWN.join("|"),
    describe:
      "what becomes of the flows of a VM that is down [default: rebalance]: another VM, a TCP reset, or they wait",
    parse: oneOf("--on-vm-down", ON_VM_DOWN),
  },
  answer: {
    value: "host|none|vm:NAME",
    describe:
      "with whose MAC ARP and neighbour discovery for its address are answered on uplinks [default: host]",
    parse: parseAnswer,
  },
} as const;

interface SpecArguments {
  address: string;
  port: number | undefined;
  protocol: ServiceProtocol | undefined;
  zone: number | undefined;
  policy: ServicePolicyName | undefined;
  vm: Weighted[] | undefined;
  label: Weighted[] | undefined;
  associate: AssociationSpec[] | undefined;
  affinity: number | undefined;
  "on-vm-down": OnVmDown | undefined;
  answer: Answer | undefined;
}

function specOf(args: SpecArguments): ServiceSpecInput {
  const { address, port, protocol, zone, policy, associate, affinity, answer } = args;
  const pool: MemberSpec[] = [
    ...(args.vm ?? []).map(({ name, ...weight }) => ({ vm: name, ...weight })),
    ...(args.label ?? []).map(({ name, ...weight }) => ({ label: name, ...weight })),
  ];
  if (pool.length === 0) {
    throw usageError("a service needs at least one VM in its pool", "Give --vm NAME, or --label LABEL.");
  }
  return {
    address,
    pool,
    ...(port !== undefined && { port }),
    ...(protocol !== undefined && { protocol }),
    ...(zone !== undefined && { zone }),
    ...(policy !== undefined && { policy }),
    ...(associate !== undefined && { associations: associate }),
    ...(affinity !== undefined && { affinity_seconds: affinity }),
    ...(args["on-vm-down"] !== undefined && { on_vm_down: args["on-vm-down"] }),
    ...(answer !== undefined && { answer }),
  };
}

const nameWord = { name: { describe: "name of the service" } } as const;

const listCommand = defineCommand({
  name: "list",
  describe: "List the services",
  examples: [["services list", "what each is for, its VMs, and the flows that it distributed"]],
  async run(_args, context) {
    const { listServices } = await import("../../ops/services.ts");
    const services = listServices(context.op);
    await printResult(context, { services }, () => servicesText(services));
  },
});

const showCommand = defineCommand({
  name: "show",
  describe: "Show all of one service",
  examples: [["services show www", "with the VMs of its pool, their shares and states"]],
  words: nameWord,
  async run(args, context) {
    const { showService } = await import("../../ops/services.ts");
    const service = showService(context.op, args.name);
    await printResult(context, service, () => serviceText(service));
  },
});

const addCommand = defineCommand({
  name: "add",
  describe: "Distribute the flows of an address to VMs",
  details:
    "Each new flow gets a VM, and stays with it whatever becomes of the pool, until the VM is down. Requests are " +
    "handed to the VM as they are: the VMs have the address too, on an interface where they do not answer ARP for " +
    "it. It stays until it is removed, also when the daemon restarts; not beyond a reboot.",
  examples: [
    ["services add www --address 192.0.2.80 --port 443 --vm web1 --vm web2", "HTTPS, to two VMs"],
    [
      "services add dns --address 192.0.2.53 --port 53 --protocol udp --label dns",
      "to every VM with a label",
    ],
    [
      "services add clean --address 203.0.113.0/24 --protocol any --vm fw1=2,fw2",
      "a network behind two firewalls, one of which takes twice as many flows",
    ],
    [
      "services add api --address 192.0.2.81 --label api --associate 10.1.0.0/16=web1",
      "clients that have a VM of their own",
    ],
  ],
  words: nameWord,
  options: specOptions,
  async run(args, context) {
    const spec = specOf(args);
    const { addService } = await import("../../ops/services.ts");
    await printChange(context, await addService(context.op, args.name, spec));
  },
});

const removeCommand = defineCommand({
  name: "remove",
  describe: "Remove a service",
  details: "Its flows stay with their VMs; new ones are no longer distributed.",
  examples: [["services remove www", "new flows go where the bridge or the routing sends them"]],
  words: nameWord,
  async run(args, context) {
    const { removeService } = await import("../../ops/services.ts");
    await printChange(context, await removeService(context.op, args.name));
  },
});

export const servicesGroup: CommandGroup = {
  name: "services",
  describe: "The addresses whose flows are distributed to VMs",
  commands: [listCommand, showCommand, addCommand, removeCommand],
};

function printChange(context: CommandContext, change: ServiceChange): Promise<void> {
  return printResult(context, change, () => {
    const { name, vms_up, vms_total, actions } = change;
    const state = vms_total === null ? "" : `${name}: ${vms_up} of ${plural(vms_total, "VM")} up\n`;
    return `${actions.map((line) => `${line}\n`).join("")}${state}`;
  });
}

function servicesText(services: readonly ServiceEntry[]): string {
  if (services.length === 0) return "there is no service\n";
  return table(
    [
      { title: "SERVICE" },
      { title: "ZONE", right: true },
      { title: "ADDRESS" },
      { title: "PORT", right: true },
      { title: "PROTO" },
      { title: "POLICY" },
      { title: "VMS UP", right: true },
      { title: "ON VM DOWN" },
      { title: "ANSWER" },
      { title: "AFFINITY", right: true, optional: true },
      { title: "ORIGIN" },
      { title: "STARTED", right: true },
      { title: "REBALANCED", right: true },
      { title: "EMPTY", right: true },
      { title: "RESET", right: true },
      { title: "HELD", right: true },
    ],
    services.map((service) => [
      service.name,
      service.zone,
      service.address,
      service.port,
      service.protocol,
      service.policy,
      `${service.vms_up}/${service.vms_total}`,
      service.on_vm_down,
      service.answer,
      affinityText(service),
      service.origin,
      service.flows_started,
      service.flows_rebalanced,
      service.requests_empty,
      service.requests_reset,
      service.requests_held,
    ]),
  );
}

function affinityText({ affinity_seconds: seconds }: ServiceEntry): string | null {
  return seconds === 0 ? null : `${seconds} s`;
}

function serviceText(service: ServiceDetails): string {
  const { flows_started: started, flows_associated, flows_affine } = service;
  const facts = factsText(service.name, [
    ["origin", service.origin],
    ["index", String(service.index)],
    ["zone", String(service.zone)],
    ["address", service.address],
    ["port", service.port === null ? (hasPorts(service) ? "any" : null) : String(service.port)],
    ["protocol", service.protocol],
    ["policy", service.policy],
    ["affinity", affinityText(service)],
    ["on VM down", service.on_vm_down],
    ["answer", service.answer],
    ["VMs", `${service.vms_up} of ${service.vms_total} up`],
    ["flows started", `${started}, ${flows_associated} by association, ${flows_affine} by affinity`],
    ["rebalanced", String(service.flows_rebalanced)],
    ["without a VM", String(service.requests_empty)],
    ["reset", String(service.requests_reset)],
    ["held", String(service.requests_held)],
    ["ARP and ND", `${service.addresses_answered} answered`],
  ]);
  return [facts, poolText(service.pool), associationsText(service.associations)].filter(Boolean).join("\n");
}

function hasPorts({ protocol }: ServiceEntry): boolean {
  return protocol !== "icmp";
}

function poolText(pool: readonly PoolMember[]): string {
  return table(
    [
      { title: "VM" },
      { title: "LABEL", optional: true },
      { title: "STATE" },
      { title: "WEIGHT", right: true },
      { title: "SHARE", right: true, optional: true },
      { title: "FLOWS", right: true },
    ],
    pool.map((member) => [
      member.vm,
      member.label,
      vmStateText(member),
      member.weight,
      member.share === null ? null : `${(100 * member.share).toFixed(1)}%`,
      member.flows,
    ]),
  );
}

function associationsText(associations: readonly AssociationEntry[]): string {
  if (associations.length === 0) return "";
  return table(
    [
      { title: "CLIENTS" },
      { title: "VM", optional: true },
      { title: "LABEL", optional: true },
      { title: "VMS UP", right: true },
    ],
    associations.map(({ client, vm, label, vms_up, vms_total }) => [
      client,
      vm,
      label,
      `${vms_up}/${vms_total}`,
    ]),
  );
}
