# shellcheck shell=bash
# A workload of another mesh is let in once it is related and named, and no longer than that; the other mesh follows our bundle
if ! on_lab; then
    failed "another mesh" "only on the lab: it is of processes on this machine"
    exit 0
fi
theirs=$OUT/theirs
rm -rf "$theirs" && mkdir -p "$theirs/documents"
here=$( . "$LAB_SCRIPTS/env.sh" && echo "$HOST_IP")
control_of() { echo "spiffe://$1/ns/$SYSTEM/sa/postern-control"; }
workload=spiffe://partner.example/ns/billing/sa/invoices

# Their CA and control, and an SVID of a workload of theirs.
their() { "$POSTERN" ca "$@" --admin-socket "$theirs/ca.sock"; }
begins() { # NAME COMMAND...: until the end of this part; says where it is once it is there
    local name=$1
    shift
    "$@" --metrics-listen 127.0.0.1:0 --ready-file "$theirs/$name.json" >"$theirs/$name.log" 2>&1 &
    echo $! >>"$background"
    until_true 20 test -s "$theirs/$name.json" >/dev/null || { tail -3 "$theirs/$name.log"; return 1; }
}
begin_theirs() {
    local ca
    : >"$theirs/federation.yaml"
    "$POSTERN" ca init --trust-domain partner.example --store "$theirs/store" || return 1
    begins ca "$POSTERN" ca serve --store "$theirs/store" --listen 127.0.0.1:0 --admin-socket "$theirs/ca.sock" || return 1
    ca=$(json 'j["listen"]' <"$theirs/ca.json")
    their token create --id "$(control_of partner.example)" --instance control >"$theirs/control.token" || return 1
    begins control "$POSTERN" control --trust-domain partner.example --directory "$theirs/documents" --listen 127.0.0.1:0 \
        --ca "$ca" --join-token-file "$theirs/control.token" --view-socket "$theirs/view.sock" \
        --bundle-endpoint-listen "$here:8443" --federation-file "$theirs/federation.yaml" --federation-longest-poll 5 || return 1
    their token create --id "$workload" --instance invoices >"$theirs/invoices.token" || return 1
    "$POSTERN" ca svid --ca "$ca" --trust-domain partner.example --join-token-file "$theirs/invoices.token" --out "$theirs/svid"
}
holds "another mesh is there, outside of the cluster" begin_theirs

cart=$(pod_ip shop "$(first_pod shop cart)")
# The status of the answer, or how curl failed: by a refused handshake, which TLS 1.3 may tell after the request, not by a timeout (28) or
# because nobody is there (7).
answer() { curl -sk -m 10 --cert "$theirs/svid/svid.pem" --key "$theirs/svid/key.pem" -o /dev/null -w '%{http_code} %{exitcode}\n' "https://$cart:8080/items"; }
answers() { local said; said=$(answer); [[ $said =~ ^($1)$ ]] || { echo "it was $said"; return 1; }; }
holds "its workload gets through no handshake at first" answers '000 (35|52|55|56)'

# By values alone. The other relationship stays when this one ends.
related() { # TRUST-DOMAIN...
    bundle=$(curl -sk -m 10 "https://$here:8443/") url=https://$here:8443/ id=$(control_of partner.example) python3 - "$@" >"$theirs/values.json" <<'P'
import json, os, sys
known = {
    "partner.example": {"bundleEndpointURL": os.environ["url"], "trustDomainBundle": os.environ["bundle"],
                        "bundleEndpointProfile": {"type": "https_spiffe", "endpointSPIFFEID": os.environ["id"]}},
    "idle.example": {"trustDomainBundle": '{"keys":[]}'},
}
relationships = [{"trustDomain": name, **known[name]} for name in sys.argv[1:]]
print(json.dumps({"federation": {"relationships": relationships, "bundleEndpoint": {"spiffe": True}}}))
P
    helm upgrade postern "$CHART" -n $SYSTEM --reuse-values --values "$theirs/values.json" --wait --timeout 3m
}
holds "the relationship and our bundle endpoint are values of the chart" related partner.example idle.example
holds "it is believed then, and allowed nothing" until_true 30 answers '403 0'
k apply -f - >/dev/null <<'Y'
{"apiVersion": "postern.dev/v1alpha1", "kind": "AuthorizationPolicy", "metadata": {"name": "e2e-partner", "namespace": "shop"},
 "spec": {"selector": {"matchLabels": {"app": "cart"}},
          "rules": [{"from": [{"source": {"principals": ["partner.example/ns/billing/sa/invoices"]}}]}]}}
Y
holds "it is let in by a policy that names its trust domain" until_true 15 answers '200 0'

# And the other way: they read our bundle where the Service leads, and follow it by control's identity.
endpoint=https://$(k -n $SYSTEM get svc postern-bundle -o jsonpath='{.spec.clusterIP}'):8443/
our_roots() {
    local published served
    published=$(k -n $SYSTEM get configmap postern-ca-roots -o jsonpath='{.data.roots\.pem}' | grep -v -- '-----' | tr -d '\n')
    served=$(curl -sk -m 10 "$endpoint" | json '"".join(key["x5c"][0] for key in j["keys"] if key["use"] == "x509-svid")')
    [ -n "$served" ] && [ "$served" = "$published" ] || { echo "served: $served; published: $published"; return 1; }
}
holds "our bundle is served to them" until_true 15 our_roots
followed() {
    local metrics
    metrics=$(curl -s -m 5 "http://$(json 'j["metrics"]' <"$theirs/control.json")/metrics")
    grep -E '^postern_control_federation_fetches_total\{outcome="done"\} ([2-9]|[1-9][0-9])' <<<"$metrics" || { tail -3 "$theirs/control.log"; return 1; }
}
follow_us() {
    bundle=$(curl -sk -m 10 "$endpoint") url=$endpoint id=$(control_of cluster.local) python3 - >"$theirs/federation.new" <<'P'
import json, os
print(json.dumps({"apiVersion": "postern.dev/v1alpha1", "kind": "ClusterFederatedTrustDomain", "metadata": {"name": "ours"}, "spec": {
    "trustDomain": "cluster.local", "bundleEndpointURL": os.environ["url"], "trustDomainBundle": os.environ["bundle"],
    "bundleEndpointProfile": {"type": "https_spiffe", "endpointSPIFFEID": os.environ["id"]}}}))
P
    mv "$theirs/federation.new" "$theirs/federation.yaml"
    until_true 30 followed
}
holds "and they follow it, by control's identity" follow_us

over() { related idle.example >/dev/null && mounts_are_read control && until_true 30 answers '000 (35|52|55|56)'; }
holds "when the relationship ends it gets through no handshake" over
k -n shop delete authorizationpolicies.postern.dev e2e-partner >/dev/null
background_ends
