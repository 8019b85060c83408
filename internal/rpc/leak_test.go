package rpc_test

import (
	"runtime"
	"strings"
	"testing"
	"time"

	"podwire.dev/internal/pki"
	"podwire.dev/internal/rpc"
	clusterv1 "podwire.dev/proto/podwire/cluster/v1"
)

// TestNothingIsLeftRunning is not parallel: it looks at every goroutine of the process.
func TestNothingIsLeftRunning(t *testing.T) {
	ours := newRealm(t)
	creds := ours.creds(t, pki.Service("ipam"))
	user := ours.creds(t, pki.User("admin"))
	before := goroutines()
	server := serve(t, &backend{}, func(o *rpc.ServerOptions) { onTCP(creds)(o); onSocket(t)(o) })
	conn, err := rpc.Dial(server.target, pki.Service("ipam"), user)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := getHops(t.Context(), conn); err != nil {
		t.Fatal(err)
	}
	stream, err := clusterv1.NewReceiptServiceClient(conn).Wait(t.Context(), &clusterv1.WaitRequest{})
	if err == nil {
		_, err = stream.Recv()
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := server.end(); err != nil {
		t.Fatal(err)
	}
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	// gRPC's own goroutines end on their own time after Close and Stop.
	limit, tick := time.After(10*time.Second), time.NewTicker(5*time.Millisecond)
	defer tick.Stop()
	for {
		left := goroutines()
		for stack, n := range before {
			if left[stack] -= n; left[stack] <= 0 {
				delete(left, stack)
			}
		}
		if len(left) == 0 {
			return
		}
		select {
		case <-tick.C:
		case <-limit:
			for stack, n := range left {
				t.Errorf("%d left running:\n%s", n, stack)
			}
			return
		}
	}
}

// goroutines counts, by where they were created, those that run our or gRPC's code.
func goroutines() map[string]int {
	buf := make([]byte, 4<<20)
	buf = buf[:runtime.Stack(buf, true)]
	out := map[string]int{}
	for stack := range strings.SplitSeq(string(buf), "\n\n") {
		i := strings.LastIndex(stack, "created by ")
		ours := strings.Contains(stack, "google.golang.org/grpc") || strings.Contains(stack, "podwire.dev/internal")
		if i < 0 || !ours || strings.Contains(stack, "rpc_test.TestNothingIsLeftRunning") {
			continue
		}
		origin, _, _ := strings.Cut(stack[i:], " in goroutine")
		out[origin]++
	}
	return out
}
