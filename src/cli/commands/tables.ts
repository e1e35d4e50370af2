// SPDX-License-Identifier: Apache-2.0

import { usageError } from "../arguments.ts";
import { type CommandGroup, defineCommand, printResult } from "../command.ts";
import { bytes, percent } from "../format.ts";
import { table } from "../table.ts";

const list = defineCommand({
  name: "list",
  describe: "Show how full the tables are",
  examples: [["tables list", "entries, sizes and memory"]],
  async run(_args, context) {
    const { listTables } = await import("../../ops/tables.ts");
    const tables = listTables(context.op);
    await printResult(context, tables, () =>
      table(
        [
          { title: "TABLE" },
          { title: "ENTRIES", right: true },
          { title: "MAX", right: true },
          { title: "USED", right: true },
          { title: "MEMORY", right: true },
          { title: "RESIZE" },
        ],
        tables.map((item) => [
          item.table,
          item.entries,
          item.max_entries,
          percent(item.entries, item.max_entries),
          item.memory_bytes === null ? null : bytes(item.memory_bytes),
          item.resizable ? "yes" : "no",
        ]),
      ),
    );
  },
});

const resize = defineCommand({
  name: "resize",
  describe: "Give a table another size while traffic runs",
  details:
    "A new table is filled from the old one, and the programs are exchanged: flows are kept, the latest first if the " +
    "new table has less room. While `lasthop run` holds the instance the size is that of its configuration.",
  examples: [["tables resize flows4 4194304", "room for four million IPv4 flows"]],
  words: {
    table: { describe: "flows4, flows6, embryos4 or embryos6" },
    entries: { describe: "how many entries" },
  },
  async run(args, context) {
    if (!/^\d+$/.test(args.entries))
      throw usageError(`entries is a number, not ${JSON.stringify(args.entries)}`);
    const { resizeTable } = await import("../../ops/tables.ts");
    const result = await resizeTable(context.op, args.table, Number(args.entries));
    await printResult(context, result, () => changesText(result.changes));
  },
});

export const upgradeCommand = defineCommand({
  name: "upgrade",
  describe: "Put the programs of this version in place of the pinned ones while traffic runs",
  details:
    "One link update an interface; flows stay. Tables of another layout are taken over. The daemon does this itself " +
    "when it starts.",
  examples: [["upgrade", "after installing another version, where no daemon runs"]],
  async run(_args, context) {
    const { upgrade } = await import("../../ops/tables.ts");
    const result = await upgrade(context.op);
    await printResult(context, result, () => changesText(result.changes));
  },
});

function changesText(changes: readonly { text: string }[]): string {
  return changes.length === 0 ? "nothing to do\n" : changes.map(({ text }) => `${text}\n`).join("");
}

export const tablesGroup: CommandGroup = {
  name: "tables",
  describe: "List and resize the tables",
  commands: [list, resize],
};
