package daemon_test

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"podwire.dev/internal/daemon"
	"podwire.dev/internal/errs"
)

type config struct {
	daemon.Common `yaml:",inline"`
	Pool          netip.Prefix  `yaml:"pool"`
	Grace         time.Duration `yaml:"grace"`
}

func (c *config) SetDefaults() { c.Grace = time.Minute }

func (c *config) Check() []errs.Violation {
	if c.Pool.IsValid() && c.Pool != c.Pool.Masked() {
		return []errs.Violation{{Field: "pool", Value: c.Pool.String(), Rule: "has host bits"}}
	}
	return nil
}

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestLoad(t *testing.T) {
	t.Parallel()
	cfg, err := daemon.Load[config](write(t, `
listen: ":7443"
socket: /run/podwire/ipam.sock
identity: /var/lib/podwire/identity
join:
  target: dns:///cluster:7443
  tokenFile: /run/secrets/token
  caFile: /run/secrets/ca.crt
etcd: {endpoints: ["https://etcd:2379"]}
peers: {ipam: "dns:///ipam:7443"}
advertise: "[fd00::1]:7443"
log: {level: debug, format: json}
pool: 10.244.0.0/16
`))
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Pool != netip.MustParsePrefix("10.244.0.0/16") || cfg.Grace != time.Minute ||
		cfg.Join.TokenFile != "/run/secrets/token" || !slices.Equal(cfg.Etcd.Endpoints, []string{"https://etcd:2379"}) {
		t.Errorf("got %+v", cfg)
	}
	if target, err := cfg.Peer("ipam"); err != nil || target != "dns:///ipam:7443" {
		t.Errorf("peer: %q, %v", target, err)
	}
	if _, err := cfg.Peer("policy"); !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "peers.policy") {
		t.Errorf("a peer that is missing: %v", err)
	}
}

func TestLoadRefuses(t *testing.T) {
	t.Parallel()
	const ok = "socket: /s\n"
	for _, tt := range []struct {
		what, text string
		want       []string
	}{
		{"an unknown key, with its line", ok + "listn: x\n", []string{"line 2", `"listn"`, "not a known key"}},
		{"unknown keys further down, all of them", ok + "log:\n  levl: x\netcd:\n  endpoint: y\n", []string{"line 3", "levl", "line 5", "endpoint"}},
		{"a key twice", ok + "socket: /t\n", []string{"line 2", "already"}},
		{"a wrong type", "socket: [a]\n", []string{"line 1", "string"}},
		{"a wrong prefix", ok + "pool: 10.0.0.0/99\n", []string{"10.0.0.0/99"}},
		{"a wrong duration", ok + "grace: soon\n", []string{"line 2", "soon"}},
		{"two documents", ok + "---\n" + ok, []string{"one YAML document"}},
		{"no YAML", ok + "a: b: c\n", []string{"line 2", "mapping values"}},
		{"an empty file", "", []string{"listen", "socket"}},
		{"the service's own rule", ok + "pool: 10.0.0.1/8\n", []string{"pool", "host bits"}},
		{"every violation at once", "listen: nowhere\nadvertise: \":0\"\njoin: {token: a, tokenFile: b}\nlog: {level: loud, format: xml}\npeers: {ipam: \"\"}\n", []string{
			"listen: \"nowhere\"", "identity", "advertise", "join.target", "join:", "join.caFile", "log.level: \"loud\"", "log.format: \"xml\"", "peers.ipam",
		}},
		{"too large", "# " + strings.Repeat("x", 1<<20), []string{"larger than"}},
	} {
		_, err := daemon.Load[config](write(t, tt.text))
		if !errs.Is(err, errs.Invalid) {
			t.Errorf("%s: %v, want Invalid", tt.what, err)
			continue
		}
		for _, want := range tt.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %q does not say %q", tt.what, err, want)
			}
		}
		if strings.Contains(err.Error(), "daemon_test.") || strings.Contains(err.Error(), "daemon.") {
			t.Errorf("%s: %q names Go types", tt.what, err)
		}
	}
	if _, err := daemon.Load[config](filepath.Join(t.TempDir(), "none")); !errs.Is(err, errs.NotFound) {
		t.Errorf("a missing file: %v, want NotFound", err)
	}
}

func FuzzLoad(f *testing.F) {
	f.Add("socket: /s\npool: 10.0.0.0/8\n")
	f.Add("log: {level: *a}\n")
	f.Add("a: &a [*a]")
	f.Fuzz(func(t *testing.T, text string) {
		_, err := daemon.Load[config](write(t, text))
		if err != nil && !errs.Is(err, errs.Invalid) {
			t.Errorf("%q: %v, want Invalid", text, err)
		}
	})
}

func TestReachable(t *testing.T) {
	t.Parallel()
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		what   string
		common daemon.Common
		want   string
	}{
		{"what is advertised", daemon.Common{Listen: ":7443", Advertise: "ipam.example:1"}, "ipam.example:1"},
		{"the host's name", daemon.Common{Listen: "0.0.0.0:7443"}, net.JoinHostPort(host, "7443")},
		{"a socket only", daemon.Common{Socket: "/run/x.sock"}, ""},
	} {
		if got := tt.common.Reachable(); got != tt.want {
			t.Errorf("%s: reachable at %q, want %q", tt.what, got, tt.want)
		}
	}
}
