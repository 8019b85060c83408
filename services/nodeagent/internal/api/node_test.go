package api

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/pki"
	"podwire.dev/internal/push"
	"podwire.dev/internal/rpc"
	nodeagentv1 "podwire.dev/proto/podwire/nodeagent/v1"
	"podwire.dev/services/nodeagent/internal/addresses"
	"podwire.dev/services/nodeagent/internal/dataplane"
	"podwire.dev/services/nodeagent/internal/kernel/host"
	"podwire.dev/services/nodeagent/internal/plan"
)

// kernel is a dataplane that holds tables.
type kernel struct {
	tables dataplane.Tables
	stats  dataplane.Stats
	err    error
}

func (k *kernel) Read(_ context.Context, fn func(dataplane.Tables, dataplane.Stats)) error {
	if k.err == nil {
		fn(k.tables, k.stats)
	}
	return k.err
}

type source struct {
	status   push.SubscriberStatus
	accepted int
}

func (s *source) Status() push.SubscriberStatus { return s.status }

func (s *source) Accept() bool {
	if s.status.Frozen {
		s.accepted++
	}
	return s.status.Frozen
}

type acceptances struct {
	identity string
	slices   []push.SubscriberStatus
}

func (a *acceptances) Note(identity string, _ time.Time, slices []push.SubscriberStatus) error {
	a.identity, a.slices = identity, slices
	return nil
}

type settings struct {
	states []host.State
	mended []Mending
	err    error
}

func (s settings) Check() ([]host.State, error) { return s.states, s.err }

func (s settings) Mended() []Mending { return s.mended }

type blocks []addresses.Usage

func (b blocks) Blocks() []addresses.Usage { return b }

type counts struct{}

func (counts) Phases() map[string]int { return map[string]int{"Running": 2, "Pending": 1} }
func (counts) Problems() []string     { return []string{"default/x: no driver can run its image"} }

func a(text string) netip.Addr { return netip.MustParseAddr(text) }

// tables are those of a node with two pods: web, which policy isolates, and client; and one Service with two backends.
func tables(t *testing.T) dataplane.Tables {
	t.Helper()
	open := nodestate.Side{Mode: nodestate.SideOpen}
	key := nodestate.ServiceKey{Namespace: "default", Service: "web", Protocol: nodestate.TCP}
	out := dataplane.Tables{
		Node: plan.Node{Name: "node-1", Addresses: []netip.Addr{a("172.30.0.2")}},
		Attachments: []plan.Attachment{
			{UID: "web", Link: "pwpweb", Addresses: []netip.Addr{a("10.244.0.10")}},
			{UID: "client", Link: "pwpclient", Addresses: []netip.Addr{a("10.244.0.11")}},
			{UID: "new", Link: "pwpnew", Addresses: []netip.Addr{a("10.244.0.12")}},
		},
		Fabric: nodestate.NewSlice(
			nodestate.Range{Kind: nodestate.RangePod, Prefix: netip.MustParsePrefix("10.244.0.0/16")},
			nodestate.Range{Kind: nodestate.RangeService, Prefix: netip.MustParsePrefix("10.96.0.0/16")},
			nodestate.Member{Name: "node-1", Tunnel: []netip.Addr{a("10.244.0.1")}, Blocks: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/26")}},
			nodestate.Member{Name: "node-2", Tunnel: []netip.Addr{a("10.244.1.1")}, Blocks: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/26")}},
		),
		Services: nodestate.NewSlice(
			nodestate.ServicePort{
				ServiceKey: key, ClusterAddresses: []netip.Addr{a("10.96.0.7")}, Port: 80, SourceMode: nodestate.SourceAll,
				InternalPolicy: nodestate.LocalityCluster, ExternalPolicy: nodestate.LocalityCluster,
			},
			nodestate.Endpoint{ServiceKey: key, Address: a("10.244.0.10"), Backend: 8080, State: nodestate.EndpointReady},
			nodestate.Endpoint{ServiceKey: key, Address: a("10.244.1.5"), Backend: 8080, State: nodestate.EndpointReady},
		),
		Policy: nodestate.NewSlice(
			nodestate.Subject{PodUID: "client", Ingress: open, Egress: open},
			nodestate.Subject{PodUID: "web", Egress: open, Ingress: nodestate.Side{
				Mode: nodestate.SideIsolated, Class: nodestate.Class{1}, Policies: []string{"default/lock"},
			}},
			nodestate.Peer{Address: a("10.244.0.11"), Class: nodestate.Class{2}},
			nodestate.Allow{
				Direction: nodestate.Ingress, Subject: nodestate.Class{1}, PeerMode: nodestate.PeerClass, Peer: nodestate.Class{2},
				PortMode: nodestate.PortRange, Protocol: nodestate.TCP, From: 8080, To: 8080, Origins: []string{"default/lock ingress[0]"},
			},
		),
	}
	var err error
	out.Elements, err = plan.Plan(plan.Input{
		Node: out.Node, Attachments: out.Attachments, Fabric: out.Fabric, Services: out.Services, Policy: out.Policy,
	}, plan.NewAllocator(), time.Unix(1000, 0))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestExplain(t *testing.T) {
	n := &Node{Name: "node-1", Dataplane: &kernel{tables: tables(t)}, Sources: []Source{&source{status: push.SubscriberStatus{
		Source: nodestate.SourcePolicy, Held: nodestate.Version{ClusterID: 1, Revision: 7}, Connected: true,
	}}}}
	for _, tt := range []struct {
		what, from, to string
		port           uint32
		origin         string
		fate           nodeagentv1.ExplainResponse_Fate
		decided        string
		backends       []string
	}{
		{"allowed by name", "10.244.0.11", "10.244.0.10", 8080, "pod", nodeagentv1.ExplainResponse_FATE_DELIVERED,
			"ingress policy: allowed by default/lock ingress[0]", nil},
		{"denied by name", "10.244.0.11", "10.244.0.10", 9090, "pod", nodeagentv1.ExplainResponse_FATE_DROPPED,
			"ingress policy: isolated by default/lock, and no rule of theirs allows it", nil},
		{"Service", "10.244.0.11", "10.96.0.7", 80, "pod", nodeagentv1.ExplainResponse_FATE_FORWARDED,
			"egress policy: no policy isolates the pod", []string{"10.244.0.10:8080", "10.244.1.5:8080"}},
		{"no such port", "10.244.0.11", "10.96.0.7", 81, "pod", nodeagentv1.ExplainResponse_FATE_REJECTED, "no endpoints", nil},
		{"own node", "172.30.0.2", "10.244.0.10", 9090, "node", nodeagentv1.ExplainResponse_FATE_DELIVERED, "a node reaches its pods", nil},
		{"another node's pod", "10.244.1.5", "10.244.0.10", 8080, "underlay", nodeagentv1.ExplainResponse_FATE_DROPPED,
			"ingress policy: isolated by default/lock, and no rule of theirs allows it", nil},
		{"policy to come", "10.244.0.12", "10.244.0.11", 80, "pod", nodeagentv1.ExplainResponse_FATE_DROPPED,
			"egress policy: the policy of the pod has not come, so nothing passes", nil},
		{"a process with another address", "10.244.0.99", "10.244.0.11", 80, "node", nodeagentv1.ExplainResponse_FATE_DELIVERED, "a node reaches its pods", nil},
	} {
		got, err := n.Explain(t.Context(), &nodeagentv1.ExplainRequest{
			Source: tt.from, Destination: tt.to, Protocol: "TCP", Port: tt.port, Origin: tt.origin,
		})
		if err != nil {
			t.Errorf("%s: %v", tt.what, err)
			continue
		}
		slices.Sort(got.Backends)
		if got.GetFate() != tt.fate || got.GetDecidedBy() != tt.decided || !slices.Equal(got.GetBackends(), tt.backends) || len(got.GetSteps()) == 0 {
			t.Errorf("%s: %s by %q to %v\n%s", tt.what, got.GetFate(), got.GetDecidedBy(), got.GetBackends(), strings.Join(got.GetSteps(), "\n"))
		}
		if len(got.GetSlices()) != 1 || got.GetSlices()[0].GetVersion() != 7 || got.GetSlices()[0].GetRows() != 4 {
			t.Errorf("%s: slices %v", tt.what, got.GetSlices())
		}
	}
}

func TestExplainRefusesNonsense(t *testing.T) {
	n := &Node{Name: "node-1", Dataplane: &kernel{tables: tables(t)}}
	for _, tt := range []struct {
		req    *nodeagentv1.ExplainRequest
		fields []string
	}{
		{&nodeagentv1.ExplainRequest{}, []string{"source", "destination", "port", "origin"}},
		{&nodeagentv1.ExplainRequest{Source: "10.0.0.1", Destination: "fd00::1", Protocol: "TCP", Port: 80, Origin: "pod"}, []string{"destination"}},
		{&nodeagentv1.ExplainRequest{Source: "10.0.0.1", Destination: "10.0.0.2", Protocol: "ICMP", Port: 80, Origin: "pod"}, []string{"port"}},
		{&nodeagentv1.ExplainRequest{Source: "10.0.0.1", Destination: "10.0.0.2", Protocol: "tcp", Port: 70000, Origin: "moon"},
			[]string{"protocol", "port", "origin"}},
		{&nodeagentv1.ExplainRequest{Source: "10.0.0.1", Destination: "10.0.0.2", Protocol: "TCP", Port: 80, Origin: "pod"}, nil}, // no pod of ours
	} {
		_, err := n.Explain(t.Context(), tt.req)
		if !errs.Is(err, errs.Invalid) {
			t.Errorf("%v: %v", tt.req, err)
		}
		var fields []string
		for _, v := range errs.ViolationsOf(err) {
			fields = append(fields, v.Field)
		}
		if !slices.Equal(fields, tt.fields) {
			t.Errorf("%v: %v, want %v", tt.req, fields, tt.fields)
		}
	}
}

func TestStatus(t *testing.T) {
	k := &kernel{tables: tables(t), stats: dataplane.Stats{Writes: 3, Objects: 30, Drift: []string{"missing x"}, Problems: []string{"member node-9: bad"}}}
	frozen := &source{status: push.SubscriberStatus{
		Source: nodestate.SourceIPAM, Held: nodestate.Version{ClusterID: 1, Revision: 9}, Offered: nodestate.Version{ClusterID: 2, Revision: 3},
		Frozen: true, Connected: true, Problem: "went backwards",
	}}
	n := &Node{
		Name: "node-1", Version: "v1", Started: time.Unix(1000, 0), Dataplane: k, Pods: counts{},
		Sources: []Source{&source{status: push.SubscriberStatus{Source: nodestate.SourceCluster, Problem: "connection refused"}}, frozen},
		Settings: settings{
			states: []host.State{{Name: "net/ipv4/ip_forward", Wanted: "1", Actual: "0", Before: "0", Advice: "set it"}},
			mended: []Mending{
				{Name: "net/a", Found: "0", Wanted: "1", Times: 1, Last: time.Unix(1000, 0)},
				{Name: "net/b", Found: "0", Wanted: "1", Times: 3, Last: time.Unix(2000, 0)},
			},
		},
		Blocks: blocks{{Prefix: netip.MustParsePrefix("10.244.0.0/26"), Size: 64, Used: 3, Quarantined: 2}},
		Writes: func() int64 { return 4 },
	}
	got, err := n.Status(t.Context(), &nodeagentv1.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if got.GetNode() != "node-1" || got.GetKernelWrites() != 7 || got.GetKernelObjectsWritten() != 34 || !slices.Equal(got.GetDrift(), []string{"missing x"}) ||
		got.GetPods()["Running"] != 2 || len(got.GetBlocks()) != 1 || got.GetBlocks()[0].GetQuarantined() != 2 || got.GetSettings()[0].GetBefore() != "0" {
		t.Errorf("got %v", got)
	}
	first, second := got.GetSlices()[0], got.GetSlices()[1]
	if first.GetRefused() != "" || first.GetConnected() {
		t.Errorf("a service that is away has refused nothing: %v", first)
	}
	if !second.GetFrozen() || second.GetOfferedClusterId() != 2 || second.GetOfferedVersion() != 3 || second.GetVersion() != 9 || second.GetRows() != 4 {
		t.Errorf("frozen: %v", second)
	}
	text := strings.Join(got.GetWarnings(), "\n")
	for _, want := range []string{
		"member node-9: bad", "cluster: connection refused", "ipam: went backwards", `ip_forward is "0", wanted "1": set it`, "default/x: no driver",
		`host setting net/a: somebody else changed it to "0"; put back to "1" once, last at 1970-01-01T00:16:40Z`,
		`put back to "1" 3 times, last at 1970-01-01T00:33:20Z`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no warning %q in\n%s", want, text)
		}
	}

	k.err, n.Settings = errors.New("the loop is gone"), settings{err: errors.New("no netlink")}
	got, err = n.Status(t.Context(), &nodeagentv1.StatusRequest{})
	if err != nil || got.GetPods()["Running"] != 2 {
		t.Errorf("what there is must be told: %v %v", got, err)
	}
	if text := strings.Join(got.GetWarnings(), "\n"); !strings.Contains(text, "the loop is gone") || !strings.Contains(text, "no netlink") {
		t.Errorf("warnings: %s", text)
	}
}

// What somebody accepted is on record: who, and which versions.
func TestAccept(t *testing.T) {
	well, frozen := &source{status: push.SubscriberStatus{Source: nodestate.SourceIPAM}}, &source{status: push.SubscriberStatus{
		Source: nodestate.SourcePolicy, Frozen: true,
		Held: nodestate.Version{ClusterID: 0xabc, Revision: 900}, Offered: nodestate.Version{ClusterID: 0xdef, Revision: 17},
	}}
	var log bytes.Buffer
	var noted acceptances
	n := &Node{Name: "node-1", Sources: []Source{well, frozen}, Accepted: &noted, Log: slog.New(slog.NewTextHandler(&log, nil))}
	ctx := rpc.WithIdentity(t.Context(), pki.User("ada"))
	got, err := n.Accept(ctx, &nodeagentv1.AcceptRequest{})
	if err != nil || !slices.Equal(got.GetServices(), []string{"policy"}) || frozen.accepted != 1 || well.accepted != 0 {
		t.Errorf("got %v %v", got, err)
	}
	if lines := strings.Count(log.String(), "\n"); lines != 1 {
		t.Errorf("%d records, want one for each slice that was accepted:\n%s", lines, log.String())
	}
	for _, want := range []string{
		"level=WARN", "audit", "identity=/user/ada", "node=node-1", "service=policy", `held="{abc, 900}"`, `offered="{def, 17}"`,
	} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("no %s in the record\n%s", want, log.String())
		}
	}
	if len(noted.slices) != 2 || noted.identity != "/user/ada" || !noted.slices[1].Frozen {
		t.Errorf("noted %+v", noted)
	}
	log.Reset()
	frozen.status.Frozen = false
	if _, err := n.Accept(ctx, &nodeagentv1.AcceptRequest{}); err != nil || !strings.Contains(log.String(), "nothing is frozen") ||
		!strings.Contains(log.String(), "identity=/user/ada") {
		t.Errorf("%v\n%s", err, log.String())
	}
}
