package route_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"podwire.dev/services/ingress/internal/route"
)

// objects is a World as a test remembers it.
type objects struct {
	ingresses map[route.Ref]route.Ingress
	services  map[route.Ref]route.Service
	slices    map[route.Ref]route.Slice
	secrets   map[route.Ref]route.Secret
	classes   map[string]route.Class
}

// fresh is a World that was told everything at once, in whatever order maps give.
func (o *objects) fresh() *route.World {
	w := route.NewWorld()
	for _, x := range o.slices {
		w.SetSlice(x)
	}
	for _, x := range o.ingresses {
		w.SetIngress(x)
	}
	for _, x := range o.secrets {
		w.SetSecret(x)
	}
	for _, x := range o.services {
		w.SetService(x)
	}
	for _, x := range o.classes {
		w.SetClass(x)
	}
	return w
}

func pick[T any](r *rand.Rand, list ...T) T { return list[r.IntN(len(list))] }

// step changes one object in both Worlds.
func (o *objects) step(r *rand.Rand, w *route.World) {
	ref := route.Ref{Namespace: pick(r, "a", "b"), Name: pick(r, "x", "y", "z")}
	gone := r.IntN(4) == 0
	switch r.IntN(5) {
	case 0:
		if delete(o.ingresses, ref); gone {
			w.DeleteIngress(ref)
			return
		}
		in := route.Ingress{Ref: ref, Class: pick(r, "ours", "ours", "theirs", ""), Created: time.Unix(int64(r.IntN(3)), 0)}
		for i := range r.IntN(4) {
			in.Rules = append(in.Rules, route.Rule{
				Field: fmt.Sprint("rule ", i), Host: pick(r, "", "h.example", "*.example"),
				Path: pick(r, "/", "/p", "/p/", "/p/q", "/p(.*)"), Type: pick(r, route.Exact, route.Prefix, route.ImplementationSpecific),
				Target: route.Target{Service: pick(r, "x", "y"), PortNumber: int32(pick(r, 80, 81))},
			})
		}
		if r.IntN(3) == 0 {
			in.Default = &route.Target{Service: "x", PortName: "http"}
		}
		if r.IntN(3) == 0 {
			in.TLS = []route.TLS{{Field: "tls", Hosts: pick(r, nil, []string{"h.example"}, []string{"*.example"}), Secret: pick(r, "", "x", "y")}}
		}
		in.Options.Regex = r.IntN(2) == 0
		in.Options.Refused = pick(r, "", "", "refused")
		o.ingresses[ref] = in
		w.SetIngress(in)
	case 1:
		if delete(o.services, ref); gone {
			w.DeleteService(ref)
			return
		}
		s := route.Service{Ref: ref, ExternalName: r.IntN(8) == 0, IPv6First: r.IntN(2) == 0, Ports: []route.ServicePort{{Name: pick(r, "", "http"), Number: 80}}}
		o.services[ref] = s
		w.SetService(s)
	case 2:
		if delete(o.slices, ref); gone {
			w.DeleteSlice(ref)
			return
		}
		s := route.Slice{Ref: ref, Service: pick(r, "x", "y", ""), Ports: []route.SlicePort{{Name: pick(r, "", "http"), Number: 8080}}}
		for range r.IntN(3) {
			ready := r.IntN(2) == 0
			s.Endpoints = append(s.Endpoints, route.Endpoint{
				Address: pick(r, netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::1")),
				Ready:   ready, Draining: !ready && r.IntN(2) == 0,
			})
		}
		o.slices[ref] = s
		w.SetSlice(s)
	case 3:
		if delete(o.secrets, ref); gone {
			w.DeleteSecret(ref)
			return
		}
		s := route.Secret{Ref: ref, Problem: pick(r, "", "broken")}
		o.secrets[ref] = s
		w.SetSecret(s)
	case 4:
		name := pick(r, "ours", "theirs")
		if delete(o.classes, name); gone {
			w.DeleteClass(name)
			return
		}
		c := route.Class{Name: name, Controller: pick(r, route.Controller, "example.com/x"), Default: r.IntN(3) == 0}
		o.classes[name] = c
		w.SetClass(c)
	}
}

// say is everything that a table says about some requests.
func say(t testing.TB, table *route.Table) string {
	t.Helper()
	var out strings.Builder
	for _, host := range []string{"h.example", "other.example", "a.b", ""} {
		for _, path := range []string{"/", "/p", "/p/", "/p/q/r", "/pq", "/x"} {
			q := route.Request{Host: host, Path: pathOf(t, path)}
			d := table.Decide(q)
			fmt.Fprintf(&out, "%s%s %d %s", host, path, d.Status, table.Reason(q, d))
			if d.Backend >= 0 {
				b := table.Backends()[d.Backend]
				fmt.Fprint(&out, " ", b.Service, b.Port, b.Endpoints, b.Problem)
			}
			out.WriteString("\n")
		}
		if c := table.Certificate(host); c != nil {
			fmt.Fprintf(&out, "%s %+v\n", host, *c)
		}
	}
	fmt.Fprintln(&out, table.Problems())
	return out.String()
}

// TestHistoryDoesNotMatter compares a World that lived through changes with one that was told the outcome. The tables that
// were given meanwhile do not change.
func TestHistoryDoesNotMatter(t *testing.T) {
	t.Parallel()
	for seed := range uint64(40) {
		r := rand.New(rand.NewPCG(seed, 1))
		o := &objects{map[route.Ref]route.Ingress{}, map[route.Ref]route.Service{}, map[route.Ref]route.Slice{}, map[route.Ref]route.Secret{}, map[string]route.Class{}}
		w := route.NewWorld()
		for range 150 {
			before := w.Table()
			said := say(t, before)
			for range 1 + r.IntN(3) {
				o.step(r, w)
			}
			got, want := say(t, w.Table()), say(t, o.fresh().Table())
			if got != want {
				t.Fatalf("seed %d: it says\n%s\nand told at once\n%s", seed, got, want)
			}
			if say(t, before) != said {
				t.Fatalf("seed %d: an older table changed", seed)
			}
		}
	}
}

// FuzzDecide looks for a request that no table should be asked for, or one that leads past its rule.
func FuzzDecide(f *testing.F) {
	w := route.NewWorld()
	w.SetClass(route.Class{Name: "c", Controller: route.Controller, Default: true})
	for i, r := range []rule{{"", "/", route.Prefix}, {"", "/private", route.Prefix}, {"h", "/a(/|$)(.*)", route.Prefix}, {"*.h", "/e", route.Exact}} {
		in := route.Ingress{Ref: route.Ref{Namespace: "d", Name: fmt.Sprint(i)}, Rules: []route.Rule{{Field: fmt.Sprint(i), Host: r.host, Path: r.path, Type: r.kind, Target: route.Target{Service: "s", PortNumber: 80}}}}
		if i == 2 {
			in.Options = route.Options{Regex: true, Rewrite: "/z/$2"}
		}
		w.SetIngress(in)
	}
	w.SetService(route.Service{Ref: route.Ref{Namespace: "d", Name: "s"}, Ports: []route.ServicePort{{Number: 80}}})
	w.SetSlice(route.Slice{Ref: route.Ref{Namespace: "d", Name: "s"}, Service: "s", Ports: []route.SlicePort{{Number: 1}}, Endpoints: []route.Endpoint{{Address: netip.MustParseAddr("10.0.0.1"), Ready: true}}})
	table := w.Table()
	for _, seed := range []string{"/private/x", "/a/../private", "/a%2F..%2Fprivate", "//private", "/a/b%2fc"} {
		f.Add("h:80", seed)
	}
	f.Fuzz(func(t *testing.T, host, path string) {
		parsed, err := route.ParsePath(path)
		if err != nil {
			return
		}
		q := route.Request{Host: host, Path: parsed}
		d := table.Decide(q)
		_ = table.Reason(q, d)
		if d.Status != 0 {
			return
		}
		// Judged again as the endpoint gets it, what was not rewritten leads to the same rule.
		again, err := route.ParsePath(d.Path)
		if err != nil {
			t.Fatalf("%q is sent as %q: %v", path, d.Path, err)
		}
		if d.Route.Options.Rewrite == "" && table.Decide(route.Request{Host: host, Path: again}).Route != d.Route {
			t.Fatalf("%q is sent as %q, which leads elsewhere", path, d.Path)
		}
	})
}

func BenchmarkDecide(b *testing.B) {
	var rules []rule
	for i := range 1000 {
		rules = append(rules, rule{fmt.Sprintf("h%d.example", i), "/api/v1", route.Prefix})
	}
	w := route.NewWorld()
	w.SetClass(route.Class{Name: "c", Controller: route.Controller})
	for i, r := range rules {
		w.SetIngress(route.Ingress{Ref: route.Ref{Namespace: "d", Name: fmt.Sprint(i)}, Class: "c", Rules: []route.Rule{{Host: r.host, Path: r.path, Type: r.kind, Target: route.Target{Service: "s", PortNumber: 80}}}})
	}
	table := w.Table()
	b.ReportAllocs()
	for b.Loop() {
		p, err := route.ParsePath("/api/v1/things/7")
		if err != nil {
			b.Fatal(err)
		}
		if d := table.Decide(route.Request{Host: "h500.example", Path: p}); d.Route == nil {
			b.Fatal("no route")
		}
	}
}
