// SPDX-License-Identifier: Apache-2.0

import { usageError } from "../arguments.ts";
import { defineCommand, printResult } from "../command.ts";

export const detachCommand = defineCommand({
  name: "detach",
  describe: "Detach interfaces",
  details:
    "Flows stay in the tables, so that attaching again goes on where it was; " +
    "with --all --purge the tables go too.",
  examples: [
    ["detach vnet3 vnet4", "leave these two VMs to their own routes"],
    ["detach --all", "detach everything, keep the tables"],
    ["detach --all --purge", "leave nothing in the kernel"],
  ],
  words: { interface: { many: true, optional: true, describe: "names of the interfaces" } },
  options: {
    all: { describe: "every attached interface" },
    purge: { describe: "with --all: also unpin the tables and everything in them" },
  },
  async run(args, context) {
    const interfaces = args.interface;
    if (args.all && interfaces.length > 0) {
      throw usageError(
        "interfaces and --all exclude each other",
        "Name the interfaces, or give --all alone.",
      );
    }
    if (!args.all && interfaces.length === 0) {
      throw usageError("no interface is named", "Name the interfaces, or give --all.");
    }
    if (args.purge && !args.all) {
      throw usageError(
        "--purge goes with --all only",
        "The tables serve every interface: use `lasthop detach --all --purge`.",
      );
    }
    const { detach } = await import("../../ops/detach.ts");
    const result = await detach(
      context.op,
      args.all ? { all: true, purge: args.purge === true } : { interfaces },
    );
    await printResult(context, result, () => {
      const lines = result.detached.map((item) => `${item.interface}: detached\n`);
      if (result.purged) lines.push("tables removed\n");
      return lines.length === 0 ? "nothing was attached\n" : lines.join("");
    });
  },
});
