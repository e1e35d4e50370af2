// SPDX-License-Identifier: Apache-2.0

import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { createLogger, isJournal, type LoggerOptions } from "../../src/log.ts";

function capture(options: Partial<LoggerOptions> = {}) {
  const lines: string[] = [];
  const log = createLogger({
    level: "info",
    format: "text",
    write: (line) => lines.push(line.trimEnd()),
    ...options,
  });
  return { lines, log };
}

test("the level and the format change while it runs", () => {
  const { lines, log } = capture();
  log.debug("before");
  log.configure({ level: "debug" });
  log.debug("with details");
  log.configure({ level: "error", format: "json" });
  log.warning("not any more");
  log.error("broken", { code: "E_BPF" });
  expect(lines).toEqual([
    "lasthop: debug: with details",
    '{"level":"error","message":"broken","code":"E_BPF"}',
  ]);
});

test("journald is given each line's priority, and JSON the time", () => {
  const { lines, log } = capture({ journal: true, level: "debug", now: () => new Date(0) });
  for (const level of ["debug", "info", "warning", "error"] as const) log[level]("x");
  log.configure({ format: "json" });
  log.info("y");
  expect(lines).toEqual([
    "<7>lasthop: debug: x",
    "<6>lasthop: info: x",
    "<4>lasthop: warning: x",
    "<3>lasthop: error: x",
    '{"time":"1970-01-01T00:00:00.000Z","level":"info","message":"y"}',
  ]);
});

test("a stream is journald's if the environment names its device and inode", () => {
  const stream = { dev: 9, ino: 12345 };
  expect(isJournal("9:12345", stream)).toBe(true);
  expect([undefined, "", "9:1", "12345:9"].map((value) => isJournal(value, stream))).toEqual(
    Array(4).fill(false),
  );
});

describe("a message that comes again and again", () => {
  beforeEach(() => {
    vi.useFakeTimers();
  });
  afterEach(() => {
    vi.useRealTimers();
  });

  test("is written so often in a minute, and then counted", () => {
    const { lines, log } = capture({ perMinute: 2 });
    for (let count = 1; count <= 5; count++) log.info("new last hop", { count });
    log.info("something else");
    expect(lines).toEqual([
      "lasthop: info: new last hop count=1",
      "lasthop: info: new last hop count=2",
      "lasthop: info: something else",
    ]);
    lines.length = 0;
    vi.advanceTimersByTime(60_000);
    expect(lines).toEqual(["lasthop: info: new last hop: suppressed 3 more"]);
    lines.length = 0;
    log.info("new last hop", { count: 6 });
    vi.advanceTimersByTime(60_000);
    expect(lines).toEqual(["lasthop: info: new last hop count=6"]);
    expect(vi.getTimerCount()).toBe(0);
  });

  test("is counted for each level by itself, and not at all below the threshold", () => {
    const { lines, log } = capture({ perMinute: 1 });
    log.debug("x");
    log.info("x");
    log.error("x");
    log.error("x");
    expect(lines).toEqual(["lasthop: info: x", "lasthop: error: x"]);
    lines.length = 0;
    log.close();
    expect(lines).toEqual(["lasthop: error: x: suppressed 1 more"]);
    expect(vi.getTimerCount()).toBe(0);
  });
});
