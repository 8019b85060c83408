package plan_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"podwire.dev/internal/nodestate"
	"podwire.dev/services/nodeagent/internal/plan"
)

// random changes one thing of a small state, so that every kind of collision and of coming back happens.
func randomRow(t testing.TB, r *rand.Rand) (nodestate.Row, bool) {
	key := fmt.Sprintf("default/s%d:/%s", r.IntN(3), []string{"TCP", "UDP"}[r.IntN(2)])
	letter := string(rune('A' + r.IntN(3)))
	pod := r.IntN(5)
	pick := func(list ...string) string { return list[r.IntN(len(list))] }
	lines := []string{
		"range " + pick("pod", "service") + " " + pick("10.244.0.0/16", "10.245.0.0/16", "10.244.3.0/24", "fd00:1::/48"),
		"member " + pick("node-1", "node-2") + " " + pick("10.244.0.1", "10.244.0.2", "10.244.0.1 fd00:1::1"),
		fmt.Sprintf("service %s 80 cluster=10.96.0.%d%s", key, r.IntN(3), pick("", " affinity=60", " internal=local",
			",fd00:2::7 nodeport=30080/4,6 outside=local", " lb=203.0.113.9 sources=10.0.0.0/8",
			" lb=203.0.113.9 sources=10.1.0.0/16,::/0 outside=local")),
		fmt.Sprintf("endpoint %s 10.244.0.%d:80 %s%s", key, pod, pick("node-1", "node-2"), pick("", " terminating", " zones=a", " zones=b,c", " zones=a nodes=node-1", " nodes=node-2")),
		fmt.Sprintf("endpoint %s [fd00:1::%d]:80 %s", key, pod, pick("node-1", "node-2")),
		fmt.Sprintf("subject u%d %s %s", r.IntN(3), pick("open", letter), pick("open", "A", "B")),
		fmt.Sprintf("peer 10.244.0.%d %s", pod, letter),
		fmt.Sprintf("peerrange 192.0.%d.0-192.0.%d.255 %s", pod, pod, letter),
		fmt.Sprintf("allow %s %s %s %s", pick("ingress", "egress"), letter, pick("any", "A", "B"),
			pick("any", "TCP", "TCP/80-81", "UDP/1000-2000", "UDP/1500-3000", "TCP/1-65535")),
	}
	return parseRow(t, strings.Fields(lines[r.IntN(len(lines))])), r.IntN(3) > 0
}

// kernel is the table as the kernel would have it.
type kernel struct {
	t        *testing.T
	elements plan.Elements
	queue    plan.Queue
}

func (k *kernel) commit(now time.Time, c plan.Change) {
	k.t.Helper()
	c = k.queue.Rebase(c)
	for _, list := range [][]plan.Element{c.Replace, c.Remove} {
		for _, el := range list {
			if _, ok := k.elements[el.Set][el.Key]; !ok {
				k.t.Fatalf("removes %s %q, which is not there", el.Set, el.Key)
			}
			k.elements.Delete(el.Set, el.Key)
		}
	}
	for _, list := range [][]plan.Element{c.Add, c.Replace} {
		for _, el := range list {
			if _, ok := k.elements[el.Set][el.Key]; ok {
				k.t.Fatalf("adds %s %q, which is there", el.Set, el.Key)
			}
			k.elements.Put(el)
		}
	}
	k.queue.Put(now, c.Late)
}

func (k *kernel) settle(now time.Time) {
	c := k.queue.Due(now)
	for _, el := range c.Remove {
		if _, ok := k.elements[el.Set][el.Key]; !ok {
			k.t.Fatalf("removes %s %q late, which is not there", el.Set, el.Key)
		}
		k.elements.Delete(el.Set, el.Key)
	}
}

// closed checks that no lookup of a packet that began in `old` can miss in `now`: what old or now refers to is there.
func closed(t *testing.T, old, now plan.Elements) {
	t.Helper()
	for _, from := range []plan.Elements{old, now} {
		for _, f := range plan.Families() {
			for _, set := range []plan.SetName{plan.SetFrontends, plan.SetOutside, plan.SetNodePorts, plan.SetNodePortsOutside} {
				for k, id := range from[set.In(f)] {
					if _, ok := now[plan.SetServices][plan.Key(id)]; !ok {
						t.Fatalf("%s %q refers to service %#x, which is not there", set, k, plan.MarkOf(id))
					}
				}
			}
		}
		for id, program := range from[plan.SetServices] {
			if _, ok := now[plan.SetPrograms][plan.Key(program)]; !ok {
				t.Fatalf("service %q has program %#x, which is not there", id, plan.MarkOf(program))
			}
			n := plan.MarkOf(program)
			if n >= plan.ProgramAffinity && n < plan.ProgramRefuse {
				n = plan.MarkOf(from[plan.SetCounts][id])
			}
			if n >= plan.ProgramAffinity {
				continue
			}
			for slot := range n {
				e, ok := now.Lookup(plan.SetSlots, plan.Field(id), plan.Mark(slot))
				if !ok {
					t.Fatalf("slot %d of %d of service %q is not there", slot, n, id)
				}
				_, v4 := now[plan.SetEndpoints.In(plan.IPv4)][plan.Key(e)]
				_, v6 := now[plan.SetEndpoints.In(plan.IPv6)][plan.Key(e)]
				if !v4 && !v6 {
					t.Fatalf("endpoint %#x is not there", plan.MarkOf(e))
				}
			}
		}
	}
}

func TestRandomSequences(t *testing.T) {
	for seed := range uint64(150) {
		r := rand.New(rand.NewPCG(seed, 1))
		node := plan.Node{Name: "node-1", Zone: "a", Addresses: []netip.Addr{netip.MustParseAddr("172.30.0.2")}}
		ids := plan.NewAllocator()
		p := plan.New(node, ids)
		saved := append([]byte(nil), ids.Save()...)
		k := &kernel{t: t, elements: plan.Elements{}}
		rows := map[nodestate.Table]*nodestate.Slice{}
		pods := map[string]plan.Attachment{}
		used := map[string]time.Time{} // id and meaning -> last seen
		now := start
		for range 60 {
			for range 1 + r.IntN(4) {
				change(t, r, p, rows, pods)
			}
			before := k.elements.Clone()
			c, err := p.Commit(now)
			if err != nil {
				t.Fatal(err)
			}
			k.commit(now, c)
			closed(t, before, k.elements)
			if r.IntN(2) == 0 {
				now = now.Add(plan.Grace)
				k.settle(now)
				closed(t, k.elements, k.elements)
			}
			remember(t, used, k.elements, now)
			now = now.Add(time.Duration(r.IntN(2000)) * time.Millisecond)
			saved = append(saved, ids.Log()...)
		}
		k.settle(now.Add(time.Hour))
		whole := restart(t, saved, node, rows, pods, now)
		if a, b := withoutPrograms(p.Desired()), withoutPrograms(whole); a != b {
			t.Fatalf("seed %d: planned step by step:\n%s\nplanned as a whole by a restarted agent:\n%s", seed, a, b)
		}
		if a, b := k.elements.Format(), p.Desired().Format(); a != b {
			t.Fatalf("seed %d: the kernel holds\n%s\nwant\n%s", seed, a, b)
		}
		if c := plan.Diff(k.elements, whole); len(c.Add)+len(c.Replace)+len(c.Remove) != 0 {
			t.Fatalf("seed %d: a restarted agent writes %+v", seed, c)
		}
	}
}

// change changes one row or attachment.
func change(t *testing.T, r *rand.Rand, p *plan.Planner, rows map[nodestate.Table]*nodestate.Slice, pods map[string]plan.Attachment) {
	t.Helper()
	if r.IntN(6) == 0 {
		uid := fmt.Sprintf("u%d", r.IntN(3))
		if r.IntN(2) == 0 {
			delete(pods, uid)
			p.Detach(uid)
			return
		}
		pods[uid] = plan.Attachment{UID: uid, Link: "pwp" + uid, Addresses: []netip.Addr{
			netip.MustParseAddr(fmt.Sprintf("10.244.0.%d", 10+r.IntN(3))),
		}}
		p.Attach(pods[uid])
		return
	}
	row, put := randomRow(t, r)
	s := rows[row.Table()]
	if s == nil {
		s = nodestate.NewSlice()
		rows[row.Table()] = s
	}
	d := nodestate.Delta{Removes: []nodestate.Ref{nodestate.RefOf(row)}}
	if put {
		d = nodestate.Delta{Upserts: []nodestate.Row{row}}
	}
	s.Apply(d)
	if err := p.Apply(d); err != nil {
		t.Fatal(err)
	}
}

// remember checks that no id of an endpoint changes its meaning within Quiet.
func remember(t *testing.T, used map[string]time.Time, e plan.Elements, now time.Time) {
	t.Helper()
	for _, f := range plan.Families() {
		for k, v := range e[plan.SetEndpoints.In(f)] {
			for other, seen := range used {
				if strings.HasPrefix(other, string(k)) && other != string(k)+string(v) && now.Sub(seen) < plan.Quiet {
					t.Fatalf("endpoint id %q has another meaning after %s", k, now.Sub(seen))
				}
			}
			used[string(k)+string(v)] = now
		}
	}
}

// restart plans as an agent that begins with what is on disk.
func restart(
	t *testing.T, saved []byte, node plan.Node, rows map[nodestate.Table]*nodestate.Slice, pods map[string]plan.Attachment,
	now time.Time,
) plan.Elements {
	t.Helper()
	ids, err := plan.LoadAllocator(saved)
	if err != nil {
		t.Fatal(err)
	}
	in := plan.Input{Node: node, Services: nodestate.NewSlice()}
	for _, s := range rows {
		in.Services.Apply(nodestate.Diff(nodestate.NewSlice(), s))
	}
	for _, a := range pods {
		in.Attachments = append(in.Attachments, a)
	}
	e, err := plan.Plan(in, ids, now)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// withoutPrograms leaves out the programs: a planner keeps those that were used once.
func withoutPrograms(e plan.Elements) string {
	c := e.Clone()
	delete(c, plan.SetPrograms)
	delete(c, plan.SetChoices)
	return c.Format()
}

// TestOneChangeCostsOneChange compares what a change of one service costs among 10 services with what it costs among
// 2,000: the elements written, and the memory allocations of planning.
func TestOneChangeCostsOneChange(t *testing.T) {
	cost := func(services int) (elements int, allocations float64) {
		p := plan.New(plan.Node{Name: "node-1"}, plan.NewAllocator())
		var rows []nodestate.Row
		for i := range services {
			a := netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, 0x0a600000+uint32(i))))
			rows = append(rows, parseRow(t, strings.Fields(fmt.Sprintf("service ns/s%d:/TCP 80 cluster=%s", i, a))))
			for j := range 10 {
				rows = append(rows, parseRow(t, strings.Fields(
					fmt.Sprintf("endpoint ns/s%d:/TCP 10.244.%d.%d:%d node-%d", i, i%250, j, 1000+i/250, j))))
			}
		}
		if err := p.Apply(nodestate.Delta{Upserts: rows}); err != nil {
			t.Fatal(err)
		}
		if _, err := p.Commit(start); err != nil {
			t.Fatal(err)
		}
		extra := parseRow(t, strings.Fields("endpoint ns/s3:/TCP 10.255.0.1:80 node-9"))
		step := func() {
			for _, d := range []nodestate.Delta{
				{Upserts: []nodestate.Row{extra}}, {Removes: []nodestate.Ref{nodestate.RefOf(extra)}},
			} {
				if err := p.Apply(d); err != nil {
					t.Fatal(err)
				}
				c, err := p.Commit(start)
				if err != nil {
					t.Fatal(err)
				}
				elements = len(c.Add) + len(c.Replace) + len(c.Remove) + len(c.Late)
			}
		}
		allocations = testing.AllocsPerRun(20, step)
		return elements, allocations
	}
	few, fewAllocations := cost(10)
	many, manyAllocations := cost(2000)
	if few != many || few > 3 {
		t.Errorf("one endpoint less is %d elements among 10 services, %d among 2000", few, many)
	}
	if manyAllocations > 1.2*fewAllocations {
		t.Errorf("%.0f allocations among 10 services, %.0f among 2000", fewAllocations, manyAllocations)
	}
}

// TestOneEndpointCostsOneEndpoint compares what a change of one endpoint costs in a Service of 100 endpoints with what it costs
// in one of 10,000: the elements written, the memory allocations of planning, and the bytes to keep.
func TestOneEndpointCostsOneEndpoint(t *testing.T) {
	type cost struct {
		elements, log int
		allocations   float64
	}
	of := func(options string, endpoints int) (c cost) {
		p := bigService(t, options, endpoints)
		// One that was there when the slots were first planned: the last one moves into its gap.
		some := parseRow(t, strings.Fields("endpoint ns/big:/TCP 10.244.0.7:80 node-1"))
		step := func() {
			for _, d := range []nodestate.Delta{
				{Removes: []nodestate.Ref{nodestate.RefOf(some)}}, {Upserts: []nodestate.Row{some}},
			} {
				if err := p.Apply(d); err != nil {
					t.Fatal(err)
				}
				change, err := p.Commit(start)
				if err != nil {
					t.Fatal(err)
				}
				c.elements = len(change.Add) + len(change.Replace) + len(change.Remove) + len(change.Late)
				c.log = len(p.IDs().Log())
			}
		}
		step() // finds the slots of the Service, once
		c.allocations = testing.AllocsPerRun(20, step)
		return c
	}
	for _, options := range []string{"", " affinity=60", " internal=local", " nodeport=30080/4 outside=local"} {
		few, many := of(options, 100), of(options, 10000)
		if few.elements != many.elements || few.elements > 9 {
			t.Errorf("%q: one endpoint more is %d elements among 100, %d among 10,000", options, few.elements, many.elements)
		}
		if many.log > few.log+64 {
			t.Errorf("%q: %d bytes to keep among 100 endpoints, %d among 10,000", options, few.log, many.log)
		}
		if many.allocations > 1.2*few.allocations {
			t.Errorf("%q: %.0f allocations among 100 endpoints, %.0f among 10,000", options, few.allocations, many.allocations)
		}
	}
}

func bigService(t testing.TB, options string, endpoints int) *plan.Planner {
	t.Helper()
	p := plan.New(plan.Node{Name: "node-1"}, plan.NewAllocator())
	rows := []nodestate.Row{parseRow(t, strings.Fields("service ns/big:/TCP 80 cluster=10.96.0.1"+options))}
	for i := range endpoints {
		rows = append(rows, parseRow(t, strings.Fields(
			fmt.Sprintf("endpoint ns/big:/TCP 10.244.%d.%d:80 node-%d", i/250, i%250, 1+(i+3)%2))))
	}
	if err := p.Apply(nodestate.Delta{Upserts: rows}); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Commit(start); err != nil {
		t.Fatal(err)
	}
	return p
}

// BenchmarkOneEndpoint plans a change of one endpoint of a Service.
func BenchmarkOneEndpoint(b *testing.B) {
	for _, endpoints := range []int{100, 10000} {
		b.Run(fmt.Sprint(endpoints), func(b *testing.B) {
			p := bigService(b, "", endpoints)
			some := parseRow(b, strings.Fields("endpoint ns/big:/TCP 10.244.0.7:80 node-1"))
			gone := nodestate.Delta{Removes: []nodestate.Ref{nodestate.RefOf(some)}}
			now := start
			for i := 0; b.Loop(); i++ {
				d := gone
				if i%2 == 1 {
					d = nodestate.Delta{Upserts: []nodestate.Row{some}}
				}
				if err := p.Apply(d); err != nil {
					b.Fatal(err)
				}
				now = now.Add(plan.Grace)
				if _, err := p.Commit(now); err != nil {
					b.Fatal(err)
				}
				p.IDs().Log()
			}
		})
	}
}
