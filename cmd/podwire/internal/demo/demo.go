package demo

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"podwire.dev/cmd/podwire/internal/session"
)

//go:embed manifests
var manifests embed.FS

// Command is `podwire demo`.
func Command(env *session.Env) *cobra.Command {
	var keep bool
	cmd := &cobra.Command{
		Use: "demo", Short: "bring an instance up, apply the mission's manifests, prove each with real packets", Args: cobra.NoArgs,
	}
	cmd.Flags().BoolVar(&keep, "keep", false, "leave the instance up; its state directory is printed")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		d := &demo{out: env.Stdout}
		return d.run(cmd.Context(), keepIf(keep))
	}
	return cmd
}

// afterwards says what becomes of the instance.
type afterwards uint8

const (
	tearDown afterwards = iota
	leaveUp
)

func keepIf(keep bool) afterwards {
	if keep {
		return leaveUp
	}
	return tearDown
}

// demo is one run.
type demo struct {
	podwire
	out            io.Writer
	passed, failed int
	nodes          []node
	pods           map[string]podInfo
	temp           []string
}

type node struct{ name, v4, v6 string }

type podInfo struct{ name, uid, node, v4, v6 string }

// nodeCount is how many nodes the manifests name.
const nodeCount = 3

// maxTime bounds the whole run.
const maxTime = 6 * time.Minute

func (d *demo) run(ctx context.Context, then afterwards) (err error) {
	ctx, cancel := context.WithTimeout(ctx, maxTime)
	defer cancel()
	if d.bin, err = os.Executable(); err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	if d.state, err = os.MkdirTemp("", "podwire-demo-"); err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	defer func() { err = errors.Join(err, d.end(context.WithoutCancel(ctx), then)) }()
	if err := d.up(ctx); err != nil {
		return err
	}
	for _, area := range d.areas() {
		fmt.Fprintf(d.out, "\n%s\n", area.title)
		if err := area.run(ctx); err != nil {
			d.fail(area.title, err.Error())
		}
		if ctx.Err() != nil {
			return fmt.Errorf("demo: stopped: %w", context.Cause(ctx))
		}
	}
	fmt.Fprintf(d.out, "\n%d checks passed, %d failed\n", d.passed, d.failed)
	if d.failed > 0 {
		return fmt.Errorf("demo: %d of %d checks failed", d.failed, d.passed+d.failed)
	}
	return nil
}

// area is a group of checks. An error is one that keeps the rest of the group from running, and counts as a failed check.
type area struct {
	title string
	run   func(context.Context) error
}

func (d *demo) areas() []area {
	return []area{
		{"Pods reach each other", d.checkPods},
		{"A ClusterIP spreads over endpoints on every node (demo-service.yaml)", d.checkClusterIP},
		{"A node port, a load balancer, and back (my-demo-service.yaml)", d.checkTypes},
		{"A policy (demo-network-policy.yaml)", d.checkPolicy},
		{"A spoofed source", d.checkSpoof},
		{"An endpoint dies", d.checkDeath},
		{"An agent is killed and restarted", d.checkAgent},
		{"One change as a trace", d.checkTrace},
	}
}

func (d *demo) up(ctx context.Context) error {
	began := time.Now()
	if _, err := d.must(ctx, "", "up", "--nodes", strconv.Itoa(nodeCount), "--substitute-images"); err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	fmt.Fprintf(d.out, "podwire up: etcd, services and three nodes in %.1fs\n", time.Since(began).Seconds())
	began = time.Now()
	args := []string{"apply", "--wait", "--timeout", "90s"}
	for _, f := range []string{"clients", "myapp", "nginx", "policy-pods", "mission/demo-pod", "mission/demo-service", "mission/my-demo-service"} {
		path, err := d.manifest(f)
		if err != nil {
			return err
		}
		args = append(args, "-f", path)
	}
	if _, err := d.must(ctx, "", args...); err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	fmt.Fprintf(d.out, "podwire apply --wait: pods and services are true on every node after %.1fs\n", time.Since(began).Seconds())
	return d.look(ctx)
}

// manifest writes one of the manifests beside the state, as the file that a user would have.
func (d *demo) manifest(name string) (string, error) {
	text, err := manifests.ReadFile("manifests/" + name + ".yaml")
	if err != nil {
		return "", fmt.Errorf("demo: %w", err)
	}
	f, err := os.CreateTemp("", "podwire-demo-*.yaml")
	if err != nil {
		return "", fmt.Errorf("demo: %w", err)
	}
	_, err = f.Write(text)
	d.temp = append(d.temp, f.Name())
	return f.Name(), errors.Join(err, f.Close())
}

// end takes the instance down.
func (d *demo) end(ctx context.Context, then afterwards) error {
	for _, name := range d.temp {
		os.Remove(name)
	}
	if then == leaveUp {
		fmt.Fprintf(d.out, "the instance is still up: use --state %s, and `podwire down --state %s` in the end\n", d.state, d.state)
		return nil
	}
	if _, err := d.must(ctx, "", "down"); err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	return os.RemoveAll(d.state)
}

func (d *demo) ok(what, evidence string) {
	d.passed++
	fmt.Fprintf(d.out, "  ok    %s: %s\n", what, evidence)
}

func (d *demo) fail(what, evidence string) {
	d.failed++
	fmt.Fprintf(d.out, "  FAIL  %s: %s\n", what, evidence)
}

// look learns addresses.
func (d *demo) look(ctx context.Context) error {
	var nodes struct {
		Items []struct {
			Metadata struct{ Name string }
			Status   struct {
				Addresses []struct{ Type, Address string }
			}
		}
	}
	if err := d.object(ctx, &nodes, "nodes"); err != nil {
		return err
	}
	for _, n := range nodes.Items {
		info := node{name: n.Metadata.Name}
		for _, a := range n.Status.Addresses {
			if a.Type == "InternalIP" {
				info.v4, info.v6 = byFamily(a.Address, info.v4, info.v6)
			}
		}
		d.nodes = append(d.nodes, info)
	}
	if len(d.nodes) != nodeCount {
		return fmt.Errorf("podwire up made %d nodes, the manifests need %d", len(d.nodes), nodeCount)
	}
	return d.lookPods(ctx)
}

func (d *demo) lookPods(ctx context.Context) error {
	var pods struct {
		Items []struct {
			Metadata struct{ Name, UID string }
			Spec     struct{ NodeName string }
			Status   struct {
				PodIPs []struct{ IP string } `json:"podIPs"`
			}
		}
	}
	if err := d.object(ctx, &pods, "pods"); err != nil {
		return err
	}
	d.pods = map[string]podInfo{}
	for _, p := range pods.Items {
		info := podInfo{name: p.Metadata.Name, uid: p.Metadata.UID, node: p.Spec.NodeName}
		for _, ip := range p.Status.PodIPs {
			info.v4, info.v6 = byFamily(ip.IP, info.v4, info.v6)
		}
		d.pods[info.name] = info
	}
	return nil
}
