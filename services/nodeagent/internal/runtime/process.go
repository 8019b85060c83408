package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/resolvconf"
	"podwire.dev/services/nodeagent/internal/runtime/podfiles"
	"podwire.dev/services/nodeagent/internal/runtime/podspec"
	"podwire.dev/services/nodeagent/internal/shim"
)

// Config is what the process driver needs to know of its node.
type Config struct {
	// Root is the directory of the driver's state; it is made if it is missing.
	Root string
	// Shim is how to call this program's stages.
	Shim     shim.Launcher
	NodeName string
	// Cluster is written into resolv.conf.
	Cluster podfiles.Cluster
	// ResolvConf is the node's; empty for the first of /run/systemd/resolve/resolv.conf
	// and /etc/resolv.conf that there is.
	ResolvConf string
	Images     Substitution
	// OnChange is called after each change of a Pod's state, from any goroutine; it must
	// not block and not call back. May be nil.
	OnChange func(podUID string)
	Log      *slog.Logger
}

// Process is the driver that runs containers as processes of this host: each in mount,
// pid, uts and ipc namespaces of its own and in the Pod's network namespace, with the
// host's files visible and its own /etc/hosts, /etc/resolv.conf and host name. It
// separates networks, not privileges: a container is as powerful as its user is on
// the host.
//
// On disk: ROOT/netns/UID (the pinned namespace) and ROOT/pods/UID with pod.json, etc/
// and containers/NAME/ATTEMPT/ (see package shim). What is left when everything was
// killed is found by the pins: processes whose network namespace is one of them.
type Process struct {
	cfg    Config
	starts chan *pod

	mu   sync.Mutex
	pods map[string]*pod
}

var _ Driver = (*Process)(nil)

// NewProcess reads what an earlier agent left. It starts nothing; Run does.
func NewProcess(cfg Config) (*Process, error) {
	d := &Process{cfg: cfg, starts: make(chan *pod), pods: map[string]*pod{}}
	for _, dir := range []string{"netns", "pods"} {
		if err := os.MkdirAll(filepath.Join(cfg.Root, dir), 0o700); err != nil {
			return nil, fmt.Errorf("runtime: %w", err)
		}
	}
	entries, err := os.ReadDir(filepath.Join(cfg.Root, "pods"))
	if err != nil {
		return nil, fmt.Errorf("runtime: %w", err)
	}
	for _, e := range entries {
		p, err := d.load(e.Name())
		if err != nil {
			return nil, fmt.Errorf("runtime: pod %s: %w", e.Name(), err)
		}
		if p != nil {
			d.pods[e.Name()] = p
		}
	}
	if err := d.sweep(); err != nil {
		return nil, fmt.Errorf("runtime: %w", err)
	}
	return d, nil
}

// sweep removes what belongs to no Pod: its creation or removal was cut short.
func (d *Process) sweep() error {
	for _, dir := range []string{"netns", "pods"} {
		entries, err := os.ReadDir(filepath.Join(d.cfg.Root, dir))
		if err != nil {
			return err
		}
		for _, e := range entries {
			uid := e.Name()
			if _, ok := d.pods[uid]; ok {
				continue
			}
			if path := d.netns(uid); pinned(path) {
				if err := killAll(path); err != nil {
					return err
				}
			}
			if err := errors.Join(unpin(d.netns(uid)), os.RemoveAll(d.podDir(uid))); err != nil {
				return err
			}
		}
	}
	return nil
}

func (d *Process) podDir(uid string) string { return filepath.Join(d.cfg.Root, "pods", uid) }
func (d *Process) netns(uid string) string  { return filepath.Join(d.cfg.Root, "netns", uid) }

// saved is pod.json.
type saved struct {
	Pod      podspec.Pod `json:"pod"`
	Net      Attachment  `json:"net"`
	Created  time.Time   `json:"created"`
	Started  bool        `json:"started"`
	Stopping bool        `json:"stopping"`
}

// load reads one Pod from disk; nil if its creation was not completed.
func (d *Process) load(uid string) (*pod, error) {
	b, err := os.ReadFile(filepath.Join(d.podDir(uid), "pod.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var s saved
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("pod.json: %w", err)
	}
	p := d.newPod(s)
	for _, c := range p.containers {
		if err := c.load(); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// save writes pod.json in one step.
func (d *Process) save(s saved) error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	path := filepath.Join(d.podDir(s.Pod.UID), "pod.json")
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// Run supervises the containers, those found on disk first, until ctx ends. It owns
// every goroutine of the driver. Call it once.
func (d *Process) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	d.mu.Lock()
	var found []*pod
	for _, p := range d.pods {
		// One whose sandbox is gone, as after a restart of the machine, has to get its place in the network first.
		if info := p.info(); info.Started && (info.Sandbox.HostNetwork() || pinned(info.Sandbox.NetNS)) {
			found = append(found, p)
		}
	}
	d.mu.Unlock()
	for _, p := range found {
		wg.Go(func() { d.supervise(ctx, p) })
	}
	for {
		select {
		case p := <-d.starts:
			wg.Go(func() { d.supervise(ctx, p) })
		case <-ctx.Done():
			return nil
		}
	}
}

// CreateSandbox makes the Pod's network namespace, or finds the one it has.
func (d *Process) CreateSandbox(_ context.Context, spec podspec.Pod) (Sandbox, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	p, ok := d.pods[spec.UID]
	if !ok {
		p = d.newPod(saved{Pod: spec, Created: time.Now()})
		if err := os.MkdirAll(d.podDir(spec.UID), 0o700); err != nil {
			return Sandbox{}, errs.WrapAs(errs.Internal, err, "runtime: sandbox of Pod %s", spec.Ref())
		}
	}
	box := p.info().Sandbox
	if !box.HostNetwork() && !pinned(box.NetNS) {
		if err := p.repin(box.NetNS); err != nil {
			return Sandbox{}, errs.WrapAs(errs.Internal, err, "runtime: sandbox of Pod %s", spec.Ref())
		}
	}
	if !ok {
		if err := d.save(p.saved()); err != nil {
			return Sandbox{}, errs.WrapAs(errs.Internal, err, "runtime: sandbox of Pod %s", spec.Ref())
		}
		d.pods[spec.UID] = p
	}
	return box, nil
}

// StartContainers begins to run the Pod's containers; see Driver.
func (d *Process) StartContainers(ctx context.Context, spec podspec.Pod, net Attachment) error {
	p, err := d.pod(spec.UID)
	if err != nil {
		return err
	}
	fresh, err := p.begin(net)
	if err != nil {
		return err
	}
	if !fresh {
		return d.supervision(ctx, p)
	}
	err = d.writeFiles(p.spec, net)
	if err == nil {
		err = d.save(p.saved())
	}
	if err != nil {
		p.unbegin()
		return errs.WrapAs(errs.Internal, err, "runtime: start Pod %s", spec.Ref())
	}
	if err := d.supervision(ctx, p); err != nil {
		p.unbegin()
		return err
	}
	return nil
}

// supervision hands a Pod to Run, unless it has it.
func (d *Process) supervision(ctx context.Context, p *pod) error {
	if p.isSupervised() {
		return nil
	}
	select {
	case d.starts <- p:
		return nil
	case <-ctx.Done():
		return errs.WrapAs(errs.Unavailable, ctx.Err(), "runtime: Pod %s: supervision is not running", p.spec.Ref())
	}
}

// writeFiles makes the Pod's own files.
func (d *Process) writeFiles(spec podspec.Pod, net Attachment) error {
	dir := filepath.Join(d.podDir(spec.UID), "etc")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	name, err := d.hostname(spec)
	if err != nil {
		return err
	}
	hosts := podfiles.Hosts(spec, net.PodIPs, d.cfg.Cluster.Domain)
	if spec.HostNetwork {
		b, err := os.ReadFile("/etc/hosts")
		if err != nil {
			return err
		}
		hosts = podfiles.HostNetworkHosts(spec, string(b))
	}
	node, err := d.nodeResolver()
	if err != nil {
		return err
	}
	files := map[string]string{
		"hosts":       hosts,
		"hostname":    name + "\n",
		"resolv.conf": podfiles.Resolve(spec, d.cfg.Cluster, node).String(),
	}
	for file, text := range files {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (d *Process) hostname(spec podspec.Pod) (string, error) {
	if spec.HostNetwork {
		return d.cfg.NodeName, nil
	}
	return podfiles.Hostname(spec, d.cfg.Cluster.Domain)
}

// nodeResolver reads the node's resolver configuration; none is an empty one.
func (d *Process) nodeResolver() (resolvconf.Conf, error) {
	paths := []string{d.cfg.ResolvConf}
	if d.cfg.ResolvConf == "" {
		// With systemd-resolved /etc/resolv.conf names a stub on the node's loopback, which
		// no Pod can reach.
		paths = []string{"/run/systemd/resolve/resolv.conf", "/etc/resolv.conf"}
	}
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err == nil {
			return resolvconf.Parse(string(b)), nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return resolvconf.Conf{}, err
		}
	}
	return resolvconf.Conf{}, nil
}

// Stop ends the Pod's containers; see Driver.
func (d *Process) Stop(ctx context.Context, podUID string, grace time.Duration) error {
	p, err := d.pod(podUID)
	if err != nil {
		return err
	}
	if err := p.requestStop(time.Now().Add(grace), grace); err != nil {
		return err
	}
	// On disk before anybody waits: an agent that is killed now must not start again
	// what it finds ended.
	if err := d.save(p.saved()); err != nil {
		return errs.WrapAs(errs.Internal, err, "runtime: stop Pod %s", p.spec.Ref())
	}
	d.changed(podUID)
	if !p.info().Started {
		return nil
	}
	if err := d.supervision(ctx, p); err != nil {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return errs.WrapAs(errs.Unavailable, ctx.Err(), "runtime: stop Pod %s", p.spec.Ref())
	}
}

// RemoveSandbox removes everything of the Pod; see Driver.
func (d *Process) RemoveSandbox(_ context.Context, podUID string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	p, ok := d.pods[podUID]
	if !ok {
		return nil
	}
	if info := p.info(); info.Started {
		select {
		case <-p.done:
		default:
			return errs.New(errs.Conflict, "runtime: remove Pod %s: it has containers; stop it first", p.spec.Ref())
		}
	}
	if path := p.info().Sandbox.NetNS; path != "" {
		var err error
		if pinned(path) {
			err = killAll(path)
		}
		if err = errors.Join(err, unpin(path)); err != nil {
			return errs.WrapAs(errs.Internal, err, "runtime: remove Pod %s", p.spec.Ref())
		}
	}
	if err := os.RemoveAll(d.podDir(podUID)); err != nil {
		return errs.WrapAs(errs.Internal, err, "runtime: remove Pod %s", p.spec.Ref())
	}
	delete(d.pods, podUID)
	return nil
}

// List names every Pod that has a sandbox, by UID.
func (d *Process) List() []PodInfo {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := make([]PodInfo, 0, len(d.pods))
	for _, p := range d.pods {
		out = append(out, p.info())
	}
	slices.SortFunc(out, func(a, b PodInfo) int {
		if a.Pod.UID < b.Pod.UID {
			return -1
		}
		return 1
	})
	return out
}

// State is what is known of the Pod's containers now.
func (d *Process) State(podUID string) (PodState, error) {
	p, err := d.pod(podUID)
	if err != nil {
		return PodState{}, err
	}
	return p.state(), nil
}

func (d *Process) pod(uid string) (*pod, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	p, ok := d.pods[uid]
	if !ok {
		return nil, errs.New(errs.NotFound, "runtime: no Pod with UID %q on this node", uid)
	}
	return p, nil
}

func (d *Process) changed(uid string) {
	if d.cfg.OnChange != nil {
		d.cfg.OnChange(uid)
	}
}

// attempts lists the runs of a container that are on disk, oldest first.
func attempts(dir string) ([]int, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []int
	for _, e := range entries {
		if n, err := strconv.Atoi(e.Name()); err == nil && e.IsDir() {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out, nil
}
