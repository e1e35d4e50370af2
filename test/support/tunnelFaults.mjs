// SPDX-License-Identifier: Apache-2.0
// `lasthop apply` that is killed, or fails, at one of its steps, which are counted through the whole of it; or, as
// `settle`, twice and undisturbed, with what is there afterwards. Writes a JSON object.
// Arguments: pin root, configuration file, kill|fail|settle, number of the step.

import { readFileSync } from "node:fs";
import { parseConfig } from "../../dist/config/load.js";
import { reconcile } from "../../dist/controller/reconcile.js";
import { runSteps } from "../../dist/controller/steps.js";
import { LasthopError } from "../../dist/errors.js";
import { Netlink } from "../../dist/kernel/netlink.js";
import { tcxQuery } from "../../dist/libbpf/index.js";
import { listTunnels } from "../../dist/ops/tunnels.js";

const [pinRoot, file, mode, number] = process.argv.slice(2);
let count = 0;

function run(steps) {
  return runSteps(
    steps.map((step) => ({
      get done() {
        return step.done;
      },
      do() {
        if (count++ === Number(number)) {
          if (mode === "kill") process.kill(process.pid, "SIGKILL");
          if (mode === "fail") throw new LasthopError("E_BPF", "this step fails for the test");
        }
        step.do();
      },
      undo: () => step.undo(),
    })),
  );
}

const config = parseConfig(readFileSync(file, "utf8"), file);
const once = async () => {
  const { actions, failed } = await reconcile({ pinRoot, warn() {} }, config, { run });
  return {
    actions: actions.map(({ text }) => text),
    failed: failed.map(({ object, code, message }) => ({ object, code, message })),
  };
};
const first = await once();
const again = mode === "settle" ? await once() : null;
const netlink = new Netlink();
const links = netlink.links().map(({ name, ifindex }) => ({ name, programs: tcxQuery(ifindex, "ingress") }));
netlink.close();
const tunnels = listTunnels({ pinRoot }).map(({ name, ifindex, state }) => ({ name, ifindex, state }));
process.stdout.write(`${JSON.stringify({ ...first, again, links, tunnels })}\n`);
