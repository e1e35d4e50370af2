// SPDX-License-Identifier: Apache-2.0
// How the command line writes things: numbers, tables, flows, log lines, streams.

import { PassThrough, Writable } from "node:stream";
import { describe, expect, test } from "vitest";
import { flowEnds, lastHopText, placeText, tags } from "../../src/cli/flowText.ts";
import { age, bytes, duration, percent, plural } from "../../src/cli/format.ts";
import { ChunkedWriter, OutputClosed, streamOutput } from "../../src/cli/output.ts";
import { displayWidth, printable, TableLayout, table } from "../../src/cli/table.ts";
import { createLogger } from "../../src/log.ts";
import { suggest } from "../../src/suggest.ts";
import { flowEntry } from "../support/entries.ts";

describe("numbers", () => {
  test.each([
    [0, "0s"],
    [3.9, "3s"],
    [59, "59s"],
    [60, "1m"],
    [252, "4m12s"],
    [3599, "59m59s"],
    [7200, "2h"],
    [7260, "2h1m"],
    [7259, "2h"],
    [86_400, "1d"],
    [100_000, "1d3h"],
    [-1, "0s"],
  ])("an age of %d seconds is %s", (seconds, text) => expect(age(seconds)).toBe(text));

  test.each([
    [0, "0 B"],
    [1023, "1023 B"],
    [1024, "1 KiB"],
    [1536, "1.5 KiB"],
    [100 * 2 ** 20, "100 MiB"],
    [1.25 * 2 ** 40, "1.25 TiB"],
  ])("%d bytes are %s", (count, text) => expect(bytes(count)).toBe(text));

  test.each([
    [2.5, "2.5 s"],
    [0.0123, "12.3 ms"],
    [0.000004, "4 us"],
    [123.456, "123 s"],
  ])("%d seconds are %s", (seconds, text) => expect(duration(seconds)).toBe(text));

  test.each([
    [0, 100, "0%"],
    [1, 1_000_000, "<1%"],
    [999, 1000, "99%"],
    [1000, 1000, "100%"],
    [0, 0, "0%"],
  ])("%d of %d is %s", (part, whole, text) => expect(percent(part, whole)).toBe(text));

  test("words follow their number", () => {
    expect([plural(0, "flow"), plural(1, "flow"), plural(2, "flow")]).toEqual([
      "0 flows",
      "1 flow",
      "2 flows",
    ]);
  });
});

describe("tables", () => {
  test("align text to the left, numbers to the right, and have no trailing blanks", () => {
    const text = table(
      [{ title: "NAME" }, { title: "COUNT", right: true }, { title: "NOTE" }],
      [
        ["eth0", 5, null],
        ["a-long-name", 12_345, "x"],
      ],
    );
    expect(text).toBe(
      ["NAME         COUNT  NOTE", "eth0             5  -", "a-long-name  12345  x", ""].join("\n"),
    );
  });

  test("measure what a terminal shows", () => {
    expect(["eth0", "ü", "u\u0308", "網路", "🔥", "👩‍👩‍👧"].map(displayWidth)).toEqual([4, 1, 1, 4, 2, 2]);
    expect(
      table(
        [{ title: "N" }, { title: "M" }],
        [
          ["網", 1],
          ["abc", 2],
        ],
      ),
    ).toBe("N    M\n網   1\nabc  2\n");
  });

  test("show control characters instead of obeying them", () => {
    expect(printable("a\x1b[2Jb\n\u009b")).toBe("a\\x1b[2Jb\\x0a\\x9b");
    expect(table([{ title: "N" }], [["\x1b[31m"]])).toBe("N\n\\x1b[31m\n");
  });

  test("widen as they are written", () => {
    const layout = new TableLayout([{ title: "A" }, { title: "B" }]);
    layout.fit(["12", "x"]);
    const first = layout.line(["12", "x"]);
    layout.fit(["12345", "x"]);
    expect([first, layout.line(["1", "x"])]).toEqual(["12  x\n", "1      x\n"]);
  });
});

describe("flows", () => {
  test("name both ends with their ports", () => {
    expect(flowEnds(flowEntry())).toEqual({ remote: "198.51.100.7:40000", local: "10.0.0.5:443" });
    const six = flowEntry({ remote_address: "2001:db8::7", local_address: "2001:db8:1::5" });
    expect(flowEnds(six)).toEqual({ remote: "[2001:db8::7]:40000", local: "[2001:db8:1::5]:443" });
    const echo = flowEntry({ protocol: "icmp", remote_port: 0, local_port: 0, icmp_id: 4711 });
    expect(flowEnds(echo)).toEqual({ remote: "198.51.100.7", local: "10.0.0.5 id 4711" });
  });

  test("say where replies go", () => {
    const hop = flowEntry().last_hop!;
    expect(lastHopText(flowEntry())).toBe("02:00:00:00:0a:01 eth0");
    const tagged = {
      ...hop,
      tags: [
        { protocol: "802.1ad" as const, vid: 100 },
        { protocol: "802.1q" as const, vid: 7 },
      ],
    };
    expect(lastHopText(flowEntry({ last_hop: tagged }))).toBe("02:00:00:00:0a:01 eth0 vlan ad 100 > 7");
    const plain = flowEntry().last_hop!;
    const tunnel = { remote: "192.0.2.2", local: "192.0.2.1", id: 100 };
    const places: [Partial<typeof plain>, string][] = [
      [{ mac: null, interface: "gre1" }, "gre1"],
      [{ interface: "vxlan0", tunnel }, "02:00:00:00:0a:01 vxlan0 tunnel 192.0.2.2 id 100"],
      [{ mac: null, interface: "gre0", tunnel: { ...tunnel, id: null } }, "gre0 tunnel 192.0.2.2"],
      [
        { labels: [100, 200], via: "stack", mark: 17 },
        "02:00:00:00:0a:01 eth0 labels 100/200 via stack mark 0x11",
      ],
      [{ ipsec: true, via: "stack" }, "02:00:00:00:0a:01 eth0 ipsec via stack"],
    ];
    for (const [more, text] of places) expect(placeText({ ...plain, ...more })).toBe(text);
    expect(lastHopText(flowEntry({ stale: true }))).toBe("02:00:00:00:0a:01 eth0 (stale)");
    expect(lastHopText(flowEntry({ last_hop: null, origin: "local" }))).toBe("(own route)");
    expect(lastHopText(flowEntry({ last_hop: null }))).toBe("-");
    expect(tags([])).toBe("-");
  });
});

test("a mistyped word finds the near one only", () => {
  const words = ["attach", "detach", "status", "stats", "sweep"];
  expect(["atach", "statsu", "STATS", "swep", "frobnicate", "x"].map((word) => suggest(word, words))).toEqual(
    ["attach", "status", "stats", "sweep", undefined, undefined],
  );
});

describe("the log", () => {
  const capture = (format: "text" | "json", level: "debug" | "warning") => {
    const lines: string[] = [];
    return { lines, log: createLogger({ format, level, write: (line) => lines.push(line) }) };
  };

  test("is lines of text", () => {
    const { lines, log } = capture("text", "warning");
    log.debug("not shown");
    log.info("nor this");
    log.warning("the link may reset", { interface: "eth0", reason: 'two "words"' });
    log.error("failed");
    expect(lines).toEqual([
      'lasthop: warning: the link may reset interface=eth0 reason="two \\"words\\""\n',
      "lasthop: error: failed\n",
    ]);
  });

  test("or one object a line", () => {
    const { lines, log } = capture("json", "debug");
    log.debug("shown", { count: 3 });
    expect(lines).toEqual(['{"level":"debug","message":"shown","count":3}\n']);
  });
});

describe("output", () => {
  test("waits for a slow reader", async () => {
    const stream = new PassThrough({ highWaterMark: 4 });
    const output = streamOutput(stream);
    let written = 0;
    const writes = (async () => {
      for (let index = 0; index < 10; index++) {
        await output.write("12345678");
        written++;
      }
    })();
    await new Promise((resolve) => setImmediate(resolve));
    expect(written).toBeLessThan(10);
    stream.resume();
    await writes;
    expect(written).toBe(10);
  });

  const failing = (code: string) =>
    new Writable({
      write: (_chunk, _encoding, done) => done(Object.assign(new Error(`write ${code}`), { code })),
    });

  test("says when the reader has gone", async () => {
    const output = streamOutput(failing("EPIPE"));
    await expect(output.write("x")).rejects.toBeInstanceOf(OutputClosed);
    await expect(output.write("y")).rejects.toBeInstanceOf(OutputClosed);
  });

  test("passes on any other failure", async () => {
    await expect(streamOutput(failing("ENOSPC")).write("x")).rejects.toThrow("ENOSPC");
  });

  test("of many short texts is few writes", async () => {
    const writes: number[] = [];
    const output = {
      isTerminal: false,
      columns: 80,
      write: async (data: string | Uint8Array) => void writes.push(data.length),
    };
    const writer = new ChunkedWriter(output);
    for (let index = 0; index < 10_000; index++) await writer.add("0123456789");
    await writer.flush();
    await writer.flush();
    expect(writes.reduce((sum, length) => sum + length, 0)).toBe(100_000);
    expect(writes.length).toBe(2);
  });
});
