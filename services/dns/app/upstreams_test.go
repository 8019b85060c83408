package app

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"podwire.dev/services/dns/internal/forward"
)

// TestResolvConf follows a resolv.conf: another file, another upstream server; one that cannot be read changes nothing.
func TestResolvConf(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "resolv.conf")
	f := forward.New(forward.Options{Attempt: 1})
	r := &resolvFile{path: path, forwarder: f, log: slog.New(slog.DiscardHandler)}
	if err := r.read(); err == nil {
		t.Error("a file that is not there was read")
	}
	asked := 0
	says := func(what, want string) {
		t.Helper()
		asked++
		q := forward.Question{Name: strings.Repeat("x", asked) + ".example.", Type: dns.TypeA}
		if got := f.Ask(context.Background(), q).Reason; !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := r.read(); err != nil {
			t.Fatal(err)
		}
	}
	write("search example.\nnameserver 192.0.2.1\n")
	says("one server", "192.0.2.1:53")
	write("nameserver 192.0.2.2\n")
	says("another", "192.0.2.2:53")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := r.read(); err == nil {
		t.Error("a file that is gone was read")
	}
	says("gone", "192.0.2.2:53")
	write("# nobody\n")
	says("nobody", "no upstream server is configured")
}
