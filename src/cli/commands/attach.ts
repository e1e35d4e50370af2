// SPDX-License-Identifier: Apache-2.0

import { oneOf, zoneOption } from "../arguments.ts";
import { defineCommand, printResult } from "../command.ts";

const parseRole = oneOf("--role", ["uplink", "tap"]);
const parseMode = oneOf("--mode", ["auto", "native", "generic", "tc"]);
const parsePolicy = oneOf("--policy", ["enforce", "observe", "off"]);

export const attachCommand = defineCommand({
  name: "attach",
  describe: "Attach an interface, or change how it is attached",
  details:
    "An uplink leads to devices (firewalls, routers): requests that come in there are learned. " +
    "A tap leads to a virtual machine: its replies are sent back where their request came from. " +
    "Attaching again with another role, zone or policy changes it without a gap.",
  examples: [
    ["attach eth0 --role uplink", "learn from the devices behind eth0"],
    ["attach vnet3 --role tap --policy observe", "count what would change for this VM, change nothing"],
    ["attach eth1 --role uplink --mode generic --zone 7", "generic XDP, in a zone of its own"],
  ],
  words: { interface: { describe: "name of the interface" } },
  options: {
    role: {
      value: "uplink|tap",
      required: true,
      describe: "towards devices, or towards a VM",
      parse: parseRole,
    },
    mode: {
      value: "auto|native|generic|tc",
      describe: "hook of an uplink: native or generic XDP, or TC",
      parse: parseMode,
    },
    zone: zoneOption,
    policy: {
      value: "enforce|observe|off",
      describe: "what a tap does with replies: send them back, count only, nothing",
      parse: parsePolicy,
    },
  },
  async run(args, context) {
    const { attach } = await import("../../ops/attach.ts");
    const result = await attach(context.op, {
      interface: args.interface,
      role: args.role,
      ...(args.mode !== undefined && { mode: args.mode }),
      ...(args.zone !== undefined && { zone: args.zone }),
      ...(args.policy !== undefined && { policy: args.policy }),
    });
    await printResult(context, result, () => {
      const { interface: name, role, hook, zone, policy } = result;
      const steps = result.actions.length === 0 ? ["nothing to change"] : result.actions;
      const how = role === "tap" ? `, policy ${policy}` : "";
      return `${steps.map((step) => `${step}\n`).join("")}${name}: ${role} by ${hook}, zone ${zone}${how}\n`;
    });
  },
});
