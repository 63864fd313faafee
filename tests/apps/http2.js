// HTTP/2 in plaintext with Node.js.
//
//	node http2.js serve PORT         answers each request with what it was, and a trailer
//	node http2.js call URL COUNT     COUNT requests at once on one connection; one JSON object
const http2 = require('node:http2');

function serve(port) {
  const server = http2.createServer();
  server.on('stream', (stream, headers) => {
    let received = 0;
    stream.on('data', (piece) => { received += piece.length; });
    stream.on('end', () => {
      stream.respond({':status': 200, 'content-type': 'application/json'}, {waitForTrailers: true});
      stream.on('wantTrailers', () => stream.sendTrailers({'x-received': String(received)}));
      stream.end(JSON.stringify({method: headers[':method'], path: headers[':path'],
        authority: headers[':authority'], certificate: headers['x-forwarded-client-cert'] || ''}));
    });
    stream.on('error', () => {});
  });
  server.listen(Number(port), '::');
  process.on('SIGTERM', () => process.exit(0));
}

function call(url, count) {
  const session = http2.connect(url);
  const told = {statuses: {}, trailers: {}, bodies: {}, failed: 0};
  let open = Number(count);
  const add = (where, what) => { where[what] = (where[what] || 0) + 1; };
  const done = () => {
    open -= 1;
    if (!open) { session.close(); console.log(JSON.stringify(told)); }
  };
  for (let number = 0; number < Number(count); number += 1) {
    const request = session.request({':method': 'POST', ':authority': new URL(url).host, ':path': `/calls/${number % 3}`});
    let body = '';
    request.on('response', (headers) => add(told.statuses, headers[':status']));
    request.on('trailers', (headers) => add(told.trailers, headers['x-received']));
    request.on('data', (piece) => { body += piece; });
    request.on('error', () => { told.failed += 1; });
    request.on('close', () => { add(told.bodies, body); done(); });
    request.end('x'.repeat(10000));
  }
  session.on('error', (error) => { console.error(String(error)); process.exit(1); });
}

const [what, ...rest] = process.argv.slice(2);
({serve, call})[what](...rest);
