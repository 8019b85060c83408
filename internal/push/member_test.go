package push_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/push"
	"podwire.dev/internal/push/pushtest"
	pushv1 "podwire.dev/proto/podwire/push/v1"
)

// TestMember: a fabric member holds what all nodes share, beside the Node of its name, and no receipt waits for it.
func TestMember(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := push.NewHub(nodestate.SourceIPAM, push.Options{
			Authorize: pushtest.Anybody,
			AuthorizeMember: func(_ context.Context, member string) error {
				if member != "dns-1" {
					return errs.New(errs.Denied, "member %q: not you", member)
				}
				return nil
			},
		})
		service := pushtest.Serve(t, hub)
		store := &memory{}
		write(t, hub, store)
		world := func(revision int64) {
			t.Helper()
			p := push.Publication{
				Version: at(revision), Settled: revision, Nodes: map[string]push.Standing{"dns-1": push.StandingMember},
				Shared: upsert(nodestate.Member{Name: "node-1", Underlay: nil, Kind: nodestate.MemberKind(1 + revision%2)}),
			}
			if err := hub.Publish(t.Context(), p); err != nil {
				t.Fatal(err)
			}
		}
		settle := func() { pass(2 * time.Second) }
		world(10)
		dial(t, service, &pushv1.Hello{Member: "web-1"}).fails("not you")
		member := dial(t, service, &pushv1.Hello{Member: "dns-1"})
		if begin, rows, _ := member.snapshot(); begin.GetVersion() != 10 || len(rows) != 1 {
			t.Errorf("a member got version %d with %d rows", begin.GetVersion(), len(rows))
		}
		member.apply(10)
		node := dial(t, service, &pushv1.Hello{Node: "dns-1"})
		node.snapshot()
		settle()
		if w, _ := store.state(); w.Revision != 0 {
			t.Errorf("the member's ack counts for the Node of its name: watermark %d", w.Revision)
		}
		node.apply(10)
		world(11)
		node.delta()
		node.apply(11)
		settle()
		if w, _ := store.state(); w.Revision != 11 {
			t.Errorf("watermark %d waits for a member that has not acked", w.Revision)
		}
		member.delta()
		member.refuse(11, 10, "no route")
		settle()
		if w, _ := store.state(); w.Revision != 11 || len(w.Laggards) > 0 {
			t.Errorf("a member that refuses is a laggard: %+v", w)
		}
	})
}
