# shellcheck shell=bash
# All value sets of the chart are as a real API server wants them, with the kinds of other operators as fixtures
holds "helm lint" helm lint --quiet --strict "$CHART"
said=$("$CHART/ci/dry-run" 2>&1)
status=$?
while read -r line; do
    case $line in
        "values "*objects*) ok "$(grep -oE '[0-9]+ objects' <<<"$line")" "server dry run of $(cut -d: -f1 <<<"$line")" ;;
    esac
done <<<"$said"
[ "$status" -eq 0 ] || failed "server dry run" "$said"
