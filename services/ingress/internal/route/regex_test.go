package route

import (
	"fmt"
	"strings"
	"testing"

	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// TestRegularExpressionsAreBounded: a few letters do not take the memory of the service.
func TestRegularExpressionsAreBounded(t *testing.T) {
	class, kind := "ours", string(ImplementationSpecific)
	problems := func(paths ...string) (out []string) {
		w := NewWorld()
		w.SetClass(Class{Name: class, Controller: Controller})
		rule := &objectv1.HTTPIngressRuleValue{}
		for _, p := range paths {
			rule.Paths = append(rule.Paths, &objectv1.HTTPIngressPath{
				Path: p, PathType: &kind, Backend: &objectv1.IngressBackend{Service: &objectv1.IngressServiceBackend{
					Name: "web", Port: &objectv1.ServiceBackendPort{Number: 80},
				}},
			})
		}
		w.SetIngress(ParseIngress(&objectv1.Ingress{
			Metadata: &objectv1.ObjectMeta{Namespace: "default", Name: "web", Annotations: map[string]string{prefix + "use-regex": "true"}},
			Spec:     &objectv1.IngressSpec{IngressClassName: &class, Rules: []*objectv1.IngressRule{{Host: "a", Http: rule}}},
		}))
		w.SetService(Service{Ref: Ref{"default", "web"}, Ports: []ServicePort{{Number: 80}}})
		for _, p := range w.Table().Problems() {
			if strings.HasSuffix(p.Field, ".path") {
				out = append(out, p.Reason)
			}
		}
		return out
	}
	for path, want := range map[string]string{
		"/(" + strings.Repeat("x", 1500) + "){1000}": "more than 2000 instructions",
		"/((x{100}){10}){1}y{0,900}z{900,}":          "more than 2000 instructions",
		"/((x{0,1000}))*(y{1000})+":                  "more than 2000 instructions",
		`/(\pL\pN){50}`:                              "more than 2000 instructions",
		"/(":                                         "is not a regular expression",
	} {
		if got := problems(path); len(got) != 1 || !strings.Contains(got[0], want) {
			t.Errorf("%.40s: %q, want %q", path, got, want)
		}
	}
	if got := problems(`/api(/|$)(.*)`, `/v[0-9]{1,3}/[a-z0-9-]{1,63}/.*\.(js|css|png)$`, `/\w{8}-\w{4}-\w{4}-\w{4}-\w{12}`); len(got) > 0 {
		t.Errorf("usual ones: %q", got)
	}
	var many []string
	for i := range 100 {
		many = append(many, fmt.Sprintf("/%d/x{990}", i))
	}
	got := problems(many...)
	if len(got) < 45 || len(got) > 55 || !strings.Contains(got[0], "one regular expression too many") {
		t.Errorf("%d of %d are refused: %.200s", len(got), len(many), got[0])
	}
}
