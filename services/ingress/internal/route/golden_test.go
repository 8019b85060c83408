package route_test

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"

	"podwire.dev/internal/manifest"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/ingress/internal/route"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestDecide has an archive per story: objects, requests (one a line: [https] host path [from address]), and what happens
// to each.
func TestDecide(t *testing.T) {
	names, err := filepath.Glob("testdata/decide/*.txtar")
	if err != nil || len(names) == 0 {
		t.Fatal(err)
	}
	for _, name := range names {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(name)
			if err != nil {
				t.Fatal(err)
			}
			if len(archive.Files) != 3 {
				t.Fatal("an archive holds in.yaml, requests and want")
			}
			w := worldOf(t, string(archive.Files[0].Data))
			table := w.Table()
			var got strings.Builder
			for line := range strings.Lines(string(archive.Files[1].Data)) {
				if line = strings.TrimSpace(line); line != "" {
					got.WriteString(line + "\n" + answer(t, table, line))
				}
			}
			for _, p := range table.Problems() {
				fmt.Fprintf(&got, "problem: %s %s %s\n", p.Ingress, p.Field, p.Reason)
			}
			if *update {
				archive.Files[2].Data = []byte(got.String())
				if err := os.WriteFile(name, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if want := string(archive.Files[2].Data); got.String() != want {
				t.Errorf("got\n%s\nwant\n%s", got.String(), want)
			}
		})
	}
}

func worldOf(t testing.TB, text string) *route.World {
	t.Helper()
	kinds, err := manifest.Builtin()
	if err != nil {
		t.Fatal(err)
	}
	objects, err := manifest.Parse(kinds, "in.yaml", strings.NewReader(text), manifest.DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	w := route.NewWorld()
	for _, o := range objects {
		if meta := o.Message.GetMetadata(); meta.GetNamespace() == "" {
			meta.Namespace = "default"
		}
		switch o := o.Message.(type) {
		case *objectv1.Ingress:
			w.SetIngress(route.ParseIngress(o))
		case *objectv1.IngressClass:
			w.SetClass(route.ParseClass(o))
		case *objectv1.Service:
			w.SetService(route.ParseService(o))
		case *objectv1.EndpointSlice:
			w.SetSlice(route.ParseSlice(o))
		case *objectv1.Secret:
			w.SetSecret(route.Secret{Ref: route.Ref{Namespace: o.GetMetadata().GetNamespace(), Name: o.GetMetadata().GetName()}})
		default:
			t.Fatalf("%T", o)
		}
	}
	return w
}

func answer(t testing.TB, table *route.Table, line string) string {
	t.Helper()
	words := strings.Fields(line)
	q := route.Request{}
	if words[0] == "https" {
		q.TLS, words = true, words[1:]
	}
	if q.Host = words[0]; q.Host == "-" {
		q.Host = ""
	}
	path, query, _ := strings.Cut(words[1], "?")
	q.Query = query
	if len(words) == 4 {
		q.Client = netip.MustParseAddr(words[3])
	}
	parsed, err := route.ParsePath(path)
	if err != nil {
		return "  " + err.Error() + "\n"
	}
	q.Path = parsed
	d := table.Decide(q)
	var out strings.Builder
	if d.Status == 0 {
		b := table.Backends()[d.Backend]
		fmt.Fprintf(&out, "  -> %s:%s %s %v %s", b.Service, b.Port, b.Protocol, b.Endpoints, d.Path)
		if d.Query != "" {
			out.WriteString("?" + d.Query)
		}
		out.WriteString("\n")
	} else {
		fmt.Fprintf(&out, "  -> %d %s %s\n", d.Status, d.Code, d.Location)
	}
	if q.TLS {
		c := table.Certificate(q.Host)
		switch {
		case c == nil:
			out.WriteString("  certificate: own\n")
		case c.Problem != "":
			out.WriteString("  certificate: own, " + c.Problem + "\n")
		default:
			out.WriteString("  certificate: " + c.Secret.String() + "\n")
		}
	}
	out.WriteString("  " + table.Reason(q, d) + "\n")
	return out.String()
}
