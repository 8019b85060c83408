package runtime

import (
	"context"
	"errors"
	"io"

	"podwire.dev/internal/errs"
	"podwire.dev/services/nodeagent/internal/shim"
)

// container finds a container by name; empty is the first regular one.
func (p *pod) container(name string) (*container, error) {
	for _, c := range p.containers {
		if c.spec.Name == name || name == "" && c.kind == regular {
			return c, nil
		}
	}
	return nil, errs.New(errs.NotFound, "runtime: Pod %s has no container %q", p.spec.Ref(), name)
}

// running is the directory of the container's present run, if it runs.
func (c *container) running() (dir string, ok bool) {
	c.pod.mu.Lock()
	defer c.pod.mu.Unlock()
	return c.runDir(c.attempt), c.current.Phase == Running
}

// Exec runs a command in a container, in all its namespaces, with its environment,
// working directory and user. The exit code is the command's (128 + n for signal n,
// 126 if it cannot be executed, 127 if it is not found). When ctx ends, or the agent
// dies, the command is killed. There is no terminal.
func (d *Process) Exec(ctx context.Context, podUID string, req ExecRequest) (int, error) {
	if len(req.Command) == 0 {
		return 0, errs.New(errs.Invalid, "runtime: exec: no command")
	}
	p, err := d.pod(podUID)
	if err != nil {
		return 0, err
	}
	c, err := p.container(req.Container)
	if err != nil {
		return 0, err
	}
	dir, ok := c.running()
	if !ok {
		return 0, errs.New(errs.Unavailable, "runtime: exec in Pod %s: container %s does not run", p.spec.Ref(), c.spec.Name)
	}
	code, err := d.cfg.Shim.Enter(ctx, dir, req.Command, shim.Stdio{Stdin: req.Stdin, Stdout: req.Stdout, Stderr: req.Stderr})
	return code, execError(err, "Pod "+p.spec.Ref())
}

// HostExec runs a command in the node's own namespaces; otherwise it is like Exec.
func (d *Process) HostExec(ctx context.Context, req ExecRequest) (int, error) {
	if len(req.Command) == 0 {
		return 0, errs.New(errs.Invalid, "runtime: exec: no command")
	}
	code, err := d.cfg.Shim.Host(ctx, req.Command, shim.Stdio{Stdin: req.Stdin, Stdout: req.Stdout, Stderr: req.Stderr})
	return code, execError(err, "node "+d.cfg.NodeName)
}

func execError(err error, where string) error {
	kind := errs.Internal
	if errors.Is(err, shim.ErrNotRunning) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		kind = errs.Unavailable
	}
	return errs.WrapAs(kind, err, "runtime: exec in %s", where)
}

// execIn is how probes and hooks run a command in c.
func (d *Process) execIn(c *container) func(context.Context, []string, io.Writer) (int, error) {
	return func(ctx context.Context, argv []string, output io.Writer) (int, error) {
		dir, ok := c.running()
		if !ok {
			return 0, shim.ErrNotRunning
		}
		return d.cfg.Shim.Enter(ctx, dir, argv, shim.Stdio{Stdout: output, Stderr: output})
	}
}
