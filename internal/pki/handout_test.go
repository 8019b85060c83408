package pki_test

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/pki"
)

func TestHandOut(t *testing.T) {
	t.Parallel()
	plan := pki.Plan{Services: []string{"ipam", "ingress"}, Nodes: []string{"node-1"}}
	dir, to := initialised(t, plan), t.TempDir()
	if _, err := pki.HandOut(dir, to, plan); err != nil {
		t.Fatal(err)
	}
	// Each file is of the mode that lets in who mounts it, and of the content that Init wrote.
	want := map[string]struct{ from, mode string }{
		"service-cluster/ca.crt":      {"ca.crt", "-rw-r--r--"},
		"service-cluster/ca.key":      {"ca.key", "-rw-------"},
		"service-cluster/tokens.json": {"tokens.json", "-rw-------"},
		"service-ipam/ca.crt":         {"ca.crt", "-rw-r--r--"},
		"service-ipam/token":          {"tokens/service-ipam.token", "-rw-r-----"},
		"service-ingress/ca.crt":      {"ca.crt", "-rw-r--r--"},
		"service-ingress/token":       {"tokens/service-ingress.token", "-rw-r-----"},
		"service-ingress/secrets.key": {"secrets.key", "-rw-r-----"},
		"node-node-1/ca.crt":          {"ca.crt", "-rw-r--r--"},
		"node-node-1/token":           {"tokens/node-node-1.token", "-rw-r-----"},
	}
	got := contents(t, to)
	if !slices.Equal(slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want))) {
		t.Errorf("handed out %q, want %q", slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
	}
	for name, w := range want {
		info, err := os.Stat(filepath.Join(to, name))
		if err != nil {
			t.Error(err)
			continue
		}
		if mode := info.Mode().String(); mode != w.mode {
			t.Errorf("%s has mode %s, want %s", name, mode, w.mode)
		}
		if read(t, to, name) != read(t, dir, w.from) {
			t.Errorf("%s differs from %s", name, w.from)
		}
	}
}

func TestHandOutFollowsAndForgetsNothing(t *testing.T) {
	t.Parallel()
	plan := pki.Plan{Services: []string{"ipam"}}
	dir, to := initialised(t, plan), t.TempDir()
	if _, err := pki.HandOut(dir, to, plan); err != nil {
		t.Fatal(err)
	}
	before := contents(t, to)
	again, err := pki.HandOut(dir, to, plan)
	if err != nil || !again.Unchanged() || !maps.Equal(before, contents(t, to)) {
		t.Errorf("a second time: %+v, %v, want nothing", again, err)
	}
	// Another node: its own files, and the records that cluster has to know it by.
	plan.Nodes = []string{"node-1"}
	if _, err := pki.Init(dir, plan); err != nil {
		t.Fatal(err)
	}
	more, err := pki.HandOut(dir, to, plan)
	if want := []string{"service-cluster/tokens.json", "node-node-1/ca.crt", "node-node-1/token"}; err != nil || !slices.Equal(more.Created, want) {
		t.Errorf("another node: %q, %v, want %q", more.Created, err, want)
	}
	// A plain token that was removed stays with the one who has it, and is missed by the one who has not.
	if err := os.Remove(pki.TokenFile(dir, pki.Service("ipam"))); err != nil {
		t.Fatal(err)
	}
	if r, err := pki.HandOut(dir, to, plan); err != nil || !r.Unchanged() {
		t.Errorf("a removed token: %+v, %v, want it left as it was handed out", r, err)
	}
	if _, err := pki.HandOut(dir, t.TempDir(), plan); !errs.Is(err, errs.NotFound) {
		t.Errorf("a removed token, to somewhere else: %v, want NotFound", err)
	}
}

func read(t *testing.T, dir, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
