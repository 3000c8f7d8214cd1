# shellcheck shell=bash
# Quarantine: a pod is cut off by whoever may, through the API server, and let back in
responders=$OUT/responders
rm -rf "$responders" && mkdir -p "$responders"
space=e2e-responders-$STAMP
k create ns "$space" --dry-run=client -o yaml | k apply -f - >/dev/null
responder() { # NAME: a kubeconfig of a service account
    k -n "$space" create sa "$1" --dry-run=client -o yaml | k apply -f - >/dev/null
    k config view --minify --flatten -o json | TOKEN=$(k -n "$space" create token "$1") json '{"apiVersion": "v1", "kind": "Config", "current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u", "namespace": "shop"}}], "clusters": [{"name": "c", "cluster": j["clusters"][0]["cluster"]}], "users": [{"name": "u", "user": {"token": __import__("os").environ["TOKEN"]}}]}' >"$responders/$1"
}
as() { local who=$1; shift; KUBECONFIG=$responders/$who "$POSTERN" quarantine "$@"; }
responder rita && responder nobody
k -n $SYSTEM create rolebinding e2e-rita --role=postern-responder --serviceaccount="$space:rita" --dry-run=client -o yaml | k apply -f - >/dev/null
for who in rita nobody; do
    k create clusterrolebinding "e2e-$who" --clusterrole=view --serviceaccount="$space:$who" --dry-run=client -o yaml | k apply -f - >/dev/null
done

caller shop e2e-suspect web web
suspect=$(k -n shop get pod e2e-suspect -o jsonpath='{.metadata.uid}')
asks() { call "shop/$1" http://cart.shop/items --nonce "quarantine-$STAMP-$RANDOM"; } # as the service account web, which may
is_answered() { local said; said=$(asks e2e-suspect); grep -qx allowed <<<"$said" || { echo "$said"; return 1; }; }
is_cut_off() { local said; said=$(asks e2e-suspect); ! grep -qx allowed <<<"$said" || { echo "$said"; return 1; }; }
holds "the suspect is answered at first" until_true 30 is_answered

refuses "who is not bound to postern-responder cuts nobody off" 'forbidden' as nobody add --pod shop/e2e-suspect
refuses "a pod that is not there: the nearest is named" 'did you mean .shop/e2e-suspect' as rita add --pod shop/e2e-suspekt
refuses "control is cut off by force alone" '--force' as rita add --id spiffe://cluster.local/ns/postern-system/sa/postern-control
shows "a pod is cut off, and its instance is said" "instance $suspect" as rita add --pod shop/e2e-suspect --reason "e2e $STAMP"
holds "it is answered no more" until_true 5 is_cut_off
own_proxy_is_unready() { k -n shop get pod e2e-suspect -o json | json 'any(c["type"] == "Ready" and c["status"] == "False" for c in j["status"]["conditions"])'; }
holds "its own proxy says that it is cut off" until_true 60 own_proxy_is_unready
others_are_answered() { local said; said=$(asks deploy/web); grep -qx allowed <<<"$said" || { echo "$said"; return 1; }; }
holds "another pod of its service account is answered" until_true 10 others_are_answered
shows "the list says why and by whom" "e2e $STAMP" as rita list
shows "and by whom" 'system:serviceaccount:e2e-responders-[0-9]*:rita' as rita list --output json
named() { "$POSTERN" check -o json >"$OUT/quarantine-check.json" 2>/dev/null; grep -q "$suspect" "$OUT/quarantine-check.json"; }
holds "postern check names it" named

survives() { # REASON COMMAND...: the quarantine is there after this
    "${@:2}" >/dev/null && is_cut_off && as rita list | grep -q "$suspect"
}
restarted() { k -n $SYSTEM rollout restart "deploy/$1" && k -n $SYSTEM rollout status --timeout=180s "deploy/$1"; }
holds "a restart of control changes nothing" survives control restarted postern-control
holds "a restart of the CA changes nothing" survives ca restarted postern-ca
lifted() { as rita lift --instance "$suspect"; }
shows "it is lifted" 'no longer' lifted
holds "it is answered again" until_true 60 is_answered
k -n shop delete pod e2e-suspect --wait=false >/dev/null
k -n $SYSTEM delete rolebinding e2e-rita >/dev/null
k delete clusterrolebinding e2e-rita e2e-nobody >/dev/null
k delete ns "$space" --wait=false >/dev/null
