// SPDX-License-Identifier: Apache-2.0
// The endpoint, over real sockets on the loopback interface.

import { once } from "node:events";
import { type Agent, Agent as HttpAgent, type IncomingHttpHeaders, request } from "node:http";
import { connect, createServer, type Socket } from "node:net";
import { setTimeout as pause } from "node:timers/promises";
import { gunzipSync } from "node:zlib";
import { afterEach, describe, expect, test } from "vitest";
import { createLogger } from "../../src/log.ts";
import { type MetricsServer, startMetricsServer } from "../../src/metrics/index.ts";
import { parseListen } from "../../src/metrics/listen.ts";

const TEXT = `# HELP a A.\n# TYPE a gauge\n${'a{b="c"} 1\n'.repeat(500)}`;

const open: { close(): Promise<unknown> | unknown }[] = [];
afterEach(async () => {
  for (const one of open.splice(0).reverse()) await one.close();
});

interface Started {
  server: MetricsServer;
  lines: string[];
}

async function start(
  render: () => Promise<string> = async () => TEXT,
  listen = "127.0.0.1:0",
): Promise<Started> {
  const lines: string[] = [];
  const log = createLogger({ level: "debug", format: "text", write: (line) => lines.push(line.trim()) });
  const server = await startMetricsServer({ listen, render, log });
  let closed: Promise<void> | undefined;
  const once = { ...server, close: () => (closed ??= server.close()) };
  open.push(once);
  return { server: once, lines };
}

interface Answer {
  status: number;
  headers: IncomingHttpHeaders;
  body: Buffer;
}

function ask(
  address: string,
  { path = "/metrics", method = "GET", headers = {}, agent }: Ask = {},
): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const { hostname, port } = new URL(`http://${address}`);
    // The path as it is: a URL would be normalised.
    const where = { hostname: hostname.replace(/[[\]]/g, ""), port, path, method, headers };
    const sent = request({ ...where, ...(agent === undefined ? {} : { agent }) }, (response) => {
      const chunks: Buffer[] = [];
      response.on("data", (chunk: Buffer) => chunks.push(chunk));
      response.on("end", () =>
        resolve({ status: response.statusCode!, headers: response.headers, body: Buffer.concat(chunks) }),
      );
    });
    sent.on("error", reject);
    sent.end();
  });
}

interface Ask {
  path?: string;
  method?: string;
  headers?: Record<string, string>;
  agent?: Agent;
}

describe("the endpoint", () => {
  test("answers with the text, and says what it is", async () => {
    const { server } = await start();
    const { status, headers, body } = await ask(server.address);
    expect([status, body.toString()]).toEqual([200, TEXT]);
    expect(headers).toMatchObject({
      "content-type": "text/plain; version=0.0.4; charset=utf-8",
      "content-length": String(TEXT.length),
    });
    expect(headers["content-encoding"]).toBeUndefined();
  });

  test.each([
    ["gzip", true],
    ["deflate, gzip;q=1.0, *;q=0.5", true],
    ["GZIP", true],
    ["identity", false],
    ["gzip;q=0", false],
    ["gzip; q=0.0", false],
    ["xgzip", false],
  ])("Accept-Encoding: %s compresses: %s", async (encoding, compressed) => {
    const { server } = await start();
    const { headers, body } = await ask(server.address, { headers: { "Accept-Encoding": encoding } });
    expect(headers["content-encoding"]).toBe(compressed ? "gzip" : undefined);
    expect((compressed ? gunzipSync(body) : body).toString()).toBe(TEXT);
    expect(headers["content-length"]).toBe(String(body.length));
    expect(headers.vary).toBe("Accept-Encoding");
  });

  test("HEAD has the headers and no body", async () => {
    const { server } = await start();
    const { status, headers, body } = await ask(server.address, { method: "HEAD" });
    expect([status, body.length, headers["content-length"]]).toEqual([200, 0, String(TEXT.length)]);
  });

  test("a query does not matter", async () => {
    const { server } = await start();
    expect((await ask(server.address, { path: "/metrics?x=1" })).status).toBe(200);
  });

  test.each(["/", "/metrics/", "/Metrics", "/-/quit", "/metrics/../metrics", "//metrics"])(
    "there is nothing at %s",
    async (path) => {
      const { server } = await start();
      const { status, body } = await ask(server.address, { path });
      expect([status, body.toString()]).toEqual([404, "there is only /metrics here\n"]);
    },
  );

  test.each(["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])("%s is refused", async (method) => {
    const { server } = await start();
    const { status, headers } = await ask(server.address, { method });
    expect([status, headers.allow]).toEqual([405, "GET, HEAD"]);
  });

  test("a failure is a 500 without its details, and one line in the log until it works again", async () => {
    let failure: Error | undefined = new Error("the tables have gone (secret detail)");
    const { server, lines } = await start(async () => {
      if (failure) throw failure;
      return TEXT;
    });
    for (let round = 0; round < 3; round++) {
      const { status, headers, body } = await ask(server.address, { headers: { "Accept-Encoding": "gzip" } });
      expect([status, headers["content-encoding"]]).toEqual([500, undefined]);
      expect(body.toString()).toBe("the metrics could not be read; the log says why\n");
    }
    expect(lines).toEqual([
      'lasthop: error: metrics cannot be read reason="the tables have gone (secret detail)"',
    ]);
    failure = undefined;
    expect((await ask(server.address)).status).toBe(200);
    expect((await ask(server.address)).status).toBe(200);
    expect(lines.slice(1)).toEqual(["lasthop: info: metrics can be read again"]);
  });

  test("who comes while a scrape is being made gets the same; too many are told to come again", async () => {
    let finish = (_text: string): void => undefined;
    let renders = 0;
    const { server } = await start(() => {
      renders++;
      return new Promise((resolve) => {
        finish = resolve;
      });
    });
    const first = Array.from({ length: 8 }, () => ask(server.address));
    // The ninth comes when the eight are there.
    let refused: Answer | undefined;
    while (refused === undefined) {
      const late = ask(server.address);
      const answer = await Promise.race([late, pause(50, undefined)]);
      if (answer) refused = answer;
      else first.push(late);
    }
    expect([refused.status, refused.headers["retry-after"]]).toEqual([503, "1"]);
    finish(TEXT);
    const answers = await Promise.all(first);
    expect(answers.filter(({ status }) => status === 200).length).toBe(8);
    expect(renders).toBe(1);
    const next = ask(server.address);
    while (renders < 2) await pause(5);
    finish("later");
    expect((await next).body.toString()).toBe("later");
  });

  test("who goes away in the middle frees the place", async () => {
    let finish = (_text: string): void => undefined;
    const { server } = await start(
      () =>
        new Promise((resolve) => {
          finish = resolve;
        }),
    );
    for (let round = 0; round < 20; round++) {
      const socket = await rawConnection(server.address);
      socket.write("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
      await pause(5);
      socket.destroy();
      await once(socket, "close");
    }
    const answer = ask(server.address);
    await pause(50);
    finish(TEXT);
    expect((await answer).status).toBe(200);
  });

  test("what is not HTTP, or too much of it, is refused and harms nobody", async () => {
    const { server } = await start();
    for (const garbage of [
      "\0\0\0",
      "GET\r\n\r\n",
      `GET /metrics HTTP/1.1\r\nX: ${"x".repeat(10_000)}\r\n\r\n`,
    ]) {
      const socket = await rawConnection(server.address);
      let answer = "";
      socket.on("data", (chunk) => {
        answer += chunk;
      });
      socket.write(garbage);
      await once(socket, "close");
      expect(answer).toMatch(/^HTTP\/1\.1 4\d\d /);
    }
    expect((await ask(server.address)).status).toBe(200);
  });

  test("a request that is never finished is ended", async () => {
    const { server } = await start();
    const socket = await rawConnection(server.address);
    socket.write("GET /metrics HTTP/1.1\r\nHost:");
    socket.resume();
    await once(socket, "close");
  });
});

async function rawConnection(address: string): Promise<Socket> {
  const [host, port] = address.split(":");
  const socket = connect(Number(port), host);
  socket.on("error", () => socket.destroy());
  await once(socket, "connect");
  open.push({ close: () => socket.destroy() });
  return socket;
}

describe("close", () => {
  test("ends connections that wait for the next scrape, and frees the address", async () => {
    const { server } = await start();
    const agent = new HttpAgent({ keepAlive: true });
    open.push({ close: () => agent.destroy() });
    await ask(server.address, { agent });
    await server.close();
    const again = await start(undefined, server.address);
    expect(again.server.address).toBe(server.address);
    expect((await ask(server.address)).status).toBe(200);
  });

  test("lets an answer end that is on its way", async () => {
    let finish = (_text: string): void => undefined;
    const { server } = await start(
      () =>
        new Promise((resolve) => {
          finish = resolve;
        }),
    );
    const answer = ask(server.address);
    await pause(50);
    const closed = server.close();
    finish(TEXT);
    expect((await answer).body.toString()).toBe(TEXT);
    await closed;
  });

  test("does not wait for ever for who takes nothing", async () => {
    const { server } = await start(() => new Promise(() => undefined));
    const answer = ask(server.address).catch((error: NodeJS.ErrnoException) => error.code);
    await pause(50);
    await server.close();
    expect(await answer).toBe("ECONNRESET");
  });
});

describe("where it listens", () => {
  test("on IPv6", async () => {
    const { server } = await start(undefined, "[::1]:0");
    expect(server.address).toMatch(/^\[::1\]:\d+$/);
    expect((await ask(server.address)).status).toBe(200);
  });

  test.each([
    ["127.0.0.1:9469", { host: "127.0.0.1", port: 9469 }],
    ["[::1]:9469", { host: "::1", port: 9469 }],
    ["[fe80::1]:1", { host: "fe80::1", port: 1 }],
    ["localhost:65535", { host: "localhost", port: 65_535 }],
    ["0.0.0.0:80", { host: "0.0.0.0", port: 80 }],
    [":9469", { host: undefined, port: 9469 }],
  ])("%s is an address", (text, wanted) => {
    expect(parseListen(text)).toEqual(wanted);
  });

  test.each([
    "",
    "9469",
    "127.0.0.1",
    "127.0.0.1:",
    "127.0.0.1:65536",
    "127.0.0.1:-1",
    "127.0.0.1:x",
    "::1:9469",
    "[::1]",
    "[127.0.0.1]:9469",
    "[]:9469",
    "300.0.0.1:9469",
    "host.example:9469",
    "http://127.0.0.1:9469",
    "127.0.0.1:9469/metrics",
    " 127.0.0.1:9469",
  ])("%j is none", async (text) => {
    await expect(start(undefined, text)).rejects.toMatchObject({
      code: "E_LISTEN",
      message: `"${text}" is not an address to listen on`,
    });
  });

  test("a port that is taken, and an address that is not ours, are E_LISTEN", async () => {
    const other = createServer();
    other.listen(0, "127.0.0.1");
    await once(other, "listening");
    open.push({ close: () => new Promise((done) => other.close(done)) });
    const { port } = other.address() as { port: number };
    await expect(start(undefined, `127.0.0.1:${port}`)).rejects.toMatchObject({
      code: "E_LISTEN",
      message: `cannot listen on 127.0.0.1:${port} for metrics: another program has that port`,
      hint: expect.stringContaining("metrics.listen"),
    });
    await expect(start(undefined, "192.0.2.1:0")).rejects.toMatchObject({
      code: "E_LISTEN",
      message: expect.stringContaining("it is not an address of this host"),
    });
  });
});
