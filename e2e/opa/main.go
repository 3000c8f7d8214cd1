// An ext_authz server around OPA's own library, for tests: what OPA-Envoy does with a CheckRequest, without its module
// (which this project's machines cannot get). The input document and the reading of the decision follow
// opa-envoy-plugin's envoyauth/request.go and envoyauth/response.go.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
	"sort"
	"strings"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	auth "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	envoy_type "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/util"
	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

type server struct {
	query rego.PreparedEvalQuery
}

// opa-ext-authz ADDRESS QUERY MODULE...: prints the address that it listens on.
func main() {
	options := []func(*rego.Rego){rego.Query(os.Args[2])}
	for _, module := range os.Args[3:] {
		text, err := os.ReadFile(module)
		if err != nil {
			log.Fatal(err)
		}
		options = append(options, rego.Module(module, string(text)))
	}
	query, err := rego.New(options...).PrepareForEval(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	listener, err := net.Listen("tcp", os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(listener.Addr())
	grpcServer := grpc.NewServer()
	auth.RegisterAuthorizationServer(grpcServer, &server{query})
	log.Fatal(grpcServer.Serve(listener))
}

func (s *server) Check(ctx context.Context, request *auth.CheckRequest) (*auth.CheckResponse, error) {
	input, err := inputOf(request)
	if err != nil {
		return denied(http.StatusBadRequest, nil, ""), nil
	}
	results, err := s.query.Eval(ctx, rego.EvalInput(input))
	if err != nil {
		return nil, err
	}
	if len(results) == 0 || len(results[0].Expressions) == 0 {
		return nil, fmt.Errorf("the decision is undefined")
	}
	return responseOf(results[0].Expressions[0].Value)
}

func inputOf(request *auth.CheckRequest) (map[string]any, error) {
	bytes, err := protojson.Marshal(request)
	if err != nil {
		return nil, err
	}
	input := map[string]any{}
	if err := util.UnmarshalJSON(bytes, &input); err != nil {
		return nil, err
	}
	input["version"] = map[string]string{"ext_authz": "v3", "encoding": "protojson"}
	parsed, err := url.Parse(request.GetAttributes().GetRequest().GetHttp().GetPath())
	if err != nil {
		return nil, err
	}
	segments := strings.Split(strings.TrimLeft(parsed.Path, "/"), "/")
	path := make([]any, len(segments))
	for i := range segments {
		path[i] = segments[i]
	}
	query := map[string]any{}
	for name, values := range parsed.Query() {
		list := make([]any, len(values))
		for i := range values {
			list[i] = values[i]
		}
		query[name] = list
	}
	input["parsed_path"], input["parsed_query"] = path, query
	// Bodies are not sent.
	input["parsed_body"], input["truncated_body"] = nil, false
	if principal := request.GetAttributes().GetSource().GetPrincipal(); principal != "" {
		input["source_principal"] = principal
	}
	return input, nil
}

func responseOf(decision any) (*auth.CheckResponse, error) {
	switch decision := decision.(type) {
	case bool:
		if decision {
			return allowed(nil, nil, nil), nil
		}
		return denied(http.StatusForbidden, nil, ""), nil
	case map[string]any:
		allow, ok := decision["allowed"].(bool)
		if !ok {
			return nil, fmt.Errorf("an object without `allowed`")
		}
		headers := fields(decision["headers"])
		if !allow {
			status := http.StatusForbidden
			if number, ok := decision["http_status"].(json.Number); ok {
				value, err := number.Int64()
				if err != nil {
					return nil, err
				}
				status = int(value)
			}
			body, _ := decision["body"].(string)
			return denied(status, headers, body), nil
		}
		removed := []string{}
		for _, name := range list(decision["request_headers_to_remove"]) {
			removed = append(removed, name.(string))
		}
		return allowed(headers, fields(decision["response_headers_to_add"]), removed), nil
	default:
		return nil, fmt.Errorf("neither boolean nor object")
	}
}

func list(value any) []any {
	values, _ := value.([]any)
	return values
}

// In the order of their names, so that two runs say the same.
func fields(value any) []*core.HeaderValueOption {
	object, _ := value.(map[string]any)
	names := []string{}
	for name := range object {
		names = append(names, name)
	}
	sort.Strings(names)
	options := []*core.HeaderValueOption{}
	for _, name := range names {
		values := list(object[name])
		if one, ok := object[name].(string); ok {
			values = []any{one}
		}
		for _, value := range values {
			options = append(options, &core.HeaderValueOption{
				Header: &core.HeaderValue{Key: name, Value: value.(string)},
			})
		}
	}
	return options
}

func allowed(headers, answer []*core.HeaderValueOption, removed []string) *auth.CheckResponse {
	for _, option := range answer {
		option.Append = wrapperspb.Bool(true)
	}
	return &auth.CheckResponse{
		Status: &status.Status{Code: int32(code.Code_OK)},
		HttpResponse: &auth.CheckResponse_OkResponse{OkResponse: &auth.OkHttpResponse{
			Headers: headers, HeadersToRemove: removed, ResponseHeadersToAdd: answer,
		}},
	}
}

func denied(number int, headers []*core.HeaderValueOption, body string) *auth.CheckResponse {
	return &auth.CheckResponse{
		Status: &status.Status{Code: int32(code.Code_PERMISSION_DENIED)},
		HttpResponse: &auth.CheckResponse_DeniedResponse{DeniedResponse: &auth.DeniedHttpResponse{
			Status:  &envoy_type.HttpStatus{Code: envoy_type.StatusCode(number)},
			Headers: headers, Body: body,
		}},
	}
}
