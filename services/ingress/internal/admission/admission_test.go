package admission

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/manifest"
	objectv1 "podwire.dev/proto/podwire/object/v1"
)

func parse(t *testing.T, name, text string) []manifest.Object {
	t.Helper()
	kinds, err := manifest.Builtin()
	if err != nil {
		t.Fatal(err)
	}
	objs, err := manifest.Parse(kinds, name, strings.NewReader(text), manifest.DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	return objs
}

// one parses an object: its type, its metadata besides the name, and the rest.
func one[O manifest.Message](t *testing.T, head, metadata, text string) O {
	t.Helper()
	objs := parse(t, "test", head+"\nmetadata: {name: x, "+metadata+"}\n"+strings.TrimSpace(text))
	o, ok := objs[0].Message.(O)
	if !ok {
		t.Fatalf("got %T", objs[0].Message)
	}
	return o
}

const (
	headIngress = "apiVersion: networking.k8s.io/v1\nkind: Ingress"
	headClass   = "apiVersion: networking.k8s.io/v1\nkind: IngressClass"
	headSecret  = "apiVersion: v1\nkind: Secret"
)

func ingressOf(t *testing.T, spec string) *objectv1.Ingress {
	t.Helper()
	return one[*objectv1.Ingress](t, headIngress, "namespace: default", "spec: "+spec)
}

// lines prints violations one by one.
func lines(list []errs.Violation) string {
	var out []string
	for _, v := range list {
		out = append(out, v.String())
	}
	return strings.Join(out, "\n")
}

// What Kubernetes' documentation and the mission show is accepted, and checked by one validator.
func TestDocumentedExamplesAreAccepted(t *testing.T) {
	const testdata = "../../../../internal/manifest/testdata/"
	seen := map[string]int{}
	for _, name := range []string{"docs/ingresses.yaml", "docs/secrets.yaml", "mission/minimal-ingress.yaml"} {
		text, err := os.ReadFile(filepath.FromSlash(testdata + name))
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range parse(t, name, string(text)) {
			var bad []errs.Violation
			switch m := o.Message.(type) {
			case *objectv1.Ingress:
				DefaultIngress(m, nil)
				bad = append(ValidateIngress(m, nil), ValidateIngressStatus(m, nil)...)
			case *objectv1.IngressClass:
				DefaultIngressClass(m, nil)
				bad = ValidateIngressClass(m, nil)
			case *objectv1.Secret:
				DefaultSecret(m, nil)
				bad = ValidateSecret(m, nil)
			}
			seen[o.Kind.Name]++
			if err := o.Place(bad); err != nil {
				t.Error(err)
			}
		}
	}
	if seen["Ingress"] < 9 || seen["IngressClass"] < 4 || seen["Secret"] < 10 {
		t.Errorf("examples: %v", seen)
	}
}

func TestIngressRules(t *testing.T) {
	const backend = "backend: {service: {name: s, port: {number: 80}}}"
	path := func(fields string) string { return "{rules: [{http: {paths: [{" + fields + "}]}}]}" }
	for spec, want := range map[string]string{
		"{}": "spec: either `defaultBackend` or `rules` must be specified",
		"{ingressClassName: c, tls: [{secretName: s}]}": "spec: either `defaultBackend` or `rules` must be specified",
		"{rules: [{}]}":                "",
		"{rules: [{host: a.example}]}": "",
		"{rules: [{http: {}}]}":        "spec.rules[0].http.paths: is required",
		"{defaultBackend: {}}":         "spec.defaultBackend: resource or service backend is required",
		"{defaultBackend: {service: {name: s, port: {name: p}}}}": "",

		path("pathType: Prefix, path: /, " + backend):                       "",
		path("pathType: ImplementationSpecific, " + backend):                "",
		path("pathType: ImplementationSpecific, path: '/a//b', " + backend): "",
		path("pathType: ImplementationSpecific, path: a, " + backend):       `spec.rules[0].http.paths[0].path: "a": must be an absolute path`,
		path("path: /, " + backend):                                         "spec.rules[0].http.paths[0].pathType: pathType must be specified",
		path("pathType: prefix, path: /, " + backend):                       `spec.rules[0].http.paths[0].pathType: "prefix": must be one of Exact, ImplementationSpecific, Prefix`,
		path("pathType: '', path: /, " + backend):                           `spec.rules[0].http.paths[0].pathType: must be one of Exact, ImplementationSpecific, Prefix`,
		path("pathType: Exact, " + backend):                                 "spec.rules[0].http.paths[0].path: must be an absolute path",
		path("pathType: Prefix, path: a, " + backend):                       `spec.rules[0].http.paths[0].path: "a": must be an absolute path`,
		path("pathType: Prefix, path: /a//b, " + backend):                   `spec.rules[0].http.paths[0].path: "/a//b": must not contain '//'`,
		path("pathType: Prefix, path: /a/./b, " + backend):                  `spec.rules[0].http.paths[0].path: "/a/./b": must not contain '/./'`,
		path("pathType: Exact, path: /a/../b, " + backend):                  `spec.rules[0].http.paths[0].path: "/a/../b": must not contain '/../'`,
		path("pathType: Exact, path: /a%2fb, " + backend):                   `spec.rules[0].http.paths[0].path: "/a%2fb": must not contain '%2f'`,
		path("pathType: Exact, path: /a%2Fb, " + backend):                   `spec.rules[0].http.paths[0].path: "/a%2Fb": must not contain '%2F'`,
		path("pathType: Exact, path: /a/.., " + backend):                    `spec.rules[0].http.paths[0].path: "/a/..": cannot end with '/..'`,
		path("pathType: Exact, path: /a/., " + backend):                     `spec.rules[0].http.paths[0].path: "/a/.": cannot end with '/.'`,
		path("pathType: Exact, path: /a/..., " + backend):                   "",
		path("pathType: Prefix, path: /"):                                   "spec.rules[0].http.paths[0].backend: resource or service backend is required",

		path("pathType: Prefix, path: /, backend: {service: {name: s, port: {number: 80}}, resource: {kind: K, name: res}}"): "spec.rules[0].http.paths[0].backend: cannot set both resource and service backends",
		path("pathType: Prefix, path: /, backend: {service: {name: s, port: {number: 80, name: p}}}"):                        "spec.rules[0].http.paths[0].backend: cannot set both port name & port number",
		path("pathType: Prefix, path: /, backend: {service: {name: s}}"):                                                     "spec.rules[0].http.paths[0].backend: port name or number is required",
		path("pathType: Prefix, path: /, backend: {service: {port: {number: 80}}}"):                                          "spec.rules[0].http.paths[0].backend.service.name: is required",
		path("pathType: Prefix, path: /, backend: {service: {name: S_, port: {number: 70000}}}"): `spec.rules[0].http.paths[0].backend.service.name: "S_": must be an RFC 1035 label: lower case letters, digits or '-', beginning with a letter and ending with a letter or digit
spec.rules[0].http.paths[0].backend.service.port.number: "70000": must be between 1 and 65535, inclusive`,
		path("pathType: Prefix, path: /, backend: {service: {name: s, port: {number: -1}}}"): `spec.rules[0].http.paths[0].backend.service.port.number: "-1": must be between 1 and 65535, inclusive`,
		path("pathType: Prefix, path: /, backend: {service: {name: s, port: {name: '80'}}}"): `spec.rules[0].http.paths[0].backend.service.port.name: "80": must contain at least one letter (a-z)`,
		path("pathType: Prefix, path: /, backend: {resource: {apiGroup: A, kind: a/b, name: '..'}}"): `spec.rules[0].http.paths[0].backend.resource.apiGroup: "A": must be a lowercase RFC 1123 subdomain: lower case letters, digits, '-' or '.', beginning and ending with a letter or digit
spec.rules[0].http.paths[0].backend.resource.kind: "a/b": may not contain '/'
spec.rules[0].http.paths[0].backend.resource.name: "..": may not be '..'`,
		path("pathType: Prefix, path: /, backend: {resource: {kind: 'a%b'}}"): `spec.rules[0].http.paths[0].backend.resource.kind: "a%b": may not contain '%'
spec.rules[0].http.paths[0].backend.resource.name: is required`,
	} {
		o := ingressOf(t, spec)
		DefaultIngress(o, nil)
		if got := lines(ValidateIngress(o, nil)); got != want {
			t.Errorf("%s:\ngot  %s\nwant %s", spec, got, want)
		}
	}
}

func TestHosts(t *testing.T) {
	const subdomain = "must be a lowercase RFC 1123 subdomain"
	const wildcard = "a wildcard DNS-1123 subdomain must start with '*.'"
	const address = "must be a DNS name, not an IP address"
	for host, want := range map[string]string{
		"a.example": "", "*.a.example": "", "*.a": "", "1.2.3": "", "1.2.3.256": "", "xn--bcher-kva.example": "",
		"A.example": subdomain, "a_b": subdomain, "a.example:80": subdomain, "-a": subdomain, "a..b": subdomain,
		"*": wildcard, "*a.example": wildcard, "a.*.example": wildcard, "*.*.example": wildcard, "*.": wildcard, "*.A": wildcard,
		"10.0.0.1": address, "010.0.0.01": address, "::1": address, "fd00::1": address,
	} {
		o := ingressOf(t, "{rules: [{}]}")
		o.Spec.Rules[0].Host = host
		got := lines(ValidateIngress(o, nil))
		if (got == "") != (want == "") || !strings.Contains(got, want) || want != "" && !strings.HasPrefix(got, "spec.rules[0].host: ") {
			t.Errorf("host %q: %s, want %q", host, got, want)
		}
	}
	o := ingressOf(t, "{rules: [{}], tls: [{hosts: [a.example, '*.b.example', '*', B], secretName: s_}, {}], ingressClassName: C_}")
	got := lines(ValidateIngress(o, nil))
	for _, want := range []string{"spec.tls[0].hosts[2]: ", "spec.tls[0].hosts[3]: ", `spec.tls[0].secretName: "s_": `, `spec.ingressClassName: "C_": `} {
		if !strings.Contains(got, want) {
			t.Errorf("no %s in\n%s", want, got)
		}
	}
	if n := strings.Count(got, "\n") + 1; n != 4 {
		t.Errorf("%d violations:\n%s", n, got)
	}
}

func TestClassAnnotation(t *testing.T) {
	annotated := func(class, spec string) *objectv1.Ingress {
		return one[*objectv1.Ingress](t, headIngress, "namespace: default, annotations: {kubernetes.io/ingress.class: "+class+"}", "spec: "+spec)
	}
	const bad = `metadata.annotations[kubernetes.io/ingress.class]: "a": must match ` + "`ingressClassName` when both are specified"
	if got := lines(ValidateIngress(annotated("a", "{rules: [{}], ingressClassName: b}"), nil)); got != bad {
		t.Errorf("both on creation: %s", got)
	}
	if got := lines(ValidateIngress(annotated("a", "{rules: [{}], ingressClassName: a}"), nil)); got != "" {
		t.Errorf("both the same: %s", got)
	}
	if got := lines(ValidateIngress(annotated("a", "{rules: [{}], ingressClassName: b}"), ingressOf(t, "{rules: [{}]}"))); got != "" {
		t.Errorf("both on an update: %s", got)
	}
	if WantsClass(annotated("a", "{rules: [{}]}")) || WantsClass(ingressOf(t, "{ingressClassName: a}")) || !WantsClass(ingressOf(t, "{}")) {
		t.Error("an Ingress wants the default class where it names none in either way")
	}

	old := ingressOf(t, "{rules: [{}], ingressClassName: a}")
	again := ingressOf(t, "{rules: [{}]}")
	CarryIngress(again, old)
	if again.GetSpec().GetIngressClassName() != "a" {
		t.Error("the class that was filled in was taken away by the same manifest")
	}
	for _, o := range []*objectv1.Ingress{annotated("b", "{rules: [{}]}"), ingressOf(t, "{ingressClassName: b}")} {
		CarryIngress(o, old)
		if o.GetSpec().GetIngressClassName() == "a" {
			t.Errorf("another class was overwritten: %v", o)
		}
	}
}

func TestDefaultClass(t *testing.T) {
	class := func(name, mark string) *objectv1.IngressClass {
		return &objectv1.IngressClass{Metadata: &objectv1.ObjectMeta{Name: name, Annotations: map[string]string{AnnotationDefaultClass: mark}}}
	}
	a, b, c := class("a", "true"), class("b", "true"), class("c", "false")
	if got, err := DefaultClass([]*objectv1.IngressClass{c, a}); err != nil || got != a {
		t.Errorf("got %v, %v", got, err)
	}
	if got, err := DefaultClass([]*objectv1.IngressClass{c}); err != nil || got != nil {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := DefaultClass([]*objectv1.IngressClass{b, c, a}); !errs.Is(err, errs.Denied) || !strings.Contains(err.Error(), "2 default IngressClasses were found, only 1 allowed: a, b") {
		t.Errorf("got %v", err)
	}
}

func TestIngressStatus(t *testing.T) {
	o := ingressOf(t, "{}\nstatus: {loadBalancer: {ingress: [{ip: 10.0.0.1}, {ip: 10.0.0}, {hostname: 10.0.0.1}, {hostname: A}, {ip: 'fe80::1%eth0', ports: [{port: 0, protocol: TCP}]}]}}")
	want := `status.loadBalancer.ingress[1].ip: "10.0.0": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)
status.loadBalancer.ingress[2].hostname: "10.0.0.1": must be a DNS name, not an IP address
status.loadBalancer.ingress[3].hostname: "A": must be a lowercase RFC 1123 subdomain: lower case letters, digits, '-' or '.', beginning and ending with a letter or digit
status.loadBalancer.ingress[4].ip: "fe80::1%eth0": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)
status.loadBalancer.ingress[4].ports[0].port: "0": must be between 1 and 65535, inclusive`
	if got := lines(ValidateIngressStatus(o, o)); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestIngressClassRules(t *testing.T) {
	for spec, want := range map[string]string{
		"{controller: example.com/c}":                      "",
		"{controller: k8s.io/a/b-c~%2}":                    "",
		"{}":                                               "spec.controller: is required",
		"{controller: nginx}":                              `spec.controller: "nginx": must be a domain-prefixed path (such as "acme.io/foo")`,
		"{controller: example.com/}":                       `spec.controller: "example.com/": must be a domain-prefixed path (such as "acme.io/foo")`,
		"{controller: Example.com/a}":                      `spec.controller: "Example.com/a": its domain must be a lowercase RFC 1123 subdomain: lower case letters, digits, '-' or '.', beginning and ending with a letter or digit`,
		"{controller: 'a.b/c d'}":                          `spec.controller: "a.b/c d": its path must consist of letters, digits and /-._~%!$&'()*+,;=: (RFC 3986)`,
		"{controller: a/" + strings.Repeat("x", 249) + "}": "spec.controller: may not be more than 250 bytes",
		"{controller: a/b, parameters: {}}": `spec.parameters.kind: is required
spec.parameters.name: is required`,
		"{controller: a/b, parameters: {kind: K, name: res}}":                                  "",
		"{controller: a/b, parameters: {kind: K, name: res, scope: Namespace}}":                "spec.parameters.namespace: is required: `parameters.scope` is set to 'Namespace'",
		"{controller: a/b, parameters: {kind: K, name: res, scope: Namespace, namespace: Ns}}": `spec.parameters.namespace: "Ns": must be a lowercase RFC 1123 label: lower case letters, digits or '-', beginning and ending with a letter or digit`,
		"{controller: a/b, parameters: {kind: K, name: res, namespace: x}}":                    "spec.parameters.namespace: \"x\": Forbidden: `parameters.scope` is set to 'Cluster'",
		"{controller: a/b, parameters: {kind: K, name: res, scope: cluster, apiGroup: 'a b'}}": `spec.parameters.apiGroup: "a b": must be a lowercase RFC 1123 subdomain: lower case letters, digits, '-' or '.', beginning and ending with a letter or digit
spec.parameters.scope: "cluster": must be one of Cluster, Namespace`,
	} {
		o := one[*objectv1.IngressClass](t, headClass, "", "spec: "+spec)
		DefaultIngressClass(o, nil)
		if got := lines(ValidateIngressClass(o, nil)); got != want {
			t.Errorf("%s:\ngot  %s\nwant %s", spec, got, want)
		}
	}
	old := one[*objectv1.IngressClass](t, headClass, "", "spec: {controller: a/b}")
	changed := one[*objectv1.IngressClass](t, headClass, "", "spec: {controller: a/c, parameters: {kind: K, name: x}}")
	DefaultIngressClass(changed, old)
	if got := lines(ValidateIngressClass(changed, old)); got != `spec.controller: "a/c": field is immutable` {
		t.Errorf("another controller: %s", got)
	}
}

func secretOf(t *testing.T, text string) *objectv1.Secret {
	t.Helper()
	o := one[*objectv1.Secret](t, headSecret, "namespace: default", text)
	DefaultSecret(o, nil)
	return o
}

func TestDefaultSecret(t *testing.T) {
	sent := one[*objectv1.Secret](t, headSecret, "", "data: {a: YQ==, b: Yg==}\nstringData: {b: plain, c: ''}")
	DefaultSecret(sent, nil)
	want := &objectv1.Secret{
		ApiVersion: "v1", Kind: "Secret", Metadata: sent.Metadata, Type: "Opaque",
		Data: map[string][]byte{"a": []byte("a"), "b": []byte("plain"), "c": {}},
	}
	if !proto.Equal(sent, want) {
		t.Errorf("got %v", sent)
	}
	old := secretOf(t, "type: kubernetes.io/tls")
	again := one[*objectv1.Secret](t, headSecret, "", "")
	CarrySecret(again, old)
	if DefaultSecret(again, old); again.GetType() != "kubernetes.io/tls" {
		t.Errorf("the type became %s", again.GetType())
	}
}

func TestSecretRules(t *testing.T) {
	const config = "kubernetes.io/dockerconfigjson"
	for text, want := range map[string]string{
		"":                                  "",
		"stringData: {a-b_c.9: x}":          "",
		"stringData: {'a b': x}":            "data[a b]: \"a b\": a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
		"stringData: {'': x}":               "data[]: a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
		"stringData: {.: x, ..: x, ..a: x}": "data[.]: \".\": must not be '.'\ndata[..]: \"..\": must not be '..'\ndata[..a]: \"..a\": must not start with '..'",
		"stringData: {" + strings.Repeat("k", 254) + ": x}":         `data: "kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk…": must be no more than 253 characters`,
		"stringData: {a: " + strings.Repeat("v", 1<<20) + "}":       "",
		"stringData: {b: v, a: " + strings.Repeat("v", 1<<20) + "}": "data: Too long: may not be more than 1048576 bytes in all; it is 1048577",

		"type: kubernetes.io/tls":                                       "data[tls.crt]: is required\ndata[tls.key]: is required",
		"type: kubernetes.io/tls\nstringData: {tls.crt: x}":             "data[tls.key]: is required",
		"type: kubernetes.io/tls\nstringData: {tls.crt: x, tls.key: z}": "",
		"type: kubernetes.io/service-account-token":                     "metadata.annotations[kubernetes.io/service-account.name]: is required",
		"type: kubernetes.io/dockercfg":                                 "data[.dockercfg]: is required",
		"type: kubernetes.io/dockercfg\nstringData: {.dockercfg: '{}'}": "",
		"type: " + config: "data[.dockerconfigjson]: is required",
		"type: " + config + "\nstringData: {.dockerconfigjson: hunter2}": `data[.dockerconfigjson]: "<secret contents redacted>": must be a JSON object`,
		"type: " + config + "\nstringData: {.dockerconfigjson: '[1]'}":   `data[.dockerconfigjson]: "<secret contents redacted>": must be a JSON object`,
		"type: kubernetes.io/basic-auth":                                 "data[username]: is required\ndata[password]: is required",
		"type: kubernetes.io/basic-auth\nstringData: {password: ''}":     "",
		"type: kubernetes.io/ssh-auth\nstringData: {ssh-privatekey: ''}": "data[ssh-privatekey]: is required",
		"type: example.com/any":                                          "",
	} {
		o := secretOf(t, text)
		if got := lines(ValidateSecret(o, nil)); got != want {
			t.Errorf("%.80s:\ngot  %s\nwant %s", text, got, want)
		}
	}
}

func TestSecretUpdates(t *testing.T) {
	const frozen = "field is immutable when `immutable` is set"
	for _, c := range []struct{ old, now, want string }{
		{"stringData: {a: x}", "stringData: {a: z}", ""},
		{"type: a", "type: b", `type: "b": field is immutable`},
		{"stringData: {a: x}", "stringData: {a: x}\nimmutable: true", ""},
		{"stringData: {a: x}\nimmutable: true", "data: {a: eA==}\nimmutable: true", ""},
		{"stringData: {a: hunter2}\nimmutable: true", "stringData: {a: hunter3}\nimmutable: true", "data: Forbidden: " + frozen},
		{"stringData: {a: x}\nimmutable: true", "stringData: {a: x, b: z}\nimmutable: true", "data: Forbidden: " + frozen},
		{"stringData: {a: x}\nimmutable: true", "stringData: {a: x}\nimmutable: false", "immutable: Forbidden: " + frozen},
		{"stringData: {a: x}\nimmutable: true", "type: b", "type: \"b\": field is immutable\nimmutable: Forbidden: " + frozen + "\ndata: Forbidden: " + frozen},
	} {
		if got := lines(ValidateSecret(secretOf(t, c.now), secretOf(t, c.old))); got != c.want {
			t.Errorf("%q to %q:\ngot  %s\nwant %s", c.old, c.now, got, c.want)
		}
	}
}
