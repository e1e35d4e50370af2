// SPDX-License-Identifier: Apache-2.0
// A server whose health a test decides: answers with the status that stands in a file at the moment. With a key and a
// certificate it speaks TLS. Plain JavaScript, because it runs by itself on Node 20.
//
//   node statusServer.mjs PORT STATUS_FILE [KEY_FILE CERTIFICATE_FILE]

import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { createServer as createSecureServer } from "node:https";

const [port, statusFile, key, cert] = process.argv.slice(2);

function answer(_request, response) {
  response.writeHead(Number(readFileSync(statusFile, "utf8"))).end("as told\n");
}

const server =
  key === undefined
    ? createServer(answer)
    : createSecureServer({ key: readFileSync(key), cert: readFileSync(cert) }, answer);
server.listen(Number(port), "::", () => process.stdout.write("listening\n"));
