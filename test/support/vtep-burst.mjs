// Follows a VXLAN device while the entries on stdin are entered, with the built product: prints how many it keeps, and
// how long the event loop was held at most in each of some attempts: by its thread's processor time, since whoever
// else wants the processor is not asked here.

import { spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { VtepFollower } from "../../dist/controller/deviceVteps.js";
import { inPieces } from "../../dist/controller/pieces.js";
import { Netlink } from "../../dist/kernel/netlink.js";
import { NetlinkEvents } from "../../dist/kernel/netlinkEvents.js";

const ATTEMPTS = 4;
const [vtep] = process.argv.slice(2);
const lines = readFileSync(0, "utf8");
const netlink = new Netlink();
const { ifindex } = netlink.link("vxlan0");
const watched = new Set([
  `00000000000000000000ffff${vtep
    .split(".")
    .map((n) => Number(n).toString(16).padStart(2, "0"))
    .join("")}`,
]);
const holds = [];
let longest = 0;
let last = busyMs();
let watching = true;
const beat = () => {
  const now = busyMs();
  longest = Math.max(longest, now - last);
  last = now;
  if (watching) setImmediate(beat);
};
/** Of the main thread; nanoseconds stand first. */
function busyMs() {
  return Number(readFileSync(`/proc/self/task/${process.pid}/schedstat`, "utf8").split(" ")[0]) / 1e6;
}
const count = (follower) => [...follower.entries(ifindex)].flat().length;
const flush = (text) =>
  new Promise((resolve, reject) => {
    const child = spawn("bridge", ["-force", "-batch", "-"], { stdio: ["pipe", "inherit", "inherit"] });
    child.on("error", reject);
    child.on("close", resolve);
    child.stdin.end(text);
    // What starting a process takes is not asked here.
    longest = 0;
    last = busyMs();
  });

beat();
let followed = 0;
let read = 0;
for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
  const follower = new VtepFollower();
  follower.watch([ifindex], watched);
  let overruns = 0;
  const events = new NetlinkEvents({
    event: (event) => {
      if (event.kind === "vxlan") follower.seen(event.entry, event.gone, performance.now());
    },
    overrun: () => overruns++,
    failed: (error) => {
      throw error;
    },
  });
  await new Promise((resolve) => setTimeout(resolve, 50));
  await flush(lines);
  await new Promise((resolve) => setTimeout(resolve, 300));
  if (overruns > 0)
    await inPieces(
      follower.read(
        () => undefined,
        () => performance.now(),
      ),
    );
  followed = count(follower);
  const fresh = new VtepFollower();
  fresh.watch([ifindex], watched);
  await inPieces(
    fresh.read(
      () => undefined,
      () => performance.now(),
    ),
  );
  read = count(fresh);
  holds.push(longest);
  events.close();
  await flush(lines.replaceAll("fdb add", "fdb del"));
}
watching = false;
netlink.close();
console.log(JSON.stringify({ followed, read, holds_ms: holds }));
