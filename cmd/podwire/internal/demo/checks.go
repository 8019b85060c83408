package demo

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"
)

func byFamily(addr, v4, v6 string) (string, string) {
	if strings.Contains(addr, ":") {
		return v4, addr
	}
	return addr, v6
}

// place is where a command runs: exec's arguments, and their name for people.
type place struct {
	args []string
	name string
}

func (d *demo) inPod(name string) place {
	return place{[]string{name}, fmt.Sprintf("%s on %s", name, d.pods[name].node)}
}

func onNode(name string) place { return place{[]string{"--node", name}, name} }

func outside() place { return place{[]string{"--outside"}, "outside"} }

func (d *demo) exec(ctx context.Context, from place, command ...string) answer {
	return d.podwire.run(ctx, "", append(append(append([]string{"exec"}, from.args...), "--"), command...)...)
}

// fate is what a probe is to meet.
type fate struct {
	code int
	name string
}

var (
	reached  = fate{0, "reached"}
	timedOut = fate{2, "silence"}
)

// probe sends one probe and compares what came back. want, where not empty, is how the answer begins.
func (d *demo) probe(ctx context.Context, what string, from place, f fate, want string, args ...string) {
	a := d.exec(ctx, from, append([]string{"probe"}, args...)...)
	sent := fmt.Sprintf("%s -> %s: ", from.name, strings.Join(args, " "))
	if a.code == f.code && strings.HasPrefix(a.out, want) {
		d.ok(what, sent+f.name+evidence(a))
		return
	}
	d.fail(what, fmt.Sprintf("%swanted %s %s, got exit %d %s", sent, f.name, want, a.code, a.text()))
}

func evidence(a answer) string {
	if out := strings.TrimSpace(a.out); out != "" {
		return fmt.Sprintf(", answer %q", out)
	}
	return ""
}

func (d *demo) checkPods(ctx context.Context) error {
	pairs := []struct{ what, from, to string }{
		{"one node", "client-1", "neighbour"}, {"across nodes", "client-1", "client-2"}, {"across nodes", "client-3", "demo-pod"},
	}
	for _, p := range pairs {
		from, to := d.pods[p.from], d.pods[p.to]
		d.probe(ctx, "pod to pod, "+p.what+", IPv4", d.inPod(p.from), reached, to.name+" "+from.v4, "tcp", net.JoinHostPort(to.v4, "80"))
		d.probe(ctx, "pod to pod, "+p.what+", IPv6", d.inPod(p.from), reached, to.name+" "+from.v6, "tcp", net.JoinHostPort(to.v6, "80"))
	}
	return nil
}

// service is what the checks need of a Service.
type service struct {
	Spec struct {
		Type      string
		ClusterIP string `json:"clusterIP"`
		Ports     []struct{ Port, NodePort int }
	}
	Status struct {
		LoadBalancer struct{ Ingress []struct{ IP string } }
	}
}

func (d *demo) service(ctx context.Context, name string, flags ...string) (s service, err error) {
	err = d.object(ctx, &s, append([]string{"service", name}, flags...)...)
	return s, err
}

// The spread is judged by this many requests, and this far from an equal share; see even.
const (
	spreadTries = 300
	spreadBound = 50
)

func (d *demo) checkClusterIP(ctx context.Context) error {
	s, err := d.service(ctx, "demo-service")
	if err != nil {
		return err
	}
	target := net.JoinHostPort(s.Spec.ClusterIP, "80")
	d.spread(ctx, "spread, from a pod", d.inPod("client-1"), target)
	d.spread(ctx, "spread, from another node's pod", d.inPod("client-3"), target)
	d.spread(ctx, "spread, from a node", onNode("node-2"), target)
	return nil
}

// spread counts who answers, and fails where the endpoints' shares are not those of a fair choice.
func (d *demo) spread(ctx context.Context, what string, from place, target string) {
	a := d.exec(ctx, from, "probe", "tcp", target, "--count", fmt.Sprint(spreadTries), "--interval", "0")
	counts := tally(a.out)
	var parts []string
	for _, name := range spreadOver {
		parts = append(parts, fmt.Sprintf("%s on %s %d", name, d.pods[name].node, counts[name]))
	}
	text := fmt.Sprintf("%s -> tcp %s, %d times: %s", from.name, target, spreadTries, strings.Join(parts, ", "))
	if a.code == 0 && even(counts) {
		d.ok(what, text)
		return
	}
	d.fail(what, fmt.Sprintf("%s; exit %d, %s", text, a.code, lastWords(a)))
}

// spreadOver are the pods of manifests/myapp.yaml, one on every node.
var spreadOver = []string{"my-app-1", "my-app-2", "my-app-3"}

// tally counts the answers of each pod in the output of probe --count.
func tally(out string) map[string]int {
	counts := map[string]int{}
	for line := range strings.Lines(out) {
		if words := strings.Fields(line); len(words) > 1 && words[0] == "reached:" {
			counts[words[1]]++
		}
	}
	return counts
}

// even says whether a fair choice gives such counts. The standard deviation of each is 8.2, so that one in a billion
// fair runs is out of bounds, and a choice that leaves one endpoint out, or doubles one, always is.
func even(counts map[string]int) bool {
	share := spreadTries / len(spreadOver)
	for _, name := range spreadOver {
		if counts[name] <= share-spreadBound || counts[name] >= share+spreadBound {
			return false
		}
	}
	return len(counts) == len(spreadOver)
}

func (d *demo) checkTypes(ctx context.Context) error {
	for _, n := range d.nodes {
		d.probe(ctx, "node port", outside(), reached, "nginx-", "tcp", net.JoinHostPort(n.v4, "30007"))
	}
	if err := d.retype(ctx, "LoadBalancer"); err != nil {
		return err
	}
	s, err := d.service(ctx, "my-demo-service")
	if err != nil {
		return err
	}
	if len(s.Status.LoadBalancer.Ingress) == 0 {
		return fmt.Errorf("my-demo-service has no load balancer address")
	}
	lb := net.JoinHostPort(s.Status.LoadBalancer.Ingress[0].IP, "80")
	d.probe(ctx, "load balancer", outside(), reached, "nginx-", "tcp", lb)
	d.probe(ctx, "load balancer keeps the node port", outside(), reached, "nginx-", "tcp", net.JoinHostPort(d.nodes[2].v4, "30007"))
	if err := d.retype(ctx, "ClusterIP"); err != nil {
		return err
	}
	if s, err = d.service(ctx, "my-demo-service"); err != nil {
		return err
	}
	d.probe(ctx, "back to a ClusterIP", d.inPod("client-2"), reached, "nginx-", "tcp", net.JoinHostPort(s.Spec.ClusterIP, "80"))
	a := d.exec(ctx, outside(), "probe", "tcp", net.JoinHostPort(d.nodes[0].v4, "30007"), "--timeout", "1s")
	d.judge("the node port is gone", verdict(a.code == 1 || a.code == 2), "outside -> tcp node-1:30007: "+a.text())
	a = d.exec(ctx, outside(), "probe", "tcp", lb, "--timeout", "1s")
	d.judge("the load balancer address is gone", verdict(a.code == 1 || a.code == 2), "outside -> tcp "+lb+": "+a.text())
	return nil
}

// judge records a check that is not a single probe.
func (d *demo) judge(what string, good verdict, text string) {
	if good {
		d.ok(what, text)
		return
	}
	d.fail(what, text)
}

// verdict says whether a check was passed.
type verdict bool

// retype applies my-demo-service.yaml with another type.
func (d *demo) retype(ctx context.Context, to string) error {
	text, err := manifests.ReadFile("manifests/mission/my-demo-service.yaml")
	if err != nil {
		return err
	}
	edited := strings.Replace(string(text), "type: NodePort", "type: "+to, 1)
	_, err = d.must(ctx, edited, "apply", "--wait", "-f", "-")
	return err
}

func (d *demo) checkPolicy(ctx context.Context) error {
	app := d.pods["my-app"]
	http, other := net.JoinHostPort(app.v4, "80"), net.JoinHostPort(app.v4, "81")
	forbidden, err := d.hold(ctx, "other-app", http)
	if err != nil {
		return err
	}
	defer forbidden.stop()
	allowed, err := d.hold(ctx, "allowed-app", http)
	if err != nil {
		return err
	}
	defer allowed.stop()
	path, err := d.manifest("mission/demo-network-policy")
	if err != nil {
		return err
	}
	if _, err := d.must(ctx, "", "apply", "--wait", "-f", path); err != nil {
		return err
	}
	d.probe(ctx, "allowed-app, port 80", d.inPod("allowed-app"), reached, "my-app ", "tcp", http)
	d.probe(ctx, "allowed-app, port 81", d.inPod("allowed-app"), timedOut, "", "tcp", other, "--timeout", "1s")
	d.probe(ctx, "another pod, port 80", d.inPod("other-app"), timedOut, "", "tcp", http, "--timeout", "1s")
	d.probe(ctx, "another pod, port 81", d.inPod("other-app"), timedOut, "", "tcp", other, "--timeout", "1s")
	d.probe(ctx, "another pod, port 80, IPv6", d.inPod("other-app"), timedOut, "", "tcp", net.JoinHostPort(app.v6, "80"), "--timeout", "1s")
	a := forbidden.wait(ctx)
	d.judge("an established forbidden connection is cut", verdict(a.code != 0), "other-app -> hold "+http+", policy applied meanwhile: "+lastWords(a))
	select {
	case a := <-allowed.done:
		d.fail("an established allowed connection stays", "allowed-app -> hold "+http+": "+lastWords(a))
	default:
		d.ok("an established allowed connection stays", "allowed-app -> hold "+http+", still exchanging after the other was cut")
	}
	if _, err := d.must(ctx, "", "delete", "--wait", "-f", path); err != nil {
		return err
	}
	d.probe(ctx, "policy deleted, port 80", d.inPod("other-app"), reached, "my-app ", "tcp", http)
	d.probe(ctx, "policy deleted, port 81", d.inPod("other-app"), reached, "my-app ", "tcp", other)
	return nil
}

// hold opens a connection and returns once it is established and in use.
func (d *demo) hold(ctx context.Context, pod, target string) (*running, error) {
	held := make(chan struct{})
	r := d.start(ctx, func(line string) {
		if strings.HasPrefix(line, "2 ") { // the second exchange, which comes once
			close(held)
		}
	}, "exec", pod, "--", "probe", "hold", target, "--for", holdTime.String(), "--timeout", "5s")
	select {
	case <-held:
		return r, nil
	case a := <-r.done:
		return nil, fmt.Errorf("%s -> hold %s: no connection to look at: %s", pod, target, a.text())
	case <-ctx.Done():
		r.stop()
		return nil, context.Cause(ctx)
	}
}

// holdTime is how long a connection is held that nobody cuts.
const holdTime = 2 * time.Minute

func lastWords(a answer) string {
	lines := slices.DeleteFunc(strings.Split(a.out+a.err, "\n"), func(s string) bool { return strings.TrimSpace(s) == "" })
	return strings.Join(lines[max(0, len(lines)-2):], " | ")
}

func (d *demo) checkSpoof(ctx context.Context) error {
	to, victim := d.pods["client-2"], d.pods["client-3"]
	target := net.JoinHostPort(to.v4, "80")
	d.probe(ctx, "its own source", d.inPod("client-1"), reached, "client-2 ", "tcp", target)
	d.probe(ctx, "another pod's source is dropped", d.inPod("client-1"), timedOut, "", "tcp", target, "--from", victim.v4, "--timeout", "1s")
	d.probe(ctx, "a foreign source is dropped", d.inPod("client-1"), timedOut, "", "tcp", target, "--from", "192.0.2.7", "--timeout", "1s")
	d.probe(ctx, "another pod's source is dropped, IPv6", d.inPod("client-1"), timedOut, "", "tcp",
		net.JoinHostPort(to.v6, "80"), "--from", victim.v6, "--timeout", "1s")
	return nil
}
