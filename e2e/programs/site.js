// A site in plain Node, as tutorials write one: the URL is parsed and decoded, dots are resolved, a file is sent; and a page
// that depends on a field. Usage: node site.js PORT DIRECTORY MARKER
const fs = require('node:fs');
const http = require('node:http');
const path = require('node:path');

const [port, root, marker] = process.argv.slice(2);

http.createServer((request, response) => {
  const answer = (status, text) => {
    response.writeHead(status, { 'content-type': 'text/plain' });
    response.end(text);
  };
  let name;
  try {
    const url = new URL(request.url, 'http://site/');
    name = path.posix.normalize(decodeURIComponent(url.pathname));
  } catch {
    return answer(400, 'what?\n');
  }
  if (name === '/debug') {
    const debug = (request.headers['x-debug'] ?? '').split(',').some((part) => part.trim() === 'on');
    return answer(200, debug ? `${marker}\n` : 'nothing to see\n');
  }
  let file = path.join(root, name);
  try {
    if (fs.statSync(file).isDirectory()) file = path.join(file, 'index.html');
    answer(200, fs.readFileSync(file));
  } catch {
    answer(404, 'no such page\n');
  }
}).listen(Number(port), '127.0.0.1', () => console.log('serving'));
