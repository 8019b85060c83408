package secondopinion

import (
	"flag"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"podwire.dev/internal/testnet"
	"podwire.dev/services/nodeagent/internal/kernel/nft"
	"podwire.dev/services/nodeagent/internal/tracer"
)

var (
	seedFlag     = flag.Uint64("seed", 0, "seed of the random clusters; 0 takes the clock's")
	clustersFlag = flag.Int("clusters", 6, "number of random clusters whose packets are sent")
)

// seed is the run's, and says how to have the same again.
func seed(t *testing.T) uint64 {
	t.Helper()
	s := *seedFlag
	if s == 0 {
		s = uint64(time.Now().UnixNano())
	}
	t.Logf("repeat with -seed %d -clusters %d", s, *clustersFlag)
	return s
}

const (
	probesPerCluster = 120
	pingsPerCluster  = 12
	// workers bounds the attempts under way.
	workers = 48
	// brief is how long an attempt waits at first: most that fail do so by silence. One that should have succeeded is made
	// again with patient.
	brief, patient = 500 * time.Millisecond, 5 * time.Second
)

// TestKernelAgreesWithTheTracer sends packets through random clusters, each reached from the last by its difference.
func TestKernelAgreesWithTheTracer(t *testing.T) {
	s := seed(t)
	w := newWorld(t, 3)
	met := map[testnet.Outcome]int{}
	for i := range *clustersFlag {
		g := newGenerator(s+uint64(i), w)
		services := g.services()
		for _, n := range w.nodes {
			w.set(n, n.tables.Fabric, services, g.policy(n))
		}
		m := newModel(w)
		for _, r := range w.send(m, g.probes(probesPerCluster, services)) {
			met[r.Outcome]++
		}
		for _, r := range w.send(m, g.pings(pingsPerCluster)) {
			met[r.Outcome]++
		}
		for _, d := range m.disagreements {
			t.Errorf("the judge and the tracer disagree: %s", d)
		}
		if t.Failed() {
			t.Fatalf("cluster %d of seed %d", i, s)
		}
	}
	t.Logf("outcomes: %v", met)
	for _, o := range []testnet.Outcome{testnet.Reached, testnet.Refused, testnet.TimedOut} {
		if met[o] == 0 {
			t.Errorf("nothing was ever %s: the clusters test little", o)
		}
	}
}

// pings are attempts without ports.
func (g generator) pings(n int) []probe {
	var list []probe
	for range n {
		list = append(list, probe{from: pick(g, g.w.boxes()), to: pick(g, g.w.boxes()).addrs[g.IntN(2)], protocol: tracer.ICMP})
	}
	return list
}

// send makes attempts and holds them against the model. It returns their ends.
func (w *world) send(m *model, probes []probe) []testnet.Result {
	w.t.Helper()
	results := make([]testnet.Result, len(probes))
	work := make(chan int)
	var done sync.WaitGroup
	for range workers {
		done.Go(func() {
			for i := range work {
				results[i] = probes[i].try(brief)
			}
		})
	}
	for i := range probes {
		work <- i
	}
	close(work)
	done.Wait()
	for i, p := range probes {
		ends := []expectation{{outcomes: lost, why: []string{"the sender has no route"}}}
		if source, err := p.source(); err == nil {
			ends = m.predict(p, source)
		}
		if anyMet(ends, results[i]) {
			continue
		}
		if results[i].Outcome == testnet.TimedOut { // or was it only slow?
			results[i] = p.try(patient)
		}
		if anyMet(ends, results[i]) {
			continue
		}
		var text []string
		for _, e := range ends {
			text = append(text, e.String())
		}
		w.t.Errorf("%s: %s %q %v, but the model says %s\n%s", p, results[i].Outcome, results[i].Reply, results[i].Err,
			strings.Join(text, "\n  or "), w.dropped())
	}
	return results
}

func anyMet(ends []expectation, r testnet.Result) bool {
	for _, e := range ends {
		if e.met(r) {
			return true
		}
	}
	return false
}

// source is the address that the sender's kernel uses.
func (p probe) source() (netip.Addr, error) {
	f := 1
	if p.to.Is4() {
		f = 0
	}
	if p.from.isPod() || p.from.name == "outside" {
		return p.from.addrs[f], nil
	}
	routes, err := p.from.ns.Handle().RouteGet(p.to.AsSlice())
	if err != nil || len(routes) == 0 {
		return netip.Addr{}, fmt.Errorf("no route from %s to %s: %w", p.from.name, p.to, err)
	}
	a, _ := netip.AddrFromSlice(routes[0].Src)
	return a.Unmap(), nil
}

func (p probe) try(timeout time.Duration) testnet.Result {
	a := testnet.Attempt{Target: netip.AddrPortFrom(p.to, p.port), Timeout: timeout}
	switch p.protocol {
	case tracer.ICMP:
		return p.ping(timeout)
	case 6:
		return p.from.ns.TCP(a)
	}
	return p.from.ns.UDP(a)
}

// ping has no server's name: what the model says of it is taken to be right.
func (p probe) ping(timeout time.Duration) testnet.Result {
	out, err := p.from.ns.Try("ping", "-n", "-c1", "-W", fmt.Sprintf("%.1f", timeout.Seconds()), p.to.String())
	r := testnet.Result{Outcome: testnet.TimedOut, Err: err}
	switch {
	case err == nil:
		r.Outcome = testnet.Reached
	case strings.Contains(out, "nreachable"), strings.Contains(out, "not permitted"):
		r.Outcome = testnet.Unreachable
	}
	return r
}

// dropped are the counters of both nodes.
func (w *world) dropped() string {
	var b strings.Builder
	for _, n := range w.nodes {
		counts, err := n.rules.Counts()
		fmt.Fprintf(&b, "%s:", n.name)
		for _, c := range nft.Counters() {
			if counts[c].Packets > 0 {
				fmt.Fprintf(&b, " %s=%d", c, counts[c].Packets)
			}
		}
		if err != nil {
			fmt.Fprintf(&b, " %v", err)
		}
		b.WriteByte('\n')
	}
	return b.String()
}
