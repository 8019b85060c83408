package app

import (
	"fmt"
	"io"
	"os"

	"podwire.dev/internal/daemon"
	"podwire.dev/services/nodeagent/internal/keeper"
)

// keepMain is the command `keep`: process 1 of a node that is a container. args are the agent's own.
func keepMain(args []string, stderr io.Writer) int {
	if len(args) == 0 {
		fmt.Fprintf(stderr, "usage: %s keep --config FILE\n", Name)
		return 2
	}
	// The words before `keep` lead to Main: the program's name, or "podwire serve nodeagent".
	argv := append([]string(nil), os.Args[:len(os.Args)-len(args)-1]...)
	return keeper.Run(keeper.Program{
		Path: "/proc/self/exe", Argv: append(argv, args...), Log: daemon.NewLogger(stderr, daemon.Log{}).With("service", Name+" keep"),
	})
}
