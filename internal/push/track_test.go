package push

import (
	"fmt"
	"testing"

	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/telemetry"
)

func encoded(t *testing.T, d nodestate.Delta) encodedDelta {
	t.Helper()
	upserts, _, err := deltaToProto(d)
	if err != nil {
		t.Fatal(err)
	}
	return encodedDelta{delta: d, upserts: upserts}
}

// TestOneMessageForAll: whoever needs the same message gets the same one, until the slice changes.
func TestOneMessageForAll(t *testing.T) {
	tr := newTrack(nodestate.SourceCluster, "", 10, 100)
	tr.advance(10, 11, encoded(t, nodestate.Delta{Upserts: []nodestate.Row{workload("a", "1")}}), nil)
	key := messageKey{holds: 10, target: 11, content: 10}
	first := tr.message(1, nil, key)
	if tr.message(1, nil, key) != first {
		t.Error("the second subscriber gets a message of its own")
	}
	if tr.message(1, nil, messageKey{holds: 9, target: 11, content: 10}) == first {
		t.Error("a subscriber at another version gets the same message")
	}
	for i := range 10 * maxMessages {
		tr.message(1, nil, messageKey{holds: int64(100 + i)})
	}
	if len(tr.messages) > maxMessages {
		t.Errorf("%d messages are remembered", len(tr.messages))
	}
	tr.advance(11, 12, encoded(t, nodestate.Delta{Upserts: []nodestate.Row{workload("b", "1")}}), nil)
	if tr.message(1, nil, key) == first {
		t.Error("an old message for a new version")
	}
}

// TestHistoryIsBounded: what does not fit is forgotten from the old end, and with it what it led from.
func TestHistoryIsBounded(t *testing.T) {
	tr := newTrack(nodestate.SourceCluster, "", 10, 20)
	for i := int64(11); i < 100; i++ {
		tr.advance(i-1, i, encoded(t, nodestate.Delta{Upserts: []nodestate.Row{workload("a", fmt.Sprint(i))}}), nil)
	}
	if tr.rows > 20 || len(tr.steps) != 10 || tr.base != 89 || tr.reaches(88) || !tr.reaches(89) {
		t.Errorf("%d rows in %d steps from %d", tr.rows, len(tr.steps), tr.base)
	}
	if _, known := tr.at(88); known {
		t.Error("the digests of a forgotten version are known")
	}
	for v, want := range map[int64]int64{99: 150, 120: 150, 98: 98, 89: 89, 50: 50} {
		if got := tr.held(v, 150); got != want {
			t.Errorf("with the content of %d: held %d, want %d", v, got, want)
		}
	}
	want := nodestate.NewSlice(workload("a", "93")).Digest(nodestate.TableWorkloads)
	if ds, known := tr.at(93); !known || ds[0] != want {
		t.Error("the digests of version 93 are not its own")
	}
}

// TestPushHopEndsWithTheLast: the hop of a change ends when the last subscriber that was ready for it has been sent it.
func TestPushHopEndsWithTheLast(t *testing.T) {
	tel, err := telemetry.New(t.Context(), telemetry.Process{Service: "ipam"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, root := telemetry.Start(tel.Context(t.Context()), "apply")
	defer root.End(nil)
	change := Change{Revision: 11, Object: "nodes/-/a", Traceparent: telemetry.Traceparent(ctx)}
	hops := func() int {
		sc, _ := telemetry.ParseTraceparent(change.Traceparent)
		out, _ := tel.Ring().FromTrace(sc.TraceID())
		return len(out)
	}
	h := NewHub(nodestate.SourceIPAM, Options{})
	if err := h.Publish(ctx, Publication{Version: nodestate.Version{ClusterID: 1, Revision: 10}}); err != nil {
		t.Fatal(err)
	}
	for _, node := range []string{"quick", "slow", "busy"} {
		h.subscribers[node] = &subscriber{
			node: node, track: h.track(node, 10), wake: make(chan struct{}, 1), greeted: true, verified: true, epoch: h.epoch,
		}
	}
	h.subscribers["busy"].inflight = &message{}
	err = h.Publish(ctx, Publication{
		Version: nodestate.Version{ClusterID: 1, Revision: 11}, Changes: []Change{change},
		Shared: nodestate.Delta{Upserts: []nodestate.Row{nodestate.Member{Name: "a", Kind: nodestate.MemberNode}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		node string
		want int
	}{{"busy", 0}, {"quick", 0}, {"slow", 1}, {"slow", 1}} {
		endAll(h.sent(h.subscribers[step.node]))
		if got := hops(); got != step.want {
			t.Errorf("after %s: %d hops, want %d", step.node, got, step.want)
		}
	}
}
