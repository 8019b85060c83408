package demo

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"podwire.dev/internal/manifest"
)

// TestManifests reads everything that the demo applies, and holds it against what the checks take for granted.
func TestManifests(t *testing.T) {
	t.Parallel()
	kinds, err := manifest.Builtin()
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	err = fs.WalkDir(manifests, "manifests", func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		text, err := manifests.ReadFile(path)
		if err != nil {
			return err
		}
		list, err := manifest.Parse(kinds, path, bytes.NewReader(text), manifest.DefaultLimits())
		for _, o := range list {
			names[o.Kind.Name+"/"+o.Name()] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range append([]string{
		"Service/demo-service", "Service/my-demo-service", "NetworkPolicy/demo-network-policy", "Pod/demo-pod", "Pod/client-1", "Pod/client-2",
		"Pod/client-3", "Pod/neighbour", "Pod/my-app", "Pod/allowed-app", "Pod/other-app",
		"Ingress/minimal-ingress", "Ingress/shop", "Service/test", "Service/my-app-pods", "NetworkPolicy/ingress-only",
		"Pod/test-1", "Pod/test-2", "Pod/test-3", "Pod/test-4",
	}, "Pod/"+spreadOver[0], "Pod/"+spreadOver[1], "Pod/"+spreadOver[2]) {
		if !names[name] {
			t.Errorf("no manifest has %s", name)
		}
	}
	text, err := manifests.ReadFile("manifests/myapp.yaml")
	if err != nil {
		t.Fatal(err)
	}
	period := fmt.Sprintf("periodSeconds: %d\n", int(probePeriod/time.Second))
	if strings.Count(string(text), period) != len(spreadOver) || strings.Count(string(text), "restartPolicy: Never") != len(spreadOver) {
		t.Errorf("each pod of myapp.yaml must have %s and never be restarted", period)
	}
}

func TestEven(t *testing.T) {
	t.Parallel()
	line := func(pod string, n int) string { return strings.Repeat("reached: "+pod+" 10.0.0.1\n", n) }
	for _, tt := range []struct {
		what string
		out  string
		want bool
	}{
		{"equal shares", line("my-app-1", 100) + line("my-app-2", 100) + line("my-app-3", 100), true},
		{"within chance", line("my-app-1", 120) + line("my-app-2", 80) + line("my-app-3", 100), true},
		{"one left out", line("my-app-1", 150) + line("my-app-2", 150), false},
		{"one doubled", line("my-app-1", 150) + line("my-app-2", 75) + line("my-app-3", 75), false},
		{"a stranger", line("my-app-1", 100) + line("my-app-2", 100) + line("my-app-3", 99) + line("other", 1), false},
		{"nothing", "timed out: i/o timeout\nattempts=1 reached=0\n", false},
	} {
		if got := even(tally(tt.out)); got != tt.want {
			t.Errorf("%s: %t", tt.what, got)
		}
	}
}

func TestProcessesAreToldByTheirOwnInstance(t *testing.T) {
	t.Parallel()
	cmdline := func(args ...string) string { return strings.Join(args, "\x00") + "\x00" }
	dir := "/state/nodes/node-1/state/runtime/pods/uid-1/containers/main/0"
	for _, tt := range []struct {
		what     string
		selected func(string) bool
		cmdline  string
		want     bool
	}{
		{"a container", containersOf("uid-1"), cmdline("podwire", "serve", "nodeagent", "shim", "init", dir), true},
		{"its shim", containersOf("uid-1"), cmdline("podwire", "serve", "nodeagent", "shim", "run", dir), false},
		{"another pod's", containersOf("uid-2"), cmdline("podwire", "serve", "nodeagent", "shim", "init", dir), false},
		{"the agent", agentOf("/state", "node-1"), cmdline("podwire", "serve", "nodeagent", "--config", "/state/config/node-1.yaml"), true},
		{"another node's", agentOf("/state", "node-1"), cmdline("podwire", "serve", "nodeagent", "--config", "/state/config/node-11.yaml"), false},
		{"another instance's", agentOf("/state", "node-1"), cmdline("podwire", "serve", "nodeagent", "--config", "/other/config/node-1.yaml"), false},
	} {
		if got := tt.selected(tt.cmdline); got != tt.want {
			t.Errorf("%s: %t", tt.what, got)
		}
	}
	if _, err := kill(func(string) bool { return false }); err == nil {
		t.Error("a kill that hits nobody must be an error")
	}
}

// script makes a program that stands for podwire: its first two arguments are --state DIR.
func script(t *testing.T, text string) podwire {
	t.Helper()
	path := filepath.Join(t.TempDir(), "podwire")
	if err := os.WriteFile(path, []byte("#!/bin/sh\nshift 2\n"+text), 0o700); err != nil {
		t.Fatal(err)
	}
	return podwire{bin: path, flags: []string{"--state", "/nowhere"}}
}

func TestProbeComparesStatusAndAnswer(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		what, script string
		fate         fate
		want         string
		passes       bool
	}{
		{"reached by whom", "echo web 10.0.0.1", reached, "web ", true},
		{"reached by another", "echo other 10.0.0.1", reached, "web ", false},
		{"refused where reached is wanted", "exit 1", reached, "", false},
		{"silence", "exit 2", timedOut, "", true},
		{"reached where silence is wanted", "echo web", timedOut, "", false},
		{"a probe that was not tried is no silence", "exit 3", timedOut, "", false},
	} {
		var out bytes.Buffer
		d := &demo{podwire: script(t, tt.script), out: &out}
		d.probe(t.Context(), tt.what, outside(), tt.fate, tt.want, "tcp", "192.0.2.1:80")
		if passed := d.passed == 1 && d.failed == 0; passed != tt.passes {
			t.Errorf("%s: %s", tt.what, out.String())
		}
	}
}

func TestTraffic(t *testing.T) {
	t.Parallel()
	d := &demo{podwire: script(t, `trap 'echo attempts=9; exit 130' INT
echo reached: a; echo "refused: dial tcp: no"; echo reached: a
while :; do sleep 0.05; done`)}
	load := d.traffic(t.Context(), outside(), came, "tcp", "192.0.2.1:80")
	if err := load.more(t.Context(), 3); err != nil {
		t.Fatal(err)
	}
	load.run.stop()
	load.run.wait(t.Context())
	good, bad, last := load.count()
	if good != 2 || bad != 1 || !strings.Contains(last, "refused: dial tcp: no") {
		t.Errorf("%d answered, %d not, %s", good, bad, last)
	}
}

func TestTrafficThatEndsIsAnError(t *testing.T) {
	t.Parallel()
	d := &demo{podwire: script(t, "echo reached: a; exit 1")}
	load := d.traffic(t.Context(), outside(), came, "tcp", "192.0.2.1:80")
	if err := load.more(t.Context(), 2); err == nil || !strings.Contains(err.Error(), "ended") {
		t.Errorf("got %v", err)
	}
}

func TestAwaitSaysWhatItLastSaw(t *testing.T) {
	t.Parallel()
	seen := errors.New("two of three")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := await(ctx, time.Minute, func() (bool, error) { return false, seen }); !errors.Is(err, seen) {
		t.Errorf("got %v", err)
	}
	tries := 0
	err := await(t.Context(), time.Minute, func() (bool, error) { tries++; return tries == 3, nil })
	if err != nil || tries != 3 {
		t.Errorf("%d tries, %v", tries, err)
	}
}

func TestLineWriterPassesWholeLines(t *testing.T) {
	t.Parallel()
	var got []string
	w := &lineWriter{line: func(s string) { got = append(got, s) }}
	for _, piece := range []string{"on", "e\ntwo\n\nth", "ree"} {
		if n, err := w.Write([]byte(piece)); n != len(piece) || err != nil {
			t.Fatal(n, err)
		}
	}
	if strings.Join(got, "|") != "one|two|" || w.all.String() != "one\ntwo\n\nthree" {
		t.Errorf("%q, all %q", got, w.all.String())
	}
}

func TestWebComparesStatusAndHeader(t *testing.T) {
	t.Parallel()
	ok := "printf 'HTTP/1.1 200 OK\nEcho-Request: GET /\n\ntest-1 10.0.0.1\n'"
	for _, tt := range []struct {
		what, script, status, header string
		passes                       bool
	}{
		{"as wanted", ok, "200", "Echo-Request: GET /", true},
		{"another path", ok, "200", "Echo-Request: GET /x", false},
		{"a part of a line", ok, "200", "Echo-Request: GET", false},
		{"another status", ok, "404", "", false},
		{"no answer", "exit 2", "200", "", false},
	} {
		var out bytes.Buffer
		d := &demo{podwire: script(t, tt.script), out: &out}
		d.web(t.Context(), tt.what, outside(), tt.status, tt.header, "http://192.0.2.1/")
		if passed := d.passed == 1 && d.failed == 0; passed != tt.passes {
			t.Errorf("%s: %s", tt.what, out.String())
		}
	}
}

// TestResolves has a getent and a probe that answer, wrongly or not.
func TestResolves(t *testing.T) {
	t.Parallel()
	getent := "printf '10.96.0.9 STREAM web\n10.96.0.9 DGRAM\n10.96.0.9 RAW\n'"
	probe := "printf 'web.default.svc.cluster.local. 5 A 10.244.0.2\nweb.default.svc.cluster.local. 5 A 10.244.0.1\n'"
	for _, tt := range []struct {
		what   string
		site   site
		script string
		want   []string
		passes bool
	}{
		{"getent", &own{}, getent, []string{"10.96.0.9"}, true},
		{"getent, another address", &own{}, getent, []string{"10.96.0.8"}, false},
		{"probe", &connected{}, probe, []string{"10.244.0.2", "10.244.0.1"}, true},
		{"probe, one more than wanted", &connected{}, probe, []string{"10.244.0.2"}, false},
		{"nothing", &own{}, "exit 2", nil, false},
	} {
		var out bytes.Buffer
		d := &demo{podwire: script(t, tt.script), out: &out, site: tt.site}
		d.resolves(t.Context(), tt.what, outside(), "web", tt.want...)
		if passed := d.passed == 1 && d.failed == 0; passed != tt.passes {
			t.Errorf("%s: %s", tt.what, out.String())
		}
	}
}

func TestServeName(t *testing.T) {
	t.Parallel()
	sock, err := (&net.ListenConfig{}).ListenPacket(t.Context(), "udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	end := serveName(sock, foreignName{name: "www.example.test.", addr: netip.MustParseAddr("192.0.2.80")})
	defer end()
	for name, want := range map[string]int{"www.example.test.": dns.RcodeSuccess, "x.example.test.": dns.RcodeNameError} {
		q := new(dns.Msg)
		q.SetQuestion(name, dns.TypeA)
		m, err := dns.Exchange(q, sock.LocalAddr().String())
		if err != nil || m.Rcode != want || (len(m.Answer) == 1) != (want == dns.RcodeSuccess) {
			t.Errorf("%s: %v, %v", name, m, err)
		}
	}
}

func TestSelfSigned(t *testing.T) {
	t.Parallel()
	cert, key, err := selfSigned(shopHost)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil || pair.Leaf.VerifyHostname(shopHost) != nil || pair.Leaf.VerifyHostname("other.test") == nil {
		t.Errorf("%v, %v", pair.Leaf, err)
	}
}
