# shellcheck shell=bash
# The chart and the app are upgraded under 200 requests a second, from images and chart of an earlier commit
# EARLIER names that commit. Its proxies are built without the newest policy feature (path templates), so that control has
# to serve proxies with an older wire feature set while both are there.
EARLIER=${EARLIER:-$(cat e2e/cluster/earlier)}
# A shallow checkout has no other commit than its own, which lacks nothing but the feature.
git cat-file -e "$EARLIER^{commit}" 2>/dev/null || EARLIER=$(git rev-parse HEAD)
# A commit's images never change: they stay beside the lab, as it does.
earlier=${XDG_CACHE_HOME:-$HOME/.cache}/postern/earlier
earlier_is_built() { [ "$(cat "$earlier/commit" 2>/dev/null)" = "$EARLIER" ]; }
build_earlier() {
    git worktree remove --force "$earlier/tree" 2>/dev/null
    rm -rf "$earlier" && mkdir -p "$earlier" && git worktree prune
    git worktree add --detach "$earlier/tree" "$EARLIER" || return 1
    python3 - "$earlier/tree/crates/policy/src/feature.rs" <<'PY' || return 1
import re, sys
text = open(sys.argv[1]).read()
old = text[text.index("pub const ALL"):]
count = int(re.search(r"\[Self; (\d+)\]", old).group(1))
new = old.replace(f"[Self; {count}]", f"[Self; {count - 1}]", 1).replace("        Self::PathTemplates,\n", "", 1)
assert new != old and "PathTemplates" not in new.split("];")[0]
open(sys.argv[1], "w").write(text.replace(old, new))
PY
    # From a copy of what is built, for the dependencies. Not in the same place: cargo tells crates of two trees apart by the
    # times of their files alone, and would build the next images of this tree with the other one's crates.
    [ ! -e target/images-build ] || cp -a target/images-build "$earlier/target" || return 1
    ( cd "$earlier/tree" && POSTERN_IMAGES_TARGET=$earlier/target images/build --profile lab --tag earlier --out "$earlier/images" ) || return 1
    rm -rf "$earlier/images/postern-shop.tar" "$earlier/target"
    cp -r "$earlier/tree/charts" "$earlier/" && git worktree remove --force "$earlier/tree"
    echo "$EARLIER" >"$earlier/commit"
}
if ! earlier_is_built && ! said=$(build_earlier 2>&1); then
    failed "images of commit $EARLIER" "$(tail -5 <<<"$said")"
    exit 0
fi
for tar in "$earlier"/images/*.tar; do load_image "$tar" || failed "images of commit $EARLIER" "cannot be loaded"; done

# None of a namespace's pods is ending.
none_ends() { [ -z "$(k -n "$1" get pods -o jsonpath='{.items[?(@.metadata.deletionTimestamp)].metadata.name}')" ]; }
restart_shop() {
    # An injector that is on its way out still answers, and would give pods its own version's proxy.
    until_true 60 none_ends $SYSTEM || return 1
    k -n shop rollout restart deploy/web deploy/cart deploy/payments deploy/ledger >/dev/null
    local one; for one in web cart payments ledger; do k -n shop rollout status "deploy/$one" --timeout=180s >/dev/null || return 1; done
    # Until the last old pod is gone.
    until_true 60 none_ends shop
}
sidecars_run() { # TAG: every sidecar of the services is of that image
    k -n shop get pods -l 'app in (web, cart, payments, ledger)' -o json | TAG=$1 json 'all(c["image"].endswith(":" + __import__("os").environ["TAG"]) for p in j["items"] for c in p["spec"]["initContainers"] if c["name"] == "postern-proxy")'
}
to_earlier() { helm upgrade postern "$earlier/charts/postern" -n $SYSTEM --set image.tag=earlier --wait --timeout 3m && restart_shop && sidecars_run earlier; }
holds "the mesh is that of commit $(cut -c1-7 <<<"$EARLIER"), proxies included" to_earlier

# An ALLOW that only path templates can decide: proxies that lack them get it without that rule, and go on denying.
caller shop e2e-mallory mallory || failed "a caller" "its pod did not come up"
k apply -f - >/dev/null <<'Y'
{"apiVersion": "postern.dev/v1alpha1", "kind": "AuthorizationPolicy", "metadata": {"name": "e2e-template", "namespace": "shop"},
 "spec": {"selector": {"matchLabels": {"app": "cart"}},
          "rules": [{"from": [{"source": {"principals": ["cluster.local/ns/shop/sa/mallory"]}}], "to": [{"operation": {"paths": ["/{*}"]}}]}]}}
Y

load_begins || failed "load" "its pods did not come up"
# Without the tag of the earlier images: helm would keep it.
upgrade() { helm upgrade postern "$CHART" -n $SYSTEM --reset-values --wait --timeout 3m >/dev/null; }
flawless "helm upgrade, with older proxies that keep running" upgrade
shows "control serves the older proxies without the rule that they cannot decide" '^denied$' call shop/e2e-mallory http://cart.shop/items
new_apps() { restart_shop >/dev/null || return 1; sidecars_run "$VERSION" >/dev/null || { echo "not every sidecar is of the new image"; return 1; }; }
flawless "rolling upgrade of the app, each pod with a new sidecar, at $RATE requests a second" new_apps
load_ends
newer_have_it() { local said; said=$(call shop/e2e-mallory http://cart.shop/items); [ "$said" = allowed ] || { echo "$said"; return 1; }; }
holds "and the new ones with it" until_true 20 newer_have_it
k -n shop delete authorizationpolicies.postern.dev e2e-template >/dev/null
k -n shop delete pod e2e-mallory --wait=false >/dev/null
