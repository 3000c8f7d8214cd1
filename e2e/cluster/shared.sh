# shellcheck shell=bash
# What the parts of e2e/run share: how a line is printed, how something is waited for, where things are. Sourced.
OUT=${OUT:-$PWD/target/e2e}
RESULTS=$OUT/results
LAB_SCRIPTS=$PWD/e2e/k8slab
IMAGES=${IMAGES:-$PWD/target/images}
VERSION=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
SYSTEM=postern-system
CHART=charts/postern
# What is made anew in each run.
STAMP=${STAMP:-$(date +%s)}
# Every pod of the shop must be there within this many seconds.
READY=180
PATH=$PATH:$HOME/.cache/k8slab/k8s/bin:/usr/sbin
export KUBECONFIG=${KUBECONFIG:-$HOME/.cache/k8slab/k8s/kubeconfig}

k() { kubectl "$@"; }
now() { date +%s.%N; }
since() { python3 -c "print('%.1f s' % ($(now) - $1))"; }

# ok FIGURE TEXT / failed TEXT REASON: one line of the result.
ok() { printf 'ok      %10s  %s\n' "$1" "$2" | tee -a "$RESULTS"; }
failed() {
    printf 'FAILED  %10s  %s: %s\n' '' "$1" "$(tr '\n' ' ' <<<"$2" | cut -c1-600)" | tee -a "$RESULTS"
    return 1
}

# holds TEXT COMMAND...: the line says how long the command took; its output is the reason if it fails.
holds() {
    local text=$1 begun said
    shift
    begun=$(now)
    if said=$("$@" 2>&1); then ok "$(since "$begun")" "$text"; else failed "$text" "${said:-"$* failed"}"; fi
}

# until_true SECONDS COMMAND...: tries until the command succeeds; says what it said last if it does not.
until_true() {
    local deadline=$((SECONDS + $1)) said
    shift
    while ! said=$("$@" 2>&1); do
        [ "$SECONDS" -lt "$deadline" ] || { echo "not within the time: $*: $said" && return 1; }
        sleep 0.2
    done
    printf '%s' "${said:+$said$'\n'}"
}

# shows TEXT PATTERN COMMAND...: the command's output has the pattern (grep -E).
shows() {
    local text=$1 pattern=$2 begun said
    shift 2
    begun=$(now)
    said=$("$@" 2>&1)
    if grep -qE -- "$pattern" <<<"$said"; then ok "$(since "$begun")" "$text"; else failed "$text" "expected $pattern, got: $said"; fi
}

# refuses TEXT PATTERN COMMAND...: the command fails, and its output has the pattern.
refuses() {
    local text=$1 pattern=$2 begun said
    shift 2
    begun=$(now)
    if said=$("$@" 2>&1); then failed "$text" "it was not refused: $said"; return 1; fi
    if grep -qE -- "$pattern" <<<"$said"; then ok "$(since "$begun")" "$text"; else failed "$text" "expected $pattern, got: $said"; fi
}

# call NAMESPACE/POD-OR-WORKLOAD TARGET [ARGUMENT...]: one call from a pod of the shop's own image: allowed, denied, failed: ...
# kubectl says on its standard error how the call ended, and now and then what it thinks of its own websocket.
call() {
    local from=$1
    shift
    k -n "${from%%/*}" exec "${from#*/}" -c "${CONTAINER:-$(container_of "${from#*/}")}" -- /postern-shop call "$@" 2>&1 | grep -vE '^command terminated|^E[0-9]+ .* websocket[.]go:'
}
container_of() { case $1 in deploy/*) echo "${1#*/}" ;; e2e-*) echo app ;; *) echo "${1%%-*}" ;; esac; }

# caller NAMESPACE NAME ACCOUNT [LABEL]: a new pod of the shop's image that waits to be told to call.
caller() {
    k -n "$1" delete pod "$2" --ignore-not-found >/dev/null
    k apply -f - >/dev/null <<Y
apiVersion: v1
kind: Pod
metadata: {name: $2, namespace: $1, labels: {app: ${4:-$2}}}
spec:
  serviceAccountName: $3
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 6
  containers:
    - name: app
      image: localhost/postern/postern-shop:$VERSION
      args: [serve, mallory, --status=@shop]
      securityContext: {runAsNonRoot: true, runAsUser: 1000, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
Y
    k -n "$1" wait --for=condition=Ready --timeout=60s "pod/$2" >/dev/null
}

# counts NAMESPACE/POD-OR-WORKLOAD: the JSON of what a service counted.
counts() { k -n "${1%%/*}" exec "${1#*/}" -c "${CONTAINER:-$(container_of "${1#*/}")}" -- /postern-shop status; }

# json EXPRESSION: evaluates Python on the JSON of standard input, as `j`; false is a failure.
json() { python3 -c 'import json, sys
j = json.load(sys.stdin)
r = eval(sys.argv[1])
print(r if isinstance(r, str) else json.dumps(r))
sys.exit(r is False or r is None)' "$1"; }

pods() { k -n "$1" get pods "${@:2}" -o name; }
pod_ip() { k -n "$1" get pod "$2" -o jsonpath='{.status.podIP}'; }
first_pod() { k -n "$1" get pods -l "app=$2" --field-selector=status.phase=Running -o jsonpath='{.items[0].metadata.name}'; }

all_ready() { # NAMESPACE: every pod is ready, or has completed
    local said
    said=$(k -n "$1" get pods -o json | json '[p["metadata"]["name"] for p in j["items"] if p["status"]["phase"] != "Succeeded" and not any(c["type"] == "Ready" and c["status"] == "True" for c in p["status"].get("conditions", []))]')
    [ "$said" = "[]" ] || { echo "not ready: $said" && return 1; }
}

# view edges|identities|proxies [NAMESPACE]: the mesh's own picture, by the aggregated API.
view() { k get --raw "/apis/view.postern.dev/v1alpha1/${2:+namespaces/$2/}$1"; }

# On the lab, and as root: a command in the node's network. Elsewhere there is no looking at packets.
lab_is_up() { ( . "$LAB_SCRIPTS/env.sh" && node_pid >/dev/null ); }
on_lab() { [ "$(id -u)" = 0 ] && lab_is_up && [ "$KUBECONFIG" = "$( . "$LAB_SCRIPTS/env.sh" && echo "$KUBECONFIG")" ]; }

background=$OUT/background
# Everything that the node's interfaces carry, into a file; ends with background_ends.
looks_at_packets() {
    rm -f "$1"
    nsenter -t "$( . "$LAB_SCRIPTS/env.sh" && node_pid)" -n -- dumpcap -q -i any -w "$1" >/dev/null 2>&1 &
    echo $! >>"$background"
    until_true 15 test -s "$1" >/dev/null
    sleep 1
}
background_ends() {
    [ -e "$background" ] || return 0
    while read -r pid; do kill "$pid" 2>/dev/null; done <"$background"
    rm -f "$background"
}

load_image() {
    if [ -n "${LOAD_IMAGE:-}" ]; then "$LOAD_IMAGE" "$1"; else "$LAB_SCRIPTS/load-image.sh" "$1" >/dev/null; fi
}

# The operator's command: the one named, or the newest that was built with its commands for a cluster, or a new one.
find_postern() {
    local triple
    [ -z "${POSTERN:-}" ] || return 0
    # Built as the images are, of whose parts it is made.
    triple=$(rustc -vV | sed -n 's/^host: //p')
    RUSTFLAGS="-C target-feature=+crt-static --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo" \
        cargo build -q --locked --profile lab --target "$triple" --target-dir target/images-build -p postern --features kubernetes || return 1
    POSTERN=$PWD/target/images-build/$triple/lab/postern
    export POSTERN
}

# Before any part: images are built (that is no step of an installation), programs are there.
prepare() {
    local program
    for program in kubectl helm python3 tshark dumpcap promtool; do
        command -v "$program" >/dev/null || { echo "e2e/run: needs $program (e2e/install; helm: e2e/k8slab/build-k8s.sh)" >&2 && return 1; }
    done
    if [ ! -e "$IMAGES/postern-injector.tar" ]; then images/build --profile lab --out "$IMAGES" >/dev/null || return 1; fi
    [ -e target/e2e-images/prometheus.tar ] || e2e/cluster/images >/dev/null || return 1
    find_postern
}

# What a run that was broken off has left.
take_away() {
    helm uninstall postern -n "$SYSTEM" --wait >/dev/null 2>&1
    k delete -f examples/kubernetes/ --ignore-not-found --wait=false >/dev/null 2>&1
    k get ns -o name | grep -E '^namespace/(postern-system|shop|shop-.*|e2e-.*)$' | xargs -r kubectl delete --wait --timeout=180s >/dev/null 2>&1
    k delete clusterrolebinding e2e-jane e2e-carl --ignore-not-found >/dev/null 2>&1
    k delete crd -l e2e.postern.dev/lent >/dev/null 2>&1
}

collect_logs() {
    local ns pod
    for ns in "$SYSTEM" shop shop-edge shop-outside shop-monitoring; do
        k -n "$ns" get pods -o wide >"$OUT/logs/$ns.pods" 2>&1
        k -n "$ns" get events --sort-by=.lastTimestamp >"$OUT/logs/$ns.events" 2>&1
        for pod in $(pods "$ns" 2>/dev/null); do
            k -n "$ns" logs --all-containers --prefix --tail=2000 "$pod" >"$OUT/logs/$ns.${pod#*/}.log" 2>&1
            k -n "$ns" describe "$pod" >"$OUT/logs/$ns.${pod#*/}.describe" 2>&1
        done
    done
    k get authorizationpolicies.postern.dev -A -o yaml >"$OUT/logs/policies.yaml" 2>&1
    view edges >"$OUT/logs/edges.json" 2>&1
}

# Steady calls under which something is done: pods `load` (as web: HTTP and gRPC) and `load-tcp` (as payments).
RATE=${RATE:-200}
load_begins() {
    load_pod load web "\"http://cart.shop/items\", \"grpc://payments.shop:50051\", \"--rate=$RATE\""
    load_pod load-tcp payments '"tcp://ledger.shop:7000", "--rate=20"'
    k -n shop wait --for=condition=Ready --timeout=60s pod/e2e-load pod/e2e-load-tcp >/dev/null || return 1
    # Whatever the first calls waited for is behind us.
    sleep 2
}
load_pod() { # NAME ACCOUNT ARGUMENTS
    k -n shop delete pod "e2e-$1" --ignore-not-found >/dev/null
    k apply -f - >/dev/null <<Y
apiVersion: v1
kind: Pod
metadata: {name: e2e-$1, namespace: shop, labels: {app: e2e-$1}}
spec:
  serviceAccountName: $2
  automountServiceAccountToken: false
  containers:
    - name: app
      image: localhost/postern/postern-shop:$VERSION
      args: [load, $3]
      securityContext: {runAsNonRoot: true, runAsUser: 1000, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
Y
}
load_ends() { k -n shop delete pod e2e-load e2e-load-tcp --ignore-not-found >/dev/null; }
load_counts() { # allowed and not allowed, of all calls together, and the last reason
    # kubectl complains beside its answer while the mesh's own API is away.
    { counts shop/e2e-load; counts shop/e2e-load-tcp; } 2>/dev/null | python3 -c 'import json, sys
calls = [c for line in sys.stdin for c in json.loads(line)["calls"].values()]
print(sum(c["allowed"] for c in calls), sum(c["denied"] + c["failed"] for c in calls), " | ".join(c["last_failure"] for c in calls if c["last_failure"]))'
}

# flawless TEXT COMMAND...: while the command runs, and a while after, every call is answered.
flawless() {
    local text=$1 begun said allowed bad allowed_after bad_after reason
    shift
    read -r allowed bad reason < <(until_true 60 load_counts)
    begun=$SECONDS
    said=$("$@" 2>&1) || { failed "$text" "$* failed: $said"; return 1; }
    sleep "${SETTLE:-5}"
    read -r allowed_after bad_after reason < <(until_true 60 load_counts)
    if ! [[ $allowed$allowed_after$bad$bad_after =~ ^[0-9]+$ ]]; then
        failed "$text" "the counts cannot be read: $allowed $bad, $allowed_after $bad_after $reason"
        return 1
    fi
    local calls=$((allowed_after - allowed)) took=$((SECONDS - begun))
    if [ "$bad_after" != "$bad" ]; then
        failed "$text" "$((bad_after - bad)) of $calls calls failed: $reason"
    elif [ "$calls" -lt $((took * RATE / 2)) ]; then
        failed "$text" "only $calls calls in $took s"
    else
        ok "$calls" "calls, none failed: $text${said:+ ($said)}"
    fi
}

# kill_9 NAMESPACE LABEL PROGRAM: every process of that program in these pods; elsewhere than on the lab, the pods themselves.
kill_9() {
    local uid pid found=
    if ! on_lab; then k -n "$1" delete pod -l "$2" --force --grace-period=0 >/dev/null 2>&1; return; fi
    for uid in $(k -n "$1" get pods -l "$2" -o jsonpath='{.items[*].metadata.uid}'); do
        for pid in $(grep -ls "pod$uid" /proc/[0-9]*/cgroup | cut -d/ -f3); do
            [ "$(tr '\0' '\n' <"/proc/$pid/cmdline" 2>/dev/null | head -1)" = "/$3" ] || continue
            kill -9 "$pid" && found=1
        done
    done
    [ -n "$found" ] || { echo "no process $3 found"; return 1; }
}
component() { echo "app.kubernetes.io/component=$1"; }
component_ready() { k -n $SYSTEM rollout status "deploy/postern-$1" --timeout=120s >/dev/null; }
# Those that are not on their way out.
ca_replicas() { k -n $SYSTEM get pods -l "$(component ca)" -o json | json '"\n".join(p["metadata"]["name"] for p in j["items"] if p["status"]["phase"] == "Running" and not p["metadata"].get("deletionTimestamp"))'; }
ca_metric() { k get --raw "/api/v1/namespaces/$SYSTEM/pods/$1:15020/proxy/metrics" | sed -n "s/^postern_ca_$2 //p"; } # POD NAME
# The kubelet brings a changed Secret or ConfigMap within a minute or so, and at once when the pod's own object changes.
mounts_are_read() { k -n $SYSTEM annotate --overwrite pods -l "$(component "$1")" "e2e.postern.dev/look=$(now)" >/dev/null; }
