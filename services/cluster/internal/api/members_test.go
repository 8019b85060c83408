package api

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/netip"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/pki"
	"podwire.dev/internal/rpc"
	"podwire.dev/internal/store"
	clusterv1 "podwire.dev/proto/podwire/cluster/v1"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/cluster/internal/members"
	"podwire.dev/services/cluster/internal/planner"
	"podwire.dev/services/cluster/internal/silence"
)

func memberKey(name string) store.Key {
	return store.Key{Kind: planner.KindPod, Namespace: planner.MemberNamespace, Name: name}
}

// memberBench is a Keeper on a bench, with a clock of the test's.
type memberBench struct {
	*bench
	keeper *members.Keeper
	now    time.Time
}

func newMemberBench(t *testing.T) *memberBench {
	m := &memberBench{bench: newBench(t), now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	m.restart()
	leaders{m.running.Leader}.wait(m.bench)
	if _, _, err := m.keeper.Enter(attendance("dns-9", "10.244.0.99"), m.keeper.Open()); err != nil {
		t.Fatal(err)
	}
	if err := m.keeper.Record(m.ctx); err != nil {
		t.Fatalf("without the Namespace: %v", err)
	}
	m.wants("without the Namespace", "dns-9", "")
	m.restart()
	if err := m.namespaces.Found(m.ctx, &objectv1.Namespace{Metadata: &objectv1.ObjectMeta{Name: planner.MemberNamespace}}); err != nil {
		t.Fatal(err)
	}
	rec, _, err := m.fake.Get(m.ctx, store.Key{Kind: planner.KindNamespace, Name: planner.MemberNamespace})
	if err != nil {
		t.Fatal(err)
	}
	m.caughtUp(rec.Revision)
	m.record() // begins the term
	return m
}

// restart is a new process: it knows nobody.
func (m *memberBench) restart() {
	m.keeper = members.NewKeeper(members.Config{
		Store: m.fake.Store, Asker: m.running, World: m.plan, Leader: m.running.Leader,
		Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return m.now },
	})
}

// record lets the World catch up, and records.
func (m *memberBench) record() {
	m.t.Helper()
	m.seePods()
	if err := m.keeper.Record(m.ctx); err != nil {
		m.t.Fatal(err)
	}
	m.seePods()
}

// seePods waits until the World has the Pods that the store has.
func (m *memberBench) seePods() {
	m.t.Helper()
	again := time.NewTicker(time.Millisecond)
	defer again.Stop()
	for ; ; <-again.C {
		page, err := m.fake.List(m.ctx, store.ListQuery{Kind: planner.KindPod, Namespace: planner.MemberNamespace})
		if err != nil {
			m.t.Fatal(err)
		}
		want, have := map[string]store.Revision{}, map[string]store.Revision{}
		for _, rec := range page.Records {
			want[rec.Key.Name] = rec.Revision
		}
		if err := m.running.Do(m.ctx, func(store.Revision) {
			for name, rec := range m.plan.MembersPods() {
				have[name] = rec.Revision
			}
		}); err != nil {
			m.t.Fatalf("the World does not get the Pods %v: %v", want, err)
		}
		if maps.Equal(have, want) {
			return
		}
	}
}

func (m *memberBench) lease(member, address string) {
	m.t.Helper()
	at, err := m.fake.Txn().Create(&objectv1.AddressBlock{
		Metadata: &objectv1.ObjectMeta{Name: "block-" + member, Uid: member},
		Spec:     &objectv1.AddressBlockSpec{Cidr: address + "/32", Member: member},
	}, planner.KindBlock).Commit(m.ctx)
	if err != nil {
		m.t.Fatal(err)
	}
	m.caughtUp(at)
}

func attendance(name, address string) members.Attendance {
	return members.Attendance{
		Name: name, Service: "dns", Underlay: []netip.Addr{netip.MustParseAddr("172.30.0.31")},
		Addresses: []netip.Addr{netip.MustParseAddr(address)}, Ready: true,
		Ports: []members.Port{{Name: "dns", Port: 53, Protocol: "UDP"}, {Name: "dns-tcp", Port: 53, Protocol: "TCP"}},
	}
}

// pod is the member's Pod, nil for none, and whether it is Ready.
func (m *memberBench) pod(name string) (o *objectv1.Pod, ready string) {
	m.t.Helper()
	rec, _, err := m.fake.Get(m.ctx, memberKey(name))
	if errs.Is(err, errs.NotFound) {
		return nil, ""
	}
	if err != nil {
		m.t.Fatal(err)
	}
	o = rec.Object.(*objectv1.Pod)
	for _, c := range o.GetStatus().GetConditions() {
		if c.GetType() == "Ready" {
			ready = c.GetStatus()
		}
	}
	return o, ready
}

func (m *memberBench) wants(what, name, want string) {
	m.t.Helper()
	if o, ready := m.pod(name); ready != want {
		m.t.Errorf("%s: ready is %q, want %q: %v", what, ready, want, o)
	}
}

func TestMembersHavePods(t *testing.T) {
	m := newMemberBench(t)
	m.lease("dns-1", "10.244.0.65")
	a, s := attendance("dns-1", "10.244.0.65"), m.keeper.Open()
	enter := func() (bool, store.Revision, error) { return m.keeper.Enter(a, s) }
	if elected, at, err := enter(); !elected || at != 0 || err != nil {
		t.Fatalf("the first sign of life: %v, %d, %v", elected, at, err)
	}
	m.record()
	o, ready := m.pod("dns-1")
	if ready != "True" || o.GetMetadata().GetLabels()["k8s-app"] != "kube-dns" || o.GetMetadata().GetAnnotations()[planner.AnnotationMember] != "dns" {
		t.Fatalf("the Pod of a member is %v", o)
	}
	if o.GetSpec().GetNodeName() != "" || o.GetStatus().GetHostIp() != "172.30.0.31" || o.GetStatus().GetPodIp() != "10.244.0.65" {
		t.Errorf("the Pod of a member is %v", o)
	}
	rec, _, err := m.fake.Get(m.ctx, memberKey("dns-1"))
	if err != nil {
		t.Fatal(err)
	}
	m.record()
	again, _, err := m.fake.Get(m.ctx, memberKey("dns-1"))
	if _, at, _ := enter(); err != nil || at != rec.Revision || again.Revision != rec.Revision {
		t.Errorf("attended at %d; written at %d, and by the same again at %d: %v", at, rec.Revision, again.Revision, err)
	}

	if err := func() error {
		_, err := m.pods.Delete(m.ctx, &clusterv1.PodServiceDeleteRequest{Namespace: planner.MemberNamespace, Name: "dns-1"})
		return err
	}(); err != nil {
		t.Fatal(err)
	}
	m.record()
	if back, _ := m.pod("dns-1"); back == nil || back.GetMetadata().GetUid() == o.GetMetadata().GetUid() {
		t.Errorf("a Pod that somebody deletes comes back as %v", back)
	}
	apply := func(o *objectv1.Pod) error {
		_, err := m.pods.Apply(m.ctx, &clusterv1.PodServiceApplyRequest{Object: o})
		return err
	}
	forged := podNamed("dns-1")
	forged.Metadata.Namespace = planner.MemberNamespace
	m.refused("somebody writes a member's Pod", apply(forged), errs.Denied)
	forged.Metadata.Name, forged.Metadata.Annotations = "dns-7", map[string]string{planner.AnnotationMember: "dns"}
	m.refused("somebody makes a Pod look like a member's", apply(forged), errs.Invalid)

	a.Ready, a.Reason = false, "the upstream is gone"
	if _, _, err := enter(); err != nil {
		t.Fatal(err)
	}
	m.record()
	m.wants("the member says not ready", "dns-1", "False")
	a.Reason = "x" + strings.Repeat("é", 1000)
	if _, _, err := enter(); err != nil {
		t.Fatal(err)
	}
	m.record()
	if o, _ := m.pod("dns-1"); o.GetStatus().GetConditions()[0].GetMessage() != "x"+strings.Repeat("é", 255) {
		t.Errorf("a long reason: %v", o.GetStatus().GetConditions())
	}
	a.Ready = true
	a.Addresses = append(a.Addresses, netip.MustParseAddr("fd00:10:244::1"))
	if _, _, err := enter(); err != nil {
		t.Fatal(err)
	}
	m.record()
	if o, ready := m.pod("dns-1"); ready != "False" || len(o.GetStatus().GetPodIps()) != 1 {
		t.Errorf("an address that it does not lease: %v", o.GetStatus())
	}
}

func TestMembersFallSilent(t *testing.T) {
	m := newMemberBench(t)
	m.lease("dns-1", "10.244.0.65")
	a, s := attendance("dns-1", "10.244.0.65"), m.keeper.Open()
	enter := func(s members.Stream) {
		t.Helper()
		if _, _, err := m.keeper.Enter(a, s); err != nil {
			t.Fatal(err)
		}
		m.record()
	}
	after := func(d time.Duration) { m.now = m.now.Add(d); m.record() }
	enter(s)
	m.wants("attends", "dns-1", "True")
	after(members.SilentAfter - time.Millisecond)
	m.wants("just before", "dns-1", "True")
	after(time.Millisecond)
	m.wants("silent", "dns-1", "False")
	enter(s)
	m.wants("heard again", "dns-1", "True")

	next := m.keeper.Open()
	enter(next)
	m.keeper.End("dns-1", s)
	after(members.EndedAfter)
	m.wants("the end of a stream that another has replaced", "dns-1", "True")
	m.keeper.End("dns-1", next)
	after(members.EndedAfter)
	m.wants("the end of its stream", "dns-1", "False")
	after(members.GoneAfter - members.EndedAfter - members.EndedAfter - time.Millisecond)
	m.wants("just before it is gone", "dns-1", "False")
	after(time.Millisecond)
	m.wants("gone", "dns-1", "")
	enter(m.keeper.Open())
	m.wants("back", "dns-1", "True")

	m.restart() // cluster's process is replaced: the member has time to find it
	m.record()
	after(silence.ReconnectAfter - time.Millisecond)
	m.wants("after a restart of cluster", "dns-1", "True")
	after(time.Millisecond)
	m.wants("it never came back", "dns-1", "False")
	after(members.GoneAfter - members.SilentAfter)
	m.wants("for good", "dns-1", "")
}

// TestMembersAreSucceeded: a replica in a container that was made anew has another name and its predecessor's address.
func TestMembersAreSucceeded(t *testing.T) {
	m := newMemberBench(t)
	m.lease("dns-1", "10.244.0.65")
	m.lease("dns-2", "10.244.0.66")
	streams := map[string]members.Stream{}
	enter := func(name, address, underlay string) {
		t.Helper()
		a := attendance(name, address)
		a.Underlay = []netip.Addr{netip.MustParseAddr(underlay)}
		streams[name] = m.keeper.Open()
		if _, _, err := m.keeper.Enter(a, streams[name]); err != nil {
			t.Fatal(err)
		}
		m.record()
	}
	enter("dns-1", "10.244.0.65", "172.30.0.31")
	enter("dns-2", "10.244.0.66", "172.30.0.31")
	m.wants("two at one address: who lives stays", "dns-1", "True")
	m.wants("two at one address: who lives stays", "dns-2", "True")
	enter("dns-2", "10.244.0.66", "172.30.0.32")
	m.keeper.End("dns-1", streams["dns-1"])
	m.now = m.now.Add(members.EndedAfter)
	m.record()
	m.wants("its stream ended, and nobody has its address", "dns-1", "False")
	enter("dns-2", "10.244.0.66", "172.30.0.31")
	m.wants("another has its address", "dns-1", "")
	m.wants("the other", "dns-2", "True")
	m.record()
	enter("dns-1", "10.244.0.65", "172.30.0.33")
	m.wants("back at another address", "dns-1", "True")
}

func TestMembersRefused(t *testing.T) {
	m := newMemberBench(t)
	other := podNamed("dns-1")
	other.Metadata.Namespace, other.Metadata.Uid = planner.MemberNamespace, "another"
	m.commit(m.fake.Txn().Create(other, planner.KindPod))
	a, s := attendance("dns-1", "10.244.0.65"), m.keeper.Open()
	if _, _, err := m.keeper.Enter(a, s); err != nil {
		t.Fatal(err)
	}
	m.record()
	_, _, err := m.keeper.Enter(a, s)
	m.refused("the name of another's Pod", err, errs.Exists)
	m.now = m.now.Add(members.GoneAfter)
	m.record()
	if o, _ := m.pod("dns-1"); o.GetMetadata().GetUid() != "another" {
		t.Errorf("the other's Pod is %v", o)
	}
}

// TestMembersAreBounded: whoever steals a service's identity makes no end of Pods with it.
func TestMembersAreBounded(t *testing.T) {
	m := newMemberBench(t)
	enter := func(i int) error {
		_, _, err := m.keeper.Enter(attendance(fmt.Sprintf("dns-%d", i), "10.244.0.65"), m.keeper.Open())
		return err
	}
	for i := range members.MaxOfService {
		if err := enter(i); err != nil {
			t.Fatal(i, err)
		}
	}
	m.refused("one more", enter(members.MaxOfService), errs.Exhausted)
	if err := enter(0); err != nil {
		t.Errorf("one that is known: %v", err)
	}
	a := attendance("ingress-1", "10.244.0.65")
	a.Service = "ingress"
	if _, _, err := m.keeper.Enter(a, m.keeper.Open()); err != nil {
		t.Errorf("another service: %v", err)
	}
}

// attendStream is the server's side of one Attend.
type attendStream struct {
	grpc.ServerStream
	ctx  context.Context
	asks []*clusterv1.AttendRequest
	said []*clusterv1.AttendResponse
}

func (s *attendStream) Context() context.Context { return s.ctx }

func (s *attendStream) Recv() (*clusterv1.AttendRequest, error) {
	if len(s.asks) == 0 {
		return nil, io.EOF
	}
	next := s.asks[0]
	s.asks = s.asks[1:]
	return next, nil
}

func (s *attendStream) Send(r *clusterv1.AttendResponse) error {
	s.said = append(s.said, r)
	return nil
}

// elsewhere is a Register of a replica that does not lead.
type elsewhere struct{ ended []string }

func (*elsewhere) Open() members.Stream { return 1 }
func (*elsewhere) Enter(members.Attendance, members.Stream) (bool, store.Revision, error) {
	return false, 0, nil
}
func (e *elsewhere) End(name string, _ members.Stream) { e.ended = append(e.ended, name) }

func TestAttend(t *testing.T) {
	b := newBench(t)
	leaders{b.running.Leader}.wait(b)
	ask := func(change func(*clusterv1.AttendRequest)) *clusterv1.AttendRequest {
		r := &clusterv1.AttendRequest{
			Name: "dns-1", Sequence: 7, Underlay: []string{"172.30.0.31"}, Addresses: []string{"10.244.0.65", "fd00:10:244::1"},
			Ports: []*clusterv1.MemberPort{{Name: "dns", Port: 53, Protocol: "UDP"}},
		}
		change(r)
		return r
	}
	same := func(*clusterv1.AttendRequest) {}
	dns := pki.Service("dns")
	for _, tt := range []struct {
		what string
		id   pki.Identity
		asks []*clusterv1.AttendRequest
		kind errs.Kind
	}{
		{"another service", pki.Service("ingress"), []*clusterv1.AttendRequest{ask(same)}, errs.Denied},
		{"a person", pki.User("alice"), []*clusterv1.AttendRequest{ask(same)}, errs.Denied},
		{"no underlay", dns, []*clusterv1.AttendRequest{ask(func(r *clusterv1.AttendRequest) { r.Underlay = nil })}, errs.Invalid},
		{"an underlay that is nobody's", dns, []*clusterv1.AttendRequest{ask(func(r *clusterv1.AttendRequest) { r.Underlay[0] = "255.255.255.255" })}, errs.Invalid},
		{"an underlay that is many", dns, []*clusterv1.AttendRequest{ask(func(r *clusterv1.AttendRequest) { r.Underlay[0] = "224.0.0.1" })}, errs.Invalid},
		{"two of a family", dns, []*clusterv1.AttendRequest{ask(func(r *clusterv1.AttendRequest) { r.Addresses[1] = "10.244.0.66" })}, errs.Invalid},
		{"no address", dns, []*clusterv1.AttendRequest{ask(func(r *clusterv1.AttendRequest) { r.Addresses[1] = "x" })}, errs.Invalid},
		{"a port of no protocol", dns, []*clusterv1.AttendRequest{ask(func(r *clusterv1.AttendRequest) { r.Ports[0].Protocol = "" })}, errs.Invalid},
		{"a port of too many bits", dns, []*clusterv1.AttendRequest{ask(func(r *clusterv1.AttendRequest) { r.Ports[0].Port = 65589 })}, errs.Invalid},
		{"two members on one stream", dns, []*clusterv1.AttendRequest{ask(same), ask(func(r *clusterv1.AttendRequest) { r.Name = "dns-2" })}, errs.Invalid},
	} {
		err := NewMembers("cluster", &elsewhere{}, b.fake.Store).Attend(&attendStream{ctx: rpc.WithIdentity(b.ctx, tt.id), asks: tt.asks})
		b.refused(tt.what, err, tt.kind)
	}

	s := &attendStream{ctx: rpc.WithIdentity(b.ctx, dns), asks: []*clusterv1.AttendRequest{ask(same)}}
	register := &elsewhere{}
	if err := NewMembers("cluster", register, b.fake.Store).Attend(s); err != nil {
		t.Fatal(err)
	}
	if len(s.said) != 1 || s.said[0].GetLeaderTarget() != "cluster-1:7443" || s.said[0].GetSequence() != 7 {
		t.Errorf("a replica that does not lead says %v", s.said)
	}
	if len(register.ended) != 1 || register.ended[0] != "dns-1" {
		t.Errorf("the end of the stream is the end of %v", register.ended)
	}
	stops, cancel := context.WithCancelCause(s.ctx)
	cancel(errs.New(errs.Unavailable, "the server stops"))
	s = &attendStream{ctx: stops, asks: []*clusterv1.AttendRequest{ask(same)}}
	if err := NewMembers("cluster", register, b.fake.Store).Attend(s); err != nil || len(register.ended) != 1 {
		t.Errorf("a server that stops ends its members: %v, %v", register.ended, err)
	}
}
