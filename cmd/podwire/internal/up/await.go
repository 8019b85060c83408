package up

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"podwire.dev/cmd/podwire/internal/session"
	"podwire.dev/cmd/podwire/internal/supervise"
	"podwire.dev/internal/errs"
	"podwire.dev/internal/pki"
	"podwire.dev/internal/rpc"
	clusterv1 "podwire.dev/proto/podwire/cluster/v1"
)

const (
	askEvery = 50 * time.Millisecond
	askTime  = time.Second
	// supervisorTime is what a supervisor gets to begin, and mostRevivals how many are tried after the first.
	supervisorTime = 2 * time.Second
	mostRevivals   = 2
	// hopeless is how often a child may die before `up` gives up on it.
	hopeless = 6
	// tailLines is how much of a log a failure shows.
	tailLines = 8
)

// await waits until every service serves, every fabric member among them is an endpoint, and every node is Ready. It is a Timeout, or a failure at once if a child
// keeps dying; either names what is not up, why, and the end of its log.
// With revive it also waits for a supervisor, and starts another one where there is none: one that was alive when `up`
// looked may have been killed since.
func await(ctx context.Context, env *session.Env, i instance, timeout time.Duration, revive func() error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, errTooLate)
	defer cancel()
	now := time.Now()
	w := &waiter{env: env, inst: i, began: now, supervisedAt: now, revive: revive, waiting: map[string]string{}}
	for _, child := range i.children() {
		w.order = append(w.order, child.Name)
		w.waiting[child.Name] = "has not been asked yet"
	}
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	for {
		w.ask(ctx)
		supervised, err := w.supervised()
		if err == nil && len(w.waiting) == 0 && supervised {
			return nil
		}
		if err == nil {
			err = w.hope()
		}
		if err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			if !errors.Is(context.Cause(ctx), errTooLate) {
				return errs.New(errs.Unavailable, "interrupted before everything was ready; what was started goes on (`podwire down` removes it)")
			}
			return session.Timeout("not everything is ready after %s%s", timeout, w.report())
		}
	}
}

var errTooLate = errs.New(errs.Unavailable, "too late")

// waiter knows what is not ready yet, and why.
type waiter struct {
	env     *session.Env
	inst    instance
	began   time.Time
	order   []string
	waiting map[string]string
	// revive starts another supervisor, revived times so far, at supervisedAt the last time; nil where this process is it.
	revive       func() error
	revived      int
	supervisedAt time.Time
}

// ask asks everything that was not ready the last time.
func (w *waiter) ask(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	for _, service := range serviceNames() {
		if _, waits := w.waiting[service]; waits {
			why := w.serves(ctx, service)
			if why == nil && slices.Contains(memberServices(), service) {
				why = w.readyMember(ctx, memberName(service))
			}
			w.note(service, "SERVING", why)
		}
	}
	if _, waits := w.waiting["cluster"]; waits {
		return
	}
	ready, err := w.readyNodes(ctx)
	for _, node := range w.inst.opts.nodeNames() {
		if _, waits := w.waiting[node]; !waits {
			continue
		}
		why := err
		if why == nil {
			why = ready[node]
		}
		if why == nil {
			// A Node may be called Ready from before: the agent itself has to answer, too.
			why = rpc.CheckHealth(ctx, "unix://"+w.inst.dir.AgentSocket(node), pki.Node(node), nil)
		}
		w.note(node, "Ready", why)
	}
}

func (w *waiter) note(name, state string, err error) {
	if err != nil {
		w.waiting[name] = err.Error()
		return
	}
	delete(w.waiting, name)
	if w.env.IsTTY {
		fmt.Fprintf(w.env.Stderr, "%-10s %-8s %5.1f s\n", name, state, time.Since(w.began).Seconds())
	}
}

// serves asks a service for its health. etcd, whose port is out of reach from here, serves when its clients do.
func (w *waiter) serves(ctx context.Context, service string) error {
	if service == "etcd" {
		service = "cluster"
	}
	socket := w.inst.dir.Socket(service)
	if _, err := os.Stat(socket); err != nil {
		return errs.New(errs.Unavailable, "does not listen yet")
	}
	return rpc.CheckHealth(ctx, "unix://"+socket, pki.Service(service), nil)
}

// readyMember says what keeps a fabric member from being an endpoint of its Service; nil for nothing.
func (w *waiter) readyMember(ctx context.Context, name string) error {
	conn, err := w.env.Dial(ctx, "cluster")
	if err != nil {
		return err
	}
	defer conn.Close()
	resp, err := clusterv1.NewPodServiceClient(conn).Get(ctx, &clusterv1.PodServiceGetRequest{Namespace: memberNamespace, Name: name})
	if errs.Is(err, errs.NotFound) {
		return errs.New(errs.Unavailable, "its Pod %s/%s is not there yet", memberNamespace, name)
	}
	if err != nil {
		return err
	}
	for _, c := range resp.GetObject().GetStatus().GetConditions() {
		if c.GetType() == "Ready" && c.GetStatus() == "True" {
			return nil
		}
		if c.GetType() == "Ready" {
			return errs.New(errs.Unavailable, "its Pod %s/%s is not Ready: %s: %s", memberNamespace, name, c.GetReason(), c.GetMessage())
		}
	}
	return errs.New(errs.Unavailable, "its Pod %s/%s has no condition Ready yet", memberNamespace, name)
}

// memberNamespace is where cluster keeps the Pods of fabric members.
const memberNamespace = "kube-system"

// readyNodes maps each node to what keeps it from being Ready; nil for nothing.
func (w *waiter) readyNodes(ctx context.Context) (map[string]error, error) {
	out := map[string]error{}
	for _, node := range w.inst.opts.nodeNames() {
		out[node] = errs.New(errs.Unavailable, "has not registered yet")
	}
	conn, err := w.env.Dial(ctx, "cluster")
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	resp, err := clusterv1.NewNodeServiceClient(conn).List(ctx, &clusterv1.NodeServiceListRequest{})
	if err != nil {
		return nil, err
	}
	for _, node := range resp.GetItems() {
		why := errs.New(errs.Unavailable, "is registered and has no condition Ready yet")
		for _, c := range node.GetStatus().GetConditions() {
			if c.GetType() != "Ready" {
				continue
			}
			if why = nil; c.GetStatus() != "True" {
				why = errs.New(errs.Unavailable, "Ready is %s: %s: %s", c.GetStatus(), c.GetReason(), c.GetMessage())
			}
		}
		out[node.GetMetadata().GetName()] = why
	}
	return out, nil
}

// hope is the error that there is no point in waiting for: a child that dies again and again.
func (w *waiter) hope() error {
	for _, name := range w.order {
		if _, waits := w.waiting[name]; !waits {
			continue
		}
		r, ok, err := supervise.ReadRecord(w.inst.dir, name)
		if err == nil && ok && r.Since.After(w.began) && r.Restarts >= hopeless {
			return errs.New(errs.Unavailable, "%s keeps dying%s", name, w.report())
		}
	}
	return nil
}

// supervised says whether there is a supervisor. Where there is none for a while, another one is started; it is an error
// if that does not help.
func (w *waiter) supervised() (bool, error) {
	if w.revive == nil {
		return true, nil
	}
	_, alive, err := supervise.Alive(w.inst.dir)
	if err != nil || alive || time.Since(w.supervisedAt) < supervisorTime {
		return alive, err
	}
	if w.revived < mostRevivals {
		w.revived, w.supervisedAt = w.revived+1, time.Now()
		return false, w.revive()
	}
	var b strings.Builder
	w.tail(&b, supervisorName)
	return false, errs.New(errs.Unavailable, "the supervisor died%s", b.String())
}

// report says what is not up, why, and what the log says last.
func (w *waiter) report() string {
	var b strings.Builder
	for _, name := range w.order {
		why, waits := w.waiting[name]
		if !waits {
			continue
		}
		fmt.Fprintf(&b, "\n%s: %s", name, why)
		if r, ok, err := supervise.ReadRecord(w.inst.dir, name); err == nil && ok && r.LastEnd != "" {
			fmt.Fprintf(&b, "\n  died %d times, the last time: %s", r.Restarts, r.LastEnd)
		}
		w.tail(&b, name)
	}
	return b.String()
}

// tail adds the end of a child's log.
func (w *waiter) tail(b *strings.Builder, name string) {
	path := w.inst.dir.Log(name)
	lines, err := tail(path)
	if err != nil {
		fmt.Fprintf(b, "\n  %v", err)
		return
	}
	fmt.Fprintf(b, "\n  the end of %s:", path)
	for _, line := range lines {
		b.WriteString("\n    " + line)
	}
}

const tailBytes = 8 << 10

// tail is the end of a file.
func tail(path string) ([]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.NewSectionReader(f, max(0, info.Size()-tailBytes), tailBytes))
	if err != nil {
		return nil, err
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return lines[max(0, len(lines)-tailLines):], nil
}
