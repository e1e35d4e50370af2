// SPDX-License-Identifier: Apache-2.0
// Maglev tables: how long one takes, how even it is, and what changes hands when a VM goes.

import {
  type Backend,
  disruption,
  MAGLEV_SIZE_MAX,
  maglevSize,
  maglevTable,
  peakToAverage,
} from "../../src/controller/maglev.ts";
import { seconds } from "./machine.ts";
import type { Report } from "./report.ts";
import { interleave } from "./stats.ts";

const MANY = 100;
const FEW = 8;
const GROUP = "Services: Maglev tables";

export async function measureMaglevTables(report: Report, rounds: number): Promise<void> {
  await buildTimes(report, rounds);
  qualities(report);
}

const vms = (count: number): Backend[] =>
  Array.from({ length: count }, (_, cell) => ({ cell, key: `vm-${cell}`, weight: 1 }));

const defaultSize = (count: number) =>
  maglevSize(
    count,
    vms(count).map(({ weight }) => weight),
  );

const places = (size: number) => `${size.toLocaleString("en-GB")} places`;

const SHAPES = [
  { id: "100_largest", count: MANY, size: MAGLEV_SIZE_MAX, most: 50 },
  { id: "100", count: MANY, size: defaultSize(MANY), most: undefined },
  { id: "8", count: FEW, size: defaultSize(FEW), most: undefined },
] as const;

async function buildTimes(report: Report, rounds: number): Promise<void> {
  const subjects = SHAPES.map(({ id, count, size }) => ({
    id: `services_maglev_build_${id}`,
    run: () => seconds(() => maglevTable(vms(count), size)) * 1000,
  }));
  report.add(
    GROUP,
    "ms",
    await interleave(subjects, rounds),
    SHAPES.map(({ id, count, size, most }) => ({
      id: `services_maglev_build_${id}`,
      title: `build, ${count} VMs, ${places(size)}`,
      ...(most !== undefined && { target: { of: "value", bound: "at_most", value: most } as const }),
    })),
  );
}

/** The same each time: the samples are the VMs that go. */
function qualities(report: Report): void {
  for (const { id, count, size, most } of SHAPES) {
    const all = vms(count);
    const table = maglevTable(all, size);
    const moved = (after: Uint16Array) => disruption(table, after) * 100;
    const modulo = disruption(byModulo(all, size), byModulo(all.slice(1), size)) * 100;
    const samples = new Map([
      ["uneven", [(peakToAverage(table, all) - 1) * 100]],
      [
        "moved",
        all.map((gone) =>
          moved(
            maglevTable(
              all.filter((vm) => vm !== gone),
              size,
            ),
          ),
        ),
      ],
      ["modulo", all.map(() => modulo)],
    ]);
    const what = `${count} VMs, ${places(size)}`;
    report.add(GROUP, "%", samples, [
      {
        id: `services_maglev_uneven_${id}`,
        subject: "uneven",
        title: `share of the fullest VM above the average, ${what}`,
        ...(most !== undefined && { target: { of: "value", bound: "at_most", value: 1 } as const }),
      },
      {
        id: `services_maglev_moved_${id}`,
        subject: "moved",
        title: `places of other VMs that move when one goes, ${what}`,
        baseline: { subject: "modulo", title: "hash modulo VMs" },
        comparison: "ratio",
        ...(most !== undefined && { target: { of: "value", bound: "at_most", value: 2 } as const }),
      },
    ]);
  }
}

function byModulo(backends: readonly Backend[], size: number): Uint16Array {
  return Uint16Array.from({ length: size }, (_, place) => backends[place % backends.length]!.cell);
}
