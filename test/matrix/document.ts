// SPDX-License-Identifier: Apache-2.0
// docs/matrix.md: what came of the product, by kernel.

import type { Family } from "../support/addresses.ts";
import type { Kind } from "./kinds/kind.ts";
import { KINDS } from "./kinds.ts";
import type { Run } from "./place.ts";

export interface Result {
  kernel: string;
  seconds: number;
  missing: { kind: string; reason: string }[];
  pairs: { run: Run; ingress: string; egress: string; family: Family; failures: string[] }[];
}

const HEADER = `# Every pair of routing interfaces

<!-- Written by \`make test-matrix\`. -->

A request comes in by one kind of routing interface (row) while the host's default route, the VM's own way, leaves by
another (column). A pair works if, all with offloads on,

- a TCP connection carries bulk data both ways at once, UDP and ping are answered, and a reply that is too big for the way
  back arrives once the VM has been told so (path MTU discovery),
- the capture of the row's cable, decoded by tshark, shows every reply in the row's form – tag, outer addresses, VNI, key,
  SPI, labels –, and no other cable shows any,
- the row's firewall, strictly stateful, has carried the replies, and no other firewall has seen one.

Where row and column are the same kind, they are two firewalls of that kind.

\`46\`: works with IPv4 and IPv6 inside; \`4\`, \`6\`: the family that both carry, and works; \`✗\`: fails; empty: no
family that both carry, or not played. Some pairs are played once more under \`lasthop bypass on\`, and have to fail then.
`;

export function document(results: readonly Result[]): string {
  return `${[HEADER, legend(), ...merged(results).map(section)].join("\n")}`;
}

/** One for each kernel, of whatever parts it was played in. Of a pair that was played again the last result counts. */
function merged(results: readonly Result[]): Result[] {
  const byKernel = new Map<string, Result>();
  for (const result of results) {
    const before = byKernel.get(result.kernel);
    if (!before) byKernel.set(result.kernel, result);
    else {
      const seconds = before.seconds + result.seconds;
      const pairs = new Map([...before.pairs, ...result.pairs].map((pair) => [pairKey(pair), pair]));
      byKernel.set(result.kernel, { ...before, seconds, pairs: [...pairs.values()] });
    }
  }
  return [...byKernel.values()];
}

function pairKey({ run, ingress, egress, family }: Result["pairs"][number]): string {
  return `${run} ${ingress} ${egress} ${family}`;
}

function legend(): string {
  const rows = KINDS.map(({ title, name, outside, linkLayer, inside }, index) =>
    [
      ...["", index + 1, `\`${name}\``, title, inside.map((family) => `IPv${family}`).join(", ")],
      ...[outside === undefined ? "" : `IPv${outside}`, linkLayer ? "yes" : "no", ""],
    ]
      .join(" | ")
      .trim(),
  );
  return `${["| | kind | | inside | outside | link layer |", "|---|---|---|---|---|---|", ...rows].join("\n")}\n`;
}

function section({ kernel, seconds, missing, pairs }: Result): string {
  const lacks = new Set(missing.map(({ kind }) => kind));
  const played = new Set(pairs.map(({ ingress }) => ingress));
  const kinds = KINDS.filter(({ name }) => played.has(name));
  const real = pairs.filter(({ run }) => run === "redirected");
  const control = pairs.filter(({ run }) => run === "bypassed");
  const works = real.filter(({ failures }) => failures.length === 0).length;
  const head = `| | ${kinds.map((kind) => number(kind)).join(" | ")} |`;
  const rows = kinds.map((row) => {
    const cells = kinds.map((column) => cell(real, row.name, column.name));
    return `| ${number(row)} \`${row.name}\` | ${cells.join(" | ")} |`;
  });
  const failing = real.filter(({ failures }) => failures.length > 0);
  return [
    `## Linux ${kernel.replace(/^(\d+\.\d+\.\d+).*/, "$1")}\n`,
    `${works} of ${real.length} pairs and families work (${Math.round(seconds / 60)} minutes). ` +
      `${control.filter(({ failures }) => failures.length === 0).length} of ${control.length} fail as they have to under bypass.\n`,
    head,
    `|---|${kinds.map(() => "---|").join("")}`,
    `${rows.join("\n")}\n`,
    ...(lacks.size > 0 ? [`This kernel lacks ${[...lacks].map((name) => `\`${name}\``).join(", ")}.\n`] : []),
    ...(failing.length > 0 ? [`${failing.map(failure).join("\n")}\n`] : []),
  ].join("\n");
}

const number = (kind: Kind): number => KINDS.indexOf(kind) + 1;

function cell(pairs: Result["pairs"], row: string, column: string): string {
  const of = pairs.filter(({ ingress, egress }) => ingress === row && egress === column);
  if (of.some(({ failures }) => failures.length > 0)) return "✗";
  return of.map(({ family }) => family).join("");
}

function failure({ ingress, egress, family, failures }: Result["pairs"][number]): string {
  return `- \`${ingress}\`, default \`${egress}\`, IPv${family}: ${failures.join("; ")}`;
}
