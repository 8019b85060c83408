package up

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"

	"github.com/spf13/cobra"

	"podwire.dev/cmd/podwire/internal/lab"
	"podwire.dev/cmd/podwire/internal/proc"
	"podwire.dev/cmd/podwire/internal/session"
	"podwire.dev/cmd/podwire/internal/statedir"
	"podwire.dev/cmd/podwire/internal/supervise"
	"podwire.dev/internal/errs"
)

func downCommand(env *session.Env) *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "remove every trace of `podwire up` from the kernel and the disk",
		Long: "Ends every process of the instance, its pods included, and removes its namespaces, links, mounts and state directory,\n" +
			"whatever state they are in. What runs in its namespaces for other reasons (`ip netns exec`) is ended, too.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return Down(cmd.Context(), env) },
	}
}

// Down removes the instance of the state directory. Nothing there is fine.
func Down(ctx context.Context, env *session.Env) error {
	if os.Geteuid() != 0 {
		return errs.New(errs.Denied, "down: needs root; try sudo")
	}
	if env.Connect != "" {
		return session.Usage("down: works on this machine; --connect does not go with it")
	}
	dir, err := env.Dir()
	if err != nil {
		return err
	}
	_, ours, err := dir.ReadMarker()
	if err != nil {
		return err
	}
	standing, err := lab.Standing(dir)
	if err != nil {
		return err
	}
	if !ours && !standing {
		return notOurs(env, dir)
	}
	lock, err := lockDir(dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	return remove(ctx, env, dir)
}

// notOurs says why there is nothing to remove.
func notOurs(env *session.Env, dir statedir.Dir) error {
	empty, err := dir.Empty()
	if err != nil {
		return err
	}
	if !empty {
		return errs.New(errs.Invalid, "state directory %s: holds files, but none that `podwire up` wrote; nothing was removed", dir)
	}
	fmt.Fprintf(env.Stdout, "podwire is not up: there is nothing in %s\n", dir)
	return nil
}

func remove(ctx context.Context, env *session.Env, dir statedir.Dir) error {
	// First of all, since it would start again what is ended next.
	if err := endSupervisor(ctx, dir); err != nil {
		return err
	}
	removed, err := lab.Remove(ctx, dir)
	if err != nil {
		return err
	}
	if err := removeFiles(dir); err != nil {
		return err
	}
	fmt.Fprintf(env.Stdout, "podwire is down: removed %d processes, %d namespaces and %s\n", removed.Processes, removed.Namespaces, dir)
	return nil
}

// endSupervisor kills the supervisor, which holds nothing that a kill could lose.
func endSupervisor(ctx context.Context, dir statedir.Dir) error {
	p, alive, err := supervise.Alive(dir)
	if err != nil || !alive || p.PID == os.Getpid() {
		return err
	}
	if err := p.Signal(syscall.SIGKILL); err != nil && !errors.Is(err, proc.ErrGone) {
		return errs.WrapAs(errs.Internal, err, "end the supervisor")
	}
	_, err = p.Wait(ctx)
	return errs.WrapAs(errs.Internal, err, "end the supervisor")
}

// removeFiles removes the directory, its marker last, so that an interrupted `down` can be repeated.
func removeFiles(dir statedir.Dir) error {
	standing, err := lab.Standing(dir)
	if err != nil {
		return err
	}
	if standing {
		return errs.New(errs.Internal, "state directory %s: something is still mounted there", dir)
	}
	entries, err := os.ReadDir(string(dir))
	if err != nil {
		return errs.WrapAs(errs.Internal, err, "state directory")
	}
	slices.SortStableFunc(entries, func(a, b os.DirEntry) int {
		return last(a.Name()) - last(b.Name())
	})
	for _, e := range entries {
		if err := os.RemoveAll(dir.Path(e.Name())); err != nil {
			return errs.WrapAs(errs.Internal, err, "state directory")
		}
	}
	err = os.Remove(string(dir))
	if errors.Is(err, syscall.EBUSY) {
		return nil // somebody's mount point: empty is all that we can make it
	}
	return errs.WrapAs(errs.Internal, err, "state directory")
}

func last(name string) int {
	if name == statedir.MarkerFile {
		return 1
	}
	return 0
}
