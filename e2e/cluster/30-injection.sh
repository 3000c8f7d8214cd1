# shellcheck shell=bash
# Who gets a sidecar and who does not, probes, a Job, an init container, refusals in kubectl's own words
sidecars() { # NAMESPACE: names of pods, with true or false
    k -n "$1" get pods -o json | json '{p["metadata"]["name"]: any(c["name"] == "postern-proxy" and c.get("restartPolicy") == "Always" for c in p["spec"].get("initContainers", [])) for p in j["items"]}'
}
everybody() { local n=0 said; for ns in shop shop-edge; do said=$(sidecars "$ns"); ! grep -q false <<<"$said" || { echo "$said"; return 1; }; n=$((n + $(grep -o true <<<"$said" | wc -l))); done; [ "$n" -gt 10 ] && echo "$n"; }
nobody() { local said; for ns in shop-outside shop-monitoring; do said=$(sidecars "$ns"); grep -q false <<<"$said" && ! grep -q true <<<"$said" || { echo "$said"; return 1; }; done; }
if said=$(everybody); then ok "$said pods" "every pod of a labelled namespace has its sidecar"; else failed "every pod of a labelled namespace has its sidecar" "$said"; fi
holds "pods of other namespaces have none" nobody

probes() { local ns; for ns in shop shop-edge; do all_ready "$ns" || return 1; done
    # Passed once is not enough: nobody was restarted by a liveness probe.
    k get pods -n shop -o json | json 'all(c["restartCount"] == 0 for p in j["items"] for c in p["status"]["containerStatuses"])' >/dev/null || { echo "restarts: $(k -n shop get pods --no-headers)"; return 1; }; }
holds "all probes pass under default deny (HTTP, TCP, gRPC, exec; startup, readiness, liveness)" probes
job() { k -n shop wait --for=condition=complete --timeout=120s job/restock; }
holds "a Job completes, its sidecar ends after it" job
init_network() { k -n shop get pods -l app=restock -o json | json 'any(s["name"] == "wait-for-stock" and s["state"]["terminated"]["exitCode"] == 0 for p in j["items"] for s in p["status"]["initContainerStatuses"])'; }
holds "an init container has network" init_network

pod() { # ANNOTATIONS: a pod's manifest
    cat <<Y
{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "e2e-refused", "namespace": "shop", "annotations": {$1}},
 "spec": {"serviceAccountName": "web", "restartPolicy": "Never", ${2:-} "containers": [{"name": "app", "image": "localhost/postern/postern-shop:$VERSION", "args": ["status"]${3:-}}]}}
Y
}
apply_pod() { pod "$@" | k apply -f -; }
refuses "an unknown annotation is refused, with the nearest name" 'skip-outbound-ports' apply_pod '"postern.dev/skip-outbound-port": "80"'
refuses "a bad value is refused, with the annotation's name" 'skip-outbound-ports' apply_pod '"postern.dev/skip-outbound-ports": "eighty"'
refuses "what loosens is refused where the namespace does not permit it" 'allow-loosening' apply_pod '"postern.dev/skip-inbound-ports": "8080"'
refuses "an app with the proxy's UID is refused" '15371' apply_pod '' '' ', "securityContext": {"runAsUser": 15371}'
warns() { local said; said=$(pod '"postern.dev/skip-outbound-ports": "9999"' | k apply --dry-run=server -f - 2>&1); grep -qi 'warning.*skip-outbound-ports' <<<"$said" || { echo "$said"; return 1; }; }
holds "what is left out of the mesh is a warning in kubectl's output" warns
host_network() { local said; said=$(pod '' '"hostNetwork": true,' | k apply --dry-run=server -f - 2>&1); grep -qi 'warning.*hostNetwork' <<<"$said" || { echo "$said"; return 1; }; }
holds "a pod in the host's network is skipped, with a warning" host_network
pod_security() { # A namespace that enforces Pod Security `baseline` refuses NET_ADMIN, and the injector says why
    k create ns e2e-baseline-$STAMP --dry-run=client -o yaml | k apply -f - >/dev/null
    k label --overwrite ns e2e-baseline-$STAMP postern.dev/inject=enabled pod-security.kubernetes.io/enforce=baseline >/dev/null
    k -n e2e-baseline-$STAMP create sa web >/dev/null 2>&1
    local said; until_true 10 k -n e2e-baseline-$STAMP get sa web >/dev/null
    said=$(pod "" | sed "s/\"namespace\": \"shop\"/\"namespace\": \"e2e-baseline-$STAMP\"/" | k apply --dry-run=server -f - 2>&1)
    k delete ns e2e-baseline-$STAMP --wait=false >/dev/null
    grep -q 'NET_ADMIN' <<<"$said" && grep -qi 'forbidden' <<<"$said" || { echo "$said"; return 1; }
}
holds "Pod Security baseline refuses NET_ADMIN, and the output says so" pod_security
stray_probe() { # Anything but readiness, metrics and the secret paths is 404 on the sidecar's port
    local ip code path; ip=$(pod_ip shop "$(first_pod shop cart)")
    for path in livez probe/00000000000000000000000000000000/cart/liveness config healthz; do
        code=$(k -n shop-outside exec deploy/stranger -- /postern-shop call "http://$ip:15020/$path" 2>&1)
        grep -q 'status 404' <<<"$code" || { echo "/$path: $code"; return 1; }
    done
    code=$(k -n shop-outside exec deploy/stranger -- /postern-shop call "http://$ip:15020/metrics" 2>&1); [ "$code" = allowed ] || { echo "/metrics: $code"; return 1; }
}
holds "all but readiness, metrics and the pod's own secret paths is 404 on port 15020" stray_probe
proxy_image() { # The proxy of a running pod is not anybody's to swap who may patch the pod
    k -n shop patch pod "$(first_pod shop cart)" --type=strategic -p "{\"spec\": {\"initContainers\": [{\"name\": \"$1\", \"image\": \"localhost/evil:1\"}]}}"
}
refuses "the image of a running pod's proxy cannot be changed" 'postern-proxy-images.*cannot be changed' proxy_image postern-proxy
refuses "the image of a running pod's rules cannot be changed" 'postern-proxy-images.*cannot be changed' proxy_image postern-init
stranger_token() { # MORE: a pod outside of the mesh that mounts a token for the CA
    pod '' "\"volumes\": [{\"name\": \"postern-token\", \"projected\": {\"sources\": [{\"serviceAccountToken\": {\"audience\": \"postern-ca\", \"path\": \"token\"}}]}}], ${1:-}" |
        sed 's/"namespace": "shop"/"namespace": "shop-outside"/; s/"serviceAccountName": "web"/"serviceAccountName": "default"/' | k apply --dry-run=server -f -
}
refuses "a pod outside of the mesh gets no token for the CA" 'postern-ca-tokens.*for the mesh.s proxy alone' stranger_token
refuses "nor does one whose postern-proxy is another program" 'postern-ca-tokens.*for the mesh.s proxy alone' stranger_token '"initContainers": [{"name": "postern-proxy", "image": "localhost/evil:1", "restartPolicy": "Always"}], '
own_sidecar() { # with our own image and arguments of its choice, where nobody compares them
    stranger_token "\"initContainers\": [{\"name\": \"postern-proxy\", \"image\": \"localhost/postern/postern-proxy:$VERSION\", \"restartPolicy\": \"Always\", \"args\": [\"run\", \"--ca=evil:15012\"], \"volumeMounts\": [{\"name\": \"postern-token\", \"mountPath\": \"/var/run/secrets/postern\"}]}], "
}
refuses "nor one with our proxy where the injector compares no arguments" 'postern-ca-tokens.*the injector looks at' own_sidecar
empty_sources() { pod '' '"volumes": [{"name": "none", "projected": {}}, {"name": "no-more", "projected": {"sources": []}}], ' | sed 's/"namespace": "shop"/"namespace": "shop-outside"/; s/"serviceAccountName": "web"/"serviceAccountName": "default"/' | k apply --dry-run=server -f -; }
holds "a pod outside of the mesh with a projected volume of nothing is nobody's concern" empty_sources
