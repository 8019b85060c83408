package store

import (
	"testing"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/store/kv"
)

func FuzzContinueToken(f *testing.F) {
	for _, after := range []Key{{"pods", "a", "one"}, {"nodes", "", "node-1"}, {SecretKind, "a", "one"}} {
		for _, ns := range []string{"", "a"} {
			token, err := formatContinue(ListQuery{Kind: after.Kind, Namespace: ns}, 7, after)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(token, after.Kind, ns)
		}
	}
	f.Add("", "pods", "")
	f.Add("AAAA", "pods", "a")
	f.Fuzz(func(t *testing.T, token, kind, ns string) {
		q := ListQuery{Kind: kind, Namespace: ns}
		key, rev, err := parseContinue(token, q)
		if err != nil {
			if !errs.Is(err, errs.Invalid) {
				t.Fatalf("a bad token is %v", errs.KindOf(err))
			}
			return
		}
		// A token never leads out of the list that it belongs to.
		prefix := root(kind) + kind + "/"
		if ns != "" {
			prefix += ns + "/"
		}
		if p := key.path(); p <= prefix || p >= kv.PrefixEnd(prefix) || rev <= 0 {
			t.Fatalf("token of %+v leads to %s at %d", q, p, rev)
		}
		again, err := formatContinue(q, rev, key)
		if err != nil {
			t.Fatal(err)
		}
		if k, r, err := parseContinue(again, q); err != nil || k != key || r != rev {
			t.Fatalf("token of %v at %d reads back as %v at %d: %v", key, rev, k, r, err)
		}
	})
}

func FuzzKey(f *testing.F) {
	for _, tail := range []string{"pods/a/one", "nodes/-/node-1", "~deleted/pods/a/one", "//", "-/-/-"} {
		f.Add(tail)
	}
	f.Fuzz(func(t *testing.T, tail string) {
		if key, ok := parseKey(tail); ok && key.tail() != tail {
			t.Fatalf("%q reads as %+v, which is written as %q", tail, key, key.tail())
		}
	})
}

func TestKeys(t *testing.T) {
	for _, k := range []Key{{"pods", "a", "one"}, {"nodes", "", "node-1"}, {"endpointslices.discovery.k8s.io", "kube-system", "a.b"}} {
		if got, ok := parseKey(k.tail()); !ok || got != k {
			t.Errorf("%v reads back as %v, %v", k, got, ok)
		}
	}
	for _, bad := range []string{"", "pods", "pods/a", "pods/a/", "pods//one", "/a/one", "pods/a/one/two"} {
		if k, ok := parseKey(bad); ok {
			t.Errorf("%q reads as %v", bad, k)
		}
	}
	if got := (Key{"nodes", "", "node-1"}).path(); got != "/podwire/o/nodes/-/node-1" {
		t.Errorf("a cluster-scoped object is at %s", got)
	}
	for path, want := range map[string]Key{
		"/podwire/o/pods/a/one":            {"pods", "a", "one"},
		"/podwire/s/secrets/a/one":         {SecretKind, "a", "one"},
		"/podwire/o/secrets/a/one":         {},
		"/podwire/s/pods/a/one":            {},
		"/podwire/o/~sealed":               {},
		"/podwire/o/~deleted/secrets/a/x":  {},
		"/podwire/x/blobs/a/one":           {},
		"/podwire/s/secrets/a/one/another": {},
	} {
		got, ok := parsePath(path)
		if ok != (want != Key{}) || ok && (got != want || got.path() != path) {
			t.Errorf("%s reads as %v, %v", path, got, ok)
		}
	}
	if got := (Key{"pods", "a", "one"}).tombstone(); got != "/podwire/o/~deleted/pods/a/one" {
		t.Errorf("a tombstone is at %s", got)
	}
}

func TestResourceVersions(t *testing.T) {
	for s, want := range map[string]Revision{"": 0, "0": 0, "42": 42} {
		if got, err := ParseResourceVersion(s); err != nil || got != want {
			t.Errorf("%q reads as %d, %v", s, got, err)
		}
	}
	for _, bad := range []string{"-1", "x", "1.0", "18446744073709551615", "+1"} {
		if got, err := ParseResourceVersion(bad); err == nil {
			t.Errorf("%q reads as %d", bad, got)
		}
	}
}
