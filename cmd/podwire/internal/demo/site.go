package demo

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"podwire.dev/cmd/podwire/internal/lab"
	"podwire.dev/cmd/podwire/internal/session"
	"podwire.dev/cmd/podwire/internal/statedir"
)

// site is the Podwire that is shown. What differs between one that the demo made on this machine and one that it only
// connects to is here, and nowhere else.
type site interface {
	// flags lead podwire's commands there.
	flags() []string
	// up makes it ready, and says what it is.
	up(ctx context.Context, p podwire) (string, error)
	// down undoes up, and removes what the demo applied.
	down(ctx context.Context, p podwire, applied []string) error
	// keep says how to go on with it.
	keep() string
	// killContainers kills the processes of a pod's containers, and says how.
	killContainers(ctx context.Context, p podwire, pod podInfo) (string, error)
	// killAgent kills the agent of a node.
	killAgent(ctx context.Context, p podwire, node string) error
	// resolver says which tool asks the system's resolver in a pod, as its first words.
	resolver() []string
	// foreign is a name that the cluster's DNS has to forward, with the address that it has; end ends what answers.
	foreign(ctx context.Context) (f foreignName, end func(), err error)
}

// foreignName is a name outside of the cluster.
type foreignName struct {
	name string
	addr netip.Addr
	// who answers for it.
	server string
}

// own is an instance of `podwire up` in a directory of its own.
type own struct{ state string }

func newOwn() (*own, error) {
	dir, err := os.MkdirTemp("", "podwire-demo-")
	if err != nil {
		return nil, fmt.Errorf("demo: %w", err)
	}
	return &own{dir}, nil
}

func (o *own) flags() []string { return []string{"--state", o.state} }

func (o *own) up(ctx context.Context, p podwire) (string, error) {
	_, err := p.must(ctx, "", "up", "--nodes", strconv.Itoa(nodeCount), "--substitute-images")
	return "podwire up: etcd, services and three nodes", err
}

func (o *own) down(ctx context.Context, p podwire, _ []string) error {
	if _, err := p.must(ctx, "", "down"); err != nil {
		return err
	}
	return os.RemoveAll(o.state)
}

func (o *own) keep() string {
	return fmt.Sprintf("the instance is still up: use --state %[1]s, and `podwire down --state %[1]s` in the end", o.state)
}

func (o *own) killContainers(_ context.Context, _ podwire, pod podInfo) (string, error) {
	n, err := kill(containersOf(pod.uid))
	return fmt.Sprintf("kill -9 of %d processes of %s", n, pod.name), err
}

func (o *own) killAgent(_ context.Context, _ podwire, node string) error {
	_, err := kill(agentOf(o.state, node))
	return err
}

// resolver is the C library's: pods of the process driver see this host's programs.
func (o *own) resolver() []string { return []string{"getent"} }

// foreign serves a zone in the namespace outside, where the dns service of `up` forwards to.
func (o *own) foreign(ctx context.Context) (f foreignName, end func(), err error) {
	f = foreignName{name: "www.example.test.", addr: netip.MustParseAddr("192.0.2.80")}
	dir, err := statedir.Resolve(o.state)
	if err != nil {
		return f, nil, err
	}
	var sock net.PacketConn
	err = lab.Place{Net: dir.NetNS(statedir.Outside)}.Do(func() error {
		sock, err = (&net.ListenConfig{}).ListenPacket(ctx, "udp", ":53")
		return err
	})
	if err != nil {
		return f, nil, fmt.Errorf("a DNS server outside: %w", err)
	}
	f.server = "a server outside"
	return f, serveName(sock, f), nil
}

// containersOf selects the processes of a pod's containers, but not the shims above them, which report their end. The pod
// is told by its uid, since another Podwire on this machine may use the same addresses and names.
func containersOf(uid string) func(cmdline string) bool {
	return func(cmdline string) bool {
		return strings.Contains(cmdline, "\x00shim\x00init\x00") && strings.Contains(cmdline, "/pods/"+uid+"/containers/")
	}
}

// agentOf selects the process of a node's agent, and none of the shims that it started.
func agentOf(state, node string) func(cmdline string) bool {
	config := filepath.Join(state, "config", node+".yaml")
	return func(cmdline string) bool {
		return strings.Contains(cmdline, "\x00serve\x00nodeagent\x00") && strings.Contains(cmdline, config+"\x00") && !strings.Contains(cmdline, "\x00shim\x00")
	}
}

// kill kills the processes whose command line is selected, and says how many they were.
func kill(selected func(cmdline string) bool) (int, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0, err
	}
	killed := 0
	for _, dir := range dirs {
		args, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil || !selected(string(args)) {
			continue // it has ended, or is another's
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			return killed, err
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return killed, err
		}
		killed++
	}
	if killed == 0 {
		return 0, errors.New("no such process found")
	}
	return killed, nil
}

// connected is a Podwire that runs already, such as the Compose stack; the demo stands outside of it.
type connected struct{ connect, identity string }

func newConnected(env *session.Env) *connected { return &connected{env.Connect, env.Identity} }

func (c *connected) flags() []string {
	return []string{"--connect", c.connect, "--identity", c.identity}
}

func (c *connected) up(ctx context.Context, p podwire) (string, error) {
	out, err := p.must(ctx, "", "version")
	return "connected to " + c.connect + ", " + strings.TrimSpace(out), err
}

func (c *connected) down(ctx context.Context, p podwire, applied []string) error {
	args := []string{"delete", "--wait", "--ignore-not-found"}
	for _, file := range applied {
		args = append(args, "-f", file)
	}
	_, err := p.must(ctx, "", args...)
	return err
}

func (c *connected) keep() string { return "what was applied is still there" }

// A node that is a container is reached through its agent only: the tools there are the agent's own.
func (c *connected) killContainers(ctx context.Context, p podwire, pod podInfo) (string, error) {
	pattern := " shim init .*/pods/" + pod.uid + "/containers/"
	_, err := p.must(ctx, "", "exec", "--node", pod.node, "--", "pkill", "-KILL", "-f", pattern)
	return fmt.Sprintf("kill -9 of the containers of %s", pod.name), err
}

func (c *connected) killAgent(ctx context.Context, p podwire, node string) error {
	// The answer dies with the agent; whether it did is seen by its successor.
	a := p.run(ctx, "", "exec", "--node", node, "--", "pkill", "-KILL", "-f", "nodeagent --config ")
	if a.code == 0 {
		return errors.New("the agent answered after it was killed: " + a.text())
	}
	return nil
}

// resolver is the probe's, which reads the pod's resolv.conf as a C library does: there is none in these pods.
func (c *connected) resolver() []string { return nil }

// foreign is this host's own name, which the engine's resolver knows.
func (c *connected) foreign(ctx context.Context) (foreignName, func(), error) {
	host, err := os.Hostname()
	if err != nil {
		return foreignName{}, nil, err
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip4", host)
	if err != nil || len(addrs) == 0 {
		return foreignName{}, nil, fmt.Errorf("the name of this host, %s: %w", host, err)
	}
	return foreignName{name: host + ".", addr: addrs[0].Unmap(), server: "the engine's resolver"}, func() {}, nil
}
