// A receiver of walhook's requests: verifies the signature, drops repeats, answers 204, and works then.
//
//     WEBHOOK_SECRET=whsec_... node receiver.mjs [PORT]
//
// Node's own modules alone. Prints the port, then one line of JSON for each event that is new. What to copy from it
// is `verify`; what stands around it is a toy: a real receiver stores the event and its id in one transaction before
// it answers.

import { createHmac, timingSafeEqual } from 'node:crypto';
import { createServer } from 'node:http';

const TOLERANCE_SECONDS = 5 * 60;
const BODY_MAX_BYTES = 2 << 20;
const SEEN_MAX = 100_000;
const KEY_MIN_BYTES = 24;

// whsec_ and base64, in either alphabet, is the key itself; any other text is taken as it stands. Throws where it is
// none: with an empty key anybody could sign.
function keyOf(secret) {
  const prefix = 'whsec_';
  if (!secret.startsWith(prefix)) return Buffer.from(secret);
  const text = secret.slice(prefix.length);
  // Node passes over what is not base64.
  if (!/^[A-Za-z0-9+/_-]*={0,2}$/.test(text)) throw new Error('what follows whsec_ is not base64');
  const key = Buffer.from(text, 'base64');
  if (key.length < KEY_MIN_BYTES) throw new Error(`it has fewer than ${KEY_MIN_BYTES} bytes`);
  return key;
}

// The event's id; throws where the request is not walhook's, or is an old one that somebody kept.
//
// Standard Webhooks: base64 of the HMAC-SHA256 of `id.timestamp.body`, behind `v1,`. While a secret is being rotated
// there are several signatures, separated by spaces, of which one has to match. `body` is the bytes as they came.
function verify(key, headers, body, nowSeconds) {
  const id = headers['webhook-id'] ?? '';
  const timestamp = headers['webhook-timestamp'] ?? '';
  if (!/^[0-9]{1,12}$/.test(timestamp)) throw new Error('no timestamp');
  if (Math.abs(nowSeconds - Number(timestamp)) > TOLERANCE_SECONDS) {
    throw new Error('too old, or a clock is wrong');
  }
  const expected = createHmac('sha256', key).update(`${id}.${timestamp}.`).update(body).digest('base64');
  const wanted = Buffer.from(`v1,${expected}`);
  for (const one of (headers['webhook-signature'] ?? '').split(' ')) {
    const given = Buffer.from(one);
    // In constant time: how long it takes tells nothing of the signature.
    if (given.length === wanted.length && timingSafeEqual(given, wanted)) return id;
  }
  throw new Error('no signature matches');
}

const secret = process.env.WEBHOOK_SECRET?.trim();
if (!secret) {
  console.error("set WEBHOOK_SECRET to the secret in the endpoint's row");
  process.exit(1);
}
let key;
try {
  key = keyOf(secret);
} catch (why) {
  console.error(`WEBHOOK_SECRET: ${why.message}`);
  process.exit(1);
}
const seen = new Set();

// What the event is for. It runs after the answer: a receiver that works first is one that times out.
function work(body) {
  try {
    console.log(JSON.stringify(JSON.parse(body.toString('utf8'))));
  } catch (why) {
    // One event, too deep say, must not end the work on all others.
    console.error(`no work on an event: ${why.message}`);
  }
}

const server = createServer((request, response) => {
  const pieces = [];
  let size = 0;
  request.on('data', (piece) => {
    size += piece.length;
    if (size <= BODY_MAX_BYTES) pieces.push(piece);
  });
  request.on('end', () => {
    if (request.method !== 'POST') return response.writeHead(405).end();
    if (size > BODY_MAX_BYTES) return response.writeHead(413).end();
    const body = Buffer.concat(pieces);
    let id;
    try {
      id = verify(key, request.headers, body, Date.now() / 1000);
    } catch (why) {
      console.error(`refused: ${why.message}`);
      return response.writeHead(401).end();
    }
    response.writeHead(204).end();
    // The same event may come twice: after a crash, or as a replay. Its id says so.
    if (seen.has(id)) return;
    seen.add(id);
    if (seen.size > SEEN_MAX) seen.delete(seen.values().next().value);
    setImmediate(work, body);
  });
});

server.listen(Number(process.argv[2] ?? 8080), '127.0.0.1', () => console.log(server.address().port));
