# shellcheck shell=bash
# Mutual TLS with the right identities, seen on the node's wire; what has no identity or no permission is refused
caller shop e2e-web web && caller shop e2e-payments payments && caller shop e2e-mallory mallory || failed "callers" "pods of the test did not come up"
web_ip=$(pod_ip shop e2e-web)
payments_ip=$(pod_ip shop e2e-payments)
mallory_ip=$(pod_ip shop e2e-mallory)
stranger_ip=$(pod_ip shop-outside "$(first_pod shop-outside stranger)")
ingress_ip=$(pod_ip shop-edge "$(first_pod shop-edge ingress)")
cart_ip=$(pod_ip shop "$(first_pod shop cart)")
stock_ip=$(pod_ip shop stock-1)
ledger_ip=$(pod_ip shop "$(first_pod shop ledger)")
run=nonce-$(date +%s%N)

# A fresh ingress, so that its connections begin while the packets are looked at.
k -n shop-edge rollout restart deploy/ingress >/dev/null
k -n shop-edge rollout status deploy/ingress --timeout=60s >/dev/null
until_true 30 bash -c '[ "$(kubectl -n shop-edge get pods -l app=ingress -o name | wc -l)" = 1 ]' >/dev/null
ingress_ip=$(pod_ip shop-edge "$(first_pod shop-edge ingress)")

packets=$OUT/traffic.pcapng
if on_lab; then
    looks_at_packets "$packets"
else
    failed "packets on the node" "no lab here, or no root: packets cannot be looked at"
fi

shows "by ClusterIP" '^allowed$' call shop/e2e-web http://cart.shop/items --nonce "$run-cluster-ip"
shows "by a headless Service's name" '^allowed$' call shop/e2e-web http://stock.shop:8080/items --nonce "$run-headless"
shows "by a pod's own name (StatefulSet)" '^allowed$' call shop/e2e-web http://stock-0.stock.shop:8080/items --nonce "$run-pod-name"
shows "by pod IP" '^allowed$' call shop/e2e-web "http://$stock_ip:8080/items" --nonce "$run-pod-ip"
shows "gRPC" '^allowed$' call shop/e2e-web grpc://payments.shop:50051 --nonce "$run-grpc"
shows "TCP, where the server speaks first" '^allowed$' call shop/e2e-payments tcp://ledger.shop:7000 --nonce "$run-tcp"
shows "north-south, through nginx" '^allowed$' call shop-outside/deploy/stranger http://ingress.shop-edge/items --nonce "$run-ingress"
shows "north-south: DENY holds behind nginx" '^denied$' call shop-outside/deploy/stranger http://ingress.shop-edge/admin --nonce "$run-ingress-admin"
own_service() { call "shop/$(first_pod shop cart)" http://cart.shop/items --times 10 --nonce "$run-own"; }
shows "a workload that calls its own Service is served" '^allowed$' own_service
own_address() { call "shop/$(first_pod shop cart)" "http://$cart_ip:8080/items" --nonce "$run-own-ip"; }
shows "a workload that calls its own address is served" '^allowed$' own_address
shows "default deny: mallory, HTTP" '^denied$' call shop/e2e-mallory http://cart.shop/items --nonce "$run-mallory-http"
shows "default deny: mallory, gRPC" '^denied$' call shop/e2e-mallory grpc://payments.shop:50051 --nonce "$run-mallory-grpc"
shows "default deny: mallory, TCP" '^denied$' call shop/e2e-mallory tcp://ledger.shop:7000 --nonce "$run-mallory-tcp"
shows "default deny: mallory, by pod IP" '^denied$' call shop/e2e-mallory "http://$cart_ip:8080/items" --nonce "$run-mallory-ip"
shows "DENY before ALLOW: /admin" '^denied$' call shop/e2e-web http://cart.shop/admin --nonce "$run-admin"
shows "an un-meshed pod is refused by Service" '^failed' call shop-outside/deploy/stranger http://cart.shop/items --nonce "$run-stranger"
shows "an un-meshed pod is refused by pod IP" '^failed' call shop-outside/deploy/stranger "http://$cart_ip:8080/items" --nonce "$run-stranger-ip"
shows "an un-meshed pod is refused, TCP" '^(denied|failed)' call shop-outside/deploy/stranger tcp://ledger.shop:7000 --nonce "$run-stranger-tcp"
data_bases() { all_ready shop && k -n shop exec deploy/orders -c sql -- sh -c 'mariadb --no-defaults --skip-ssl -N -h mariadb.shop -u orders shop -e "SELECT COUNT(*) FROM orders"' && k -n shop exec deploy/orders -c cache -- redis-cli -e -h redis.shop get orders; }
shows "MariaDB (server first) and Redis (client first)" '^"?[1-9]' data_bases
sleep 2
background_ends
sleep 1

# What reached the apps, by their own word: each nonce once allowed, with who the proxy vouched for; none that was refused.
counted() { local pod; for pod in $(pods shop -l 'app in (cart, stock, payments, ledger)' --field-selector=status.phase=Running); do counts "shop/${pod#pod/}"; done; }
all=$(counted)
arrived() { local what; for what in cluster-ip headless pod-name pod-ip grpc tcp ingress own own-ip; do grep -q "$run-$what\"" <<<"$all" || { echo "$what did not arrive"; return 1; }; done; }
refused() { local what; for what in ingress-admin mallory-http mallory-grpc mallory-tcp mallory-ip admin stranger stranger-ip stranger-tcp; do ! grep -q "$run-$what\"" <<<"$all" || { echo "$what arrived"; return 1; }; done; }
identities() { local who; for who in shop/sa/web shop/sa/cart shop-edge/sa/ingress; do grep -q "\"spiffe://cluster.local/ns/$who\"" <<<"$all" || { echo "nobody was called as $who"; return 1; }; done
    # ledger's protocol has no place for an identity.
    ! grep '"by_caller":{""' <<<"$all" | grep -vq '"entry"' || { echo "somebody was called by nobody: $all"; return 1; }
    ! grep -q 'sa/mallory' <<<"$all" || { echo "mallory got through"; return 1; }; }
holds "what was allowed reached the apps, by their own counts" arrived
holds "what was refused did not" refused
holds "apps were told the right identities, and never nobody" identities

seen_edges() {
    local edge from to
    for edge in "shop/web shop/cart" "shop/web shop/stock" "shop/web shop/payments" "shop/payments shop/ledger" "shop-edge/ingress shop/cart" "shop/cart shop/cart" "shop/orders shop/mariadb" "shop/orders shop/redis" "shop/restock shop/stock"; do
        read -r from to <<<"$edge"
        view edges shop | FROM=$from TO=$to json 'any((e["source"]["spiffeId"], e["destination"]["spiffeId"]) == tuple("spiffe://cluster.local/ns/%s/sa/%s" % tuple(__import__("os").environ[x].split("/")) for x in ("FROM", "TO")) and e["secured"] and e["allowed"] > 0 for e in j["items"])' >/dev/null || { echo "no secured edge $from -> $to"; return 1; }
    done
    ! view edges shop | json '[e for e in j["items"] if e["allowed"] > 0 and not e["secured"] and e["direction"] == "inbound"] or False' || return 1
}
holds "each edge is shown with both identities, secured; none is in clear" until_true 15 seen_edges

if [ -s "$packets" ]; then
    # hellos FROM TO PORT: handshakes on the wire, each with what was offered or chosen.
    as_tls=(); for port in 80 8080 50051 7000 3306 6379; do as_tls+=(-d "tcp.port==$port,tls"); done
    looked=$OUT/traffic.txt
    tshark -r "$packets" "${as_tls[@]}" -Y 'tls.handshake.type == 1 || tls.handshake.type == 2' -T fields -e ip.src -e ip.dst -e tcp.dstport \
        -e tls.handshake.type -e tls.handshake.extensions_alpn_str -e tls.handshake.extensions.supported_version >"$looked" 2>/dev/null
    shaken() { # FROM TO PORT: a client's hello with an ALPN of ours, a server's with TLS 1.3
        awk -v a="$1" -v b="$2" -v p="$3" '$1 == a && (b == "any" || $2 == b) && $3 == p && $4 == 1 && /postern\// {c = 1; to = $2} $2 == a && (b == "any" || $1 == b) && $4 == 2 && /0x0304/ {s = 1} END {exit !(c && s)}' "$looked" ||
            { echo "no handshake $1 -> $2:$3: $(head -30 "$looked")"; return 1; }
    }
    holds "on the wire: TLS 1.3 with our ALPN, by ClusterIP" shaken "$web_ip" any 8080
    holds "on the wire: TLS 1.3 with our ALPN, by pod IP" shaken "$web_ip" "$stock_ip" 8080
    holds "on the wire: TLS 1.3 with our ALPN, headless" shaken "$web_ip" "$(pod_ip shop stock-0)" 8080
    holds "on the wire: TLS 1.3 with our ALPN, gRPC" shaken "$web_ip" any 50051
    holds "on the wire: TLS 1.3 with our ALPN, TCP" shaken "$payments_ip" "$ledger_ip" 7000
    holds "on the wire: TLS 1.3 with our ALPN, from nginx inward" shaken "$ingress_ip" any 8080
    # The same strings would be found if they were there: nginx' client-facing port is in clear, and so are refused strangers.
    plain() { # no packet between pods of the mesh has a nonce, or a statement of SQL, in clear
        local filter="(ip.src == $web_ip || ip.dst == $web_ip || ip.src == $payments_ip || ip.dst == $payments_ip || ip.src == $mallory_ip || ip.dst == $mallory_ip || (ip.src == $ingress_ip && tcp.dstport == 8080) || tcp.port == 3306 || tcp.port == 6379 || (ip.dst == $cart_ip && ip.src != $stranger_ip))"
        local found; found=$(tshark -r "$packets" -Y "$filter && (frame contains \"$run\" || frame contains \"INSERT INTO\" || frame contains \"incr\")" 2>/dev/null | head -3)
        [ -z "$found" ] || { echo "$found"; return 1; }
    }
    in_clear() { tshark -r "$packets" -Y "frame contains \"$run-ingress\" && ip.src == $stranger_ip" 2>/dev/null | grep -c . >/dev/null; }
    holds "on the wire: what is in clear is found (a stranger's call of nginx)" in_clear
    holds "on the wire: no nonce and no SQL between pods of the mesh" plain
fi
k -n shop delete pod e2e-web e2e-payments e2e-mallory --wait=false >/dev/null
