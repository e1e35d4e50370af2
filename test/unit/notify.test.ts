// SPDX-License-Identifier: Apache-2.0
// Against a socket of the kind that systemd listens on.

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { Notifier, watchdogInterval } from "../../src/daemon/notify.ts";
import { sendUnixDatagram, unixAddress } from "../../src/libc/unixSocket.ts";
import { createLogger } from "../../src/log.ts";
import { DatagramListener } from "../support/datagrams.ts";
import { until } from "../support/run.ts";

let directory: string;
const listeners: DatagramListener[] = [];

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "lasthop-notify-"));
});
afterEach(async () => {
  for (const listener of listeners.splice(0)) await listener.close();
  rmSync(directory, { recursive: true });
});

async function listen(name: string): Promise<DatagramListener> {
  const listener = await DatagramListener.on(name);
  listeners.push(listener);
  return listener;
}

function logged() {
  const lines: string[] = [];
  const log = createLogger({ level: "debug", format: "text", write: (line) => lines.push(line) });
  return { lines, log };
}

describe.each([
  ["a path", () => join(directory, "notify")],
  ["an abstract name", () => `@lasthop-test-${process.pid}`],
])("a socket with %s", (_, name) => {
  test("is told what systemd wants to know", async () => {
    const socket = name();
    const heard = await listen(socket);
    const notifier = new Notifier({ NOTIFY_SOCKET: socket }, logged().log);
    const before = process.hrtime.bigint() / 1000n;
    notifier.ready("3 interfaces attached");
    notifier.status("two\nlines");
    notifier.reloading();
    notifier.stopping();
    await until(() => heard.messages.length === 4, "four messages");
    const [ready, status, reloading, stopping] = heard.messages;
    expect(ready).toBe("READY=1\nSTATUS=3 interfaces attached\n");
    expect(status).toBe("STATUS=two lines\n");
    expect(stopping).toBe("STOPPING=1\nSTATUS=Stopping\n");
    const [, microseconds] = /^RELOADING=1\nMONOTONIC_USEC=(\d+)\nSTATUS=Reloading\n$/.exec(reloading!) ?? [];
    expect(BigInt(microseconds!)).toBeGreaterThanOrEqual(before);
    expect(BigInt(microseconds!)).toBeLessThanOrEqual(process.hrtime.bigint() / 1000n);
  });
});

test("signs of life come at half of the watchdog's time, and stop when nothing is alive", async () => {
  const socket = join(directory, "notify");
  const heard = await listen(socket);
  const notifier = new Notifier({ NOTIFY_SOCKET: socket, WATCHDOG_USEC: "40000" }, logged().log);
  let alive = true;
  notifier.watch(() => alive);
  notifier.watch(() => true);
  await until(() => heard.messages.length >= 3, "signs of life");
  expect(new Set(heard.messages)).toEqual(new Set(["WATCHDOG=1\n"]));
  alive = false;
  // What was sent before has come when this has.
  notifier.status("end");
  await until(() => heard.messages.includes("STATUS=end\n"), "the end");
  await new Promise((resolve) => setTimeout(resolve, 100));
  expect(heard.messages.at(-1)).toBe("STATUS=end\n");
  notifier.close();
});

test("without a socket nothing happens", () => {
  const { lines, log } = logged();
  const notifier = new Notifier({ NOTIFY_SOCKET: "", WATCHDOG_USEC: "1000" }, log);
  notifier.ready("x");
  notifier.watch(() => {
    throw new Error("not asked");
  });
  notifier.close();
  expect(lines).toEqual([]);
});

test("a socket that nobody reads any longer is one warning", () => {
  const { lines, log } = logged();
  const notifier = new Notifier({ NOTIFY_SOCKET: join(directory, "nobody") }, log);
  notifier.ready("x");
  notifier.status("y");
  expect(lines).toEqual([expect.stringMatching(/warning: cannot notify .*nobody: .*ENOENT/)]);
});

test.each([
  [{ NOTIFY_SOCKET: "/x", WATCHDOG_USEC: "30000000" }, 15_000],
  [{ NOTIFY_SOCKET: "/x", WATCHDOG_USEC: "30000000", WATCHDOG_PID: "7" }, 15_000],
  [{ NOTIFY_SOCKET: "/x", WATCHDOG_USEC: "30000000", WATCHDOG_PID: "8" }, undefined],
  [{ NOTIFY_SOCKET: "/x", WATCHDOG_USEC: "1" }, 1],
  [{ NOTIFY_SOCKET: "/x", WATCHDOG_USEC: "soon" }, undefined],
  [{ NOTIFY_SOCKET: "/x", WATCHDOG_USEC: "0" }, undefined],
  [{ NOTIFY_SOCKET: "/x" }, undefined],
  [{ WATCHDOG_USEC: "30000000" }, undefined],
])("the watchdog's interval of %j", (environment, interval) => {
  expect(watchdogInterval(environment, 7)).toBe(interval);
});

describe("a socket's address", () => {
  test("ends with a NUL, or has one before an abstract name", () => {
    expect(unixAddress("/run/x").toString("latin1")).toBe("\x01\x00/run/x\x00");
    expect(unixAddress("@x").toString("latin1")).toBe("\x01\x00\x00x");
  });

  test.each(["", "@", `/${"x".repeat(107)}`, `@${"x".repeat(108)}`])("%j is refused", (name) => {
    expect(() => sendUnixDatagram(name, Buffer.from("x"))).toThrow("not the name of a socket");
  });
});
