# shellcheck shell=bash
# A real Prometheus scrapes every component and every proxy under default deny; dashboard and alerts evaluate on what it has
k -n shop-monitoring create configmap postern-alerts --from-file="$CHART/files/alerts.yaml" --dry-run=client -o yaml | k apply -f - >/dev/null
k -n shop-monitoring rollout restart deploy/prometheus >/dev/null
holds "Prometheus is ready" k -n shop-monitoring rollout status deploy/prometheus --timeout=90s
api() { k get --raw "/api/v1/namespaces/shop-monitoring/services/prometheus:9090/proxy/api/v1/$1"; }
query() { api "query?query=$(python3 -c 'import sys, urllib.parse; print(urllib.parse.quote(sys.argv[1]))' "$1")"; }

expected() { # everything of ours that runs: pods of the system, pods with a sidecar
    for ns in $SYSTEM shop shop-edge; do
        k -n "$ns" get pods --field-selector=status.phase=Running -o json | NS=$ns json '"\n".join(p["metadata"]["name"] for p in j["items"] if __import__("os").environ["NS"] == "postern-system" or any(c["name"] == "postern-proxy" for c in p["spec"].get("initContainers", [])))'
    done | sort
}
scraped() {
    local up missing
    up=$(query 'up == 1' | json '"\n".join(r["metric"]["pod"] for r in j["data"]["result"])' | sort)
    missing=$(comm -23 <(expected) <(echo "$up"))
    [ -z "$missing" ] || { echo "not scraped: $missing; errors: $(api targets | json '[(t["labels"].get("pod"), t["lastError"]) for t in j["data"]["activeTargets"] if t["health"] != "up"]')"; return 1; }
    expected | wc -l
}
if said=$(until_true 60 scraped); then ok "$said" "components and proxies are scraped under default deny"; else failed "components and proxies are scraped under default deny" "$said"; fi
app_metrics() { query 'sum(shop_requests_total{namespace="shop"})' | json 'float(j["data"]["result"][0]["value"][1]) > 0'; }
holds "an app's own metrics come with its sidecar's" until_true 20 app_metrics
sleep 12 # rates need some scrapes
holds "promtool: rules are right" promtool check rules "$CHART/files/alerts.yaml"
holds "promtool: rules fire when they should" bash -c 'cd e2e/fixtures && promtool test rules alerts.test.yaml'
rules_evaluate() { api rules | json 'all(r["health"] == "ok" for g in j["data"]["groups"] for r in g["rules"]) and sum(len(g["rules"]) for g in j["data"]["groups"])'; }
if said=$(until_true 30 rules_evaluate); then ok "$said" "alerts evaluate"; else failed "alerts evaluate" "$said: $(api rules | json '[(r["name"], r.get("lastError")) for g in j["data"]["groups"] for r in g["rules"] if r["health"] != "ok"]')"; fi

# Every expression of the dashboards, with its variables filled in as Grafana does.
dashboards() {
    local expression said empty=0 all=0
    while IFS= read -r expression; do
        all=$((all + 1))
        said=$(query "$expression" 2>&1) && json 'j["status"] == "success"' <<<"$said" >/dev/null || { echo "$expression: $said"; return 1; }
        ! json 'len(j["data"]["result"]) == 0' <<<"$said" >/dev/null || { empty=$((empty + 1)); echo "$expression" >>"$OUT/dashboard-empty"; }
    done < <(python3 - "$CHART"/files/dashboards/*.json <<'PY'
import json, re, sys
def expressions(node):
    if isinstance(node, dict):
        if isinstance(node.get("expr"), str):
            yield node["expr"]
        for value in node.values():
            yield from expressions(value)
    elif isinstance(node, list):
        for value in node:
            yield from expressions(value)
for path in sys.argv[1:]:
    for expression in expressions(json.load(open(path))):
        expression = re.sub(r"\$__(rate_interval|interval|range)", "30s", expression)
        print(re.sub(r"\$(\{\w+(:\w+)?\}|\w+)", ".*", expression).replace("\n", " "))
PY
    )
    [ "$all" -gt 0 ] || { echo "no expression found"; return 1; }
    [ "$empty" -lt "$all" ] || { echo "all are empty"; return 1; }
    echo "$all, $empty without a value now"
}
rm -f "$OUT/dashboard-empty"
if said=$(dashboards); then ok "" "the dashboards' expressions evaluate: $said"; else failed "the dashboards' expressions evaluate" "$said"; fi
