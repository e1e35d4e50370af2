// SPDX-License-Identifier: Apache-2.0

import { MTU_MAX, MTU_MIN } from "../../config/defaults.ts";
import type { UplinkWay } from "../../ops/types.ts";
import { oneOf, parseMark, usageError, wholeNumber, zoneOption } from "../arguments.ts";
import { defineCommand, printResult } from "../command.ts";
import { hexadecimal } from "../flowText.ts";

const parseRole = oneOf("--role", ["uplink", "tap"]);
const parseMode = oneOf("--mode", ["auto", "native", "generic", "tc"]);
const parseVia = oneOf("--via", ["redirect", "stack"]);
const parseWholeMtu = wholeNumber("mtu", MTU_MIN, MTU_MAX);
const parseMtu = (text: string) => (text === "auto" ? text : parseWholeMtu(text));
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
    ["attach gre1 --role uplink --mtu 1400", "a tunnel, whose way is narrower than its interface says"],
    ["attach eth0 --role uplink --via stack --mark 0x10", "replies by the host's rule for mark 0x10"],
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
    mtu: {
      value: "N|auto",
      describe: "of the way back by an uplink, in bytes of IP; auto: that of the interface, as it changes",
      parse: parseMtu,
    },
    "clamp-mss": { describe: "lower TCP's maximum segment size to what fits the way back (default)" },
    "no-clamp-mss": { describe: "leave TCP's maximum segment size alone" },
    via: {
      value: "redirect|stack",
      describe: "how replies leave by an uplink: straight, or by the host's own routing",
      parse: parseVia,
    },
    mark: {
      value: "N",
      describe: "firewall mark of replies that go by the host's routing, as 16 or 0x10; 0 for none",
      parse: parseMark,
    },
  },
  async run(args, context) {
    if (args["clamp-mss"] && args["no-clamp-mss"]) {
      throw usageError("--clamp-mss and --no-clamp-mss exclude each other");
    }
    const clamp = args["clamp-mss"] ? true : args["no-clamp-mss"] ? false : undefined;
    const { attach } = await import("../../ops/attach.ts");
    const result = await attach(context.op, {
      interface: args.interface,
      role: args.role,
      ...(args.mode !== undefined && { mode: args.mode }),
      ...(args.zone !== undefined && { zone: args.zone }),
      ...(args.policy !== undefined && { policy: args.policy }),
      ...(args.mtu !== undefined && { mtu: args.mtu }),
      ...(clamp !== undefined && { clamp_mss: clamp }),
      ...(args.via !== undefined && { via: args.via }),
      ...(args.mark !== undefined && { mark: args.mark }),
    });
    await printResult(context, result, () => {
      const { interface: name, role, hook, zone, policy } = result;
      const steps = result.actions.length === 0 ? ["nothing to change"] : result.actions;
      const how = role === "tap" ? `, policy ${policy}` : wayText(result);
      return `${steps.map((step) => `${step}\n`).join("")}${name}: ${role} by ${hook}, zone ${zone}${how}\n`;
    });
  },
});

/** What is not as by default. */
function wayText({ mtu, clamp_mss, via, mark }: UplinkWay): string {
  return [
    ...(mtu === undefined ? [] : [`, MTU ${mtu}`]),
    ...(clamp_mss === false ? [", MSS left alone"] : []),
    ...(via === "stack" ? [", replies by the host's routing"] : []),
    ...(mark ? [`, mark ${hexadecimal(mark)}`] : []),
  ].join("");
}
