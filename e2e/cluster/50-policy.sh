# shellcheck shell=bash
# A policy takes effect within 2 s, with its status; a wrong one is refused with the field named
deny() {
    cat <<Y
{"apiVersion": "postern.dev/v1alpha1", "kind": "AuthorizationPolicy", "metadata": {"name": "e2e-deny", "namespace": "shop"},
 "spec": {"selector": {"matchLabels": {"app": "cart"}}, "action": "DENY",
          "rules": [{"from": [{"source": {"principals": ["cluster.local/ns/shop/sa/web"]}}], "to": [{"operation": {"paths": ["/items"]}}]}]}}
Y
}
caller shop e2e-reader web
# A shell's turn costs some 0.2 s, which the figures contain.
until_says() { # WORD: seconds until a call ends so; a call is asked for in a loop
    local begun; begun=$(now)
    for _ in $(seq 100); do
        [ "$(call shop/e2e-reader http://cart.shop/items)" != "$1" ] || { python3 -c "print('%.1f' % ($(now) - $begun))"; return 0; }
    done
    return 1
}
quick() { # TEXT WORD
    local took; took=$(until_says "$2") || { failed "$1" "never"; return 1; }
    if python3 -c "import sys; sys.exit(float('$took') >= 2)"; then ok "$took s" "$1"; else failed "$1" "after $took s"; fi
}
for round in 1 2 3; do
    deny | k apply -f - >/dev/null
    quick "a DENY that is applied is in force ($round)" denied
    [ "$round" != 1 ] || accepted=$(until_true 20 bash -c "kubectl -n shop get authorizationpolicies.postern.dev e2e-deny -o jsonpath='{.status.conditions}' | grep Accepted")
    k -n shop delete authorizationpolicies.postern.dev e2e-deny >/dev/null
    quick "and gone when it is deleted ($round)" allowed
done
if grep -q '"Accepted"' <<<"$accepted" && grep -q '"True"' <<<"$accepted"; then ok "" "its status says that it is accepted"; else failed "its status says that it is accepted" "$accepted"; fi
deny | k apply -f - >/dev/null
enforced() { k -n shop get authorizationpolicies.postern.dev e2e-deny -o json | json '[c for c in j["status"]["conditions"] if c["type"] == "Enforced" and c["status"] == "True"][0]["message"]'; }
if said=$(until_true 20 enforced); then ok "" "its status says who enforces it: $said"; else failed "its status says who enforces it" "$said"; fi
k -n shop delete authorizationpolicies.postern.dev e2e-deny >/dev/null

apply_spec() { local spec=$1; shift; k apply "$@" -f - <<<"{\"apiVersion\": \"postern.dev/v1alpha1\", \"kind\": \"AuthorizationPolicy\", \"metadata\": {\"name\": \"e2e-wrong\", \"namespace\": \"shop\"}, \"spec\": $spec}"; }
wrong_source='{"rules": [{"from": [{"source": {"principles": ["cluster.local/ns/shop/sa/web"]}}]}]}'
refuses "a wrong field is refused, with its name" 'principles' apply_spec "$wrong_source"
refuses "a wrong field is refused with --validate=false: its place, and the nearest name" 'rules\[0\].*principles.*principals' apply_spec "$wrong_source" --validate=false
refuses "a wrong field under spec, with --validate=false" 'spec.*selectr.*selector' apply_spec '{"selectr": {"matchLabels": {"app": "cart"}}, "rules": [{}]}' --validate=false
refuses "a wrong value is refused, with its place" 'action' apply_spec '{"action": "PERMIT", "rules": [{}]}' --validate=false
refuses "a principal that can never match is refused, with its place" 'rules\[0\].*principals' apply_spec '{"rules": [{"from": [{"source": {"principals": ["spiffe://cluster.local/ns/shop/sa/web%20"]}}]}]}' --validate=false
k -n shop delete pod e2e-reader --wait=false >/dev/null
