// SPDX-License-Identifier: Apache-2.0
// Each interface: whether it can be attached, how `auto` would do it, and what else is on it.

import { TC_FILTER } from "../../config/defaults.ts";
import { decideHook } from "../../controller/hook.ts";
import { readServices } from "../../controller/serviceSpec.ts";
import { attachmentsOn } from "../../kernel/attachment.ts";
import { readPort, readSriov, whyNotAttachable } from "../../kernel/coexistence.ts";
import { driver, type VlanStrippingFeature, vlanStripping } from "../../kernel/ethtool.ts";
import type { Instance } from "../../kernel/instance.ts";
import type { Netlink } from "../../kernel/netlink.ts";
import { type Filter, type Link, TC_PARENT_INGRESS } from "../../kernel/rtnetlink.ts";
import { usesTcx } from "../../kernel/tc.ts";
import { tunnelProgramIds } from "../../kernel/tunnelAttachment.ts";
import { tcxQuery } from "../../libbpf/index.ts";
import { Tables } from "../../tables/index.ts";
import type { DoctorReport } from "../types.ts";

type InterfaceReport = DoctorReport["interfaces"][number];

export function interfaceReports(
  instance: Instance | null,
  netlink: Netlink,
  links: readonly Link[],
  hostNetns: boolean,
): InterfaceReport[] {
  const hasServices = servicesBehind(instance);
  return links
    .filter((link) => !link.flags.loopback)
    .map((link) => {
      const refusal = whyNotAttachable(netlink, link);
      if (refusal) {
        const { why, hint } = refusal;
        return {
          interface: link.name,
          driver: driver(link.name),
          auto_mode: null,
          reason: `not attachable: ${why}`,
          notes: [hint],
        };
      }
      return interfaceReport(instance, netlink, link, hostNetns, hasServices);
    });
}

/** Whether there are services in the zone of an interface, by its ifindex. */
function servicesBehind(instance: Instance | null): (ifindex: number) => boolean {
  if (!instance) return () => false;
  const tables = new Tables(instance);
  const zones = new Set(readServices(tables).services.map(({ spec }) => spec.zone));
  return (ifindex) => zones.size > 0 && zones.has(tables.interfaces.get(ifindex)?.zone ?? 0);
}

function interfaceReport(
  instance: Instance | null,
  netlink: Netlink,
  link: Link,
  hostNetns: boolean,
  hasServices: (ifindex: number) => boolean,
): InterfaceReport {
  const attachments = instance ? attachmentsOn(instance, link.ifindex, link.xdp?.mode ?? null) : [];
  const ours = attachments.find((attachment) => attachment.alive);
  const ownXdp = ours?.hook.startsWith("xdp") ? ours.programId : null;
  const stripping = vlanStripping(link.name);
  const hardware = link.parentDevice !== null && link.ethernet;
  const tcx = usesTcx(link.ifindex);
  const { hook, reason } = decideHook(
    {
      name: link.name,
      role: "uplink",
      kind: link.kind,
      ethernet: link.ethernet,
      external: link.external === true,
      hardware,
      xdp: link.xdp,
      ownXdpProgramId: ownXdp,
      vlanStripping: stripping,
      services: hasServices(link.ifindex),
      tcx,
    },
    "auto",
  );
  const tunnels = instance ? tunnelProgramIds(instance) : new Map<number, string>();
  const isForeign = (id: number | null): boolean => id === null || !tunnels.has(id);
  const place = {
    name: link.name,
    ours: ours?.programId ?? null,
    xdp: link.xdp?.programId && link.xdp.programId !== ownXdp ? link.xdp.programId : null,
    tcx: (tcxQuery(link.ifindex, "ingress") ?? []).filter(isForeign),
    // Where TC means TCX they all come after us.
    filters: tcx ? [] : foreignFilters(netlink, link.ifindex, isForeign),
  };
  return {
    interface: link.name,
    driver: driver(link.name),
    auto_mode: hook,
    reason,
    notes: [
      ...(hardware ? strippingNotes(link, stripping) : []),
      ...(link.portState === "blocking" ? ["the bridge port is blocking: nothing is learned there"] : []),
      ...foreignNotes(place),
      ...hardwareNotes(link, hostNetns),
    ],
  };
}

function foreignFilters(
  netlink: Netlink,
  ifindex: number,
  isForeign: (id: number | null) => boolean,
): Filter[] {
  const filters = netlink.filters(ifindex, TC_PARENT_INGRESS);
  return filters.filter(({ handle, programId }) => handle !== 0 && isForeign(programId));
}

function strippingNotes({ name }: Link, stripping: readonly VlanStrippingFeature[] | null): string[] {
  if (!stripping || stripping.length === 0) return [];
  const off = stripping.map((feature) => `${feature} off`).join(" ");
  return [`for native XDP turn VLAN stripping off: \`ethtool -K ${name} ${off}\``];
}

/** What others have on the hooks of an interface. */
export interface ForeignPrograms {
  name: string;
  /** Id of our program that is attached; null if none is. */
  ours: number | null;
  /** Id of somebody else's XDP program. */
  xdp: number | null;
  /** Ids in the order in which they run, before any clsact filter. */
  tcx: readonly number[];
  filters: readonly Pick<Filter, "priority" | "kind" | "programId">[];
}

/** What comes before us may keep packets from us; what comes after does not see what we redirect. */
export function foreignNotes({ name, ours, xdp, tcx, filters }: ForeignPrograms): string[] {
  const notes: string[] = [];
  const see = `\`bpftool net show dev ${name}\` says whose`;
  if (xdp !== null) {
    notes.push(
      `XDP program ${xdp} of somebody else runs first: what it drops or redirects does not reach us; ${see}`,
    );
  }
  // A new program goes behind those that are there.
  const position = ours === null ? -1 : tcx.indexOf(ours);
  const before = position < 0 ? tcx : tcx.slice(0, position);
  if (before.length > 0) {
    notes.push(
      `TCX programs of somebody else run first (${before.join(", ")}): what they end with anything but TCX_NEXT does not reach us; ${see}`,
    );
  }
  const earlier = filters.filter((filter) => filter.priority < TC_FILTER.priority);
  if (earlier.length > 0) {
    const names = earlier.map(({ kind, priority, programId }) =>
      programId === null
        ? `${kind} of preference ${priority}`
        : `program ${programId} of preference ${priority}`,
    );
    notes.push(
      `filters of somebody else run first (${[...new Set(names)].join(", ")}): what they end, as \`action pass\` does, ` +
        `does not reach us; \`tc filter show dev ${name} ingress\``,
    );
  }
  return notes;
}

function hardwareNotes(link: Link, hostNetns: boolean): string[] {
  const notes: string[] = [];
  const sriov = readSriov(link.parentDevice);
  if (sriov?.isFunction)
    notes.push("it is a virtual function: its card switches between functions by itself");
  if (sriov && sriov.functions > 0) {
    const given = sriov.passedThrough > 0 ? `, ${sriov.passedThrough} of them given to guests` : "";
    notes.push(
      `it has ${sriov.functions} virtual functions${given}: what goes by those does not come by the host, and is neither learned nor sent back`,
    );
  }
  // /sys shows the interfaces of one namespace only.
  const port = hostNetns ? readPort(link.name) : { wireless: false, representor: false };
  if (port.wireless) notes.push("it is wireless: as an uplink of a routed host only");
  if (port.representor) {
    notes.push(
      "it stands for a virtual function: flows that its card forwards by itself (offload) do not come by",
    );
  }
  return notes;
}
