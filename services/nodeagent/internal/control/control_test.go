package control

import (
	"context"
	"io"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"podwire.dev/internal/backoff"
	"podwire.dev/internal/errs"
	"podwire.dev/internal/heartbeat"
	clusterv1 "podwire.dev/proto/podwire/cluster/v1"
	ipamv1 "podwire.dev/proto/podwire/ipam/v1"
	objectv1 "podwire.dev/proto/podwire/object/v1"
)

var silent = slog.New(slog.DiscardHandler)

// nodes is cluster's NodeService with one Node.
type nodes struct {
	clusterv1.NodeServiceClient
	mu      sync.Mutex
	node    *objectv1.Node
	applies int
	updates int
	fail    error
}

func (n *nodes) Get(context.Context, *clusterv1.NodeServiceGetRequest, ...grpc.CallOption) (*clusterv1.NodeServiceGetResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.fail != nil {
		return nil, n.fail
	}
	if n.node == nil {
		return nil, errs.New(errs.NotFound, "no such Node")
	}
	return &clusterv1.NodeServiceGetResponse{Object: proto.Clone(n.node).(*objectv1.Node)}, nil
}

func (n *nodes) Apply(_ context.Context, req *clusterv1.NodeServiceApplyRequest, _ ...grpc.CallOption) (*clusterv1.NodeServiceApplyResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if req.ExpectedRevision != nil && n.node != nil {
		return nil, errs.New(errs.Conflict, "it exists")
	}
	n.applies++
	status := n.node.GetStatus()
	n.node = proto.Clone(req.GetObject()).(*objectv1.Node)
	n.node.Status = status
	return &clusterv1.NodeServiceApplyResponse{Object: proto.Clone(n.node).(*objectv1.Node)}, nil
}

func (n *nodes) UpdateStatus(_ context.Context, req *clusterv1.NodeServiceUpdateStatusRequest, _ ...grpc.CallOption) (*clusterv1.NodeServiceUpdateStatusResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.updates++
	n.node.Status = proto.Clone(req.GetObject().GetStatus()).(*objectv1.NodeStatus)
	return &clusterv1.NodeServiceUpdateStatusResponse{Object: n.node}, nil
}

func (n *nodes) change(with func(*nodes)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	with(n)
}

func registrar(n *nodes, registered func()) *Registrar {
	return &Registrar{Nodes: n, Log: silent, Registered: registered, Self: Self{
		Name: "node-1", Underlay: []netip.Addr{netip.MustParseAddr("172.30.0.2"), netip.MustParseAddr("fd00::2")},
		Labels: map[string]string{"topology.kubernetes.io/zone": "a"}, Target: "unix:///run/agent.sock",
		Info: &objectv1.NodeSystemInfo{KernelVersion: "6.18"},
	}}
}

// running runs fn in a bubble of its own time, and ends it after the test.
func running(t *testing.T, fn func(context.Context) error, test func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- fn(ctx) }()
	synctest.Wait()
	test()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestRegistration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &nodes{fail: errs.New(errs.Unavailable, "cluster is away")}
		registered := 0
		running(t, registrar(n, func() { registered++ }).Run, func() {
			elapse(time.Minute)
			if n.applies != 0 || registered != 0 {
				t.Fatal("registered with nobody")
			}
			n.change(func(n *nodes) { n.fail = nil })
			elapse(backoff.Last)
			if n.applies != 1 || n.updates != 1 || registered != 1 {
				t.Fatalf("%d applies, %d status updates, told %d times", n.applies, n.updates, registered)
			}
			m := n.node.GetMetadata()
			want := map[string]string{"kubernetes.io/hostname": "node-1", "kubernetes.io/os": "linux", "topology.kubernetes.io/zone": "a"}
			if !maps.Equal(m.GetLabels(), want) || m.GetAnnotations()[AnnotationTarget] != "unix:///run/agent.sock" {
				t.Errorf("metadata: %v", m)
			}
			var addrs []string
			for _, a := range n.node.GetStatus().GetAddresses() {
				addrs = append(addrs, a.GetType()+" "+a.GetAddress())
			}
			if !slices.Equal(addrs, []string{"InternalIP 172.30.0.2", "InternalIP fd00::2", "Hostname node-1"}) {
				t.Errorf("addresses: %v", addrs)
			}

			// What people write is kept, and is no reason to write.
			n.change(func(n *nodes) { n.node.Metadata.Labels["disk"] = "ssd" })
			elapse(2 * refresh)
			if n.applies != 1 || n.updates != 1 || n.node.GetMetadata().GetLabels()["disk"] != "ssd" {
				t.Errorf("%d applies, %d updates, labels %v", n.applies, n.updates, n.node.GetMetadata().GetLabels())
			}
			n.change(func(n *nodes) { n.node = nil })
			elapse(2 * refresh)
			if n.node == nil || registered != 1 {
				t.Error("a Node that somebody removed is not made again")
			}
		})
	})
}

// replica is one replica of cluster that hears heartbeats.
type replica struct {
	clusterv1.LivenessServiceClient
	mu     sync.Mutex
	opened int
	beats  []*clusterv1.HeartbeatRequest
	// answer gives the answer to a beat; nil is silence.
	answer func(*clusterv1.HeartbeatRequest) *clusterv1.HeartbeatResponse
}

func (r *replica) Heartbeat(ctx context.Context, _ ...grpc.CallOption) (grpc.BidiStreamingClient[clusterv1.HeartbeatRequest, clusterv1.HeartbeatResponse], error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.opened++
	return &beatStream{ctx: ctx, replica: r, answers: make(chan *clusterv1.HeartbeatResponse, 1)}, nil
}

type beatStream struct {
	grpc.ClientStream
	ctx     context.Context
	replica *replica
	answers chan *clusterv1.HeartbeatResponse
}

func (s *beatStream) Send(m *clusterv1.HeartbeatRequest) error {
	s.replica.mu.Lock()
	s.replica.beats = append(s.replica.beats, m)
	a := s.replica.answer(m)
	s.replica.mu.Unlock()
	if a == nil {
		return nil
	}
	select {
	case s.answers <- a:
		return nil
	case <-s.ctx.Done():
		return io.EOF
	}
}

func (s *beatStream) Recv() (*clusterv1.HeartbeatResponse, error) {
	select {
	case a := <-s.answers:
		return a, nil
	case <-s.ctx.Done():
		return nil, errs.WrapAs(errs.Unavailable, s.ctx.Err(), "stream")
	}
}

func (s *beatStream) CloseSend() error { return nil }

func (r *replica) count() (opened, beats int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.opened, len(r.beats)
}

type closer struct{ closed *int }

func (c closer) Close() error { *c.closed++; return nil }

func TestHeartbeatsGoToTheElectedReplica(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		leader := &replica{answer: func(m *clusterv1.HeartbeatRequest) *clusterv1.HeartbeatResponse {
			return &clusterv1.HeartbeatResponse{Sequence: m.GetSequence(), RequiredWatermark: 42}
		}}
		follower := &replica{answer: func(*clusterv1.HeartbeatRequest) *clusterv1.HeartbeatResponse {
			return &clusterv1.HeartbeatResponse{LeaderTarget: "leader:7443"}
		}}
		var watermark int64
		dialled, closed := "", 0
		h := &Heart{
			Service: follower, Node: "node-1", Target: "unix:///a", Log: silent,
			Dial: func(target string) (clusterv1.LivenessServiceClient, io.Closer, error) {
				dialled = target
				return leader, closer{&closed}, nil
			},
			Health:    func() Health { return Health{Reason: "waits for policy"} },
			Watermark: func(r int64) { watermark = r },
		}
		running(t, h.Run, func() {
			elapse(10*Beat + Beat/2)
			opened, beats := leader.count()
			if dialled != "leader:7443" || opened != 1 || beats != 11 || watermark != 42 {
				t.Errorf("dialled %q, %d streams, %d beats, watermark %d", dialled, opened, beats, watermark)
			}
			last := leader.beats[len(leader.beats)-1]
			if last.GetSequence() != 11 || last.GetReady() || last.GetReason() != "waits for policy" || last.GetAgentTarget() != "unix:///a" {
				t.Errorf("beat: %v", last)
			}
		})
		if closed != 1 {
			t.Errorf("closed %d times", closed)
		}
	})
}

// While nobody heard the node, cluster may have written what the node must correct.
func TestTheNodeLearnsThatItIsHeardAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		silentNow := false
		r := &replica{}
		r.answer = func(m *clusterv1.HeartbeatRequest) *clusterv1.HeartbeatResponse {
			if silentNow {
				return nil
			}
			return &clusterv1.HeartbeatResponse{Sequence: m.GetSequence()}
		}
		returned := 0
		h := &Heart{
			Service: r, Node: "node-1", Log: silent, Health: func() Health { return Health{Ready: true} },
			Watermark: func(int64) {}, Returned: func() { returned++ },
		}
		running(t, h.Run, func() {
			elapse(time.Second)
			if returned != 1 {
				t.Errorf("told %d times, want once: an agent that starts does not know what was said of its node while it was away", returned)
			}
			r.mu.Lock()
			silentNow = true
			r.mu.Unlock()
			elapse(2 * heartbeat.Deaf)
			r.mu.Lock()
			silentNow = false
			r.mu.Unlock()
			elapse(heartbeat.Deaf + backoff.Last + time.Second)
			if returned != 2 {
				t.Errorf("told %d times, want twice: at the first stream, and after the silence", returned)
			}
		})
	})
}

// podService is cluster's PodService with one Pod.
type podService struct {
	clusterv1.PodServiceClient
	uid string
}

func (p podService) Get(context.Context, *clusterv1.PodServiceGetRequest, ...grpc.CallOption) (*clusterv1.PodServiceGetResponse, error) {
	if p.uid == "" {
		return nil, errs.New(errs.NotFound, "no such Pod")
	}
	return &clusterv1.PodServiceGetResponse{Object: &objectv1.Pod{Metadata: &objectv1.ObjectMeta{Uid: p.uid}}}, nil
}

func (p podService) UpdateStatus(_ context.Context, req *clusterv1.PodServiceUpdateStatusRequest, _ ...grpc.CallOption) (*clusterv1.PodServiceUpdateStatusResponse, error) {
	if err := p.check(req.GetObject().GetMetadata().GetUid()); err != nil {
		return nil, err
	}
	return &clusterv1.PodServiceUpdateStatusResponse{Revision: 7}, nil
}

func (p podService) Delete(_ context.Context, req *clusterv1.PodServiceDeleteRequest, _ ...grpc.CallOption) (*clusterv1.PodServiceDeleteResponse, error) {
	if req.GracePeriodSeconds == nil || req.GetGracePeriodSeconds() != 0 {
		return nil, errs.New(errs.Internal, "not for good")
	}
	if err := p.check(req.GetUid()); err != nil {
		return nil, err
	}
	return &clusterv1.PodServiceDeleteResponse{Revision: 8}, nil
}

func (p podService) check(uid string) error {
	switch p.uid {
	case "":
		return errs.New(errs.NotFound, "no such Pod")
	case uid:
		return nil
	}
	return errs.New(errs.Conflict, "uid is another")
}

func TestReports(t *testing.T) {
	for _, tt := range []struct {
		what, stored string
		want         errs.Kind
	}{
		{"the Pod", "u1", 0},
		{"another of its name", "u2", errs.NotFound},
		{"none", "", errs.NotFound},
	} {
		r := &Reporter{Pods: podService{uid: tt.stored}}
		status, serr := r.UpdateStatus(t.Context(), "default", "a", "u1", &objectv1.PodStatus{})
		gone, derr := r.Delete(t.Context(), "default", "a", "u1")
		if tt.stored == "u1" {
			if serr != nil || derr != nil || status != 7 || gone != 8 {
				t.Errorf("%s: %d %v, %d %v", tt.what, status, serr, gone, derr)
			}
			continue
		}
		if !errs.Is(serr, tt.want) || !errs.Is(derr, tt.want) {
			t.Errorf("%s: %v, %v", tt.what, serr, derr)
		}
	}
}

type allocations struct {
	ipamv1.AllocationServiceClient
	asked *ipamv1.LeaseBlockRequest
	cidr  string
}

func (a *allocations) LeaseBlock(_ context.Context, req *ipamv1.LeaseBlockRequest, _ ...grpc.CallOption) (*ipamv1.LeaseBlockResponse, error) {
	a.asked = req
	return &ipamv1.LeaseBlockResponse{Object: &objectv1.AddressBlock{Spec: &objectv1.AddressBlockSpec{Cidr: a.cidr}}}, nil
}

func TestLeases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		registered := make(chan struct{})
		a := &allocations{cidr: "fd00:10:244::40/122"}
		l := &Leaser{Allocations: a, Node: "node-1", Registered: registered}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := l.LeaseBlock(ctx, 6, "r"); !errs.Is(err, errs.Unavailable) || a.asked != nil {
			t.Errorf("asked before the Node was there: %v", err)
		}
		close(registered)
		p, err := l.LeaseBlock(t.Context(), 6, "r")
		if err != nil || p.String() != a.cidr || a.asked.GetFamily() != ipamv1.Family_FAMILY_IPV6 || a.asked.GetRequestId() != "r" ||
			a.asked.GetNode() != "node-1" {
			t.Errorf("%v %v, asked %v", p, err, a.asked)
		}
		a.cidr = "nonsense"
		if _, err := l.LeaseBlock(t.Context(), 4, "r"); err == nil {
			t.Error("an answer that is no prefix was taken")
		}
	})
}

// elapse lets time go by in the bubble, and everybody do what is due then.
func elapse(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}
