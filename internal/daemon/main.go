package daemon

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	"podwire.dev/internal/telemetry"
)

// Program is a service as Main runs it.
type Program[T any] struct {
	// Service is its name, as in certificates and targets.
	Service string
	// Run wires the service: it registers hooks, starts goroutines with Daemon.Go and
	// returns. See Daemon.Run for its context.
	Run func(ctx context.Context, d *Daemon, cfg T) error
	// Enrol gets an identity if the directory has none and join is configured; called
	// once before Run. internal/rpc.Enrol is one.
	Enrol func(ctx context.Context, log *slog.Logger, cfg Common) error
	// Healthcheck is nil if the process of this configuration serves.
	// internal/rpc.Healthcheck is one.
	Healthcheck func(ctx context.Context, service string, cfg Common) error
	// Instance tells replicas apart in traces, such as the node's name. Nil: the address
	// under which others reach the process.
	Instance func(cfg T) string
}

// Config constrains a configuration type: *T embeds Common.
type Config[T any] interface {
	*T
	Base
}

// Exit statuses of Main.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
)

// healthcheckTimeout bounds one healthcheck.
const healthcheckTimeout = 5 * time.Second

// Main is a service's whole main function; args are without the program's name. It
// runs the service until SIGTERM, SIGINT or a failure, and returns the exit status:
// 0 after a stop that was asked for, 1 after a failure, 2 for a wrong command line.
// A second signal ends the process at once.
//
//	--config FILE              run the service
//	healthcheck --config FILE  exit 0 if the running service is SERVING
//	version                    print the version
func Main[T any, P Config[T]](args []string, p Program[T]) int {
	return mainWith[T, P](args, p, os.Stdout, os.Stderr)
}

func mainWith[T any, P Config[T]](args []string, p Program[T], stdout, stderr io.Writer) int {
	command := "run"
	if len(args) > 0 && (args[0] == "healthcheck" || args[0] == "version") {
		command, args = args[0], args[1:]
	}
	flags := flag.NewFlagSet(p.Service, flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprintf(stderr, "usage: %[1]s --config FILE\n       %[1]s healthcheck --config FILE\n       %[1]s version\n", p.Service)
	}
	path := flags.String("config", "", "the YAML `FILE` that configures the service")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return exitOK
		}
		return exitUsage
	}
	switch {
	case flags.NArg() > 0:
		fmt.Fprintf(stderr, "%s: unexpected argument %q\n", p.Service, flags.Arg(0))
		flags.Usage()
		return exitUsage
	case command == "version":
		fmt.Fprintf(stdout, "podwire %s %s %s\n", p.Service, Version(), runtime.Version())
		return exitOK
	case *path == "":
		fmt.Fprintf(stderr, "%s: --config FILE is required\n", p.Service)
		flags.Usage()
		return exitUsage
	}
	cfg, err := Load[T](*path)
	if err != nil {
		fmt.Fprintf(stderr, "%s: %v\n", p.Service, err)
		return exitUsage
	}
	common := *P(&cfg).Base()
	if command == "healthcheck" {
		return healthcheck(p, common, stdout, stderr)
	}
	return serve(p, cfg, common, stderr)
}

func healthcheck[T any](p Program[T], common Common, stdout, stderr io.Writer) int {
	ctx, cancel := context.WithTimeout(context.Background(), healthcheckTimeout)
	defer cancel()
	if err := p.Healthcheck(ctx, p.Service, common); err != nil {
		fmt.Fprintf(stderr, "%s: %v\n", p.Service, err)
		return exitFailure
	}
	fmt.Fprintf(stdout, "%s: SERVING\n", p.Service)
	return exitOK
}

func serve[T any](p Program[T], cfg T, common Common, stderr io.Writer) int {
	log := NewLogger(stderr, common.Log).With("service", p.Service)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	// After the first signal the default action is back: a second one kills.
	context.AfterFunc(ctx, stop)

	if common.Join != nil && p.Enrol != nil {
		if err := p.Enrol(ctx, log, common); err != nil {
			if ctx.Err() != nil {
				return exitOK
			}
			log.Error("cannot join", "error", err)
			return exitFailure
		}
	}
	tele, err := telemetry.Setup(ctx, telemetry.Process{
		Service: p.Service, Instance: instance(p, cfg, common), Version: Version(), Log: log,
	})
	if err != nil {
		log.Error("cannot start", "error", err)
		return exitFailure
	}
	d := New(Options{Name: p.Service, Log: log, Telemetry: tele})
	if err := d.Run(ctx, func(ctx context.Context) error { return p.Run(ctx, d, cfg) }); err != nil {
		return exitFailure // logged where the stop began
	}
	return exitOK
}

func instance[T any](p Program[T], cfg T, common Common) string {
	if p.Instance != nil {
		return p.Instance(cfg)
	}
	return common.Reachable()
}

// NewLogger makes the logger that a configuration asks for.
func NewLogger(w io.Writer, cfg Log) *slog.Logger {
	level, err := cfg.level()
	if err != nil {
		level = slog.LevelInfo // refused by Load; a Log made in code gets the default
	}
	opts := &slog.HandlerOptions{Level: level}
	if cfg.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

// version is what the linker stamps (-X podwire.dev/internal/daemon.version=v1.2.3).
var version string

// Version is the build's version: as stamped, or as the build itself recorded it.
func Version() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}
