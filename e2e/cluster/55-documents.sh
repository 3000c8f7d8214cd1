# shellcheck shell=bash
# Plaintext, tokens, Rego and namespaces' labels, by documents that kubectl applies; wrong ones are refused with their place
space=e2e-documents-$STAMP
callers=e2e-callers-$STAMP
keys=$OUT/documents
rm -rf "$keys" && mkdir -p "$keys"
# What a document says is so within this many seconds.
SOON=5

# echo: a stock nginx that answers what it was sent. caller: another one's tools, in a namespace of its own.
nginx_pod() { # NAMESPACE NAME COMMAND [MORE]
    cat <<M
apiVersion: v1
kind: ServiceAccount
metadata: {name: $2, namespace: $1}
---
apiVersion: v1
kind: Pod
metadata: {name: $2, namespace: $1, labels: {app: $2}}
spec:
  serviceAccountName: $2
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 2
  containers:
    - name: app
      image: docker.io/library/nginx:1.26
      command: $3
      securityContext: {runAsNonRoot: true, runAsUser: 1000, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
      ${4:-}
  volumes: [{name: conf, configMap: {name: echo, optional: true}}]
---
M
}
made() {
    local ns
    for ns in "$space" "$callers"; do
        k create ns "$ns" && k label ns "$ns" postern.dev/inject=enabled || return 1
    done
    {
        nginx_pod "$space" echo '[nginx, -e, /dev/stderr, -c, /etc/echo/nginx.conf]' 'ports: [{name: http, containerPort: 8080}]
      readinessProbe: {httpGet: {path: /ready, port: http}, periodSeconds: 1}
      volumeMounts: [{name: conf, mountPath: /etc/echo}]'
        nginx_pod "$callers" caller '[sleep, "3600"]'
        cat <<M
apiVersion: v1
kind: Service
metadata: {name: echo, namespace: $space}
spec: {selector: {app: echo}, ports: [{name: http, port: 80, targetPort: http}]}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: echo, namespace: $space}
data:
  nginx.conf: |
    daemon off;
    pid /tmp/nginx.pid;
    error_log /dev/stderr warn;
    events { worker_connections 64; }
    http {
      access_log off;
      client_body_temp_path /tmp/body;
      proxy_temp_path /tmp/proxy;
      fastcgi_temp_path /tmp/fastcgi;
      uwsgi_temp_path /tmp/uwsgi;
      scgi_temp_path /tmp/scgi;
      server {
        listen 8080;
        location / { return 200 "token=[\$http_authorization] user=[\$http_x_user]\n"; }
      }
    }
---
M
        # /open is for everybody, with or without an identity, but for what a PeerAuthentication says.
        allow open /open ''
        allow users /me 'from: [{source: {requestPrincipals: ["https://login.example/*"]}}]'
        allow asked /asked "from: [{source: {principals: [cluster.local/ns/$callers/sa/caller]}}]"
        allow labels /labels 'when: [{key: "source.namespace.labels[e2e-team]", values: [green]}]'
    } | k apply -f - && k -n "$space" wait --for=condition=Ready --timeout=60s pod/echo &&
        k -n "$callers" wait --for=condition=Ready --timeout=60s pod/caller
}
allow() { # NAME PATH MORE
    cat <<M
apiVersion: postern.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: $1, namespace: $space}
spec:
  selector: {matchLabels: {app: echo}}
  rules: [{to: [{operation: {paths: [$2]}}]${3:+, $3}}]
---
M
}
# get PATH [HEADER...]: what the app said to caller, or the status.
get() {
    local path=$1 fields=() field
    shift
    for field in "$@"; do fields+=(--header "$field"); done
    k -n "$callers" exec caller -c app -- wget -q -T 5 -O - "${fields[@]}" "http://echo.$space$path" 2>&1 |
        grep -v '^command terminated'
}
# A call from outside of the mesh, in plaintext.
stranger() { call shop-outside/deploy/stranger "http://$echo_ip:8080$1"; }

# soon TEXT PATTERN COMMAND...: within SOON seconds the command's output has the pattern; the line says when.
soon() { local text=$1 pattern=$2; shift 2; holds "$text" until_true $SOON says "$pattern" "$@"; }
says() { local pattern=$1 said; shift; said=$("$@" 2>&1); grep -qE -- "$pattern" <<<"$said" || { echo "$said"; return 1; }; }
document() { # KIND NAME SPEC [API-VERSION]
    k -n "$space" apply "${VALIDATE[@]}" -f - <<M
{"apiVersion": "${4:-postern.dev/v1alpha1}", "kind": "$1", "metadata": {"name": "$2"}, "spec": $3}
M
}
VALIDATE=()
applied() { local said; said=$(document "$@" 2>&1) || failed "$1 $2 is applied" "$said"; }
withdrawn() { local said; said=$(k -n "$space" delete "$1" "$2" 2>&1) || failed "$1 $2 is deleted" "$said"; }
ISTIO=security.istio.io/v1

holds "a stock nginx and its caller, in the mesh" made || exit 0
echo_ip=$(pod_ip "$space" echo)
allowed='^token=\[' reset='^failed: .*(reset|closed)' denied='403 Forbidden' unauthorized='401 Unauthorized'

# Where Istio is, its kind is; else it is lent.
lent=
istios=peerauthentications.security.istio.io
k get crd $istios >/dev/null 2>&1 || { k apply -f e2e/fixtures/istio-peerauthentications.yaml >/dev/null && lent=1; }
k wait --for=condition=Established --timeout=20s crd/$istios >/dev/null
echo_only='"selector": {"matchLabels": {"app": "echo"}}'
shows "a page for everybody is the mesh's alone: in it" "$allowed" get /open
shows "a page for everybody is the mesh's alone: plaintext is reset" "$reset" stranger /open
applied PeerAuthentication door "{$echo_only, \"mtls\": {\"mode\": \"PERMISSIVE\"}}" $ISTIO
soon "PERMISSIVE for one workload, Istio's own: plaintext is let in" '^allowed$' stranger /open
shows "it has no identity there, and gets no further than anybody may" '^denied$' stranger /asked
withdrawn $istios door
soon "and is reset when that is deleted" "$reset" stranger /open
applied PeerAuthentication door "{$echo_only, \"mtls\": {\"mode\": \"PERMISSIVE\"}}"
soon "PERMISSIVE for one workload, ours: plaintext is let in" '^allowed$' stranger /open
applied PeerAuthentication door "{$echo_only, \"mtls\": {\"mode\": \"STRICT\"}}"
soon "and is reset when it says STRICT" "$reset" stranger /open
withdrawn peerauthentications.postern.dev door

applied PeerAuthentication everybody '{"mtls": {"mode": "PERMISSIVE"}}' $ISTIO
named() { # by every replica
    view replicas | NAMED="PeerAuthentication $space/everybody is not in force at $space/echo" \
        json 'j["items"] != [] and all(__import__("os").environ["NAMED"] in "\n".join(r["conditions"]) for r in j["items"])'
}
holds "PERMISSIVE for a namespace in protect: control names it as not in force" until_true $SOON named
shows "it opens nothing" "$reset" stranger /open
withdrawn $istios everybody
[ -z "$lent" ] || k delete -f e2e/fixtures/istio-peerauthentications.yaml --wait=false >/dev/null

# An issuer of our own, and one that has its name and its key's, and not its key.
for who in issuer forger; do openssl genrsa -out "$keys/$who" 2048 2>/dev/null; done
base64url() { base64 -w0 | tr '+/' '-_' | tr -d =; }
jwks() {
    local modulus; modulus=$(openssl rsa -in "$keys/issuer" -noout -modulus | cut -d= -f2)
    printf '{"keys": [{"kty": "RSA", "kid": "e2e", "alg": "RS256", "e": "AQAB", "n": "%s"}]}' \
        "$(python3 -c 'import sys; sys.stdout.buffer.write(bytes.fromhex(sys.argv[1]))' "$modulus" | base64url)"
}
bearer() { # KEY SECONDS-OF-LIFE
    local text; text=$(printf '{"alg": "RS256", "kid": "e2e", "typ": "JWT"}' | base64url).$(
        printf '{"iss": "https://login.example", "aud": "echo", "sub": "alice", "iat": %d, "exp": %d}' \
            $(($(date +%s) - 300)) $(($(date +%s) + $2)) | base64url)
    printf 'Authorization: Bearer %s.%s' "$text" "$(printf %s "$text" | openssl dgst -sha256 -sign "$keys/$1" | base64url)"
}
good=$(bearer issuer 3600) forged=$(bearer forger 3600) expired=$(bearer issuer -120)
shows "a token that no document believes in opens nothing" "$denied" get /me "$good"
shows "and reaches the app as it was sent" '^token=\[Bearer .+\]' get /open "$good"
rule() {
    printf '{"issuer": "https://login.example", "audiences": ["echo"], "jwks": %s, %s}' \
        "$(jwks | json 'json.dumps(json.dumps(j))')" '"outputClaimToHeaders": [{"header": "x-user", "claim": "sub"}]'
}
applied RequestAuthentication login "{$echo_only, \"jwtRules\": [$(rule)]}"
soon "a good token is let in where its user is wanted; the app is told the user, not the token" \
    '^token=\[\] user=\[alice\]' get /me "$good"
shows "without a token: 401" "$unauthorized" get /me
shows "with a forged token: 401" "$unauthorized" get /me "$forged"
shows "with a token past its end: 401" "$unauthorized" get /me "$expired"
shows "a forged token is refused where none is needed, too" "$unauthorized" get /open "$forged"
shows "who the user is, nobody tells the app but the mesh" '^token=\[\] user=\[\]' get /open "x-user: alice"
withdrawn requestauthentications.postern.dev login
soon "a good token opens nothing any more when the document is deleted" "$denied" get /me "$good"

rego() {
    json 'json.dumps({"rego": {"modules": [{"name": "tickets.rego", "text": j}]}})' <<'M'
"package envoy.authz\ndefault allow := false\nallow if input.attributes.request.http.headers[\"x-ticket\"] == \"valid\"\n"
M
}
shows "what nobody is asked about is allowed" "$allowed" get /asked
custom='"action": "CUSTOM", "provider": {"name": "tickets"}, "rules": [{"to": [{"operation": {"paths": ["/asked"]}}]}]'
applied AuthorizationPolicy ask "{$echo_only, $custom}"
soon "CUSTOM denies while its Authorizer is not there" "$denied" get /asked "x-ticket: valid"
asks_nobody() {
    k -n "$space" get authorizationpolicies.postern.dev ask -o json |
        json 'any(c["reason"] == "NoProvider" for c in j["status"]["conditions"])'
}
holds "and its status says that it is not" until_true 10 asks_nobody
applied Authorizer tickets "$(rego)"
soon "CUSTOM allows what its Rego allows" "$allowed" get /asked "x-ticket: valid"
shows "and denies what it denies" "$denied" get /asked "x-ticket: stolen"
shows "and what is none of its business is as before" "$allowed" get /open
withdrawn authorizers.postern.dev tickets
soon "CUSTOM denies again when its Authorizer is deleted" "$denied" get /asked "x-ticket: valid"
withdrawn authorizationpolicies.postern.dev ask
soon "and asks nobody when it is deleted" "$allowed" get /asked

shows "a namespace without the label is denied" "$denied" get /labels
k label ns "$callers" e2e-team=green >/dev/null
soon "a namespace is labelled, and its pods are let in" "$allowed" get /labels
k label --overwrite ns "$callers" e2e-team=red >/dev/null
soon "another value is denied" "$denied" get /labels
k label --overwrite ns "$callers" e2e-team=green >/dev/null
soon "the value again is let in" "$allowed" get /labels
k label ns "$callers" e2e-team- >/dev/null
soon "the label is taken away, and its pods are denied" "$denied" get /labels

# wrong TEXT PATTERN KIND SPEC: refused past the API server's own look at fields, as from clients that have none.
VALIDATE=(--validate=false)
wrong() { refuses "$1" "$3/$space/wrong:$2" document "$3" wrong "$4"; }
wrong "PeerAuthentication: a wrong field, its place, and the nearest name" 'spec\.mtls\.mod: .*`mode`' \
    PeerAuthentication '{"mtls": {"mod": "STRICT"}}'
wrong "PeerAuthentication: ports without a selector, with their place" 'spec\.portLevelMtls' \
    PeerAuthentication '{"portLevelMtls": {"8080": {"mode": "PERMISSIVE"}}}'
wrong "RequestAuthentication: a wrong field, its place, and the nearest name" 'spec\.jwtRules\[0\]\.audience: .*`audiences`' \
    RequestAuthentication '{"jwtRules": [{"issuer": "https://login.example", "audience": ["echo"]}]}'
wrong "RequestAuthentication: keys that are none, with their place" 'spec\.jwtRules\[0\]\.jwks: is no key set' \
    RequestAuthentication '{"jwtRules": [{"issuer": "https://login.example", "audiences": ["echo"], "jwks": "{}"}]}'
wrong "Authorizer: a wrong field, its place, and the nearest name" 'spec\.extAuthz\.adress: .*`address`' \
    Authorizer '{"extAuthz": {"adress": "opa.policy:9191"}}'
wrong "Authorizer: Rego that cannot be read, with module and line" 'spec\.rego\.modules\[0\]\.text: .*`a\.rego`, line 2' \
    Authorizer '{"rego": {"modules": [{"name": "a.rego", "text": "package envoy.authz\nallow := ("}]}}'
wrong "AuthorizationPolicy: a wrong key, its place, and the nearest name" \
    'spec\.rules\[0\]\.when\[0\]\.key: .*`source\.namespace\.labels\[e2e-team\]`' \
    AuthorizationPolicy '{"rules": [{"when": [{"key": "source.namespace.label[e2e-team]", "values": ["green"]}]}]}'
ours=authorizationpolicies.postern.dev,requestauthentications.postern.dev,peerauthentications.postern.dev,authorizers.postern.dev
kept() { local said; said=$(k -n "$space" get "$ours" -o name) && [ -n "$said" ] && ! grep /wrong <<<"$said"; }
holds "nothing of what was refused is there" kept
k delete ns "$space" "$callers" --wait=false >/dev/null
