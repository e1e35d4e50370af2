// SPDX-License-Identifier: Apache-2.0
// What agents do besides where services are tested: servers that say which VM they are in, a proxy, and clients that
// ask them, one after the other or by the thousand. Plain JavaScript, because it runs by itself on Node 20.

import { createSocket } from "node:dgram";
import { connect, createServer } from "node:net";
import { Line } from "./line.mjs";

/** Each line, and each datagram, comes back with the server's name before it. */
function serveNamed(name) {
  return createServer((socket) => {
    socket.on("error", () => socket.destroy());
    socket.setNoDelay(true).setEncoding("latin1");
    let rest = "";
    socket.on("data", (text) => {
      const lines = (rest + text).split("\n");
      rest = lines.pop();
      for (const line of lines) socket.write(`${name} ${line}\n`, "latin1");
    });
  });
}

const listening = (server, ...where) =>
  new Promise((resolve, reject) => {
    server.once("error", reject);
    server.listen(...where, () => resolve());
  });

/** Bound to the address: else answers would come from another one of the VM's. */
function serveDatagrams(name, port, address) {
  const socket = createSocket({ type: address.includes(":") ? "udp6" : "udp4" });
  socket.on("message", (data, from) => socket.send(`${name} ${data}`, from.port, from.address));
  return new Promise((resolve, reject) => {
    socket.once("error", reject);
    socket.bind(port, address, () => resolve());
  });
}

/** A connection of its own for each of the client's. */
function proxyTo(host, port) {
  return createServer({ allowHalfOpen: true }, (socket) => {
    const far = connect({ host, port, allowHalfOpen: true });
    for (const [one, other] of [
      [socket, far],
      [far, socket],
    ]) {
      one.setNoDelay(true).pipe(other);
      one.on("error", () => other.destroy());
    }
  });
}

/** One line there and one back; what comes late, the next call gets. */
class Asker extends Line {
  constructor(options) {
    super(connect(options));
    this.socket.on("connect", () => {
      this.connected = true;
      this.wake();
    });
  }

  /** The server's name. */
  async ask(text, timeoutMs) {
    if (this.error) throw new Error(this.error);
    if (text !== null) this.socket.write(`${text}\n`, "latin1");
    await this.until(() => this.received.includes("\n"), timeoutMs);
    const end = this.received.indexOf("\n");
    const line = this.received.slice(0, end);
    this.received = this.received.slice(end + 1);
    const space = line.indexOf(" ");
    if (text !== null && line.slice(space + 1) !== text) throw new Error(`asked ${text}, got ${line}`);
    return line.slice(0, space);
  }

  async end() {
    this.socket.end();
    await this.until(() => this.error !== undefined, 5000).catch(() => {});
    if (this.error !== "closed") throw new Error(this.error ?? "not closed");
  }
}

const askers = new Map();
const churns = new Map();
let serial = 0;

function asker(key) {
  const found = askers.get(key);
  if (!found) throw new Error(`no connection ${key}`);
  return found;
}

async function oneAfterTheOther(churn, { hosts, timeoutMs, ...options }) {
  while (!churn.stop && (churn.limit === undefined || churn.begun < churn.limit)) {
    const number = churn.begun++;
    const one = new Asker({ ...options, host: hosts[number % hosts.length] });
    try {
      for (let round = 0; round < 2; round++) {
        const name = await one.ask(`line ${number} ${round}`, timeoutMs);
        if (round === 0) churn.answers[name] = (churn.answers[name] ?? 0) + 1;
      }
      await one.end();
      churn.connections++;
    } catch (error) {
      one.socket.destroy();
      churn.errors.push(`connection ${number}: ${error.message}`);
      if (churn.errors.length >= 20) churn.stop = true;
    }
  }
}

const report = ({ connections, answers, errors }) => ({ connections, answers, errors });

export const serviceMethods = {
  async serveNamed({ name, port, addresses }) {
    await Promise.all([
      listening(serveNamed(name), { port, host: "::", backlog: 4096 }),
      ...addresses.map((address) => serveDatagrams(name, port, address)),
    ]);
  },

  async proxy({ port, host, addresses, target_port }) {
    await Promise.all(addresses.map((address) => listening(proxyTo(host, target_port), port, address)));
  },

  async openAsking({ key, timeoutMs = 3000, ...options }) {
    const one = new Asker(options);
    try {
      await one.until(() => one.connected, timeoutMs);
    } catch (error) {
      one.socket.destroy();
      throw error;
    }
    askers.set(key, one);
    return { local_port: one.socket.localPort };
  },

  /** Null: nothing is sent, what is due is waited for. */
  async ask({ key, text = `text ${serial++}`, timeoutMs = 3000 }) {
    return await asker(key).ask(text, timeoutMs);
  },

  async endAsking({ key }) {
    const one = asker(key);
    askers.delete(key);
    await one.end();
  },

  /** New connections one after the other: the names of those that answered. */
  async askAnew({ times, timeoutMs = 3000, ...options }) {
    const names = [];
    for (let count = 0; count < times; count++) {
      const one = new Asker(options);
      try {
        names.push(await one.ask(`new ${count}`, timeoutMs));
        await one.end();
      } catch (error) {
        one.socket.destroy();
        throw error;
      }
    }
    return names;
  },

  /** Datagrams from one port: the names of those that answered. */
  async askByUdp({ host, port, texts, localPort, localAddress, timeoutMs = 3000 }) {
    const socket = createSocket(host.includes(":") ? "udp6" : "udp4");
    const names = [];
    try {
      await new Promise((resolve, reject) => {
        socket.once("error", reject);
        socket.bind(localPort ?? 0, localAddress, () => resolve());
      });
      for (const text of texts) {
        const answer = await new Promise((resolve, reject) => {
          const timer = setTimeout(() => reject(new Error("timeout")), timeoutMs);
          socket.once("error", reject);
          socket.once("message", (data) => {
            clearTimeout(timer);
            resolve(data.toString());
          });
          socket.send(text, port, host);
        });
        const space = answer.indexOf(" ");
        if (answer.slice(space + 1) !== text) throw new Error("another text came back");
        names.push(answer.slice(0, space));
      }
      return { names, local_port: socket.address().port };
    } finally {
      socket.close();
    }
  },

  /** Short connections, several at a time, until stopped or `limit` have begun. */
  async startChurn({ key, parallel, limit, timeoutMs = 20_000, ...options }) {
    const churn = { begun: 0, connections: 0, answers: {}, errors: [], stop: false, limit };
    const workers = Array.from({ length: parallel }, () =>
      oneAfterTheOther(churn, { ...options, timeoutMs }),
    );
    churn.done = Promise.all(workers);
    churns.set(key, churn);
  },

  async churn({ key }) {
    return report(churns.get(key));
  },

  async stopChurn({ key, finish = false }) {
    const churn = churns.get(key);
    churn.stop ||= !finish;
    await churn.done;
    churns.delete(key);
    return report(churn);
  },
};
