# shellcheck shell=bash
# The operators' commands as a user with a certificate, one with a token, and one who may not
users=$OUT/users
rm -rf "$users" && mkdir -p "$users"
k create ns e2e-users-$STAMP --dry-run=client -o yaml | k apply -f - >/dev/null
cluster_config() { k config view --minify --flatten -o json | json '{"server": j["clusters"][0]["cluster"]["server"], "ca": j["clusters"][0]["cluster"].get("certificate-authority-data", "")}'; }
config() { # FILE USER-JSON
    cluster_config | FILE_USER=$2 json '{"apiVersion": "v1", "kind": "Config", "current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u", "namespace": "shop"}}], "clusters": [{"name": "c", "cluster": {"server": j["server"], "certificate-authority-data": j["ca"]}}], "users": [{"name": "u", "user": json.loads(__import__("os").environ["FILE_USER"])}]}' >"$1"
}
# A user with a certificate, signed by the cluster itself.
certificate_user() {
    openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$users/jane.key" -subj /CN=e2e-jane -out "$users/jane.csr" 2>/dev/null || return 1
    k delete csr e2e-jane --ignore-not-found >/dev/null
    k create -f - >/dev/null <<Y || return 1
{"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": "e2e-jane"},
 "spec": {"signerName": "kubernetes.io/kube-apiserver-client", "expirationSeconds": 3600, "usages": ["client auth"], "request": "$(base64 -w0 <"$users/jane.csr")"}}
Y
    k certificate approve e2e-jane >/dev/null
    until_true 20 bash -c "kubectl get csr e2e-jane -o jsonpath='{.status.certificate}' | grep ." >"$users/jane.b64" || return 1
    config "$users/jane" "{\"client-certificate-data\": \"$(cat "$users/jane.b64")\", \"client-key-data\": \"$(base64 -w0 <"$users/jane.key")\"}"
    k create clusterrolebinding e2e-jane --clusterrole=view --user=e2e-jane --dry-run=client -o yaml | k apply -f - >/dev/null
}
token_user() { # NAME
    k -n e2e-users-$STAMP create sa "$1" --dry-run=client -o yaml | k apply -f - >/dev/null
    config "$users/$1" "{\"token\": \"$(k -n e2e-users-$STAMP create token "$1")\"}"
}
holds "a user with a certificate is made" certificate_user
token_user carl && token_user frank
k create clusterrolebinding e2e-carl --clusterrole=view --serviceaccount=e2e-users-$STAMP:carl --dry-run=client -o yaml | k apply -f - >/dev/null

as() { local who=$1; shift; KUBECONFIG=$users/$who "$POSTERN" "$@"; }
for who in jane carl; do
    shows "edges, as $who" 'web +.*cart' as "$who" edges -n shop
    shows "edges as JSON, as $who: secured, both identities" 'spiffe://cluster.local/ns/shop/sa/web' as "$who" edges -n shop -o json
    shows "identity, as $who" 'ns/shop/sa/cart|cart' as "$who" identity -n shop
done
refuses "edges, as one who may not" 'forbidden' as frank edges -n shop
refuses "identity, as one who may not" 'forbidden' as frank identity -n shop
refuses "the view is kubectl's too, and refuses alike" 'forbidden' env KUBECONFIG="$users/frank" kubectl get edges.view.postern.dev -n shop
shows "the view is kubectl's too" 'web' env KUBECONFIG="$users/carl" kubectl get edges.view.postern.dev -n shop
# Exit status: 0 allowed, 1 denied.
explains() { # STATUS ACCOUNT PATTERN: a GET of /items by this account at cart
    local said status=0
    said=$(as carl explain --cluster --from "spiffe://cluster.local/ns/shop/sa/$2" --to "shop/$(first_pod shop cart)" \
        --port 8080 --method GET --path /items --host cart.shop 2>&1) || status=$?
    [ "$status" = "$1" ] && grep -qE -- "$3" <<<"$said" || { echo "exit status $status: $said"; return 1; }
}
holds "explain --cluster: what is allowed is 0" explains 0 web '^allowed by rule 0 of shop/cart-from-web'
holds "explain --cluster: what is denied is 1" explains 1 mallory '^denied: no ALLOW rule matches'
refuses "explain --cluster, as one who may not" 'cannot create resource "explanations"' as frank explain --cluster --from plaintext --to shop/cart
ln -sf "$(realpath "$POSTERN")" "$users/kubectl-postern"
shows "as kubectl postern" 'web' env PATH="$users:$PATH" KUBECONFIG="$users/carl" kubectl postern edges -n shop
impostor() { # Whoever reaches the port itself, with the header of somebody else and without the front proxy's certificate
    local ip; ip=$(k -n $SYSTEM get svc postern-control -o jsonpath='{.spec.clusterIP}')
    curl -sk -m 5 -o /dev/null -w '%{http_code}\n' -H 'X-Remote-User: admin' -H 'X-Remote-Group: system:masters' "https://$ip/apis/view.postern.dev/v1alpha1/edges"
}
! on_lab || shows "X-Remote-User from anybody else is worth nothing" '^(401|403|000)$' impostor
check_all() { "$POSTERN" check -o json >"$OUT/check.json" 2>"$OUT/check.err"; local status=$?; [ "$status" = 0 ] || { cat "$OUT/check.json" "$OUT/check.err" | tail -40; return 1; }; }
holds "check: all is well" check_all
check_proxies() { "$POSTERN" check --proxy -n shop; }
holds "check --proxy: all is well" check_proxies
k delete ns e2e-users-$STAMP --wait=false >/dev/null
k delete clusterrolebinding e2e-jane e2e-carl >/dev/null
k delete csr e2e-jane >/dev/null
