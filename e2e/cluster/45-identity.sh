# shellcheck shell=bash
# The CA gives an identity to a pod by that pod's own token alone, whichever replica is asked, and replicas agree
space=e2e-identity-$STAMP
k create ns "$space" >/dev/null
caller shop e2e-owner web && caller shop e2e-gone web || failed "owners of tokens" "pods of the test did not come up"
roots=$(k -n $SYSTEM get configmap postern-ca-roots -o jsonpath='{.data.roots\.sha256}')
token() { # NAMESPACE ACCOUNT AUDIENCE [POD]
    local bound=()
    [ -z "${4:-}" ] || bound=(--bound-object-kind Pod --bound-object-name "$4")
    k -n "$1" create token "$2" --audience "$3" "${bound[@]}"
}
# says TEXT PATTERN TOKEN: a proxy outside of the mesh that was handed this token is answered so.
asks=0
says() {
    asks=$((asks + 1))
    k -n "$space" create secret generic "token-$asks" --from-literal=token="$3" >/dev/null
    k apply -f - >/dev/null <<Y
apiVersion: v1
kind: Pod
metadata: {name: asks-$asks, namespace: $space}
spec:
  restartPolicy: Never
  automountServiceAccountToken: false
  containers:
    - name: proxy
      image: localhost/postern/postern-proxy:$VERSION
      args: [run, "--ca=postern-ca.$SYSTEM:15012", "--control=postern-control.$SYSTEM:15010",
             --kubernetes-token-file=/token/token, "--roots-sha256=$roots"]
      securityContext: {runAsNonRoot: true, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
      volumeMounts: [{name: token, mountPath: /token}]
  volumes: [{name: token, secret: {secretName: token-$asks}}]
Y
    holds "$1" until_true 30 logged "asks-$asks" "$2"
    k -n "$space" delete pod "asks-$asks" --wait=false >/dev/null
}
logged() { k -n "$space" logs "$1" 2>&1 | grep -E -- "$2" || { k -n "$space" logs "$1" 2>&1 | tail -3; return 1; }; }
says "a token of a pod that runs is good for its account's identity" 'first SVID for spiffe://cluster.local/ns/shop/sa/web' "$(token shop web postern-ca e2e-owner)"
says "a token for another audience is refused" 'service-account token is not accepted' "$(token shop web somebody-else e2e-owner)"
says "a token for the API server is refused" 'service-account token is not accepted' "$(k -n shop create token web --bound-object-kind Pod --bound-object-name e2e-owner)"
says "a token that is bound to no pod is refused" 'is not bound to a pod' "$(token shop web postern-ca)"
gone=$(token shop web postern-ca e2e-gone)
k -n shop delete pod e2e-gone --now >/dev/null
says "the token of a pod that was deleted is refused" 'service-account token is not accepted' "$gone"
says "nobody is given the CA's own identity" 'is the CA itself' "$(token $SYSTEM postern-ca postern-ca "$(pods $SYSTEM -l "$(component ca)" | head -1 | cut -d/ -f2)")"
k delete ns "$space" --wait=false >/dev/null
k -n shop delete pod e2e-owner --wait=false >/dev/null

each_issues() {
    local pod pods count said=
    pods=$(ca_replicas) && [ -n "$pods" ] || return 1
    for pod in $pods; do
        count=$(ca_metric "$pod" 'certificates_issued_total{attestation="kubernetes_token"}')
        said+="$pod $count "
        [ "${count:-0}" -gt 0 ] || { echo "$said"; return 1; }
    done
}
holds "every replica of the CA issues" each_issues
# One replica makes a new issuer; all sign with it, and nobody notices.
epochs() { local pod; for pod in $(ca_replicas); do ca_metric "$pod" issuer_epoch; done | sort -u; }
rotated() {
    local before wanted one; before=$(epochs); wanted=$((before + 1)); one=$(ca_replicas | tail -1)
    k -n $SYSTEM exec "$one" -- /postern-ca rotate --admin-socket /run/postern/admin.sock >/dev/null || return 1
    until_true 20 all_at "$wanted" >/dev/null
}
all_at() { [ "$(epochs)" = "$1" ] || { epochs; return 1; }; }
holds "a new issuer that one replica makes is every replica's" rotated
# The leader goes; another one leads, and issuing needed none.
lease() { k -n $SYSTEM get lease postern-ca -o jsonpath="{.spec.$1}"; }
led_anew() {
    local before; before=$(lease leaseTransitions)
    k -n $SYSTEM delete pod "$(lease holderIdentity | cut -d_ -f1)" --wait=false >/dev/null || return 1
    until_true 60 led_by_another "$before" && component_ready ca
}
led_by_another() { [ "$(lease leaseTransitions)" -gt "$1" ]; }
holds "when the CA's leader goes another replica leads" led_anew
