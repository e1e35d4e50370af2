// SPDX-License-Identifier: Apache-2.0
// Typed views of the maps. No timeouts and no policy here.

import { ControlTable } from "./control.ts";
import { FlowTables } from "./flows.ts";
import { InterfaceTable } from "./interfaces.ts";
import { LastHopTables } from "./lastHops.ts";
import { ServiceTables, VmTables } from "./services.ts";
import type { TableSource } from "./source.ts";
import { StructTable } from "./structTable.ts";
import { SweepTables } from "./sweep.ts";
import { TunnelTables } from "./tunnels.ts";
import { VerdictTable } from "./verdicts.ts";

export * from "./changeReader.ts";
export * from "./devices.ts";
export * from "./flows.ts";
export * from "./interfaces.ts";
export * from "./lastHops.ts";
export * from "./services.ts";
export type * from "./source.ts";
export * from "./sweep.ts";
export * from "./tunnels.ts";

/** Every table of an instance. */
export class Tables {
  readonly flows: FlowTables;
  readonly lastHops: LastHopTables;
  readonly interfaces: InterfaceTable;
  /** Slot → what the hot path may still create. */
  readonly budgets: StructTable<"u32", "budget">;
  /** Slot → ifindex. */
  readonly egressDevices: StructTable<"u32", "u32">;
  readonly vms: StructTable<"vm_key", "vm">;
  /** Slot of a tap → its usual VM. */
  readonly taps: StructTable<"u32", "tap">;
  readonly verdicts: VerdictTable;
  readonly control: ControlTable;
  /** What the programs have given out; its one record is theirs to write. */
  readonly allocations: StructTable<"u32", "allocations">;
  /** Five-tuple (IPv4 mapped) → number of the trace that watches it. */
  readonly traces: StructTable<"flow6_key", "u32">;
  readonly sweep: SweepTables;
  /** Slot → flows that are left alone there. */
  readonly exclusions: StructTable<"u32", "exclusions">;
  readonly devices: StructTable<"device_key", "device">;
  /** Zone → its number in zone_reports. */
  readonly zones: StructTable<"u32", "u32">;
  /** Label stack of a request → mark of its replies. */
  readonly labelStacks: StructTable<"label_stack", "u32">;
  readonly identity: StructTable<"u32", "identity">;
  readonly tunnels: TunnelTables;
  /** VMs of the operator's that services hand frames to. */
  readonly guests: VmTables;
  readonly services: ServiceTables;

  constructor(source: TableSource) {
    this.flows = new FlowTables(source);
    this.lastHops = new LastHopTables(source);
    this.interfaces = new InterfaceTable(source);
    this.budgets = new StructTable(source, "budgets", "u32", "budget");
    this.egressDevices = new StructTable(source, "egress_devices", "u32", "u32");
    this.vms = new StructTable(source, "vms", "vm_key", "vm");
    this.taps = new StructTable(source, "taps", "u32", "tap");
    this.verdicts = new VerdictTable(source);
    this.control = new ControlTable(source);
    this.allocations = new StructTable(source, "allocations", "u32", "allocations");
    this.traces = new StructTable(source, "traces", "flow6_key", "u32");
    this.sweep = new SweepTables(source);
    this.exclusions = new StructTable(source, "exclusions", "u32", "exclusions");
    this.devices = new StructTable(source, "devices", "device_key", "device");
    this.zones = new StructTable(source, "zones", "u32", "u32");
    this.labelStacks = new StructTable(source, "label_stacks", "label_stack", "u32");
    this.identity = new StructTable(source, "identity", "u32", "identity");
    this.tunnels = new TunnelTables(source);
    this.guests = new VmTables(source);
    this.services = new ServiceTables(source);
  }
}
