package app

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/fabric"
	"podwire.dev/internal/nodestate"
	"podwire.dev/services/nodeagent/internal/dataplane"
	"podwire.dev/services/nodeagent/internal/kernel/announce"
	"podwire.dev/services/nodeagent/internal/kernel/host"
	"podwire.dev/services/nodeagent/internal/kernel/link"
	"podwire.dev/services/nodeagent/internal/kernel/nft"
	"podwire.dev/services/nodeagent/internal/plan"
	"podwire.dev/services/nodeagent/internal/runtime"
	"podwire.dev/services/nodeagent/internal/tracer"
)

// Fake is a host without a kernel, for tests of the whole flow: what an agent does to it is kept in memory, and outlives
// the agent as a host does. Its nftables table refuses what the kernel refuses. Its methods may be called at the same time.
type Fake struct {
	node     string
	underlay netip.Addr

	fabric    *fabric.Fake
	links     link.Fake
	host      host.Fake
	announcer announce.Fake
	machine   *runtime.Machine

	mu     sync.Mutex
	table  nft.Fake
	refuse string
	// late are the elements of changes that are to be removed later.
	late plan.Elements
	// held is locked while the kernel does not answer.
	held sync.Mutex
}

// NewFake is the host of a node at an underlay address. Nothing was ever done to it.
func NewFake(node string, underlay netip.Addr) *Fake {
	return &Fake{node: node, underlay: underlay, fabric: fabric.NewFake(node, underlay), machine: runtime.NewMachine(), late: plan.Elements{}}
}

// Doors lead into this host. Each life of an agent takes them anew.
func (f *Fake) Doors() Doors {
	return Doors{
		Rules: fakeRules{f}, Fabric: f.fabric, Flows: noFlows{}, Links: fakeLinks{&f.links, f.links.Writes()}, Host: &f.host, Announcer: &f.announcer,
		MTU: f.fabric.Device().MTU, Runtime: f.machine.Open,
		Addresses: func([]netip.Addr) ([]netip.Addr, error) { return []netip.Addr{f.underlay}, nil },
	}
}

// Refuse makes the table refuse every transaction that adds an element whose text contains a word ("10.96.0.7", ". 82"),
// as a kernel without some feature would; "" ends that.
func (f *Fake) Refuse(word string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refuse = word
}

// Hang makes the table answer nothing until resume is called.
func (f *Fake) Hang() (resume func()) {
	f.held.Lock()
	return sync.OnceFunc(f.held.Unlock)
}

// Writes is how much was ever changed on this host: transactions, links, routes, settings, addresses, and containers
// started.
func (f *Fake) Writes() int {
	settings := f.host.Writes()
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.table.Total().Transactions + f.fabric.Writes() + int(f.links.Writes()) + int(f.announcer.Writes()) + settings +
		f.machine.Starts()
}

// Late says whether the table still holds elements of a change whose removal comes later.
func (f *Fake) Late() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.late.Len() > 0
}

// Running names the Pods, "namespace/name" and sorted, whose containers run on this host.
func (f *Fake) Running() []string { return f.machine.Running() }

// Linked names the Pods, "namespace/name" and sorted, that have a link.
func (f *Fake) Linked() []string {
	live, err := f.links.List()
	if err != nil {
		return nil // a Fake's links can always be listed
	}
	var out []string
	for _, l := range live {
		out = append(out, l.Namespace+"/"+l.Name)
	}
	slices.Sort(out)
	return out
}

// Way is what this host's table does with the first packet of a flow.
type Way struct {
	// Fate is delivered, forwarded, rejected or dropped: the worst, where there are several backends. Decided is the part of
	// the table that said so.
	Fate, Decided string
	// Backends are where a Service sends the packet, sorted; none where nothing is translated.
	Backends []netip.AddrPort
}

// Connect follows the opening of a TCP connection through the table, as package tracer reads it: from the node itself, from
// a pod of this host, or else from the tunnel, as another host's pod.
func (f *Fake) Connect(from netip.Addr, to netip.AddrPort) (Way, error) {
	p := tracer.Packet{Source: from, Destination: to.Addr(), Port: to.Port(), Protocol: nodestate.TCP, Origin: tracer.Fabric}
	if from == f.underlay {
		p.Origin = tracer.Process
	}
	live, err := f.links.List()
	if err != nil {
		return Way{}, err
	}
	for _, l := range live {
		if slices.Contains(l.Addresses, from) {
			p.Origin, p.Link = tracer.Pod, l.Link
		}
	}
	return f.trace(p)
}

func (f *Fake) trace(p tracer.Packet) (Way, error) {
	f.mu.Lock()
	st, err := f.table.Read()
	f.mu.Unlock()
	if err != nil {
		return Way{}, err
	}
	h := tracer.HostOf(plan.Node{Name: f.node, Addresses: []netip.Addr{f.underlay}}, f.fabric.Rows())
	t, err := tracer.Do(st.Elements, h, p)
	if err != nil {
		return Way{}, err
	}
	worst := t.Worst()
	way := Way{Fate: worst.Fate.String(), Decided: string(worst.Decided), Backends: t.Backends()}
	slices.SortFunc(way.Backends, netip.AddrPort.Compare)
	return way, nil
}

// fakeLinks counts the writes of one life of the agent.
type fakeLinks struct {
	*link.Fake
	before uint64
}

// Writes implements Links.
func (l fakeLinks) Writes() uint64 { return l.Fake.Writes() - l.before }

// fakeRules is the table, whose real one is not safe for concurrent use either: the test looks while the loop writes.
type fakeRules struct{ *Fake }

// Read implements dataplane.Rules.
func (f fakeRules) Read() (nft.State, error) {
	defer f.lock()()
	return f.table.Read()
}

// Glance implements dataplane.Rules.
func (f fakeRules) Glance() (string, error) {
	defer f.lock()()
	return f.table.Glance()
}

// Install implements dataplane.Rules.
func (f fakeRules) Install(want plan.Elements) (nft.Result, error) {
	defer f.lock()()
	if err := f.judge(want); err != nil {
		return nft.Result{}, err
	}
	return f.table.Install(want)
}

// Apply implements dataplane.Rules.
func (f fakeRules) Apply(c plan.Change) (nft.Result, error) {
	defer f.lock()()
	added := plan.Elements{}
	for _, list := range [][]plan.Element{c.Add, c.Replace} {
		for _, el := range list {
			added.Put(el)
		}
	}
	if err := f.judge(added); err != nil {
		return nft.Result{}, err
	}
	r, err := f.table.Apply(c)
	if err != nil {
		return r, err
	}
	for _, list := range [][]plan.Element{c.Add, c.Replace, c.Remove} {
		for _, el := range list {
			f.late.Delete(el.Set, el.Key)
		}
	}
	for _, el := range c.Late {
		f.late.Put(el)
	}
	return r, nil
}

func (f fakeRules) lock() (unlock func()) {
	f.held.Lock()
	f.mu.Lock()
	return func() { f.mu.Unlock(); f.held.Unlock() }
}

func (f fakeRules) judge(added plan.Elements) error {
	if f.refuse == "" {
		return nil
	}
	for line := range strings.Lines(added.Format()) {
		if strings.Contains(line, f.refuse) {
			return errs.New(errs.Conflict, "the kernel refuses %s", strings.TrimSpace(line))
		}
	}
	return nil
}

// noFlows is a conntrack that tracks nothing.
type noFlows struct{}

// Reconcile implements dataplane.Flows.
func (noFlows) Reconcile(context.Context, dataplane.Tables, dataplane.Concern) (int, error) {
	return 0, nil
}
