package dataplane_test

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/fabric"
	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/push"
	"podwire.dev/services/nodeagent/internal/dataplane"
	"podwire.dev/services/nodeagent/internal/kernel/nft"
	"podwire.dev/services/nodeagent/internal/plan"
)

// diary is what happened, in order.
type diary struct {
	mu    sync.Mutex
	lines []string
}

func (d *diary) note(line string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lines = append(d.lines, line)
}

// since returns the lines after the first n, and how many there are now.
func (d *diary) since(n int) ([]string, int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.lines[n:]), len(d.lines)
}

// kernel is a node's kernel: it outlives the loops that write to it.
type kernel struct {
	*diary
	mu    sync.Mutex // of the table, which a test looks at while the loop runs
	table nft.Fake
	// refuse, where set, judges a transaction before it is committed; lose makes one committed transaction look lost.
	refuse func(plan.Change) error
	lose   bool
	// hold, where set, is received from before a transaction.
	hold chan struct{}

	routed    []nodestate.Member
	noMembers error
	announced []nodestate.Announcement
	flows     func(dataplane.Tables, dataplane.Concern)
	workloads []dataplane.WorkloadUpdate
}

func (k *kernel) Read() (nft.State, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.table.Read()
}

func (k *kernel) Glance() (string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.table.Glance()
}

func (k *kernel) Install(want plan.Elements) (nft.Result, error) {
	k.note("install")
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.table.Install(want)
}

func (k *kernel) Apply(c plan.Change) (nft.Result, error) {
	if len(c.Add)+len(c.Replace)+len(c.Remove) == 0 {
		return nft.Result{}, nil
	}
	if k.hold != nil {
		<-k.hold
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.refuse != nil {
		if err := k.refuse(c); err != nil {
			k.note("refused")
			return nft.Result{}, err
		}
	}
	r, err := k.table.Apply(c)
	if err == nil {
		k.note("commit")
	}
	if err == nil && k.lose {
		k.lose = false
		return nft.Result{}, errs.New(errs.Unavailable, "the answer was lost")
	}
	return r, err
}

// tamper changes the table behind the loop's back.
func (n *node) tamper(with func(*nft.Fake) error) {
	n.t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := with(&n.table); err != nil {
		n.t.Fatal(err)
	}
}

// members is the kernel's fabric.
type members struct{ *kernel }

func (m members) Apply(list []nodestate.Member, _ []nodestate.Range) (fabric.Result, error) {
	if m.noMembers != nil && len(list) > len(m.routed) {
		return fabric.Result{}, m.noMembers
	}
	if slices.EqualFunc(list, m.routed, func(a, b nodestate.Member) bool { return nodestate.Equal(a, b) }) {
		return fabric.Result{}, nil
	}
	m.routed = list
	m.note("members")
	return fabric.Result{Writes: 1}, nil
}

// announcer holds the kernel's load balancer addresses.
type announcer struct{ *kernel }

func (a announcer) Apply(rows []nodestate.Announcement) (fresh []netip.Addr, err error) {
	for _, r := range rows {
		if !slices.Contains(a.announced, r) {
			fresh = append(fresh, r.Address)
		}
	}
	a.announced = slices.Clone(rows)
	return fresh, nil
}

func (a announcer) Advertise([]netip.Addr) error {
	a.note("advertise")
	return nil
}

func (k *kernel) Reconcile(_ context.Context, t dataplane.Tables, c dataplane.Concern) (int, error) {
	k.note("flows")
	if k.flows != nil {
		k.flows(t, c)
	}
	return 0, nil
}

func (k *kernel) SetWorkloads(u dataplane.WorkloadUpdate) {
	k.note("workloads")
	k.workloads = append(k.workloads, u)
}

// node is one life of an agent's dataplane.
type node struct {
	*kernel
	t       *testing.T
	dir     string
	loop    *dataplane.Loop
	updates map[nodestate.Source]chan push.Update
	held    map[nodestate.Source]dataplane.Held
	version int64
	stop    context.CancelFunc
	done    chan error
}

const self = "node-1"

// start restores a node from what is held, and runs it.
func start(t *testing.T, k *kernel, dir string, held map[nodestate.Source]dataplane.Held, attached ...plan.Attachment) *node {
	t.Helper()
	n := &node{
		kernel: k, t: t, dir: dir, updates: map[nodestate.Source]chan push.Update{}, held: held, version: 100, done: make(chan error, 1),
	}
	in := map[nodestate.Source]<-chan push.Update{}
	for _, s := range []nodestate.Source{nodestate.SourceCluster, nodestate.SourceIPAM, nodestate.SourcePolicy, nodestate.SourceSvcproxy} {
		n.updates[s] = make(chan push.Update)
		in[s] = n.updates[s]
	}
	var err error
	n.loop, err = dataplane.New(dataplane.Config{
		Node: plan.Node{Name: self, Addresses: addrs("172.30.0.2")}, Rules: k, Members: members{k}, Announcer: announcer{k},
		Flows: k, Workloads: k, IDFile: filepath.Join(dir, "ids"), Held: held, Attachments: attached, Updates: in,
		Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.loop.Restore(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	n.stop = cancel
	go func() { n.done <- n.loop.Run(ctx) }()
	return n
}

// end stops the agent; the kernel stays.
func (n *node) end() {
	n.t.Helper()
	n.stop()
	if err := <-n.done; err != nil {
		n.t.Error(err)
	}
}

// world runs a test in a bubble of its own time, with a node that has just been started on an empty kernel.
func world(t *testing.T, test func(t *testing.T, n *node)) {
	t.Helper()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		n := start(t, &kernel{diary: &diary{}}, dir, nil)
		test(t, n)
		n.end()
	})
}

// push sends one update and waits until the loop has dealt with it.
func (n *node) push(s nodestate.Source, d nodestate.Delta) {
	n.t.Helper()
	n.send(s, d)
	synctest.Wait()
}

func (n *node) send(s nodestate.Source, d nodestate.Delta) {
	n.version++
	n.updates[s] <- push.Update{
		Source: s, Version: nodestate.Version{ClusterID: 1, Revision: n.version}, Delta: d, Received: time.Now(),
	}
}

func (n *node) put(s nodestate.Source, rows ...nodestate.Row) {
	n.t.Helper()
	n.push(s, nodestate.Delta{Upserts: rows})
}

func (n *node) drop(s nodestate.Source, rows ...nodestate.Row) {
	n.t.Helper()
	var d nodestate.Delta
	for _, r := range rows {
		d.Removes = append(d.Removes, nodestate.RefOf(r))
	}
	n.push(s, d)
}

// read returns what the loop believes: tables (with elements of their own) and counts.
func (n *node) read() (dataplane.Tables, dataplane.Stats) {
	n.t.Helper()
	var tables dataplane.Tables
	var stats dataplane.Stats
	err := n.loop.Read(n.t.Context(), func(t dataplane.Tables, s dataplane.Stats) {
		tables, stats = t, s
		tables.Elements = t.Elements.Clone()
		tables.Policy, tables.Services, tables.Fabric = t.Policy.Clone(), t.Services.Clone(), t.Fabric.Clone()
	})
	if err != nil {
		n.t.Fatal(err)
	}
	return tables, stats
}

// version is what the loop holds of a source.
func (n *node) holds(s nodestate.Source) int64 {
	n.t.Helper()
	t, _ := n.read()
	return t.Versions[s].Revision
}

// inKernel is the table's content.
func (n *node) inKernel() plan.Elements {
	n.t.Helper()
	st, err := n.Read()
	if err != nil {
		n.t.Fatal(err)
	}
	return st.Elements
}

// agree checks that the kernel holds what the loop believes, once late removals are due.
func (n *node) agree() {
	n.t.Helper()
	elapse(plan.Grace)
	t, _ := n.read()
	if got, want := n.inKernel().Format(), t.Elements.Format(); got != want {
		n.t.Errorf("the kernel holds\n%s\nand the loop believes\n%s", got, want)
	}
}

// has says whether the kernel has an element whose text contains every word.
func (n *node) has(words ...string) bool {
	for line := range strings.Lines(n.inKernel().Format()) {
		if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) }) {
			return true
		}
	}
	return false
}

// after is what is held by a journal after a test's life.
func (n *node) after() map[nodestate.Source]dataplane.Held {
	t, _ := n.read()
	held := maps.Clone(n.held)
	if held == nil {
		held = map[nodestate.Source]dataplane.Held{}
	}
	for s, slice := range map[nodestate.Source]*nodestate.Slice{
		nodestate.SourceIPAM: t.Fabric, nodestate.SourceSvcproxy: t.Services, nodestate.SourcePolicy: t.Policy,
	} {
		held[s] = dataplane.Held{Slice: slice, Version: t.Versions[s]}
	}
	return held
}

var errKernel = errors.New("the kernel says no")

func addrs(texts ...string) (list []netip.Addr) {
	for _, s := range texts {
		list = append(list, netip.MustParseAddr(s))
	}
	return list
}

func pod(uid, link string, addresses ...string) plan.Attachment {
	return plan.Attachment{UID: uid, Link: link, Addresses: addrs(addresses...)}
}

func open(uid string) nodestate.Subject {
	side := nodestate.Side{Mode: nodestate.SideOpen}
	return nodestate.Subject{PodUID: uid, Ingress: side, Egress: side}
}

func isolated(uid string, class byte) nodestate.Subject {
	s := open(uid)
	s.Ingress = nodestate.Side{Mode: nodestate.SideIsolated, Class: nodestate.Class{class}, Policies: []string{"default/p"}}
	return s
}

func member(name string, tunnel ...string) nodestate.Member {
	return nodestate.Member{Name: name, Kind: nodestate.MemberNode, TunnelMAC: nodestate.TunnelMACOf(name), Tunnel: addrs(tunnel...)}
}

func serviceKey(name string) nodestate.ServiceKey {
	return nodestate.ServiceKey{Namespace: "default", Service: name, Protocol: nodestate.TCP}
}

func service(name, address string) nodestate.ServicePort {
	return nodestate.ServicePort{
		ServiceKey: serviceKey(name), ClusterAddresses: addrs(address), Port: 80, SourceMode: nodestate.SourceAll,
		InternalPolicy: nodestate.LocalityCluster, ExternalPolicy: nodestate.LocalityCluster,
	}
}

func endpoint(name, address string) nodestate.Endpoint {
	return nodestate.Endpoint{
		ServiceKey: serviceKey(name), Address: netip.MustParseAddr(address), Backend: 8080, Node: self, State: nodestate.EndpointReady,
	}
}

// bad is a row that cannot be planned.
func bad() nodestate.Subject { return nodestate.Subject{PodUID: "bad"} }

func prefix(text string) netip.Prefix { return netip.MustParsePrefix(text) }

func slice(revision int64, rows ...nodestate.Row) dataplane.Held {
	return dataplane.Held{Slice: nodestate.NewSlice(rows...), Version: nodestate.Version{ClusterID: 1, Revision: revision}}
}

func (n *node) update(s nodestate.Source, revision int64, rows ...nodestate.Row) push.Update {
	return push.Update{
		Source: s, Version: nodestate.Version{ClusterID: 1, Revision: revision}, Delta: nodestate.Delta{Upserts: rows}, Received: time.Now(),
	}
}

// together brings updates to the loop while it is busy, so that they make one step.
func (n *node) together(updates ...push.Update) {
	n.t.Helper()
	n.hold = make(chan struct{})
	go func() {
		if err := n.loop.SetNodeAddresses(n.t.Context(), addrs("172.30.0.77")); err != nil {
			n.t.Error(err)
		}
	}()
	synctest.Wait()
	for _, u := range updates {
		go func() { n.updates[u.Source] <- u }()
	}
	synctest.Wait()
	close(n.hold)
	synctest.Wait()
	n.hold = nil
}

func (n *node) prepare(ctx context.Context, a plan.Attachment) {
	if err := n.loop.Prepare(ctx, a); err != nil {
		n.t.Error(err)
	}
}

// elapse lets time go by in the bubble, and everybody do what is due then.
func elapse(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}
