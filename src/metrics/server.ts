// SPDX-License-Identifier: Apache-2.0
// GET /metrics, and nothing else.

import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { promisify } from "node:util";
import { constants, gzip } from "node:zlib";
import { Registry } from "prom-client";
import { LasthopError } from "../errors.ts";
import type { Logger } from "../log.ts";
import { formatListen, parseListen } from "./listen.ts";

const PATH = "/metrics";
/** Scrapes that are under way at once; who comes beyond that is told to come again. */
const SCRAPES_MAX = 8;
const CONNECTIONS_MAX = 64;
/** A request has no body and comes in one packet. */
const REQUEST_TIMEOUT_MS = 5_000;
/** Prometheus keeps its connection from scrape to scrape, by default a minute. */
const KEEP_ALIVE_MS = 90_000;
/** Nothing was sent or taken for so long: whoever it is has gone. */
const STALLED_MS = 15_000;
/** What is being sent when the server closes gets so long. */
const CLOSE_GRACE_MS = 1_000;
const IDLE_CHECK_MS = 20;

const compress = promisify(gzip);

export interface MetricsServerOptions {
  /** As `metrics.listen` in the configuration: "127.0.0.1:9469". */
  listen: string;
  /** The text of a scrape. */
  render(): Promise<string>;
  /** Is told when scrapes begin to fail, and when they work again. */
  log: Logger;
}

export interface MetricsServer {
  /** Where it listens: "127.0.0.1:9469". */
  address: string;
  close(): Promise<void>;
}

/** Throws E_LISTEN if the address is wrong, not of this host, or taken. */
export async function startMetricsServer(options: MetricsServerOptions): Promise<MetricsServer> {
  const { host, port } = parseListen(options.listen);
  const scrapes = new Scrapes(options);
  const server = createServer(
    {
      headersTimeout: REQUEST_TIMEOUT_MS,
      requestTimeout: REQUEST_TIMEOUT_MS,
      keepAliveTimeout: KEEP_ALIVE_MS,
      connectionsCheckingInterval: 1_000,
      maxHeaderSize: 8192,
    },
    (request, response) => void scrapes.answer(request, response),
  );
  server.maxConnections = CONNECTIONS_MAX;
  server.setTimeout(STALLED_MS);
  await listen(server, options.listen, { ...(host === undefined ? {} : { host }), port });
  server.on("error", (error) => options.log.error("the metrics endpoint failed", { reason: error.message }));
  const { address, port: bound } = server.address() as AddressInfo;
  return { address: formatListen(address, bound), close: () => close(server) };
}

function listen(server: Server, text: string, where: { host?: string; port: number }): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once("error", (cause) => reject(listenError(text, cause)));
    server.listen(where, () => {
      server.removeAllListeners("error");
      resolve();
    });
  });
}

function listenError(text: string, cause: NodeJS.ErrnoException): LasthopError {
  const why: Record<string, string> = {
    EADDRINUSE: "another program has that port",
    EADDRNOTAVAIL: "it is not an address of this host",
    EAFNOSUPPORT: "this host has no addresses of that family",
    EACCES: "ports below 1024 need CAP_NET_BIND_SERVICE",
    ENOTFOUND: "the name has no address",
  };
  const reason = why[cause.code ?? ""] ?? cause.message;
  return new LasthopError("E_LISTEN", `cannot listen on ${text} for metrics: ${reason}`, {
    cause,
    hint: "Change metrics.listen in the configuration, or set metrics.enabled to false.",
  });
}

function close(server: Server): Promise<void> {
  return new Promise((resolve, reject) => {
    const grace = setTimeout(() => server.closeAllConnections(), CLOSE_GRACE_MS);
    // Those that are idle end at once, and the others when they have their answer.
    const idle = setInterval(() => server.closeIdleConnections(), IDLE_CHECK_MS);
    server.close((error) => {
      clearTimeout(grace);
      clearInterval(idle);
      if (error) reject(error);
      else resolve();
    });
  });
}

class Scrapes {
  readonly #options: MetricsServerOptions;
  #underWay = 0;
  /** Those who come while one is being made get the same. */
  #rendering: Promise<string> | undefined;
  #failing = false;

  constructor(options: MetricsServerOptions) {
    this.#options = options;
  }

  async answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const [path] = (request.url ?? "").split("?");
    if (path !== PATH) return refuse(response, 404, `there is only ${PATH} here`);
    if (request.method !== "GET" && request.method !== "HEAD") {
      response.setHeader("Allow", "GET, HEAD");
      return refuse(response, 405, "metrics can only be read");
    }
    if (this.#underWay >= SCRAPES_MAX) {
      response.setHeader("Retry-After", "1");
      return refuse(response, 503, "too many scrapes at once");
    }
    this.#underWay++;
    response.once("close", () => this.#underWay--);
    await this.#scrape(request, response);
  }

  async #scrape(request: IncomingMessage, response: ServerResponse): Promise<void> {
    let body: Buffer;
    try {
      const text = Buffer.from(await this.#render());
      const small = acceptsGzip(request);
      if (small) response.setHeader("Content-Encoding", "gzip");
      body = small ? await compress(text, { level: constants.Z_BEST_SPEED }) : text;
    } catch (error) {
      this.#failed(error);
      response.removeHeader("Content-Encoding");
      return refuse(response, 500, "the metrics could not be read; the log says why");
    }
    this.#worked();
    response.setHeader("Content-Type", Registry.PROMETHEUS_CONTENT_TYPE);
    response.setHeader("Vary", "Accept-Encoding");
    response.setHeader("Content-Length", body.length);
    response.end(request.method === "HEAD" ? undefined : body);
  }

  #render(): Promise<string> {
    this.#rendering ??= this.#options.render().finally(() => {
      this.#rendering = undefined;
    });
    return this.#rendering;
  }

  #failed(error: unknown): void {
    if (!this.#failing) {
      const reason = error instanceof Error ? error.message : String(error);
      this.#options.log.error("metrics cannot be read", { reason });
    }
    this.#failing = true;
  }

  #worked(): void {
    if (this.#failing) this.#options.log.info("metrics can be read again");
    this.#failing = false;
  }
}

function acceptsGzip(request: IncomingMessage): boolean {
  const offers = String(request.headers["accept-encoding"] ?? "").split(",");
  return offers.some((offer) => {
    const [coding = "", ...parameters] = offer.split(";").map((part) => part.trim().toLowerCase());
    return coding === "gzip" && !parameters.some((parameter) => /^q=0(\.0*)?$/.test(parameter));
  });
}

function refuse(response: ServerResponse, status: number, text: string): void {
  response.writeHead(status, { "Content-Type": "text/plain; charset=utf-8" });
  response.end(`${text}\n`);
}
