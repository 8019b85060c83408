package demo

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
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
		Long: "Brings an instance up, applies the mission's manifests, proves each with real packets and takes the instance down.\n" +
			"With --connect it shows a Podwire that runs already, from outside of it, and removes what it applied.",
	}
	cmd.Flags().BoolVar(&keep, "keep", false, "leave the instance up; its state directory is printed")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		d := &demo{out: env.Stdout}
		if env.Connect != "" {
			d.site = newConnected(env)
			return d.run(cmd.Context(), keepIf(keep))
		}
		site, err := newOwn()
		if err != nil {
			return err
		}
		d.site = site
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
	site           site
	out            io.Writer
	passed, failed int
	nodes          []node
	pods           map[string]podInfo
	temp           string
	applied        []string
}

type node struct{ name, v4, v6 string }

type podInfo struct{ name, uid, node, v4, v6 string }

// nodeCount is how many nodes the manifests name.
const nodeCount = 3

// maxTime bounds the whole run.
const maxTime = 8 * time.Minute

func (d *demo) run(ctx context.Context, then afterwards) (err error) {
	ctx, cancel := context.WithTimeout(ctx, maxTime)
	defer cancel()
	if d.bin, err = os.Executable(); err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	if d.temp, err = os.MkdirTemp("", "podwire-demo-files-"); err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	d.flags = d.site.flags()
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
		{"Names", d.checkNames},
		{"Doors: Ingresses, with a rewritten path and with TLS (minimal-ingress.yaml)", d.checkIngress},
		{"A policy that admits only the ingress", d.checkIngressOnly},
		{"A rolling replacement under load", d.checkReplacement},
		{"Changes as traces", d.checkTrace},
	}
}

func (d *demo) up(ctx context.Context) error {
	began := time.Now()
	what, err := d.site.up(ctx, d.podwire)
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	fmt.Fprintf(d.out, "%s in %.1fs\n", what, time.Since(began).Seconds())
	began = time.Now()
	err = d.apply(ctx, "clients", "myapp", "nginx", "policy-pods", "web", "web-pods-old",
		"mission/demo-pod", "mission/demo-service", "mission/my-demo-service", "mission/minimal-ingress")
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	fmt.Fprintf(d.out, "podwire apply --wait: pods, services, names and routes are true everywhere after %.1fs\n", time.Since(began).Seconds())
	return d.look(ctx)
}

// apply applies manifests and waits until they are true.
func (d *demo) apply(ctx context.Context, names ...string) error {
	args := []string{"apply", "--wait", "--timeout", "90s"}
	for _, name := range names {
		path, err := d.manifest(name)
		if err != nil {
			return err
		}
		args = append(args, "-f", path)
		d.applied = append(d.applied, path)
	}
	_, err := d.must(ctx, "", args...)
	return err
}

// manifest writes one of the manifests beside the state, as the file that a user would have.
func (d *demo) manifest(name string) (string, error) {
	text, err := manifests.ReadFile("manifests/" + name + ".yaml")
	if err != nil {
		return "", fmt.Errorf("demo: %w", err)
	}
	return d.file(filepath.Base(name)+".yaml", text)
}

// file writes a file that is gone at the end.
func (d *demo) file(name string, text []byte) (string, error) {
	path := filepath.Join(d.temp, name)
	if err := os.WriteFile(path, text, 0o600); err != nil {
		return "", fmt.Errorf("demo: %w", err)
	}
	return path, nil
}

// end takes the instance down.
func (d *demo) end(ctx context.Context, then afterwards) error {
	defer os.RemoveAll(d.temp)
	if then == leaveUp {
		fmt.Fprintln(d.out, d.site.keep())
		return nil
	}
	if err := d.site.down(ctx, d.podwire, d.applied); err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	return nil
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
		return fmt.Errorf("there are %d nodes, the manifests need %d", len(d.nodes), nodeCount)
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
