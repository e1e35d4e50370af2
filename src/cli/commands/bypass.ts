// SPDX-License-Identifier: Apache-2.0

import { oneOf } from "../arguments.ts";
import { defineCommand, printResult } from "../command.ts";

const parseSwitch = oneOf("bypass", ["on", "off"]);

export const bypassCommand = defineCommand({
  name: "bypass",
  describe: "Make all programs pass everything, or work again",
  details: "One write to a table: nothing is detached, and flows stay as they are.",
  examples: [
    ["bypass on", "every packet goes as it would without lasthop"],
    ["bypass off", "work again"],
  ],
  words: { switch: { describe: "on or off", value: "on|off" } },
  async run(args, context) {
    const on = parseSwitch(args.switch) === "on";
    const { setBypass } = await import("../../ops/bypass.ts");
    const result = await setBypass(context.op, on);
    await printResult(context, result, () =>
      on ? "bypass is on: every packet passes\n" : "bypass is off\n",
    );
  },
});
