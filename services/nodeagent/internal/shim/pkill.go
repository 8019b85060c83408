package shim

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// PkillCommand is the first word of an exec on a node that is the built-in pkill(1) where the node has none of its own:
// a container made from nothing has no tools, and its processes are not seen from elsewhere.
const PkillCommand = "pkill"

// pkill sends a signal to every process whose command line matches: `pkill [-SIGNAL] -f PATTERN`, of pkill(1) what is
// needed to end a process. It returns 0 if there was one, 1 if there was none, 2 for a wrong command line.
func pkill(proc string, args []string, stderr io.Writer) int {
	sig, full, pattern := syscall.SIGTERM, false, ""
	for _, a := range args {
		name, flag := strings.CutPrefix(a, "-")
		switch {
		case a == "-f":
			full = true
		case flag && pattern == "":
			number := unix.SignalNum("SIG" + strings.TrimPrefix(name, "SIG"))
			if n, err := strconv.Atoi(name); err == nil {
				number = syscall.Signal(n)
			}
			if number <= 0 || number > 64 {
				fmt.Fprintf(stderr, "pkill: unknown signal %q\n", name)
				return 2
			}
			sig = number
		case pattern == "":
			pattern = a
		default:
			fmt.Fprintf(stderr, "pkill: unexpected argument %q\n", a)
			return 2
		}
	}
	if !full || pattern == "" {
		fmt.Fprintln(stderr, "usage: pkill [-SIGNAL] -f PATTERN; PATTERN is a regular expression for whole command lines")
		return 2
	}
	match, err := regexp.Compile(pattern)
	if err != nil {
		fmt.Fprintf(stderr, "pkill: pattern: %v\n", err)
		return 2
	}
	return signalMatching(proc, match, sig, stderr)
}

func signalMatching(proc string, match *regexp.Regexp, sig syscall.Signal, stderr io.Writer) int {
	dirs, err := filepath.Glob(filepath.Join(proc, "[0-9]*"))
	if err != nil {
		fmt.Fprintf(stderr, "pkill: %v\n", err)
		return 2
	}
	found := 1
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || pid == os.Getpid() {
			continue
		}
		line, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil || len(line) == 0 || !match.MatchString(strings.TrimRight(strings.ReplaceAll(string(line), "\x00", " "), " ")) {
			continue // it has ended, is a thread of the kernel, or another's
		}
		if err := syscall.Kill(pid, sig); err != nil {
			fmt.Fprintf(stderr, "pkill: process %d: %v\n", pid, err)
			continue
		}
		found = 0
	}
	return found
}
