# shellcheck shell=bash
# helm uninstall leaves nothing of the mesh
k delete -f examples/kubernetes/policies.yaml --ignore-not-found >/dev/null 2>&1
holds "helm uninstall" helm uninstall postern -n $SYSTEM --wait --timeout 2m
# Of the namespace, which is not helm's, it takes everything away that it or the components made.
left() {
    local said
    said=$({
        k get crd,mutatingwebhookconfigurations,validatingwebhookconfigurations,apiservices,clusterroles,clusterrolebindings -o name
        k -n $SYSTEM get secrets,configmaps,leases,serviceaccounts,deployments,services,roles,rolebindings,pdb,networkpolicies,pods,jobs -o name
        k -n kube-system get roles,rolebindings -o name
    } 2>/dev/null | grep -iE 'postern|/postern-' | grep -v 'namespace/')
    [ -z "$said" ] || { echo "$said"; return 1; }
}
holds "it leaves nothing: no webhook, APIService, CRD, role, Secret, ConfigMap or Lease" until_true 30 left
pods_again() { # Without the mesh pods of a namespace that still has the label are made as they are
    local said
    caller shop e2e-after web || return 1
    said=$(k -n shop get pod e2e-after -o json)
    ! grep -q '"postern-proxy"' <<<"$said"
}
holds "pods can be made afterwards" pods_again
k delete -f examples/kubernetes/ --ignore-not-found --wait=false >/dev/null 2>&1
k delete ns $SYSTEM shop shop-edge shop-outside shop-monitoring --ignore-not-found --wait=false >/dev/null 2>&1
true
