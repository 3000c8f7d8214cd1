# The same text is evaluated by OPA and by the proxy's own evaluator: e2e/opa and crates/authorizer/tests/opa.rs.
package envoy.authz

import input.attributes.request.http

default allow := {"allowed": false, "http_status": 403, "body": "nothing allows it"}

caller := trim_prefix(input.source_principal, "spiffe://")

namespace := split(caller, "/")[2]

# Anybody may look at what is public.
allow if {
	http.method in {"GET", "HEAD"}
	input.parsed_path[0] == "public"
}

# The shop's accounts may read carts of their own tenant, and are told apart by a field.
allow := {
	"allowed": true,
	"headers": {"x-tenant": tenant, "x-caller": caller},
	"request_headers_to_remove": ["x-debug"],
	"response_headers_to_add": {"x-decided-by": "rego"},
} if {
	http.method == "GET"
	input.parsed_path[0] == "carts"
	namespace == "shop"
	tenant == input.parsed_path[1]
}

tenant := input.attributes.contextExtensions.tenant

# Writing needs a reason in the query, and no debug field.
allow if {
	http.method in {"POST", "PUT"}
	startswith(http.path, "/carts/")
	regex.match(`^[a-z]{3,8}$`, input.parsed_query.reason[0])
	not http.headers["x-debug"]
	net.cidr_contains("10.0.0.0/8", input.attributes.source.address.socketAddress.address)
}

# Whoever deletes is sent to log in.
allow := {
	"allowed": false,
	"http_status": 401,
	"headers": {"www-authenticate": sprintf("Bearer realm=\"%s\"", [http.host])},
	"body": concat("|", sort([name | some name, _ in http.headers; not startswith(name, ":")])),
} if {
	http.method == "DELETE"
	count(input.parsed_path) > 1
}
