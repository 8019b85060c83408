package route_test

import (
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"

	"podwire.dev/services/ingress/internal/route"
)

func page(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../../../../docs/ingress.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestDocsRequests asks what the page asks, of the objects that it shows.
func TestDocsRequests(t *testing.T) {
	t.Parallel()
	text := page(t)
	yamls := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(text, -1)
	if len(yamls) != 2 {
		t.Fatalf("%d manifests on the page", len(yamls))
	}
	w := worldOf(t, yamls[1][1])
	for i, name := range []string{"cart", "carts", "items", "wild", "status", "mini", "api"} {
		w.SetService(route.Service{Ref: route.Ref{Namespace: "default", Name: name}, Ports: []route.ServicePort{{Number: 80}}})
		w.SetSlice(route.Slice{
			Ref: route.Ref{Namespace: "default", Name: name + "-1"}, Service: name, Ports: []route.SlicePort{{Number: 80}},
			Endpoints: []route.Endpoint{{Address: netip.AddrFrom4([4]byte{10, 244, 0, byte(i + 1)}), Ready: true}},
		})
	}
	table := w.Table()
	rows := regexp.MustCompile("(?m)^\\| `([^/`]+)(/[^`]*)` \\| ([^|]+) \\| (?:`([^`]*)` )?\\|$").FindAllStringSubmatch(text, -1)
	if len(rows) != 15 {
		t.Fatalf("%d requests on the page", len(rows))
	}
	for _, row := range rows {
		path, query, _ := strings.Cut(row[2], "?")
		d := table.Decide(route.Request{Host: row[1], Path: pathOf(t, path), Query: query})
		where, what := fmt.Sprintf("%d %s", d.Status, d.Code), d.Location
		if d.Status == 0 {
			where, what = table.Backends()[d.Backend].Service.Name, d.Path
			if d.Query != "" {
				what += "?" + d.Query
			}
		}
		if where != row[3] || what != row[4] {
			t.Errorf("%s%s goes to %s as %s, the page says %s as %s", row[1], row[2], where, what, row[3], row[4])
		}
	}
}

// TestDocsAnnotations compares the page's list with the one that is used.
func TestDocsAnnotations(t *testing.T) {
	t.Parallel()
	_, list, _ := strings.Cut(page(t), "## Annotations of ingress-nginx")
	said := map[string]string{}
	for _, row := range regexp.MustCompile("(?m)^\\| `([a-z0-9-]+)` \\| (\\w+) \\| (.*) \\|$").FindAllStringSubmatch(list, -1) {
		said[row[1]] = row[2] + " " + strings.TrimSpace(row[3])
	}
	all := route.Annotations()
	for _, a := range all {
		if want := string(a.Support) + " " + a.Note; said[a.Name] != want {
			t.Errorf("%s: the page says %q, the code %q", a.Name, said[a.Name], want)
		}
	}
	if len(said) != len(all) || len(all) < 117 {
		t.Errorf("%d annotations on the page, %d in the code", len(said), len(all))
	}
}
