// SPDX-License-Identifier: Apache-2.0
// What is true of the whole instance: which build it is, whether it is bypassed, what was lost.

import { isHeld } from "../kernel/holder.ts";
import { ABI_NAME } from "../kernel/instance.ts";
import type { DaemonMetrics } from "./daemon.ts";
import { Family } from "./family.ts";
import type { ScrapeSource } from "./source.ts";

/** Of 64 hex digits: enough to tell builds apart. */
const OBJECT_DIGITS = 12;

export function instanceFamilies(
  { instance, tables }: ScrapeSource,
  daemon: DaemonMetrics | undefined,
): Family[] {
  const build = new Family("gauge", "lasthop_build_info", "Which lasthop it is; always 1.");
  const program = new Family("gauge", "lasthop_program_info", "A pinned program; always 1.");
  const bypass = new Family("gauge", "lasthop_bypass", "1 while bypass is on and every packet passes.");
  const running = new Family("gauge", "lasthop_daemon_running", "1 while a daemon holds the instance.");
  const starts = new Family(
    "counter",
    "lasthop_daemon_starts_total",
    "Starts of the daemon on these tables.",
  );
  const traces = new Family(
    "counter",
    "lasthop_trace_events_lost_total",
    "Decisions of traced flows that found the ring buffer full.",
  );
  const notices = new Family(
    "counter",
    "lasthop_notices_lost_total",
    "Notices to the daemon that were over the rate, or found the ring buffer full.",
  );
  const identity = tables.identity.get(0)!;
  build.add(1, {
    version: identity.version,
    object: identity.object.toString("hex").slice(0, OBJECT_DIGITS),
    abi: ABI_NAME,
    node: process.version,
    ffi: process.env.LASTHOP_FFI || "koffi",
  });
  for (const name of instance.programNames()) {
    const { id, tag } = instance.program(name).info();
    program.add(1, { program: name, id, tag });
  }
  bypass.add(tables.control.get().bypass === 0 ? 0 : 1);
  running.add(isHeld(instance.pinRoot) ? 1 : 0);
  starts.add(identity.starts);
  const { trace_lost, notices_lost } = tables.allocations.get(0)!;
  traces.add(trace_lost);
  daemon?.noticesLost(notices_lost);
  notices.add(daemon?.lostNotices ?? notices_lost);
  return [build, program, bypass, running, starts, traces, notices];
}
