package statedir_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"podwire.dev/cmd/podwire/internal/statedir"
	"podwire.dev/internal/errs"
)

func TestResolve(t *testing.T) {
	t.Parallel()
	base, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(base, "real"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(base, "real"), filepath.Join(base, "link")); err != nil {
		t.Fatal(err)
	}
	want := statedir.Dir(filepath.Join(base, "real", "state"))
	// One directory has one name and one id, before it exists and after.
	for _, path := range []string{"real/state", "link/state", "real/../link/state/", "link//state"} {
		for range 2 {
			got, err := statedir.Resolve(filepath.Join(base) + "/" + path)
			if err != nil || got != want || got.ID() != want.ID() {
				t.Errorf("%s: %q, %v; want %q", path, got, err, want)
			}
			if err := os.MkdirAll(string(want), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestResolveRefuses(t *testing.T) {
	t.Parallel()
	long := "/" + strings.Repeat("x", 72)
	if _, err := statedir.Resolve(long); err != nil {
		t.Errorf("73 bytes: %v", err)
	}
	for path, want := range map[string]string{
		long + "x": "has 74 bytes: must have at most 73",
		"/":        "directory of its own",
	} {
		if _, err := statedir.Resolve(path); !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want Invalid with %q", path, err, want)
		}
	}
	// The limit is there for the longest socket, while it is being made.
	dir, err := statedir.Resolve(long)
	if err != nil {
		t.Fatal(err)
	}
	for _, socket := range []string{dir.Socket("svcproxy"), dir.AgentSocket("node-150")} {
		if n := len(socket + ".4194304"); n > 107 {
			t.Errorf("%s: %d bytes", socket, n)
		}
	}
}

func TestMarker(t *testing.T) {
	t.Parallel()
	dir, err := statedir.Resolve(filepath.Join(t.TempDir(), "new"))
	if err != nil {
		t.Fatal(err)
	}
	if empty, err := dir.Empty(); err != nil || !empty {
		t.Errorf("a directory that does not exist: empty %v, %v", empty, err)
	}
	if _, ours, err := dir.ReadMarker(); err != nil || ours {
		t.Errorf("a directory that does not exist: ours %v, %v", ours, err)
	}
	if err := dir.WriteMarker(json.RawMessage(`{"nodes": 3}`)); err != nil {
		t.Fatal(err)
	}
	m, ours, err := dir.ReadMarker()
	if err != nil || !ours || m.ID != dir.ID() || !strings.Contains(string(m.Options), "3") {
		t.Errorf("marker %+v, %v, %v", m, ours, err)
	}
	if empty, err := dir.Empty(); err != nil || empty {
		t.Errorf("with a marker: empty %v, %v", empty, err)
	}
	if err := os.WriteFile(dir.Path(statedir.MarkerFile), []byte("something else"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := dir.ReadMarker(); !errs.Is(err, errs.Invalid) {
		t.Errorf("a file of that name that is not ours: %v, want Invalid", err)
	}
}
