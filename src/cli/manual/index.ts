// SPDX-License-Identifier: Apache-2.0
// What is generated from the commands for people who install lasthop: files by their place beneath dist/.

import { packageVersion } from "../../version.ts";
import { COMMANDS } from "../commands/index.ts";
import { GLOBAL_OPTIONS } from "../parse.ts";
import { bashCompletion } from "./bash.ts";
import { fishCompletion } from "./fish.ts";
import { manPage } from "./man.ts";
import type { Manual } from "./tree.ts";
import { zshCompletion } from "./zsh.ts";

/** `bashScript` is scripts/completion.bash. */
export function manualFiles(bashScript: string): Record<string, string> {
  // yargs has the short form of --json apart.
  const globalOptions = { ...GLOBAL_OPTIONS, json: { ...GLOBAL_OPTIONS.json, short: "j" } };
  const manual: Manual = { commands: COMMANDS, globalOptions, version: packageVersion() };
  return {
    "man/lasthop.8": manPage(manual),
    "completion/lasthop.bash": bashCompletion(manual, bashScript),
    "completion/_lasthop": zshCompletion(manual),
    "completion/lasthop.fish": fishCompletion(manual),
  };
}
