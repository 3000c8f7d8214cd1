# shellcheck shell=bash
# From an empty cluster to the first mutual-TLS edge, in four commands
if helm status postern -n "$SYSTEM" >/dev/null 2>&1 || k get ns "$SYSTEM" shop >/dev/null 2>&1; then
    failed "an empty cluster" "a release, $SYSTEM or shop is there already: helm uninstall postern -n $SYSTEM, kubectl delete ns shop ..."
    exit 0
fi
begun=$(now)

# 1. In a cluster with a registry this is the kubelet's work.
load_all() { local tar; for tar in "$IMAGES"/*.tar target/e2e-images/*.tar; do load_image "$tar" || return 1; done; }
holds "images loaded" load_all

# 2.
holds "helm install, until all is ready" helm install postern "$CHART" --namespace "$SYSTEM" --create-namespace --wait --timeout 3m

# 3. `kubectl label namespace shop postern.dev/inject=enabled`, for namespaces that are made with their label.
holds "namespaces labelled" k apply -f examples/kubernetes/00-namespaces.yaml

# 4.
holds "shop applied" k apply -f examples/kubernetes/

first_edge() { view edges shop | json 'any(e["secured"] and e["allowed"] > 0 and e["source"]["spiffeId"] and e["destination"]["spiffeId"] for e in j["items"])'; }
applied=$(now)
if said=$(until_true "$READY" first_edge); then
    ok "$(since "$applied")" "first mutual-TLS edge, after the shop was applied"
    ok "$(since "$begun")" "first mutual-TLS edge, from the empty cluster on; 4 commands"
else
    failed "first mutual-TLS edge" "$said"
fi
for ns in shop shop-edge shop-outside shop-monitoring; do
    until_true "$READY" all_ready "$ns" >/dev/null
done
holds "helm test" helm test postern -n "$SYSTEM" --timeout 2m
