// Package up is Podwire on one machine: `podwire up`, `down`, `serve` and `pki`.
//
// In: flags, and what an earlier `up` left. Out: namespaces (through lab), certificates (through pki), one configuration
// file per child, and a supervisor that keeps the children; or, after `down`, nothing of all that.
// Invariants: `up` is a description, not a step: whatever state it finds, it makes what is missing and changes nothing
// that is there. `down` works in every state. Neither touches a directory, process or namespace that is not the
// instance's own. The package must not call any service but to ask whether it is ready, and for join tokens.
package up

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"podwire.dev/cmd/podwire/internal/lab"
	"podwire.dev/cmd/podwire/internal/session"
	"podwire.dev/cmd/podwire/internal/statedir"
	"podwire.dev/cmd/podwire/internal/supervise"
	"podwire.dev/internal/daemon"
	"podwire.dev/internal/errs"
	"podwire.dev/internal/pki"
)

// Commands are the commands of this package.
func Commands(env *session.Env) []*cobra.Command {
	return []*cobra.Command{upCommand(env), downCommand(env), serveCommand(), pkiCommand(env)}
}

// Request is what Start takes.
type Request struct {
	// Wanted changes the options that the instance has already, or the defaults.
	Wanted func(*Options)
	// Timeout bounds the wait until everything is ready.
	Timeout time.Duration
}

func upCommand(env *session.Env) *cobra.Command {
	var flags Options
	var pods, services, underlay []string
	var foreground bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "up",
		Short: "bring everything up on this machine: the store, every service, and nodes as network namespaces",
		Long: "Brings up the store, every service, and nodes as network namespaces on a private underlay, with an \"outside\" beside\n" +
			"them, and returns when every service is SERVING and every node Ready. A supervisor stays behind. Repeating it heals\n" +
			"what is not up and otherwise changes nothing. With --foreground it stays; Ctrl-C then stops every process and keeps\n" +
			"namespaces and data, so that the next `up` goes on from there. `podwire down` removes everything.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ranges := map[string]struct {
				texts []string
				to    *[]netip.Prefix
			}{"pods": {pods, &flags.Pods}, "services": {services, &flags.Services}, "underlay": {underlay, &flags.Underlay}}
			for name, r := range ranges {
				for _, text := range r.texts {
					p, err := netip.ParsePrefix(text)
					if err != nil {
						return session.Usage("--%s: %q: must be a CIDR such as 10.244.0.0/16 or fd00:10:244::/48", name, text)
					}
					*r.to = append(*r.to, p)
				}
			}
			given := cmd.Flags().Changed
			req := Request{Timeout: timeout, Wanted: func(o *Options) {
				if given("nodes") {
					o.Nodes = flags.Nodes
				}
				if given("substitute-images") {
					o.SubstituteImages = flags.SubstituteImages
				}
				for name, r := range ranges {
					if given(name) {
						*map[string]*[]netip.Prefix{"pods": &o.Pods, "services": &o.Services, "underlay": &o.Underlay}[name] = *r.to
					}
				}
			}}
			if foreground {
				return Stay(cmd.Context(), env, req)
			}
			return Start(cmd.Context(), env, req)
		},
	}
	f := cmd.Flags()
	f.IntVar(&flags.Nodes, "nodes", DefaultNodes, "number of nodes")
	f.BoolVar(&flags.SubstituteImages, "substitute-images", false, "run the built-in image in the place of images that cannot be run here")
	f.BoolVar(&foreground, "foreground", false, "stay, and stop every process on Ctrl-C")
	f.DurationVar(&timeout, "timeout", time.Minute, "how long to wait until everything is ready")
	f.StringSliceVar(&pods, "pods", nil, "`CIDRS` of pods, one per family (default 10.244.0.0/16,fd00:10:244::/48)")
	f.StringSliceVar(&services, "services", nil, "`CIDRS` of Services, one per family (default 10.96.0.0/16,fd00:10:96::/112)")
	f.StringSliceVar(&underlay, "underlay", nil, "`CIDRS` of the underlay, one per family (default 172.30.x.0/24,fd00:172:30:x::/64)")
	return cmd
}

// Start brings the instance up, with a supervisor that stays behind, and waits until it is ready.
func Start(ctx context.Context, env *session.Env, req Request) error {
	began := time.Now()
	b, err := prepare(env, req)
	if err != nil {
		return err
	}
	if !b.supervised {
		err = b.inst.startSupervisor()
	}
	b.release()
	if err != nil {
		return err
	}
	revived := false
	revive := func() error {
		revived = true
		return b.inst.startSupervisor()
	}
	if err := await(ctx, env, b.inst, req.Timeout, revive); err != nil {
		return err
	}
	if b.unchanged() && !revived {
		fmt.Fprintf(env.Stdout, "podwire is up already: %s; nothing changed\n", b.inst)
		return nil
	}
	fmt.Fprintf(env.Stdout, "podwire is up: %s, %.1f s\n", b.inst, time.Since(began).Seconds())
	return nil
}

// Stay is Start with the supervisor in this process: it returns when ctx ends, and has then stopped every child.
func Stay(ctx context.Context, env *session.Env, req Request) error {
	b, err := prepare(env, req)
	if err != nil {
		return err
	}
	b.release()
	if b.supervised {
		return errs.New(errs.Exists, "podwire is up already in the background: %s; `podwire down` removes it", b.inst)
	}
	logs, err := b.inst.supervisorLog()
	if err != nil {
		return err
	}
	defer logs.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	var stayed error
	wg.Go(func() {
		defer cancel()
		log := daemon.NewLogger(logs, daemon.Log{}).With("service", supervisorName)
		stayed = supervise.Run(ctx, supervise.Options{Dir: b.inst.dir, Children: b.inst.children(), Log: log})
	})
	err = await(ctx, env, b.inst, req.Timeout, nil)
	if err == nil {
		fmt.Fprintf(env.Stdout, "podwire is up: %s; Ctrl-C stops it\n", b.inst)
		<-ctx.Done()
	} else if ctx.Err() != nil {
		err = nil // Ctrl-C while it was on its way
	}
	cancel()
	wg.Wait()
	return errors.Join(err, stayed)
}

// String is for people.
func (i instance) String() string {
	return fmt.Sprintf("%d services and %d nodes, state %s", len(serviceNames()), i.opts.Nodes, i.dir)
}

// built is an instance whose namespaces and files are there.
type built struct {
	inst       instance
	lock       *os.File
	supervised bool
	made       int
}

func (b *built) unchanged() bool { return b.supervised && b.made == 0 }

// release lets other `up` and `down` of the same directory go on.
func (b *built) release() { _ = b.lock.Close() }

// prepare makes everything but processes. The lock is held when it returns without an error.
func prepare(env *session.Env, req Request) (*built, error) {
	if os.Geteuid() != 0 {
		return nil, errs.New(errs.Denied, "up: network namespaces need root; try sudo")
	}
	if env.Connect != "" {
		return nil, session.Usage("up: works on this machine; --connect does not go with it")
	}
	dir, err := env.Dir()
	if err != nil {
		return nil, err
	}
	if err := recognise(dir); err != nil {
		return nil, err
	}
	_, before := os.Stat(string(dir))
	lock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	b := &built{lock: lock}
	if err := b.build(dir, req); err != nil {
		if errors.Is(before, fs.ErrNotExist) {
			_ = os.Remove(string(dir)) // succeeds only where nothing was made in it
		}
		b.release()
		return nil, err
	}
	return b, nil
}

// recognise refuses a directory that somebody else keeps something in.
func recognise(dir statedir.Dir) error {
	if _, ours, err := dir.ReadMarker(); err != nil || ours {
		return err
	}
	if standing, err := lab.Standing(dir); err != nil || standing {
		return err
	}
	empty, err := dir.Empty()
	if err != nil || empty {
		return err
	}
	return errs.New(errs.Invalid, "state directory %s: holds files that are not podwire's; name an empty or a new directory with --state", dir)
}

// lockDir takes the lock of the directory itself, which it makes: no file remains of it.
func lockDir(dir statedir.Dir) (*os.File, error) {
	for {
		if err := os.MkdirAll(string(dir), 0o755); err != nil {
			return nil, errs.WrapAs(errs.Internal, err, "state directory")
		}
		f, err := os.Open(string(dir))
		if errors.Is(err, fs.ErrNotExist) {
			continue // a `down` was faster
		}
		if err != nil {
			return nil, errs.WrapAs(errs.Internal, err, "state directory")
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
			f.Close()
			return nil, errs.WrapAs(errs.Internal, err, "state directory %s: lock", dir)
		}
		// The one that held the lock may have been a `down`, which took the directory with it.
		held, err := f.Stat()
		now, nerr := os.Stat(string(dir))
		if err == nil && nerr == nil && os.SameFile(held, now) {
			return f, nil
		}
		f.Close()
	}
}

func (b *built) build(dir statedir.Dir, req Request) error {
	opts, known, err := options(dir, req.Wanted)
	if err != nil {
		return err
	}
	b.inst = instance{dir: dir, opts: opts}
	if _, b.supervised, err = supervise.Alive(dir); err != nil {
		return err
	}
	if !known {
		if err := lab.CheckOverlaps(opts.prefixes()); err != nil {
			return err
		}
		text, err := opts.encode()
		if err != nil {
			return err
		}
		if err := dir.WriteMarker(text); err != nil {
			return err
		}
	}
	made, err := pki.Init(dir.Path("pki"), b.inst.pkiPlan())
	if err != nil {
		return err
	}
	written, err := b.inst.write()
	if err != nil {
		return err
	}
	links, err := lab.Ensure(b.inst.lab())
	b.made = len(made.Created) + written + links
	return err
}

// options are what the directory says, or the defaults, as the request changes them. What is up cannot become another.
func options(dir statedir.Dir, wanted func(*Options)) (o Options, known bool, err error) {
	marker, known, err := dir.ReadMarker()
	if err != nil {
		return o, false, err
	}
	o = DefaultOptions(dir)
	if known = known && len(marker.Options) > 0; known {
		if o, err = decodeOptions(marker.Options); err != nil {
			return o, true, errs.WrapAs(errs.Invalid, err, "state directory %s", dir)
		}
	}
	before, err := o.encode()
	if err != nil {
		return o, known, err
	}
	if wanted != nil {
		wanted(&o)
	}
	if err := o.Check(); err != nil {
		return o, known, err
	}
	after, err := o.encode()
	if err != nil {
		return o, known, err
	}
	if known && !bytes.Equal(before, after) {
		return o, known, errs.New(errs.Exists, "state directory %s: belongs to an instance with other options\n  it has  %s\n  wanted  %s\n"+
			"leave the flags out to go on with it, remove it with `podwire down`, or name another directory with --state", dir, before, after)
	}
	return o, known, nil
}

func (i instance) supervisorLog() (*os.File, error) {
	path := i.dir.Log(supervisorName)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, errs.WrapAs(errs.Internal, err, "log")
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o640)
	return f, errs.WrapAs(errs.Internal, err, "log")
}

// startSupervisor starts the supervisor in a session of its own, so that it outlives the terminal.
func (i instance) startSupervisor() error {
	log, err := i.supervisorLog()
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := &exec.Cmd{
		Path: "/proc/self/exe", Args: i.args(supervisorName, supervisorName), Dir: "/", Stdout: log, Stderr: log,
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	if err := cmd.Start(); err != nil {
		return errs.WrapAs(errs.Internal, err, "start supervisor")
	}
	return errs.WrapAs(errs.Internal, cmd.Process.Release(), "start supervisor")
}
