// SPDX-License-Identifier: Apache-2.0
// Services and the VMs behind them: whether requests reach a VM, and answers the one that asked.

import { HOOK_NAMES } from "../../abi/codec.ts";
import { REASON, ROLE, VM_STATE } from "../../abi/layout.gen.ts";
import { inPrefix, parseAddress, parsePrefix } from "../../addresses.ts";
import { append } from "../../append.ts";
import type { NamedService } from "../../controller/serviceSpec.ts";
import type { Address, Link } from "../../kernel/rtnetlink.ts";
import type { InterfaceEntry, Tables } from "../../tables/index.ts";
import { type ServiceView, vmPlace, whyNotUp } from "../serviceView.ts";
import type { DoctorCheck } from "../types.ts";
import { unreachedFrom } from "../vms.ts";
import { check, type Finding, ok, warn, warnings } from "./finding.ts";

/** Of hundreds the first ones are named. */
const NAMES_SHOWN = 8;

export interface ServicesAround {
  tables: Tables;
  view: ServiceView;
  attached: readonly InterfaceEntry[];
  links: readonly Link[];
  /** Of this host. */
  addresses(): readonly Address[];
}

export function serviceChecks(around: ServicesAround): DoctorCheck[] {
  return [
    check("services", () => servicesCheck(around)),
    check("vms", () => vmsCheck(around)),
    check("service hooks", () => hookCheck(around)),
    check("service addresses", () => addressCheck(around)),
    check("vm zones", () => zoneCheck(around)),
  ];
}

function named(names: readonly string[]): string {
  const more = names.length - NAMES_SHOWN;
  return `${names.slice(0, NAMES_SHOWN).join(", ")}${more > 0 ? ` and ${more} more` : ""}`;
}

function unreadable(what: "vms" | "services", broken: readonly { name: string; why: string }[]) {
  return broken.slice(0, NAMES_SHOWN).map(({ name, why }) => ({
    found: `the entry of ${name} cannot be read (${why})`,
    hint: `\`lasthop ${what} remove NAME\`, or the configuration and \`lasthop apply\`, sets it right.`,
  }));
}

export function servicesCheck({ view }: Pick<ServicesAround, "view">): Finding {
  const total = view.services.length + view.broken.services.length;
  if (total === 0) return ok("none");
  const empty = view.empty().map(({ name }) => name);
  const found = [
    ...unreadable("services", view.broken.services),
    ...(empty.length === 0
      ? []
      : [
          {
            found: `no VM of ${named(empty)} is up, so requests are dropped`,
            hint: "`lasthop services show NAME` has the VMs of its pool, `lasthop vms show NAME` why one is not up.",
          },
        ]),
  ];
  return warnings(found, `${total}, each with a VM that is up`);
}

export function vmsCheck({
  view,
  tables,
  links,
}: Pick<ServicesAround, "view" | "links"> & { tables: Pick<Tables, "interfaces"> }): Finding {
  const total = view.vms.length + view.broken.vms.length;
  if (total === 0) return ok("none has a name");
  const byIndex = new Map(links.map((link) => [link.ifindex, link]));
  const down = view.vms.filter(({ spec }) => spec.state === VM_STATE.DOWN);
  const reasons = down.map((vm) => `${vm.name} is down: ${whyNotUp(vm, vmPlace(tables, byIndex, vm))}`);
  const found = [
    ...unreadable("vms", view.broken.vms),
    ...(reasons.length === 0
      ? []
      : [
          {
            found: named(reasons),
            hint: "Services give it no flows; what becomes of those that it has, their on_vm_down says.",
          },
        ]),
  ];
  return warnings(found, countsText(view));
}

function countsText(view: ServiceView): string {
  const { total, up, drain, unknown } = view.vmCounts();
  const others = [
    ...(drain > 0 ? [`${drain} drained`] : []),
    ...(unknown > 0 ? [`${unknown} not looked at yet`] : []),
  ];
  if (others.length === 0) return total === 1 ? "1, which is up" : `${total}, all up`;
  return `${total}: ${[`${up} up`, ...others].join(", ")}`;
}

/** Frames that a program cannot hand on from where it runs: by what is known, else by what was counted. */
export function hookCheck(around: Omit<ServicesAround, "addresses" | "links">): Finding {
  if (around.view.services.length === 0) return ok("no service");
  const found = unreachedTaps(around) ?? passedPackets(around);
  return found ?? ok("every VM of a service can be reached from every uplink of its zone");
}

function unreachedTaps({ view, tables }: Pick<ServicesAround, "view" | "tables">): Finding | null {
  const serving = view.vms.filter(({ name }) => view.servicesOf(name).length > 0);
  const unreached = serving.map(({ name, spec }) => ({ name, uplinks: unreachedFrom(tables, spec) }));
  const vms = unreached.filter(({ uplinks }) => uplinks.length > 0).map(({ name }) => name);
  if (vms.length === 0) return null;
  const uplinks = [...new Set(unreached.flatMap((vm) => vm.uplinks))];
  return warn(
    `native XDP on ${uplinks.join(", ")} cannot hand frames to the taps of ${named(vms)}`,
    attachHint(uplinks),
  );
}

function passedPackets({ tables, attached }: Pick<ServicesAround, "tables" | "attached">): Finding | null {
  const counted = attached
    .filter(({ role }) => role === ROLE.UPLINK)
    .map((entry) => ({ entry, count: packets(tables, entry.slot, REASON.DELIVER_HOOK) }))
    .filter(({ count }) => count > 0);
  if (counted.length === 0) return null;
  const onXdp = counted.filter(({ entry }) => isXdp(entry)).map(({ entry }) => entry.name);
  const hint = "What comes in VLAN tags is not handed to VMs from XDP, what comes in MPLS from nowhere.";
  return warn(
    counted
      .map(({ entry, count }) => `${count} packets for VMs of services passed at ${entry.name}`)
      .join(", "),
    onXdp.length === 0 ? hint : `${hint} ${attachHint(onXdp)}`,
  );
}

function isXdp({ hook }: InterfaceEntry): boolean {
  return HOOK_NAMES[hook]?.startsWith("xdp") === true;
}

function attachHint(uplinks: readonly string[]): string {
  const commands = uplinks.map((name) => `\`lasthop attach ${name} --role uplink --mode tc\``);
  return `${commands.join(", ")}, or \`mode: tc\` in the configuration.`;
}

function packets(tables: Pick<Tables, "verdicts">, slot: number, reason: number): number {
  return tables.verdicts.read(slot)[reason]!.packets;
}

/** The host would take what it knows for its own, and answer for it where nothing is attached. */
export function addressCheck({
  view,
  addresses,
  links,
}: Omit<ServicesAround, "tables" | "attached">): Finding {
  if (view.services.length === 0) return ok("no service");
  const own = addresses().filter(({ scope }) => scope !== "host");
  const held = view.services.flatMap((service) => {
    const { address } = service.config;
    const prefix = parsePrefix(address);
    const mine = prefix && own.find((item) => inPrefix(prefix, parseAddress(item.address)!));
    if (!mine) return [];
    const device = links.find(({ ifindex }) => ifindex === mine.ifindex)?.name ?? `if${mine.ifindex}`;
    return [{ service, address: mine.address, device }];
  });
  return warnings(
    held.slice(0, NAMES_SHOWN).map(({ service, address, device }) => ({
      found: `${address} of the service ${service.name} is the host's own, on ${device}`,
      hint: isOneAddress(service)
        ? "What comes for it on an uplink goes to a VM, not to the host: take it off the interface (`ip address del`)."
        : "What comes for it on an uplink goes to a VM, not to the host: leave that alone by `exclude` of the uplink, or choose another prefix.",
    })),
    "the host holds none of them",
  );
}

function isOneAddress({ config }: NamedService): boolean {
  const prefix = parsePrefix(config.address);
  return prefix !== undefined && prefix.bits === prefix.bytes.length * 8;
}

/**
 * A VM that forwards packets unchanged, in front of a server of this host: in one zone what the server answers is
 * taken for the answer of the wrong VM, and goes past the one in between.
 */
export function zoneCheck({ view, tables, attached }: Omit<ServicesAround, "addresses" | "links">): Finding {
  const serving = new Map<number, { name: string; zone: number }>();
  for (const { name, spec } of view.vms) {
    if (spec.id !== 0 && view.servicesOf(name).length > 0) serving.set(spec.id, { name, zone: spec.zone });
  }
  if (serving.size === 0) return ok("no VM of a service");
  const behind = new Map<number, number[]>();
  for (const [, { id, ifindex }] of tables.vms.entries()) append(behind, ifindex, id);
  const found = attached.flatMap((tap) => {
    const ids = behind.get(tap.ifindex) ?? [];
    const others = [...serving.values()].filter(({ zone }) => zone === tap.zone);
    if (tap.role !== ROLE.TAP || others.length === 0 || ids.some((id) => serving.has(id))) return [];
    const count = packets(tables, tap.slot, REASON.VM_MISMATCH);
    if (count === 0) return [];
    const vms = others.length === 1 ? others[0]!.name : "a VM of a service";
    return [
      `${count} packets from ${tap.name} are of flows that are another VM's, perhaps as ${vms} forwards to it`,
    ];
  });
  if (found.length === 0) return ok("no answers of a server go past the VM in front of it");
  return warn(
    named(found),
    "A VM that forwards packets unchanged and the server behind it need different zones: attach the server's tap, and " +
      "the tap of the VM on that side, with another --zone. Or attach the server's tap with --role uplink, where it is " +
      "reached by way of that VM only.",
  );
}
