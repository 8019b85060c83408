package route_test

import (
	"os"
	"strings"
	"testing"

	"podwire.dev/services/ingress/internal/route"
)

// rule is one path of one host, whose backend is named after it.
type rule struct {
	host, path string
	kind       route.PathType
}

// tableOf has an Ingress per rule, in the order of their age.
func tableOf(rules ...rule) *route.Table {
	w := route.NewWorld()
	w.SetClass(route.Class{Name: "c", Controller: route.Controller})
	for i, r := range rules {
		w.SetIngress(route.Ingress{
			Ref: route.Ref{Namespace: "default", Name: string(rune('a' + i))}, Class: "c",
			Rules: []route.Rule{{Field: "f", Host: r.host, Path: r.path, Type: r.kind, Target: route.Target{Service: "s", PortNumber: 80}}},
		})
	}
	return w.Table()
}

func pathOf(t testing.TB, text string) route.Path {
	t.Helper()
	p, err := route.ParsePath(text)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestDocumentedTables replays the tables of Kubernetes' documentation.
func TestDocumentedTables(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("testdata/tables.tsv")
	if err != nil {
		t.Fatal(err)
	}
	ran := 0
	for line := range strings.Lines(string(data)) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		columns := strings.Split(strings.TrimSpace(line), "\t")
		rules, input, want := columns[0], columns[1], columns[2]
		ran++
		t.Run(rules+" "+input, func(t *testing.T) {
			host, path := "any.example", input
			var made []rule
			switch kind, rest, _ := strings.Cut(rules, " "); {
			case kind == "Mixed":
				made = []rule{{path: "/foo", kind: route.Prefix}, {path: "/foo", kind: route.Exact}}
			case strings.HasPrefix(kind, "*"):
				host, path = input, "/"
				made = []rule{{host: kind, path: "/", kind: route.Prefix}}
			default:
				for p := range strings.SplitSeq(rest, ",") {
					made = append(made, rule{path: strings.TrimSpace(p), kind: route.PathType(kind)})
				}
			}
			if path == "(all paths)" {
				path = "/any/path"
			}
			d := tableOf(made...).Decide(route.Request{Host: host, Path: pathOf(t, path)})
			word, which, _ := strings.Cut(want, " ")
			switch {
			case word == "no" && (d.Route != nil || d.Status != 404):
				t.Errorf("matches %v, %d; want 404", d.Route, d.Status)
			case word == "match" && d.Route == nil:
				t.Error("does not match")
			case strings.HasPrefix(which, "/") && d.Route.Path != which:
				t.Errorf("matches %s, want %s", d.Route.Path, which)
			case which == "Exact" && d.Route.Type != route.Exact:
				t.Errorf("matches %s, want Exact", d.Route.Type)
			}
		})
	}
	if ran != 23 {
		t.Errorf("%d rows of the tables ran", ran)
	}
}
