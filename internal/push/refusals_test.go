package push_test

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding/gzip"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/push"
	"podwire.dev/internal/push/pushtest"
	pushv1 "podwire.dev/proto/podwire/push/v1"
)

// TestRefusesSubscribers: who may not subscribe, and how one may not.
func TestRefusesSubscribers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := push.NewHub(nodestate.SourceCluster, push.Options{Authorize: func(_ context.Context, node string) error {
			if node != "node-1" {
				return errs.New(errs.Denied, "node %q: not you", node)
			}
			return nil
		}})
		service := pushtest.Serve(t, hub)
		publish(t, hub, nodestate.SourceCluster, 10, nodestate.Delta{})
		dial(t, service, &pushv1.Hello{Node: "node-2"}).fails("not you")
		dial(t, service, &pushv1.Hello{}).fails("either a node or a member")
		dial(t, service, &pushv1.Hello{Node: "node-1", Member: "dns-1"}).fails("either a node or a member")
		dial(t, service, &pushv1.Hello{Member: "dns-1"}).fails("nobody who may subscribe as member/dns-1")
		dial(t, service, nothing(), grpc.UseCompressor(gzip.Name)).fails("compressed with gzip")

		w := dial(t, service, nothing())
		w.snapshot()
		w.apply(11)
		w.fails("acked version 11, which was not sent")

		w = dial(t, service, nothing())
		w.snapshot()
		w.say(&pushv1.SubscribeRequest{Message: &pushv1.SubscribeRequest_Ack{Ack: &pushv1.Ack{Version: 10}}})
		w.fails("without saying applied or refused")

		w = dial(t, service, nothing())
		w.snapshot()
		w.say(&pushv1.SubscribeRequest{Message: &pushv1.SubscribeRequest_Hello{Hello: nothing()}})
		w.fails("one Hello, then Acks")

		old := dial(t, service, nothing())
		old.snapshot()
		dial(t, service, nothing()).snapshot()
		old.fails("subscribed again on another stream")

		closed := push.NewHub(nodestate.SourceCluster, push.Options{})
		publish(t, closed, nodestate.SourceCluster, 10, nodestate.Delta{})
		dial(t, pushtest.Serve(t, closed), nothing()).fails("nobody who may subscribe")
	})
}

func TestPublishRefuses(t *testing.T) {
	node := func(rows ...nodestate.Row) map[string]nodestate.Delta {
		return map[string]nodestate.Delta{"node-1": upsert(rows...)}
	}
	peer := nodestate.Range{Kind: nodestate.RangePod}
	for want, p := range map[string]push.Publication{
		"without a version":           {PerNode: node(pod("a", ""))},
		"as settled up to 12":         {Version: at(11), Settled: 12},
		"version 10 again":            {Version: at(10), PerNode: node(pod("b", ""))},
		"but Shared is set":           {Version: at(11), Shared: upsert(pod("b", ""))},
		"uid: is empty":               {Version: at(11), PerNode: node(pod("", ""))},
		"prefix: \"invalid Prefix\"":  {Version: at(11), PerNode: node(peer)},
		"ranges, which is not its ow": {Version: at(11), PerNode: node(pushtest.RowOf(randomness(), nodestate.TableRanges))},
	} {
		hub := push.NewHub(nodestate.SourceCluster, push.Options{})
		if err := hub.Publish(t.Context(), push.Publication{Version: at(10), PerNode: node(pod("a", ""))}); err != nil {
			t.Fatal(err)
		}
		err := hub.Publish(t.Context(), p)
		if err == nil || !strings.Contains(err.Error(), want) || !errs.Is(err, errs.Internal) {
			t.Errorf("got error %v, want %q", err, want)
		}
	}
	err := push.NewHub(nodestate.SourceIPAM, push.Options{}).Publish(t.Context(), push.Publication{Version: at(1), PerNode: node()})
	if err == nil || !strings.Contains(err.Error(), "but PerNode is set") {
		t.Errorf("got error %v", err)
	}
}
