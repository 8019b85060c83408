package e2e

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// shared is the instance that the tests use.
var shared *instance

func TestMain(m *testing.M) {
	if text := os.Getenv(partVariable); text != "" {
		os.Exit(play(text))
	}
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	bin, err := binary()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	dir, err := os.MkdirTemp("", "podwire-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	shared = &instance{bin: bin, state: filepath.Join(dir, "state")}
	code := 1
	if a := shared.run("up", "--substitute-images"); a.code != 0 {
		fmt.Fprintf(os.Stderr, "podwire up: exit %d\n%s%s", a.code, a.out, a.err)
	} else {
		code = m.Run()
	}
	if left := shared.takeDown(); left != nil {
		fmt.Fprintln(os.Stderr, left)
		code = 1
	}
	if err := os.RemoveAll(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	return code
}

// binary is the absolute path of podwire.
func binary() (string, error) {
	path := os.Getenv("PODWIRE_BINARY")
	if path == "" {
		path = filepath.Join("..", "..", "bin", "podwire")
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("%w; `make e2e` builds it", err)
	}
	return path, nil
}

// takeDown removes the instance and says what is left of it.
func (i *instance) takeDown() error {
	if a := i.run("down"); a.code != 0 {
		return fmt.Errorf("podwire down: exit %d: %s", a.code, a.text())
	}
	return i.leftOver()
}

// leftOver looks for processes and files of the instance.
func (i *instance) leftOver() error {
	if _, err := os.Stat(i.state); !os.IsNotExist(err) {
		return fmt.Errorf("podwire down left %s (%v)", i.state, err)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	if strings.Contains(string(mounts), i.state) {
		return fmt.Errorf("podwire down left mounts below %s:\n%s", i.state, mounts)
	}
	dirs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return err
	}
	for _, file := range dirs {
		line, err := os.ReadFile(file)
		if err == nil && strings.Contains(string(line), i.state+"/") {
			return fmt.Errorf("podwire down left a process: %s: %q", file, line)
		}
	}
	return nil
}
