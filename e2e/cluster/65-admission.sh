# shellcheck shell=bash
# The injector's golden specs on a real API server, which validates what comes of them; how long a review takes
ns=e2e-golden-$STAMP
k create ns $ns --dry-run=client -o yaml | k apply -f - >/dev/null
k label --overwrite ns $ns postern.dev/inject=enabled >/dev/null
for account in $(grep -hoE 'serviceAccountName: [a-z0-9-]+' injector/tests/golden/*.in.yaml | cut -d' ' -f2 | sort -u); do
    k -n $ns create sa "$account" >/dev/null 2>&1
done
until_true 20 k -n $ns get sa default >/dev/null

# The pod of a golden file, with a name that Kubernetes takes, in our namespace. Cases with settings or a namespace of their
# own are the injector's tests' business.
pod_of() { awk '/^[a-z_]+:/ {p = 0} /^pod:/ {p = 1; next} p {print substr($0, 3)}' "$1" | sed -E "s/^(  name: .*)/\1/; s/^  namespace: .*/  namespace: $ns/" | sed -E '/^  name: /s/_/-/g'; }
usable() { ! grep -qE '^(namespace|[a-z_]+): *(true)?$' <(grep -v '^pod:$' "$1"); }
accepted=0 refused=0 skipped=0 wrong=
pods_json=$OUT/golden
rm -rf "$pods_json" && mkdir -p "$pods_json"
for file in injector/tests/golden/*.in.yaml; do
    case=$(basename "$file" .in.yaml)
    usable "$file" || continue
    said=$(pod_of "$file" | k -n $ns create --dry-run=server --validate=ignore -o json -f - 2>&1)
    status=$?
    case $case in
        refused_*)
            if [ $status != 0 ]; then refused=$((refused + 1)); else wrong+="$case was taken; "; fi
            ;;
        skipped_*)
            if ! grep -q '"name": "postern-proxy"' <<<"$said"; then skipped=$((skipped + 1)); else wrong+="$case was injected; "; fi
            ;;
        *)
            if [ $status = 0 ] && grep -q '"name": "postern-proxy"' <<<"$said"; then
                accepted=$((accepted + 1))
                pod_of "$file" | k -n $ns create --dry-run=client --validate=ignore -o json -f - >"$pods_json/$case.json" 2>/dev/null || rm -f "$pods_json/$case.json"
            else
                wrong+="$case: $(tail -c 400 <<<"$said"); "
            fi
            ;;
    esac
done
if [ -n "$wrong" ]; then failed "golden specs on a real API server" "$wrong"
else ok $((accepted + refused + skipped)) "golden specs on a real API server: $accepted injected and valid, $refused refused, $skipped skipped"; fi

if on_lab; then
    ip=$(k -n $SYSTEM get svc postern-injector -o jsonpath='{.spec.clusterIP}')
    said=$(e2e/cluster/api.py reviews "https://$ip/inject" 3000 "$pods_json"/*.json 2>&1)
    if figure=$(json 'j["failed"] == 0 and "%s ms" % j["p99_ms"]' <<<"$said" 2>/dev/null); then ok "$figure" "p99 of 3000 admission reviews over the wire, none failed"
    else failed "admission reviews over the wire" "$said"; fi
else
    failed "admission reviews over the wire" "only on the lab"
fi
# As the API server saw its own calls, all of them since the installation.
said=$(k get --raw /metrics | python3 -c '
import re, sys
counts = {}
for line in sys.stdin:
    found = re.match(r"""apiserver_admission_webhook_admission_duration_seconds_bucket\{name="(?:namespace|pod)\.inject\.postern\.dev",.*le="([^"]+)"\} (\d+)""", line)
    if found:
        counts[found[1]] = counts.get(found[1], 0) + int(found[2])
total, quick = counts.get("+Inf", 0), counts.get("0.025", 0)
print(f"{100 * quick / total:.1f} % of {total}" if total else "none")')
if [ "$said" != none ]; then ok "${said%% %*} %" "of the API server's own ${said##* } calls of the injector took less than 25 ms"; else failed "the API server's own calls of the injector" "it counts none"; fi
k delete ns $ns --wait=false >/dev/null
