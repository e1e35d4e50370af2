// SPDX-License-Identifier: Apache-2.0
// The program that stands in for a guest or a client inside a namespace: servers and real sockets,
// driven by JSON lines on stdin ({id, method, args} -> {id, result} or {id, error}). It ends with its
// stdin. Plain JavaScript, because it runs by itself on Node 20.

import { createHash } from "node:crypto";
import { createSocket } from "node:dgram";
import { createServer as createHttpServer, request } from "node:http";
import { connect, createServer } from "node:net";
import { createInterface } from "node:readline";
import { Line } from "./line.mjs";
import { serviceMethods } from "./serviceAgent.mjs";

const CHUNK = 1 << 16;

/** Reproducible bytes that do not repeat within a segment, so that a swapped one is noticed. */
function* content(total) {
  const block = Buffer.alloc(CHUNK);
  let state = 0x9e3779b9;
  for (let sent = 0; sent < total; sent += CHUNK) {
    for (let at = 0; at < CHUNK; at += 4) {
      state = (Math.imul(state, 1664525) + 1013904223) | 0;
      block.writeInt32LE(state, at);
    }
    yield Buffer.from(block.subarray(0, Math.min(CHUNK, total - sent)));
  }
}

async function writeContent(stream, total) {
  for (const block of content(total)) {
    if (!stream.write(block)) await new Promise((resolve) => stream.once("drain", resolve));
  }
  stream.end();
}

async function hashOf(stream) {
  const hash = createHash("sha256");
  let bytes = 0;
  for await (const chunk of stream) {
    hash.update(chunk);
    bytes += chunk.length;
  }
  return { bytes, sha256: hash.digest("hex") };
}

const listening = (server, ...where) =>
  new Promise((resolve, reject) => {
    server.once("error", reject);
    server.listen(...where, () => resolve());
  });

/** HTTP: GET / names the server, GET /bytes/N sends N bytes, POST answers with the hash of the body. */
function serveHttp(name) {
  return createHttpServer((req, res) => {
    const wanted = /^\/bytes\/(\d+)$/.exec(req.url ?? "");
    if (req.method === "POST") {
      hashOf(req).then(
        (result) => res.end(JSON.stringify(result)),
        (error) => res.destroy(error),
      );
    } else if (wanted) {
      writeContent(res, Number(wanted[1])).catch((error) => res.destroy(error));
    } else {
      res.end(`hello from ${name}, you are ${req.socket.remoteAddress.replace("::ffff:", "")}\n`);
    }
  });
}

function serveUdp(port, type) {
  const socket = createSocket({ type, ipv6Only: type === "udp6" });
  socket.on("message", (data, from) => socket.send(data, from.port, from.address));
  return new Promise((resolve, reject) => {
    socket.once("error", reject);
    socket.bind(port, () => resolve());
  });
}

const sockets = new Map();

/** One long-lived connection to an echo server. What a call did not get in time, the next one waits for. */
class Connection extends Line {
  constructor(socket) {
    super(socket);
    this.awaited = "";
  }

  async echo(text, timeoutMs) {
    if (this.error) throw new Error(this.error);
    this.awaited += text;
    this.socket.write(text, "latin1");
    await this.until(() => this.received.length >= this.awaited.length, timeoutMs);
    const same = this.received === this.awaited;
    this.awaited = "";
    this.received = "";
    if (!same) throw new Error("the echo differs");
  }
}

function connection(key) {
  const found = sockets.get(key);
  if (!found) throw new Error(`no connection ${key}`);
  return found;
}

function open({ key, host, port, localAddress, localPort, timeoutMs = 3000 }) {
  return new Promise((resolve, reject) => {
    const socket = connect({
      host,
      port,
      ...(localAddress ? { localAddress } : {}),
      ...(localPort ? { localPort } : {}),
    });
    const timer = setTimeout(() => socket.destroy(new Error("timeout")), timeoutMs);
    socket.once("error", (error) => {
      clearTimeout(timer);
      reject(error);
    });
    socket.once("connect", () => {
      clearTimeout(timer);
      socket.removeAllListeners("error");
      sockets.set(key, new Connection(socket));
      resolve({ local_port: socket.localPort });
    });
  });
}

async function keepEchoing(held, intervalMs, timeoutMs) {
  held.run = { rounds: 0, longest_ms: 0, error: null, stop: false };
  while (!held.run.stop) {
    const began = Date.now();
    try {
      await held.echo(`round ${held.run.rounds}`.padEnd(200, "."), timeoutMs);
    } catch (error) {
      held.run.error = error.message;
      return;
    }
    held.run.rounds++;
    held.run.longest_ms = Math.max(held.run.longest_ms, Date.now() - began);
    await new Promise((resolve) => setTimeout(resolve, intervalMs));
  }
}

function http(options, body) {
  return new Promise((resolve, reject) => {
    const req = request({ ...options, agent: false }, (res) => resolve(res));
    req.setTimeout(options.timeoutMs ?? 10_000, () => req.destroy(new Error("timeout")));
    req.on("error", reject);
    if (body === undefined) req.end();
    else writeContent(req, body).catch(reject);
  });
}

const methods = {
  ...serviceMethods,

  async serve({ name, http_port = 80, echo_port = 7 }) {
    const echo = createServer((socket) => {
      socket.on("error", () => socket.destroy());
      socket.setNoDelay(true).pipe(socket);
    });
    await Promise.all([
      listening(serveHttp(name), http_port, "::"),
      listening(echo, { port: echo_port, host: "::", backlog: 4096 }),
      serveUdp(echo_port, "udp4"),
      serveUdp(echo_port, "udp6"),
    ]);
  },

  open,

  /** Many connections at once; answers how many came up. */
  async openMany({ keys, ...rest }) {
    const results = await Promise.allSettled(keys.map((key) => open({ ...rest, key })));
    return { opened: results.filter((result) => result.status === "fulfilled").length };
  },

  async echo({ key, bytes = 100, timeoutMs = 3000 }) {
    await connection(key).echo("x".repeat(bytes), timeoutMs);
  },

  async echoAll({ timeoutMs = 3000 }) {
    const results = await Promise.allSettled(
      [...sockets.values()].map((held) => held.echo("y".repeat(64), timeoutMs)),
    );
    const failed = results.filter((result) => result.status === "rejected");
    return { alive: results.length - failed.length, errors: failed.map((result) => result.reason.message) };
  },

  async startEchoing({ key, intervalMs = 2, timeoutMs = 3000 }) {
    const held = connection(key);
    held.running = keepEchoing(held, intervalMs, timeoutMs);
  },

  async progress({ key }) {
    const { rounds, longest_ms, error } = connection(key).run;
    return { rounds, longest_ms, error };
  },

  async stopEchoing({ key }) {
    const held = connection(key);
    held.run.stop = true;
    await held.running;
    return { rounds: held.run.rounds, longest_ms: held.run.longest_ms, error: held.run.error };
  },

  async close({ key, reset = false }) {
    const { socket } = connection(key);
    const closed = new Promise((resolve) => socket.once("close", resolve));
    if (reset) socket.resetAndDestroy();
    else socket.end();
    await closed;
    sockets.delete(key);
  },

  /** One datagram to an echo server; the errors are those that ICMP made, such as ECONNREFUSED. */
  udp({ host, port, text, localPort, localAddress, timeoutMs = 1500 }) {
    const socket = createSocket(host.includes(":") ? "udp6" : "udp4");
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error("timeout")), timeoutMs);
      socket.on("error", (error) => reject(error));
      socket.on("message", (data) => {
        clearTimeout(timer);
        resolve({ text: data.toString(), local_port: socket.address().port });
      });
      socket.bind(localPort ?? 0, localAddress, () => {
        socket.connect(port, host, (error) => {
          if (error) reject(error);
          else socket.send(text);
        });
      });
    }).finally(() => socket.close());
  },

  async download({ host, port = 80, bytes, timeoutMs, localAddress }) {
    return hashOf(await http({ host, port, path: `/bytes/${bytes}`, timeoutMs, localAddress }));
  },

  async upload({ host, port = 80, bytes, timeoutMs, localAddress }) {
    const answer = await http({ host, port, method: "POST", path: "/", timeoutMs, localAddress }, bytes);
    let text = "";
    for await (const chunk of answer) text += chunk;
    return JSON.parse(text);
  },

  /** What an unbroken transfer of that many bytes hashes to. */
  async expected({ bytes }) {
    const hash = createHash("sha256");
    for (const block of content(bytes)) hash.update(block);
    return { bytes, sha256: hash.digest("hex") };
  },
};

const input = createInterface({ input: process.stdin });
async function answer(line) {
  const { id, method, args } = JSON.parse(line);
  let outcome;
  try {
    outcome = { result: (await methods[method](args)) ?? null };
  } catch (error) {
    outcome = { error: error.code ?? error.message };
  }
  process.stdout.write(`${JSON.stringify({ id, ...outcome })}\n`);
}

input.on("line", (line) => void answer(line));
input.on("close", () => process.exit(0));
