// SPDX-License-Identifier: Apache-2.0

import { defineCommand, printResult } from "../command.ts";

export const metricsCommand = defineCommand({
  name: "metrics",
  describe: "Print the metrics for Prometheus once",
  details:
    "What the tables know, whether a daemon is running or not; `lasthop run` serves the same, and its own, at " +
    "metrics.listen. docs/metrics.md explains each.",
  examples: [
    ["metrics", "in Prometheus' text format"],
    [
      "metrics --output /var/lib/prometheus/node-exporter/lasthop.prom",
      "for the node exporter's textfile collector, from a timer",
    ],
    ["metrics --json", "as one JSON document"],
  ],
  options: {
    output: { value: "FILE", describe: "replace this file in one step, and print nothing" },
  },
  async run(args, context) {
    const { metricsData, metricsText, replaceFile } = await import("../../ops/metrics.ts");
    if (args.output !== undefined) {
      const text = await metricsText(context.op);
      replaceFile(args.output, text);
      const result = { output: args.output, bytes: Buffer.byteLength(text) };
      await printResult(context, result, () => "");
    } else if (context.json) {
      await printResult(context, { metrics: await metricsData(context.op) }, () => "");
    } else {
      await context.stdout.write(await metricsText(context.op));
    }
  },
});
