// SPDX-License-Identifier: Apache-2.0
// The program that is client and VM of the matrix: real sockets, driven by JSON lines on stdin ({id, method, args} ->
// {id, result} or {id, error}). It ends with its stdin. Plain JavaScript, because it runs by itself on Node 20.

import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { createSocket } from "node:dgram";
import { connect, createServer } from "node:net";
import { createInterface } from "node:readline";

const block = Buffer.alloc(1 << 20);
for (let at = 0, state = 0x9e3779b9; at < block.length; at += 4) {
  state = (Math.imul(state, 1664525) + 1013904223) | 0;
  block.writeInt32LE(state, at);
}
/** Bytes of which no two segments are the same. */
const content = (bytes) => block.subarray(0, bytes);
const hashOf = (...parts) =>
  parts.reduce((hash, part) => hash.update(part), createHash("sha256")).digest("hex");

/** Both send at once: the client its length, what it wants, and its bytes; the VM what is wanted, then the hash. */
function serveTcp(port) {
  const server = createServer({ allowHalfOpen: true }, (socket) => {
    const chunks = [];
    let asked;
    socket.on("error", () => socket.destroy());
    socket.on("data", (chunk) => {
      chunks.push(chunk);
      if (asked !== undefined || Buffer.concat(chunks).length < 4) return;
      asked = Buffer.concat(chunks).readUInt32BE(0);
      socket.write(content(asked));
    });
    socket.on("end", () => socket.end(hashOf(...chunks)));
  });
  return new Promise((resolve, reject) => server.once("error", reject).listen(port, "::", resolve));
}

/** Answers a number with so many bytes. */
function serveUdp(port, type) {
  const socket = createSocket({ type, ipv6Only: type === "udp6" });
  socket.on("message", (data, from) =>
    // A packet that is found too big for the path is lost, and asked for again.
    socket.send(content(Number(data)), from.port, from.address, () => {}),
  );
  return new Promise((resolve, reject) => socket.once("error", reject).bind(port, resolve));
}

const methods = {
  async serve({ port }) {
    await Promise.all([serveTcp(port), serveUdp(port, "udp4"), serveUdp(port, "udp6")]);
    return null;
  },

  /** `undefined` bytes: only whether a connection comes up. */
  tcp({ host, port, from, up, down, timeoutMs }) {
    const head = Buffer.alloc(4);
    head.writeUInt32BE(down);
    return new Promise((resolve, reject) => {
      const socket = connect({ host, port, localAddress: from });
      const timer = setTimeout(() => socket.destroy(new Error("timeout")), timeoutMs);
      const chunks = [];
      socket.on("error", reject);
      socket.on("connect", () => socket.end(Buffer.concat([head, content(up)])));
      socket.on("data", (chunk) => chunks.push(chunk));
      socket.on("end", () => {
        const got = Buffer.concat(chunks);
        const whole = hashOf(got.subarray(0, -64)) === hashOf(content(down));
        const arrived = got.subarray(-64).toString("latin1") === hashOf(head, content(up));
        if (whole && arrived) resolve(null);
        else reject(new Error(`${whole ? "up" : "down"}: the bytes differ, ${got.length} came`));
      });
      socket.on("close", () => {
        clearTimeout(timer);
        reject(new Error("closed"));
      });
    });
  },

  /** Asks for so many bytes, until they come or `tries` questions were not answered; tells which was. */
  udp({ host, port, from, bytes, tries = 1, timeoutMs }) {
    const socket = createSocket(host.includes(":") ? "udp6" : "udp4");
    let tried = 0;
    return new Promise((resolve, reject) => {
      let timer;
      const ask = () => {
        if (tried++ === tries) return reject(new Error("timeout"));
        timer = setTimeout(ask, timeoutMs);
        socket.send(String(bytes), port, host, (error) => error && reject(error));
      };
      socket.on("error", reject);
      socket.on("message", (data) => {
        clearTimeout(timer);
        if (data.equals(content(bytes))) resolve({ tried });
        else reject(new Error(`the bytes differ, ${data.length} came`));
      });
      socket.bind(0, from, ask);
    }).finally(() => socket.close());
  },

  ping({ host, from, timeoutMs }) {
    const argv = ["-n", "-c", "1", "-W", String(timeoutMs / 1000), "-I", from, host];
    return new Promise((resolve, reject) => {
      const child = spawn("ping", argv, { stdio: "ignore" });
      child.on("error", reject);
      child.on("close", (code) =>
        code === 0 ? resolve(null) : reject(new Error(`ping ended with ${code}`)),
      );
    });
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
