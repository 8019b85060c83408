package doctor

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"podwire.dev/cmd/podwire/internal/lab"
	"podwire.dev/cmd/podwire/internal/session"
	"podwire.dev/cmd/podwire/internal/statedir"
	"podwire.dev/internal/errs"
)

// TestKernelAbilities tries this kernel, which every test here needs to be able.
func TestKernelAbilities(t *testing.T) {
	t.Parallel()
	abilities, err := tryKernel(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(abilities) < 6 {
		t.Errorf("only %d abilities were tried", len(abilities))
	}
	for _, a := range abilities {
		if a.Err != nil {
			t.Errorf("%s: %v", a.Name, a.Err)
		}
	}
}

// TestNothingRemains looks for what a run left.
func TestNothingRemains(t *testing.T) {
	state := t.TempDir()
	t.Setenv("TMPDIR", t.TempDir())
	var out bytes.Buffer
	cmd := Command(&session.Env{Stdout: &out, Stderr: &out, State: state})
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	cmd.SetArgs([]string{"-o", "json"})
	err := cmd.ExecuteContext(t.Context())
	var got struct{ Findings []Finding }
	if jerr := json.Unmarshal(out.Bytes(), &got); jerr != nil {
		t.Fatalf("%v: %s", jerr, out.String())
	}
	problems := 0
	for _, f := range got.Findings {
		if f.Verdict == Problem {
			problems++
		}
		if f.Area == "kernel" && f.Verdict != OK {
			t.Errorf("%+v", f)
		}
	}
	if (err != nil) != (problems > 0) {
		t.Errorf("%d problems, and the command ended with %v", problems, err)
	}
	left, rerr := os.ReadDir(os.TempDir())
	if rerr != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, rerr)
	}
	dir, derr := statedir.Resolve(state)
	if derr != nil {
		t.Fatal(derr)
	}
	if standing, serr := lab.Standing(dir); standing || serr != nil {
		t.Errorf("namespaces of the state directory: %v, %v", standing, serr)
	}
}

func TestPrivileges(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ status, want, detail string }{
		{"Name:\tx\nCapEff:\t000001ffffffffff\n", "ok", ""},
		{"Name:\tx\nCapEff:\t0000000000001000\n", "problem", "NET_RAW"},
		{"Name:\tx\nCapEff:\tnonsense\n", "problem", "invalid syntax"},
		{"Name:\tx\n", "problem", "no line CapEff"},
	} {
		m := fake(t, map[string]string{"proc/self/status": tt.status})
		var r report
		m.privileges(&r)
		if f := r.findings[0]; string(f.Verdict) != tt.want || !strings.Contains(f.Detail, tt.detail) {
			t.Errorf("%q: %+v", tt.status, f)
		}
	}
}

// sockets are tables as proc_net_tcp(5) shows them.
const (
	tcpTable = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:1D13 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
`
	tcpClient = `  sl  local_address rem_address   st
   0: 0100007F:1D13 0100007F:A1B2 01 00000000:00000000 00:00000000 00000000     0        0 1
`
	udpTable = `   sl  local_address rem_address   st tx_queue rx_queue
 1234: 00000000:2118 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 1
`
)

func TestPorts(t *testing.T) {
	t.Parallel()
	m := fake(t, map[string]string{"proc/net/tcp": tcpTable, "proc/net/udp": "short\n"})
	var r report
	m.ports(&r)
	if r.findings[0].Verdict != Note || r.findings[1].Verdict != OK {
		t.Errorf("%+v", r.findings)
	}
	for _, tt := range []struct {
		table string
		port  uint16
		want  bool
	}{{tcpTable, 7443, true}, {tcpTable, 7444, false}, {tcpClient, 7443, false}, {udpTable, 8472, true}, {"", 1, false}, {"a b c d\n", 1, false}} {
		if got := listens(tt.table, tt.port); got != tt.want {
			t.Errorf("port %d in %q: %v", tt.port, tt.table, got)
		}
	}
}

func TestLimits(t *testing.T) {
	t.Parallel()
	m := fake(t, map[string]string{
		"proc/sys/net/netfilter/nf_conntrack_max":   "1024",
		"proc/sys/fs/inotify/max_user_instances":    "8192",
		"proc/net/route":                            "Iface\tDestination\n",
		"proc/sys/fs/inotify/max_user_watches.gone": "",
	})
	var r report
	m.limits(&r)
	if f := r.findings[0]; f.Verdict != Note || f.Advice != "sysctl -w net.netfilter.nf_conntrack_max=65536" {
		t.Errorf("%+v", f)
	}
	if f := r.findings[1]; f.Verdict != OK {
		t.Errorf("%+v", f)
	}
	if link, err := m.defaultLink(); err == nil {
		t.Errorf("a machine without a default route has one on %s", link)
	}
}

// TestAddressing: only links that are not ours matter, and what is off for all links to come does not.
func TestAddressing(t *testing.T) {
	t.Parallel()
	const conf = "proc/sys/net/ipv6/conf/"
	route := "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\neth0.1\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
	for name, tt := range map[string]struct {
		files  map[string]string
		advice []string // of each finding
	}{
		"all on":              {map[string]string{conf + "lo/disable_ipv6": "0"}, []string{""}},
		"off for new links":   {map[string]string{conf + "lo/disable_ipv6": "0", conf + "default/disable_ipv6": "1", conf + "all/disable_ipv6": "1"}, []string{""}},
		"off on the loopback": {map[string]string{conf + "lo/disable_ipv6": "1"}, []string{"sysctl -w net.ipv6.conf.lo.disable_ipv6=0"}},
		"off on the underlay": {
			map[string]string{conf + "lo/disable_ipv6": "0", conf + "eth0.1/disable_ipv6": "1", "proc/net/route": route},
			[]string{"", "sysctl -w net.ipv6.conf.eth0/1.disable_ipv6=0"},
		},
		"no IPv6": {nil, []string{"boot without ipv6.disable=1, or give pods IPv4 addresses only"}},
	} {
		var r report
		fake(t, tt.files).addressing(&r)
		var got []string
		for _, f := range r.findings {
			if got = append(got, f.Advice); (f.Advice == "") != (f.Verdict == OK) {
				t.Errorf("%s: %+v", name, f)
			}
		}
		if !slices.Equal(got, tt.advice) {
			t.Errorf("%s: %q, want %q", name, got, tt.advice)
		}
	}
}

func TestPrint(t *testing.T) {
	t.Parallel()
	var r report
	r.ok("kernel", "veth", "works")
	r.note("kernel", "vxlan", "is odd", "look at it")
	r.problem("network", "range", "overlaps", "choose another")
	var out bytes.Buffer
	if err := r.print(&out, ""); err != nil {
		t.Fatal(err)
	}
	want := "kernel\n  ok       veth: works\n  note     vxlan: is odd\n           look at it\nnetwork\n  problem  range: overlaps\n           choose another\n"
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
	cmd := Command(&session.Env{Stdout: &out})
	cmd.SetArgs([]string{"-o", "yaml"})
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	if err := cmd.ExecuteContext(t.Context()); !errs.Is(err, errs.Invalid) || session.StatusOf(err) != session.ExitUsage {
		t.Errorf("an unknown output: %v", err)
	}
}

// fake is a machine whose /proc has some files only.
func fake(t *testing.T, files map[string]string) machine {
	t.Helper()
	root := t.TempDir()
	for path, text := range files {
		full := filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(full, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return machine{root: root, state: statedir.Dir(t.TempDir())}
}
