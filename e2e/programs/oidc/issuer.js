// A certified OpenID Connect issuer (oidc-provider) that logs in whom it is told, with the factors that the client asks for.
//
//   node issuer.js ADDRESS PORT
//
//   /...                    the issuer, http://ADDRESS:PORT
//   /login?acr=&resource=   drives a whole authorization code flow (PKCE, login, consent) and answers with the access token
//   /rotate                 signs with a new key from now on; the old one stays published
//   /withdraw               takes all keys but the newest out of the set
//   /public-key             the newest
import { createHash, randomBytes, generateKeyPairSync, randomUUID } from 'node:crypto';
import { createServer } from 'node:http';
import { Provider } from 'oidc-provider';

const [address, port] = process.argv.slice(2);
const issuer = `http://${address}:${port}`;
const client = { client_id: 'web', redirect_uris: ['https://web.test/cb'], token_endpoint_auth_method: 'none',
  grant_types: ['authorization_code'], response_types: ['code'], application_type: 'web' };
// What a login was like, by what was asked for.
const factors = { silver: ['pwd'], gold: ['pwd', 'otp'] };

function newKey() {
  const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  return { ...privateKey.export({ format: 'jwk' }), kid: randomUUID(), use: 'sig', alg: 'ES256' };
}

let keys = [newKey()];
let serve;

function start() {
  const provider = new Provider(issuer, {
    clients: [client],
    jwks: { keys },
    acrValues: Object.keys(factors),
    pkce: { required: () => true },
    clientDefaults: { id_token_signed_response_alg: 'ES256' },
    findAccount: (_, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
    interactions: { url: (_, interaction) => `/interaction/${interaction.uid}` },
    cookies: { keys: [randomBytes(16).toString('hex')] },
    extraTokenClaims(ctx) {
      const { acr, amr, authTime } = ctx.oidc.entities.AuthorizationCode ?? {};
      return { acr, amr, auth_time: authTime };
    },
    features: {
      devInteractions: { enabled: false },
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo: (_, resource) => ({
          scope: 'read write', audience: resource, accessTokenFormat: 'jwt', accessTokenTTL: 600,
          jwt: { sign: { alg: 'ES256' } },
        }),
        useGrantedResource: () => true,
      },
    },
  });
  const callback = provider.callback();
  serve = async (request, response) => {
    if (!request.url.startsWith('/interaction/')) return callback(request, response);
    const { params } = await provider.interactionDetails(request, response);
    const acr = params.acr_values ?? 'silver';
    const grant = new provider.Grant({ accountId: 'alice', clientId: params.client_id });
    grant.addOIDCScope('openid');
    grant.addResourceScope(params.resource, params.scope);
    const login = { accountId: 'alice', acr, amr: factors[acr], remember: false };
    await provider.interactionFinished(request, response, { login, consent: { grantId: await grant.save() } });
  };
}

// A browser and a client in one.
async function token(acr, resource, scope) {
  const jar = new Map();
  const verifier = randomBytes(32).toString('base64url');
  const query = new URLSearchParams({
    client_id: client.client_id, redirect_uri: client.redirect_uris[0], response_type: 'code', acr_values: acr, resource,
    scope: `openid ${scope}`, code_challenge_method: 'S256', state: 'x',
    code_challenge: createHash('sha256').update(verifier).digest('base64url'),
  });
  let location = `${issuer}/auth?${query}`;
  for (let step = 0; step < 10 && location.startsWith(issuer); step += 1) {
    const cookie = [...jar].map(([name, value]) => `${name}=${value}`).join('; ');
    const answer = await fetch(location, { redirect: 'manual', headers: { cookie } });
    for (const line of answer.headers.getSetCookie()) {
      const [name, value] = line.split(';')[0].split(/=(.*)/s);
      jar.set(name, value);
    }
    if (!answer.headers.has('location')) throw new Error(`${answer.status} ${await answer.text()}`);
    location = new URL(answer.headers.get('location'), location).href;
  }
  const code = new URL(location).searchParams.get('code');
  if (!code) throw new Error(`no code: ${location}`);
  const body = new URLSearchParams({ grant_type: 'authorization_code', code, client_id: client.client_id, resource,
    redirect_uri: client.redirect_uris[0], code_verifier: verifier });
  const answer = await fetch(`${issuer}/token`, { method: 'POST', body });
  const issued = await answer.json();
  if (!issued.access_token) throw new Error(JSON.stringify(issued));
  return issued.access_token;
}

start();
createServer(async (request, response) => {
  try {
    const url = new URL(request.url, issuer);
    if (url.pathname === '/login') {
      const { acr = 'silver', resource = 'https://cart.test', scope = 'read' } = Object.fromEntries(url.searchParams);
      return response.end(await token(acr, resource, scope));
    }
    if (url.pathname === '/rotate' || url.pathname === '/withdraw') {
      keys = url.pathname === '/rotate' ? [newKey(), ...keys] : keys.slice(0, 1);
      start();
      return response.end('done\n');
    }
    if (url.pathname === '/public-key') {
      const { kty, crv, x, y, kid } = keys[0];
      return response.end(JSON.stringify({ kty, crv, x, y, kid }));
    }
    await serve(request, response);
  } catch (error) {
    response.statusCode = 500;
    response.end(`${error.stack}\n`);
  }
}).listen(Number(port), '0.0.0.0', () => console.log(`listening ${issuer}`));
