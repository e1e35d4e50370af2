// SPDX-License-Identifier: Apache-2.0
// One HTTP request, and whether its answer is a good one. Redirects are answers too: they are not followed.

import { readFileSync, statSync } from "node:fs";
import { Agent, type ClientRequest, type IncomingMessage, type RequestOptions, request } from "node:http";
import { Agent as SecureAgent, request as secureRequest } from "node:https";
import { isIP } from "node:net";
import { checkServerIdentity, createSecureContext, type TLSSocket } from "node:tls";
import { failure, onAbort, type ProbeOutcome, STOPPED } from "./probes.ts";

/** Of the body. What is longer is not worth waiting for. */
const DRAIN_BYTES = 64 * 1024;
const HTTP_PORT = 80;
const HTTPS_PORT = 443;

export interface HttpQuestion {
  secure: boolean;
  /** An address, with the interface of one that is link-local: `fe80::1%br0`. */
  host: string;
  /** The host's own address that it goes out from. */
  localAddress: string;
  port: number;
  path: string;
  /** What it is asked for, perhaps with a port, instead of its address. */
  name: string | null;
  /** The statuses that are good, first and last. */
  statuses: readonly [number, number];
  /** Whether the certificate must be good. */
  verify: boolean;
  timeoutMs: number;
}

// A connection is made anew for each request: that it can be is what is asked.
const PLAIN = new Agent({ keepAlive: false });
const secureAgent = (ca?: Buffer | []) =>
  new SecureAgent({
    keepAlive: false,
    maxCachedSessions: 0,
    secureContext: createSecureContext(ca ? { ca } : {}),
  });

/** Never rejects. `seconds` of an outcome: until the status was there. `closed`: the answer is of no use any longer. */
export function askHttp(question: HttpQuestion, closed: AbortSignal): Promise<ProbeOutcome> {
  const started = performance.now();
  const seconds = (): number => (performance.now() - started) / 1000;
  return new Promise((resolve) => {
    let outcome: ProbeOutcome | undefined;
    let asked: ClientRequest | undefined;
    const end = (unless: () => ProbeOutcome): void => {
      clearTimeout(timer);
      forget();
      asked?.destroy();
      resolve(outcome ?? unless());
    };
    const forget = onAbort(closed, () => end(() => STOPPED));
    const timer = setTimeout(() => {
      end(() => ({ kind: "failed", seconds: seconds(), why: "no answer in time" }));
    }, question.timeoutMs);
    const cutOff = (): ProbeOutcome => ({ kind: "failed", seconds: seconds(), why: "it hung up" });
    try {
      asked = send(question);
    } catch (error) {
      end(() => failure(error as Error, seconds()));
      return;
    }
    asked.on("response", (response) => {
      outcome = judged(response, question.statuses, seconds());
      drain(response, () => end(cutOff));
    });
    asked.on("upgrade", (response: IncomingMessage) => {
      outcome = judged(response, question.statuses, seconds());
      end(cutOff);
    });
    asked.on("error", (error: NodeJS.ErrnoException) => {
      const socket = asked?.socket as Partial<TLSSocket> | null | undefined;
      end(() => refusal(error, Boolean(socket?.authorizationError), seconds()));
    });
    asked.on("close", () => end(cutOff));
    asked.end();
  });
}

function send(question: HttpQuestion): ClientRequest {
  const { host, localAddress, port, path, name, secure } = question;
  const options: RequestOptions = {
    host,
    localAddress,
    port,
    path,
    method: "GET",
    headers: { Host: name ?? hostHeader(question), "User-Agent": "lasthop", Accept: "*/*" },
  };
  if (!secure) return request({ ...options, agent: PLAIN });
  const expected = nameOf(name) ?? withoutScope(host);
  return secureRequest({
    ...options,
    agent: question.verify ? trusting() : trustingNobody(),
    // A server name is never an address. (RFC 6066)
    servername: isIP(expected) === 0 ? expected : "",
    rejectUnauthorized: question.verify,
    checkServerIdentity: (_, certificate) => checkServerIdentity(expected, certificate),
  });
}

function drain(response: IncomingMessage, end: () => void): void {
  let bytes = 0;
  response.on("data", (chunk: Buffer) => {
    bytes += chunk.length;
    if (bytes > DRAIN_BYTES) end();
  });
  response.on("end", end);
  response.on("error", end);
}

function judged(
  { statusCode = 0 }: IncomingMessage,
  [first, last]: HttpQuestion["statuses"],
  seconds: number,
): ProbeOutcome {
  if (statusCode >= first && statusCode <= last) return { kind: "ok", seconds };
  return { kind: "failed", seconds, why: `status ${statusCode}` };
}

function refusal(error: NodeJS.ErrnoException, certificate: boolean, seconds: number): ProbeOutcome {
  const failed = (why: string): ProbeOutcome => ({ kind: "failed", seconds, why });
  const code = error.code ?? "";
  if (certificate) return failed(`its certificate is refused: ${error.message}`);
  if (code.startsWith("HPE_")) return failed("its answer is not HTTP");
  if (code === "EPROTO" || code.startsWith("ERR_SSL_")) return failed("its answer is not TLS");
  return failure(error, seconds);
}

function hostHeader({ host, port, secure }: HttpQuestion): string {
  const address = withoutScope(host);
  const text = isIP(address) === 6 ? `[${address}]` : address;
  return port === (secure ? HTTPS_PORT : HTTP_PORT) ? text : `${text}:${port}`;
}

function nameOf(name: string | null): string | null {
  return name?.replace(/:\d+$/, "") ?? null;
}

function withoutScope(host: string): string {
  return host.replace(/%.*$/, "");
}

// Whom we trust

/** Where systems keep the certificates of those that they trust. */
const BUNDLES = [
  "/etc/ssl/certs/ca-certificates.crt",
  "/etc/pki/tls/certs/ca-bundle.crt",
  "/etc/ssl/ca-bundle.pem",
  "/etc/ssl/cert.pem",
];

let nobody: SecureAgent | undefined;
let trusted: { key: string; agent: SecureAgent } | undefined;

function trustingNobody(): SecureAgent {
  nobody ??= secureAgent([]);
  return nobody;
}

/** As the system does, or SSL_CERT_FILE says; read anew when the file is another. Without any, as Node.js does. */
function trusting(): SecureAgent {
  const { path, key } = bundle();
  if (trusted?.key === key) return trusted.agent;
  const agent = path === null ? secureAgent() : secureAgent(readFileSync(path));
  trusted = { key, agent };
  return agent;
}

function bundle(): { path: string | null; key: string } {
  const { SSL_CERT_FILE } = process.env;
  for (const path of SSL_CERT_FILE ? [SSL_CERT_FILE] : BUNDLES) {
    const stat = statSync(path, { throwIfNoEntry: false });
    if (stat) return { path, key: `${path} ${stat.ino} ${stat.size} ${stat.mtimeMs}` };
  }
  return { path: null, key: "" };
}
