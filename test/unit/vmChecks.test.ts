// SPDX-License-Identifier: Apache-2.0
// What checks of VMs take for an answer, and for none: HTTP, certificates, neighbours, TCP; how many at once.

import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer, type IncomingMessage, type RequestListener } from "node:http";
import { createServer as createSecureServer } from "node:https";
import { type AddressInfo, createServer as createTcpServer, type Server, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, it, test } from "vitest";
import { CHECKS_AT_ONCE } from "../../src/config/defaults.ts";
import type { CheckConfig } from "../../src/config/services.ts";
import { addressOctets } from "../../src/controller/devices.ts";
import { askHttp, type HttpQuestion } from "../../src/controller/httpCheck.ts";
import { failure, Places, type ProbeOutcome } from "../../src/controller/probes.ts";
import { checkText, statusRange, VmChecker } from "../../src/controller/vmChecks.ts";
import { LasthopError } from "../../src/errors.ts";
import type { Neighbour, NeighbourState } from "../../src/kernel/rtnetlink.ts";
import { type Certificate, selfSigned } from "../support/certificate.ts";
import { until } from "../support/run.ts";

const closing: (() => void)[] = [];
afterEach(() => {
  for (const close of closing.splice(0)) close();
});

/** Ends with the test, whoever is still connected. */
async function listen(server: Server, host = "127.0.0.1"): Promise<number> {
  const sockets = new Set<Socket>();
  server.on("connection", (socket: Socket) => {
    sockets.add(socket);
    socket.on("error", () => undefined);
    socket.on("close", () => sockets.delete(socket));
  });
  closing.push(() => {
    server.close();
    for (const socket of sockets) socket.destroy();
  });
  await new Promise<void>((resolve) => server.listen(0, host, resolve));
  return (server.address() as AddressInfo).port;
}

const question = (port: number, more: Partial<HttpQuestion> = {}): HttpQuestion => ({
  secure: false,
  host: "127.0.0.1",
  localAddress: "127.0.0.1",
  port,
  path: "/health",
  name: null,
  statuses: [200, 399],
  verify: false,
  timeoutMs: 5_000,
  ...more,
});

const ask = (asked: HttpQuestion) => askHttp(asked, new AbortController().signal);
const why = (outcome: ProbeOutcome) => ("why" in outcome ? outcome.why : outcome.kind);

async function answers(listener: RequestListener, more: Partial<HttpQuestion> = {}): Promise<ProbeOutcome> {
  return await ask(question(await listen(createServer(listener)), more));
}

describe("an HTTP check", () => {
  it.each<[status: number, statuses: [number, number], outcome: string]>([
    [200, [200, 399], "ok"],
    [204, [200, 399], "ok"],
    [302, [200, 399], "ok"],
    [302, [200, 200], "status 302"],
    [404, [200, 399], "status 404"],
    [503, [200, 399], "status 503"],
    [503, [503, 503], "ok"],
  ])("answered with %i where %j are good: %s", async (status, statuses, outcome) => {
    const asked: string[] = [];
    const listener: RequestListener = (request, response) => {
      asked.push(request.url!);
      response.writeHead(status, status === 302 ? { Location: "/elsewhere" } : {}).end("text");
    };
    expect(why(await answers(listener, { statuses }))).toBe(outcome);
    // Nobody follows a redirect.
    expect(asked).toEqual(["/health"]);
  });

  it.each<[name: string | null, host: RegExp]>([
    [null, /^127\.0\.0\.1:\d+$/],
    ["www.example.com", /^www\.example\.com$/],
    ["www.example.com:8080", /^www\.example\.com:8080$/],
  ])("is a GET for the host %j, on a connection of its own", async (name, host) => {
    let seen: IncomingMessage | undefined;
    const listener: RequestListener = (request, response) => {
      seen = request;
      response.end();
    };
    expect(await answers(listener, { name })).toMatchObject({ kind: "ok" });
    expect(seen).toMatchObject({ method: "GET", url: "/health" });
    expect(seen!.headers).toMatchObject({ host: expect.stringMatching(host), connection: "close" });
  });

  it("does not wait for a body that is long, or has no end", async () => {
    const endless = setInterval(() => undefined, 1_000_000);
    closing.push(() => clearInterval(endless));
    const long: RequestListener = (_, response) => {
      response.on("error", () => undefined);
      response.writeHead(200);
      const write = () => response.write(Buffer.alloc(32 * 1024)) && setImmediate(write);
      response.on("drain", write);
      write();
    };
    expect(await answers(long)).toMatchObject({ kind: "ok" });
    const hanging: RequestListener = (_, response) => void response.writeHead(200).write("so far");
    expect(await answers(hanging, { timeoutMs: 50 })).toMatchObject({ kind: "ok" });
  });

  it("that is not answered in time has failed, wherever it hangs", async () => {
    const silent = await listen(createTcpServer(() => undefined));
    expect(why(await ask(question(silent, { timeoutMs: 30 })))).toBe("no answer in time");
    const slow = createTcpServer((socket) => void socket.write("HTTP/1.1 200 OK\r\nA: "));
    expect(why(await ask(question(await listen(slow), { timeoutMs: 30 })))).toBe("no answer in time");
  });

  it.each<[what: string, answer: string, why: string | RegExp]>([
    ["something else", "SSH-2.0-OpenSSH_9.2\r\n", "its answer is not HTTP"],
    ["nothing", "", /^ECONNRESET$|^it hung up$/],
    ["half a header", "HTTP/1.1 200 OK\r\nContent-", /^ECONNRESET$|^it hung up$|not HTTP/],
    ["another protocol", "HTTP/1.1 101 Other\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n", "status 101"],
  ])("answered with %s has failed", async (_what, answer, expected) => {
    const server = createTcpServer((socket) => void socket.once("data", () => socket.end(answer)));
    expect(why(await ask(question(await listen(server))))).toMatch(expected);
  });

  it("of a port where nobody listens has failed; one that we cannot make says nothing", async () => {
    const server = createTcpServer();
    const port = await listen(server);
    await new Promise((resolve) => server.close(resolve));
    expect(await ask(question(port))).toMatchObject({ kind: "failed", why: "ECONNREFUSED" });
    const elsewhere = question(port, { localAddress: "192.0.2.1" });
    expect(await ask(elsewhere)).toEqual({ kind: "unavailable", why: "EADDRNOTAVAIL" });
  });
});

describe("an HTTPS check", () => {
  const directory = mkdtempSync(join(tmpdir(), `lasthop-checks-${process.pid}-`));
  const before = process.env.SSL_CERT_FILE;
  let certificate: Certificate;
  beforeAll(() => {
    certificate = selfSigned(["web.example.com", "127.0.0.1"]);
    writeFileSync(join(directory, "trusted.pem"), certificate.cert);
    writeFileSync(join(directory, "other.pem"), selfSigned(["web.example.com"]).cert);
  });
  afterAll(() => {
    if (before === undefined) delete process.env.SSL_CERT_FILE;
    else process.env.SSL_CERT_FILE = before;
    rmSync(directory, { recursive: true });
  });

  async function secure(
    more: Partial<HttpQuestion>,
  ): Promise<[outcome: string, server: string | false | undefined]> {
    let name: string | false | undefined;
    const server = createSecureServer(certificate, (request, response) => {
      name = (request.socket as { servername?: string | false }).servername;
      response.end("fine");
    });
    const outcome = await ask(question(await listen(server), { secure: true, ...more }));
    return [why(outcome), name];
  }

  it("without verification takes any certificate, and says which host it asks for", async () => {
    expect(await secure({})).toEqual(["ok", false]);
    expect(await secure({ name: "web.example.com:8443" })).toEqual(["ok", "web.example.com"]);
  });

  it.each<[trusted: string, name: string | null, outcome: string | RegExp]>([
    ["trusted.pem", "web.example.com", "ok"],
    // The address is in the certificate too.
    ["trusted.pem", null, "ok"],
    ["trusted.pem", "127.0.0.1", "ok"],
    ["trusted.pem", "mail.example.com", /^its certificate is refused: .*mail\.example\.com/],
    ["other.pem", "web.example.com", /^its certificate is refused: self-signed/],
  ])("with verification, by %s for %j: %s", async (trusted, name, outcome) => {
    process.env.SSL_CERT_FILE = join(directory, trusted);
    expect((await secure({ verify: true, name }))[0]).toMatch(outcome);
  });

  it("goes by the file of certificates as it is now", async () => {
    const path = join(directory, "changing.pem");
    process.env.SSL_CERT_FILE = path;
    writeFileSync(path, selfSigned(["x"]).cert);
    expect((await secure({ verify: true }))[0]).toMatch(/refused/);
    writeFileSync(path, certificate.cert + certificate.cert);
    expect((await secure({ verify: true }))[0]).toBe("ok");
  });

  it("of a server that knows no TLS has failed", async () => {
    const port = await listen(createServer((_, response) => response.end()));
    expect(why(await ask(question(port, { secure: true })))).toBe("its answer is not TLS");
  });
});

describe("a check", () => {
  const config = (kind: CheckConfig["kind"], more: Partial<CheckConfig> = {}): CheckConfig => ({
    kind,
    interval_seconds: 5,
    timeout_seconds: 2,
    fall: 3,
    rise: 2,
    ...more,
  });
  const nobody = {
    neighbour: () => undefined,
    askNeighbour: () => false,
  };
  const lo = { name: "lo", ifindex: 1 };
  const at = (target: string, source: string | null = "127.0.0.1") => ({
    target: addressOctets(target),
    link: lo,
    source,
  });

  it.each<[kind: CheckConfig["kind"]]>([["tcp"], ["icmp"], ["http"], ["https"]])(
    "by %s without an address to ask from says nothing",
    async (kind) => {
      const checker = new VmChecker(nobody);
      closing.push(() => checker.close());
      expect(await checker.check({ check: config(kind, { port: 9 }), ...at("127.0.0.1", null) })).toEqual({
        kind: "unavailable",
        why: "lo has no IPv4 address to ask from",
      });
    },
  );

  it("by TCP and by HTTP asks the port of its own", async () => {
    const checker = new VmChecker(nobody);
    closing.push(() => checker.close());
    const port = await listen(
      createServer((request, response) => void response.writeHead(request.url === "/a" ? 200 : 500).end()),
    );
    const place = at("127.0.0.1");
    expect(await checker.check({ check: config("tcp", { port }), ...place })).toMatchObject({ kind: "ok" });
    const good = config("http", { port, path: "/a", status: "200" });
    expect(await checker.check({ check: good, ...place })).toMatchObject({ kind: "ok" });
    expect(await checker.check({ check: config("http", { port }), ...place })).toMatchObject({
      why: "status 500",
    });
  });

  it("that is stopped says nothing", async () => {
    const checker = new VmChecker(nobody);
    checker.close();
    for (const kind of ["tcp", "http", "neighbour"] as const) {
      const check = config(kind, { port: 9, timeout_seconds: 0.05 });
      expect(await checker.check({ check, ...at("127.0.0.1") })).toEqual({
        kind: "unavailable",
        why: "stopped",
      });
    }
  });

  it("that is under way when all is stopped waits for nothing more", async () => {
    const checker = new VmChecker(nobody);
    let open = 0;
    const port = await listen(createTcpServer(() => void open++));
    const check = config("http", { port, timeout_seconds: 60 });
    const outcomes = Promise.all([1, 2].map(() => checker.check({ check, ...at("127.0.0.1") })));
    await until(() => open === 2, "both to be asked");
    checker.close();
    expect((await outcomes).map(why)).toEqual(["stopped", "stopped"]);
  });

  describe("by neighbour", () => {
    /** What the table says: before, and at each look after the question. */
    async function neighbour(states: (NeighbourState | null)[], { is6 = false, refuses = false } = {}) {
      const asked: string[] = [];
      let look = 0;
      const address = is6 ? "2001:db8::9" : "192.0.2.9";
      const checker = new VmChecker({
        neighbour(ifindex, text): Neighbour | undefined {
          expect([ifindex, text]).toEqual([1, address]);
          const state = states[Math.min(look++, states.length - 1)] ?? null;
          return state === null ? undefined : { ifindex, address, family: is6 ? 6 : 4, mac: null, state };
        },
        askNeighbour(ifindex, text, what) {
          expect([ifindex, text]).toEqual([1, address]);
          asked.push(what);
          return !refuses;
        },
      });
      // An address to ask from is the kernel's to find.
      const check = config("neighbour", { timeout_seconds: 0.2 });
      const outcome = await checker.check({ check, ...at(address, null) });
      checker.close();
      return [why(outcome), ...asked];
    }

    it.each<[states: (NeighbourState | null)[], outcome: string, asked: string[]]>([
      [[null, "incomplete", "reachable"], "ok", ["resolve"]],
      [["failed", "incomplete", "reachable"], "ok", ["resolve"]],
      [["stale", "probe", "probe", "reachable"], "ok", ["verify"]],
      [["reachable", "probe", "reachable"], "ok", ["verify"]],
      // It asked for somebody itself.
      [["delay", "probe", "stale"], "ok", ["verify"]],
      // Asked already.
      [["probe", "reachable"], "ok", []],
      [["incomplete", "reachable"], "ok", []],
      [["stale", "probe", "failed"], "no answer to ARP", ["verify"]],
      [["stale", "probe"], "no answer to ARP", ["verify"]],
      [[null, "incomplete"], "no answer to ARP", ["resolve"]],
      [["permanent"], "nobody asks for 192.0.2.9: its entry is permanent", []],
    ])("%j: %s", async (states, outcome, asked) => {
      expect(await neighbour(states)).toEqual([outcome, ...asked]);
    });

    it("says by which protocol, and that an interface is down", async () => {
      expect(await neighbour(["failed"], { is6: true })).toEqual([
        "no answer to neighbour discovery",
        "resolve",
      ]);
      expect(await neighbour([null], { refuses: true })).toEqual(["lo is down", "resolve"]);
    });

    it("that the kernel refuses to answer says nothing", async () => {
      const checker = new VmChecker({
        ...nobody,
        neighbour() {
          throw new LasthopError("E_NETLINK", "cannot look up the neighbour");
        },
      });
      expect(await checker.check({ check: config("neighbour"), ...at("192.0.2.9") })).toEqual({
        kind: "unavailable",
        why: "cannot look up the neighbour",
      });
      checker.close();
    });
  });

  it("is made when there is a place for it, whatever its kind", async () => {
    let most = 0;
    const waiting: Socket[] = [];
    const server = createTcpServer((socket) => {
      waiting.push(socket);
      most = Math.max(most, waiting.length);
      // All that there is room for are here.
      if (waiting.length < CHECKS_AT_ONCE) return;
      for (const one of waiting.splice(0)) one.end("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    });
    const port = await listen(server);
    const checker = new VmChecker(nobody);
    closing.push(() => checker.close());
    const check = config("http", { port, timeout_seconds: 30 });
    const outcomes = await Promise.all(
      Array.from({ length: CHECKS_AT_ONCE * 2 }, () => checker.check({ check, ...at("127.0.0.1") })),
    );
    expect(outcomes.filter(({ kind }) => kind === "ok")).toHaveLength(CHECKS_AT_ONCE * 2);
    expect(most).toBe(CHECKS_AT_ONCE);
  });

  it.each<[Partial<CheckConfig> & Pick<CheckConfig, "kind">, string]>([
    [{ kind: "http" }, "GET /"],
    [{ kind: "https", path: "/health" }, "GET /health"],
    [{ kind: "tcp", port: 22 }, "TCP port 22"],
    [{ kind: "icmp" }, "ICMP"],
    [{ kind: "neighbour" }, "neighbour"],
  ])("%j is called %s", (given, text) => {
    expect(checkText(config(given.kind, given))).toBe(text);
  });
});

test("places are given to those who wait, in their order, and to all at the end", async () => {
  const places = new Places(2);
  const log: string[] = [];
  const open: (() => void)[] = [];
  const work = (name: string) =>
    places.during(async () => {
      log.push(name);
      await new Promise<void>((resolve) => open.push(resolve));
      if (name === "b") throw new Error("b fails");
    });
  const all = ["a", "b", "c", "d", "e"].map((name) => work(name).catch(() => log.push("failed")));
  const turn = () => new Promise((resolve) => setImmediate(resolve));
  await turn();
  expect(log).toEqual(["a", "b"]);
  open.pop()!();
  await turn();
  expect(log).toEqual(["a", "b", "c", "failed"]);
  places.close();
  await turn();
  expect(log).toEqual(["a", "b", "c", "failed", "d", "e"]);
  for (const end of open) end();
  await Promise.all(all);
});

it.each<[code: string, kind: ProbeOutcome["kind"]]>([
  ["ECONNREFUSED", "failed"],
  ["EHOSTUNREACH", "failed"],
  ["ECONNRESET", "failed"],
  ["EMFILE", "unavailable"],
  ["EADDRNOTAVAIL", "unavailable"],
])("%s makes an attempt %s", (code, kind) => {
  expect(failure(Object.assign(new Error("x"), { code }), 1).kind).toBe(kind);
});

it.each([
  ["200", [200, 200]],
  ["200-399", [200, 399]],
])("the statuses %s are %j", (text, range) => {
  expect(statusRange(text)).toEqual(range);
});
