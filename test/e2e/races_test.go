package e2e

import (
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestOneObjectManyWriters: several clients apply the same objects at once. Each is told that it wrote or that another was
// faster; what is there in the end is what one of them wrote, and what the packets see.
func TestOneObjectManyWriters(t *testing.T) {
	const (
		ns      = "writers"
		writers = 8
		rounds  = 4
	)
	shared.namespace(t, ns)
	shared.apply(t, echoPod(ns, "a1", "node-1", 80)+clientPod(ns, "c3", "node-3")+tried(ns, 1000))
	vip := shared.service(t, ns, "tried").Spec.ClusterIP
	for round := range rounds {
		first := 2000 + round*writers
		var all sync.WaitGroup
		for w := range writers {
			all.Go(func() {
				text := tried(ns, first+w) + isolate(ns, "who", "web", fmt.Sprintf("writer-%d", w))
				if a := shared.runWith(text, "apply", "--wait", "-f", "-"); a.code != 0 && !strings.Contains(a.err, "changed") {
					t.Errorf("writer %d: exit %d: %s", w, a.code, a.text())
				}
			})
		}
		all.Wait()
		shared.must(t, "delete", "networkpolicy", "who", "-n", ns, "--wait")
		kept := shared.service(t, ns, "tried").Spec.Ports[0].Port
		if kept < first || kept >= first+writers {
			t.Fatalf("the Service has port %d, which nobody wrote", kept)
		}
		var questions []question
		for w := range writers {
			questions = append(questions, question{"tcp", net.JoinHostPort(vip, fmt.Sprint(first+w))})
		}
		for w, r := range shared.ask(t, inPod(ns, "c3"), 2*time.Second, questions) {
			if r.reached() != (first+w == kept) {
				t.Errorf("port %d is kept, port %d: %s", kept, first+w, r)
			}
		}
	}
	shared.clean(t)
}

// stormPods is how many pods come and go at once.
const stormPods = 60

// TestStorm makes and removes pods of the same names from several clients at once, on all nodes, with Services and policies
// that select them.
func TestStorm(t *testing.T) {
	const (
		ns      = "storm"
		clients = 6
	)
	shared.namespace(t, ns)
	shared.apply(t, webService(ns, "all", "")+isolate(ns, "all", "web", "nobody")+clientPod(ns, "c1", "node-1"))
	var all sync.WaitGroup
	for c := range clients {
		all.Go(func() {
			text := ""
			for n := c; n < stormPods; n += clients {
				text += echoPod(ns, fmt.Sprintf("p%d", n), fmt.Sprintf("node-%d", n%3+1), 80)
			}
			// They are removed while they start, and come again under the same names.
			for _, args := range [][]string{{"apply"}, {"delete", "--wait"}, {"apply", "--wait"}} {
				if a := shared.runWith(text, append(args, "-f", "-")...); a.code != 0 {
					t.Errorf("client %d: %s: exit %d: %s", c, args[0], a.code, a.text())
				}
			}
		})
	}
	all.Wait()
	shared.clean(t)
	vip := shared.service(t, ns, "all").Spec.ClusterIP
	wantCode(t, inPod(ns, "c1"), denied, "tcp", vip, 80)
	shared.must(t, "delete", "networkpolicy", "all", "-n", ns, "--wait")
	who, a := shared.answers(inPod(ns, "c1"), 40*stormPods, "tcp", vip, 80, "--interval", "0")
	if n := len(distinct(who)); n != stormPods || a.code != reached { // one of 60 is missed by all of 2400 with a probability of 2e-16
		t.Errorf("%d of %d pods answer, exit %d", n, stormPods, a.code)
	}
}

// TestNamespaceEndsUnderLoad deletes a Namespace while others write into it.
func TestNamespaceEndsUnderLoad(t *testing.T) {
	const ns = "ends"
	doc := "{apiVersion: v1, kind: Namespace, metadata: {name: " + ns + "}}"
	shared.apply(t, doc)
	content := func(n int) string {
		return echoPod(ns, fmt.Sprintf("p%d", n), fmt.Sprintf("node-%d", n%3+1), 80) + webService(ns, fmt.Sprintf("s%d", n), "type: NodePort, ") +
			isolate(ns, fmt.Sprintf("np%d", n), "web", "nobody")
	}
	shared.apply(t, content(0)+content(1)+content(2))
	ended := make(chan struct{})
	var all sync.WaitGroup
	for client := range 3 {
		all.Go(func() {
			for n := 10 * (client + 1); ; n++ {
				select {
				case <-ended:
					return
				default:
				}
				if a := shared.runWith(content(n), "apply", "-f", "-"); a.code != 0 && !strings.Contains(a.err, ns) {
					t.Errorf("a refusal that does not name the namespace: %s", a.text())
				}
			}
		})
	}
	a := shared.runWith(doc, "delete", "--wait", "-f", "-")
	close(ended)
	all.Wait()
	if a.code != 0 {
		t.Fatalf("the namespace does not end: exit %d: %s", a.code, a.text())
	}
	for _, kind := range []string{"pods", "services", "endpointslices", "networkpolicies"} {
		var list struct {
			Items []struct{ Metadata struct{ Name string } }
		}
		shared.get(t, &list, kind, "-n", ns)
		if len(list.Items) > 0 {
			t.Errorf("%s outlive their namespace: %v", kind, list.Items)
		}
	}
	if a := shared.run("get", "namespace", ns); a.code == 0 {
		t.Errorf("the namespace is there: %s", a.text())
	}
	shared.clean(t)
}
