package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"
)

// poll is how often something is looked at that changes by itself.
const poll = 50 * time.Millisecond

// await looks until fn says yes.
func await(ctx context.Context, limit time.Duration, fn func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	ticker := time.NewTicker(poll)
	defer ticker.Stop()
	var last error
	for {
		ok, err := fn()
		if ok && err == nil {
			return nil
		}
		last = err
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("not within %s", limit), last)
		case <-ticker.C:
		}
	}
}

// checkDeath kills the process of an endpoint and counts failed requests once every node has acked its removal.
func (d *demo) checkDeath(ctx context.Context) error {
	s, err := d.service(ctx, "demo-service")
	if err != nil {
		return err
	}
	victim := d.pods["my-app-2"]
	killed, err := d.site.killContainers(ctx, d.podwire, victim)
	if err != nil {
		return err
	}
	began := time.Now()
	var revision string
	err = await(ctx, patience, func() (bool, error) {
		var slices struct {
			Items []struct {
				Metadata  struct{ ResourceVersion string }
				Endpoints []struct {
					Addresses  []string
					Conditions struct{ Ready *bool }
				}
			}
		}
		if err := d.object(ctx, &slices, "endpointslices", "-l", "kubernetes.io/service-name=demo-service"); err != nil {
			return false, err
		}
		newest := 0
		for _, item := range slices.Items {
			for _, e := range item.Endpoints {
				if len(e.Addresses) > 0 && (e.Addresses[0] == victim.v4 || e.Addresses[0] == victim.v6) && (e.Conditions.Ready == nil || *e.Conditions.Ready) {
					return false, nil
				}
			}
			n, err := strconv.Atoi(item.Metadata.ResourceVersion)
			if err != nil {
				return false, err
			}
			newest = max(newest, n)
		}
		revision = strconv.Itoa(newest)
		return newest > 0, nil
	})
	if err != nil {
		return fmt.Errorf("my-app-2 does not leave demo-service: %w", err)
	}
	gone := time.Since(began)
	if _, err := d.must(ctx, "", "wait", "--revision", revision); err != nil {
		return err
	}
	d.judge("it leaves within its probe period", verdict(gone < probePeriod),
		fmt.Sprintf("%s, probed every %s: out of demo-service after %s, acked by every node (revision %s) after %s",
			killed, probePeriod, gone.Round(time.Millisecond), revision, time.Since(began).Round(time.Millisecond)))
	target := net.JoinHostPort(s.Spec.ClusterIP, "80")
	a := d.exec(ctx, d.inPod("client-1"), "probe", "tcp", target, "--count", "200", "--interval", "0")
	d.judge("no request fails after the ack", verdict(a.code == 0 && strings.Contains(a.out, "reached=200")), "client-1 -> tcp "+target+": "+lastWords(a))
	return nil
}

// probePeriod is what manifests/myapp.yaml has.
const probePeriod = 5 * time.Second

// patience bounds what has to happen some time: on a machine under load that may be a while.
const patience = time.Minute

// came is how a line of probe begins that says that an answer came.
var came = []string{"reached: "}

// enough is how many requests show that traffic flows.
const enough = 25

// checkAgent kills the agent of a node under load and looks at what the next one writes. The load begins before the kill
// and ends after the next agent is at work, however long that takes.
func (d *demo) checkAgent(ctx context.Context) error {
	s, err := d.service(ctx, "demo-service")
	if err != nil {
		return err
	}
	before, err := d.agent(ctx, "node-1")
	if err != nil {
		return err
	}
	loads := []*traffic{
		d.traffic(ctx, d.inPod("client-2"), came, "tcp", net.JoinHostPort(s.Spec.ClusterIP, "80")),
		d.traffic(ctx, d.inPod("client-3"), came, "tcp", net.JoinHostPort(d.pods["client-1"].v4, "80")),
		d.traffic(ctx, d.inPod("client-3"), came, "tcp", net.JoinHostPort(d.pods["client-1"].v6, "80")),
	}
	for _, load := range loads {
		defer load.run.stop()
		if err := load.more(ctx, enough); err != nil {
			return err
		}
	}
	if err := d.site.killAgent(ctx, d.podwire, "node-1"); err != nil {
		return fmt.Errorf("agent of node-1: %w", err)
	}
	for _, load := range loads {
		if err := load.more(ctx, enough); err != nil {
			return err
		}
	}
	var after agentStatus
	err = await(ctx, patience, func() (bool, error) {
		after, err = d.agent(ctx, "node-1")
		return err == nil && after.Started != before.Started && after.connected(), nil
	})
	if err != nil {
		return fmt.Errorf("the agent of node-1 does not come back: %w", err)
	}
	for _, load := range loads {
		if err := load.more(ctx, enough); err != nil {
			return err
		}
	}
	d.judge("it writes nothing", verdict(after.KernelObjectsWritten == "0"),
		fmt.Sprintf("kill -9 of the agent of node-1, started %s; the next one, started %s, wrote %s objects into the kernel",
			before.Started, after.Started, after.KernelObjectsWritten))
	for _, load := range loads {
		load.run.stop()
		load.run.wait(ctx)
		good, bad, last := load.count()
		d.judge("traffic through the node goes on", verdict(bad == 0), fmt.Sprintf("%s: %d answered, %d not%s", load.text, good, bad, last))
	}
	return nil
}

type agentStatus struct {
	Started              string
	KernelObjectsWritten string
	Slices               []struct{ Connected bool }
}

func (a agentStatus) connected() bool {
	for _, s := range a.Slices {
		if !s.Connected {
			return false
		}
	}
	return len(a.Slices) == 4
}

func (d *demo) agent(ctx context.Context, node string) (agentStatus, error) {
	out, err := d.must(ctx, "", "status", "-o", "json")
	if err != nil {
		return agentStatus{}, err
	}
	var all struct {
		Nodes []struct {
			Node, Error string
			Status      agentStatus
		}
	}
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		return agentStatus{}, fmt.Errorf("podwire status: %w", err)
	}
	for _, n := range all.Nodes {
		if n.Node == node {
			if n.Error != "" {
				return agentStatus{}, errors.New(n.Error)
			}
			return n.Status, nil
		}
	}
	return agentStatus{}, fmt.Errorf("status does not know %s", node)
}

// checkTrace makes two changes and follows them: one of a Service into every kernel, one of an Ingress into the proxy.
func (d *demo) checkTrace(ctx context.Context) error {
	out, err := d.follow(ctx, "service/demo-service", "mission/demo-service", "port: 80", "port: 8080")
	if err != nil {
		return err
	}
	for _, n := range d.nodes {
		d.judge("the change reaches the kernel of "+n.name, hop(out, n.name, "kernel commit"), "podwire trace service/demo-service")
	}
	out, err = d.follow(ctx, "ingress/minimal-ingress", "mission/minimal-ingress", "path: /testpath", "path: /otherpath")
	if err != nil {
		return err
	}
	d.judge("the change of an Ingress reaches the proxy", hop(out, "ingress ", " plan "), "podwire trace ingress/minimal-ingress")
	_, addr, err := d.door(ctx)
	if err != nil {
		return err
	}
	d.web(ctx, "and is true there", outside(), "200", "Echo-Request: GET /", "http://"+addr+"/otherpath")
	d.web(ctx, "where the former path is unknown", outside(), "404", "", "http://"+addr+"/testpath")
	return nil
}

// follow applies a manifest with one edit, and prints its trace.
func (d *demo) follow(ctx context.Context, object, name, from, to string) (string, error) {
	text, err := manifests.ReadFile("manifests/" + name + ".yaml")
	if err != nil {
		return "", err
	}
	if _, err := d.must(ctx, strings.Replace(string(text), from, to, 1), "apply", "--wait", "-f", "-"); err != nil {
		return "", err
	}
	out, err := d.must(ctx, "", "trace", object)
	for line := range strings.Lines(out) {
		fmt.Fprintf(d.out, "        %s", line)
	}
	return out, err
}

// hop says whether a trace has a line with both words.
func hop(trace, where, what string) verdict {
	for line := range strings.Lines(trace) {
		if strings.Contains(line, where) && strings.Contains(line, what) {
			return true
		}
	}
	return false
}
