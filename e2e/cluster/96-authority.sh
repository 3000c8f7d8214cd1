# shellcheck shell=bash
# The CA's state is sealed; its issuer, root and key-encryption key, and then who makes issuers, are replaced: no call fails
files=$OUT/authority
rm -rf "$files" && mkdir -p "$files"
# Twice that a second and more, of three kinds: two cores do all else as well.
RATE=100
SETTLE=1

# Leaves that live for seconds, so that the root before need not be believed for longer: no value of the chart's.
cat >"$files/short-lived" <<'S'
#!/bin/sh
exec sed 's/^\( *\)- --svid-life=.*/\1- --svid-life=40s\n\1- --insecure-short-life/'
S
chmod +x "$files/short-lived"
values() { helm upgrade postern "$CHART" -n $SYSTEM --reuse-values --set "$1" --post-renderer "$files/short-lived" --wait --timeout 3m >/dev/null; }

secret() { # NAME FILE...: of these files
    local name=$1
    shift
    k -n $SYSTEM create secret generic "$name" "${@/#/--from-file=}" --dry-run=client -o yaml | k apply -f - >/dev/null
}
# What the CA's Secret says: its private keys in clear, one a line; or by which keys its records are sealed.
state() { # clear|sealed
    k -n $SYSTEM get secret postern-ca -o json | WHAT=$1 python3 -c 'import base64, json, os, re, sys
records = [base64.b64decode(value) for value in json.load(sys.stdin)["data"].values()]
if os.environ["WHAT"] == "clear":
    found = {key.decode() for record in records for key in re.findall(rb"_key\": *\"([A-Za-z0-9+/=]{60,})\"", record)}
else:
    head, rest = zip(*(record.split(b"\n", 1) for record in records))
    assert all(line.startswith(b"postern-ca-store 2 ") for line in head), head
    found = {json.loads(envelope)["kek"]["keyId"] for envelope in rest}
sys.stdout.writelines(one + "\n" for one in sorted(found))'
}

# The certificates that a pod shows whoever calls it, its own first.
shown() { timeout 5 openssl s_client -connect "$1:15999" -showcerts </dev/null 2>/dev/null | sed -n '/BEGIN CERTIFICATE/,/END CERTIFICATE/p'; }
in_the_mesh() {
    k -n shop get pods -o json | json '" ".join(p["status"]["podIP"] for p in j["items"] if p["status"]["phase"] == "Running" and not p["metadata"].get("deletionTimestamp") and any(c["name"] == "postern-proxy" for c in p["spec"].get("initContainers", [])))'
}
all_under() { # CERTIFICATE [OPTION...]: every pod's certificate is under it
    local ip count=0 said
    for ip in $(in_the_mesh); do
        shown "$ip" >"$files/shown"
        said=$(openssl verify -CAfile "$1" "${@:2}" -untrusted "$files/shown" "$files/shown" 2>&1) || { echo "$ip: $said"; return 1; }
        count=$((count + 1))
    done
    [ "$count" -ge 5 ] && echo "$count pods"
}
on_ca() { k -n $SYSTEM exec "$(ca_replicas | tail -1)" -- /postern-ca "$@" --admin-socket /run/postern/admin.sock; }
at_stage() {
    local pod pods
    pods=$(ca_replicas) && [ -n "$pods" ] || return 1
    for pod in $pods; do [ "$(ca_metric "$pod" "root_replacement{stage=\"$1\"}")" = 1 ] || { on_ca status | grep rotation; return 1; }; done
}
roots() { k -n $SYSTEM get configmap postern-ca-roots -o jsonpath='{.data.roots\.pem}'; }
joins() { caller shop "$1" web && [ "$(call "shop/$1" http://cart.shop/items --retry-for 10s)" = allowed ] && k -n shop delete pod "$1" --wait=false >/dev/null; }

on_lab || failed "certificates" "only on the lab: pods are called from this machine"
load_begins || failed "load" "its pods did not come up"

state clear >"$files/clear"
for key in first second; do head -c 32 /dev/urandom | base64 >"$files/$key"; done
nothing_in_clear() {
    local pod
    { k -n $SYSTEM get secret postern-ca -o json | json '"\n".join(__import__("base64").b64decode(v).decode() for v in j["data"].values())'
      for pod in $(ca_replicas); do k -n $SYSTEM logs "$pod"; k get --raw "/api/v1/namespaces/$SYSTEM/pods/$pod:15020/proxy/metrics"; done; } >"$files/searched" 2>&1
    [ -s "$files/clear" ] || { echo "no key was in clear before, so that this shows nothing"; return 1; }
    ! grep -qFf "$files/clear" "$files/searched" || { echo "a key of before is there in clear"; return 1; }
    [ "$(state sealed | wc -l)" = 1 ]
}
sealed() {
    cp "$files/first" "$files/kek" && secret e2e-kek "$files/kek" || return 1
    values ca.kek.secretName=e2e-kek,ca.kek.migrate=true,ca.rootAcknowledgeTimeout=20s,ca.rootRetireAfter=60s || return 1
    until_true 20 nothing_in_clear
}
flawless "the CA's state is sealed, and holds no key in clear" sealed

roots >"$files/old.pem"
published() { on_ca rotate >/dev/null && on_ca rotate --root >/dev/null && until_true 20 at_stage published && joins e2e-joined; }
flawless "another issuer signs, another root is published, and a pod that comes meanwhile is served" published
activated() {
    until_true 60 at_stage activated || return 1
    roots | OLD=$files/old.pem python3 -c 'import os, re, sys
old = open(os.environ["OLD"]).read()
print("\n".join(one for one in re.findall("-----BEGIN.*?END CERTIFICATE-----", sys.stdin.read(), re.S) if one not in old))' >"$files/new.pem"
    until_true 60 all_under "$files/new.pem"
}
flawless "the new root signs, and every pod has a certificate under it" activated
sealed_anew() { local by; by=$(state sealed); [ "$by" != "$1" ] && [ "$(wc -l <<<"$by")" = 1 ] || { echo "by $by"; return 1; }; }
rewrapped() {
    local before; before=$(state sealed)
    cat "$files/second" "$files/first" >"$files/kek" && secret e2e-kek "$files/kek" && mounts_are_read ca || return 1
    until_true 60 sealed_anew "$before"
}
flawless "another key-encryption key seals the state" rewrapped
alone() {
    roots >"$files/believed.pem"
    [ "$(grep -c BEGIN "$files/believed.pem")" = 1 ] && all_under "$files/believed.pem"
}
retired() { until_true 120 at_stage retired && until_true 30 alone; }
flawless "the old root is retired, and nobody is left under it" retired

# Who makes issuers from here on is not the CA.
openssl_config='[root]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[issuer]
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectAltName = URI:spiffe://cluster.local
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid:always'
make() { openssl "$@" 2>"$files/openssl.log" || { cat "$files/openssl.log"; return 1; }; }
issue() { # NAME: an issuer under the root that is brought
    mkdir -p "$files/$1" && cp "$files/root.pem" "$files/$1/ca.crt" || return 1
    make req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$files/$1/tls.key" -subj "/CN=e2e issuer $1" -out "$files/$1.csr" &&
        make x509 -req -in "$files/$1.csr" -CA "$files/root.pem" -CAkey "$files/root.key" -days 30 -out "$files/$1/tls.crt" \
            -extensions issuer -extfile <(echo "$openssl_config") && secret e2e-issuer "$files/$1"
}
brought() {
    make req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$files/root.key" -subj "/CN=e2e root" -days 60 -out "$files/root.pem" \
        -extensions root -config <(echo "[req]
distinguished_name = req
$openssl_config") && issue one || return 1
    k -n $SYSTEM patch secret postern-ca --type=json -p '[{"op": "remove", "path": "/data/root.json"}]' >/dev/null || return 1
    # The first key-encryption key is of no use any more, and nothing is in clear.
    cp "$files/second" "$files/kek" && secret e2e-kek "$files/kek" || return 1
    values ca.kek.migrate=false,ca.broughtIssuer.secretName=e2e-issuer || return 1
    until_true 90 all_under "$files/root.pem"
}
flawless "an issuer from a Secret follows, after a restart with the new key alone; every pod is under its root" brought
swapped() { issue two && mounts_are_read ca && until_true 90 all_under "$files/two/tls.crt" -partial_chain; }
flawless "the Secret is replaced, and every pod's certificate is signed by the issuer in it" swapped
load_ends
holds "a new pod is served" until_true 30 joins e2e-late
