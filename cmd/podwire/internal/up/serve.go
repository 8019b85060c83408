package up

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"podwire.dev/cmd/podwire/internal/etcdserver"
	"podwire.dev/cmd/podwire/internal/session"
	"podwire.dev/cmd/podwire/internal/statedir"
	"podwire.dev/cmd/podwire/internal/supervise"
	"podwire.dev/internal/daemon"
	cluster "podwire.dev/services/cluster/app"
	dns "podwire.dev/services/dns/app"
	ingress "podwire.dev/services/ingress/app"
	ipam "podwire.dev/services/ipam/app"
	nodeagent "podwire.dev/services/nodeagent/app"
	policy "podwire.dev/services/policy/app"
	svcproxy "podwire.dev/services/svcproxy/app"
)

// mains are the programs that `podwire serve` has in it, by name.
func mains() map[string]func(args []string) int {
	return map[string]func([]string) int{
		"etcd":         etcdserver.Main,
		"cluster":      cluster.Main,
		"ipam":         ipam.Main,
		"svcproxy":     svcproxy.Main,
		"policy":       policy.Main,
		"dns":          dns.Main,
		"ingress":      ingress.Main,
		agentName:      nodeagent.Main,
		supervisorName: func(args []string) int { return superviseMain(args, os.Stderr) },
	}
}

// Serve runs a service until it ends and returns its exit status; known is false if there is no such service. It comes
// before every other use of a command line, since containers begin with it.
func Serve(service string, args []string) (status int, known bool) {
	main, known := mains()[service]
	if !known {
		return 0, false
	}
	return main(args), true
}

func serveCommand() *cobra.Command {
	var names []string
	for name := range mains() {
		if name != supervisorName {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return &cobra.Command{
		Use:   "serve SERVICE --config FILE",
		Short: "run one service (" + strings.Join(names, ", ") + ") until it is told to stop",
		Long: "Runs one service until SIGTERM. `podwire serve SERVICE healthcheck --config FILE` asks whether it is SERVING.\n" +
			"Services: " + strings.Join(names, ", ") + ".",
		DisableFlagParsing: true, // the service parses its own
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 && (args[0] == "-h" || args[0] == "--help") {
				return cmd.Help()
			}
			if len(args) == 0 {
				return session.Usage("serve: name one of %s", strings.Join(names, ", "))
			}
			status, known := Serve(args[0], args[1:])
			if !known {
				return session.Usage("serve: there is no service %q: want one of %s", args[0], strings.Join(names, ", "))
			}
			if status != session.ExitOK {
				return &session.Exit{Status: status}
			}
			return nil
		},
	}
}

// superviseMain is the process that `up` leaves behind.
func superviseMain(args []string, stderr io.Writer) int {
	flags := flag.NewFlagSet(supervisorName, flag.ContinueOnError)
	flags.SetOutput(stderr)
	path := flags.String("config", "", "the YAML `FILE` that names the children")
	if err := flags.Parse(args); err != nil || *path == "" {
		fmt.Fprintf(stderr, "%s: started by `podwire up` only: want --config FILE\n", supervisorName)
		return session.ExitUsage
	}
	cfg, err := daemon.Load[supervisorConfig](*path)
	if err != nil {
		fmt.Fprintf(stderr, "%s: %v\n", supervisorName, err)
		return session.ExitUsage
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	log := daemon.NewLogger(stderr, daemon.Log{}).With("service", supervisorName)
	if err := runSupervisor(ctx, cfg, supervise.Options{Log: log}); err != nil {
		log.Error("cannot supervise", "error", err)
		return session.ExitFailure
	}
	return session.ExitOK
}

func runSupervisor(ctx context.Context, cfg supervisorConfig, opts supervise.Options) error {
	if cfg.State == "" {
		return errors.New("state: is required")
	}
	opts.Dir, opts.Children = statedir.Dir(cfg.State), cfg.Children
	return supervise.Run(ctx, opts)
}
