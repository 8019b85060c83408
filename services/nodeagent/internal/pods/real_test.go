package pods

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"podwire.dev/internal/testnet"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/nodeagent/internal/addresses"
	"podwire.dev/services/nodeagent/internal/kernel/link"
	"podwire.dev/services/nodeagent/internal/runtime"
	"podwire.dev/services/nodeagent/internal/runtime/podfiles"
	"podwire.dev/services/nodeagent/internal/shim"
)

// The test binary is its own shim, as the agent's is.
func TestMain(m *testing.M) {
	if handled, code := shim.Main(os.Args[1:]); handled {
		os.Exit(code)
	}
	os.Exit(m.Run())
}

// linksIn calls a door of links in the namespace that it belongs to.
type linksIn struct {
	ns *testnet.NS
	*link.Links
}

func (l linksIn) Attach(p link.Pod) (a link.Attachment, err error) {
	err = l.ns.Do(func() (err error) { a, err = l.Links.Attach(p); return err })
	return a, err
}

func (l linksIn) Detach(uid string) error {
	return l.ns.Do(func() error { return l.Links.Detach(uid) })
}

func (l linksIn) List() (out []link.Attachment, err error) {
	err = l.ns.Do(func() (err error) { out, err = l.Links.List(); return err })
	return out, err
}

// oneBlock is an ipam with one block for each family.
type oneBlock struct{}

func (oneBlock) LeaseBlock(_ context.Context, family int, _ string) (netip.Prefix, error) {
	if family == 6 {
		return netip.MustParsePrefix("fd00:10:244::40/122"), nil
	}
	return netip.MustParsePrefix("10.244.1.0/26"), nil
}

// realAgent is an agent whose runtime, links and addresses are real; policy and cluster are the world's.
type realAgent struct {
	*Supervisor
	driver    *runtime.Process
	links     linksIn
	addresses *addresses.Allocator
	stop      func()
}

func (w *world) realAgent(node *testnet.NS) *realAgent {
	w.t.Helper()
	a := &realAgent{}
	ctx, cancel := context.WithCancel(context.Background())
	var goroutines sync.WaitGroup
	own := func(name string, fn func(context.Context) error) {
		goroutines.Go(func() {
			if err := fn(ctx); err != nil && !errors.Is(err, context.Canceled) {
				w.t.Errorf("%s: %v", name, err)
			}
		})
	}
	must := func(err error) {
		w.t.Helper()
		if err != nil {
			w.t.Fatal(err)
		}
	}
	var err error
	log := slog.New(slog.DiscardHandler)
	var changed func(string)
	a.driver, err = runtime.NewProcess(runtime.Config{
		Root: filepath.Join(w.dir, "runtime"), NodeName: "node-1", Shim: shim.Launcher{Argv: []string{"pods.test", "shim"}},
		Cluster: podfiles.Cluster{Domain: "cluster.local"}, OnChange: func(uid string) { changed(uid) }, Log: log,
	})
	must(err)
	a.links.ns = node
	must(node.Do(func() (err error) { a.links.Links, err = link.Open(); return err }))
	live, err := a.links.List()
	must(err)
	var held []addresses.Live
	for _, l := range live {
		held = append(held, addresses.Live{UID: l.UID, Addresses: l.Addresses})
	}
	a.addresses, err = addresses.Open(addresses.Config{
		Path: filepath.Join(w.dir, "addresses.json"), Families: []addresses.Family{addresses.IPv4, addresses.IPv6}, Lessor: oneBlock{},
		MaxBlocks: 1,
	}, held)
	must(err)
	a.Supervisor, err = New(Config{
		Driver: a.driver, Links: a.links, Dataplane: w, Addresses: a.addresses, Reporter: reporter{w}, Dir: filepath.Join(w.dir, "pods"),
		MTU: 1450, HostIPs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, Go: own, Log: log, Resync: 50 * time.Millisecond,
	})
	must(err)
	changed = a.Changed
	own("addresses", a.addresses.Run)
	own("pods", a.Run)
	own("driver", a.driver.Run)
	a.stop = sync.OnceFunc(func() {
		cancel()
		goroutines.Wait()
		a.links.Close()
	})
	return a
}

// removeAll ends every container that a test left.
func (w *world) removeAll(node *testnet.NS) {
	a := w.realAgent(node)
	defer a.stop()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for _, p := range a.driver.List() {
		if err := errors.Join(a.driver.Stop(ctx, p.Pod.UID, 0), a.driver.RemoveSandbox(ctx, p.Pod.UID)); err != nil {
			w.t.Error(err)
		}
	}
}

func (a *realAgent) probe(t *testing.T, uid string, argv ...string) (int, string) {
	t.Helper()
	var out bytes.Buffer
	code, err := a.driver.Exec(t.Context(), uid, runtime.ExecRequest{Command: append([]string{"probe"}, argv...), Stdout: &out, Stderr: &out})
	if err != nil {
		t.Fatal(err)
	}
	return code, out.String()
}

func TestRealPodsReachEachOtherSurviveTheAgentAndGo(t *testing.T) {
	w := newWorld(t)
	node := testnet.New(t).AddNS("node")
	node.SetSysctl("net/ipv4/ip_forward", "1")
	node.SetSysctl("net/ipv6/conf/all/forwarding", "1")
	a := w.realAgent(node)
	stopped := false
	t.Cleanup(func() {
		a.stop()
		if !stopped {
			w.removeAll(node)
		}
	})
	pods := objects{object("one"), object("two")}
	pods[1].Spec.Containers[0].ReadinessProbe = &objectv1.Probe{
		TcpSocket: &objectv1.TCPSocketAction{Port: number(80)}, PeriodSeconds: ptr(int32(1)),
	}
	if err := a.Update(Update{Version: 10, Upserts: rows(pods...)}); err != nil {
		t.Fatal(err)
	}
	w.untilReady("one")
	w.untilReady("two")
	w.mu.Lock()
	ips := w.status("two").GetPodIps()
	from := w.status("one").GetPodIps()
	w.mu.Unlock()
	if len(ips) != 2 || len(from) != 2 {
		t.Fatalf("%v, %v", ips, from)
	}
	reach := func() {
		t.Helper()
		for i, ip := range ips {
			code, out := a.probe(t, "one", "tcp", netip.AddrPortFrom(netip.MustParseAddr(ip.GetIp()), 80).String())
			if want := "pod-two " + from[i].GetIp() + "\n"; code != 0 || !strings.HasPrefix(out, want) {
				t.Errorf("%s: exit %d, %q, want %q", ip.GetIp(), code, out, want)
			}
		}
	}
	reach()

	a.stop()
	sent := len(w.statuses["one"]) + len(w.statuses["two"])
	a = w.realAgent(node)
	if err := a.Restore(rows(pods...)); err != nil {
		t.Fatal(err)
	}
	w.await("adopted by the runtime", func() bool {
		for _, uid := range []string{"one", "two"} {
			if s, err := a.driver.State(uid); err != nil || !s.Containers[0].Ready || !s.Containers[0].Judged {
				return false
			}
		}
		return true
	})
	w.await("attached again", func() bool {
		return a.workers["two"].attachment().PodIPs != nil && a.workers["one"].attachment().PodIPs != nil
	})
	reach()
	if n := a.links.Writes(); n != 0 {
		t.Errorf("%d writes in the kernel by a restart", n)
	}
	w.mu.Lock()
	if n := len(w.statuses["one"]) + len(w.statuses["two"]) - sent; n != 0 {
		t.Errorf("%d reports by a restart: %v", n, w.statuses)
	}
	w.mu.Unlock()

	// Somebody takes a link away: it comes back, with its address.
	if err := a.links.Detach("two"); err != nil {
		t.Fatal(err)
	}
	w.await("repaired", func() bool {
		code, _ := a.probe(t, "one", "tcp", "--timeout", "100ms", netip.AddrPortFrom(netip.MustParseAddr(ips[0].GetIp()), 80).String())
		return code == 0
	})
	reach()

	if err := a.Update(Update{Version: 20, Upserts: rows(deleting(pods[0], 5)), Removes: []string{"two"}}); err != nil {
		t.Fatal(err)
	}
	w.until("deleted", func() bool { return w.deleted["one"] > 0 })
	w.await("their removal is known", func() bool { return len(a.addresses.Unresolved()) == 0 })
	w.await("nothing is left", func() bool { return len(a.driver.List()) == 0 && a.addresses.Blocks()[0].Quarantined == 2 })
	stopped = true
	if live, err := a.links.List(); err != nil || len(live) != 0 {
		t.Errorf("%v, %v", live, err)
	}
}
