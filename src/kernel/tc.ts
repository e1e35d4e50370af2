// SPDX-License-Identifier: Apache-2.0
import { LasthopError } from "../errors.ts";
import { tcxQuery } from "../libbpf/index.ts";

/** Whether TC means TCX on this interface. LASTHOP_TC=clsact chooses the older way where both work. */
export function usesTcx(ifindex: number): boolean {
  const choice = process.env.LASTHOP_TC ?? "";
  if (choice === "clsact") return false;
  if (choice !== "" && choice !== "tcx") {
    throw new LasthopError("E_USAGE", `LASTHOP_TC is ${JSON.stringify(choice)}; it is tcx or clsact`, {
      hint: "Unset it to let the kernel decide.",
    });
  }
  return tcxQuery(ifindex, "ingress") !== undefined;
}
