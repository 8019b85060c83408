package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// instance is one `podwire up`.
type instance struct{ bin, state string }

// answer is what a command came to.
type answer struct {
	out, err string
	code     int
}

// text is everything that was printed, on one line.
func (a answer) text() string {
	return strings.Join(strings.Fields(strings.ReplaceAll(a.out+" "+a.err, "\n", " | ")), " ")
}

// commandLimit ends a command that hangs.
const commandLimit = 3 * time.Minute

func (i *instance) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, i.bin, append([]string{"--state", i.state}, args...)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) }
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// run runs one command to its end; -1 where it could not be run.
func (i *instance) run(args ...string) answer { return i.runWith("", args...) }

func (i *instance) runWith(stdin string, args ...string) answer {
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	defer cancel()
	cmd := i.command(ctx, args...)
	var out, errOut bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errOut
	return ended(cmd.Run(), &out, &errOut)
}

func ended(err error, out, errOut *bytes.Buffer) answer {
	a := answer{out: out.String(), err: errOut.String()}
	var failed *exec.ExitError
	switch {
	case errors.As(err, &failed):
		a.code = failed.ExitCode()
	case err != nil:
		a.code, a.err = -1, err.Error()
	}
	return a
}

// must runs a command that has to succeed.
func (i *instance) must(t *testing.T, args ...string) string {
	t.Helper()
	return i.mustWith(t, "", args...)
}

func (i *instance) mustWith(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	a := i.runWith(stdin, args...)
	if a.code != 0 {
		t.Fatalf("podwire %s: exit %d\n%s%s%s", strings.Join(args, " "), a.code, a.out, a.err, stdin)
	}
	return a.out
}

// apply writes manifests and waits until they are true everywhere.
func (i *instance) apply(t *testing.T, manifests string) {
	t.Helper()
	i.mustWith(t, manifests, "apply", "--wait", "-f", "-")
}

// remove deletes what manifests name, and waits until that is true everywhere.
func (i *instance) remove(t *testing.T, manifests string) {
	t.Helper()
	i.mustWith(t, manifests, "delete", "--wait", "-f", "-")
}

// namespace makes a Namespace for one test.
func (i *instance) namespace(t *testing.T, name string) {
	t.Helper()
	doc := "{apiVersion: v1, kind: Namespace, metadata: {name: " + name + "}}"
	i.apply(t, doc)
	t.Cleanup(func() { i.remove(t, doc) })
}

// get reads one object or a list.
func (i *instance) get(t *testing.T, into any, args ...string) {
	t.Helper()
	out := i.must(t, append(append([]string{"get"}, args...), "-o", "json")...)
	if err := json.Unmarshal([]byte(out), into); err != nil {
		t.Fatalf("podwire get %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// outsideAddress is the IPv4 address of the namespace outside.
func (i *instance) outsideAddress(t *testing.T) string {
	t.Helper()
	return i.addressesOf(t, outside(), "eth0")[0]
}

// addressesOf are a link's addresses that are not link-local, IPv4 first.
func (i *instance) addressesOf(t *testing.T, where place, link string) []string {
	t.Helper()
	var links []struct {
		AddrInfo []struct{ Scope, Local string } `json:"addr_info"`
	}
	out := i.exec(where, "ip", "-j", "addr", "show", "dev", link).out
	if err := json.Unmarshal([]byte(out), &links); err != nil || len(links) == 0 {
		t.Fatalf("%v: %s: %v", where, out, err)
	}
	var addrs []string
	for _, a := range links[len(links)-1].AddrInfo {
		if a.Scope == "global" {
			addrs = append(addrs, a.Local)
		}
	}
	if len(addrs) != 2 {
		t.Fatalf("%v: %s has %v, want an address of each family", where, link, addrs)
	}
	return addrs
}

// startListener runs this test binary as a listener in the namespace outside until the test ends.
func (i *instance) startListener(t *testing.T, addr string) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := i.command(ctx, append([]string{"exec", "--outside", "--"}, playing(t, part{Listen: addr})...)...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait()
	})
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatalf("the listener outside does not start: %v", err)
	}
}

// playing is a command that plays a part.
func playing(t *testing.T, p part) []string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	return []string{"env", partVariable + "=" + string(text), self}
}

// partPod is a pod that plays a part; more is added to its spec's container.
func partPod(t *testing.T, ns, name, node, labels string, p part, more ...string) string {
	t.Helper()
	var command []string
	for _, word := range playing(t, p) {
		command = append(command, strconv.Quote(word))
	}
	return fmt.Sprintf("---\n{apiVersion: v1, kind: Pod, metadata: {name: %s, namespace: %s, labels: {%s}}, spec: {nodeName: %s, "+
		"terminationGracePeriodSeconds: 1, containers: [{name: part, image: podwire.dev/host, command: [%s]%s}]}}\n",
		name, ns, labels, node, strings.Join(command, ", "), strings.Join(more, ""))
}

// ask asks all questions at once from one place.
func (i *instance) ask(t *testing.T, from place, timeout time.Duration, questions []question) []reply {
	t.Helper()
	in, err := json.Marshal(questions)
	if err != nil {
		t.Fatal(err)
	}
	args := append(append([]string{"exec"}, from...), "--")
	out := i.mustWith(t, string(in), append(args, playing(t, part{Ask: &asking{timeout}})...)...)
	var replies []reply
	if err := json.Unmarshal([]byte(out), &replies); err != nil || len(replies) != len(questions) {
		t.Fatalf("%v: %d replies to %d questions: %v", from, len(replies), len(questions), err)
	}
	return replies
}

// patience bounds what has to happen some time: on a machine under load that may be a while.
const patience = time.Minute

// look is how often something is looked at that changes by itself.
const look = 20 * time.Millisecond

// await looks until something is so.
func await(t *testing.T, what string, so func() error) {
	t.Helper()
	tick := time.NewTicker(look)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); ; <-tick.C {
		err := so()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s: %v", patience, what, err)
		}
	}
}
