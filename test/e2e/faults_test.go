package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// scene is a namespace with traffic: pods that may be reached, since a policy allows their clients, and one that may not.
type scene struct {
	*instance
	t    *testing.T
	ns   string
	vips []string
	// senders are one pod on node-1 that is allowed and asked for everything, and one on node-3 for endurance of flows that
	// do not leave their node.
	senders []*sender
	// forbidden are the flows of every sender that must never be answered.
	forbidden toNobody
}

// The flows of each sender of a scene come in this order.
const (
	flowVIP4 = iota
	flowVIP6
	flowUDP4
	flowHeldPod4
	flowHeldVIP6
	flowPod6
	flowForbidden4
	flowForbidden6
	flowForbiddenVIP
)

// manifest of a Service over the pods with label app, with one port of its own for tries.
func tried(ns string, port int) string {
	return fmt.Sprintf("---\n{apiVersion: v1, kind: Service, metadata: {name: tried, namespace: %s}, spec: {selector: {app: web}, ports: [{port: %d, targetPort: web}]}}\n", ns, port)
}

// isolate is a policy that lets only pods with role: sender into the pods with label app, on their ports.
func isolate(ns, name, app, role string) string {
	return fmt.Sprintf("---\n{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: %s, namespace: %s}, spec: {podSelector: {matchLabels: {app: %s}}, "+
		"ingress: [{from: [{podSelector: {matchLabels: {role: %s}}}]}]}}\n", name, ns, app, role)
}

// newScene starts the pods, and traffic that goes on until the test ends.
func newScene(t *testing.T, i *instance, ns string) *scene {
	t.Helper()
	i.namespace(t, ns)
	t.Cleanup(func() {
		if t.Failed() {
			text, _ := os.ReadFile(filepath.Join(i.state, "log", "supervisor.log"))
			t.Logf("the supervisor said last: %s", text[max(0, len(text)-4000):])
		}
	})
	s := &scene{instance: i, t: t, ns: ns, forbidden: toNobody{flowForbidden4: true, flowForbidden6: true, flowForbiddenVIP: true}}
	closed := strings.ReplaceAll(echoPod(ns, "closed", "node-2", 80), "app: web", "app: closed")
	i.apply(t, echoPod(ns, "web-2", "node-2", 80)+echoPod(ns, "web-3", "node-3", 8080)+closed+webService(ns, "web", "")+
		strings.ReplaceAll(webService(ns, "closed", ""), "app: web", "app: closed")+tried(ns, 1000))
	s.vips = i.service(t, ns, "web").Spec.ClusterIPs
	shut := i.addressesOfPod(t, ns, "closed")
	shutVIP := net.JoinHostPort(i.service(t, ns, "closed").Spec.ClusterIP, "80")
	if r := i.ask(t, onNode("node-2"), time.Second, []question{{"tcp", net.JoinHostPort(shut[0], "80")}, {"udp", net.JoinHostPort(shut[1], "90")}, {"tcp", shutVIP}}); !r[0].reached() || !r[1].reached() || !r[2].reached() {
		t.Fatalf("what is to be forbidden does not answer to begin with: %v", r)
	}
	i.apply(t, isolate(ns, "web", "web", "sender")+isolate(ns, "closed", "closed", "nobody"))
	two := i.addressesOfPod(t, ns, "web-2")
	for _, node := range []string{"node-1", "node-3"} {
		briefly := 300 * time.Millisecond // a forbidden request need not wait for long
		s.senders = append(s.senders, i.send(t, ns, "sender-"+node, node, "role: sender",
			flow{Protocol: "tcp", Target: net.JoinHostPort(s.vips[0], "80")},
			flow{Protocol: "tcp", Target: net.JoinHostPort(s.vips[1], "80")},
			flow{Protocol: "udp", Target: net.JoinHostPort(s.vips[0], "80")},
			flow{Protocol: "tcp", Target: net.JoinHostPort(two[0], "80"), Held: true},
			flow{Protocol: "tcp", Target: net.JoinHostPort(s.vips[1], "80"), Held: true},
			flow{Protocol: "tcp", Target: net.JoinHostPort(two[1], "80")},
			flow{Protocol: "tcp", Target: net.JoinHostPort(shut[0], "80"), Timeout: briefly},
			flow{Protocol: "udp", Target: net.JoinHostPort(shut[1], "90"), Timeout: briefly},
			flow{Protocol: "tcp", Target: shutVIP, Timeout: briefly}))
	}
	return s
}

func (i *instance) addressesOfPod(t *testing.T, ns, name string) []string {
	t.Helper()
	var pod struct {
		Status struct{ PodIPs []struct{ IP string } }
	}
	i.get(t, &pod, "pod", name, "-n", ns)
	var out []string
	for _, a := range pod.Status.PodIPs {
		out = append(out, a.IP)
	}
	if len(out) != 2 {
		t.Fatalf("pod %s/%s has %v, want an address of each family", ns, name, out)
	}
	return out
}

// more waits for n more requests of every flow.
func (s *scene) more(n int) {
	s.t.Helper()
	for _, from := range s.senders {
		from.more(n)
	}
}

// judge counts what was lost.
func (s *scene) judge() {
	s.t.Helper()
	for _, from := range s.senders {
		from.judge(s.forbidden)
	}
}

// enough is how many requests of each flow show that traffic flows.
const enough = 25

// lands makes a change, waits for its receipt and sees it: the Service tried answers at another port, and no longer at the
// one before.
func (s *scene) lands(before, port int) {
	s.t.Helper()
	s.apply(s.t, tried(s.ns, port))
	vip := s.service(s.t, s.ns, "tried").Spec.ClusterIP
	r := s.ask(s.t, inPod(s.ns, "sender-node-1"), 2*time.Second, []question{
		{"tcp", net.JoinHostPort(vip, fmt.Sprint(port))}, {"tcp", net.JoinHostPort(vip, fmt.Sprint(before))},
	})
	if !r[0].reached() || r[1].reached() {
		s.t.Errorf("after the change port %d: %s, port %d: %s", port, r[0], before, r[1])
	}
}

// balanced wants every endpoint of the Service to be chosen, from every sender in both families.
func (s *scene) balanced() {
	s.t.Helper()
	for _, from := range s.senders {
		for _, vip := range s.vips {
			wantFrom(s.t, inPod(s.ns, from.name), "tcp", vip, 80, "web-2", "web-3")
		}
	}
}

// TestServicesKilled kills every service while traffic flows. One that is itself an endpoint (dns, ingress) leaves its own
// Services and comes back; nothing else moves.
func TestServicesKilled(t *testing.T) {
	s := newScene(t, shared, "killed")
	members := shared.members(t)
	port := 1000
	for _, service := range shared.services(t) {
		t.Run(service, func(t *testing.T) {
			was := shared.whole(t)
			before := shared.rulesets(t)
			s.more(enough)
			shared.kill(t, service)
			s.more(enough)
			now := shared.whole(t)
			s.more(enough)
			if slices.Contains(members, service) {
				await(t, service+" is an endpoint again", func() error { return differences(withoutEndpoints(before), withoutEndpoints(shared.rulesets(t))) })
			} else {
				sameRulesets(t, "after "+service+" was killed", before, shared.rulesets(t))
				for node, n := range now.written() {
					if n != was.written()[node] {
						t.Errorf("the agent of %s wrote %d objects into its kernel", node, n-was.written()[node])
					}
				}
			}
			port++
			s.lands(port-1, port)
		})
	}
	s.balanced()
	s.judge()
}

// TestAgentsKilled kills agents at random moments while rules change and traffic flows; the supervisor, too, since it
// waits longer with each death that comes early.
func TestAgentsKilled(t *testing.T) {
	const kills = 30
	n := seed(t)
	random := rand.New(rand.NewPCG(n, 1))
	s := newScene(t, shared, "agents")
	nodes := shared.nodes(t)
	changes := s.change(n)
	for k := range kills {
		shared.signal(t, nodes[random.IntN(len(nodes))], syscall.SIGKILL)
		s.senders[0].more(1 + random.IntN(30))
		if k%6 == 5 {
			shared.end(t, shared.supervisor(t))
			shared.must(t, "up")
		}
	}
	t.Logf("%d kills among %d changes", kills, changes.stop())
	shared.whole(t)
	s.balanced()
	s.lands(1000, 2000)
	s.more(enough)
	s.judge()
	before := shared.rulesets(t)
	for _, node := range nodes {
		shared.kill(t, node)
	}
	for _, n := range shared.whole(t).Nodes {
		if n.Status.KernelObjectsWritten != 0 {
			t.Errorf("an agent of %s that begins anew wrote %d objects into the kernel", n.Node, n.Status.KernelObjectsWritten)
		}
	}
	sameRulesets(t, "after a restart", before, shared.rulesets(t))
	for _, node := range nodes { // what another agent would have built from nothing
		shared.must(t, "exec", "--node", node, "--", "nft", "delete", "table", "inet", "podwire")
		await(t, "the table of "+node+" is put back", func() error {
			if a := shared.exec(onNode(node), "nft", "list", "table", "inet", "podwire"); a.code != 0 {
				return errors.New(a.text())
			}
			return nil
		})
	}
	sameRulesets(t, "built from nothing", withoutSpare(before), withoutSpare(shared.rulesets(t)))
	s.balanced()
}

// changing applies changes one after the other.
type changing struct {
	cancel context.CancelFunc
	all    sync.WaitGroup
	made   int
}

// change begins to change Services, their endpoints and policies that do not concern the traffic, until it is stopped. None
// is waited for.
func (s *scene) change(seed uint64) *changing {
	random := rand.New(rand.NewPCG(seed, 2))
	ctx, cancel := context.WithCancel(context.Background())
	c := &changing{cancel: cancel}
	c.all.Go(func() {
		for ctx.Err() == nil {
			name := fmt.Sprintf("x%d", random.IntN(5))
			role := fmt.Sprintf("role-%d", random.IntN(3))
			var text string
			switch random.IntN(4) {
			case 0:
				text = isolate(s.ns, name, []string{"web", "closed", "other"}[random.IntN(3)], role)
			case 1:
				text = strings.ReplaceAll(webService(s.ns, name, ""), "app: web", []string{"app: web", "app: other", "app: closed"}[random.IntN(3)])
			case 2:
				text = strings.ReplaceAll(clientPod(s.ns, name, []string{"node-1", "node-2", "node-3"}[random.IntN(3)]), "namespace:", "labels: {app: other, role: "+role+"}, namespace:")
			default:
				s.run("delete", []string{"pod", "service", "networkpolicy"}[random.IntN(3)], name, "-n", s.ns, "--ignore-not-found")
				c.made++
				continue
			}
			if a := s.runWith(text, "apply", "-f", "-"); a.code == 0 || strings.Contains(a.err, "node") {
				c.made++ // a pod cannot be moved to another node; that it is refused is no loss
			} else {
				s.t.Errorf("a change is refused: %s\n%s", a.text(), text)
			}
		}
	})
	s.t.Cleanup(func() { c.stop() })
	return c
}

// stop waits for the last change, and says how many there were.
func (c *changing) stop() int {
	c.cancel()
	c.all.Wait()
	return c.made
}

// newInstance is an instance of the test's own.
func newInstance(t *testing.T) *instance {
	t.Helper()
	i := &instance{bin: shared.bin, state: filepath.Join(t.TempDir(), "state")}
	t.Cleanup(func() {
		if err := i.takeDown(); err != nil {
			t.Error(err)
		}
	})
	i.must(t, "up")
	return i
}

// store is etcd's data.
func (i *instance) store() string { return filepath.Join(i.state, "etcd") }

// withoutStore ends etcd as it stands, does something with its data, and lets the supervisor start it again.
func (i *instance) withoutStore(t *testing.T, do func()) {
	t.Helper()
	boss := i.supervisor(t)
	if err := syscall.Kill(boss.PID, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	victim := i.signal(t, "etcd", syscall.SIGKILL)
	i.end(t, victim)
	do()
	if err := syscall.Kill(boss.PID, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	i.succeeded(t, "etcd", victim)
}

// frozen are the nodes' slices that are.
func (s status) frozen() map[string][]string {
	out := map[string][]string{}
	for _, n := range s.Nodes {
		for _, v := range n.Status.Slices {
			if v.Frozen {
				out[n.Node] = append(out[n.Node], v.Service)
			}
		}
	}
	return out
}

// TestStore stops etcd, kills it, and puts an old backup in its place, while traffic flows.
func TestStore(t *testing.T) {
	i := newInstance(t)
	s := newScene(t, i, "store")
	was := i.whole(t)
	before := i.rulesets(t)
	unchanged := func(when string) {
		t.Helper()
		s.more(enough)
		sameRulesets(t, when, before, i.rulesets(t))
		now, err := i.tryStatus()
		if err != nil {
			t.Errorf("%s: %v", when, err)
			return
		}
		for node, n := range was.written() {
			if now.written()[node] != n {
				t.Errorf("%s: the agent of %s wrote %d objects into its kernel", when, node, now.written()[node]-n)
			}
		}
	}

	held := i.signal(t, "etcd", syscall.SIGSTOP)
	s.more(4 * enough)
	if a := i.runWith(tried(s.ns, 1001), "apply", "-f", "-"); a.code == 0 {
		t.Errorf("a change was made without etcd: %s", a.text())
	}
	if err := syscall.Kill(held.PID, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	i.whole(t)
	unchanged("after etcd stood still")
	s.lands(1000, 1002)

	was, before = i.whole(t), i.rulesets(t)
	i.kill(t, "etcd")
	i.whole(t)
	unchanged("after etcd was killed")
	s.lands(1002, 1003)

	backup := filepath.Join(t.TempDir(), "etcd")
	i.withoutStore(t, func() { copyStore(t, backup, i.store()) })
	i.whole(t)
	s.lands(1003, 1004)
	late := strings.ReplaceAll(echoPod(s.ns, "late", "node-3", 80), "app: web", "app: late")
	i.apply(t, late+isolate(s.ns, "late", "late", "nobody")+strings.ReplaceAll(echoPod(s.ns, "young", "node-2", 80), "app: web", "app: young"))
	young := net.JoinHostPort(i.addressesOfPod(t, s.ns, "young")[0], "80")
	shut := net.JoinHostPort(i.addressesOfPod(t, s.ns, "late")[1], "80")
	watcher := i.send(t, s.ns, "watcher", "node-1", "role: sender", flow{Protocol: "tcp", Target: young}, flow{Protocol: "tcp", Target: shut, Timeout: 300 * time.Millisecond})

	was, before = i.whole(t), i.rulesets(t)
	i.withoutStore(t, func() {
		if err := os.RemoveAll(i.store()); err != nil {
			t.Fatal(err)
		}
		copyStore(t, i.store(), backup)
	})
	await(t, "every node is frozen", func() error {
		now, err := i.tryStatus()
		if err == nil && len(now.frozen()) != len(was.Nodes) {
			err = fmt.Errorf("frozen: %v", now.frozen())
		}
		return err
	})
	watcher.more(enough)
	unchanged("while frozen")
	if a := i.run("status"); !strings.Contains(a.out, "podwire accept") {
		t.Errorf("status does not say what to do: %s", a.out)
	}
	if a := i.runWith(tried(s.ns, 1005), "apply", "--wait", "-f", "-"); a.code == 0 {
		t.Errorf("apply --wait says that a change is true on frozen nodes: %s", a.text())
	}
	watcher.judge(toNobody{1: true})
	unchanged("while frozen, after a change")
	i.must(t, "accept", "--all") // once: what freezes later, since its service hears of the backup later, takes it as well
	await(t, "nobody is frozen", func() error {
		now, err := i.tryStatus()
		if err == nil && len(now.frozen()) > 0 {
			err = fmt.Errorf("frozen: %v", now.frozen())
		}
		if err == nil {
			err = now.healthy()
		}
		return err
	})
	s.lands(1005, 1006)
	for _, name := range []string{"late", "young"} {
		if a := i.run("get", "pod", name, "-n", s.ns); a.code == 0 {
			t.Errorf("%s is there, which the backup did not know: %s", name, a.text())
		}
	}
	s.more(enough)
	s.judge()
	i.clean(t)
}

// copyStore copies a directory of etcd's.
func copyStore(t *testing.T, to, from string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(to, 0o700); err != nil {
		t.Fatal(err)
	}
	if files, err := filepath.Glob(filepath.Join(to, "member", "wal", "*")); err != nil || !slices.ContainsFunc(files, func(f string) bool { return strings.HasSuffix(f, ".wal") }) {
		t.Fatalf("%s is no data of etcd: %v (%v)", to, files, err)
	}
}
