package probe

import (
	"bytes"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// TestHTTPOptions asks a server over TLS as different clients would.
func TestHTTPOptions(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	conns := map[string]bool{}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		conns[r.RemoteAddr] = true
		mu.Unlock()
		if r.URL.Path == "/gone" {
			w.Header()["Date"] = nil
			w.Header().Set("X-Why", "gone")
			http.Error(w, "gone for good", http.StatusGone)
			return
		}
		_, _ = w.Write([]byte(r.Host + " " + r.TLS.ServerName + "\n"))
	}))
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	ca := filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args   string
		code   int
		stdout string
		stderr string
	}{
		{"--host example.com --ca " + ca, Reached, "example.com example.com\n", "HTTP/2.0 200 OK"},
		{"--host other.test --ca " + ca, Refused, "", "certificate is valid for example.com"},
		{"--host other.test --insecure", Reached, "other.test other.test\n", ""},
		{"--host example.com", Refused, "", "signed by unknown authority"},
		{"--ca " + empty, NotTried, "", "no certificate in it"},
		{"--ca /nowhere", NotTried, "", "no such file"},
	} {
		var stdout, stderr bytes.Buffer
		code := Main(t.Context(), append([]string{"http", server.URL}, strings.Fields(tt.args)...), &stdout, &stderr)
		if code != tt.code || stdout.String() != tt.stdout || !strings.Contains(stderr.String(), tt.stderr) {
			t.Errorf("%s: %d, %q, %q", tt.args, code, stdout.String(), stderr.String())
		}
	}
	var out bytes.Buffer
	Main(t.Context(), []string{"http", server.URL + "/gone", "--insecure", "--headers"}, &out, &out)
	want := "HTTP/2.0 410 Gone\nContent-Length: 14\nContent-Type: text/plain; charset=utf-8\nX-Content-Type-Options: nosniff\nX-Why: gone\n\ngone for good\n"
	if !strings.HasPrefix(out.String(), want) {
		t.Errorf("headers: got\n%s\nwant\n%s", out.String(), want)
	}
	for keep, want := range map[string]int{"--keep-alive": 1, "--keep-alive=false": 3} {
		mu.Lock()
		clear(conns)
		mu.Unlock()
		if code := Main(t.Context(), []string{"http", server.URL, "--insecure", "--count", "3", "--interval", "0", keep}, &out, &out); code != Reached {
			t.Errorf("%s: %d: %s", keep, code, out.String())
		}
		mu.Lock()
		if len(conns) != want {
			t.Errorf("%s: %d connections, want %d", keep, len(conns), want)
		}
		mu.Unlock()
	}
}
