// SPDX-License-Identifier: Apache-2.0

import { readLabelStacks } from "../controller/labelStacks.ts";
import { isHostNetns, readHost } from "../kernel/coexistence.ts";
import type { Instance } from "../kernel/instance.ts";
import { readRuleset } from "../kernel/netfilter.ts";
import { Netlink } from "../kernel/netlink.ts";
import { ipsecPolicies, markRules } from "../kernel/policyRouting.ts";
import type { Link } from "../kernel/rtnetlink.ts";
import { type InterfaceEntry, Tables } from "../tables/index.ts";
import { attachedEntries, instanceChecks, tryOpen } from "./doctor/instance.ts";
import { interfaceReports } from "./doctor/interfaces.ts";
import { networkChecks } from "./doctor/network.ts";
import { serviceChecks } from "./doctor/services.ts";
import { systemChecks } from "./doctor/system.ts";
import { readSysctl, wayChecks } from "./doctor/ways.ts";
import { ServiceView } from "./serviceView.ts";
import type { DoctorCheck, DoctorReport, OpContext } from "./types.ts";

/** What this host offers and lacks, and who else is at work on it. Changes nothing; a check that cannot be made says so. */
export async function doctor(context: OpContext): Promise<DoctorReport> {
  const ruleset = await readRuleset();
  const system = systemChecks(context.pinRoot);
  // Without libbpf neither tables nor interfaces can be asked about.
  const usable = !system.some(({ name, level }) => name === "libbpf" && level === "fail");
  const opened = tryOpen(context.pinRoot);
  const netlink = usable ? new Netlink() : null;
  try {
    const links = netlink?.links() ?? [];
    const hostNetns = isHostNetns(links);
    const host = readHost(hostNetns);
    const attached = attachedEntries(opened.instance);
    return {
      checks: [
        ...system,
        ...instanceChecks(context.pinRoot, opened, netlink),
        ...networkChecks({ links, attached, ruleset, host }),
        ...wayChecks({
          links,
          attached,
          labelStacks: opened.instance ? readLabelStacks(new Tables(opened.instance)) : new Map(),
          rules: markRules,
          policies: ipsecPolicies,
          sysctl: readSysctl,
        }),
        ...servicesOf(opened.instance, links, attached, netlink),
      ],
      interfaces: netlink ? interfaceReports(opened.instance, netlink, links, hostNetns) : [],
    };
  } finally {
    netlink?.close();
    opened.instance?.close();
  }
}

/** Without tables there are none. */
function servicesOf(
  instance: Instance | null,
  links: readonly Link[],
  attached: readonly InterfaceEntry[],
  netlink: Netlink | null,
): DoctorCheck[] {
  if (instance === null) return [];
  const tables = new Tables(instance);
  const addresses = () => netlink?.addresses() ?? [];
  return serviceChecks({ tables, view: new ServiceView(tables), links, attached, addresses });
}
